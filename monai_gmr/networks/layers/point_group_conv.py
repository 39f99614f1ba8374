"""Group convolutions with the interface of ``torch.nn.ConvNd``: orientations are kept as channels."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from monai_gmr.annotations import Device, checked_arguments
from monai_gmr.arguments import check_choice
from monai_gmr.networks.layers.conv_nd import DirectConvNd, SymmetricConvNd, TransposedConvNd
from monai_gmr.ops.depthwise_conv import depthwise_conv
from monai_gmr.ops.group_filters import spread_filter
from monai_gmr.ops.made_conv import MadeKernel
from monai_gmr.ops.memory_format import keep_format
from monai_gmr.ops.ring_conv import conv_nd, conv_transpose_nd
from monai_gmr.symmetry import end_groups, field_channels, filter_table, product_table
from monai_gmr.symmetry.group_structure import GroupSpec
from monai_gmr.utils import ConfigurationError

FILTERS = ("full", "g", "gc", "depthwise")


class PointGroupFilterNd(SymmetricConvNd):
    """Base of the group convolutions: fields on groups, and the filter, spread over the elements; takes the arguments of
    :class:`PointGroupConv2d`."""

    weight_table: torch.Tensor
    spatial_table: torch.Tensor

    @checked_arguments
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Device | None = None,
        dtype: torch.dtype | None = None,
        *,
        group: GroupSpec,
        in_group: GroupSpec | None = None,
        out_group: GroupSpec | None = None,
        filter: str = "full",
    ) -> None:
        geometry = (kernel_size, stride, padding, dilation, groups, padding_mode)
        SymmetricConvNd.__init__(self, in_channels, out_channels, *geometry, dtype)
        check_choice("filter", filter, FILTERS)
        ends = end_groups(self.spatial_dims, group, in_group, out_group, self.transposed)
        self.group, self.in_group, self.out_group = ends
        # groups of the filter, for a transposed layer of its adjoint; the layer is equivariant to the group of the rows
        self.rows_group, self.columns_group = (
            (self.in_group, self.out_group) if self.transposed else (self.out_group, self.in_group)
        )
        self.field_groups = tuple(each if each.order > 1 else None for each in (self.in_group, self.out_group))
        lifts = self.columns_group.order == 1 < self.group.order
        self._check_geometry()
        self.in_fields = field_channels("in_channels", in_channels, self.in_group)
        self.out_fields = field_channels("out_channels", out_channels, self.out_group)
        # a lifting layer has nothing to factorise
        self.filter = "full" if lifts and filter in ("g", "gc") else filter
        self._check_fields()
        self.mirrored_axes = self.rows_group.mirrored_axes()
        self.out_order = self.out_group.order
        # blocks of channels that torch's convolution runs separately
        self.conv_groups = in_channels if self.filter == "depthwise" else groups

        rows, columns = (self.in_fields, self.out_fields) if self.transposed else (self.out_fields, self.in_fields)
        columns = 1 if self.filter == "depthwise" else columns // groups
        order, taps = self.columns_group.order, math.prod(self.kernel_size)
        # three axes: Module.to(memory_format=...) treats tensors with four or five as images
        shapes = {"full": (rows, columns, order * taps), "depthwise": (rows, 1, taps)}
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(shapes.get(self.filter, (rows, columns, order)), **options))
        spatial = {"g": (rows, columns, taps), "gc": (rows, 1, taps)}.get(self.filter)
        self.spatial_weight = None if spatial is None else nn.Parameter(torch.empty(spatial, **options))
        self.bias = nn.Parameter(torch.empty(self.out_fields, **options)) if bias else None
        self._finish()

    def _check_geometry(self) -> None:
        for name in ("kernel_size", "stride", "dilation", "padding", "output_padding"):
            values = getattr(self, name)
            if not isinstance(values, str):
                self.rows_group.check_keeps(name, values)

    def _check_fields(self) -> None:
        if self.in_fields % self.groups or self.out_fields % self.groups:
            raise ConfigurationError(
                f"groups={self.groups} must divide the {self.in_fields} fields of in_channels={self.in_channels} and the "
                f"{self.out_fields} of out_channels={self.out_channels}."
            )
        alike = (self.in_group, self.in_fields, 1) == (self.out_group, self.out_fields, self.groups)
        if self.filter == "depthwise" and not alike:
            raise ConfigurationError(
                f"filter='depthwise' keeps fields apart, but in_channels={self.in_channels}, out_channels={self.out_channels}, "
                f"groups={self.groups}: give equal groups and channels, and groups=1."
            )

    def _make_tables(self) -> dict[str, Any]:
        larger, smaller = self.columns_group, self.rows_group
        taps = smaller.tap_permutations(self.kernel_size)[:, None]
        tables = {"full": filter_table(larger, smaller, self.kernel_size), "depthwise": taps}
        weight_table = tables.get(self.filter, product_table(larger, smaller)[:, :, None])
        # all elements of a pair of fields share the taps
        spatial_table = taps.repeat(larger.order, axis=1) if self.filter == "g" else taps
        return {"weight_table": weight_table, "spatial_table": spatial_table}

    def reset_parameters(self) -> None:
        """Draws fresh weights; for white noise the output has the variance of a fresh ``torch.nn.ConvNd``."""
        if self.weight.is_meta:
            return
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        taps = math.prod(self.kernel_size)
        spatial = self.spatial_weight
        if spatial is not None:
            nn.init.uniform_(spatial, -math.sqrt(3 / taps), math.sqrt(3 / taps))
        if self.bias is not None:
            fan_in = self.weight[0].numel() * (1 if spatial is None else taps)
            nn.init.uniform_(self.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))

    def dense_kernel(self) -> torch.Tensor:
        """The filter as ``torch.nn.ConvNd.weight``, with rows and columns over all channels."""
        return self._spread(self.weight, self.spatial_weight)

    def _spread(self, weight: torch.Tensor, spatial: torch.Tensor | None = None) -> torch.Tensor:
        """The filter from given weights."""
        kernel = spread_filter(weight, self.weight_table)
        if spatial is not None:
            kernel = kernel * spread_filter(spatial, self.spatial_table)
        return kernel.reshape([kernel.shape[0], kernel.shape[1]] + list(self.kernel_size))

    def _made_kernel(self) -> MadeKernel:
        spatial = self.spatial_weight
        return MadeKernel(self._spread, (self.weight,) if spatial is None else (self.weight, spatial))

    def _dense_bias(self) -> torch.Tensor | None:
        """The bias of each channel, which is the bias of its field."""
        bias = self.bias
        if bias is None:
            return None
        return bias.repeat_interleave(self.out_order)

    def _dense_copy(self, name: str, **changes: Any) -> nn.Module:
        return super()._dense_copy(name, groups=self.conv_groups, **changes)

    def extra_repr(self) -> str:
        groups = f"group={self.group!r}"
        for name, each in (("in_group", self.in_group), ("out_group", self.out_group)):
            groups += "" if each == self.group else f", {name}={each!r}"
        return f"{nn.Conv2d.extra_repr(self)}, {groups}, filter={self.filter!r}"  # type: ignore[arg-type]


class PointGroupConvNd(DirectConvNd, PointGroupFilterNd):
    """Group convolution of any dimension; use :class:`PointGroupConv1d`, :class:`PointGroupConv2d` or :class:`PointGroupConv3d`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolves ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``."""
        input, padding = self._padded(input)
        bias, spatial = self._dense_bias(), self.spatial_weight
        if self.filter == "depthwise":
            y = depthwise_conv(input, self.dense_kernel(), bias, self.stride, padding, self.dilation)
            return keep_format(y, input)
        if self.filter != "gc" or spatial is None:
            if not torch.jit.is_scripting():
                return self._conv_by_kernel(input, self._made_kernel(), self.kernel_size, padding)
            y = conv_nd(input, self.dense_kernel(), bias, self.stride, padding, self.dilation, groups=self.groups)
            return keep_format(y, input)
        ones, zeros = [1] * len(padding), [0] * len(padding)
        product = spread_filter(self.weight, self.weight_table)
        product = product.reshape([product.shape[0], product.shape[1]] + ones)
        taps = spread_filter(spatial, self.spatial_table).reshape([self.out_channels, 1] + list(self.kernel_size))
        y = keep_format(conv_nd(input, product, None, ones, zeros, ones, groups=self.groups), input)
        return keep_format(depthwise_conv(y, taps, bias, self.stride, padding, self.dilation), input)


class PointGroupConvTransposeNd(TransposedConvNd, PointGroupFilterNd):
    """Transposed group convolution of any dimension; use :class:`PointGroupConvTranspose2d` or its variants in 1D and 3D."""

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """Convolves ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``, to the spatial sizes at the end of
        ``output_size``."""
        padding, extra = self._paddings(input, output_size)
        if not torch.jit.is_scripting():
            return self._conv_by_kernel(input, self._made_kernel(), self.kernel_size, padding, extra)
        kernel, bias = self.dense_kernel(), self._dense_bias()
        groups, dilation = self.conv_groups, self.dilation
        y = conv_transpose_nd(input, kernel, bias, self.stride, padding, extra, groups=groups, dilation=dilation)
        return keep_format(y, input)


class PointGroupConv2d(PointGroupConvNd):
    r"""Group convolution: applies every filter in all orientations of a group, with the results as channels.

    .. math::
        y_{o,g} = b_o + \sum_{i,h} W_{(o,g),(i,h)} \star x_{i,h}, \qquad W_{(o,g),(i,h)}(t) = w_{oi}(g^{-1} h,\; g^{-1} t)

    A field has one channel per element of the group; transforming the image transforms the channels among themselves
    (:func:`~monai_gmr.symmetry.transform_fields`). Tensors have ``fields * order`` channels, field by field, so that every block of
    ``torch.nn`` works on them. Accepts everything that ``torch.nn.Conv2d`` accepts and the group keeps: a window or stride that differs
    between axes needs a group that does not exchange them. A state dict does not name the group: load it into a layer with the same one.

    Shape:
        - input: ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``
        - output: as ``torch.nn.Conv2d``'s
        - ``weight``: ``(out_fields, in_fields / groups, order * taps)``; for separable filters ``(out_fields, in_fields / groups, order)``
          and ``spatial_weight``, ``(out_fields, in_fields / groups or 1, taps)``; ``bias``: ``(out_fields,)``

    Args:
        in_channels, out_channels: channels of the input and of the output, multiples of the order of ``in_group`` and ``out_group``.
        groups: blocks of fields that are convolved separately.
        group: name of the group (:func:`~monai_gmr.symmetry.named_group`), a pair of the name and its main axis, or a
            :class:`~monai_gmr.symmetry.PointGroup`.
        in_group: "1" for scalars, such as an image, which are lifted to fields; default ``group``.
        out_group: a subgroup for the output fields; the layer is then equivariant only to it, with "1" to no symmetry (use
            :class:`PointGroupPool` for scalars); default ``group``.
        filter: "full": free weights on group and taps; "g": a product of weights on the group and weights on the taps, for each pair of
            fields; "gc": taps shared by all inputs of a field, run as a product over channels, then one filter per channel; "depthwise":
            weights on the taps only, fields are not mixed.

    All other arguments are those of :class:`GMRConv2d`, ``padding="symmetric"`` included.

    Raises:
        ConfigurationError: if arguments or input do not fit; the message says what does.

    Example:
        >>> from monai_gmr.symmetry import transform_fields, transform_grid
        >>> lift = PointGroupConv2d(1, 8, 3, padding=1, group="4mm", in_group="1")
        >>> layer = PointGroupConv2d(8, 16, 3, padding=1, group="4mm")
        >>> x, g = torch.rand(1, 1, 9, 12), lift.group.elements[5]
        >>> expected = transform_fields(layer(lift(x)), g, layer.group)
        >>> torch.allclose(layer(lift(transform_grid(x, g))), expected, atol=1e-6)
        True

    Source:
        Cohen and Welling, arXiv 1602.07576; separable filters: arXiv 2106.04914; onto subgroups: GroCo.
    """

    spatial_dims = 2


class PointGroupConv1d(PointGroupConvNd):
    """:class:`PointGroupConv2d` in one dimension, where mirroring is the only symmetry."""

    spatial_dims = 1


class PointGroupConv3d(PointGroupConvNd):
    """:class:`PointGroupConv2d` in three dimensions."""

    spatial_dims = 3


class PointGroupConvTranspose2d(PointGroupConvTransposeNd):
    """Transposed group convolution: the adjoint of :class:`PointGroupConv2d` with ``in_group`` and ``out_group`` exchanged.

    Maps fields on a subgroup, ``in_group``, to fields on ``out_group`` and is equivariant to the subgroup, so with ``in_group="1"`` to no
    symmetry (use :class:`PointGroupConv2d` to lift). With ``out_group="1"``, the adjoint of lifting, it maps to scalars.

    Shape:
        - input: ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``
        - output: as ``torch.nn.ConvTranspose2d``'s
        - ``weight``: ``(in_fields, out_fields / groups, order * taps)``

    Args:
        stride, padding, output_padding: as in :class:`GMRConvTranspose2d`.

    All other arguments are those of :class:`PointGroupConv2d`, in the order of ``torch.nn.ConvTranspose2d``.

    Example:
        >>> layer = PointGroupConvTranspose2d(8, 8, kernel_size=4, stride=2, padding="symmetric", group="4mm")
        >>> layer(torch.rand(1, 8, 7, 8)).shape
        torch.Size([1, 8, 14, 16])
    """

    spatial_dims = 2


class PointGroupConvTranspose1d(PointGroupConvTransposeNd):
    """:class:`PointGroupConvTranspose2d` in one dimension."""

    spatial_dims = 1


class PointGroupConvTranspose3d(PointGroupConvTransposeNd):
    """:class:`PointGroupConvTranspose2d` in three dimensions."""

    spatial_dims = 3
