"""Subgroups of the grid's symmetries under the names that crystallographers give to point groups."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from monai_gmr.symmetry.elements import check_dims
from monai_gmr.symmetry.point_groups import generate_group, point_group
from monai_gmr.symmetry.rotations import axis_index, rotation_matrix
from monai_gmr.utils import ConfigurationError

# Hermann-Mauguin symbol: other names, the Schoenflies symbol first; the elements follow from the symbol
_NAMES: dict[int, dict[str, tuple[str, ...]]] = {
    2: {
        "1": ("c1", "p1"),
        "2": ("c2", "p2"),
        "m": ("d1", "cs", "pm"),
        "2mm": ("d2", "c2v", "pmm", "p2mm"),
        "4": ("c4", "p4"),
        "4mm": ("d4", "c4v", "p4m", "p4mm", "all"),
    },
    3: {
        "1": ("c1",),
        "-1": ("ci",),
        "2": ("c2",),
        "m": ("cs",),
        "2/m": ("c2h",),
        "222": ("d2",),
        "mm2": ("c2v",),
        "mmm": ("d2h",),
        "4": ("c4",),
        "-4": ("s4",),
        "4/m": ("c4h",),
        "422": ("d4",),
        "4mm": ("c4v",),
        "-42m": ("d2d",),
        "-4m2": (),
        "4/mmm": ("d4h",),
        "3": ("c3",),
        "-3": ("c3i", "s6"),
        "32": ("d3",),
        "3m": ("c3v",),
        "-3m": ("d3d",),
        "23": ("t",),
        "m-3": ("th",),
        "432": ("o",),
        "-43m": ("td",),
        "m-3m": ("oh", "all"),
    },
}


def group_names(spatial_dims: int) -> list[str]:
    """Every name that :func:`~monai_gmr.symmetry.named_group` reads.

    Args:
        spatial_dims: 2 or 3.

    Example:
        >>> group_names(2)[:6]
        ['1', 'c1', 'p1', '2', 'c2', 'p2']
    """
    check_dims(spatial_dims)
    return [name for symbol, others in _NAMES[spatial_dims].items() for name in (symbol, *others)]


def _directions(parts: list[str], spatial_dims: int) -> list[tuple[int, ...]]:
    """The direction that each part of a Hermann-Mauguin symbol stands for: it depends on the crystal system."""
    if spatial_dims == 2:
        return [(1, 0, 0)] if parts[0] == "m" else [(0, 0, 1), (1, 0, 0)]
    if len(parts) > 1 and parts[1] in ("3", "-3"):  # cubic
        return [(0, 0, 1), (1, 1, 1), (1, 1, 0)]
    if parts[0] in ("3", "-3"):  # trigonal
        return [(1, 1, 1), (1, -1, 0)]
    if parts[0] in ("4", "-4", "4/m"):  # tetragonal
        return [(0, 0, 1), (1, 0, 0), (1, 1, 0)]
    if len(parts) == 3:  # orthorhombic
        return [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    return [(0, 0, 1)]  # monoclinic and triclinic


def _generators(symbol: str, spatial_dims: int) -> list[np.ndarray]:
    """One or two matrices for each part of a Hermann-Mauguin symbol."""
    parts = re.findall(r"-?\d(?:/m)?|m", symbol)
    generators = []
    for part, direction in zip(parts, _directions(parts, spatial_dims)):
        number = re.search(r"\d", part)
        if number:
            turn = rotation_matrix(3, 360 / int(number[0]), direction)
            generators.append(-turn if part.startswith("-") else turn)
        if "m" in part:
            generators.append(-rotation_matrix(3, 180, direction))
    return [np.round(matrix).astype(int)[:spatial_dims, :spatial_dims] for matrix in generators]


@lru_cache(maxsize=128)
def _generated(symbol: str, spatial_dims: int, axis: int) -> np.ndarray:
    """The group of a symbol with its main direction along an axis, its elements in the order of the whole group's."""
    # cyclic exchange of the axes: the symbol's direction is the last axis in 3D, the first one in 2D
    shift = np.roll(np.eye(spatial_dims, dtype=int), axis - (2 if spatial_dims == 3 else 0), axis=0)
    group = generate_group([shift @ matrix @ shift.T for matrix in _generators(symbol, spatial_dims)])
    held = {element.tobytes() for element in group.astype(int)}
    return np.array([element for element in point_group(spatial_dims) if element.astype(int).tobytes() in held])


def named_group(name: str, spatial_dims: int, axis: int | str | None = None) -> np.ndarray:
    """A subgroup of the grid's symmetries under its crystallographic name, generated from its symbol.

    2D: 4mm (D4, p4m; all 8), 4 (C4, p4), 2mm (D2), m (D1), 2 (C2), 1. 3D: m-3m (Oh; all 48), 432 (O; the 24 rotations), -43m (Td),
    m-3 (Th), 23 (T), 4/mmm (D4h; 16: all that exchanges only two axes), 422, 4mm, -42m, -4m2, 4/m, 4, -4, mmm (D2h; 8: all mirror images
    along the axes), 222, mm2, 2/m, 2, m, 32, 3m, -3m, 3, -3 (about the diagonal [111]), -1, 1. Note that D4 is 4mm in 2D and 422 in 3D.

    Args:
        name: Hermann-Mauguin or Schoenflies symbol, in 2D also that of the wallpaper group; "all" is the whole group.
        spatial_dims: 2 or 3.
        axis: array axis (0, 1, 2 or "x", "y", "z") of the group's main direction: of its rotation, or along which ``m`` mirrors.
            Default: the last axis in 3D, the first in 2D. Without effect on cubic and trigonal groups.

    Returns:
        integer array of shape ``(order, d, d)``, the identity first.

    Raises:
        ConfigurationError: when there is no such group or axis.

    Example:
        >>> [len(named_group(name, 3)) for name in ("m-3m", "432", "4/mmm", "mmm", "-1", "Td")]
        [48, 24, 16, 8, 2, 24]
        >>> named_group("m", 3, axis="x")[1].tolist()
        [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]

    Source:
        International Tables for Crystallography A, section 2.1.3.4 (order of the directions in a symbol).
    """
    check_dims(spatial_dims)
    given = "".join(str(name).lower().split())
    symbol = next((s for s, others in _NAMES[spatial_dims].items() if given == s or given in others), None)
    if symbol is None:
        possible = ", ".join(
            f"'{s}'" + (f" ({', '.join(others)})" if others else "") for s, others in _NAMES[spatial_dims].items()
        )
        raise ConfigurationError(f"group={name!r} is unknown in {spatial_dims}D: use one of {possible}.")
    default = 2 if spatial_dims == 3 else 0
    return _generated(symbol, spatial_dims, default if axis is None else axis_index(axis, spatial_dims)).copy()
