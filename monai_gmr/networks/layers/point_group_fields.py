"""Layers on fields of a group: pooling over the group, norms, dropout, restriction to a subgroup, and a dense layer."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.utils import get_norm_layer
from torch import nn

from monai_gmr.annotations import Device, Named, checked_arguments
from monai_gmr.arguments import check_choice, check_number
from monai_gmr.networks.layers.conv_nd import check_dtype, check_input_dtype
from monai_gmr.networks.layers.table_module import TableModule
from monai_gmr.ops.group_filters import spread_filter
from monai_gmr.ops.memory_format import keep_format
from monai_gmr.ops.split_axis import split_axis
from monai_gmr.symmetry import PointGroup, as_field_group, coset_table, end_groups, field_channels, product_table
from monai_gmr.symmetry.group_structure import GroupSpec
from monai_gmr.symmetry.sampled_group import FieldGroup, SampledGroup
from monai_gmr.utils import ConfigurationError

NORMS = ("batch", "instance", "group", "syncbatch")


def check_fields(module: nn.Module, x: torch.Tensor, spatial_dims: int, order: int, channels: int = 0) -> None:
    """Raises if the input of a layer is not ``([batch], fields * order, *spatial)``, or does not have ``channels`` channels if given."""
    if torch.jit.is_tracing():
        return
    given = x.shape[-spatial_dims - 1] if x.dim() - spatial_dims in (1, 2) else 0
    if given == 0 or given % order or (channels and given != channels):
        raise ConfigurationError(
            f"{type(module).__name__} of {spatial_dims} spatial axes and a group of {order} was given an input of shape {tuple(x.shape)}: "
            f"give ([batch], {channels or f'a multiple of {order}'} channels, {spatial_dims} spatial sizes)."
        )


def _name_fields(module: nn.Module, group: FieldGroup) -> None:
    """Sets the ``field_groups`` of a layer if its group acts on fields by exchanging channels."""
    if isinstance(group, PointGroup):
        module.field_groups = (group, group)  # type: ignore[assignment]


class PointGroupPool(TableModule):
    """Maximum or mean of fields over all elements, to scalars, or over cosets, to fields on a subgroup.

    Cosets are those of a complement of the subgroup, the first if there are several (:func:`~monai_gmr.symmetry.coset_table`), so the
    result does not depend on a choice of representatives.

    Args:
        spatial_dims: 1, 2 or 3.
        group, subgroup: as in :class:`PointGroupConv2d`; without a subgroup the result is one scalar channel per field.
        reduce: "max" or "mean".

    Shape:
        - input: ``(batch, fields * order, *spatial)``
        - output: ``(batch, fields, *spatial)``, or ``(batch, fields * subgroup order, *spatial)``

    Example:
        >>> PointGroupPool(2, "4mm")(torch.rand(1, 16, 5, 6)).shape, PointGroupPool(2, "4mm", "4")(torch.rand(1, 16, 5, 6)).shape
        (torch.Size([1, 2, 5, 6]), torch.Size([1, 8, 5, 6]))
    """

    cosets: torch.Tensor

    @checked_arguments
    def __init__(
        self, spatial_dims: int, group: GroupSpec, subgroup: GroupSpec | None = None, *, reduce: str = "max"
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        check_choice("reduce", reduce, ("max", "mean"))
        self.reduce, self.group = reduce, PointGroup.from_name(group, spatial_dims)
        self.subgroup = None if subgroup is None else PointGroup.from_name(subgroup, spatial_dims)
        self.order, self.field_groups = self.group.order, (self.group, self.subgroup)
        self._finish_tables()

    def _make_tables(self) -> dict[str, Any]:
        whole = [list(range(self.order))]
        return {"cosets": whole if self.subgroup is None else coset_table(self.group, self.subgroup)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reduces the elements of each coset."""
        if not torch.jit.is_scripting():
            check_fields(self, x, self.spatial_dims, self.order)
            self.mend_tables()
        axis = x.dim() - self.spatial_dims - 1
        y = split_axis(x, axis, self.order).index_select(axis + 1, self.cosets.flatten())
        y = split_axis(y, axis + 1, self.cosets.shape[1])
        y = y.amax(axis + 2) if self.reduce == "max" else y.mean(axis + 2)
        return keep_format(y.flatten(axis, axis + 1), x)

    def extra_repr(self) -> str:
        onto = "" if self.subgroup is None else f", {self.subgroup!r}"
        return f"{self.group!r}{onto}, reduce={self.reduce!r}"


class PointGroupRestrict(TableModule):
    """Turns fields on a group into ``order / |H|`` times as many fields on a subgroup, by reordering channels; nothing is lost.

    Args:
        spatial_dims, group, subgroup: as in :class:`PointGroupPool`.

    Example:
        >>> PointGroupRestrict(2, "4", "2")(torch.arange(4.0).reshape(1, 4, 1, 1)).flatten()
        tensor([0., 2., 1., 3.])
    """

    channels: torch.Tensor

    @checked_arguments
    def __init__(self, spatial_dims: int, group: GroupSpec, subgroup: GroupSpec) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.group, self.subgroup = (PointGroup.from_name(each, spatial_dims) for each in (group, subgroup))
        self.order, self.field_groups = self.group.order, (self.group, self.subgroup)
        self._finish_tables()

    def _make_tables(self) -> dict[str, Any]:
        return {"channels": self.group.right_cosets(self.subgroup).ravel()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reorders the channels of ``(batch, fields * order, *spatial)``."""
        if not torch.jit.is_scripting():
            check_fields(self, x, self.spatial_dims, self.order)
            self.mend_tables()
        axis = x.dim() - self.spatial_dims - 1
        y = split_axis(x, axis, self.order).index_select(axis + 1, self.channels)
        return keep_format(y.flatten(axis, axis + 1), x)

    def extra_repr(self) -> str:
        return f"{self.group!r}, {self.subgroup!r}"


class PointGroupNorm(nn.Module):
    """Norm with statistics and affine weights shared by the channels of a field, so that it commutes with the group.

    Args:
        spatial_dims, group: as in :class:`PointGroupPool`, or a :class:`~monai_gmr.symmetry.SampledGroup`.
        num_features: channels of the input, a multiple of the group's order.
        norm: "batch", "instance", "group" or "syncbatch", or a pair of the name and its arguments, as in
            ``monai.networks.layers.utils.get_norm_layer``; numbers of "group" count fields.

    Example:
        >>> norm = PointGroupNorm(2, 16, "4mm", "batch")
        >>> norm(torch.rand(1, 16, 5, 6)).shape, norm.norm.weight.shape
        (torch.Size([1, 16, 5, 6]), torch.Size([2]))
    """

    @checked_arguments
    def __init__(
        self, spatial_dims: int, num_features: int, group: GroupSpec | SampledGroup, norm: Named = "batch"
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        pair = (norm, {}) if isinstance(norm, str) else norm
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[1], Mapping):
            raise ConfigurationError(
                f"norm={norm!r} is impossible: give a name, or a pair of it and its arguments, such as ('group', {{'num_groups': 2}})."
            )
        name, arguments = str(pair[0]).lower(), dict(pair[1])
        check_choice("norm", name, NORMS)
        self.group = as_field_group(group, spatial_dims)
        self.order = self.group.order
        _name_fields(self, self.group)
        self.num_features, fields = num_features, field_channels("num_features", num_features, self.group)
        try:
            self.norm = get_norm_layer((name, arguments), 1, fields)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"norm={norm!r} cannot be built for {fields} fields ({error}): give the arguments of torch.nn's norm, numbers in fields."
            ) from error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, fields * order, *spatial)`` to the same shape."""
        if not torch.jit.is_scripting():
            check_fields(self, x, self.spatial_dims, self.order, self.num_features)
        batch = x.unsqueeze(0) if x.dim() == self.spatial_dims + 1 else x
        return keep_format(self.norm(split_axis(batch, 1, self.order).flatten(2)).reshape(x.shape), x)

    def extra_repr(self) -> str:
        return repr(self.group)


class PointGroupDropout(nn.Module):
    """Dropout of whole fields: all channels of a field, over the whole image, are kept or dropped together.

    Args:
        spatial_dims, group: as in :class:`PointGroupNorm`.
        p: probability with which a field is dropped.

    Example:
        >>> y = PointGroupDropout(2, 0.5, group="4mm")(torch.ones(1, 16, 5, 6))
        >>> {float(field.std()) for field in y.unflatten(1, (2, 8)).flatten(0, 1)}
        {0.0}
    """

    @checked_arguments
    def __init__(self, spatial_dims: int, p: float = 0.5, *, group: GroupSpec | SampledGroup) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        check_number("p", p, 0, 1)
        self.group, self.p = as_field_group(group, spatial_dims), float(p)
        self.order = self.group.order
        _name_fields(self, self.group)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, fields * order, *spatial)`` to the same shape."""
        if not torch.jit.is_scripting():
            check_fields(self, x, self.spatial_dims, self.order)
        if not self.training or self.p == 0:
            return x
        axis = x.dim() - self.spatial_dims - 1
        shape = list(x.shape)[: axis + 1] + [1] * self.spatial_dims
        shape[axis] = shape[axis] // self.order
        return x * F.dropout(x.new_ones(shape), self.p, True).repeat_interleave(self.order, axis)

    def extra_repr(self) -> str:
        return f"{self.group!r}, p={self.p:g}"


class PointGroupDense(TableModule):
    """Linear layer on fields without spatial axes: a ``torch.nn.Linear`` that commutes with a group.

    Args:
        in_features, out_features: channels, multiples of the order of ``in_group`` and ``out_group``.
        bias, device, dtype: as in ``torch.nn.Linear``.
        spatial_dims, group, in_group, out_group: as in :class:`PointGroupConv2d`.

    Shape:
        - input: ``(..., in_features)``
        - output: ``(..., out_features)``

    Example:
        >>> PointGroupDense(8, 16, spatial_dims=2, group="4mm")(torch.rand(3, 8)).shape
        torch.Size([3, 16])
    """

    products: torch.Tensor
    bias: torch.Tensor | None

    @checked_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device | None = None,
        dtype: torch.dtype | None = None,
        *,
        spatial_dims: int,
        group: GroupSpec,
        in_group: GroupSpec | None = None,
        out_group: GroupSpec | None = None,
    ) -> None:
        super().__init__()
        self.group, self.in_group, self.out_group = end_groups(spatial_dims, group, in_group, out_group)
        check_dtype(dtype)
        self.in_features, self.out_features, self.out_order = in_features, out_features, self.out_group.order
        fields = field_channels("in_features", in_features, self.in_group)
        rows = field_channels("out_features", out_features, self.out_group)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(rows, fields, self.in_group.order, **options))
        self.bias = nn.Parameter(torch.empty(rows, **options)) if bias else None
        self._finish_tables(self.weight.device)
        self.reset_parameters()

    def _make_tables(self) -> dict[str, Any]:
        return {"products": product_table(self.in_group, self.out_group)}

    def reset_parameters(self) -> None:
        """Draws fresh weights as ``torch.nn.Linear`` does."""
        if self.weight.is_meta:
            return
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        if not torch.jit.is_scripting():
            self._check_input(input)
            self.mend_tables()
        weight = spread_filter(self.weight, self.products.unsqueeze(2)).squeeze(2)
        bias = self.bias
        if bias is not None:
            bias = bias.repeat_interleave(self.out_order)
        return F.linear(input, weight, bias)

    @torch.jit.unused
    def _check_input(self, input: torch.Tensor) -> None:
        if torch.jit.is_tracing():
            return
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise ConfigurationError(
                f"{type(self).__name__} was given an input of shape {tuple(input.shape)}: give (..., {self.in_features}), channels last."
            )
        check_input_dtype(self, input)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.in_group!r} to {self.out_group!r}, bias={self.bias is not None}"
