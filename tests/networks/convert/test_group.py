"""Group convolutions make networks exact under a group, at every size, trained or not; reports name what stays inexact."""

import copy
import functools
import pickle
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conversion_table import group_error
from monai.networks.nets import (
    BasicUNet,
    DynUNet,
    SegResNet,
    UNet,
    resnet18,
)
from torch import nn

from monai_gmr.metrics import check_equivariance, equivariance_error
from monai_gmr.networks import convert_to_gmr
from monai_gmr.networks.layers import PointGroupConv2d, PointGroupConv3d, PointGroupNorm
from monai_gmr.symmetry import PointGroup, transform_grid
from monai_gmr.utils import ConfigurationError, SymmetryWarning

NETS = {
    "UNet": lambda d: UNet(d, 1, 2, channels=(16, 32, 48), strides=(2, 2), num_res_units=0),
    "UNet, residual": lambda d: UNet(d, 1, 2, channels=(16, 32, 48), strides=(2, 2), num_res_units=1, norm="batch"),
    "BasicUNet": lambda d: BasicUNet(d, 1, 2, features=(16, 32, 32, 64, 64, 16), dropout=0.2),
    "DynUNet": lambda d: DynUNet(
        d, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(16, 32, 32), res_block=True, deep_supervision=True
    ),
    "SegResNet": lambda d: SegResNet(
        d, init_filters=16, in_channels=1, out_channels=2, blocks_down=(1, 1, 1), blocks_up=(1, 1)
    ),
    "ResNet": lambda d: resnet18(spatial_dims=d, n_input_channels=1, num_classes=3, widen_factor=0.25),
}
SIZES = {2: [(32, 32), (33, 33), (34, 40)], 3: [(16, 16, 16), (17, 12, 18)]}
# each net in the largest groups, and one net in all groups
GROUPS = [(2, "4mm"), (3, "mmm")]
OTHER_GROUPS = [(2, "4"), (2, "2mm"), (2, "m"), (3, "4/mmm")]
CASES = [(name, *group) for name in NETS for group in GROUPS] + [("DynUNet", *group) for group in OTHER_GROUPS]


def train(net, size):
    """Two steps, and statistics that differ from those of a fresh norm."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        y = net(torch.randn(2, 1, *size))
        optimizer.zero_grad()
        (y[0] if isinstance(y, list | tuple) else y).square().mean().backward()
        optimizer.step()
    return net


@functools.cache
def converted(name, dims, group, conv_filter="full"):
    torch.manual_seed(0)
    return convert_to_gmr(NETS[name](dims), conv=("group", {"group": group, "filter": conv_filter}))


@pytest.mark.parametrize(("name", "dims", "group"), CASES)
def test_exact_at_every_size_before_and_after_training(name, dims, group):
    with warnings.catch_warnings():
        warnings.simplefilter("error", SymmetryWarning)
        net = converted(name, dims, group)
    assert net.conversion_report.limits == ()
    assert net.symmetry_group == PointGroup.from_name(group, dims)
    # which halves a size four times, and normalises more than one voxel
    sizes = [(33, 16, 18)] if (name, dims) == ("BasicUNet", 3) else SIZES[dims]
    assert group_error(net.eval(), sizes) < 1e-10
    if group in ("4mm", "mmm"):
        trained = train(copy.deepcopy(net), (32, 32, 16)[:dims])
        assert group_error(trained.eval(), sizes[-1:], torch.float32) < 1e-5


@pytest.mark.parametrize("conv_filter", ["g", "gc"])
@pytest.mark.parametrize("name", ["UNet, residual", "ResNet"])
def test_separable_filters(name, conv_filter):
    net = converted(name, 2, "4mm", conv_filter)
    assert group_error(net.eval(), SIZES[2]) < 1e-10
    full, separable = (sum(p.numel() for p in each.parameters()) for each in (converted(name, 2, "4mm"), net))
    assert separable < full


@pytest.mark.parametrize("conv_filter", ["full", "g", "gc", "depthwise"])
@pytest.mark.parametrize(("dims", "group", "kind"), [(2, "4mm", PointGroupConv2d), (3, "mmm", PointGroupConv3d)])
def test_projection_keeps_what_is_a_group_convolution_already(dims, group, kind, conv_filter):
    torch.manual_seed(0)
    lift = kind(1, 16, 3, padding=1, group=group, in_group="1")
    layer = kind(16, 16, 3, padding=1, group=group, filter=conv_filter)
    head = nn.Conv2d(16, 2, 1) if dims == 2 else nn.Conv3d(16, 2, 1)
    with torch.no_grad():
        # the same for all channels of a field
        head.weight.copy_(
            head.weight.unflatten(1, (-1, 8)).mean(2, keepdim=True).expand(-1, -1, 8, *[-1] * dims).flatten(1, 2)
        )
    plain = nn.Sequential(lift.to_conv(), nn.ReLU(), layer.to_conv(), nn.ReLU(), head).double()
    arguments = {"group": group, "filter": "full" if conv_filter == "depthwise" else conv_filter}
    net = convert_to_gmr(plain, conv=("group", arguments), weights="project")
    assert max(net.conversion_report.changes.values()) < 1e-6
    x = torch.randn(1, 1, *[7] * dims, dtype=torch.float64)
    assert torch.allclose(net(x), plain(x), atol=1e-6)


def test_projection_is_the_nearest():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 1)).double()
    net = convert_to_gmr(plain, conv="group", group="4mm", weights="project")
    layer, kernel = net[2], plain[2].weight.detach()
    distance = (layer.dense_kernel() - kernel).norm()
    assert float(distance / kernel.norm()) == pytest.approx(net.conversion_report.changes["2"])
    for _ in range(10):
        moved = copy.deepcopy(layer)
        with torch.no_grad():
            moved.weight.add_(torch.randn_like(moved.weight), alpha=0.01)
        assert (moved.dense_kernel() - kernel).norm() > distance


def test_statistics_of_a_trained_norm_become_those_of_fields():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 1))
    values = torch.randn(8, 100)
    net[1].running_mean.copy_(values.mean(1))
    net[1].running_var.copy_(values.var(1, correction=0))
    norm = convert_to_gmr(net, conv="group", group="4mm", weights="project")[1]
    assert isinstance(norm, PointGroupNorm)
    assert float(norm.norm.running_mean) == pytest.approx(float(values.mean()), abs=1e-6)
    assert float(norm.norm.running_var) == pytest.approx(float(values.var(correction=0)), rel=1e-5)


def test_an_uneven_spacing_needs_a_group_that_keeps_it():
    net = NETS["UNet"](3)
    with pytest.raises(ConfigurationError, match=r"spacing=.*is not symmetric under.*use"):
        convert_to_gmr(net, conv="group", group="m-3m", spacing=(1, 1, 3))
    assert convert_to_gmr(net, conv="group", group=("4/mmm", 0), spacing=(3, 1, 1)).symmetry_group.order == 16


class Broken(nn.Module):
    """A convolution, followed by something."""

    def __init__(self, inner):
        super().__init__()
        self.conv, self.inner = nn.Conv2d(1, 8, 3, padding=1), inner
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, x):
        return self.head(torch.relu(self.inner(torch.relu(self.conv(x)))))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1))

    def forward(self, x):
        return x * self.scale


class Halves(nn.Module):
    def forward(self, x):
        return torch.cat([x[:, 4:], x[:, :4]], 1)


@pytest.mark.parametrize(
    ("inner", "sentence"),
    [
        (Scaled(), "weights for single channels"),
        (Halves(), "takes channels of a field by their place"),
        (nn.LocalResponseNorm(3), "statistics or weights for single channels"),
        (nn.Conv2d(8, 8, (3, 1), padding=(1, 0)), "differs between axes"),
        (nn.Conv2d(8, 8, 2, padding="same"), "pads one end of an axis"),
        (nn.Conv2d(8, 8, 3, padding=1, groups=2), "groups=2 divide fields"),
    ],
)
def test_what_it_cannot_do_is_named(inner, sentence):
    with pytest.warns(SymmetryWarning, match="the converted Broken is not exactly equivariant: "):
        net = convert_to_gmr(Broken(inner), conv="group", group="4mm")
    assert any(sentence in limit for limit in net.conversion_report.limits)
    assert group_error(net.eval(), [(12, 12)]) > 1e-8


@pytest.mark.parametrize(
    "tail",
    [
        (nn.Flatten(), nn.Linear(8 * 144, 4)),
        (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)),
        (nn.Conv2d(8, 8, 3, (2, 1), 1), nn.ReLU(), nn.Conv2d(8, 2, 1)),
        (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 2)),
        (nn.Flatten(2), nn.Conv1d(8, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 2)),
        (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 2, 1)),
    ],
)
def test_limits_of_layers_are_named_and_sizes_stay(tail):
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), *tail)
    after = convert_to_gmr(net, conv="group", group="4mm", spatial_size=(12, 12))
    assert after.conversion_report.limits
    x = torch.randn(2, 1, 12, 12)
    assert after(x).shape == net(x).shape


@pytest.mark.parametrize(
    "left",
    [
        {"include": nn.Conv2d},
        {"exclude": nn.Linear},
        {"exclude": nn.BatchNorm2d},
        {"exclude": nn.PReLU},
        {"exclude": "4"},
    ],
)
def test_what_is_left_out_on_fields_is_a_limit(left):
    layers = (nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8), nn.Dropout2d(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    limits = convert_to_gmr(net, conv="group", group="4mm", **left).conversion_report.limits
    assert any("on fields, whose channels the group exchanges" in limit for limit in limits)


HEADS = {
    "none": nn.Identity(),
    "relu": nn.ReLU(),
    "clamped norm": nn.Sequential(nn.BatchNorm2d(8), nn.Hardtanh()),
    "pooled": nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
}


@pytest.mark.parametrize("head", list(HEADS))
def test_what_ends_the_network_are_scalars_whatever_their_number(head):
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), HEADS[head])
    net = convert_to_gmr(net, conv="group", group="4mm")
    assert net.conversion_report.limits == ()
    assert group_error(train(net, (32, 32)).eval(), [(12, 15)], torch.float32) < 1e-5


def test_frozen_parameters_modes_and_hooks_are_kept():
    layers = (nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8), nn.Dropout2d(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(*layers, nn.Linear(8, 3)).requires_grad_(False)
    net[1].eval()
    called = []
    for index in (0, 1, 2, 3, 6):
        net[index].register_forward_hook(lambda module, args, output, index=index: called.append(index))
    after = convert_to_gmr(net, conv="group", group="4mm")
    called.clear()
    after(torch.randn(2, 1, 12, 12))
    assert called == [0, 1, 2, 3, 6]
    assert not any(parameter.requires_grad for parameter in after.parameters())
    assert [module.training for module in after] == [True, False, *[True] * 5]
    assert isinstance(after[6], nn.Linear)


def test_a_hook_of_a_strided_convolution_sees_its_steps():
    net = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 1, 2, 2))
    sizes = []
    for index in (0, 2):
        net[index].register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[2:])))
    after = convert_to_gmr(net, conv="group", group="4mm")
    sizes.clear()
    after(torch.randn(1, 1, 12, 16))
    assert sizes == [(6, 8), (12, 16)]


def test_a_norm_with_a_forward_of_its_own_is_named():
    class Clamped(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).clamp(0, 1)

    net = nn.Sequential(nn.Conv2d(1, 8, 3), Clamped(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    assert "forward of its own" in str(convert_to_gmr(net, conv="group", group="4mm").conversion_report.limits)


def test_converting_again_changes_nothing():
    net = converted("UNet, residual", 2, "4mm").eval()
    again = convert_to_gmr(net, conv="group", group="4mm")
    assert again.conversion_report.limits == ()
    x = torch.randn(1, 1, 20, 24)
    assert torch.equal(again(x), net(x))


def test_padding_of_zeros_alone_where_it_ends_on_scalars():
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(8, 2, 3, padding_mode="reflect")
    )
    limits = convert_to_gmr(net, conv="group", group="4mm").conversion_report.limits
    assert any("padding_mode='reflect'" in limit for limit in limits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conv": "group", "group": "m-3m"}, "m-3m"),
        ({"conv": "group", "group": "nothing"}, "nothing"),
        ({"conv": ("group", {"group": "4mm", "filter": "depthwise"})}, "filter"),
        ({"conv": ("group", {"group": "4mm", "orders": 3})}, "orders"),
        ({"conv": "gmr", "group": "4mm"}, "is for conv='group'"),
        ({"conv": "group", "group": "4mm", "rings": "hard"}, "radial kernels"),
        ({"conv": "group", "group": "4mm", "num_rings": 2}, "radial kernels"),
        ({"conv": "group", "group": "4mm", "spatial_size": (3, 3)}, "give in_channels and spatial_size"),
        ({"conv": "group", "group": "4mm", "spatial_size": 64}, "one number per axis"),
        (
            {"conv": "group", "group": "4mm", "include": 3},
            "include=3 is impossible: give names, classes, or functions of name and module",
        ),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(ConfigurationError, match=message) as found:
        convert_to_gmr(UNet(2, 1, 2, channels=(8, 16, 32, 64, 128), strides=(2, 2, 2, 2)), **arguments)
    assert "\n" not in str(found.value)


def test_a_net_without_a_place_for_fields_says_so():
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1))
    with pytest.raises(ConfigurationError, match="only convolutions whose output is the network's"):
        convert_to_gmr(net, conv="group", group="4")


def test_two_groups_are_one_too_many():
    net = UNet(2, 1, 2, channels=(8, 16), strides=(2,))
    with pytest.raises(ConfigurationError, match="group='2' and the '4' of conv='group' are two groups: leave one out"):
        convert_to_gmr(net, conv=("group", {"group": "4"}), group="2")
    assert convert_to_gmr(net, conv=("group", {"group": "c4"}), group="4").symmetry_group.order == 4


@pytest.mark.parametrize(
    ("group", "window", "exact"),
    [("2mm", (3, 5), True), ("m", (3, 5), True), ("2", (5, 1), True), ("4", (3, 5), False), ("4mm", (3, 5), False)],
)
def test_windows_may_differ_between_axes_that_the_group_does_not_exchange(group, window, exact):
    padding = [(k - 1) // 2 for k in window]
    net = nn.Sequential(nn.Conv2d(1, 8, window, padding=padding), nn.ReLU(), nn.Conv2d(8, 2, 1))
    net = convert_to_gmr(net, conv="group", group=group)
    assert (net.conversion_report.limits == ()) == exact
    if not exact:
        kept = PointGroup.from_name("2mm" if group == "4mm" else "2", 2)
        assert f"use its subgroup {kept!r}" in net.conversion_report.limits[0]
    assert (group_error(net.eval(), [(12, 15)]) < 1e-9) == exact


@pytest.mark.parametrize(("group", "exact"), [("2mm", True), ("all", False)])
def test_steps_that_differ_between_axes_ask_for_a_smaller_group(group, exact):
    windows, steps = [[1, 3], 3, 3], [1, [1, 2], 2]
    net = DynUNet(2, 1, 2, windows, steps, [[1, 2], 2], filters=[8, 16, 16]).eval()
    with nullcontext() if exact else pytest.warns(SymmetryWarning, match=r"use its subgroup PointGroup\('2mm'\)"):
        net = convert_to_gmr(net, conv="group", group=group)
    assert (net.conversion_report.limits == ()) == exact
    if exact:
        # sizes for which plain decoders miss the skip connections
        assert net(torch.rand(1, 1, 33, 37)).shape == (1, 2, 33, 37)
        assert group_error(net, [(33, 37)]) < 1e-5


def test_channels_that_no_field_fits():
    with pytest.raises(ConfigurationError, match=r"none a multiple of the 48 of .* give a smaller group"):
        convert_to_gmr(NETS["SegResNet"](3), conv="group")
    net = UNet(3, 1, 2, channels=(16, 48), strides=(2,))
    report = convert_to_gmr(net, conv="group").conversion_report
    assert any(row.reason == "radial: from scalars to scalars" for row in report)
    assert any("lifts scalars to fields" in row.reason for row in report)


def test_by_default_it_keeps_all_that_the_spacing_does():
    net = UNet(3, 1, 2, channels=(16, 16), strides=(2,))
    assert convert_to_gmr(net, conv="group", spacing=(3, 1, 1)).symmetry_group.order == 16


def test_works_as_networks_do():
    net = converted("UNet", 2, "4mm").eval()
    x = torch.randn(1, 1, 33, 40)
    y = net(x)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), y)
    assert torch.allclose(torch.jit.trace(net, torch.randn(1, 1, 32, 32))(x), y, atol=1e-5)
    assert not any("table" in name for name in net.state_dict())
    g = np.array([[0, -1], [1, 0]])
    assert torch.allclose(net(transform_grid(x, g)), transform_grid(y, g), atol=1e-5)
    report = check_equivariance(net, [(33, 40)], in_channels=1, spatial_dims=2)
    assert report.ok


def test_the_check_asks_the_elements_of_the_group_alone():
    net = converted("UNet", 2, "4").eval()
    assert check_equivariance(net, [(33, 40)], in_channels=1, spatial_dims=2).ok
    assert equivariance_error(net, torch.randn(1, 1, 20, 20), PointGroup.from_name("4mm", 2).elements).worst > 1e-3
