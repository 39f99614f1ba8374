"""Representations of the harmonics, and the combinations that a group leaves unchanged."""

import numpy as np
import pytest
import torch

from monai_gmr.symmetry import (
    harmonic_matrices,
    is_mirror,
    kept_group,
    kept_vectors,
    named_group,
    point_group,
    real_harmonics,
    relaxation_tables,
    rotation_matrix,
)


def harmonic_representation(element, order):
    return harmonic_matrices(torch.as_tensor(np.asarray(element, float)), order).numpy()


ORDERS = {1: (0, 1), 2: (0, 1, 2, 3), 3: (0, 1, 2, 3)}


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_representations_are_orthogonal_and_multiply_as_the_elements_do(dims):
    rng = np.random.default_rng(1)
    group = point_group(dims)
    for order in ORDERS[dims]:
        a, b = (group[index] for index in rng.integers(len(group), size=2))
        first, second = harmonic_representation(a, order), harmonic_representation(b, order)
        assert np.allclose(first @ first.T, np.eye(len(first)), atol=1e-12)
        assert np.allclose(first @ second, harmonic_representation(a @ b, order), atol=1e-12)
        points = rng.standard_normal((7, dims))
        assert np.allclose(real_harmonics(points @ a.T, order), first @ real_harmonics(points, order), atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_rotation_of_the_plane_rotates_by_order_times_the_angle(order):
    """The closed form, and with it the sign of its determinant: the cross product of two responses keeps its sign."""
    angle = np.deg2rad(37 * order)
    expected = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert np.allclose(harmonic_representation(rotation_matrix(2, 37), order), expected)
    mirrored = harmonic_representation(np.diag([1, -1]), order)
    assert np.allclose(mirrored, np.diag([1, -1]))


def test_the_trace_of_a_rotation_in_space_is_that_of_its_angle():
    """The character of SO(3), sin((l + 1/2) a) / sin(a / 2)."""
    for order in (1, 2, 3):
        for angle in (20.0, 90.0, 144.0):
            half = np.deg2rad(angle) / 2
            matrix = rotation_matrix(3, angle, (1, 2, -1))
            expected = np.sin((2 * order + 1) * half) / np.sin(half)
            assert np.trace(harmonic_representation(matrix, order)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("dims", "name", "counts"),
    [
        (1, "1", {1: 1}),
        (1, "m", {1: 0}),
        (2, "1", {1: 2, 2: 2, 3: 2}),
        (2, "m", {1: 1, 2: 1, 3: 1}),
        (2, "2", {1: 0, 2: 2, 3: 0}),
        (2, "2mm", {1: 0, 2: 1, 3: 0}),
        (2, "4", {1: 0, 2: 0, 3: 0}),
        (3, "1", {1: 3, 2: 5, 3: 7}),
        (3, "-1", {1: 0, 2: 5, 3: 0}),
        (3, "4/mmm", {1: 0, 2: 1, 3: 0}),
        (3, "4mm", {1: 1, 2: 1, 3: 1}),
        (3, "mm2", {1: 1, 2: 2, 3: 2}),
        (3, "mmm", {1: 0, 2: 2, 3: 0}),
        (3, "432", {1: 0, 2: 0, 3: 0}),
        (3, "23", {1: 0, 2: 0, 3: 1}),
        (3, "-43m", {1: 0, 2: 0, 3: 1}),
        (3, "m-3m", {1: 0, 2: 0, 3: 0}),
    ],
)
def test_counts_are_those_of_the_characters(dims, name, counts):
    """Number of free tensor components of a rank under a group, from crystallographic tables."""
    elements = named_group(name, dims)
    for order, count in counts.items():
        vectors = kept_vectors(order, kept_group(name, dims))
        characters = [np.trace(harmonic_representation(element, order)) for element in elements]
        assert vectors.shape[1] == count == round(np.mean(characters))
        assert np.allclose(vectors.T @ vectors, np.eye(count), atol=1e-12)
        for element in elements:
            assert np.allclose(harmonic_representation(element, order) @ vectors, vectors, atol=1e-12)


def test_kept_groups_are_read():
    assert [kept_group("all", dims).order for dims in (1, 2, 3)] == [2, 8, 48]
    assert [kept_group("rotations", dims).order for dims in (1, 2, 3)] == [1, 4, 24]
    assert not any(is_mirror(element) for element in kept_group("rotations", 3).elements)
    assert kept_group(kept_group("4", 2), 2) == kept_group("4", 2)


def test_tables_say_which_combination_belongs_to_which_channel():
    vectors, owners = relaxation_tables((1, 0, 2), (2, 3, 1), kept_group("mm2", 3))
    assert vectors.shape == (2 * 1 + 2, 2 * 3 + 5)
    assert owners.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4, [0, 0, 1, 1]]
    assert np.allclose(vectors @ vectors.T, np.eye(4))
    assert np.count_nonzero(vectors[:2, 6:]) == np.count_nonzero(vectors[2:, :6]) == 0


def test_vectors_are_computed_once_an_order_and_group():
    """They need a mean over 48 elements, and every layer of a net uses them."""
    kept_vectors.cache_clear()
    group = kept_group("all", 3)
    for channels in ((8, 4, 4), (32, 16, 16)):
        relaxation_tables((0, 1, 2), channels, group)
    assert kept_vectors.cache_info().misses == 2
