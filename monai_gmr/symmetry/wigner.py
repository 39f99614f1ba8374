"""Action of orthogonal matrices on the real harmonics of an order: Wigner matrices, in 2D phases; and functions on groups of rotations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from monai_gmr.symmetry.taps import number_of_components, real_harmonics


@lru_cache(maxsize=8)
def harmonic_tensor(spatial_dims: int, order: int) -> np.ndarray:
    """Coefficients of the harmonics of an order as polynomials on the unit sphere, read-only float64 ``(components, d ** order)``.

    ``Y_c(x) = sum(tensor[c] * (x ⊗ ... ⊗ x))``, symmetric in its factors and trace-free; rows are orthogonal and of equal length. They are
    fitted to :func:`~monai_gmr.symmetry.real_harmonics` by least squares on sufficiently many directions.

    Example:
        >>> harmonic_tensor(2, 1).round(3).tolist(), harmonic_tensor(3, 2).shape
        ([[1.414, 0.0], [0.0, 1.414]], (5, 9))
    """
    number_of_components(spatial_dims, order)  # raises for impossible orders
    points = np.random.default_rng(0).standard_normal((20 * (order + 1), spatial_dims))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    powers = np.ones((len(points), 1))
    for _ in range(order):
        powers = (powers[:, :, None] * points[:, None]).reshape(len(points), -1)
    # the solution of least norm is a combination of the powers, so it is symmetric
    tensor = np.linalg.lstsq(powers, real_harmonics(points, order).T, rcond=1e-12)[0].T
    # + 0.0: no negative zeros
    tensor = np.where(np.abs(tensor) < 1e-13, 0.0, tensor) + 0.0
    tensor.setflags(write=False)
    return tensor


def harmonic_rows(spatial_dims: int, order: int) -> np.ndarray:
    """:func:`harmonic_tensor` with rows of unit length.

    Example:
        >>> harmonic_rows(2, 1)
        array([[1., 0.],
               [0., 1.]])
    """
    tensor = harmonic_tensor(spatial_dims, order)
    return tensor / np.linalg.norm(tensor[0])


def harmonic_matrices(matrices: torch.Tensor, order: int, rows: torch.Tensor | None = None) -> torch.Tensor:
    r"""Matrices ``(..., components, components)`` by which orthogonal matrices ``(..., d, d)`` mix the harmonics of an order.

    .. math:: Y(R x) = D(R)\, Y(x), \qquad D(R S) = D(R)\, D(S), \qquad D(R)^\top D(R) = 1

    In 2D these are phases, in 3D real Wigner matrices, also for mirrors. Entries are polynomials in the entries of ``R``.

    Args:
        matrices: orthogonal.
        order: of the harmonics, 0 to 3.
        rows: :func:`harmonic_rows` where the matrices are; default: copied there, for which a GPU waits.

    Example:
        >>> from monai_gmr.symmetry import real_harmonics, rotation_matrix
        >>> R, x = rotation_matrix(3, 40.0, (1, 2, 3)), np.array([[0.3, -1.0, 0.7]])
        >>> D = harmonic_matrices(torch.tensor(R), 2).numpy()
        >>> np.allclose(real_harmonics(x @ R.T, 2), D @ real_harmonics(x, 2))
        True
    """
    # int: in a trace sizes are tensors
    dims = int(matrices.shape[-1])
    count, lead = number_of_components(dims, order), matrices.shape[:-2]
    if order == 0:
        return matrices.new_ones(*lead, 1, 1)
    if rows is None:
        rows = torch.as_tensor(harmonic_rows(dims, order), dtype=matrices.dtype, device=matrices.device)
    # rotate the factors of the polynomial one by one: each time the first, which then becomes the last
    rotated = rows.expand(*lead, *rows.shape)
    for _ in range(order):
        factors = rotated.reshape(*lead, count, dims, -1)
        rotated = torch.einsum("...caf,...ab->...cfb", factors, matrices).flatten(-2)
    return rotated @ rows.t()


def number_of_functions(spatial_dims: int, highest: int, mirrors: bool) -> int:
    """Number of functions of :func:`group_functions`.

    Example:
        >>> number_of_functions(2, 2, False), number_of_functions(3, 1, False), number_of_functions(3, 1, True)
        (5, 10, 20)
    """
    sizes = [number_of_components(spatial_dims, order) for order in range(highest + 1)]
    rotations = sum(n if spatial_dims == 2 else n * n for n in sizes)
    return rotations * (2 if mirrors else 1)


def group_functions(
    matrices: torch.Tensor, highest: int, mirrors: bool, rows: Sequence[torch.Tensor] | None = None
) -> torch.Tensor:
    """Orthonormal functions on the rotations, or with ``mirrors`` on all orthogonal matrices ``(..., d, d)``, ``(..., functions)``.

    In 2D the Fourier series of the angle up to a frequency, in 3D the entries of the Wigner matrices up to an order (Peter-Weyl), with mean
    square 1 over the group; with mirrors each function times 1 and times the determinant. At every element the squares sum to the number of
    functions. As functions of the matrix, they have the period of the rotation.

    Args:
        matrices: orthogonal matrices of the group.
        highest: frequency (2D) or order (3D).
        mirrors: whether the group contains mirrors.
        rows: as in :func:`harmonic_matrices`, for each order from 0.

    Example:
        >>> quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> (group_functions(quarter, 1, mirrors=False) + 0.0).round(decimals=3)
        tensor([1.0000, 0.0000, 1.4140])
    """
    functions = [torch.ones_like(matrices[..., :1, 0])]
    for order in range(1, highest + 1):
        mixing = harmonic_matrices(matrices, order, None if rows is None else rows[order])
        # in 2D the first column of a phase matrix holds its cosine and sine, the second column repeats them
        entries = mixing[..., :1] if matrices.shape[-1] == 2 else mixing
        functions.append(math.sqrt(int(mixing.shape[-1])) * entries.flatten(-2))
    values = torch.cat(functions, -1)
    if mirrors:
        values = torch.cat([values, values * torch.linalg.det(matrices).unsqueeze(-1)], -1)
    return values
