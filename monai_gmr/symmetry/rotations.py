"""Arbitrary rotations of images about their centre, and the part of an image that every rotation keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from monai_gmr.symmetry.point_groups import Array, is_grid_symmetry, transform_grid
from monai_gmr.utils import ConfigurationError


def rotation_matrix(spatial_dims: int, degrees: float, axis: int | Sequence[float] = 0) -> np.ndarray:
    """The rotation by an angle, in 3D about an axis, in 2D in the plane.

    Args:
        spatial_dims: 2 or 3.
        degrees: angle in degrees.
        axis: in 3D the index of an array axis, or a direction; not used in 2D.

    Returns:
        orthogonal matrix of shape ``(spatial_dims, spatial_dims)``.

    Example:
        >>> rotation_matrix(2, 90).round(6)
        array([[ 0., -1.],
               [ 1.,  0.]])
    """
    if spatial_dims not in (2, 3):
        raise ConfigurationError(f"spatial_dims={spatial_dims} has no rotations: use 2 or 3.")
    if spatial_dims == 2:
        return Rotation.from_euler("z", degrees, degrees=True).as_matrix()[:2, :2]
    direction = np.eye(3)[axis] if isinstance(axis, int) else np.asarray(axis, float) / np.linalg.norm(axis)
    return Rotation.from_rotvec(np.deg2rad(degrees) * direction).as_matrix()


def inscribed_ball(shape: Sequence[int], spacing: Sequence[float] | None = None) -> np.ndarray:
    """Mask of the largest centred disc or ball inside a grid: what no rotation turns out of the image.

    Args:
        shape: spatial shape in voxels.
        spacing: voxel size in millimetres, one an axis; default 1.

    Returns:
        boolean array of shape ``shape``.

    Example:
        >>> inscribed_ball((3, 3)).astype(int)
        array([[0, 1, 0],
               [1, 1, 1],
               [0, 1, 0]])
    """
    step = np.ones(len(shape)) if spacing is None else np.asarray(spacing, float)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, step)]
    squared = sum(a**2 for a in np.meshgrid(*axes, indexing="ij"))
    radius = min((n - 1) / 2 * s for n, s in zip(shape, step))
    return np.asarray(squared <= radius**2 + 1e-9)


def transform_image(x: Array, matrix: np.ndarray, order: int = 3, spacing: Sequence[float] | None = None) -> Array:
    """Turn the last ``d`` axes about their centre by any orthogonal matrix.

    Signed permutations that keep the spacing move voxels (:func:`~monai_gmr.symmetry.transform_grid`, no interpolation, axes and
    sizes are permuted); every other matrix is sampled by ``scipy.ndimage.affine_transform``, the shape stays and what comes from outside is
    the nearest voxel of the border.

    Args:
        x: array or tensor of shape ``(..., *spatial)``.
        matrix: orthogonal matrix of shape ``(d, d)``, in millimetres if there is a ``spacing``.
        order: order of the spline, 0 (nearest, for labels) to 5.
        spacing: voxel size in millimetres, one an axis; default 1.

    Returns:
        array of the same kind and dtype.

    Example:
        >>> x = torch.zeros(1, 5, 5); x[0, 2, 4] = 1
        >>> transform_image(x, rotation_matrix(2, 90)).nonzero().tolist()
        [[0, 0, 2]]
        >>> transform_image(x, rotation_matrix(2, 45), order=1).shape
        torch.Size([1, 5, 5])
    """
    matrix = np.asarray(matrix, float)
    dims = matrix.shape[0]
    step = np.ones(dims) if spacing is None else np.asarray(spacing, float)
    if is_grid_symmetry(matrix, step.tolist()):
        return transform_grid(x, matrix)
    pull = (matrix.T / step[:, None]) * step[None, :]
    array = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x
    work = array.astype(float).reshape(-1, *array.shape[array.ndim - dims :])
    centre = (np.array(work.shape[1:]) - 1) / 2
    offset = centre - pull @ centre
    turned = np.stack(
        [ndimage.affine_transform(channel, pull, offset, order=order, mode="nearest") for channel in work]
    )
    if np.issubdtype(array.dtype, np.integer):
        turned = np.round(turned)
    turned = turned.reshape(array.shape).astype(array.dtype)
    return torch.as_tensor(turned, device=x.device) if isinstance(x, torch.Tensor) else turned
