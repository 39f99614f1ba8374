"""Crystallographic names of the grid's symmetries and of their subgroups: generated from the matrices or symbols, and parsed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from monai_gmr.arguments import is_whole
from monai_gmr.symmetry.point_groups import generate_group, is_grid_symmetry, is_mirror, point_group
from monai_gmr.symmetry.rotations import axis_index, rotation_matrix
from monai_gmr.utils import ConfigurationError

# input of grid_element: an index, a name or a matrix
Element = int | str | Sequence[Sequence[int]] | np.ndarray

# Hermann-Mauguin symbol: other names, the Schoenflies symbol first; the elements follow from the symbol
_SYMBOLS_1D = "1=c1 m=cs,all"
_SYMBOLS_2D = "1=c1,p1 2=c2,p2 m=d1,cs,pm 2mm=d2,c2v,pmm,p2mm 4=c4,p4 4mm=d4,c4v,p4m,p4mm,all"
_SYMBOLS_3D = (
    "1=c1 -1=ci 2=c2 m=cs 2/m=c2h 222=d2 mm2=c2v mmm=d2h 4=c4 -4=s4 4/m=c4h 422=d4 4mm=c4v -42m=d2d -4m2= 4/mmm=d4h "
    "3=c3 -3=c3i,s6 32=d3 3m=c3v -3m=d3d 23=t m-3=th 432=o -43m=td m-3m=oh,all"
)
_NAMES: dict[int, dict[str, list[str]]] = {
    dims: {symbol: re.findall(r"\w+", others) for symbol, others in (each.split("=") for each in text.split())}
    for dims, text in ((1, _SYMBOLS_1D), (2, _SYMBOLS_2D), (3, _SYMBOLS_3D))
}
# the array axis of a symbol's main direction
_MAIN_AXIS = {1: 0, 2: 0, 3: 2}


def check_dims(spatial_dims: int, possible: tuple[int, ...] = (2, 3)) -> None:
    """Raises :class:`~monai_gmr.utils.ConfigurationError` unless ``spatial_dims`` is possible, by default 2 or 3."""
    if not is_whole(spatial_dims) or spatial_dims not in possible:
        numbers = f"{', '.join(map(str, possible[:-1]))} or {possible[-1]}"
        raise ConfigurationError(
            f"spatial_dims={spatial_dims} has no named symmetries: give {numbers}, for an image (C, *spatial) with as many spatial axes."
        )


def element_name(element: np.ndarray) -> str:
    """Crystallographic symbol of a symmetry of the grid, a signed permutation matrix ``(d, d)``, ``d`` 1, 2 or 3.

    A number is a rotation (2: by 180 degrees, 3: by 120, 4: by 90), with the sense (``+`` is counterclockwise looking against the
    direction, as in :func:`~monai_gmr.symmetry.rotation_matrix`) and the direction in array axes (omitted in 2D). A leading ``-`` adds the
    inversion of all axes. ``m`` mirrors along a direction (omitted in 1D). Directions start with a positive number. "1" is the identity.

    Example:
        >>> element_name(np.diag([1, 1, -1])), element_name(np.array([[0, -1], [1, 0]]))
        ('m [001]', '4+')

    Source:
        A. M. Glazer, M. I. Aroyo, A. Authier, "Seitz symbols for crystallographic symmetry operations", Acta Cryst. A70, 2014.
    """
    element, dims = _checked_matrix(element), len(element)
    identity = np.eye(dims, dtype=int)
    proper = not is_mirror(element)
    if dims == 1:
        return "1" if proper else "m"
    # in 2D the inversion of all axes is a rotation, so every improper element is a mirror image
    rotation = element if proper else -element
    powers = [identity]
    while not np.array_equal(powers[-1] @ rotation, identity):
        powers.append(powers[-1] @ rotation)
    order = len(powers)
    if order == 1:
        return "1" if proper else "-1"
    mirror = not proper and (order == 2 or dims == 2)
    symbol = "m" if mirror else f"{'' if proper else '-'}{order}"
    if dims == 2 and proper:
        return symbol if order == 2 else symbol + ("+" if rotation[1, 0] > 0 else "-")
    # the sum of the powers projects onto the axis: any nonzero column lies along it
    projection = identity - element if mirror else np.sum(powers, axis=0)
    direction = np.sign(projection[:, np.flatnonzero(projection.any(0))[0]])
    direction = direction * direction[np.flatnonzero(direction)[0]]
    if order > 2 and not mirror:
        moved = next(axis for axis in identity if not np.array_equal(abs(direction), axis))
        symbol += "+" if np.linalg.det(np.stack([direction, moved, rotation @ moved])) > 0 else "-"
    return f"{symbol} [{''.join(str(number) for number in direction.tolist())}]"


def element_triplet(element: np.ndarray) -> str:
    """Image of the point ``x,y,z`` (array axes 0, 1, 2, about the centre) under a signed permutation matrix, in the notation of CIF files.

    Example:
        >>> element_triplet(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]))
        '-y,x,z'
    """
    element = _checked_matrix(element)
    sources = [int(np.flatnonzero(row)[0]) for row in element]
    return ",".join(("-" if element[axis, source] < 0 else "") + "xyz"[source] for axis, source in enumerate(sources))


@lru_cache(maxsize=4)
def _indices(spatial_dims: int) -> dict[str, int]:
    """Index of every element by both of its names, without blanks."""
    group = point_group(spatial_dims)
    return {name(g).replace(" ", ""): i for i, g in enumerate(group) for name in (element_name, element_triplet)}


def _checked_matrix(element: object) -> np.ndarray:
    """An integer copy of a signed permutation matrix of 1, 2 or 3 axes."""
    try:
        matrix = np.asarray(element, float)
    except (TypeError, ValueError):
        matrix = np.zeros(())
    if matrix.shape not in ((1, 1), (2, 2), (3, 3)) or not is_grid_symmetry(matrix):
        raise ConfigurationError(
            f"{element!r} is not a symmetry of the grid: give an index, a name such as 'm [100]' or '-y,x,z', "
            "or a signed permutation matrix of shape (d, d), d up to 3."
        )
    return np.round(matrix).astype(int)


def grid_element(element: Element, spatial_dims: int) -> np.ndarray:
    """Matrix ``(d, d)`` of a symmetry of the grid, given as index, name or matrix.

    Args:
        element: index into :func:`~monai_gmr.symmetry.point_group`; name (:func:`element_name`, with or without blanks, or
            :func:`element_triplet`); or signed permutation matrix. Anything else raises :class:`~monai_gmr.utils.ConfigurationError`.
        spatial_dims: 1 (2 elements), 2 (the group D4 of 8) or 3 (Oh, 48).

    Example:
        >>> grid_element("4+", 2).tolist(), grid_element("-y,x", 2).tolist(), grid_element(0, 2).tolist()
        ([[0, -1], [1, 0]], [[0, -1], [1, 0]], [[1, 0], [0, 1]])
    """
    check_dims(spatial_dims, tuple(_NAMES))
    group = point_group(spatial_dims)
    if isinstance(element, str):
        index = _indices(spatial_dims).get("".join(element.lower().split()))
        if index is None:
            possible = ", ".join(repr(element_name(g)) for g in group)
            raise ConfigurationError(
                f"element={element!r} is unknown in {spatial_dims}D: use one of {possible}, "
                f"or where it sends the point, such as {element_triplet(group[-1])!r}."
            )
        return group[index]
    if isinstance(element, (int, np.integer)) and not isinstance(element, bool):
        if not 0 <= element < len(group):
            raise ConfigurationError(
                f"element={element} is out of range: the group of the {spatial_dims}D grid has elements 0 to {len(group) - 1}."
            )
        return group[element]
    matrix = _checked_matrix(element)
    if len(matrix) != spatial_dims:
        raise ConfigurationError(
            f"element={matrix.tolist()} transforms {len(matrix)} axes, the image has {spatial_dims}: "
            f"give a matrix of shape ({spatial_dims}, {spatial_dims})."
        )
    return matrix


@lru_cache(maxsize=1)
def names_of_no_element() -> frozenset[str]:
    """Names of groups of 2D and 3D images that are not names of an element: such a name cannot begin a list of elements.

    Example:
        >>> [name in names_of_no_element() for name in ("4/mmm", "d4", "2", "m [100]")]
        [True, True, False, False]
    """
    return frozenset(name for dims in (2, 3) for name in group_names(dims)) - _indices(2).keys() - _indices(3).keys()


def group_names(spatial_dims: int) -> list[str]:
    """Every name that :func:`named_group` reads in 1, 2 or 3 spatial dimensions.

    Example:
        >>> group_names(2)[:6]
        ['1', 'c1', 'p1', '2', 'c2', 'p2']
    """
    check_dims(spatial_dims, tuple(_NAMES))
    return [name for symbol, others in _NAMES[spatial_dims].items() for name in (symbol, *others)]


def _directions(parts: list[str], spatial_dims: int) -> list[tuple[int, ...]]:
    """Direction of each part of a Hermann-Mauguin symbol, which depends on the crystal system."""
    if spatial_dims < 3:
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
        if part != "m":
            rotation = rotation_matrix(3, 360 / int(part.strip("-/m")), direction)
            generators.append(-rotation if part.startswith("-") else rotation)
        if "m" in part:
            generators.append(-rotation_matrix(3, 180, direction))
    return [np.round(matrix).astype(int)[:spatial_dims, :spatial_dims] for matrix in generators]


@lru_cache(maxsize=128)
def _generated(symbol: str, spatial_dims: int, axis: int) -> np.ndarray:
    """Group of a symbol with its main direction along an axis, with elements in the order of the whole group."""
    # cyclic exchange of the axes
    shift = np.roll(np.eye(spatial_dims, dtype=int), axis - _MAIN_AXIS[spatial_dims], axis=0)
    group = generate_group([shift @ matrix @ shift.T for matrix in _generators(symbol, spatial_dims)]).tolist()
    return np.array([element for element in point_group(spatial_dims) if element.tolist() in group])


def named_group(name: str, spatial_dims: int, axis: int | str | None = None, argument: str = "group") -> np.ndarray:
    """Subgroup of the grid's symmetries with a crystallographic name, integers ``(order, d, d)``, the identity first.

    1D: m, 1. 2D: 4mm (D4, p4m; all 8), 4 (C4, p4), 2mm (D2), m (D1), 2 (C2), 1. 3D: m-3m (Oh; all 48), 432 (O; the 24 rotations), -43m
    (Td), m-3 (Th), 23 (T), 4/mmm (D4h; 16: all elements that exchange only two axes), 422, 4mm, -42m, -4m2, 4/m, 4, -4, mmm (D2h; 8: all
    mirrors along the axes), 222, mm2, 2/m, 2, m, 32, 3m, -3m, 3, -3 (about the diagonal [111]), -1, 1. Note that D4 is 4mm in 2D and 422 in
    3D.

    Args:
        name: Hermann-Mauguin or Schoenflies symbol, in 2D also the symbol of the wallpaper group; "all" is the whole group.
        spatial_dims: 1, 2 or 3.
        axis: array axis (0, 1, 2 or "x", "y", "z") of the group's main direction: the axis of its rotation, or the axis that ``m`` mirrors.
            Default: the last axis in 3D, the first in 2D. Has no effect on cubic and trigonal groups.
        argument: name of the argument in errors.

    Raises:
        ConfigurationError: if there is no such group or axis.

    Example:
        >>> [len(named_group(name, 3)) for name in ("m-3m", "432", "4/mmm", "mmm", "-1", "Td")]
        [48, 24, 16, 8, 2, 24]
        >>> named_group("m", 3, axis="x")[1].tolist()
        [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]

    Source:
        International Tables for Crystallography A, section 2.1.3.4 (order of the directions in a symbol).
    """
    check_dims(spatial_dims, tuple(_NAMES))
    if not isinstance(name, str | int | np.integer):
        raise ConfigurationError(
            f"{argument}={name!r} is not the name of a group: give one such as 'm', and its direction as axis='x'."
        )
    names, given = _NAMES[spatial_dims], "".join(str(name).lower().split())
    symbol = next((s for s, others in names.items() if given in (s, *others)), None)
    if symbol is None:
        possible = ", ".join(f"'{s}'" + (f" ({', '.join(others)})" if others else "") for s, others in names.items())
        raise ConfigurationError(f"{argument}={name!r} is unknown in {spatial_dims}D: use one of {possible}.")
    main = _MAIN_AXIS[spatial_dims] if axis is None else axis_index(axis, spatial_dims)
    return _generated(symbol, spatial_dims, main).copy()
