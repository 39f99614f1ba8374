"""Handling of the argument ``conv`` of blocks and nets if it names convolutions on fields: the fields of each level, and the layers between
levels. Fields of group convolutions are on a group; those of partial ones are on learned elements, which each layer passes to the next.

All functions return other convolutions unchanged.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from monai.networks.layers.utils import get_dropout_layer
from torch import nn

from monai_gmr.annotations import Named
from monai_gmr.networks.layers.factories import (
    FIELD_ARGUMENTS,
    Convolution,
    fields_of,
    make_convolution,
    split_convolution,
)
from monai_gmr.networks.layers.partial_elements import PartialGroupElements
from monai_gmr.networks.layers.partial_group_conv import PartialGroupPool
from monai_gmr.networks.layers.point_group_fields import PointGroupPool, PointGroupRestrict
from monai_gmr.symmetry import PointGroup, field_channels
from monai_gmr.symmetry.sampled_group import FieldGroup
from monai_gmr.utils import ConfigurationError, warn


def end_group(conv: Convolution, spatial_dims: int) -> FieldGroup | None:
    """The group of the output fields of a convolution; ``None`` unless it is "group" or "partial".

    Example:
        >>> end_group(("group", {"group": "4mm", "out_group": "4"}), 2), end_group("gmr", 2)
        (PointGroup('4'), None)
    """
    name, arguments = split_convolution(conv)
    if name not in FIELD_ARGUMENTS:
        return None
    last = arguments.get("out_group")
    return fields_of(name, arguments, spatial_dims) if last is None else PointGroup.from_name(last, spatial_dims)


def kept_group(conv: Convolution, spatial_dims: int) -> PointGroup | None:
    """Symmetries of the grid that a net with this last convolution keeps (for partial ones, with their whole group); ``None`` for others.

    Example:
        >>> kept_group(("partial", {"group": "SE(2)", "samples": 8}), 2)
        PointGroup('4')
    """
    group = end_group(conv, spatial_dims)
    return group if group is None or isinstance(group, PointGroup) else group.grid_group


def _changed(conv: Convolution, **changes: Any) -> Convolution:
    """A convolution on fields with other input and output groups or elements."""
    name, arguments = split_convolution(conv)
    if name not in FIELD_ARGUMENTS:
        return conv
    ends = ("in_group", "out_group") if name == "group" else ("group", "samples", "seed", "in_elements", "out_elements")
    return name, {key: value for key, value in arguments.items() if key not in ends} | changes


def _is_partial(conv: Convolution) -> bool:
    return split_convolution(conv)[0] == "partial"


def _elements(conv: Convolution, end: str = "out_elements") -> PartialGroupElements | None:
    return split_convolution(conv)[1].get(end)


def with_elements(conv: Convolution, spatial_dims: int) -> Convolution:
    """A partial convolution with its output elements created, so that several layers of a block can share them; others unchanged."""
    if not _is_partial(conv) or _elements(conv) is not None:
        return conv
    before, group = _elements(conv, "in_elements"), end_group(conv, spatial_dims)
    if before is None:
        seed = split_convolution(conv)[1].get("seed")
        after = PartialGroupElements(spatial_dims, group, learned=False, seed=seed)
    else:
        after = before.following(group)
    return _changed(conv, in_elements=before, out_elements=after)


def lift(conv: Convolution, spatial_dims: int) -> Convolution:
    """The first convolution, of an image with scalar channels; a partial one outputs fields on its whole group.

    Example:
        >>> lift(("group", {"group": "4mm"}), 2), lift("gmr", 2)
        (('group', {'group': '4mm', 'in_group': '1'}), 'gmr')
    """
    return with_elements(conv, spatial_dims) if _is_partial(conv) else _changed(conv, in_group="1")


def onto(previous: Convolution, conv: Convolution, spatial_dims: int) -> Convolution:
    """The first convolution of a level, from the fields of the level before; a partial one outputs fields on new, learned elements.

    Example:
        >>> onto(("group", {"group": "4mm"}), ("group", {"group": "4"}), 2)
        ('group', {'group': PointGroup('4mm'), 'out_group': PointGroup('4')})
    """
    if _is_partial(conv):
        before = _elements(previous)
        assert before is not None  # checked by check_levels
        after = before.following(end_group(conv, spatial_dims))
        return _changed(conv, in_elements=before, out_elements=after)
    return _changed(conv, group=end_group(previous, spatial_dims), out_group=end_group(conv, spatial_dims))


def with_group_of(last: Convolution, conv: Convolution, spatial_dims: int) -> Convolution:
    """The convolution of one level on the fields of another one.

    Example:
        >>> with_group_of(("group", {"group": "4"}), ("group", {"group": "4mm", "filter": "gc"}), 2)
        ('group', {'group': PointGroup('4'), 'filter': 'gc'})
    """
    if _is_partial(conv):
        return _changed(conv, in_elements=_elements(last), out_elements=_elements(last))
    return _changed(conv, group=end_group(last, spatial_dims))


def upward(last: Convolution, conv: Convolution, spatial_dims: int) -> Convolution:
    """The first convolution of a decoder level, on the group of the coarsest level; a partial one is on new, learned elements."""
    follow = onto if _is_partial(conv) else with_group_of
    return follow(last, conv, spatial_dims)


def chain(conv: Convolution, count: int, spatial_dims: int) -> list[Convolution]:
    """The ``count`` convolutions of a block with the input and output fields of ``conv``.

    Fields between partial convolutions are on new, learned elements; a lifting one outputs the whole group, others learned elements.

    Example:
        >>> chain(("group", {"group": "4mm", "in_group": "1"}), 2, 2)
        [('group', {'group': '4mm', 'in_group': '1'}), ('group', {'group': PointGroup('4mm')})]
    """
    conv = with_elements(conv, spatial_dims)
    if not _is_partial(conv):
        return [conv] + [_changed(conv, group=end_group(conv, spatial_dims))] * (count - 1)
    first, last = _elements(conv, "in_elements"), _elements(conv)
    assert last is not None  # set by with_elements
    ends: list[PartialGroupElements | None] = [first]
    if first is None:
        for _ in range(count):
            ends.append(last if ends[-1] is None else ends[-1].following())
    else:
        for _ in range(count - 1):
            ends.append((ends[-1] or first).following())
        ends.append(last)
    return [_changed(conv, in_elements=before, out_elements=after) for before, after in itertools.pairwise(ends)]


def keeps_fields(conv: Convolution, spatial_dims: int) -> bool:
    """Whether the output fields of a convolution are those of the input, so that the input can be added to the output.

    Example:
        >>> keeps_fields(("group", {"group": "4mm"}), 2), keeps_fields(("group", {"group": "4mm", "out_group": "4"}), 2)
        (True, False)
    """
    name, arguments = split_convolution(conv)
    if name not in FIELD_ARGUMENTS:
        return True
    if name == "partial":
        return _elements(conv) is not None and _elements(conv, "in_elements") is _elements(conv)
    first = arguments.get("in_group")
    first = PointGroup.from_name(arguments["group"] if first is None else first, spatial_dims)
    return first == end_group(conv, spatial_dims)


def pointwise(conv: Convolution) -> Convolution:
    """The convolution of window 1 that matches another one: "plain", or on the same fields.

    Example:
        >>> pointwise(("group", {"group": "4", "filter": "gc"})), pointwise("gmr_harmonic")
        (('group', {'group': '4', 'filter': 'full'}), 'plain')
    """
    name, arguments = split_convolution(conv)
    if name == "partial":
        return name, {key: value for key, value in arguments.items() if key != "orders"}
    return (name, arguments | {"filter": "full"}) if name == "group" else "plain"


def field_norm(conv: Convolution, norm: Named | None, spatial_dims: int) -> Named | None:
    """The norm after a convolution; after convolutions on fields, statistics are per field.

    Example:
        >>> field_norm(("group", {"group": "4"}), "batch", 2)
        ('pointgroup', {'group': PointGroup('4'), 'norm': 'batch'})
    """
    group = end_group(conv, spatial_dims)
    return norm if group is None or norm is None else ("pointgroup", {"group": group, "norm": norm})


def field_dropout(
    conv: Convolution, dropout: Any, dropout_dim: int | None, spatial_dims: int
) -> tuple[Any, int | None]:
    """Dropout after a convolution, and its dimension; after convolutions on fields, whole fields are dropped."""
    group = end_group(conv, spatial_dims)
    if group is None or dropout is None:
        return dropout, dropout_dim
    layer = get_dropout_layer(dropout, dropout_dim)
    if not isinstance(layer, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
        raise ConfigurationError(
            f"dropout={dropout!r} has no counterpart on fields of {group!r}: give a number from 0 to 1, or ('dropout', {{'p': 0.2}})."
        )
    return ("pointgroup", {"p": float(layer.p), "group": group}), spatial_dims


def check_factors(conv: Convolution, factors: Sequence[int], spatial_dims: int) -> None:
    """Raises if a grid is resampled by factors that the group of a convolution does not keep."""
    group = end_group(conv, spatial_dims)
    if group is not None:
        group.check_keeps("strides", factors)


def check_activation(conv: Convolution, module: nn.Module, act: Any) -> None:
    """Raises if an activation after a convolution on fields has weights for single channels, which the group exchanges."""
    weights = [weight for name, weight in module.named_parameters() if name.startswith("A.")]
    if split_convolution(conv)[0] in FIELD_ARGUMENTS and any(weight.numel() > 1 for weight in weights):
        raise ConfigurationError(
            f"act={act!r} has weights for single channels, which a group exchanges: give it one weight."
        )


def restrict(conv: Convolution, last: Convolution, spatial_dims: int, channels: int) -> nn.Module:
    """Layer from fields of one level to those of a coarser one, whose group is a subgroup; for partial ones a convolution of window 1."""
    before, after = end_group(conv, spatial_dims), end_group(last, spatial_dims)
    if _is_partial(conv) and _elements(conv) is not _elements(last):
        step = _changed(pointwise(conv), in_elements=_elements(conv), out_elements=_elements(last))
        return make_convolution(step, spatial_dims, channels, channels, 1)
    if not isinstance(before, PointGroup) or not isinstance(after, PointGroup) or before == after:
        return nn.Identity()
    return PointGroupRestrict(spatial_dims, before, after)


def scalars(conv: Convolution, spatial_dims: int, channels: int) -> tuple[nn.Module, int]:
    """Layer that pools features to scalars, by maxima over the group, and the number of scalars.

    Example:
        >>> scalars(("group", {"group": "4"}), 2, 32)[1], scalars("gmr", 2, 32)[1]
        (8, 32)
    """
    group, elements = end_group(conv, spatial_dims), _elements(conv)
    if elements is not None:
        return PartialGroupPool(elements), channels // elements.order
    if not isinstance(group, PointGroup):
        return nn.Identity(), channels
    return PointGroupPool(spatial_dims, group), channels // group.order


def warn_of_few_scalars(channels: int, left: int, outputs: int) -> None:
    """Warns if pooled fields give a head fewer scalars than the classes need: on one scalar all classes lie on a line.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as found:
        ...     warn_of_few_scalars(48, 1, 2)
        ...     warn_of_few_scalars(48, 1, 3)
        >>> [str(each.message) for each in found]
        ['48 channels of fields are 1 scalar at the head, few for 3 outputs: give at least 96.']
    """
    if left < min(channels, outputs - 1):
        warn(
            f"{channels} channels of fields are {left} scalar{'s' * (left != 1)} at the head, few for {outputs} outputs: "
            f"give at least {channels // left * (outputs - 1)}."
        )


def make_head(conv: Convolution, spatial_dims: int, channels: int, out_channels: int) -> nn.Module:
    """The last layer of a segmentation net, a convolution of window 1 on scalars."""
    pool, left = scalars(conv, spatial_dims, channels)
    layer = make_convolution("plain", spatial_dims, left, out_channels, 1)
    return layer if isinstance(pool, nn.Identity) else nn.Sequential(pool, layer)


def check_levels(convolutions: Sequence[Convolution], spatial_dims: int, channels: Sequence[int], name: str) -> None:
    """Raises if levels of a net mix group convolutions, partial ones and others, if a level's group is not a subgroup of the one before, or
    if its order does not divide the channels, given by the argument ``name``."""
    groups = [end_group(conv, spatial_dims) for conv in convolutions]
    for conv in convolutions:
        given = {"in_group", "out_group", "in_elements", "out_elements"} & split_convolution(conv)[1].keys()
        if given:
            raise ConfigurationError(
                f"conv={convolutions!r} has {' and '.join(sorted(given))}, which a net chooses itself: "
                "give the group of each level in a list."
            )
        if split_convolution(conv)[1].get("filter") == "depthwise":
            raise ConfigurationError(
                f"conv={conv!r} keeps fields apart, so a net of it would not mix channels: use the filter 'full', 'g' or 'gc'."
            )
    kinds = [
        kind if kind in FIELD_ARGUMENTS else None for kind in (split_convolution(conv)[0] for conv in convolutions)
    ]
    if len(set(kinds)) > 1:
        what = (
            "scalars with fields of a group"
            if None in kinds
            else "fields on a group with fields on learned parts of one"
        )
        raise ConfigurationError(
            f"conv={convolutions!r} mixes {what}: give group convolutions to all levels, or to none."
        )
    for before, after in itertools.pairwise(groups):
        if kinds[0] == "group" and isinstance(before, PointGroup) and isinstance(after, PointGroup):
            before.positions(after)
    for group, count in zip(groups, channels):
        if group is not None:
            field_channels(name, count, group)
