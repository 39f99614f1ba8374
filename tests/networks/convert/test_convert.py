"""Any network becomes exact, reports its changes, and works like other networks."""

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
from conversion_table import CASES, make_pair, structural_error
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks import nets
from monai.networks.blocks import SubpixelUpsample, UpSample
from monai.utils import optional_import
from torch import nn

from monai_gmr.metrics import equivariance_error
from monai_gmr.networks import convert_to_gmr
from monai_gmr.networks.convert.trace import trace_sizes
from monai_gmr.networks.layers import GMRConv2d, GMRHarmonicConv2d
from monai_gmr.symmetry import point_group
from monai_gmr.utils import ConfigurationError, SymmetryWarning, tensors_in


def error(net, size, channels=1):
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    with torch.no_grad():
        return equivariance_error(net.double().eval(), x, point_group(len(size))).worst


def first(answer):
    while isinstance(answer, list | tuple):
        answer = answer[0]
    return answer


# with radial kernels: test_all_monai_nets.py
@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in ("ResNet18", "ResNet50", "SEResNet50", "DenseNet121", "HighResNet")]
)
def test_harmonic_networks_are_exact_at_every_size(name):
    case = CASES[name]
    after = make_pair(name, 2, shallow=True, conv="gmr_harmonic")[1].double()
    for size in [(32, 32), (33, 33), (34, 45)] if case.fixed is None else [(case.fixed,) * 2]:
        assert (structural_error(after, size) < 1e-8) is case.symmetric


@functools.cache
def double_pair(name):
    """A network and its conversion, made once for all sizes: neither changes in eval mode."""
    return tuple(net.double() for net in make_pair(name, 2))


def rotated(answer):
    return answer.transpose(2, 3).flip(2) if answer.dim() == 4 else answer


@pytest.mark.parametrize("conv", ["gmr", "group"])
def test_a_net_whose_windows_are_lists_of_lists_as_a_config_gives_them(conv):
    """Its attributes ``kernel_size`` and ``stride`` are those of all levels."""
    lists = {"kernel_size": [[3, 3]] * 3, "strides": [[1, 1], [2, 2], [2, 2]], "upsample_kernel_size": [[2, 2]] * 2}
    net = convert_to_gmr(nets.DynUNet(2, 1, 2, filters=[8, 16, 16], **lists), conv=conv)
    assert net.conversion_report.limits == ()
    assert equivariance_error(net.eval(), torch.randn(1, 1, 18, 21)).worst < 1e-5


@pytest.mark.parametrize("name", ["UNet", "DynUNet, residual", "VNet", "AttentionUnet", "ResNet10"])
@given(size=st.tuples(st.integers(32, 60), st.integers(32, 60)))
@settings(deadline=None, max_examples=8)
def test_what_the_original_accepts_the_converted_accepts_and_is_exact_on(name, size):
    before, after = double_pair(name)
    x = torch.randn(1, 1, *size, dtype=torch.float64)
    with torch.no_grad():
        answer = after(x)
        assert torch.allclose(after(rotated(x)), rotated(answer), atol=1e-9 * float(answer.abs().max()))
        try:
            expected = before(x)
        except RuntimeError:
            return
    # a decoder without a skip connection at the top returns a voxel too many on odd sizes, but not after conversion
    assert answer.shape in (expected.shape, (*expected.shape[:2], *size))


@pytest.mark.parametrize("name", ["UNet", "DynUNet, deep supervision", "BasicUNet, pixelshuffle", "SegResNetDS"])
def test_in_three_dimensions(name, device):
    after = make_pair(name, 3)[1].double().to(device)
    assert structural_error(after, (16, 17, 19) if "Basic" not in name else (33, 32, 35)) < 1e-8


@pytest.mark.parametrize("name", CASES)
def test_networks_train_and_are_copied_saved_and_loaded(name):
    net = make_pair(name, 2, shallow=True, conv="gmr_harmonic")[1]
    another, x = copy.deepcopy(net), torch.randn(2, 1, *[CASES[name].fixed or 32] * 2)
    net.train()
    with torch.autocast("cpu", torch.bfloat16):
        first(net(x))
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    first(net(x)).square().mean().backward()
    # batch norms over a few voxels have gradients of any size
    nn.utils.clip_grad_norm_(net.parameters(), 1)
    optimizer.step()
    another.load_state_dict(net.state_dict())
    torch.manual_seed(2)
    expected = first(net.eval()(x))
    for each in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), another):
        torch.manual_seed(2)
        assert torch.allclose(first(each.eval()(x)), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["UNet", "DynUNet, deep supervision", "ResNet10"])
def test_weights_of_another_conversion_are_loaded(name):
    one, two = (make_pair(name, 2, seed, shallow=True, conv="gmr_harmonic")[1] for seed in (0, 1))
    two.load_state_dict(one.state_dict())
    x = torch.randn(1, 1, 33, 38)
    assert torch.allclose(first(one(x)), first(two(x)), atol=1e-5)


def test_deep_supervision_rotates_in_training_at_odd_sizes():
    net = convert_to_gmr(CASES["DynUNet, deep supervision"].make(2)).double().train()
    x = torch.randn(1, 1, 33, 38, dtype=torch.float64)
    output = net(x.rot90(1, (2, 3)))
    assert torch.allclose(output, net(x).rot90(1, (3, 4)), atol=1e-9)


class _Even(nn.Module):
    """Pixel unshuffling needs even sizes."""

    def forward(self, x):
        return nn.functional.interpolate(x, [n + n % 2 for n in x.shape[2:]], mode="bilinear")


LAYERS = {
    "even window": nn.Conv2d(1, 3, 2),
    "same": nn.Conv2d(1, 3, 4, padding="same"),
    "valid": nn.Conv2d(1, 3, 3, 2, padding="valid"),
    "by area": nn.Sequential(nn.Conv2d(1, 2, 3), nn.Upsample(scale_factor=2, mode="area")),
    "dilated": nn.Conv2d(1, 3, 3, padding=2, dilation=2),
    "dilated and strided": nn.Conv2d(1, 3, 3, 2, 2, dilation=2),
    "by three": nn.Conv2d(1, 3, 5, 3, 2),
    "reflected": nn.Conv2d(1, 3, 3, 2, 1, padding_mode="reflect"),
    "oblong": nn.Conv2d(1, 3, (3, 5), (2, 2), (1, 2)),
    "no bias": nn.Conv2d(1, 3, 3, 2, 1, bias=False),
    "a window of 1": nn.Conv2d(1, 3, 1, 2),
    "transposed": nn.ConvTranspose2d(1, 3, 3, 2, 1, 1),
    "transposed by one": nn.ConvTranspose2d(1, 3, 3, 1, 1),
    "transposed, long": nn.ConvTranspose2d(1, 3, 7, 2, 3),
    "transposed, padded by more than the window": nn.ConvTranspose2d(1, 3, 4, 4, 4),
    "transposed, dilated": nn.ConvTranspose2d(1, 3, 3, 2, 2, 1, dilation=2),
    "grouped": nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 6, 2, 2, groups=2)),
    "pixel unshuffle": nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), _Even(), nn.PixelUnshuffle(2)),
    "pixel shuffle": nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.PixelShuffle(2)),
    "subpixel": SubpixelUpsample(2, 1, 3),
    "subpixel, own block": SubpixelUpsample(2, 1, conv_block=nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())),
    "nontrainable": UpSample(2, 1, 3, mode="nontrainable"),
    "one-sided": nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(1, 3, 3, 2)),
    "pools": nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(1, 2, 3), nn.AvgPool2d(2, ceil_mode=True)),
    "adaptive": nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(3), nn.AdaptiveMaxPool2d(2)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("size", [(16, 16), (17, 17), (18, 23)])
def test_every_kind_of_layer_becomes_exact_and_keeps_its_sizes(name, size):
    layer = nn.Sequential(copy.deepcopy(LAYERS[name]))
    square = name == "oblong" and size[0] != size[1]
    converted = convert_to_gmr(layer, in_channels=1, spatial_dims=2)
    x = torch.randn(1, 1, *size)
    assert converted(x).shape == layer(x).shape
    elements = [g for g in point_group(2) if name != "oblong" or (abs(np.trace(g)) in (0, 2) and g[0, 1] == 0)]
    assert len(elements) == (4 if name == "oblong" else 8) or square
    assert equivariance_error(converted.double(), x.double(), elements).worst < 1e-9


@pytest.mark.parametrize("dims", [1, 3])
def test_in_other_dimensions(dims):
    conv, up = getattr(nn, f"Conv{dims}d"), getattr(nn, f"ConvTranspose{dims}d")
    net = nn.Sequential(conv(1, 4, 3, 2, 1), nn.ReLU(), up(4, 2, 2, 2))
    assert error(convert_to_gmr(net), (8, 9, 7)[:dims]) < 1e-9


def test_a_radial_network_is_what_it_was():
    radial = nn.Sequential(GMRConv2d(1, 4, 5, padding=2), nn.ReLU(), GMRConv2d(4, 2, 3, padding=1))
    dense = nn.Sequential(radial[0].to_conv(), nn.ReLU(), radial[2].to_conv())
    converted = convert_to_gmr(dense)
    x = torch.randn(1, 1, 9, 9)
    assert torch.allclose(converted(x), dense(x), atol=1e-5)
    assert max(converted.conversion_report.changes.values()) < 1e-5


def test_a_smooth_network_starts_near_where_it_was_and_the_report_says_how_near():
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2, 1], [2, 4, 2.2], [1, 2, 1]])[None, None] / 16)
    converted, x = convert_to_gmr(net), torch.rand(1, 1, 16, 16)
    assert (converted(x) - net(x)).norm() < 0.05 * net(x).norm()
    dense, kept = net[0].weight.detach(), converted[0].dense_kernel().detach()
    assert converted.conversion_report.changes["0"] == pytest.approx(
        float((kept - dense).norm() / dense.norm()), rel=1e-4
    )


TRANSPOSED = [
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": (3, 4), "stride": (3, 2), "padding": (0, 1), "output_padding": (1, 0)},
    {"kernel_size": 3, "stride": 2, "padding": 2, "output_padding": 1, "dilation": 2},
    {"kernel_size": 5, "stride": 3, "padding": 1, "output_padding": 2},
    {"kernel_size": 3, "padding": 1},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arguments", TRANSPOSED, ids=str)
def test_the_report_says_how_far_a_transposed_kernel_is_from_the_old_one(arguments):
    """From the outputs for one voxel; with output_padding they were half a voxel off the centre."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ConvTranspose2d(1, 1, **arguments, bias=False)).double()
    converted, x = convert_to_gmr(net, spatial_size=(9, 9)), torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    x[..., 4, 4] = 1
    change = float((converted[1](x) - net[1](x)).norm() / net[1].weight.norm())
    assert converted.conversion_report.changes["1"] == pytest.approx(change, rel=1e-9)


def test_harmonic_channels_of_order_0_are_projected_like_radial_ones():
    net = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU())
    radial, harmonic = convert_to_gmr(net), convert_to_gmr(net, conv="gmr_harmonic")
    assert torch.allclose(harmonic[0].weight[:4], radial[0].weight[:4], atol=1e-5)
    assert harmonic.conversion_report.changes["0"] < 1


def test_the_given_network_stays_unless_inplace():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    before = copy.deepcopy(net.state_dict())
    converted = convert_to_gmr(net)
    assert type(net[0]) is nn.Conv2d
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert converted is not net
    assert convert_to_gmr(net, inplace=True) is net
    assert isinstance(net[0], GMRConv2d)


def test_what_code_reads_off_a_convolution_is_there():
    net = convert_to_gmr(nn.Sequential(nn.Conv2d(2, 6, 3, 2, 1, groups=2), nn.ConvTranspose2d(6, 2, 2, 2)))
    assert isinstance(net[0], nn.Conv2d)
    assert isinstance(net[1], nn.ConvTranspose2d)
    assert (net[0].kernel_size, net[0].stride, net[0].groups, net[0].out_channels) == ((3, 3), (2, 2), 2, 6)
    assert net[0].weight.shape[:2] == (6, 1)
    nn.init.kaiming_normal_(net[0].weight)


def test_training_mode_frozen_weights_device_and_type_are_kept():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).double().eval()
    net[0].weight.requires_grad_(False)
    converted = convert_to_gmr(net)
    assert converted[0].weight.dtype == torch.float64
    assert not converted[0].weight.requires_grad
    assert not converted[0].training


@pytest.mark.parametrize("weights", ["init", "project", "anneal"])
@pytest.mark.parametrize("conv", ["gmr", "gmr_harmonic", ("gmr_harmonic", {"keeps": "1"}), "group"])
def test_all_parameters_of_a_frozen_layer_are_frozen(conv, weights):
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 1, 1))
    net[0].requires_grad_(False)
    net[2].weight.requires_grad_(False)
    converted = convert_to_gmr(net, conv=conv, weights=weights)
    assert not any(parameter.requires_grad for parameter in converted[0].parameters())
    trained = [name for name, parameter in converted[2].named_parameters() if parameter.requires_grad]
    assert trained
    assert {name.split(".")[-1] for name in trained} == {"bias"}
    assert all(parameter.requires_grad for parameter in converted[3].parameters())


def test_shared_modules_stay_shared():
    shared = nn.Conv2d(2, 2, 3, padding=1)
    net = convert_to_gmr(nn.Sequential(nn.Conv2d(1, 2, 3), shared, nn.ReLU(), shared))
    assert net[1] is net[3]
    assert "also 3" in next(row for row in net.conversion_report if row.path == "1").reason


def test_names_classes_and_functions_choose():
    net = nets.UNet(2, 1, 2, (4, 8), (2,))
    every = convert_to_gmr(net).conversion_report
    some = convert_to_gmr(net, exclude="model.0*").conversion_report
    assert {row.path for row in every.converted} - {row.path for row in some.converted} == {"model.0.conv"}
    assert next(row for row in some if row.path == "model.0.conv").reason == "excluded"
    ups = convert_to_gmr(net, include=nn.ConvTranspose2d).conversion_report
    assert [row.before for row in ups.converted] == ["ConvTranspose2d k3 s2"]
    wide = convert_to_gmr(net, include=lambda path, module: getattr(module, "out_channels", 0) == 8).conversion_report
    assert len(wide.converted) == 1


@pytest.mark.parametrize(
    ("kernel_sizes", "expected"), [(5, (5, 5)), ({3: 7}, (7, 7)), ({5: 7}, (3, 3)), (1, (1, 1)), (4, (4, 4))]
)
def test_windows_can_be_chosen_and_sizes_stay(kernel_sizes, expected):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU())
    converted, x = convert_to_gmr(net, kernel_sizes), torch.randn(1, 1, 13, 14)
    assert converted[0].kernel_size == expected
    assert converted(x).shape == net(x).shape
    assert error(converted, (13, 14)) < 1e-9


def test_lazily_built_layers_are_built():
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.LazyConv2d(2, 3))
    with pytest.raises(ConfigurationError, match="give in_channels"):
        convert_to_gmr(net)
    converted = convert_to_gmr(net, in_channels=3)
    assert [type(converted[i]).__name__ for i in (0, 2)] == ["SwappedGMRConv2d"] * 2
    assert error(converted, (9, 8), 3) < 1e-9


def test_no_lazily_built_first_layer_gets_the_channels_of_another():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.stem = nn.Conv2d(8, 2, 3, padding=1), nn.LazyConv2d(8, 3, padding=1)

        def forward(self, x):
            return self.head(self.stem(x).relu())

    with pytest.raises(ConfigurationError, match="begins with a lazily built layer: give in_channels"):
        convert_to_gmr(Net())
    assert error(convert_to_gmr(Net(), in_channels=3), (9, 8), 3) < 1e-9


# window, stride, padding, output_padding, groups, bias, dilation
@pytest.mark.parametrize("arguments", [(1, 1, 0, 1, 1, True, 2), (3, 1, 1, 2, 1, True, 3)])
def test_output_padding_without_a_stride_is_named(arguments):
    """The voxels lie at one end of an axis; half of them are not a multiple of the dilation."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, *arguments))
    with pytest.warns(SymmetryWarning):
        converted = convert_to_gmr(net)
    assert "has no symmetric form" in str(converted.conversion_report)
    assert converted.conversion_report.limits


def test_torchvisions_networks():
    models, there = optional_import("torchvision.models")
    if not there:
        pytest.skip("torchvision cannot be imported")
    for make in (models.resnet18, models.mobilenet_v3_small):
        net = convert_to_gmr(make(weights=None, num_classes=3)).double().eval()
        x = torch.randn(2, 3, 50, 61, dtype=torch.float64)
        assert (net(x.rot90(1, (2, 3))) - net(x)).norm() < 1e-8 * net(x).norm()


class _OwnPool(nn.MaxPool2d):
    def forward(self, x):
        return super().forward(x[..., 1:])


class _OwnConvolution(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * torch.arange(x.shape[-1] - 2)


def test_what_stays_has_a_reason():
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3))
    dilated, padded = nn.MaxPool2d(2, 2, dilation=2), nn.ReflectionPad2d((1, 0, 0, 0))
    others = [_OwnPool(2), nn.FractionalMaxPool2d(3, 4), nn.Upsample(size=9)]
    net = nn.Sequential(_OwnConvolution(1, 2, 3), normed, dilated, padded, *others)
    report = convert_to_gmr(net).conversion_report
    assert not report.converted
    reasons = [row.reason for row in report.kept]
    for part in (
        "more than convolve",
        "more than pool",
        "weight norm",
        "dilated",
        "one end more",
        "no symmetric form",
        "nearest",
    ):
        assert any(part in reason for reason in reasons), part


def test_transformers_are_told_what_keeps_them_from_it():
    net = convert_to_gmr(CASES["UNETR"].make(2))
    text = str(net.conversion_report)
    assert "a patch embedding" in text
    assert "position_embeddings stays" in text
    swin = str(convert_to_gmr(CASES["SwinUNETR"].make(2)).conversion_report)
    assert "relative_position_bias_table stays" in swin
    flat = str(convert_to_gmr(CASES["VarAutoEncoder"].make(2)).conversion_report)
    assert "takes each voxel by its place" in flat


def test_heads_shortcuts_and_depthwise_layers_stay_linear():
    report = convert_to_gmr(CASES["UNet"].make(2), conv="gmr_harmonic").conversion_report
    reasons = {row.path: row.reason for row in report.converted}
    assert "head" in reasons["model.2.1.conv.unit0.conv"]
    assert "shortcut" in reasons["model.0.residual"]
    assert "Harmonic" in next(row.after for row in report if row.path == "model.0.conv.unit1.conv")
    deep = convert_to_gmr(CASES["MedNeXt"].make(2), conv="gmr_harmonic").conversion_report
    assert "one channel a group" in next(row.reason for row in deep if row.path == "enc_stages.0.0.conv1")


def test_arguments_of_the_layers_are_passed_on():
    net = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.Conv2d(8, 1, 3))
    converted = convert_to_gmr(net, conv=("gmr_harmonic", {"orders": (0, 1)}), rings="hard", num_rings=2)
    assert isinstance(converted[0], GMRHarmonicConv2d)
    assert (converted[0].orders, converted[0].rings, converted[0].num_rings) == ((0, 1), "hard", 2)
    assert isinstance(converted[2], GMRConv2d)


def test_fresh_weights_have_the_variance_of_a_fresh_layer():
    net = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1))
    fresh, x = convert_to_gmr(net, weights="init"), torch.randn(1, 16, 32, 32)
    assert float(fresh(x).std()) == pytest.approx(float(net(x).std()), rel=0.1)
    assert fresh.conversion_report.changes == {}


def test_plain_leaves_the_network_as_it_is():
    net = nn.Sequential(nn.Conv2d(1, 2, 3))
    assert type(convert_to_gmr(net, conv="plain")[0]) is nn.Conv2d


def test_a_network_that_no_size_fits_is_converted_and_the_report_says_so():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x, time):
            return self.conv(x) * time

    converted = convert_to_gmr(Odd())
    assert "no size could be sent through it" in str(converted.conversion_report)
    assert converted(torch.rand(1, 1, 5, 5), 2.0).shape == (1, 2, 3, 3)


def test_the_trace_computes_nothing_and_leaves_the_network_as_it_is():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = copy.deepcopy(net.state_dict())
    trace = trace_sizes(net, 2, 1)
    assert trace.size == (128, 128)
    assert net.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert trace_sizes(net, 2, 1, (2, 2)).failure


def test_channels_of_the_convolution_that_is_called_first_are_found_after_one_size():
    class Net(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.head, self.stem = nn.Conv2d(4, 2, 3), nn.Conv2d(1, 4, 3)

        def forward(self, x):
            Net.calls += 1
            return self.head(self.stem(x))

    trace = trace_sizes(Net(), 2, [4, 1])
    assert (trace.in_channels, trace.size, Net.calls) == (1, (128, 128), 2)
    assert "takes 1 channels, not 4" in trace_sizes(Net(), 2, 4).reason


class _Keeping(nn.Module):
    """Stores tensors in attributes, like networks with deep supervision or attention maps."""

    def __init__(self):
        super().__init__()
        self.conv, self.maps, self.by_name = nn.Conv2d(1, 2, 3, padding=1), [torch.ones(1)], {"first": torch.ones(1)}

    def forward(self, x):
        self.latest = y = self.conv(x)
        self.maps[0] = self.by_name["first"] = self.by_name["all"] = y
        return y


@pytest.mark.parametrize("make", [_Keeping, CASES["DynUNet, residual"].make, CASES["DynUNet, deep supervision"].make])
def test_conversion_leaves_no_tensor_of_its_passes_on_the_network(make):
    net = make(2) if make is not _Keeping else make()
    converted = convert_to_gmr(net)
    attributes = [value for module in converted.modules() for value in vars(module).values()]
    assert {tensor.device.type for tensor in tensors_in(attributes)} == {"cpu"}
    assert not hasattr(converted, "latest")
    assert all(type(tensor) in (torch.Tensor, nn.Parameter) for tensor in tensors_in(attributes))
    x = torch.rand(1, 1, 36, 33)
    torch.testing.assert_close(copy.deepcopy(converted).eval()(x), converted.eval()(x))
