"""Sets of views: the ways in which an image is turned to see whether an answer turns with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from monai_gmr.symmetry.point_groups import is_grid_symmetry, point_group
from monai_gmr.symmetry.rotations import rotation_matrix


class View(NamedTuple):
    """One way to turn an image: ``name``, ``family`` ("upright", "group" or "angles"), ``angle`` in degrees
    (``None`` for a group element), orthogonal ``matrix`` of shape ``(d, d)``."""

    name: str
    family: str
    angle: float | None
    matrix: np.ndarray


def group_views(spatial_dims: int, spacing: Sequence[float] | None = None) -> list[View]:
    """Every element of the grid's point group, the upright image first.

    Args:
        spatial_dims: 2 or 3.
        spacing: voxel size in millimetres; axes of unlike spacing are not exchanged.

    Example:
        >>> [len(group_views(d)) for d in (2, 3)]
        [8, 48]
        >>> group_views(2)[0].family, group_views(2)[1].family
        ('upright', 'group')
    """
    elements = point_group(spatial_dims, spacing)
    return [View("upright", "upright", 0.0, elements[0])] + [
        View(f"element {i}", "group", None, element) for i, element in enumerate(elements[1:], 1)
    ]


def angle_views(spatial_dims: int, step: float, spacing: Sequence[float] | None = None) -> list[View]:
    """Rotations every ``step`` degrees, in 3D about each array axis; those that the grid's group holds are left out.

    Args:
        spatial_dims: 2 or 3.
        step: degrees between views.
        spacing: voxel size in millimetres, one an axis; default 1.

    Example:
        >>> len(angle_views(2, 30)), len(angle_views(3, 45))
        (8, 12)
    """
    views = []
    for axis in range(3 if spatial_dims == 3 else 1):
        for angle in np.arange(0.0, 360.0, step):
            matrix = rotation_matrix(spatial_dims, float(angle), axis)
            if not is_grid_symmetry(matrix, spacing):
                name = f"{angle:g} degrees" + (f" about axis {axis}" if spatial_dims == 3 else "")
                views.append(View(name, "angles", float(angle), matrix))
    return views
