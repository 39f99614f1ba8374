"""The grid's point groups are groups of the known orders, whose products act on arrays like their elements one by one."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_gmr.symmetry import generate_group, is_grid_symmetry, point_group, transform_grid
from monai_gmr.utils import ConfigurationError


def every_signed_permutation(dims):
    """Independent reference: all permutation matrices with all signs, by enumeration."""
    eye = np.eye(dims, dtype=int)
    for order in itertools.permutations(range(dims)):
        for signs in itertools.product((1, -1), repeat=dims):
            yield np.array(signs)[:, None] * eye[list(order)]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_full_group_is_every_signed_permutation(dims):
    expected = {m.tobytes() for m in every_signed_permutation(dims)}
    assert {m.astype(int).tobytes() for m in point_group(dims)} == expected
    assert np.array_equal(point_group(dims)[0], np.eye(dims))


@pytest.mark.parametrize(
    ("dims", "labels", "reflections", "order"),
    [
        (2, None, False, 4),
        (2, (1, 2), True, 4),
        (3, None, False, 24),
        (3, (1, 1, 3), True, 16),
        (3, (1, 2, 3), True, 8),
    ],
)
def test_orders_of_the_subgroups(dims, labels, reflections, order):
    group = point_group(dims, labels, reflections)
    assert len(group) == order
    members = {m.tobytes() for m in group}
    assert all((a @ b).tobytes() in members for a in group for b in group)


def test_generators_of_c4_give_its_four_rotations():
    quarter = np.array([[0, -1], [1, 0]])
    expected = [np.linalg.matrix_power(quarter, n) for n in range(4)]
    assert all(any(np.array_equal(e, g) for g in generate_group([quarter])) for e in expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.data())
def test_acting_twice_is_acting_by_the_product(dims, data):
    group = point_group(dims)
    a, b = (group[data.draw(st.integers(0, len(group) - 1))] for _ in range(2))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=dims, max_size=dims))
    x = torch.arange(2 * np.prod(shape)).reshape(2, *shape)
    twice = transform_grid(transform_grid(x, a), b)
    assert torch.equal(twice, transform_grid(x, b @ a))
    assert np.array_equal(transform_grid(x.numpy(), a), transform_grid(x, a).numpy())


def test_known_rotations():
    x = torch.arange(6).reshape(2, 3)
    assert torch.equal(transform_grid(x, np.diag([1, -1])), x.flip(1))
    assert torch.equal(transform_grid(x, np.array([[0, 1], [1, 0]])), x.T)


def test_only_signed_permutations_are_grid_symmetries():
    assert is_grid_symmetry(np.diag([1, -1, 1]))
    assert not is_grid_symmetry(np.array([[1, 1], [0, 1]]))


def test_labels_of_the_wrong_number_are_refused():
    with pytest.raises(ConfigurationError, match="one for each of the 3 axes"):
        point_group(3, (1, 2))
