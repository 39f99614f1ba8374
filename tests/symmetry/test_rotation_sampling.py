"""Samples of parts of a group have the densities of the closed forms, and each has the gradient of finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.transform import Rotation

from monai_gmr.symmetry import PointGroup, SampledGroup, as_field_group, partial_group
from monai_gmr.symmetry.rotation_sampling import (
    axis_and_angle,
    cone_angles,
    even_uniforms,
    held_in_unit,
    interval_angles,
    plane_rotations,
    quaternion_of,
    quaternion_product,
    relaxed_bernoulli,
    share_below,
    space_rotations,
)
from monai_gmr.utils import ConfigurationError

NUMBERS = torch.rand(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def number(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def distance_from(samples, distribution):
    """The p-value of a Kolmogorov-Smirnov test."""
    return stats.kstest(samples.detach().numpy(), distribution).pvalue


@pytest.mark.parametrize("extent", [1.0, 0.3])
def test_angles_in_the_plane_are_uniform_on_their_interval(extent):
    angles = interval_angles(NUMBERS, number(extent))
    assert distance_from(angles, stats.uniform(-math.pi * extent, 2 * math.pi * extent).cdf) > 0.01


@pytest.mark.parametrize("largest", [math.pi, 1.5, 0.2])
def test_angles_in_space_have_the_density_of_uniform_rotations(largest):
    angles = cone_angles(NUMBERS, number(largest))
    assert float(angles.detach().max()) <= largest
    whole = largest - math.sin(largest)
    assert distance_from(angles, lambda w: (w - np.sin(w)) / whole) > 0.01
    # not the density of uniform angles, which is concentrated about the axis
    assert distance_from(angles, stats.uniform(0, largest).cdf) < 1e-6
    torch.testing.assert_close(share_below(angles) / share_below(number(largest)), NUMBERS, atol=1e-9, rtol=0)


@pytest.mark.parametrize("largest", [math.pi, 3.0, 1e-3, 1e-8])
def test_angles_in_space_are_the_inverse_of_the_share_to_the_last_digits(largest):
    fractions = torch.linspace(0.0, 1.0, 1001, dtype=torch.float64)
    # x - sin x by its series, without loss of digits
    odd = torch.arange(3, 40, 2, dtype=torch.float64)
    volume = lambda x: ((-1) ** ((odd - 3) / 2) * (odd * x.log().unsqueeze(-1) - torch.lgamma(odd + 1)).exp()).sum(-1)  # noqa: E731
    shares = volume(fractions * largest) / volume(number(largest))
    found = cone_angles(shares, number(largest).detach()) / largest
    torch.testing.assert_close(found, fractions, atol=1e-13, rtol=1e-13)


def test_random_quaternions_are_uniform_rotations():
    uniforms = torch.rand(4000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    axes, angles = axis_and_angle(quaternion_of(uniforms))
    assert distance_from(angles, lambda w: (w - np.sin(w)) / math.pi) > 0.01
    for column in axes.unbind(-1):
        assert distance_from(column, stats.uniform(-1, 2).cdf) > 0.01


def test_even_rotations_are_spread_more_evenly_than_random_ones():
    def error(uniforms):
        angles = axis_and_angle(quaternion_of(uniforms))[1]
        return stats.kstest(angles.numpy(), lambda w: (w - np.sin(w)) / math.pi).statistic

    assert error(even_uniforms(200)) < 0.5 * error(torch.rand(200, 3, dtype=torch.float64))
    assert torch.equal(quaternion_of(even_uniforms(5))[0], torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("extent", [1.0, 0.4, 0.0])
def test_each_sample_has_its_own_gradient(extent):
    """The peer's is one number for all samples."""
    largest, step = number(math.pi * extent), 1e-6
    uniforms = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    for function, exact in ((interval_angles, 2 * uniforms - 1), (cone_angles, None)):
        point = number(extent) if function is interval_angles else largest
        gradients = torch.stack(
            [torch.autograd.grad(each, point, retain_graph=True)[0] for each in function(uniforms, point)]
        )
        # one-sided, as nothing lies below 0 or beyond pi
        sign = -1.0 if extent == 1 else 1.0
        moved = function(uniforms, (point + sign * step).detach())
        torch.testing.assert_close(
            gradients, sign * (moved - function(uniforms, point).detach()) / step, atol=2e-5, rtol=0
        )
        assert len(set(gradients.tolist())) == len(uniforms)
        if exact is not None:
            torch.testing.assert_close(gradients, math.pi * exact)


def test_matrices_are_those_of_scipy():
    axes, angles = axis_and_angle(quaternion_of(NUMBERS[:30].unflatten(0, (10, 3))))
    expected = Rotation.from_rotvec((axes * angles[:, None]).numpy()).as_matrix()
    np.testing.assert_allclose(space_rotations(axes, angles).numpy(), expected, atol=1e-12)
    expected = Rotation.from_euler("z", angles.numpy()[:, None]).as_matrix()[:, :2, :2]
    np.testing.assert_allclose(plane_rotations(angles).numpy(), expected, atol=1e-12)


def test_quaternions_multiply_as_scipys():
    first, second = quaternion_of(NUMBERS[:60].unflatten(0, (2, 10, 3)))
    expected = (Rotation.from_quat(first.numpy()) * Rotation.from_quat(second.numpy())).as_matrix()
    axes, angles = axis_and_angle(quaternion_product(first, second))
    np.testing.assert_allclose(space_rotations(axes, angles).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("probability", [0.02, 0.3, 0.9])
def test_a_cold_bernoulli_variable_is_one_with_its_probability(probability):
    values = relaxed_bernoulli(number(probability), NUMBERS, 1e-3)
    assert float(((values > 1e-3) & (values < 1 - 1e-3)).double().mean()) < 0.01
    assert float(values.detach().mean()) == pytest.approx(probability, abs=0.02)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_at_its_ends_it_is_certain_and_still_learns(probability):
    learned = number(probability)
    values = relaxed_bernoulli(learned, NUMBERS, 0.2)
    assert set(values.tolist()) == {probability}
    (gradient,) = torch.autograd.grad(values.mean(), learned)
    # of the mean, which is the probability
    assert 0.5 < float(gradient) < 2


def test_each_bernoulli_variable_has_its_own_gradient():
    learned = number(0.4)
    values = relaxed_bernoulli(learned, NUMBERS[:6], 0.5)
    gradients = torch.stack([torch.autograd.grad(each, learned, retain_graph=True)[0] for each in values])
    moved = relaxed_bernoulli(number(0.4 + 1e-6), NUMBERS[:6], 0.5)
    torch.testing.assert_close(gradients, ((moved - values) / 1e-6).detach(), atol=1e-4, rtol=1e-4)
    assert len(set(gradients.tolist())) == 6


@pytest.mark.parametrize(
    ("start", "target"), [(1.0, 0.3), (0.0, 0.6), (1.2, 0.9), (-0.2, 0.1), (0.5, 2.0), (0.5, -1.0)]
)
def test_a_held_number_comes_back_from_its_ends_and_does_not_run_away(start, target):
    learned = number(start)
    optimiser = torch.optim.SGD([learned], 0.05)
    for _ in range(200):
        optimiser.zero_grad()
        ((held_in_unit(learned) - target) ** 2).backward()
        optimiser.step()
    assert float(held_in_unit(learned).detach()) == pytest.approx(min(max(target, 0), 1), abs=1e-3)
    assert -0.3 < float(learned.detach()) < 1.3


def test_a_held_number_has_forward_gradients_and_batches():
    starts, steps = torch.tensor([1.2, 1.2, 0.5, -0.1, -0.1]), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
    assert torch.func.jvp(held_in_unit, (starts,), (steps,))[1].tolist() == [0, -1, 1, 1, 0]
    # descent goes against the gradient
    backward = torch.func.vmap(lambda x, step: torch.func.vjp(held_in_unit, x)[1](-step)[0])(starts, steps)
    assert backward.tolist() == [0, 1, -1, -1, 0]


@pytest.mark.parametrize(
    ("group", "dims", "samples", "order", "closed"),
    [
        ("SE(2)", 2, 8, 8, "4"),
        ("so(2)", 2, 6, 6, "2"),
        ("E(2)", 2, 4, 8, "4mm"),
        ("E(2)", 2, 5, 10, "m"),
        (None, 3, None, 24, "432"),
        ("SO(3)", 3, 12, 12, "23"),
        ("O(3)", 3, 8, 16, "mmm"),
        ("O(3)", 3, 5, 10, "-1"),
    ],
)
def test_a_sampled_group_knows_its_order_and_what_it_is_closed_under(group, dims, samples, order, closed):
    found = partial_group(group, dims, samples)
    assert (found.order, found.grid_group) == (order, PointGroup.from_name(closed, dims))
    assert as_field_group(found, dims) is found


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("SE(3)", 2), r"group='SE\(3\)' transforms 3 axes: use 'SE\(2\)' or 'E\(2\)' in 2D"),
        (("SU(2)", 2), r"group='SU\(2\)' is unknown: use 'SE\(2\)' or 'E\(2\)', or a group of the grid such as '4'"),
        (("SE(2)", 2, 0), "samples=0 is impossible: give a whole number of at least 1"),
        (("SE(2)", 2, 4.5), "samples=4.5 is impossible"),
        (("4mm", 2, 4), "samples=4 does not fit group='4mm'"),
        (("5", 2), "group='5' is unknown in 2D"),
        ((SampledGroup(2, "SE(2)", 4), 3), "transforms 2 axes: give a group of 3 axes"),
        ((None, 1), "spatial_dims=1 has no partial group convolution: use 2 or 3"),
    ],
)
def test_impossible_groups_are_refused_in_a_sentence(arguments, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        partial_group(*arguments)
