"""Harmonics: closed forms, and every turn mixes an order by an orthogonal matrix."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from monai_gmr.symmetry import number_of_components, real_harmonics, tap_harmonics
from monai_gmr.utils import ConfigurationError


@pytest.mark.parametrize(("dims", "order"), [(2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3)])
def test_turns_and_mirrors_mix_an_order_orthogonally(dims, order):
    points = np.random.default_rng(0).normal(size=(50, dims))
    for seed in range(4):
        turn = ortho_group.rvs(dims, random_state=seed)
        before, after = real_harmonics(points, order), real_harmonics(points @ turn.T, order)
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
