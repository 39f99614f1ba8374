"""Rotations of images on their device and with gradients: exact for symmetries of the grid, else interpolated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import voxel_spacing
from monai_gmr.ops.autocast import without_autocast
from monai_gmr.symmetry import is_grid_symmetry, transform_grid
from monai_gmr.symmetry.rotations import Matrix
from monai_gmr.utils import ConfigurationError


@checked_arguments
def rotate_image(x: torch.Tensor, matrix: Matrix, spacing: Sequence[float] | None = None) -> torch.Tensor:
    """Rotates or mirrors the last ``d`` axes about their centre by any orthogonal matrix, like :func:`~monai_gmr.symmetry.transform_image`
    with ``order=1``, but differentiable and on the tensor's device.

    Args:
        x: tensor of shape ``(batch, ..., *spatial)``.
        matrix: orthogonal matrix of shape ``(d, d)``, in millimetres if there is a ``spacing``.
        spacing: voxel size in millimetres, one per axis; default 1.

    Returns:
        for a symmetry of the grid the permuted and mirrored tensor; else a linearly interpolated tensor of the same shape, where values
        from outside are those of the nearest voxel of the border. Integers become float32.

    Example:
        >>> x = torch.zeros(1, 1, 5, 5); x[0, 0, 2, 4] = 1
        >>> rotate_image(x, np.array([[0, -1], [1, 0]])).nonzero().tolist()
        [[0, 0, 0, 2]]
        >>> c = 0.5 ** 0.5
        >>> rotate_image(x, np.array([[c, -c], [c, c]])).shape
        torch.Size([1, 1, 5, 5])
    """
    matrix = np.asarray(matrix, float)
    return transform_grid(x, matrix) if is_grid_symmetry(matrix, spacing) else interpolate_image(x, matrix, spacing)


def interpolate_image(x: torch.Tensor, matrix: np.ndarray, spacing: Sequence[float] | None = None) -> torch.Tensor:
    """:func:`rotate_image` by interpolation for any matrix; keeps the shape."""
    dims = matrix.shape[0]
    step = np.array(voxel_spacing(spacing, dims))
    if x.dim() < dims + 1:
        raise ConfigurationError(
            f"an image of shape {tuple(x.shape)} has no batch and {dims} axes: give (batch, ..., *spatial)."
        )
    if dims not in (2, 3):
        raise ConfigurationError(f"An image of {dims} axes has no rotations by an angle: use its mirror image.")
    size = x.shape[-dims:]
    work = x.reshape(x.shape[0], -1, *size)
    # half precision would misplace voxels by a hundredth of the image
    work = work if work.dtype in (torch.float32, torch.float64) else work.float()
    pull = (matrix.T / step[:, None]) * step[None, :]
    centre = (np.array(size) - 1) / 2
    points = np.stack(np.meshgrid(*(np.arange(n) - c for n, c in zip(size, centre)), indexing="ij"), -1) @ pull.T
    # grid_sample counts from -1 to 1 between the outermost voxels, the last axis first
    points = (points / np.maximum(centre, 0.5))[..., ::-1].copy()
    grid = torch.as_tensor(points, dtype=work.dtype, device=work.device).expand(work.shape[0], *points.shape)
    with without_autocast(work):
        rotated = F.grid_sample(work, grid, mode="bilinear", padding_mode="border", align_corners=True)
    rotated = rotated.reshape(x.shape)
    return rotated.to(x.dtype) if x.is_floating_point() else rotated
