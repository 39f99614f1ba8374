"""Names of the grid's symmetries, as crystallographers write them: generated from the matrices, and read back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from monai_gmr.symmetry.point_groups import is_grid_symmetry, point_group
from monai_gmr.utils import ConfigurationError


def check_dims(spatial_dims: int) -> None:
    """Raise :class:`~monai_gmr.utils.ConfigurationError` unless there are two or three spatial dimensions.

    Example:
        >>> check_dims(3)
    """
    if spatial_dims not in (2, 3):
        raise ConfigurationError(
            f"spatial_dims={spatial_dims} has no named symmetries: give 2 or 3, that is an image (C, *spatial) of 2 or 3 spatial axes."
        )


def element_name(element: np.ndarray) -> str:
    """The crystallographers' symbol of a symmetry of the grid.

    A number is a rotation (2: half turn, 3: third, 4: quarter), with the sense (``+`` is counterclockwise seen against the direction,
    as in :func:`~monai_gmr.symmetry.rotation_matrix`) and the direction in array axes. ``-`` in front: followed by the inversion of all
    axes. ``m`` is the mirror image along a direction. In 2D rotations need no direction. Directions start with a positive number.

    Args:
        element: signed permutation matrix of shape ``(d, d)``, ``d`` 2 or 3.

    Returns:
        "1" (the identity), "4+ [001]", "2 [1-10]", "-3- [111]", "m [100]", ... in 3D; "4+", "2", "m [10]", ... in 2D.

    Raises:
        ConfigurationError: when the matrix is no symmetry of a grid of 2 or 3 axes.

    Example:
        >>> element_name(np.diag([1, 1, -1])), element_name(np.array([[0, -1], [1, 0]]))
        ('m [001]', '4+')
        >>> len({element_name(element) for element in point_group(3)})
        48

    Source:
        A. M. Glazer, M. I. Aroyo, A. Authier, "Seitz symbols for crystallographic symmetry operations", Acta Cryst. A70, 2014.
    """
    element = _checked_matrix(element)
    dims = len(element)
    identity = np.eye(dims, dtype=int)
    proper = round(np.linalg.det(element)) > 0
    # the inversion of all axes is a rotation in 2D: there every improper element is a mirror image
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
    # the sum over the powers projects onto the axis: any column of it that is not zero lies along the axis
    projection = identity - element if mirror else np.sum(powers, axis=0)
    direction = np.sign(projection[:, np.flatnonzero(projection.any(0))[0]])
    direction = direction * direction[np.flatnonzero(direction)[0]]
    if order > 2 and not mirror:
        moved = next(axis for axis in identity if not np.array_equal(abs(direction), axis))
        symbol += "+" if np.linalg.det(np.stack([direction, moved, rotation @ moved])) > 0 else "-"
    return f"{symbol} [{''.join(str(number) for number in direction.tolist())}]"


def element_triplet(element: np.ndarray) -> str:
    """Where a symmetry of the grid sends the point ``x,y,z`` (array axes 0, 1, 2, about the centre), as CIF files write it.

    Args:
        element: signed permutation matrix of shape ``(d, d)``, ``d`` 2 or 3.

    Example:
        >>> element_triplet(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]))
        '-y,x,z'
    """
    element = _checked_matrix(element)
    sources = [int(np.flatnonzero(row)[0]) for row in element]
    return ",".join(("-" if element[axis, source] < 0 else "") + "xyz"[source] for axis, source in enumerate(sources))


@lru_cache(maxsize=4)
def _names(spatial_dims: int) -> dict[str, int]:
    """Both names of every element, without blanks, and its index."""
    names = {}
    for index, element in enumerate(point_group(spatial_dims)):
        names[element_name(element).replace(" ", "")] = index
        names[element_triplet(element)] = index
    return names


def _checked_matrix(element: object) -> np.ndarray:
    """An integer copy of a signed permutation matrix of 2 or 3 axes."""
    try:
        matrix = np.asarray(element, float)
    except (TypeError, ValueError):
        matrix = np.zeros(())
    if matrix.shape not in ((2, 2), (3, 3)) or not is_grid_symmetry(matrix):
        raise ConfigurationError(
            f"{element!r} is no symmetry of the grid: give an index, a name such as 'm [100]' or '-y,x,z', "
            "or a signed permutation matrix of shape (2, 2) or (3, 3)."
        )
    return np.round(matrix).astype(int)


def grid_element(element: int | str | Sequence[Sequence[int]] | np.ndarray, spatial_dims: int) -> np.ndarray:
    """The matrix of a symmetry of the grid, given in any of three ways.

    Args:
        element: index into :func:`~monai_gmr.symmetry.point_group`; name (:func:`~monai_gmr.symmetry.element_name`, with or without blanks,
            or :func:`~monai_gmr.symmetry.element_triplet`); or signed permutation matrix of shape ``(d, d)``.
        spatial_dims: 2 (the group D4 of 8 elements) or 3 (Oh, 48).

    Returns:
        integer matrix of shape ``(spatial_dims, spatial_dims)``.

    Raises:
        ConfigurationError: when there is no such element.

    Example:
        >>> grid_element("4+", 2).tolist(), grid_element("-y,x", 2).tolist(), grid_element(0, 2).tolist()
        ([[0, -1], [1, 0]], [[0, -1], [1, 0]], [[1, 0], [0, 1]])
    """
    check_dims(spatial_dims)
    group = point_group(spatial_dims)
    if isinstance(element, str):
        name = "".join(element.lower().split())
        if name not in _names(spatial_dims):
            possible = ", ".join(repr(element_name(g)) for g in group)
            raise ConfigurationError(
                f"element={element!r} is unknown in {spatial_dims}D: use one of {possible}, "
                f"or where it sends the point, such as {element_triplet(group[-1])!r}."
            )
        return group[_names(spatial_dims)[name]]
    if isinstance(element, (int, np.integer)) and not isinstance(element, bool):
        if not 0 <= element < len(group):
            raise ConfigurationError(
                f"element={element} is out of range: the group of the {spatial_dims}D grid has elements 0 to {len(group) - 1}."
            )
        return group[element]
    matrix = _checked_matrix(element)
    if len(matrix) != spatial_dims:
        raise ConfigurationError(
            f"element={matrix.tolist()} turns {len(matrix)} axes, the image has {spatial_dims}: "
            f"give a matrix of shape ({spatial_dims}, {spatial_dims})."
        )
    return matrix
