"""The argument ``conv`` of blocks and nets where it names group convolutions: the group of a level, and what lies between levels.

Every function returns other convolutions as they are.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from monai.networks.layers.utils import get_dropout_layer
from torch import nn

from monai_gmr.networks.layers.factories import make_convolution, split_convolution
from monai_gmr.networks.layers.point_group_fields import PointGroupPool, PointGroupRestrict
from monai_gmr.symmetry import PointGroup, field_channels
from monai_gmr.utils import ConfigurationError

Convolution = str | Sequence


def end_group(conv: Convolution, spatial_dims: int) -> PointGroup | None:
    """The group on whose fields a convolution ends, ``None`` for other convolutions than "group".

    Example:
        >>> end_group(("group", {"group": "4mm", "out_group": "4"}), 2), end_group("gmr", 2)
        (PointGroup('4'), None)
    """
    name, arguments = split_convolution(conv)
    if name != "group":
        return None
    last = arguments.get("out_group")
    return PointGroup.from_name(arguments["group"] if last is None else last, spatial_dims)


def _changed(conv: Convolution, **changes: Any) -> Convolution:
    """A group convolution from fields to fields with other groups."""
    name, arguments = split_convolution(conv)
    if name != "group":
        return conv
    kept = {key: value for key, value in arguments.items() if key not in ("in_group", "out_group")}
    return name, kept | changes


def lift(conv: Convolution) -> Convolution:
    """The convolution of an image, whose channels are scalars.

    Example:
        >>> lift(("group", {"group": "4mm"})), lift("gmr")
        (('group', {'group': '4mm', 'in_group': '1'}), 'gmr')
    """
    return _changed(conv, in_group="1")


def onto(previous: Convolution, conv: Convolution, spatial_dims: int) -> Convolution:
    """The first convolution of a level, from the fields of the level before.

    Example:
        >>> onto(("group", {"group": "4mm"}), ("group", {"group": "4"}), 2)
        ('group', {'group': PointGroup('4mm'), 'out_group': PointGroup('4')})
    """
    return _changed(conv, group=end_group(previous, spatial_dims), out_group=end_group(conv, spatial_dims))


def with_group_of(last: Convolution, conv: Convolution, spatial_dims: int) -> Convolution:
    """A convolution of one level on the group of another one.

    Example:
        >>> with_group_of(("group", {"group": "4"}), ("group", {"group": "4mm", "filter": "gc"}), 2)
        ('group', {'group': PointGroup('4'), 'filter': 'gc'})
    """
    return _changed(conv, group=end_group(last, spatial_dims))


def behind(conv: Convolution, spatial_dims: int) -> Convolution:
    """The convolution behind another one, on the group in which that ends.

    Example:
        >>> behind(("group", {"group": "4mm", "in_group": "1"}), 2)
        ('group', {'group': PointGroup('4mm')})
    """
    return _changed(conv, group=end_group(conv, spatial_dims))


def keeps_fields(conv: Convolution, spatial_dims: int) -> bool:
    """Whether a convolution ends on the fields on which it began, so that its input can be added to its output.

    Example:
        >>> keeps_fields(("group", {"group": "4mm"}), 2), keeps_fields(("group", {"group": "4mm", "out_group": "4"}), 2)
        (True, False)
    """
    name, arguments = split_convolution(conv)
    if name != "group":
        return True
    first = arguments.get("in_group")
    first = PointGroup.from_name(arguments["group"] if first is None else first, spatial_dims)
    return first == end_group(conv, spatial_dims)


def pointwise(conv: Convolution) -> Convolution:
    """The convolution of window 1 beside another one: "plain", or on the same groups.

    Example:
        >>> pointwise(("group", {"group": "4", "filter": "gc"})), pointwise("gmr_harmonic")
        (('group', {'group': '4', 'filter': 'full'}), 'plain')
    """
    name, arguments = split_convolution(conv)
    return (name, arguments | {"filter": "full"}) if name == "group" else "plain"


def field_norm(conv: Convolution, norm: tuple | str | None, spatial_dims: int) -> tuple | str | None:
    """The norm behind a convolution: of group convolutions the statistics are those of a field.

    Example:
        >>> field_norm(("group", {"group": "4"}), "batch", 2)
        ('pointgroup', {'group': PointGroup('4'), 'norm': 'batch'})
    """
    group = end_group(conv, spatial_dims)
    return norm if group is None or norm is None else ("pointgroup", {"group": group, "norm": norm})


def field_dropout(
    conv: Convolution, dropout: Any, dropout_dim: int | None, spatial_dims: int
) -> tuple[Any, int | None]:
    """Dropout behind a convolution, and its dimension: of group convolutions whole fields are dropped."""
    group = end_group(conv, spatial_dims)
    if group is None or dropout is None:
        return dropout, dropout_dim
    p = getattr(get_dropout_layer(dropout, dropout_dim), "p", None)
    if not isinstance(p, float | int):
        raise ConfigurationError(
            f"dropout={dropout!r} has no probability for fields of {group!r}: give a number from 0 to 1."
        )
    return ("pointgroup", {"p": float(p), "group": group}), spatial_dims


def check_factors(conv: Convolution, factors: Sequence[int], spatial_dims: int) -> None:
    """Raise where a grid is resampled by factors that the group of a convolution does not keep."""
    group = end_group(conv, spatial_dims)
    if group is not None:
        group.check_keeps("strides", factors)


def check_activation(conv: Convolution, module: nn.Module, act: Any) -> None:
    """Raise where an activation behind a group convolution has weights for single channels, which the group exchanges."""
    weights = [weight for name, weight in module.named_parameters() if name.startswith("A.")]
    if split_convolution(conv)[0] == "group" and any(weight.numel() > 1 for weight in weights):
        raise ConfigurationError(
            f"act={act!r} has weights for single channels, which a group exchanges: give it one weight."
        )


def restrict(conv: Convolution, last: Convolution, spatial_dims: int) -> nn.Module:
    """Fields of one level as fields of a coarser one, whose group is a subgroup."""
    before, after = end_group(conv, spatial_dims), end_group(last, spatial_dims)
    if before is None or after is None or before == after:
        return nn.Identity()
    return PointGroupRestrict(spatial_dims, before, after)


def scalars(conv: Convolution, spatial_dims: int, channels: int) -> tuple[nn.Module, int]:
    """What makes features scalars, maxima over the group, and how many channels are left.

    Example:
        >>> scalars(("group", {"group": "4"}), 2, 32)[1], scalars("gmr", 2, 32)[1]
        (8, 32)
    """
    group = end_group(conv, spatial_dims)
    return (
        (nn.Identity(), channels) if group is None else (PointGroupPool(spatial_dims, group), channels // group.order)
    )


def make_head(conv: Convolution, spatial_dims: int, channels: int, out_channels: int) -> nn.Module:
    """The last layer of a segmentation net, of window 1, on scalars."""
    pool, left = scalars(conv, spatial_dims, channels)
    layer = make_convolution("plain", spatial_dims, left, out_channels, 1)
    return layer if isinstance(pool, nn.Identity) else nn.Sequential(pool, layer)


def check_levels(convolutions: Sequence[Convolution], spatial_dims: int, channels: Sequence[int], name: str) -> None:
    """Raise when the levels of a net are not all of group convolutions or none, a level's group is no subgroup of the one before, or does
    not divide its channels, which the argument ``name`` gives."""
    groups = [end_group(conv, spatial_dims) for conv in convolutions]
    if any({"in_group", "out_group"} & split_convolution(conv)[1].keys() for conv in convolutions):
        raise ConfigurationError(
            f"conv={convolutions!r} has in_group or out_group, which a net chooses itself: give the group of each level in a list."
        )
    for before, after in itertools.pairwise(groups):
        if (before is None) != (after is None):
            raise ConfigurationError(
                f"conv={convolutions!r} mixes scalars with fields of a group: give group convolutions to all levels, or to none."
            )
        if before is not None and after is not None:
            before.positions(after)
    for group, count in zip(groups, channels):
        if group is not None:
            field_channels(name, count, group)
