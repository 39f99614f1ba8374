"""The report of a conversion names inexact operations outside of a network's layers, and no exact ones."""

import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks import FeaturePyramidNetwork, Warp
from monai.networks.nets import BasicUNet, DynUNet, SegResNetVAE
from monai.networks.nets.autoencoderkl import AsymmetricPad
from torch import nn

from monai_gmr.metrics import equivariance_error
from monai_gmr.networks import convert_to_gmr
from monai_gmr.networks.convert.monai_modules import resize_about_centre
from monai_gmr.networks.layers import GMRConv2d
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.ops import DenseBackend, set_backend
from monai_gmr.symmetry import point_group
from monai_gmr.utils import ConfigurationError


class Between(nn.Module):
    """Two convolutions with a function between them."""

    def __init__(self, function, channels=4):
        super().__init__()
        self.first, self.function = nn.Conv2d(1, 4, 3, padding=1), function
        self.last = nn.Conv2d(channels, 2, 3, padding=1)
        self.own = nn.Parameter(torch.randn(4, 32, 32))

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.last(self.function(x, self) if self.function.__code__.co_argcount > 1 else self.function(x))


class ByKeyword(Between):
    """The same, with layers called by keyword."""

    def forward(self, x):
        x = F.relu(self.first(input=x))
        return self.last(input=self.function(x))


KERNEL = torch.randn(4, 1, 3, 3)
INEXACT = {
    "pad": (lambda x: F.pad(x, (0, 1)), "pads one end"),
    "replicate": (lambda x: F.pad(x, (1, 0, 0, 0), mode="replicate"), "pads one end"),
    "pad an axis": (lambda x: F.pad(x, (1, 1)), "pads one axis more"),
    "crop": (lambda x: x[..., 1:], "from one end"),
    "every other": (lambda x: x[:, :, ::2, ::2], "from one end"),
    "column": (lambda x: x + x[..., :1] + x.select(3, 0).unsqueeze(3), "by their place"),
    "roll": (lambda x: x.roll(1, 2), "moves voxels along an axis"),
    "flip": (lambda x: x.flip(3), "mirrors an axis"),
    "nearest": (lambda x: F.interpolate(x, size=[n + 1 for n in x.shape[2:]]), "nearest"),
    "nearest, down": (lambda x: F.interpolate(x, scale_factor=0.5), "nearest"),
    "factor": (lambda x: F.interpolate(x, scale_factor=0.4, mode="bilinear"), "does not fit"),
    "pool": (lambda x: F.max_pool2d(x, 3, 2), "not about its centre"),
    "mean": (lambda x: F.avg_pool2d(x, 3, 2), "not about its centre"),
    "filter": (lambda x: F.conv2d(x, KERNEL.to(x), padding=1, groups=4), "rotations and mirrors change"),
    "transposed": (lambda x: x.transpose(2, 3), "two axes exchanged"),
    "with its transpose": (lambda x: x + x.permute(0, 1, 3, 2) if x.shape[2] == x.shape[3] else x, "joins an image"),
    "sample": (lambda x: F.grid_sample(x, x.movedim(1, 3)[..., :2], align_corners=False), "samples"),
    "shuffle": (lambda x: F.pixel_shuffle(x, 2).repeat(1, 4, 1, 1), "places of voxels"),
    "patches": (lambda x: F.pad(x, (0, x.shape[3] % 2)).unflatten(3, (-1, 2))[..., :1].flatten(3), "patches"),
    "sum": (lambda x: x.cumsum(3), "adds up"),
    "random": (lambda x: x + torch.randn_like(x), "draws random numbers"),
    "positions": (lambda x: x * torch.arange(x.shape[3]).to(x), "depend on their positions"),
    "coordinates": (
        lambda x: torch.cat([x[:, 1:], torch.linspace(0, 1, x.shape[2]).to(x)[:, None].expand(2, 1, *x.shape[2:])], 1),
        "depend on their positions",
    ),
    "positions in place": (
        lambda x: x * torch.ones(x.shape[3]).mul_(torch.arange(x.shape[3])).to(x),
        "depend on their positions",
    ),
    "counted": (lambda x: x * torch.ones_like(x).cumsum(3), "adds up along an axis"),
    "sorted": (lambda x: x.sort(3).values, "sorts voxels"),
    "the place of the largest": (lambda x: x * x.argmax(3, keepdim=True), "computes the places"),
    "the place beside the largest": (lambda x: x * x.max(2, keepdim=True)[1], "computes the places"),
    "one axis": (lambda x: x * x.mean(3, keepdim=True), "the axes of an image differently"),
    "softmax of an axis": (lambda x: x.softmax(2), "the axes of an image differently"),
}
EXACT = {
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "crop": lambda x: x[..., 1:-1, 1:-1],
    "channels": lambda x: torch.cat([x[:, 1:], x[:, :1]], 1),
    "chunks": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0),
    "linear": lambda x: F.interpolate(x, size=[n + 1 for n in x.shape[2:]], mode="bilinear"),
    "area": lambda x: F.interpolate(x, size=(5, 5), mode="area"),
    "pool": lambda x: F.max_pool2d(x, 3, 1),
    "channels last and back": lambda x: x.movedim(1, 3).tanh().permute(0, 3, 1, 2) + x,
    "transposed and back": lambda x: x.mT.relu().transpose(2, 3) + x,
    "attention": lambda x: (x.flatten(2).softmax(2) * x.flatten(2)).view(x.shape) + x.mean((2, 3), keepdim=True),
    "numbers": lambda x: torch.cat([x, torch.ones_like(x[:, :1])], 1)[:, 1:] * torch.full(x.shape[2:], 0.5).to(x),
    "largest": lambda x: x * x.max(1, keepdim=True)[0] + x.amax((2, 3), keepdim=True),
    "groups": lambda x: x.unflatten(1, (2, 2)).sort(2).values.flatten(1, 2),
    "resized": lambda x: resize_about_centre(resize_about_centre(x, [n // 2 for n in x.shape[2:]]), x.shape[2:]),
}


def worst(net, size):
    with torch.no_grad():
        x = torch.randn(2, 1, *size, dtype=torch.float64)
        return equivariance_error(net.double().eval(), x, point_group(2)).worst


@pytest.mark.parametrize("name", INEXACT)
def test_what_is_not_exact_is_named_with_its_module(name):
    function, part = INEXACT[name]
    net = convert_to_gmr(Between(function))
    limits = net.conversion_report.limits
    assert any(each.startswith("Between: ") and part in each for each in limits), limits
    assert str(net.conversion_report).endswith(limits[-1])
    assert max(worst(net, (16, 16)), worst(net, (17, 17))) > 1e-3


@pytest.mark.parametrize("name", EXACT)
def test_what_is_exact_is_not_named(name):
    net = convert_to_gmr(Between(EXACT[name]))
    assert net.conversion_report.limits == ()
    assert max(worst(net, (16, 16)), worst(net, (17, 17)), worst(net, (16, 19))) < 1e-9


@pytest.mark.parametrize("function", [*(each for each, _ in INEXACT.values()), *EXACT.values()], ids=[*INEXACT, *EXACT])
def test_a_layer_that_is_called_by_keyword_changes_nothing_of_what_is_named(function):
    named, expected = (convert_to_gmr(kind(function)).conversion_report.limits for kind in (ByKeyword, Between))
    assert [each.replace("ByKeyword: ", "Between: ") for each in named] == list(expected)


@pytest.mark.parametrize(("axis", "limits"), [((2, 3), 0), (3, 1)])
def test_an_axis_that_the_spacing_keeps_apart_may_be_treated_unlike(axis, limits):
    net = Between(lambda x: x * x.mean(axis, keepdim=True))
    assert len(convert_to_gmr(net).conversion_report.limits) == limits
    assert convert_to_gmr(net, spacing=(1, 3)).conversion_report.limits == ()


def test_weights_of_a_place_are_named():
    net = convert_to_gmr(Between(lambda x, net: x * net.own), spatial_size=(32, 32))
    assert net.conversion_report.limits == ("Between: has a weight of its own for each voxel",)
    normed = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.LayerNorm((2, 32, 32)))
    assert "1: has a weight of its own" in convert_to_gmr(normed, spatial_size=(32, 32)).conversion_report.limits[0]


class OwnPad(nn.Module):
    """A padding module that no library knows."""

    def forward(self, x):
        return F.pad(x, (0, 1, 0, 1))


@pytest.mark.parametrize("pad", [nn.ZeroPad2d((0, 1, 0, 1)), AsymmetricPad(2), OwnPad(), nn.Sequential(OwnPad())])
@pytest.mark.parametrize("conv", ["gmr", "gmr_harmonic"])
def test_whatever_pads_before_a_convolution_goes_into_it(pad, conv):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), pad, nn.Conv2d(4, 4, 3, 2), nn.ReLU())
    converted = convert_to_gmr(net, conv=conv)
    assert converted.conversion_report.limits == ()
    for size in ((12, 12), (13, 13), (12, 15)):
        assert converted.float()(torch.rand(1, 1, *size)).shape == net(torch.rand(1, 1, *size)).shape
        assert worst(converted, size) < 1e-9


@pytest.mark.parametrize(
    "pad", [AsymmetricPad(2), OwnPad(), nn.ReflectionPad2d((0, 1, 0, 1)), nn.ConstantPad2d((0, 1, 0, 1), 1.0)]
)
def test_what_no_convolution_takes_over_stays_and_is_named(pad):
    net = convert_to_gmr(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), pad, nn.Tanh()))
    assert any("one end" in each and each.startswith("2: ") for each in net.conversion_report.limits)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(1, 4, (3, 1)), nn.Conv2d(1, 4, 3, (1, 2)), nn.Conv2d(1, 4, 3, dilation=(1, 2)), nn.MaxPool2d((1, 2))],
)
def test_axes_that_differ_are_named_unless_their_spacing_does(layer):
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), layer)
    assert "differs between axes" in convert_to_gmr(net).conversion_report.limits[0]
    assert convert_to_gmr(net, spacing=(1, 3)).conversion_report.limits == ()


class TrainsMore(nn.Module):
    """Takes each voxel by its place only in training, after statistics that training updates."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Linear(2 * 32**2, 3)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return (x, self.fc(x.flatten(1))) if self.training else x


@pytest.mark.parametrize(
    ("net", "layer"), [(SegResNetVAE((32, 32), spatial_dims=2, in_channels=1), "vae_fc1"), (TrainsMore(), "fc")]
)
def test_linear_layers_over_voxels_in_training_alone_are_named(net, layer):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    report = convert_to_gmr(net, spatial_size=(32, 32)).conversion_report
    sentence = f"{layer}: in training takes each voxel by its place: not equivariant, whatever comes before"
    assert (report.limits, report.evaluation_limits) == ((sentence,), ())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_vectors_are_named():
    class Registered(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.warp = nn.Conv2d(1, 2, 3, padding=1), Warp()

        def forward(self, x):
            return self.warp(x, self.conv(x))

    assert "warp: moves voxels by channels" in convert_to_gmr(Registered()).conversion_report.limits[0]


def test_pyramids_are_exact_where_a_level_is_no_multiple():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
            self.pyramid = FeaturePyramidNetwork(2, [4, 8], 6)

        def forward(self, x):
            fine = self.first(x)
            return self.pyramid({"fine": fine, "coarse": self.second(fine)})

    net = convert_to_gmr(Pyramid())
    assert net.conversion_report.limits == ()
    assert max(worst(net, size) for size in ((16, 16), (17, 17), (13, 18))) < 1e-9


class Timed(nn.Module):
    """A U-shaped network that takes a number and a second image, some by name only."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 2, 3, 2, 1, 1)

    def forward(self, x, time, *, others):
        return self.up(F.relu(self.down(torch.cat([x, others["label"]], 1))) * time[:, None, None, None])


class TimedByPlace(Timed):
    """The same, with all inputs in order."""

    def forward(self, x, time, others):
        return super().forward(x, time, others=others)


@pytest.mark.parametrize("kind", [Timed, TimedByPlace])
def test_further_inputs_are_given_as_examples(kind):
    given = {"x": torch.rand(2, 1, 16, 16), "time": torch.rand(2), "others": {"label": torch.rand(2, 2, 16, 16)}}
    blind = convert_to_gmr(kind())
    converted = convert_to_gmr(kind(), example_inputs=given if kind is Timed else tuple(given.values()))
    assert "give in_channels and spatial_size of its image, or example_inputs" in blind.conversion_report.limits[0]
    assert converted.conversion_report.limits == ()
    odd = given | {"x": torch.rand(2, 1, 17, 21), "others": {"label": torch.rand(2, 2, 17, 21)}}
    # without knowing the size above, it has a voxel more
    assert blind(**odd).shape[2:] == (18, 22)
    assert converted(**odd).shape[2:] == (17, 21)


@pytest.mark.parametrize("given", [torch.rand(1, 1, 8, 8), 3, "image"])
def test_wrong_examples_end_in_a_sentence(given):
    with pytest.raises(ConfigurationError, match="give what forward takes as a list, or as a dictionary by name"):
        convert_to_gmr(Timed(), example_inputs=given)


def test_values_are_computed_where_the_way_depends_on_them():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate = nn.Conv2d(1, 2, 3, padding=1), torch.ones(2)

        def forward(self, x):
            return self.conv(x) if self.gate[0] else x

    assert convert_to_gmr(Gated()).conversion_report.limits == ()


def test_the_first_convolution_called_need_not_be_the_first_registered():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Conv2d(4, 2, 3), nn.Conv2d(1, 4, 3)

        def forward(self, x):
            return self.last(self.first(x))

    assert convert_to_gmr(Backwards()).conversion_report.limits == ()


class ByFunction(nn.Module):
    """Begins with a convolution that is not a module."""

    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.rand(8, 3, 3, 3)), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.head(F.conv2d(x, self.weight, padding=1))


@pytest.mark.parametrize(
    ("net", "size", "limits"),
    [
        (GMRUNet(2, 1, 2, (4, 8)), (9, 12), ()),
        (GMRUNet(3, 2, 2, (4, 8), conv="gmr_harmonic"), (6, 9, 8), ()),
        (ByFunction(), (8, 9), ("convolves with a kernel that rotations and mirrors change",)),
    ],
)
def test_channels_of_other_layers_are_tried_too(net, size, limits):
    """Not only those of torch's convolutions, the first of which can lie inside."""
    found = convert_to_gmr(net, spatial_size=size).conversion_report.limits
    assert len(found) == len(limits)
    for sentence, expected in zip(found, limits):
        assert expected in sentence


def test_windows_of_levels_are_not_taken_for_those_of_axes():
    net = DynUNet(3, 1, 2, [3, 3, 5], [1, 2, 2], [2, 2], filters=[4, 8, 8]).eval()
    assert convert_to_gmr(net).conversion_report.limits == ()


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_the_name_of_no_module_is_one_sentence(argument):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    with pytest.raises(ConfigurationError, match=f"{argument}='foo\\*' matches no module of Sequential: give names"):
        convert_to_gmr(net, **{argument: ["0", "foo*"]})
    assert not convert_to_gmr(net, **{argument: ["0", nn.MaxPool2d]}).conversion_report.limits or argument == "exclude"


def test_a_pass_without_values_runs_on_dense():
    net = nn.Sequential(
        nn.Conv2d(1, 64, 9, padding=4), nn.Conv2d(64, 64, 9, padding=4), nn.Conv2d(64, 64, 9, padding=4)
    )
    assert convert_to_gmr(net, spatial_size=(512, 512)).conversion_report.limits == ()
    with set_backend("cpp"):
        assert convert_to_gmr(net, spatial_size=(64, 64)).conversion_report.limits == ()


class Named(GMRConv2d):
    """A user's layer that computes like this library's."""


class Shifted(GMRConv2d):
    """A user's layer that does not."""

    def forward(self, input):
        y = super().forward(input)
        return y + torch.linspace(0, 1, y.shape[-1]).to(y)


@pytest.mark.parametrize(("layer", "named"), [(Named, False), (Shifted, True)])
def test_a_layer_on_ours_is_looked_into_where_it_computes(layer, named):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), layer(4, 4, 3, padding=1), nn.Conv2d(4, 1, 1))
    limits = convert_to_gmr(net).conversion_report.limits
    assert ("1: joins voxels with numbers that depend on their positions" in limits) == bool(limits) == named


@pytest.mark.parametrize("conv", ["gmr", "gmr_harmonic"])
def test_nothing_is_computed_where_nobody_looks(conv, monkeypatch):
    """In the audit, whose pass is the last, layers of this library only compute sizes."""
    calls = []
    for name in ("conv", "harmonic_conv"):
        monkeypatch.setattr(DenseBackend, name, lambda *_, name=name: calls.append(name))
    report = convert_to_gmr(BasicUNet(2, 1, 2), conv=conv).conversion_report
    assert (report.limits, calls) == ((), [])
