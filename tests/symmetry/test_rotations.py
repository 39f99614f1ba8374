"""Rotations of images by any angle agree with the exact rotations, and respect millimetres."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_gmr.symmetry import (
    angle_views,
    group_views,
    inscribed_ball,
    rotation_matrix,
    transform_grid,
    transform_image,
)


def blob(shape, centre, width, spacing=None):
    """A Gaussian at a physical position, in float64: an image whose rotation has a closed form."""
    step = np.ones(len(shape)) if spacing is None else np.asarray(spacing)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, step)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    return np.exp(-((grid - np.asarray(centre)) ** 2).sum(-1) / (2 * width**2))


@pytest.mark.parametrize("dims", [2, 3])
def test_interpolated_rotations_agree_with_exact_ones(dims):
    x = blob((21,) * dims, (4, 2, 1)[:dims], 2.0)
    nearly = rotation_matrix(dims, 90 - 1e-4)
    exact = transform_grid(x, rotation_matrix(dims, 90))
    assert np.abs(transform_image(x, nearly) - exact).max() < 1e-3


@pytest.mark.parametrize("spacing", [None, (1.0, 2.0), (2.0, 1.0)])
@pytest.mark.parametrize("degrees", [20, 45, 130])
def test_a_blob_lands_where_the_matrix_says_in_millimetres(spacing, degrees):
    shape, centre = (61, 61), np.array([6.0, 9.0])
    matrix = rotation_matrix(2, degrees)
    rotated = transform_image(blob(shape, centre, 4.0, spacing), matrix, order=5, spacing=spacing)
    assert np.abs(rotated - blob(shape, matrix @ centre, 4.0, spacing)).max() < 2e-3


@pytest.mark.parametrize("spacing", [None, (1.0, 2.0)])
@pytest.mark.parametrize("degrees", [0, 30, 90])
@pytest.mark.parametrize("shift", [(0.5, 0.0), (-0.25, 0.75), (2.0, 1.0)])
def test_a_blob_is_rotated_and_then_shifted_in_voxels(spacing, degrees, shift):
    shape, centre = (61, 61), np.array([6.0, 9.0])
    matrix = rotation_matrix(2, degrees)
    moved = transform_image(blob(shape, centre, 4.0, spacing), matrix, order=5, spacing=spacing, shift=shift)
    there = matrix @ centre + np.array(shift) * (1.0 if spacing is None else np.array(spacing))
    assert np.abs(moved - blob(shape, there, 4.0, spacing)).max() < 2e-3


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("shape", [(9,), (8, 11), (5, 6, 7)])
@pytest.mark.parametrize("distance", [0.5, -0.25, 1.0, 2.3])
def test_a_shift_alone_is_that_of_scipy(order, shape, distance):
    x = np.random.default_rng(0).normal(size=(2, *shape))
    shift = np.array([distance, -0.3, 0.0])[: len(shape)]
    expected = np.stack(
        [ndimage.affine_transform(e, np.eye(len(shape)), -shift, order=order, mode="nearest") for e in x]
    )
    assert np.abs(transform_image(x, np.eye(len(shape)), order, shift=shift) - expected).max() < 1e-7


@pytest.mark.parametrize("shift", [None, (0.5, 0.0)])
def test_images_of_a_precision_that_numpy_has_not(shift):
    x = torch.rand(1, 9, 9).bfloat16()
    moved = transform_image(x, rotation_matrix(2, 30 if shift is None else 0), 1, shift=shift)
    assert moved.dtype == torch.bfloat16
    expected = transform_image(x.float(), rotation_matrix(2, 30 if shift is None else 0), 1, shift=shift)
    assert torch.equal(moved, expected.bfloat16())


def test_a_ball_is_shifted_in_voxels():
    spacing = (1.0, 2.0)
    ball = inscribed_ball((25, 15), spacing)
    assert np.array_equal(inscribed_ball((25, 15), spacing, (0, 0)), ball)
    moved = inscribed_ball((25, 15), spacing, (0, 1))
    assert np.array_equal(moved[:, 2:], ball[:, 1:-1])
    assert inscribed_ball((5,), None, (0.5,)).tolist() == [False, True, True, True, True]


def test_axes_of_unlike_spacing_are_resampled_not_exchanged():
    rotated = transform_image(np.zeros((6, 7, 8)), rotation_matrix(3, 90, 0), 1, (1, 1, 3))
    assert rotated.shape == (6, 7, 8)
    assert any(view.angle == 90 for view in angle_views(3, 30, (1.0, 1.0, 3.0)))


def test_labels_stay_integers_and_tensors_stay_tensors():
    label = torch.zeros(1, 9, 9, dtype=torch.uint8)
    label[0, 2:7, 2:5] = 3
    rotated = transform_image(label, rotation_matrix(2, 30), order=0)
    assert rotated.dtype == torch.uint8
    assert set(rotated.unique().tolist()) <= {0, 3}


def test_no_rotation_leaves_the_ball():
    mask = inscribed_ball((15, 15, 15))
    shell = transform_image(mask.astype(float), rotation_matrix(3, 37, (1, 2, 3)), order=1)
    assert abs(shell.sum() - mask.sum()) / mask.sum() < 0.02


def test_views_hold_no_grid_symmetry_twice():
    assert len(group_views(3, (1.0, 1.0, 3.0))) == 16
    names = [view.name for view in group_views(3) + angle_views(3, 30)]
    assert len(set(names)) == len(names) == 48 + 3 * 8
