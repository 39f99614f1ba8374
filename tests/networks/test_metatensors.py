"""A network computes on plain tensors; its answer to a MetaTensor, whose every operation looks through its metadata, has that metadata."""

import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate, set_track_meta
from monai.networks.nets import DynUNet, UNet
from torch import nn

from monai_gmr.networks import convert_to_gmr
from monai_gmr.networks.nets import GMRResNet, GMRUNet
from monai_gmr.utils import tensors_in


class Named(nn.Module):
    """Takes an image by name and gives a dictionary."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, image):
        return {"out": self.conv(image), "size": image.shape[2]}


def converted(net):
    return convert_to_gmr(net, in_channels=1)


NETS = {
    "unet": lambda: GMRUNet(2, 1, 2, features=(4, 6), conv="gmr_harmonic"),
    "unet, deep supervision": lambda: GMRUNet(2, 1, 2, features=(4, 6, 8), conv="gmr", deep_supervision=True),
    "resnet": lambda: GMRResNet(2, 1, 3, layers=(1, 1), kernel_sizes=3, width=4),
    "converted": lambda: converted(UNet(2, 1, 2, (4, 8), (2,))),
    "converted, deep supervision": lambda: converted(
        DynUNet(2, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, deep_supervision=True, deep_supr_num=1)
    ),
    "converted, dictionary": lambda: converted(Named()),
}


@pytest.fixture(params=[False, True], ids=["eval", "train"])
def training(request):
    return request.param


@pytest.fixture(params=NETS)
def net(request, training):
    torch.manual_seed(0)
    return NETS[request.param]().train(training)


def batch(count):
    """A batch of a loader, whose images have a spacing and a name each."""
    images = torch.rand(count, 1, 16, 24)
    affines = [torch.diag(torch.tensor([spacing, 1.0, 1.0, 1.0])) for spacing in torch.arange(1.0, count + 1)]
    pairs = enumerate(zip(images, affines))
    return list_data_collate([MetaTensor(x, affine=a, meta={"filename_or_obj": f"case{i}"}) for i, (x, a) in pairs])


@torch.no_grad()
def test_the_answer_is_that_for_a_plain_tensor_with_the_metadata_of_an_operation(net):
    x = batch(2)
    answers, expected, operation = tensors_in(net(x)), tensors_in(net(x.as_tensor())), x * 2
    assert len(answers) == len(expected) > 0
    for answer, plain in zip(answers, expected):
        assert isinstance(answer, MetaTensor)
        assert not isinstance(plain, MetaTensor)
        torch.testing.assert_close(answer.as_tensor(), plain)
        assert answer.is_batch
        assert answer.meta.keys() == operation.meta.keys()
        assert torch.equal(answer.affine, operation.affine)
        assert [each.meta["filename_or_obj"] for each in decollate_batch(answer)] == ["case0", "case1"]
        assert answer.applied_operations == operation.applied_operations


@torch.no_grad()
def test_no_operation_within_looks_through_the_metadata(net, monkeypatch):
    x, seen = batch(2), []
    count = len(tensors_in(net(x)))
    for module in net.modules():
        if module is not net:
            module.register_forward_pre_hook(lambda module, args: seen.extend(map(type, tensors_in(args))))
    calls, original = [], MetaTensor.__torch_function__
    monkeypatch.setattr(
        MetaTensor,
        "__torch_function__",
        classmethod(lambda cls, func, *rest: (calls.append(func), original(func, *rest))[1]),
    )
    net(x)
    assert set(seen) == {torch.Tensor}
    assert len(calls) <= 1 + count  # one makes the image plain, one for each answer


def test_gradients_reach_weights_and_image(net):
    x = batch(2).requires_grad_()
    sum(each.square().sum() for each in tensors_in(net(x)) if each.requires_grad).backward()
    plain = x.detach().as_tensor().requires_grad_()
    own = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    sum(each.square().sum() for each in tensors_in(net(plain)) if each.requires_grad).backward()
    torch.testing.assert_close(torch.as_tensor(x.grad), plain.grad)
    torch.testing.assert_close(own, [p.grad for p in net.parameters() if p.grad is not None])
    assert own


def test_without_tracking_the_answer_is_plain(net):
    set_track_meta(False)
    try:
        answers = tensors_in(net(batch(1)))
    finally:
        set_track_meta(True)
    assert not any(isinstance(each, MetaTensor) for each in answers)
