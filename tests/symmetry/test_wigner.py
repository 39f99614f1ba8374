"""Matrices that mix harmonics agree with rotated points, multiply like rotations, and give orthonormal functions on the group."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from monai_gmr.symmetry import (
    group_functions,
    harmonic_matrices,
    harmonic_tensor,
    number_of_functions,
    real_harmonics,
    rotation_matrix,
)
from monai_gmr.utils import ConfigurationError

CASES = [(dims, order) for dims in (2, 3) for order in range(4)]


def orthogonal(dims, count, seed=0):
    """Rotations and mirror images, in turn."""
    angles = np.random.default_rng(seed).uniform(0, 360, count)
    rotations = Rotation.random(count, random_state=seed).as_matrix()
    if dims == 2:
        rotations = np.stack([rotation_matrix(2, angle) for angle in angles])
    rotations[1::2, 0] *= -1
    return torch.tensor(rotations)


@pytest.mark.parametrize(("dims", "order"), CASES)
def test_they_mix_the_harmonics_of_rotated_and_mirrored_points(dims, order):
    points = np.random.default_rng(1).standard_normal((11, dims))
    for matrix in orthogonal(dims, 6):
        mixing = harmonic_matrices(matrix, order).numpy()
        expected = real_harmonics(points @ matrix.numpy().T, order)
        np.testing.assert_allclose(mixing @ real_harmonics(points, order), expected, atol=1e-12)


@pytest.mark.parametrize(("dims", "order"), CASES)
def test_they_are_orthogonal_and_multiply_as_the_elements_do(dims, order):
    first, second = orthogonal(dims, 6, 1), orthogonal(dims, 6, 2).flip(0)
    product = harmonic_matrices(first @ second, order)
    torch.testing.assert_close(
        harmonic_matrices(first, order) @ harmonic_matrices(second, order), product, atol=1e-12, rtol=0
    )
    torch.testing.assert_close(product.mT @ product, torch.eye(product.shape[-1]).double().expand_as(product))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_in_the_plane_they_are_phases(order):
    angle = 0.7
    mixing = harmonic_matrices(torch.tensor(rotation_matrix(2, math.degrees(angle))), order)
    c, s = math.cos(order * angle), math.sin(order * angle)
    torch.testing.assert_close(mixing, torch.tensor([[c, -s], [s, c]], dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_trace_is_the_character_of_the_rotation(order):
    """``sin((2 l + 1) w / 2) / sin(w / 2)``, for any axis."""
    angle = 1.1
    matrix = torch.tensor(rotation_matrix(3, math.degrees(angle), (1, 2, -2)))
    expected = math.sin((2 * order + 1) * angle / 2) / math.sin(angle / 2)
    assert float(harmonic_matrices(matrix, order).trace()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("dims", [2, 3])
def test_the_polynomials_are_symmetric_and_without_trace(dims, order):
    tensor = torch.tensor(np.array(harmonic_tensor(dims, order)))
    if order > 1:
        cube = tensor.unflatten(1, (dims,) * order)
        torch.testing.assert_close(cube, cube.transpose(1, order), atol=1e-12, rtol=0)
        assert float(cube.diagonal(dim1=1, dim2=2).sum(-1).abs().max()) < 1e-12
    gram = tensor @ tensor.t()
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(len(gram)).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("mirrors", [False, True])
@pytest.mark.parametrize(("dims", "highest"), [(2, 0), (2, 3), (3, 1), (3, 2)])
def test_functions_on_the_group_are_orthonormal(dims, highest, mirrors):
    if dims == 2:
        # a trapezoidal rule is exact for so low frequencies
        rotations = torch.tensor(np.stack([rotation_matrix(2, angle) for angle in np.arange(16) * 22.5]))
    else:
        rotations = torch.tensor(Rotation.random(60000, random_state=0).as_matrix())
    mirror = torch.diag(torch.tensor([-1.0] + [1.0] * (dims - 1), dtype=torch.float64))
    elements = torch.cat([rotations, rotations @ mirror]) if mirrors else rotations
    values = group_functions(elements, highest, mirrors)
    count = number_of_functions(dims, highest, mirrors)
    assert values.shape == (len(elements), count)
    gram = values.t() @ values / len(elements)
    # in 3D the mean is over random rotations: four standard deviations or so of the largest functions
    torch.testing.assert_close(gram, torch.eye(count).double(), atol=1e-12 if dims == 2 else 0.06, rtol=0)
    torch.testing.assert_close((values**2).sum(-1), torch.full((len(elements),), float(count)).double())


def test_gradients_are_those_of_finite_differences():
    matrix = orthogonal(3, 1)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda m: harmonic_matrices(m, 3), (matrix,))
    assert torch.autograd.gradcheck(lambda m: group_functions(m, 2, True), (matrix,))


def test_an_order_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationError, match="order 4 is impossible in 3D: use 0 to 3"):
        harmonic_matrices(torch.eye(3), 4)
