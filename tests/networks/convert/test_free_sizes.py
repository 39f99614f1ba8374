"""Converted networks and ours can be recorded for every size and called in parts, and find their sizes again in a backward pass."""

import copy
import functools
import io
import pickle
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conversion_table import CASES, make_pair
from monai.networks import convert_to_torchscript
from monai.networks.nets import AutoencoderKL, UNet
from monai.networks.nets.unet import CheckpointUNet
from torch import nn
from torch.utils.checkpoint import checkpoint

from monai_gmr.networks import convert_to_gmr
from monai_gmr.networks.layers import (
    GMRAvgPool,
    GMRCentredConv2d,
    GMRCentredHarmonicConv2d,
    GMRInterpolate,
    GMRMaxPool,
    PointGroupConv2d,
    PointGroupNorm,
    PointGroupPool,
    PointGroupRestrict,
)
from monai_gmr.networks.layers.size_trail import SizedLayer
from monai_gmr.networks.nets import GMRResNet, GMRUNet
from monai_gmr.utils import ConfigurationError, tensors_in

# odd, even and odd below, even twice
SIZES = [(37, 42), (36, 39)]
# of any size; the others are built for one
FREE = [name for name, case in CASES.items() if case.fixed is None]
FEW = ["UNet", "BasicUNet, pixelshuffle", "DynUNet, residual", "SegResNet", "ResNet10"]


class SizeBehind(nn.Module):
    """Resizes its downsampled input to the size after a layer on fields."""

    def __init__(self, layer):
        super().__init__()
        self.lift, self.layer = PointGroupConv2d(1, 8, 3, padding=1, group="4mm", in_group="1"), layer

    def forward(self, x):
        return F.interpolate(x[..., ::2, ::2], size=self.layer(self.lift(x)).shape[2:])


TWO_GROUPS = ["group", ("group", {"group": "2mm"})]
OURS = {
    "unet, two groups": lambda: GMRUNet(2, 1, 2, features=(16, 24), conv=TWO_GROUPS),
    "unet": lambda: GMRUNet(2, 1, 2, features=(8, 16), conv="gmr_harmonic"),
    "unet, max pooling": lambda: GMRUNet(2, 1, 2, features=(8, 16), conv="gmr", downsample="max", norm="batch"),
    "unet, deconvolution": lambda: GMRUNet(2, 1, 2, features=(8, 16), conv="gmr", upsample="deconv"),
    "resnet": lambda: GMRResNet(2, 1, 3, layers=(1, 1), kernel_sizes=3, width=8),
}
LAYERS = {
    "max pool": GMRMaxPool(2, 3, 2, 1),
    "max pool, ceil": GMRMaxPool(2, 2, 2, rounding="ceil"),
    "max pool, floor": GMRMaxPool(2, 2, 3, rounding="floor"),
    "average pool": GMRAvgPool(2, 3, 2, 1, count_padding=True),
    "centred": GMRCentredConv2d(1, 4, 3, 2, 1, padding_mode="replicate"),
    "centred, no padding": GMRCentredConv2d(1, 4, 2, 3),
    "centred harmonic": GMRCentredHarmonicConv2d(1, 4, 3, 2, 1, groups=1),
    "size behind a pool": SizeBehind(PointGroupPool(2, "4mm")),
    "size behind a pool onto a subgroup": SizeBehind(PointGroupPool(2, "4mm", "4")),
    "size behind a restriction": SizeBehind(PointGroupRestrict(2, "4mm", "2mm")),
    "size behind a norm": SizeBehind(PointGroupNorm(2, 8, "4mm")),
    "nearest": nn.Sequential(GMRMaxPool(2), GMRInterpolate((2, 2), "nearest")),
}


@functools.cache
def make_net(name):
    torch.manual_seed(0)
    if name in LAYERS:
        return LAYERS[name].eval()
    return OURS[name]().eval() if name in OURS else make_pair(name, 2, shallow=True, conv="gmr_harmonic")[1].eval()


def net_of(name):
    """A separate copy of a network; conversion, which takes most of the time, runs once per name."""
    return copy.deepcopy(make_net(name))


def check(recorded, net, sizes=SIZES, batch=1):
    for size in sizes:
        x = torch.randn(batch, 1, *size)
        found, expected = tensors_in(recorded(x)), tensors_in(net(x))
        assert len(found) == len(expected)
        for one, two in zip(found, expected):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * float(two.abs().max()))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", [*FREE, *OURS, *LAYERS])
@torch.no_grad()
def test_a_traced_network_is_right_at_sizes_other_than_the_traced_one(name):
    """The recorded graph: torch optimises the graphs of some networks of each kind, which takes most of the time."""
    net = net_of(name)
    with torch.jit.optimized_execution(name in (*FEW, *OURS, *LAYERS)):
        check(torch.jit.trace(net, torch.randn(1, 1, 64, 64), check_trace=False, strict=False), net)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_a_traced_network_that_tells_positions_apart_refuses_other_sizes():
    net = net_of("SwinUNETR")
    traced = torch.jit.trace(net, torch.randn(1, 1, 64, 64), check_trace=False)
    check(traced, net, [(64, 64)])
    with pytest.raises(RuntimeError, match="expanded size"):
        traced(torch.randn(1, 1, 96, 64))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["UNet", "ResNet10"])
@torch.no_grad()
def test_a_traced_network_leaves_no_device_behind(name):
    traced = torch.jit.trace(net_of(name), torch.randn(1, 1, 64, 64), check_trace=False)
    assert traced.to("meta")(torch.randn(1, 1, 37, 42, device="meta")).device.type == "meta"


# which are traced within: the other networks are above
@pytest.mark.parametrize("name", ["UNet", "DynUNet, deep supervision", "MedNeXt", "ResNet10"])
@torch.no_grad()
def test_scripted_networks_are_saved_loaded_and_right_at_every_size(name):
    net = net_of(name).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    scripted = torch.jit.script(net)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    # as above: torch optimises the graphs of some
    with torch.jit.optimized_execution(name == "UNet"):
        check(torch.jit.load(buffer).eval(), net.eval())


@pytest.mark.parametrize("name", OURS)
@torch.no_grad()
def test_our_networks_are_scripted_and_right_at_every_size(name):
    check(torch.jit.script(net_of(name)), net_of(name))


def test_a_scripted_network_trains_and_shares_its_weights_with_the_answer_after():
    net = net_of("UNet")
    scripted, x = torch.jit.script(net.train()), torch.randn(2, 1, 37, 42)
    optimizer, before = torch.optim.SGD(scripted.parameters(), 0.1), scripted.eval()(x)
    scripted.train()(x).square().mean().backward()
    optimizer.step()
    assert not torch.allclose(scripted.eval()(x), before, atol=1e-3)
    check(scripted.eval(), net.eval())


def test_monai_exports_them(tmp_path):
    net = net_of("UNet")
    x = torch.randn(1, 1, 37, 42)
    convert_to_torchscript(net, str(tmp_path / "net.ts"), verify=True, inputs=[x], rtol=1e-3, atol=1e-4)
    check(torch.jit.load(tmp_path / "net.ts"), net)


class _Branches(nn.Module):
    """Looks at the size of its image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(x) * (1 if x.shape[2] % 2 else 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [lambda: convert_to_gmr(_Branches()), lambda: net_of("SwinUNETR")])
def test_what_cannot_be_scripted_is_refused(make):
    with pytest.raises(ConfigurationError, match="branches on the size"):
        torch.jit.script(make())


@pytest.mark.parametrize("conv", ["gmr", "gmr_harmonic"])
def test_a_part_of_a_network_is_not_scripted(conv):
    net = convert_to_gmr(UNet(2, 1, 2, (4, 8), (2,)), conv=conv)
    sized = [module for module in net.modules() if isinstance(module, SizedLayer)]
    assert len({type(module) for module in sized}) > 1
    for module in sized:
        with pytest.raises(ConfigurationError, match="part of a converted network"):
            torch.jit.script(nn.Sequential(module))


def test_a_network_that_takes_more_than_an_image_is_not_scripted():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x, y):
            return self.conv(x) + y

    x = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ConfigurationError, match=r"torch\.jit\.trace"):
        torch.jit.script(convert_to_gmr(Net(), example_inputs=(x, torch.zeros(1, 2, 6, 6))))


# "unet" has the harmonic blocks of "UNet" and the steps of "resnet"
@pytest.mark.parametrize("name", ["UNet", *(name for name in OURS if name != "unet"), *LAYERS])
@torch.no_grad()
def test_exported_networks_are_saved_and_right_at_every_size_and_batch(name):
    net = net_of(name)
    sizes = {0: torch.export.Dim("n", min=2, max=64)}
    sizes |= {axis: torch.export.Dim(f"n{axis}", min=34, max=200) for axis in (2, 3)}
    exported, file = torch.export.export(net, (torch.randn(2, 1, 43, 38),), dynamic_shapes=(sizes,)), io.BytesIO()
    torch.export.save(exported, file)
    if name in ("UNet", "unet, two groups", "centred harmonic"):
        # which takes as long as the rest
        file.seek(0)
        exported = torch.export.load(file)
    check(exported.module(), net, batch=3)


@pytest.mark.parametrize("name", ["max pool", "average pool", "centred harmonic"])
@torch.no_grad()
def test_strict_export_is_right_at_every_size(name):
    net, free = net_of(name), {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    check(torch.export.export(net, (torch.randn(1, 1, 43, 38),), dynamic_shapes=(free,), strict=True).module(), net)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "dynamo"),
    # the new exporter takes 20 s for a whole converted network; torch.export, which it uses, is tested above
    [
        ("UNet", False),
        ("unet, two groups", False),
        *((name, False) for name in LAYERS if name.startswith("size behind")),
        ("unet, max pooling", False),
        *((name, dynamo) for name in ("nearest", "centred harmonic") for dynamo in (True, False)),
    ],
)
@torch.no_grad()
def test_onnx_is_right_at_every_size(name, dynamo, tmp_path):
    onnx, reference = pytest.importorskip("onnx"), pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    net, path = net_of(name), str(tmp_path / "net.onnx")
    free = {2: torch.export.Dim("h", min=17, max=200), 3: torch.export.Dim("w", min=17, max=200)}
    sizes = {"dynamic_shapes": (free,)} if dynamo else {"dynamic_axes": {"x": {2: "h", 3: "w"}}}
    torch.onnx.export(net, (torch.randn(1, 1, 23, 28),), path, dynamo=dynamo, input_names=["x"], **sizes)
    session = reference.ReferenceEvaluator(onnx.load(path))
    for size in [(23, 28), (18, 25)]:
        x = torch.randn(1, 1, *size)
        expected = net(x).numpy()
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, 1e-3, 1e-4 * abs(expected).max())


def gradients(net, sizes):
    torch.manual_seed(1)
    net.zero_grad()
    sum(net(torch.randn(1, 1, *size)).square().mean() for size in sizes).backward()
    return [parameter.grad for parameter in net.parameters()]


@pytest.mark.parametrize("sizes", [[(32, 32)], [(33, 38)], [(35, 34), (36, 35)], [(34, 35), (33, 36), (32, 33)]])
def test_checkpointed_networks_have_the_gradients_of_others(sizes):
    options = {"channels": (4, 8, 16), "strides": (2, 2), "num_res_units": 1}
    net = convert_to_gmr(CheckpointUNet(2, 1, 2, **options), conv="gmr_harmonic")
    plain = convert_to_gmr(UNet(2, 1, 2, **options), conv="gmr_harmonic")
    plain.load_state_dict(dict(zip(plain.state_dict(), net.state_dict().values())))
    for one, two in zip(gradients(net, sizes), gradients(plain, sizes)):
        assert torch.allclose(one, two, atol=1e-6)


class _Inside(nn.Module):
    """Calls a part of itself by ``torch.utils.checkpoint``."""

    def __init__(self, reentrant):
        super().__init__()
        self.stem, self.down = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.up, self.reentrant = nn.ConvTranspose2d(4, 4, 2, 2), reentrant

    def forward(self, x):
        x = self.stem(x)
        if self.reentrant is None:
            return x + self.up(torch.relu(self.down(x)))
        return x + checkpoint(lambda y: self.up(torch.relu(y)), self.down(x), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("sizes", [[(9, 10)], [(9, 10), (10, 9)]])
def test_parts_are_checkpointed_inside_a_network(reentrant, sizes):
    net, plain = convert_to_gmr(_Inside(reentrant)), convert_to_gmr(_Inside(None))
    plain.load_state_dict(net.state_dict())
    for one, two in zip(gradients(net, sizes), gradients(plain, sizes)):
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_backward_pass_runs_on_another_thread_after_other_calls(reentrant):
    net = convert_to_gmr(_Inside(reentrant))
    losses = [net(torch.randn(1, 1, *size)).mean() for size in [(9, 10), (10, 9), (10, 10)]]
    failures = []

    def work(loss):
        try:
            loss.backward()
        except Exception as error:
            failures.append(error)

    for loss in losses:
        thread = threading.Thread(target=work, args=(loss,))
        thread.start()
        thread.join()
    assert not failures


@pytest.fixture(scope="module")
def autoencoder():
    options = {"num_res_blocks": (1, 1, 1), "attention_levels": (False,) * 3, "norm_num_groups": 4}
    net = AutoencoderKL(2, 1, 1, channels=(8, 8, 8), latent_channels=2, **options)
    return convert_to_gmr(net, conv="gmr_harmonic").eval()


@pytest.mark.parametrize("size", [(32, 32), (33, 38), (35, 34)])
@torch.no_grad()
def test_other_methods_meet_the_sizes_that_forward_meets(autoencoder, size):
    x = torch.randn(1, 1, *size)
    answer, mean, _ = autoencoder(x)
    assert answer.shape == autoencoder.reconstruct(x).shape == x.shape
    assert torch.equal(autoencoder.encode(x)[0], mean)
    assert torch.equal(autoencoder.forward(x)[1], mean)
    assert autoencoder.decode(mean).shape[2:] == tuple(4 * n for n in mean.shape[2:])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@torch.no_grad()
def test_copies_are_of_the_given_class_and_have_its_methods(autoencoder, copied):
    net, x = copied(autoencoder), torch.randn(1, 1, 33, 38)
    assert isinstance(net, AutoencoderKL)
    assert type(net).__name__ == "AutoencoderKL"
    assert torch.equal(net.reconstruct(x), autoencoder.reconstruct(x))
