"""A group of symmetries of the voxel grid as a value: products, subgroups, cosets, and its action on the taps of a window."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any, TypeGuard

import numpy as np

from monai_gmr.symmetry.group_names import Element, grid_element, group_names, named_group, names_of_no_element
from monai_gmr.symmetry.point_groups import generate_group, is_grid_symmetry, point_group, transform_grid
from monai_gmr.utils import ConfigurationError

Matrix = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class PointGroup:
    """A group of signed permutation matrices, compared by value.

    Elements are numbered in the order of :func:`~monai_gmr.symmetry.point_group`, the identity first. Make one with
    :meth:`from_name` or :meth:`from_elements`.

    Args:
        matrices: the elements as nested tuples, in that order.

    Example:
        >>> group = PointGroup.from_name("4", 2)
        >>> group, group.order, group.products[1].tolist(), group.inverses.tolist()
        (PointGroup('4'), 4, [1, 2, 3, 0], [0, 3, 2, 1])
    """

    matrices: tuple[Matrix, ...]

    @classmethod
    def from_elements(cls, elements: np.ndarray | Sequence[np.ndarray]) -> PointGroup:
        """The group of these signed permutation matrices, ``(order, d, d)``, in any order.

        Raises:
            ConfigurationError: if they are not a group.

        Example:
            >>> PointGroup.from_elements([np.eye(3), np.diag([1, 1, -1])])
            PointGroup('m')
        """
        try:
            given = np.asarray(elements, float)
        except (TypeError, ValueError):
            given = np.zeros(0)
        count, square = len(given), given.shape[-1] if given.ndim == 3 and given.shape[1] == given.shape[2] <= 3 else 0
        if not square or not count or not all(is_grid_symmetry(element) for element in given):
            raise ConfigurationError(
                f"elements of shape {given.shape} are not symmetries of the grid: give signed permutation matrices (order, d, d), d <= 3."
            )
        held = {_as_tuple(element) for element in np.round(given).astype(int)}
        group = _shared(tuple(matrix for matrix in _whole(square) if matrix in held))
        products = np.einsum("aij,bjk->abik", group.elements, group.elements).reshape(-1, square, square)
        if len(held) != count or not {_as_tuple(product) for product in products} <= held:
            order = len(generate_group(list(group.elements)))
            raise ConfigurationError(
                f"{count} elements are not a group, they generate one of {order}: give all of its elements, each once."
            )
        return group

    @classmethod
    def from_name(cls, group: GroupSpec, spatial_dims: int, argument: str = "group") -> PointGroup:
        """Group given by an argument ``group`` of a layer.

        Args:
            group: a name of :func:`~monai_gmr.symmetry.named_group`, or a pair of it and the axis of its main direction; or a group.
            spatial_dims: 1, 2 or 3.
            argument: name of the argument in errors.

        Raises:
            ConfigurationError: if there is no such group for ``spatial_dims`` axes.

        Example:
            >>> PointGroup.from_name(("mm2", "x"), 3), PointGroup.from_name("Oh", 3).order
            (PointGroup('mm2', axis=0), 48)
        """
        if isinstance(group, PointGroup):
            if group.spatial_dims != spatial_dims:
                raise ConfigurationError(
                    f"{argument}={group!r} transforms {group.spatial_dims} axes: give a group of {spatial_dims} axes."
                )
            return group
        named = isinstance(group, (str, int, np.integer)) and not isinstance(group, bool)
        pair = (group, None) if named else tuple(group) if isinstance(group, (tuple, list)) else ()
        if len(pair) != 2 or not isinstance(pair[0], (str, int, np.integer)):
            raise ConfigurationError(
                f"{argument}={group!r} is impossible: give a name such as '4', a pair of it and an axis as ('m', 'x'), or a PointGroup."
            )
        name, axis = pair
        # YAML parses the group 222 as a number
        try:
            return _shared(tuple(map(_as_tuple, named_group(str(name), spatial_dims, axis, argument))))
        except ConfigurationError as error:
            if named or str(error).startswith(f"{argument}="):
                raise
            raise ConfigurationError(f"{argument}={group!r} is read as a name and its {error}") from None

    @property
    def order(self) -> int:
        """Number of elements."""
        return len(self.matrices)

    @property
    def spatial_dims(self) -> int:
        """Number of axes that the elements transform."""
        return len(self.matrices[0])

    @cached_property
    def elements(self) -> np.ndarray:
        """The matrices, ``(order, d, d)``, read-only like the other arrays."""
        return _read_only(np.array(self.matrices))

    @cached_property
    def _index(self) -> dict[Matrix, int]:
        return {matrix: index for index, matrix in enumerate(self.matrices)}

    @cached_property
    def products(self) -> np.ndarray:
        """Index of ``elements[a] @ elements[b]``, ``(order, order)``."""
        products = np.einsum("aij,bjk->abik", self.elements, self.elements)
        return _read_only(np.array([[self._index[_as_tuple(product)] for product in row] for row in products]))

    @cached_property
    def inverses(self) -> np.ndarray:
        """Index of each element's inverse, ``(order,)``."""
        return _read_only(np.array([self._index[_as_tuple(element.T)] for element in self.elements]))

    def generators(self) -> np.ndarray:
        """Indices of a few elements whose products are the group; empty for the trivial group.

        Example:
            >>> len(PointGroup.from_name("m-3m", 3).generators()), len(PointGroup.from_name("4", 2).generators())
            (3, 1)
        """
        chosen: list[int] = []
        reached = {0}
        for number in range(1, self.order):
            if number not in reached:
                chosen.append(number)
                generated = {tuple(map(tuple, each)) for each in generate_group([self.elements[n] for n in chosen])}
                reached = {n for n, matrix in enumerate(self.matrices) if matrix in generated}
        return self.elements[chosen]

    def index(self, element: np.ndarray) -> int:
        """Index of an element, given as a signed permutation matrix.

        Raises:
            ConfigurationError: if the group does not contain it.
        """
        matrix = _as_tuple(np.round(np.asarray(element)).astype(int))
        if matrix not in self._index:
            raise ConfigurationError(f"{matrix} is not an element of {self!r}: use one of its matrices.")
        return self._index[matrix]

    def contains(self, other: PointGroup) -> bool:
        """Whether another group is a subgroup of this one."""
        return self._index.keys() >= set(other.matrices)

    def positions(self, subgroup: PointGroup) -> np.ndarray:
        """Index in this group of each element of a subgroup.

        Raises:
            ConfigurationError: if it is not a subgroup.

        Example:
            >>> PointGroup.from_name("4mm", 2).positions(PointGroup.from_name("2", 2)).tolist()
            [0, 5]
        """
        if not self.contains(subgroup):
            raise ConfigurationError(
                f"{subgroup!r} is not a subgroup of {self!r}: use one of {', '.join(map(repr, self._named_subgroups()))}."
            )
        return np.array([self._index[matrix] for matrix in subgroup.matrices])

    def subgroups(self) -> list[PointGroup]:
        """All subgroups, the trivial one first and the group itself last.

        Example:
            >>> [len(PointGroup.from_name(name, 3).subgroups()) for name in ("1", "mmm", "432", "m-3m")]
            [1, 16, 30, 98]
        """
        return list(_subgroups(self))

    def left_cosets(self, subgroup: PointGroup) -> np.ndarray:
        """Indices of the cosets ``g H`` of a subgroup ``H``, ``(order / |H|, |H|)``; each row begins with its least index.

        Example:
            >>> PointGroup.from_name("4", 2).left_cosets(PointGroup.from_name("2", 2)).tolist()
            [[0, 2], [1, 3]]
        """
        return self._cosets(subgroup, self.products)

    def right_cosets(self, subgroup: PointGroup) -> np.ndarray:
        """Indices of the cosets ``H g`` of a subgroup ``H``, ``(order / |H|, |H|)``; each row begins with its least index, and column ``j``
        is element ``j`` of ``H`` times the first."""
        return self._cosets(subgroup, self.products.T)

    def _cosets(self, subgroup: PointGroup, products: np.ndarray) -> np.ndarray:
        rows = products[:, self.positions(subgroup)]
        # keep the rows whose first index, from the identity, is the least of the coset
        return rows[rows[:, 0] == rows.min(1)]

    def complement(self, subgroup: PointGroup) -> PointGroup | None:
        """First subgroup ``K`` for which each element of the group is exactly one product ``h k``, ``h`` in ``subgroup``, ``k`` in ``K``;
        ``None`` if there is none.

        Example:
            >>> group = PointGroup.from_name("4mm", 2)
            >>> group.complement(PointGroup.from_name("4", 2)), group.complement(PointGroup.from_name("2", 2))
            (PointGroup('m'), None)
        """
        inside = self.positions(subgroup)
        for other in self.subgroups():
            if other.order * subgroup.order == self.order:
                products = self.products[np.ix_(inside, self.positions(other))]
                if len(np.unique(products)) == self.order:
                    return other
        return None

    def common(self, other: PointGroup) -> PointGroup:
        """Subgroup of the elements that are also in another group.

        Example:
            >>> PointGroup.from_name("4mm", 2).common(PointGroup.from_name("4", 2))
            PointGroup('4')
        """
        return _shared(tuple(matrix for matrix in self.matrices if matrix in other._index))

    def keeping(self, *labels: Sequence[Hashable]) -> PointGroup:
        """Largest subgroup that exchanges only axes with equal labels, such as their spacing or the window's lengths.

        Args:
            labels: sequences with one value per axis.

        Example:
            >>> PointGroup.from_name("m-3m", 3).keeping((3, 3, 5)), PointGroup.from_name("4", 2).keeping((1.0, 3.0))
            (PointGroup('4/mmm'), PointGroup('2'))
        """
        kept = self.elements
        for values in labels:
            if len(values) != self.spatial_dims:
                raise ConfigurationError(f"{tuple(values)} needs one entry for each of {self.spatial_dims} axes.")
            equal = np.array([[a == b for b in values] for a in values])
            kept = kept[(equal | (kept == 0)).all(axis=(1, 2))]
        return _shared(tuple(map(_as_tuple, kept)))

    def keeps(self, values: Sequence[Hashable]) -> bool:
        """Whether elements only exchange axes with equal values, given one per axis.

        Example:
            >>> PointGroup.from_name("m", 2).keeps((1, 2)), PointGroup.from_name("4", 2).keeps((1, 2))
            (True, False)
        """
        return self.keeping(values) == self

    def check_keeps(self, name: str, values: Sequence[Hashable]) -> None:
        """Raises if an element exchanges axes for which an argument, such as "kernel_size", has different values.

        Example:
            >>> PointGroup.from_name("m", 2).check_keeps("stride", (1, 2))
        """
        if not self.keeps(values):
            raise ConfigurationError(
                f"{name}={tuple(values)} is not symmetric under {self!r}: use equal numbers on the axes that it exchanges, or its subgroup "
                f"{self.keeping(values)!r}."
            )

    def mirrored_axes(self) -> list[bool]:
        """For each axis, whether an element reverses it or maps another axis to its reverse."""
        return [bool((self.elements[:, axis] < 0).any()) for axis in range(self.spatial_dims)]

    def tap_permutations(self, kernel_size: Sequence[int]) -> np.ndarray:
        """Index of the tap ``g^-1 x`` for each element ``g`` and tap ``x`` of a window, ``(order, taps)``; each row transforms flat
        kernels.

        Raises:
            ConfigurationError: if an element exchanges axes of different lengths.

        Example:
            >>> PointGroup.from_name("m", 1).tap_permutations((3,)).tolist()
            [[0, 1, 2], [2, 1, 0]]
        """
        self.check_keeps("kernel_size", kernel_size)
        taps = np.arange(np.prod(kernel_size)).reshape(kernel_size)
        return np.stack([transform_grid(taps, element).ravel() for element in self.elements])

    def _named_subgroups(self) -> list[PointGroup]:
        return [group for group in self.subgroups() if group.name is not None]

    @cached_property
    def name(self) -> tuple[str, int | None] | None:
        """Symbol of the group, and the axis of its main direction if it is not the default; ``None`` if the group has no name."""
        return _names(self.spatial_dims).get(self.matrices)

    def __repr__(self) -> str:
        if self.name is None:
            return f"PointGroup(order={self.order})"
        symbol, axis = self.name
        return f"PointGroup({symbol!r})" if axis is None else f"PointGroup({symbol!r}, axis={axis})"


GroupSpec = Annotated[
    str | int | tuple | PointGroup, "a name such as '4', a pair of it and an axis as ('m', 'x'), or a PointGroup"
]
GroupOrElements = Annotated[GroupSpec | Sequence[Element] | np.ndarray, "a name, such as 'all', or elements"]


def names_group(value: object, among_elements: bool = True) -> bool:
    """Whether :meth:`PointGroup.from_name` takes a value: a name, a pair of it and an axis, or a group; not a list of elements or of sets
    of views.

    Args:
        value: anything.
        among_elements: whether a list may contain elements, so that a name before a number must not be a name of an element.

    Example:
        >>> names_group("4/mmm"), names_group(("4/mmm", "z")), names_group(["4/mmm", 2])
        (True, True, True)
        >>> names_group(("4+ [001]", "m [100]")), names_group(["432", "angles"]), names_group((0, 1))
        (False, False, False)
        >>> names_group((4, 1), among_elements=False), names_group(["mm2", 222], among_elements=False)
        (True, False)
    """
    if isinstance(value, (tuple, list)) and len(value) == 2:
        name, axis = value
        if not isinstance(name, str) and not _is_number(name):
            return False
        if isinstance(axis, str):
            return axis.lower() in ("x", "y", "z")
        if among_elements:
            return _is_number(axis) and 0 <= axis < 3 and _is_no_element(name)
        # a negative number is not a set of views, but an axis that is refused
        return _is_number(axis) and axis < 3
    return isinstance(value, (str, PointGroup)) or _is_number(value)


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_no_element(name: object) -> bool:
    """Whether it names a group but not an element: before a number, other names and numbers are elements."""
    return isinstance(name, str) and "".join(name.lower().split()) in names_of_no_element()


def group_elements(group: Any, spatial_dims: int, axis: int | str | None = None) -> np.ndarray:
    """Matrices ``(n, d, d)`` of a group, or of a set of elements.

    Args:
        group: a group as in :meth:`PointGroup.from_name`, or a list of elements as in :func:`~monai_gmr.symmetry.grid_element`.
        spatial_dims: 1, 2 or 3.
        axis: array axis of a named group's main direction.

    Raises:
        ConfigurationError: if there is no such group or element.

    Example:
        >>> [len(group_elements(group, 2)) for group in ("4mm", ("m", "x"), ["4+", "-y,x"], [0], [np.eye(2)])]
        [8, 2, 2, 1, 1]
    """
    pair = isinstance(group, (tuple, list)) and len(group) == 2 and _is_no_element(group[0])
    if names_group(group) or pair:
        return PointGroup.from_name(group if axis is None else (group, axis), spatial_dims).elements
    if axis is not None:
        raise ConfigurationError(
            f"axis={axis!r} is the direction of a named group, but group={group!r} is not one: leave the axis out."
        )
    if not isinstance(group, Sequence | np.ndarray) or (isinstance(group, np.ndarray) and group.ndim == 0):
        raise ConfigurationError(f"group={group!r} is impossible: give a name, such as 'all', or elements.")
    elements = [grid_element(element, spatial_dims) for element in group]
    return np.array(elements, int).reshape(-1, spatial_dims, spatial_dims)


def _read_only(array: np.ndarray) -> np.ndarray:
    """Makes an array read-only, because equal groups share it."""
    array.setflags(write=False)
    return array


def _as_tuple(matrix: np.ndarray) -> Matrix:
    return tuple(map(tuple, matrix.tolist()))


@lru_cache(maxsize=256)
def _shared(matrices: tuple[Matrix, ...]) -> PointGroup:
    """The group of these elements, in their order; equal groups share one object, whose tables are made once."""
    return PointGroup(matrices)


@lru_cache(maxsize=3)
def _whole(spatial_dims: int) -> tuple[Matrix, ...]:
    """All symmetries of the grid, in the order that numbers a group's elements."""
    return tuple(map(_as_tuple, point_group(spatial_dims)))


@lru_cache(maxsize=64)
def _subgroups(group: PointGroup) -> tuple[PointGroup, ...]:
    """Subgroups by joining cyclic ones until no new one appears."""
    products = group.products

    def closure(indices: frozenset[int]) -> frozenset[int]:
        while True:
            members = list(indices)
            larger = frozenset(products[np.ix_(members, members)].ravel().tolist())
            if larger == indices:
                return indices
            indices = larger

    cyclic = {closure(frozenset({0, element})) for element in range(group.order)}
    found = set(cyclic)
    waiting = list(cyclic)
    while waiting:
        joined = {closure(waiting[-1] | other) for other in cyclic} - found
        waiting = waiting[:-1] + list(joined)
        found |= joined
    ordered = sorted(found, key=lambda indices: (len(indices), sorted(indices)))
    return tuple(_shared(tuple(group.matrices[index] for index in sorted(indices))) for indices in ordered)


@lru_cache(maxsize=3)
def _names(spatial_dims: int) -> dict[tuple[Matrix, ...], tuple[str, int | None]]:
    """Symbol and axis of every named group, by its elements; the default axis takes precedence."""
    names: dict[tuple[Matrix, ...], tuple[str, int | None]] = {}
    for axis in (None, *range(spatial_dims)):
        for name in group_names(spatial_dims):
            group = PointGroup.from_name((name, axis), spatial_dims)
            names.setdefault(group.matrices, (name, axis))
    return names
