"""Rotations of images by any angle about their centre, and the part of an image that every rotation keeps inside the frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import check_choice, describe, voxel_spacing
from monai_gmr.symmetry.point_groups import Array, is_grid_symmetry, transform_grid
from monai_gmr.symmetry.taps import tap_coordinates
from monai_gmr.utils import ConfigurationError


def _is_matrix(value: Any) -> bool:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return False
    return array.ndim == 2 and array.shape[0] == array.shape[1] and array.dtype.kind in "biuf"


Matrix = Annotated[
    Sequence[Sequence[float]] | np.ndarray, _is_matrix, "an orthogonal matrix of numbers, of shape (d, d)"
]
Axis = Annotated[int | str | Sequence[float], "'x', 'y', 'z', 0, 1, 2 or three finite numbers"]


def axis_index(axis: int | str, spatial_dims: int = 3) -> int:
    """Index of an array axis, given as index or letter: "x", "y" and "z" are the axes 0, 1 and 2 of the spatial shape.

    Example:
        >>> axis_index("y"), axis_index(2)
        (1, 2)
    """
    letters = "xyz"[:spatial_dims]
    if isinstance(axis, str) and len(axis) == 1 and axis.lower() in letters:
        return letters.index(axis.lower())
    if isinstance(axis, (int, np.integer)) and not isinstance(axis, bool) and 0 <= axis < spatial_dims:
        return int(axis)
    raise ConfigurationError(
        f"axis={axis!r} is unknown in {spatial_dims}D: use one of {', '.join(map(repr, letters))} or 0 to {spatial_dims - 1}."
    )


def axis_direction(axis: Axis) -> np.ndarray:
    """Unit vector, shape ``(3,)``, along an array axis (:func:`axis_index`) or along a vector of three numbers in array axes, in
    millimetres.

    Raises:
        ConfigurationError: if there is no such axis, or the vector has no direction.

    Example:
        >>> axis_direction("z").tolist(), axis_direction((0, 3, 4)).tolist()
        ([0.0, 0.0, 1.0], [0.0, 0.6, 0.8])
    """
    if isinstance(axis, (int, np.integer, str)):
        return np.eye(3)[axis_index(axis)]
    try:
        vector = np.asarray(axis, float)
    except (TypeError, ValueError):
        vector = np.zeros(0)
    length = np.linalg.norm(vector)
    if vector.shape != (3,) or not np.isfinite(length) or length == 0:
        raise ConfigurationError(
            f"axis={axis!r} is not a direction: give 'x', 'y', 'z', 0, 1, 2 or three finite numbers that are not all zero."
        )
    return vector / length


@checked_arguments
def rotation_matrix(spatial_dims: int, degrees: float, axis: Axis = 0) -> np.ndarray:
    """Rotation matrix for an angle, in 3D about an axis (:func:`axis_direction`), in 2D in the plane.

    Positive degrees are counterclockwise looking against the axis, in 2D from the first axis towards the second.

    Raises:
        ConfigurationError: if there are no rotations in ``spatial_dims``, or ``axis`` is not a direction.

    Example:
        >>> rotation_matrix(2, 90).round(6)
        array([[ 0., -1.],
               [ 1.,  0.]])
    """
    if spatial_dims not in (2, 3):
        raise ConfigurationError(f"spatial_dims={spatial_dims} has no rotations: use 2 or 3.")
    if not np.isfinite(degrees):
        raise ConfigurationError(f"degrees={degrees} is not an angle: give a finite number.")
    if spatial_dims == 2:
        return Rotation.from_euler("z", degrees, degrees=True).as_matrix()[:2, :2]
    return Rotation.from_rotvec(np.deg2rad(degrees) * axis_direction(axis)).as_matrix()


def inscribed_ball(
    shape: Sequence[int], spacing: Sequence[float] | None = None, shift: Sequence[float] | None = None
) -> np.ndarray:
    """Mask of the largest centred disc or ball (in millimetres) inside a grid of ``shape``, which no rotation moves out of the image. It is
    moved by ``shift`` in voxels, one per axis; default: none.

    Example:
        >>> inscribed_ball((3, 3)).astype(int)
        array([[0, 1, 0],
               [1, 1, 1],
               [0, 1, 0]])
    """
    steps = voxel_spacing(spacing, len(shape))
    radius = min((n - 1) / 2 * step for n, step in zip(shape, steps))
    centre = 0.0 if shift is None else np.multiply(shift, steps)
    return ((tap_coordinates(shape, spacing) - centre) ** 2).sum(-1) <= radius**2 + 1e-9


@checked_arguments
def transform_image(
    x: Array,
    matrix: Matrix,
    order: int = 3,
    spacing: Sequence[float] | None = None,
    shift: Sequence[float] | np.ndarray | None = None,
) -> Array:
    """Array ``(..., *spatial)`` with its last ``d`` axes transformed about their centre by any orthogonal matrix ``(d, d)``.

    Signed permutations that keep the spacing move voxels (:func:`~monai_gmr.symmetry.transform_grid`); for every other matrix
    ``scipy.ndimage.affine_transform`` samples the array and keeps the shape. A following shift is sampled with the same splines, axis by
    axis if voxels were moved. Values from outside are those of the nearest voxel of the border.

    Args:
        x: the array or tensor.
        matrix: in millimetres if there is a ``spacing`` (voxel size in millimetres, one per axis; default 1).
        order: order of the spline, 0 (nearest, for labels) to 5.
        shift: shift of the transformed image in voxels, one per axis; default: none.

    Example:
        >>> x = torch.zeros(1, 5, 5); x[0, 2, 4] = 1
        >>> transform_image(x, rotation_matrix(2, 90)).nonzero().tolist()
        [[0, 0, 2]]
        >>> transform_image(x, rotation_matrix(2, 45), order=1).shape
        torch.Size([1, 5, 5])
        >>> transform_image(torch.tensor([0.0, 4.0, 0.0, 0.0]), np.eye(1), order=1, shift=(0.5,))
        tensor([0., 2., 2., 0.])
    """
    matrix = np.asarray(matrix, float)
    dims = matrix.shape[0]
    step = np.array(voxel_spacing(spacing, dims))
    offset = np.zeros(dims) if shift is None else np.asarray(shift, float)
    if x.ndim < dims or offset.shape != (dims,):
        raise ConfigurationError(
            f"an array of {x.ndim} axes, shift={describe(shift)} and a matrix for {dims} axes do not fit: give the same number of each."
        )
    check_choice("order", order, tuple(range(6)))
    on_grid = is_grid_symmetry(matrix, step.tolist())
    if on_grid and not offset.any():
        return transform_grid(x, matrix)
    # numpy has no bfloat16
    plain = x.detach().cpu() if isinstance(x, torch.Tensor) else x
    array = plain.float().numpy() if isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16 else np.asarray(plain)
    if on_grid:
        moved = _shift(transform_grid(array.astype(float), matrix), offset, order)
    else:
        pull = matrix.T / step[:, None] * step
        work = array.astype(float).reshape(-1, *array.shape[array.ndim - dims :])
        centre = (np.array(work.shape[1:]) - 1) / 2
        options: dict = {"offset": centre - pull @ (centre + offset), "order": order, "mode": "nearest"}
        moved = np.stack([ndimage.affine_transform(each, pull, **options) for each in work]).reshape(array.shape)
    moved = (np.round(moved) if np.issubdtype(array.dtype, np.integer) else moved).astype(array.dtype)
    return torch.as_tensor(moved, dtype=x.dtype, device=x.device) if isinstance(x, torch.Tensor) else moved


def _shift(array: np.ndarray, offset: np.ndarray, order: int) -> np.ndarray:
    """Shift the last axes by an offset in voxels, one after the other, by ``scipy.ndimage.shift``: a spline over all axes at once needs
    ``(order + 1) ** d`` voxels per sample."""
    for axis, distance in enumerate(offset, array.ndim - len(offset)):
        if distance:
            rows = np.moveaxis(array, axis, -1)
            moved = ndimage.shift(rows.reshape(-1, rows.shape[-1]), (0, distance), order=order, mode="nearest")
            array = np.moveaxis(moved.reshape(rows.shape), -1, axis)
    return array
