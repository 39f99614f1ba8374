"""Layers and nets compute on plain tensors, because MetaTensors cost time in every operation; outputs keep the metadata."""

from functools import partial

import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate, set_track_meta
from monai.networks.nets import DynUNet, UNet
from torch import nn

from monai_gmr.networks import convert_to_gmr
from monai_gmr.networks.layers import (
    GMRAvgPool,
    GMRCentredConv2d,
    GMRCentredHarmonicConv2d,
    GMRConv2d,
    GMRConvTranspose2d,
    GMRDownsample,
    GMRHarmonicConv2d,
    GMRMaxPool,
    GMRUpsample,
    PointGroupConv2d,
)
from monai_gmr.networks.nets import GMRResNet, GMRUNet
from monai_gmr.utils import tensors_in


class ByName(nn.Module):
    """Takes an image by name, reads its metadata, and returns a dictionary."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, image):
        return {
            "out": self.conv(image),
            "name": image.meta["filename_or_obj"] if isinstance(image, MetaTensor) else None,
        }


def stock(name):
    """A network to be converted."""
    if name == "UNet":
        return UNet(2, 1, 2, (4, 8), (2,))
    if name == "DynUNet, deep supervision":
        return DynUNet(2, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, deep_supervision=True, deep_supr_num=1)
    return ByName()


OURS = {
    "unet": lambda: GMRUNet(2, 1, 2, features=(4, 6), conv="gmr_harmonic"),
    "unet, deep supervision": lambda: GMRUNet(2, 1, 2, features=(4, 6, 8), conv="gmr", deep_supervision=True),
    "resnet": lambda: GMRResNet(2, 1, 3, layers=(1, 1), kernel_sizes=3, width=4),
}
STOCK = ("UNet", "DynUNet, deep supervision", "dictionary")
CONVERTED = {name: partial(lambda name: convert_to_gmr(stock(name), conv="gmr_harmonic"), name) for name in STOCK}
NETS = OURS | CONVERTED
LAYERS = {
    "radial": GMRConv2d(1, 4, 3, padding=1),
    "harmonic": GMRHarmonicConv2d(1, 4, 3, padding=1),
    "transposed": GMRConvTranspose2d(1, 4, 2, stride=2),
    "centred": GMRCentredConv2d(1, 4, 3, 2, 1),
    "centred harmonic": GMRCentredHarmonicConv2d(1, 4, 3, 2, 1),
    "group": PointGroupConv2d(1, 8, 3, in_group="1", group="4mm"),
    "downsample": GMRDownsample(2),
    "upsample": GMRUpsample(2),
    "max pool": GMRMaxPool(2),
    "average pool": GMRAvgPool(2),
}
# of a tensor: no work, and no metadata
QUESTIONS = {"__get__", "dim", "size", "stride", "untyped_storage"}


@pytest.fixture(params=[False, True], ids=["eval", "train"])
def training(request):
    return request.param


@pytest.fixture(params=NETS)
def net(request, training):
    torch.manual_seed(0)
    return NETS[request.param]().train(training)


def batch(count):
    """A batch of a loader, always the same, whose images each have a spacing and a name."""
    images = torch.rand(count, 1, 16, 24, generator=torch.Generator().manual_seed(0))
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


@pytest.fixture
def operations(monkeypatch):
    """A function that counts the operations on MetaTensors in a call."""
    made, original = [], MetaTensor.__torch_function__

    def note(cls, func, *rest):
        made.append(func.__name__)
        return original(func, *rest)

    def count(run, *args):
        made.clear()
        with torch.no_grad():
            run(*args)
        return sum(name not in QUESTIONS for name in made)

    monkeypatch.setattr(MetaTensor, "__torch_function__", classmethod(note))
    return count


@pytest.mark.parametrize("name", OURS)
def test_modules_of_our_networks_see_plain_tensors(name, training, operations):
    net, seen = OURS[name]().train(training), []
    for module in net.modules():
        if module is not net:
            module.register_forward_pre_hook(lambda module, args: seen.extend(map(type, tensors_in(args))))
    assert operations(net, batch(2)) <= 1 + len(tensors_in(net(batch(2).as_tensor())))
    assert set(seen) == {torch.Tensor}


@pytest.mark.parametrize("name", STOCK)
def test_a_converted_network_does_no_more_operations_on_metatensors_than_the_given_one(name, training, operations):
    """A transposed convolution becomes two."""
    given = stock(name).train(training)
    most = operations(given, batch(2)) + sum(isinstance(each, nn.ConvTranspose2d) for each in given.modules())
    assert operations(CONVERTED[name]().train(training), batch(2)) <= most


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_layer_is_one_operation(layer, operations):
    assert operations(layer, batch(2)) == 1
    assert isinstance(layer(batch(2)), MetaTensor)


class SigmoidUNet(GMRUNet):
    def forward(self, x):
        return torch.sigmoid(super().forward(x))


class ScaledResNet(GMRResNet):
    def forward(self, x):
        return 10 * super().forward(x)


class ScaledCentredConv(GMRCentredConv2d):
    def forward(self, input):
        return 10 * super().forward(input)


class ScaledPool(GMRAvgPool):
    def forward(self, x):
        return 10 * super().forward(x)


SUBCLASSES = [
    lambda: SigmoidUNet(2, 1, 2, features=(4, 6)),
    lambda: ScaledResNet(2, 1, 3, layers=(1, 1), kernel_sizes=3, width=4),
    lambda: ScaledCentredConv(1, 2, 3, 2, 1),
    lambda: ScaledPool(2),
]


@pytest.mark.parametrize("make", SUBCLASSES)
@torch.no_grad()
def test_a_subclass_does_its_own_part_once(make):
    module = make().eval()
    torch.testing.assert_close(module(batch(2)).as_tensor(), module(batch(2).as_tensor()))


@torch.no_grad()
def test_a_forward_that_stands_in_for_the_first_one_does_its_part_once():
    net = OURS["unet"]().eval()
    net.forward = partial(lambda first, x: first(x) + 1, net.forward)
    torch.testing.assert_close(net(batch(2)).as_tensor(), net(batch(2).as_tensor()))


@torch.no_grad()
def test_a_converted_network_can_read_the_metadata_of_its_image():
    assert CONVERTED["dictionary"]()(batch(2))["name"] == ["case0", "case1"]


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
