"""Continuous groups of rotations as values, with a name and a number of samples, which is the number of channels of a field."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from monai_gmr.arguments import check_count
from monai_gmr.symmetry.group_structure import GroupSpec, PointGroup
from monai_gmr.utils import ConfigurationError

# name: dimensions, whether it contains mirrors, other names
_CONTINUOUS: dict[str, tuple[int, bool, str]] = {
    "SE(2)": (2, False, "SO(2)"),
    "E(2)": (2, True, "O(2)"),
    "SO(3)": (3, False, "SE(3)"),
    "O(3)": (3, True, "E(3)"),
}
DEFAULT_GROUP = {2: "SE(2)", 3: "SO(3)"}
DEFAULT_SAMPLES = {2: 8, 3: 24}
# rotations of the grid that a set of samples can be closed under, the largest first
_CLOSED = {2: ("4", "2", "1"), 3: ("432", "23", "222", "1")}
_WITH_MIRRORS = {"4": "4mm", "2": "2mm", "432": "m-3m", "23": "m-3", "222": "mmm"}


@dataclass(frozen=True)
class SampledGroup:
    """A continuous group of rotations, with or without mirrors, that a field samples.

    Args:
        spatial_dims: 2 or 3.
        name: "SE(2)" or "E(2)", "SO(3)" or "O(3)".
        samples: number of rotations.

    Example:
        >>> group = SampledGroup(2, "E(2)", 8)
        >>> group, group.order, group.grid_group
        (SampledGroup('E(2)', samples=8), 16, PointGroup('4mm'))
    """

    spatial_dims: int
    name: str
    samples: int

    @property
    def mirrors(self) -> bool:
        """Whether the group contains mirrors."""
        return _CONTINUOUS[self.name][1]

    @property
    def order(self) -> int:
        """Number of samples, mirrors included: the channels of a field."""
        return self.samples * (2 if self.mirrors else 1)

    @property
    def grid_rotations(self) -> PointGroup:
        """Rotations of the grid under which a full set of samples is closed: the largest of a few groups whose order divides the
        samples."""
        groups = [PointGroup.from_name(name, self.spatial_dims) for name in _CLOSED[self.spatial_dims]]
        return next(group for group in groups if self.samples % group.order == 0)

    @property
    def grid_group(self) -> PointGroup:
        """Symmetries of the grid under which a full set of samples is closed, mirrors included."""
        rotations = self.grid_rotations
        if not self.mirrors:
            return rotations
        assert rotations.name is not None
        others = {"1": "m" if self.spatial_dims == 2 else "-1"} | _WITH_MIRRORS
        return PointGroup.from_name(others[rotations.name[0]], self.spatial_dims)

    def check_keeps(self, name: str, values: Sequence[Hashable]) -> None:
        """Raises unless an argument, such as "kernel_size", has equal values on all axes, because rotations by any angle mix them."""
        if len(set(values)) > 1:
            raise ConfigurationError(
                f"{name}={tuple(values)} is not symmetric under {self!r}: use equal numbers on all axes, or a group of the grid "
                "such as '2'."
            )

    def __repr__(self) -> str:
        return f"SampledGroup({self.name!r}, samples={self.samples})"


FieldGroup = PointGroup | SampledGroup


def partial_group(group: GroupSpec | SampledGroup | None, spatial_dims: int, samples: int | None = None) -> FieldGroup:
    """Group given by the arguments ``group`` and ``samples`` of a partial layer.

    Args:
        group: "SE(2)" or "E(2)" (default "SE(2)") in 2D, "SO(3)" or "O(3)" (default "SO(3)") in 3D; or a group of the grid's symmetries, as
            in :meth:`PointGroup.from_name`; or a group.
        spatial_dims: 2 or 3.
        samples: number of rotations of a continuous group; default 8 in 2D, 24 in 3D.

    Raises:
        ConfigurationError: if there is no such group in ``spatial_dims``, or it does not take this number of samples.

    Example:
        >>> partial_group("SE(2)", 2), partial_group("4mm", 2), partial_group("O(3)", 3, 4).order
        (SampledGroup('SE(2)', samples=8), PointGroup('4mm'), 8)
    """
    if spatial_dims not in DEFAULT_GROUP:
        raise ConfigurationError(f"spatial_dims={spatial_dims} has no partial group convolution: use 2 or 3.")
    group = DEFAULT_GROUP[spatial_dims] if group is None else group
    if isinstance(group, SampledGroup):
        if group.spatial_dims != spatial_dims:
            raise ConfigurationError(
                f"group={group!r} transforms {group.spatial_dims} axes: give a group of {spatial_dims} axes."
            )
        return group
    names = {
        "".join(each.split()).upper(): name for name, (_, _, other) in _CONTINUOUS.items() for each in (name, other)
    }
    name = names.get("".join(group.split()).upper()) if isinstance(group, str) else None
    if name is None:
        if isinstance(group, str) and "(" in group:
            possible = " or ".join(repr(each) for each, (dims, _, _) in _CONTINUOUS.items() if dims == spatial_dims)
            raise ConfigurationError(f"group={group!r} is unknown: use {possible}, or a group of the grid such as '4'.")
        if samples is not None:
            raise ConfigurationError(
                f"samples={samples} does not fit group={group!r}, whose elements are all taken: leave it out, or use "
                f"{DEFAULT_GROUP[spatial_dims]!r}."
            )
        return PointGroup.from_name(group, spatial_dims)
    if _CONTINUOUS[name][0] != spatial_dims:
        possible = " or ".join(repr(each) for each, (dims, _, _) in _CONTINUOUS.items() if dims == spatial_dims)
        raise ConfigurationError(
            f"group={group!r} transforms {_CONTINUOUS[name][0]} axes: use {possible} in {spatial_dims}D."
        )
    count = DEFAULT_SAMPLES[spatial_dims] if samples is None else samples
    check_count("samples", count)
    return SampledGroup(spatial_dims, name, count)


def as_field_group(group: GroupSpec | SampledGroup, spatial_dims: int) -> FieldGroup:
    """Group of a field, given as a group or by its name (:meth:`PointGroup.from_name`).

    Example:
        >>> as_field_group("4", 2), as_field_group(SampledGroup(2, "SE(2)", 4), 2).order
        (PointGroup('4'), 4)
    """
    return group if isinstance(group, SampledGroup) else PointGroup.from_name(group, spatial_dims)
