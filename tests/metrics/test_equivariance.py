"""Tests that the equivariance error follows its definition, and measuring it does not change the network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from monai_gmr.metrics import equivariance_error
from monai_gmr.symmetry import group_views, make_views, point_group
from monai_gmr.utils import ConfigurationError


def radial_convolution(dims: int, channels_in: int = 1, channels_out: int = 2, seed: int = 0) -> nn.Module:
    """Makes, tap by tap, a 3^d convolution whose weights depend only on the distance to the centre."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](channels_in, channels_out, 3, padding=1)
    profile = torch.randn(channels_out, channels_in, dims + 1, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for tap in np.ndindex(*(3,) * dims):
            conv.weight[(slice(None), slice(None), *tap)] = profile[..., sum((t - 1) ** 2 for t in tap)]
    return conv


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("dims", "size"), [(1, (9,)), (2, (12, 12)), (2, (11, 14)), (3, (6, 7, 9))])
def test_radial_is_exact_and_plain_is_not(dims, size, device):
    torch.manual_seed(0)
    x = noise(2, 1, *size).to(device)
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](1, 2, 3, padding=1).to(device)
    exact, broken = equivariance_error(radial_convolution(dims).to(device), x), equivariance_error(plain, x)
    assert len(exact.views) == (2, 8, 48)[dims - 1]
    assert exact.worst < 1e-6
    assert broken.worst > 0.1
    assert broken.mean < broken.worst


def test_error_equals_definition_for_one_element():
    torch.manual_seed(0)
    net, x = nn.Conv2d(1, 2, 3, padding=1), noise(1, 1, 8, 10)
    quarter = np.array([[0, -1], [1, 0]])
    with torch.no_grad():
        upright, answer = net(x), net(torch.rot90(x, 1, (2, 3)))
        expected = (answer - torch.rot90(upright, 1, (2, 3))).norm() / upright.norm()
    assert equivariance_error(net, x, [quarter]).worst == pytest.approx(float(expected), rel=1e-5)


def test_logits_are_compared_as_they_are():
    pooled = nn.Sequential(radial_convolution(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    flattened = nn.Sequential(radial_convolution(2), nn.Flatten())
    x = noise(2, 1, 9, 9)
    assert equivariance_error(pooled, x).worst < 1e-5
    assert equivariance_error(flattened, x).worst > 0.5


@pytest.mark.parametrize("kind", ["list", "tuple", "dict"])
def test_the_worst_of_several_outputs_counts(kind):
    class Heads(nn.Module):
        def __init__(self, second: nn.Module) -> None:
            super().__init__()
            self.first, self.second = radial_convolution(2), second

        def forward(self, x):
            answers = {"a": self.first(x), "b": self.second(x)}
            return answers if kind == "dict" else {"list": list, "tuple": tuple}[kind](answers.values())

    torch.manual_seed(0)
    x, plain = noise(1, 1, 9, 9), nn.Conv2d(1, 2, 3, padding=1)
    assert equivariance_error(Heads(radial_convolution(2, seed=5)), x).worst < 1e-6
    alone = equivariance_error(plain, x).worst
    assert equivariance_error(Heads(plain), x).worst == pytest.approx(alone, rel=1e-6)


def test_stacked_heads_are_transformed_along_their_last_axes():
    radial = radial_convolution(2)
    assert equivariance_error(lambda x: torch.stack([radial(x), 2 * radial(x)], 1), noise(1, 1, 8, 9)).worst < 1e-6


def test_output_whose_shape_is_not_permuted_is_infinitely_wrong():
    assert equivariance_error(lambda x: x[..., :4, :], noise(1, 1, 6, 8)).worst == float("inf")


def test_not_a_number_is_not_exact():
    assert not equivariance_error(lambda x: x / 0 * 0, noise(1, 1, 5, 5)).worst <= 1e-5


def test_spacing_keeps_unlike_axes_apart():
    stretched = nn.Conv2d(1, 1, (1, 3), padding=(0, 1))
    nn.init.constant_(stretched.weight, 1.0)
    x = noise(1, 1, 9, 9)
    anisotropic = equivariance_error(stretched, x, spacing=(3.0, 1.0))
    assert len(anisotropic.views) == 4
    assert anisotropic.worst < 1e-6
    assert equivariance_error(stretched, x).worst > 0.1


@pytest.mark.parametrize(("dims", "size", "views"), [(2, 41, 2), (3, 21, 6)])
def test_other_angles(dims, size, views, device):
    """A Gaussian blur commutes with rotations of a smooth image, a derivative does not; multiples of 90 are left out."""
    smooth = ndimage.gaussian_filter(noise(1, 1, *(size,) * dims).numpy(), (0, 0, *(2.0,) * dims))
    x = torch.as_tensor(smooth).to(device)

    def blur(x):
        return torch.as_tensor(ndimage.gaussian_filter(x.cpu().numpy(), (0, 0, *(1.0,) * dims))).to(device)

    def derivative(x):
        return torch.as_tensor(ndimage.gaussian_filter1d(x.cpu().numpy(), 1.0, axis=-1, order=1)).to(device)

    good = equivariance_error(blur, x, angles=(30, 90, 45))
    assert len(good.angles.views) == views
    assert len(good.group.views) == len(point_group(dims))
    assert good.angles.worst < 0.03
    assert equivariance_error(derivative, x, [], angles=(30,)).worst > 0.3


@pytest.mark.parametrize(("dims", "size"), [(1, (40,)), (2, (40, 41)), (3, (24, 25, 26))])
def test_shifts_below_a_voxel(dims, size):
    smooth = torch.as_tensor(ndimage.gaussian_filter(noise(1, 1, *size).numpy(), (0, 0, *(2.0,) * dims), mode="wrap"))
    smooth = smooth / smooth.std()
    # convolutions are equivariant to shifts; a rectifier creates frequencies that the grid cannot represent, pooling aliases them
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](1, 2, 3, padding=1, padding_mode="circular")
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2, ceil_mode=True)
    for net, low, high in ((nn.Identity(), 0, 1e-6), (plain, 0, 0.05), (pool, 0.02, 1), (nn.ReLU(), 0.003, 0.1)):
        shifts = equivariance_error(net, smooth, [], shifts=(0.5, -0.25)).shifts
        assert len(shifts.views) == 2 * dims
        assert low <= shifts.worst <= high, net
        assert shifts.views[0].name == "0.5 voxels along axis 0"


def test_a_shift_by_whole_voxels_is_one_of_the_output_of_half_the_resolution():
    smooth = torch.as_tensor(ndimage.gaussian_filter(noise(1, 1, 48, 48).numpy(), (0, 0, 3, 3), mode="wrap"))
    error = equivariance_error(nn.AvgPool2d(2), smooth / smooth.std(), [], shifts=(2,))
    assert error.worst < 1e-5


def test_angles_of_an_output_of_half_the_resolution_use_its_own_disc():
    smooth = torch.as_tensor(ndimage.gaussian_filter(noise(1, 1, 64, 64).numpy(), (0, 0, 4.0, 4.0)))
    errors = equivariance_error(nn.AvgPool2d(2), smooth, angles=(30,))
    assert errors.angles.worst < 0.03


def test_angles_of_an_output_without_a_voxel_in_its_disc_are_not_called_exact():
    smooth = torch.as_tensor(ndimage.gaussian_filter(noise(1, 1, 8, 8).numpy(), (0, 0, 2.0, 2.0)))
    assert equivariance_error(lambda x: x[..., ::4, ::4], smooth, [], angles=(45,)).worst > 0.1


def test_angles_leave_logits_unchanged():
    smooth = torch.as_tensor(ndimage.gaussian_filter(noise(1, 1, 33, 33).numpy(), (0, 0, 3.0, 3.0)))
    row = equivariance_error(lambda x: x.flatten(2)[..., :33].flatten(1), smooth, [], angles=(45,))
    assert row.worst > 0.1
    assert equivariance_error(lambda x: x[..., 16, 16], smooth, [], angles=(45,)).worst < 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_network_and_random_state_are_unchanged(training):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Dropout(0.5)).train(training)
    net[1].eval()
    net[1].train(training)
    before, x = copy.deepcopy(net.state_dict()), noise(2, 1, 9, 9)
    given, random_state = x.clone(), torch.get_rng_state()
    buffers = {name: id(buffer) for name, buffer in net.named_buffers()}
    equivariance_error(net, x, angles=(30,))
    assert net.training is training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert buffers == {name: id(buffer) for name, buffer in net.named_buffers()}
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(x, given)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_state_is_put_back_when_the_network_fails():
    class Fails(nn.BatchNorm2d):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("no")

    net, x = Fails(1), noise(2, 1, 6, 6)
    with pytest.raises(RuntimeError):
        equivariance_error(net, x)
    assert int(net.num_batches_tracked) == 0
    assert torch.equal(net.running_mean, torch.zeros(1))


def test_batch_norm_in_train_mode_is_exact():
    net = nn.Sequential(radial_convolution(2), nn.BatchNorm2d(2), nn.ReLU()).train()
    assert equivariance_error(net, noise(2, 1, 11, 12)).worst < 1e-6


def test_table_names_every_view():
    table = str(equivariance_error(nn.AvgPool2d(3, 1, 1), noise(1, 1, 9, 9), angles=(20,)))
    assert table.splitlines()[0].split() == ["view", "error"]
    assert all(name in table for name in ("upright", "4+", "m [10]", "20 degrees", "mean", "worst"))
    assert len(table.splitlines()) == 1 + 8 + 1 + 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(3, 3)}, "not an image"),
        ({"x": torch.zeros(1, 1, 4, 4), "spacing": (1.0,)}, "spacing has 1"),
        ({"x": torch.zeros(1, 1, 4, 4), "group": [np.eye(3)]}, "transforms 3 axes"),
        ({"x": torch.zeros(1, 1, 4, 4), "group": True}, "group=True is impossible"),
        ({"x": torch.zeros(1, 1, 4, 4), "group": np.array(4)}, "is impossible"),
        ({"x": torch.zeros(1, 1, 4, 4), "group": {"4mm": 1}}, "is impossible"),
        ({"x": torch.zeros(1, 1, 4, 4), "group": ("4mm", "w")}, "axis='w' is unknown in 2D"),
        ({"x": torch.zeros(1, 1, 4, 4), "group": ["4+", "5+"]}, "element='5\\+' is unknown in 2D"),
        ({"x": torch.zeros(1, 1, 4, 4), "group": [np.array([[0.8, -0.6], [0.6, 0.8]])]}, "signed permutation"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        equivariance_error(nn.Identity(), **arguments)


def test_the_imaginary_part_of_an_answer_counts():
    conv, x = nn.Conv2d(1, 1, 3, padding=1), noise(1, 1, 9, 9)
    error = equivariance_error(conv, x).worst
    assert error > 0.1
    assert equivariance_error(lambda x: torch.complex(torch.zeros_like(x), conv(x)), x).worst == pytest.approx(error)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_views_have_the_names_of_the_rotation_report(dims):
    """Every symmetry of the grid, a subgroup, and other angles; in 1D there is no report."""
    x = torch.rand(1, 1, *[3] * dims)
    for group in (None, "m"):
        found = [view.name for view in equivariance_error(torch.nn.Identity(), x, group=group).views]
        assert found == [view.name for view in group_views(dims, group=group)]
        assert found[0] == "upright"
    if dims > 1:
        sets = ["all", "group", {"angles": 45}]
        names = [{tuple(view.matrix.ravel().round(6)): view.name for view in make_views(one, dims)} for one in sets]
        assert names[0] == names[1]
        angles = equivariance_error(torch.nn.Identity(), x, angles=[45, 90, 135]).angles.views
        assert {view.name for view in angles} <= set(names[2].values())
