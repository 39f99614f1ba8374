"""Taps, shells, radial bases and harmonics against closed forms; every rotation mixes an order by an orthogonal matrix."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from monai_gmr.symmetry import (
    default_num_rings,
    gaussian_basis,
    gaussian_means,
    gaussian_tables,
    indexed_basis,
    kernel_shells,
    number_of_components,
    point_group,
    real_harmonics,
    ring_masks,
    tap_coordinates,
    tap_harmonics,
    tap_spacing,
    transform_grid,
)
from monai_gmr.symmetry.taps import TABLE_UNITS
from monai_gmr.utils import ConfigurationError


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=3))
def test_shells_are_the_taps_of_equal_radius(kernel_size):
    shells = kernel_shells(kernel_size)
    radius = np.linalg.norm(tap_coordinates(kernel_size), axis=-1)
    assert np.allclose(shells.radii[shells.tap_shell], radius)
    assert np.all(np.diff(shells.radii) > 1e-6)
    assert shells.counts.sum() == np.prod(kernel_size)


@pytest.mark.parametrize("k", range(1, 10))
def test_shells_of_a_cube_are_fixed_by_the_whole_group(k):
    for dims in (2, 3):
        index = kernel_shells((k,) * dims).tap_shell
        assert all(np.array_equal(transform_grid(index, g), index) for g in point_group(dims))


def test_spacing_makes_shells_round_in_millimetres():
    steps = tap_spacing((3, 7, 7), spacing=(3.0, 1.0, 1.0))
    shells = kernel_shells((3, 7, 7), steps)
    assert shells.tap_shell[0, 3, 3] == shells.tap_shell[1, 3, 0] == shells.tap_shell[1, 0, 3]
    assert tap_spacing((3, 3), spacing=(0.5, 0.5), dilation=(3, 3)) == (1.0, 1.0)


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, -1.0), (1.0, float("nan"))])
def test_impossible_spacing_is_refused(spacing):
    with pytest.raises(ConfigurationError, match="voxel sizes above 0 in millimetres"):
        tap_spacing((3, 3), spacing=spacing)


@pytest.mark.parametrize("k", [3, 5, 7, 9, 11])
def test_ring_masks_are_disjoint_and_leave_only_the_corners_out(k):
    shells = kernel_shells((k, k))
    masks = ring_masks(shells, k // 2 + 1)
    assert np.array_equal(masks.sum(0), shells.radii < k // 2 + 0.5)


def basis_of(shells, sigma):
    """The default Gaussians of a window."""
    means = gaussian_means(len(sigma), shells.support)[None]
    tables = gaussian_tables(shells.radii, shells.counts, shells.support, means, orders=(0,))
    return gaussian_basis(torch.as_tensor(tables[0]), sigma, TABLE_UNITS)


@pytest.mark.parametrize(("k", "dims"), [(1, 3), (2, 2), (3, 3), (4, 2), (5, 3), (9, 2), (7, 1)])
@pytest.mark.parametrize("width", [0.1, 0.6, 5.0])
def test_gaussian_basis_is_the_closed_form(k, dims, width):
    shells = kernel_shells((k,) * dims)
    rings = default_num_rings(shells)
    sigma = torch.full((rings,), width, dtype=torch.float64)
    basis = basis_of(shells, sigma).numpy()
    support = max((k + 1) / 2, shells.radii[0] + 1)
    mean = np.linspace(0, max(support - 1.75, 0), rings)
    taper = np.sin(np.pi / 2 * np.clip((support - shells.radii) / 0.5, 0, 1)) ** 2
    expected = np.exp(-((shells.radii - mean[:, None]) ** 2) / (2 * width**2)) * taper
    expected /= np.sqrt((shells.counts * expected**2).sum(1, keepdims=True))
    assert np.allclose(basis, expected, atol=1e-9)


def test_gaussian_basis_has_gradients_to_the_second_order():
    sigma = torch.tensor([0.1, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    # the corners have no weight, the far shells of the narrow ring almost none
    run = partial(basis_of, kernel_shells((5, 5, 5)))
    assert run(sigma)[:, -1].eq(0).all()
    assert torch.autograd.gradcheck(run, sigma)
    assert torch.autograd.gradgradcheck(run, sigma)


@pytest.mark.parametrize("width", [1e-3, 0.1, 1e3, float("inf")])
def test_gaussian_basis_is_finite_at_every_width(width):
    shells = kernel_shells((5, 5, 5))
    sigma = torch.full((default_num_rings(shells),), width, requires_grad=True)
    basis = basis_of(shells, sigma)
    basis.sum().backward()
    assert torch.allclose((torch.as_tensor(shells.counts) * basis**2).sum(-1), torch.ones(len(sigma)), atol=1e-5)
    assert sigma.grad.isfinite().all()


def test_a_shell_of_another_window_has_its_value_and_no_part_in_the_norm():
    """Windows of odd and even length share one function of the radius, of unit norm on the first."""
    radii, sigma = np.array([0.0, 0.5, 1.0]), torch.tensor([0.6], dtype=torch.float64)
    run = lambda shells, counts: gaussian_basis(  # noqa: E731
        torch.as_tensor(gaussian_tables(radii[shells], np.array(counts), 2.0, np.zeros((1, 1)), (0,))[0]),
        sigma,
        TABLE_UNITS,
    )
    own, both = run([0, 2], [1, 4]), run([0, 1, 2], [1, 0, 4])
    assert torch.allclose(own, both[:, [0, 2]], atol=1e-9)
    assert both[0, 1] / both[0, 0] == pytest.approx(np.exp(-(0.5**2) / (2 * 0.6**2)), abs=1e-9)


def test_indexed_basis_is_the_mixture_times_the_masks():
    masks = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.bool)
    sigma = torch.tensor([0.5, 1.5], dtype=torch.float64)
    mixture = [
        [np.exp(-(((j - i) / s) ** 2) / 2) / (2.5066 * s) for j in range(2)] for i, s in enumerate(sigma.numpy())
    ]
    assert np.allclose(indexed_basis(masks, sigma).numpy(), np.array(mixture) @ masks.numpy())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_window_and_spacing_has_a_finite_basis(data):
    dims = data.draw(st.integers(1, 3))
    numbers = lambda of: data.draw(st.lists(of, min_size=dims, max_size=dims))  # noqa: E731
    kernel_size = numbers(st.integers(1, 5))
    shells = kernel_shells(kernel_size, tap_spacing(kernel_size, numbers(st.sampled_from([0.5, 1.0, 1.3, 6.0]))))
    sigma = torch.full((default_num_rings(shells),), 0.6)
    basis = basis_of(shells, sigma)
    assert torch.allclose((torch.as_tensor(shells.counts) * basis**2).sum(-1), torch.ones(len(sigma)))


@pytest.mark.parametrize(("dims", "order"), [(2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3)])
def test_rotations_and_mirrors_mix_an_order_orthogonally(dims, order):
    points = np.random.default_rng(0).normal(size=(50, dims))
    for seed in range(4):
        rotation = ortho_group.rvs(dims, random_state=seed)
        before, after = real_harmonics(points, order), real_harmonics(points @ rotation.T, order)
        mix = np.linalg.lstsq(before.T, after.T, rcond=None)[0]
        assert np.allclose(before.T @ mix, after.T)
        assert np.allclose(mix @ mix.T, np.eye(number_of_components(dims, order)))


def test_order_one_is_the_direction():
    points = np.random.default_rng(0).normal(size=(20, 3))
    direction = np.sqrt(3) * points / np.linalg.norm(points, axis=1, keepdims=True)
    found = real_harmonics(points, 1)
    assert np.allclose(np.sort(np.abs(found), 0), np.sort(np.abs(direction.T), 0))


@pytest.mark.parametrize(("dims", "order"), [(2, 2), (3, 1), (3, 2), (3, 3)])
def test_squares_add_up_to_the_number_of_components(dims, order):
    harmonics = tap_harmonics((5,) * dims, None, order)
    away = np.arange(5**dims) != 5**dims // 2
    assert np.allclose((harmonics**2).sum(0), number_of_components(dims, order) * away)


def test_spacing_gives_physical_angles():
    corner = tap_harmonics((3, 3), (1.0, 3.0), 1)[:, -1]
    assert corner[1] / corner[0] == pytest.approx(3)


@pytest.mark.parametrize(("dims", "order"), [(1, 2), (2, 4), (3, -1)])
def test_orders_that_are_not_there_are_refused(dims, order):
    with pytest.raises(ConfigurationError, match=f"order {order} is impossible in {dims}D"):
        number_of_components(dims, order)
