"""No operation gets tensors of two devices, tested on a missing device with FakeTensors, which have device and shape but no values."""

import contextlib

import pytest
import torch
from monai.networks import nets
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monai_gmr.networks import convert_to_gmr
from monai_gmr.networks.layers import PartialGroupElements
from monai_gmr.networks.nets import GMRResNet, GMRUNet
from monai_gmr.ops import set_backend
from monai_gmr.utils import tensors_in

GROUPS = {2: "4mm", 3: "mmm"}
CONVS = {
    "radial": ("gmr", {}),
    "harmonic": ("gmr_harmonic", {}),
    "harmonic, rotations": ("gmr_harmonic", {"keeps": "rotations"}),
    "harmonic, nothing": ("gmr_harmonic", {"keeps": "1"}),
    "group": ("group", {}),
    "group, gc": ("group", {"filter": "gc"}),
    "partial": ("partial", {}),
    "sre": ("sre", {}),
}


def conv_of(name, dims):
    conv, options = CONVS[name]
    return conv, options | ({"group": GROUPS[dims]} if conv == "group" else {})


def unet(conv, channels=16):
    return GMRUNet(3, 1, 2, (channels, channels), conv=conv_of(conv, 3), deep_supervision=True)


def resnet(conv, channels=16):
    return GMRResNet(2, 1, 2, layers=(1, 1), kernel_sizes=3, width=channels, conv=conv_of(conv, 2))


def converted(conv):
    net = nets.UNet(3, 1, 2, (16, 16), (2,), num_res_units=1, norm="batch")
    return convert_to_gmr(net, conv=conv_of(conv, 3), weights="anneal")


def tensors_on(device, net):
    """An empty tensor for each parameter and buffer of a net; other attributes stay on their device."""
    return {
        name: torch.empty(each.shape, dtype=each.dtype, device=device, requires_grad=each.requires_grad)
        for name, each in [*net.named_parameters(), *net.named_buffers()]
    }


def answers_of(net, tensors, device, training=True):
    """The output of a net with these tensors for an image of odd and even sizes, in train or eval mode."""
    x = torch.randn(2, 1, *(17, 20, 18)[: net.dims], device=device, requires_grad=True)
    return tensors_in(torch.func.functional_call(net.train(training), tensors, (x,)))


NETS = [(make, conv) for make in (unet, resnet, converted) for conv in CONVS]
NETS = [each for each in NETS if each[0] is not converted or each[1] not in ("partial", "sre")]


@pytest.fixture(scope="module", params=NETS, ids=lambda pair: f"{pair[0].__name__}-{pair[1]}")
def net(request):
    make, conv = request.param
    # the samples of a whole group
    net = make(conv, 48) if conv == "partial" else make(conv)
    net.dims = 2 if make is resnet else 3
    return net


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="torch is built without CUDA")
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_a_forward_pass_on_a_gpu_stays_there(net, backend):
    with set_backend(backend), FakeTensorMode():
        answers = answers_of(net, tensors_on("cuda:0", net), "cuda:0")
    assert {answer.device.type for answer in answers} == {"cuda"}


class Waits(TorchDispatchMode):
    """Records synchronisations of a GPU: copies from and to the host, and numbers that the host reads."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        devices = {each.device.type for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)}
        if len(devices) > 1 or func is torch.ops.aten._local_scalar_dense.default:
            self.seen.append(str(func))
        return result


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="torch is built without CUDA")
def test_a_forward_pass_waits_for_nothing(net):
    """Except for partial nets in train mode, which draw random numbers on the host so that they are equal on all devices."""
    training = not any(isinstance(each, PartialGroupElements) for each in net.modules())
    with set_backend("dense"), FakeTensorMode():
        tensors = tensors_on("cuda:0", net)
        with Waits() as waits:
            answers_of(net, tensors, "cuda:0", training)
    assert waits.seen == []


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="torch is built without CUDA")
def test_what_waits_is_seen():
    with FakeTensorMode(), Waits() as waits:
        x = torch.ones(2, device="cuda:0")
        torch.tensor([1.0, 2.0], device="cuda:0")
        with contextlib.suppress(Exception):  # a FakeTensor has no number
            x.sum().item()
    assert waits.seen == ["aten._to_copy.default"]


@pytest.fixture
def lazy(monkeypatch):
    """A device whose backward pass torch runs without hardware, unlike CUDA; it has no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    return "lazy:0"


def test_a_backward_pass_on_another_device_stays_there(net, lazy):
    with FakeTensorMode():
        tensors = tensors_on(lazy, net)
        answers = answers_of(net, tensors, lazy)
        with Waits() as waits:
            sum(answer.sum() for answer in answers).backward()
    assert waits.seen == []
    gradients = [tensor.grad for tensor in tensors.values()]
    assert {gradient.device.type for gradient in gradients if gradient is not None} == {"lazy"}


def test_a_tensor_that_is_left_behind_is_found(lazy):
    net = resnet("radial")
    net.dims, net.mask = 2, torch.ones(2)
    net.register_forward_hook(lambda net, _, answer: answer * net.mask)
    with FakeTensorMode(), pytest.raises(Exception, match=r"[Ff]ake|two devices"):
        answers_of(net, tensors_on(lazy, net), lazy)
