"""The symmetries of the voxel grid as generated signed permutation matrices, and their action on an array."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch

from monai_gmr.arguments import check_choice, voxel_spacing
from monai_gmr.utils import ConfigurationError

Array = TypeVar("Array", np.ndarray, torch.Tensor)


@lru_cache(maxsize=64)
def _closure(generators: tuple[tuple[tuple[int, ...], ...], ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """All products of the generators, the identity first, in the order of their length."""
    dims = len(generators[0])
    identity = tuple(tuple(int(i == j) for j in range(dims)) for i in range(dims))
    elements = [identity]
    for element in elements:  # the list grows in this loop
        for generator in generators:
            product = tuple(map(tuple, (np.array(generator) @ np.array(element)).tolist()))
            if product not in elements:
                elements.append(product)
    return tuple(elements)


def generate_group(generators: Sequence[np.ndarray]) -> np.ndarray:
    """The group that signed permutation matrices generate, shape ``(order, d, d)``, the identity first.

    Example:
        >>> len(generate_group([np.array([[0, -1], [1, 0]])]))
        4
    """
    return np.array(_closure(tuple(tuple(map(tuple, np.asarray(g).astype(int).tolist())) for g in generators)))


def point_group(spatial_dims: int, axis_labels: Sequence[object] | None = None, reflections: bool = True) -> np.ndarray:
    """The rotations and reflections that map the voxel grid onto itself, shape ``(order, d, d)``, the identity first.

    The full group is D4 (8 elements) in 2D and Oh (48) in 3D; 1D has the identity and the mirror image. ``axis_labels`` has one label per
    axis, such as its spacing in millimetres: only axes with equal labels are exchanged (default: all); another number of labels raises
    :class:`~monai_gmr.utils.ConfigurationError`. Without ``reflections``, elements of determinant -1 are left out.

    Example:
        >>> [len(point_group(d)) for d in (1, 2, 3)]
        [2, 8, 48]
        >>> len(point_group(3, axis_labels=(1.0, 1.0, 3.0))), len(point_group(3, reflections=False))
        (16, 24)
    """
    check_choice("spatial_dims", spatial_dims, (1, 2, 3))
    labels = list(axis_labels) if axis_labels is not None else [0] * spatial_dims
    if len(labels) != spatial_dims:
        raise ConfigurationError(
            f"axis_labels has {len(labels)} entries: give one for each of the {spatial_dims} axes."
        )
    axes, eye = range(spatial_dims), np.eye(spatial_dims, dtype=int)
    generators = []
    for axis in axes:
        generators.append(np.diag([-1 if each == axis else 1 for each in axes]))
        for other in axes[axis + 1 :]:
            if labels[axis] == labels[other]:
                generators.append(eye[[other if each == axis else axis if each == other else each for each in axes]])
    group = generate_group(generators)
    return group if reflections else group[np.round(np.linalg.det(group)) > 0]


def is_mirror(matrix: np.ndarray) -> bool:
    """Whether an orthogonal matrix mirrors.

    Example:
        >>> is_mirror(np.diag([1, -1])), is_mirror(np.diag([-1, -1]))
        (True, False)
    """
    return bool(np.linalg.det(np.asarray(matrix, float)) < 0)


def is_grid_symmetry(matrix: np.ndarray, spacing: Sequence[float] | None = None) -> bool:
    """Whether an orthogonal matrix ``(d, d)`` is a signed permutation that keeps the spacing (in millimetres), so that it moves voxels onto
    voxels.

    Example:
        >>> quarter = np.array([[0, -1], [1, 0]])
        >>> is_grid_symmetry(quarter), is_grid_symmetry(quarter, (1, 3)), is_grid_symmetry(np.array([[0.8, -0.6], [0.6, 0.8]]))
        (True, False, False)
    """
    rounded = np.abs(np.round(matrix))
    step = np.array(voxel_spacing(spacing, len(matrix)))
    permutes = np.allclose(np.abs(matrix), rounded, atol=1e-9) and (rounded.sum(0) == 1).all()
    return bool(permutes and np.allclose(rounded @ step, step))


def transform_grid(x: Array, element: np.ndarray) -> Array:
    """Copy of an array ``(..., *spatial)`` with its last ``d`` axes transformed about their centre by a signed permutation matrix
    ``(d, d)``.

    The transformation is exact, ``y[p] = x[g^-1 p]``; sizes are permuted with the axes.

    Example:
        >>> x = torch.arange(6).reshape(2, 3)
        >>> transform_grid(x, np.array([[0, -1], [1, 0]]))
        tensor([[2, 5],
                [1, 4],
                [0, 3]])
    """
    element = np.round(np.asarray(element)).astype(int)
    lead: int = x.ndim - len(element)
    order = [*range(lead), *(lead + int(np.flatnonzero(row)[0]) for row in element)]
    flipped = [lead + axis for axis, row in enumerate(element) if row.min() < 0]
    if isinstance(x, torch.Tensor):
        moved = x.permute(order)
        # flipping copies, exchanging axes does not
        return torch.flip(moved, flipped) if flipped else moved.clone()
    return np.flip(np.transpose(x, order), tuple(flipped)).copy()
