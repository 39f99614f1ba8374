"""Tests that the check finds the modules that break the symmetry, at the right sizes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from monai.networks.nets import BasicUNet, DynUNet, UNet
from scipy import ndimage
from torch import nn
from torch.nn import functional

from monai_gmr.metrics import check_equivariance, equivariance_error
from monai_gmr.networks.layers import PointGroupConv2d, PointGroupNorm, PointGroupPool
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.symmetry import PointGroup, named_group, point_group, transform_grid
from monai_gmr.utils import ConfigurationError


def point(channels_in: int = 1, channels_out: int = 2) -> nn.Module:
    return nn.Conv2d(channels_in, channels_out, 1)


def test_exact_network():
    report = check_equivariance(nn.Sequential(point(), nn.InstanceNorm2d(2), nn.ReLU(inplace=True)), [(16,), (15, 18)])
    assert report.ok
    assert report.worst < 1e-6
    assert report.broken == ()
    assert "yes" in str(report)
    assert "NO" not in str(report)


@pytest.mark.parametrize("windows", [(3, 3, 3), [3, 3, 3]])
def test_axes_are_those_of_the_first_layer_not_the_levels_of_the_net(windows):
    net = DynUNet(2, 1, 2, windows, (1, 2, 2), (2, 2), filters=(4, 8, 8)).eval()
    (found,) = check_equivariance(net, 16, per_module=False).sizes
    assert (found.size, found.failure) == ((16, 16), "")


def test_a_function_has_no_modules_to_name():
    with pytest.raises(
        ConfigurationError, match=r"net=function is impossible: give a torch.nn.Module, or measure it by"
    ):
        check_equivariance(lambda x: x, 20, 1, 2)


def test_plain_convolution_is_named_by_path_and_class():
    torch.manual_seed(0)
    report = check_equivariance(nn.Sequential(point(), nn.Sequential(nn.Conv2d(2, 2, 3)), nn.ReLU()), 16)
    assert not report.ok
    assert [(m.path, m.class_name, m.size) for m in report.broken] == [("1.0", "Conv2d", (16, 16))]
    assert report.broken[0].remark == "its 3x3 kernel is not radial"
    assert "1.0" in str(report)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("make", "broken_size", "exact_size", "remark"),
    [
        (lambda d: _ones((nn.Conv2d, nn.Conv3d)[d - 2](2, 2, 3, stride=2, padding=1)), 8, 9, "stride 2"),
        (lambda d: (nn.MaxPool2d, nn.MaxPool3d)[d - 2](2), 9, 8, "stride 2"),
        (lambda d: (nn.AvgPool2d, nn.AvgPool3d)[d - 2](2), 9, 8, "stride 2"),
        (lambda d: nn.Upsample(scale_factor=1.5), 9, 8, "fractional factor"),
        (lambda d: _ones((nn.ConvTranspose2d, nn.ConvTranspose3d)[d - 2](2, 2, 3, 2, 1, 1)), 8, None, "output_padding"),
        (lambda d: nn.Dropout(0.5), 8, None, "net.eval"),
        (lambda d: (nn.ZeroPad2d((1, 0, 0, 0)), nn.ConstantPad3d((1, 0, 0, 0, 0, 0), 0.0))[d - 2], 8, None, "pads one"),
    ],
)
def test_known_breakers_are_named_at_the_right_module(dims, make, broken_size, exact_size, remark):
    torch.manual_seed(0)
    head = (nn.Conv2d, nn.Conv3d)[dims - 2](1, 2, 1)
    net = nn.Sequential(head, nn.Sequential(nn.ReLU(), make(dims)))
    broken = check_equivariance(net, broken_size)
    assert [m.path for m in broken.broken] == ["1.1"]
    assert remark in broken.broken[0].remark
    if exact_size:
        # Fractional nearest upsampling is asymmetric at every size, though less visibly.
        exact = check_equivariance(net, exact_size)
        assert exact.ok or remark == "fractional factor"


def _ones(conv: nn.Module) -> nn.Module:
    """Sets a constant kernel, which is symmetric, so only the stride can break the symmetry."""
    nn.init.constant_(conv.weight, 0.1)
    return conv


def test_broken_axis_and_size_are_named():
    report = check_equivariance(nn.Sequential(point(), nn.MaxPool2d(2)), (16, 17))
    assert "size 17 (axis 1)" in report.broken[0].remark


def test_pixel_shuffle_and_flatten():
    shuffle = check_equivariance(nn.Sequential(point(1, 4), nn.PixelShuffle(2)), 8)
    flatten = check_equivariance(nn.Sequential(point(), nn.Flatten()), 8)
    assert [m.class_name for m in shuffle.broken + flatten.broken] == ["PixelShuffle", "Flatten"]


class Shifts(nn.Module):
    """A module with exact children and a crop in forward that is not exact."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = point()

    def forward(self, x):
        return functional.pad(self.conv(x), (1, 0, 0, 0))[..., :-1]


def test_functional_code_in_forward_is_distinguished_from_children():
    report = check_equivariance(nn.Sequential(nn.ReLU(), Shifts(), nn.ReLU()), 8)
    assert [(m.path, m.remark) for m in report.broken] == [("1", "functional code in forward")]
    alone = check_equivariance(Shifts(), 8)
    assert [(m.path, m.remark) for m in alone.broken] == [("(network)", "functional code in forward")]


def test_module_called_twice_is_judged_by_its_worst_call():
    pool = nn.MaxPool2d(2)
    net = nn.Sequential(point(), pool, nn.ReLU(), pool)
    report = check_equivariance(net, 18)
    assert len(report.broken) == 1
    assert (report.broken[0].path, report.broken[0].size, report.broken[0].calls) == ("1", (9, 9), 2)
    assert "also named 3" in report.broken[0].remark


def test_several_inputs_are_transformed_together():
    class Joins(nn.Module):
        def forward(self, x, *, other):
            return torch.cat([x, other], 1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.join = point(), Joins()

        def forward(self, x):
            return self.join(x, other=self.conv(x))

    report = check_equivariance(Net(), (9, 10))
    assert report.ok
    assert [m.path for m in report.sizes[0].modules] == ["(network)", "conv", "join"]


def test_size_given_to_a_module_is_permuted_with_its_input():
    class Grows(nn.Module):
        def forward(self, x, size):
            return functional.interpolate(x, size, mode="bilinear")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.grow = nn.AvgPool2d(2), Grows()

        def forward(self, x):
            return self.grow(self.pool(x), list(x.shape[2:]))

    report = check_equivariance(Net(), (8, 12), in_channels=1)
    assert report.ok
    assert not report.broken


def test_modules_of_channels_last_tensors_are_not_checked():
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear, self.conv = nn.LayerNorm(4), nn.Linear(4, 4), point(4, 4)

        def forward(self, x):
            return self.conv(self.linear(self.norm(x.movedim(1, -1))).movedim(-1, 1))

    report = check_equivariance(Mixer(), 4)
    assert report.ok
    assert [m.path for m in report.sizes[0].modules] == ["(network)", "conv"]


def test_child_that_cannot_take_the_transformed_input_is_named():
    class FixedSize(nn.Module):
        def forward(self, x):
            if tuple(x.shape[2:]) != (8, 9):
                raise ValueError("only 8x9")
            return x

    class Swaps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fixed = FixedSize()

        def forward(self, x):
            wide = x.shape[2] > x.shape[3]
            return self.fixed(x.transpose(2, 3)) if wide else 2 * self.fixed(x)

    report = check_equivariance(Swaps(), (8, 9), in_channels=1)
    assert "FixedSize" in report.broken[0].remark


def test_size_that_cannot_be_taken_is_one_sentence():
    net = UNet(2, 1, 1, (2, 2, 2), (2, 2))
    report = check_equivariance(net, [(8,), (9,)], per_module=False)
    assert report.worst == float("inf")
    assert not report.ok
    failure = report.sizes[1].failure
    assert failure.startswith("Size 9x9: UNet cannot take it in ")
    assert failure.endswith(".")
    assert "\n" not in failure
    assert failure in str(report)


def test_size_that_cannot_be_taken_when_rotated_is_one_sentence():
    class Fixed(nn.Module):
        def forward(self, x):
            return x + torch.zeros(8, 9)

    report = check_equivariance(Fixed(), (8, 9), in_channels=1)
    assert "rotated to 9x8" in report.sizes[0].failure


@pytest.mark.parametrize("training", [True, False])
def test_network_and_random_state_are_unchanged(training):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Dropout(0.5)).train(training)
    before, random_state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    check_equivariance(net, [(8,), (9,)], angles=(30,))
    assert net.training is training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_same_seed_same_report():
    torch.manual_seed(0)
    net = nn.Conv2d(1, 2, 3)
    first, second, other = (check_equivariance(net, 8, seed=seed).worst for seed in (1, 1, 2))
    assert first == second != other


def test_rounding_is_not_called_broken():
    """Subtracting the mean of a nearly constant image amplifies the rounding of this mean."""

    class Centred(nn.Module):
        def forward(self, x):
            x = 1e-3 * x + 1
            return x - x.mean((2, 3), keepdim=True)

    net = nn.Sequential(Centred(), nn.InstanceNorm2d(1), nn.MaxPool2d(2))
    report = check_equivariance(net, 65, in_channels=1, spatial_dims=2)
    centred = report.sizes[0].modules[1]
    assert centred.error > 1e-5
    assert not centred.broken
    assert "rounding" in centred.remark
    assert [m.path for m in report.broken] == ["2"]


@pytest.mark.parametrize(
    ("net", "size", "paths"),
    [
        (lambda: BasicUNet(2, 1, 2, features=(4,) * 6), 33, {"down_1.max_pooling", "conv_0.conv_0.conv"}),
        (lambda: BasicUNet(3, 1, 2, features=(2,) * 6), 32, {"upcat_1.upsample.deconv"}),
        (lambda: UNet(2, 1, 2, (4, 8, 8), (2, 2)), 32, {"model.2.conv"}),
        (
            lambda: DynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 4, 4], deep_supervision=True),
            32,
            {"downsamples.0.conv1.conv"},
        ),
    ],
)
def test_networks_of_monai(net, size, paths):
    torch.manual_seed(0)
    report = check_equivariance(net(), size)
    assert report.worst > 0.1
    assert paths <= {m.path for m in report.broken}
    assert not any(m.class_name in ("Convolution", "TwoConv", "LeakyReLU", "PReLU") for m in report.broken)


def test_odd_size_breaks_the_padding_of_upcat():
    """BasicUNet with kernels averaged over D4: at odd sizes the pool and the functional padding of UpCat remain."""
    torch.manual_seed(0)
    net = BasicUNet(2, 1, 2, features=(2,) * 6)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            views = [transform_grid(module.weight.detach(), g) for g in point_group(2)]
            module.weight.data = torch.stack(views).mean(0)
    assert check_equivariance(net, 32).ok
    report = check_equivariance(net, 33)
    assert {m.class_name for m in report.broken} == {"MaxPool2d", "UpCat"}


def test_angles_are_measured_and_not_judged():
    report = check_equivariance(nn.Sequential(point(), nn.Identity()), 17, angles=(20,))
    assert len(report.sizes[0].errors.angles.views) == 1
    assert report.ok
    assert "angles worst" in str(report)
    assert "shifts worst" not in str(report)
    steep = check_equivariance(nn.Sequential(nn.MaxPool2d(3, 1, 1)), 33, 1, 2, angles=(20,))
    assert steep.sizes[0].errors.angles.worst > 1e-2
    assert steep.ok


def test_shifts_are_measured_and_not_judged():
    report = check_equivariance(nn.Sequential(nn.MaxPool2d(3, 1, 1)), 33, 1, 2, shifts=(0.5,))
    assert report.sizes[0].errors.shifts.worst > 1e-2
    assert report.rows[0]["shifts_worst"] == report.sizes[0].errors.shifts.worst
    assert report.rows[0]["angles_worst"] == ""
    assert "shifts worst" in str(report)
    assert report.ok


def test_moves_are_measured_by_module_where_asked_for():
    """Each module has its separate error on its own input; a shift of the image is half as many voxels after the pool."""
    torch.manual_seed(0)
    net = nn.Sequential(point(), nn.MaxPool2d(2), nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1)))
    moves = {"angles": (20, 30), "shifts": (0.5,)}
    report = check_equivariance(net, 32, **moves, moves_per_module=True)
    modules = {module.path: module.moves for module in report.sizes[0].modules}
    assert list(modules) == ["(network)", "0", "1", "2", "2.0", "2.1"]
    whole = report.sizes[0].errors
    assert modules["(network)"].views == whole.angles.views + whole.shifts.views
    noise = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    smooth = ndimage.gaussian_filter(noise.numpy(), (0, 0, 1.2, 1.2), mode="wrap")
    x = torch.as_tensor(smooth / smooth.std())
    with torch.no_grad():
        pooled = net[1](net[0](x))
    for path, module, given, shift in (
        ("0", net[0], x, 0.5),
        ("2", net[2], pooled, 0.25),
        ("2.0", net[2][0], pooled, 0.25),
    ):
        alone = equivariance_error(module, given, [], (20, 30), shifts=(shift,))
        assert modules[path].errors == pytest.approx(alone.errors, abs=1e-6)
    assert modules["0"].shifts.worst < 1e-5
    assert min(modules[path].shifts.worst for path in ("1", "2.0")) > 1e-2
    rows = {row["path"]: row for row in report.rows}
    assert rows["1"]["shifts_worst"] == modules["1"].shifts.worst
    assert rows["2.0"]["angles_mean"] == modules["2.0"].angles.mean
    (line,) = [line for line in report.to_text(every_module=True).splitlines() if "MaxPool2d" in line]
    assert f"{modules['1'].shifts.worst:.2e}" in line
    assert str(report).count("shifts worst") == 1 + bool(report.broken)
    without = check_equivariance(net, 32, **moves)
    assert [row["shifts_worst"] for row in without.rows[1:]] == [""] * 6
    assert without.to_text(every_module=True).count("shifts worst") == 1
    assert [check.errors for check in without.sizes] == [check.errors for check in report.sizes]


def test_a_module_called_twice_has_the_moves_of_its_worst_call():
    pool = nn.MaxPool2d(2)
    net = nn.Sequential(point(), pool, nn.ReLU(), pool)
    first, both = (check_equivariance(n, 32, shifts=(0.5,), moves_per_module=True) for n in (net[:3], net))
    shifts = [report.sizes[0].modules[2].moves.shifts.worst for report in (first, both)]
    assert shifts[1] >= shifts[0] > 0


def test_spacing_and_group_choose_the_elements():
    net = nn.Conv2d(1, 1, (1, 3), padding=(0, 1))
    nn.init.constant_(net.weight, 1.0)
    assert not check_equivariance(net, 9).ok
    assert check_equivariance(net, 9, spacing=(2.0, 1.0)).ok
    half_turn = [np.eye(2, dtype=int), -np.eye(2, dtype=int)]
    assert check_equivariance(net, 9, group=half_turn).ok


def test_scripted_and_compiled_networks():
    net = nn.Sequential(point(), nn.MaxPool2d(2))
    scripted = check_equivariance(torch.jit.script(net), [(8,), (9,)], 1, 2)
    assert [check.error <= 1e-5 for check in scripted.sizes] == [True, False]
    assert "scripted" in scripted.broken[0].remark
    compiled = check_equivariance(torch.compile(net, backend="eager"), 9)
    assert [m.path for m in compiled.broken] == ["1"]


def test_rows_have_equal_keys():
    rows = check_equivariance(nn.Sequential(point(), nn.MaxPool2d(2)), [(8,), (9,)]).rows
    assert len({tuple(row) for row in rows}) == 1
    assert [row["path"] for row in rows] == ["", "(network)", "0", "1"] * 2
    assert [row["exact"] for row in rows] == [True] * 4 + [False, False, True, False]


def test_dtype_of_the_network_is_used():
    report = check_equivariance(nn.Sequential(point(), nn.AvgPool2d(3, 1, 1)).double(), 9)
    assert report.worst < 1e-14


@pytest.mark.parametrize(
    ("net", "arguments", "message"),
    [
        (nn.Conv2d(1, 1, 3), {"spatial_size": (8, 8, 8)}, "2 numbers"),
        (nn.Conv2d(1, 1, 3), {"spatial_size": 0}, "positive"),
        (nn.ReLU(), {"spatial_size": 8}, "no convolution"),
        (nn.Conv2d(1, 1, 3), {"spatial_size": 8, "spacing": (1.0, 1.0, 3.0)}, "give 2 voxel sizes"),
        (nn.Conv2d(1, 1, 3), {"spatial_size": 8, "group": "m5"}, "group='m5' is unknown in 2D"),
    ],
)
def test_bad_input_is_one_sentence(net, arguments, message):
    with pytest.raises(ValueError, match=message):
        check_equivariance(net, **arguments)


class _Turned(nn.Module):
    """A layer that breaks the symmetry by rolling the image by a voxel."""

    def forward(self, x):
        return x.roll(1, 2)


@pytest.mark.parametrize("name", ["4mm", "4", "m"])
def test_a_net_of_group_convolutions_is_asked_its_own_group(name):
    net = GMRUNet(2, 1, 2, (8, 16), conv=("group", {"group": name}), dropout=0.1).eval()
    report = check_equivariance(net, (9, 12))
    assert report.ok
    assert len(report.sizes[0].errors.views) == PointGroup.from_name(name, 2).order
    modules = {module.path: module for module in report.sizes[0].modules}
    assert modules["stem.0.conv"].error < 1e-5  # compared as fields
    assert modules["head.0"].class_name == "PointGroupPool"
    assert "stem.0" not in modules  # containers of layers on fields are not compared
    if name != "4mm":
        assert not check_equivariance(net, (9, 12), group=point_group(2), per_module=False).ok


def test_a_sequence_of_layers_is_asked_the_elements_that_all_of_them_have():
    lift = PointGroupConv2d(1, 8, 3, padding=1, group="4mm", in_group="1")
    onto = PointGroupConv2d(8, 8, 3, padding=1, group="4mm", out_group="2mm")
    last = PointGroupConv2d(8, 8, 3, padding=1, group="2mm", out_group=("m", "y"))
    net = nn.Sequential(lift, nn.ReLU(), onto, nn.ReLU(), nn.Sequential(last, PointGroupPool(2, ("m", "y"))))
    report = check_equivariance(net, (9, 12))
    assert report.ok
    assert len(report.sizes[0].errors.views) == 2
    assert not check_equivariance(net, (9, 9), group="4mm").ok


@pytest.mark.parametrize(
    ("group", "views"),
    [("4mm", 8), (("m", "x"), 2), (PointGroup.from_name("4", 2), 4), (point_group(2), 8), ([np.eye(2)], 1)],
)
def test_a_group_is_given_as_layers_take_it_or_by_its_elements(group, views):
    report = check_equivariance(nn.Sequential(point(), nn.ReLU()), 9, group=group)
    assert report.ok
    assert len(report.sizes[0].errors.views) == views


def test_the_module_that_breaks_a_group_convolutions_net_is_named():
    net = GMRUNet(2, 1, 2, (8, 16), conv=("group", {"group": "4mm"})).eval()
    net.stem[1].adn.A = nn.Sequential(nn.ReLU(), _Turned())
    report = check_equivariance(net, (9, 12))
    assert [module.path for module in report.broken] == ["stem.1.adn.A.1"]


LIFT = {"group": "4mm", "in_group": "1"}


@pytest.mark.parametrize(
    ("net", "channels"),
    [
        (PointGroupConv2d(8, 16, 3, padding=1, group="4mm"), 8),
        (PointGroupConv2d(1, 8, 3, padding=1, **LIFT), 1),
        (PointGroupConv2d(8, 4, 3, padding=1, group="4mm", out_group="4"), 8),
        (nn.Sequential(PointGroupConv2d(1, 8, 3, **LIFT), nn.ReLU(), PointGroupNorm(2, 8, "4mm")), 1),
    ],
)
def test_layers_on_fields_are_compared_as_fields(net, channels):
    report = check_equivariance(net.eval(), (9, 12), in_channels=channels, spatial_dims=2)
    assert report.ok
    assert equivariance_error(net, torch.randn(1, channels, 9, 12), point_group(2)[:1]).worst == 0


def test_a_norm_of_single_channels_between_fields_is_named():
    norm = nn.BatchNorm2d(8)
    norm.running_mean.normal_()
    layers = [PointGroupConv2d(1, 8, 3, **LIFT), norm, nn.ReLU(), PointGroupConv2d(8, 8, 3, group="4mm")]
    net = nn.Sequential(*layers, PointGroupPool(2, "4mm")).eval()
    net.symmetry_group = PointGroup.from_name("4mm", 2)
    report = check_equivariance(net, (9, 12), in_channels=1, spatial_dims=2)
    assert [check.path for check in report.sizes[0].modules if check.deepest] == ["1"]
    norm.running_mean.zero_()
    assert check_equivariance(net, (9, 12), in_channels=1, spatial_dims=2).ok


@pytest.mark.parametrize("dims", [2, 3])
def test_layers_on_sampled_fields_are_no_break_of_a_net_that_is_exact(dims):
    net = GMRUNet(
        dims,
        1,
        2,
        features=(24, 24),
        conv=("partial", {"group": {2: "SE(2)", 3: "SO(3)"}[dims], "samples": {2: 4, 3: 24}[dims]}),
    )
    group = named_group({2: "4", 3: "432"}[dims], dims)
    report = check_equivariance(net.eval(), (8, 9, 10)[:dims], group=group)
    assert report.ok
    assert not report.broken
    assert not check_equivariance(net, (8, 9, 10)[:dims], group=point_group(dims)).ok


@pytest.mark.parametrize(
    ("nothing", "sentence"),
    [({"group": []}, "nothing is compared"), ({"batch_size": 0}, "batch_size=0 is impossible: give a whole number")],
)
def test_a_check_of_nothing_is_refused(nothing, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        check_equivariance(nn.Conv2d(1, 1, 3, padding=1), 8, **nothing)
