"""Filters and fields on a point group: index tables of group convolutions, pooling and restriction, and how a group acts on channels.

A *field* on a group is one channel for each of its elements. Channels are field-major: channel ``c * order + h`` of a tensor is element
``h`` of field ``c``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from monai_gmr.arguments import check_count
from monai_gmr.symmetry.group_structure import GroupSpec, PointGroup
from monai_gmr.symmetry.point_groups import Array, transform_grid
from monai_gmr.symmetry.sampled_group import FieldGroup
from monai_gmr.utils import ConfigurationError


def field_channels(name: str, channels: int, group: FieldGroup) -> int:
    """Number of fields in a number of channels.

    Raises:
        ConfigurationError: if it is not an integer of at least 1, or the order of the group does not divide it.

    Example:
        >>> field_channels("in_channels", 16, PointGroup.from_name("4mm", 2))
        2
    """
    check_count(name, channels)
    fields, rest = divmod(channels, group.order)
    if rest or fields < 1:
        below, above = group.order * max(fields, 1), group.order * (max(fields, 0) + 1)
        nearest = f"{below} or {above}" if below != above else f"{below} or {2 * below}"
        raise ConfigurationError(
            f"{name}={channels} is not a multiple of the {group.order} elements of {group!r}: use {nearest}."
        )
    return fields


def end_groups(
    spatial_dims: int,
    group: GroupSpec,
    in_group: GroupSpec | None,
    out_group: GroupSpec | None,
    transposed: bool = False,
) -> tuple[PointGroup, PointGroup, PointGroup]:
    """Groups of a layer: the layer's, that of its input fields, and that of its output fields (:meth:`PointGroup.from_name`).

    The output's group is a subgroup of the input's, and vice versa in a ``transposed`` layer; or the larger one is "1", whose channels are
    scalars.

    Raises:
        ConfigurationError: if a filter on these groups is not equivariant.

    Example:
        >>> end_groups(2, "4mm", None, "4")
        (PointGroup('4mm'), PointGroup('4mm'), PointGroup('4'))
    """
    whole = PointGroup.from_name(group, spatial_dims)
    named = (("in_group", in_group), ("out_group", out_group))
    ends = [whole if each is None else PointGroup.from_name(each, spatial_dims, name) for name, each in named]
    names = ["in_group", "out_group"]
    larger, smaller = ends[::-1] if transposed else ends
    if larger.order > 1 and not larger.contains(smaller):
        outer, inner = names[::-1] if transposed else names
        raise ConfigurationError(
            f"{outer}={larger!r} does not contain {inner}={smaller!r}: give a group and one of its subgroups, or '1' for {outer}, whose "
            "channels are scalars."
        )
    return whole, ends[0], ends[1]


def product_table(in_group: PointGroup, out_group: PointGroup) -> np.ndarray:
    """Index of ``g^-1 h`` in ``in_group`` for ``g`` of ``out_group`` and ``h`` of ``in_group``, ``(out order, in order)``.

    ``out_group`` is a subgroup of ``in_group``; or ``in_group`` is trivial, and its only channel is a scalar, which is lifted.

    Example:
        >>> quarter, half = (PointGroup.from_name(name, 2) for name in "42")
        >>> product_table(quarter, half).tolist()
        [[0, 1, 2, 3], [2, 3, 0, 1]]
    """
    if in_group.order == 1:
        return np.zeros((out_group.order, 1), int)
    return in_group.products[in_group.inverses[in_group.positions(out_group)]]


def filter_table(in_group: PointGroup, out_group: PointGroup, kernel_size: Sequence[int]) -> np.ndarray:
    r"""Index of the weight at ``(g^-1 h, g^-1 x)`` in a flat array ``(in order, taps)``, ``(out order, in order, taps)``.

    .. math:: W_{(o,g),(i,h)}(x) = w_{oi}(g^{-1} h,\; g^{-1} x)

    Example:
        >>> mirror = PointGroup.from_name("m", 1)
        >>> filter_table(mirror, mirror, (2,)).tolist()
        [[[0, 1], [2, 3]], [[3, 2], [1, 0]]]

    Source:
        Cohen and Welling, Group equivariant convolutional networks, arXiv 1602.07576, section 6.
    """
    taps = out_group.tap_permutations(kernel_size)
    return product_table(in_group, out_group)[:, :, None] * taps.shape[1] + taps[:, None]


def coset_table(group: PointGroup, subgroup: PointGroup) -> np.ndarray:
    """Indices of the elements ``h k`` that pooling onto a subgroup reduces to the subgroup's element ``h``, ``(|H|, order / |H|)``.

    ``k`` runs over the complement of the subgroup if there is one (rows are then cosets ``h K``, which do not depend on a choice of
    representatives), else over the least elements of the cosets ``H g``. The rows partition the group, and the subgroup permutes them.

    Example:
        >>> coset_table(PointGroup.from_name("2mm", 2), PointGroup.from_name("m", 2)).tolist()
        [[0, 2], [1, 3]]
    """
    complement = group.complement(subgroup)
    inside = group.positions(subgroup)
    others = group.right_cosets(subgroup)[:, 0] if complement is None else group.positions(complement)
    return group.products[np.ix_(inside, others)]


def transform_fields(x: Array, element: np.ndarray, group: PointGroup) -> Array:
    """Copy of fields on a group, ``(batch, fields * order, *spatial)``, with image and channels transformed by an element.

    The transformation is ``y[c, h](p) = x[c, g^-1 h](g^-1 p)``.

    Example:
        >>> group = PointGroup.from_name("m", 1)
        >>> transform_fields(torch.tensor([[[1, 2], [3, 4]]]), group.elements[1], group).tolist()
        [[[4, 3], [2, 1]]]
    """
    index = group.index(element)
    fields = field_channels("the number of channels", x.shape[1], group)
    source = group.products[group.inverses[index]]
    channels = (np.arange(fields)[:, None] * group.order + source).ravel()
    moved = transform_grid(x, element)
    return moved[:, torch.as_tensor(channels)] if isinstance(moved, torch.Tensor) else moved[:, channels]
