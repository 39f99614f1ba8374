"""MONAI's ``Convolution``, ``ResidualUnit`` and ResNet block with radial kernels and strides that are exact on every size."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from monai.networks.layers.factories import Act, Dropout, Norm
from monai.networks.layers.utils import get_act_layer
from torch import nn

from monai_gmr.annotations import Named, SpatialDims, checked_arguments
from monai_gmr.arguments import check_choice, check_count, check_number, is_number
from monai_gmr.networks.blocks.adn import GMRADN
from monai_gmr.networks.layers import GMRDownsample, GMRUpsample, keep_channels_last, make_convolution, make_downsample
from monai_gmr.networks.layers.conv_nd import whole_numbers
from monai_gmr.networks.layers.factories import Convolution, check_named
from monai_gmr.networks.layers.gmr_harmonic_conv import GMRHarmonicConvNd
from monai_gmr.networks.layers.group_levels import (
    chain,
    check_activation,
    check_factors,
    field_dropout,
    field_norm,
    keeps_fields,
    pointwise,
    with_elements,
)
from monai_gmr.utils import ConfigurationError

Ordering = Annotated[str, lambda text: set(text.upper()) <= set("ADN"), "letters of A, D and N, such as 'NDA'"]


def _same_padding(
    spatial_dims: int, kernel_size: int | Sequence[int], dilation: int | Sequence[int]
) -> tuple[int, ...]:
    """Padding at both ends of an axis that keeps its length; only odd windows have one."""
    windows, steps = (
        whole_numbers(name, value, spatial_dims)
        for name, value in (("kernel_size", kernel_size), ("dilation", dilation))
    )
    reach = [d * (k - 1) for k, d in zip(windows, steps)]
    if any(r % 2 for r in reach):
        raise ConfigurationError(
            f"kernel_size={kernel_size} cannot keep the size symmetrically: use an odd kernel_size, or give the padding."
        )
    return tuple(r // 2 for r in reach)


class GMRConvolution(nn.Sequential):
    """Resampling, radial convolution, then activation, dropout and normalisation: ``monai.networks.blocks.Convolution``.

    A stride becomes a :class:`GMRDownsample` before the convolution, a transposed stride a :class:`GMRUpsample`, so that the block is
    exactly equivariant on every size.

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels, out_channels: channels of the input and of the output.
        strides: factor by which axes become shorter, or longer if ``is_transposed``.
        kernel_size: window length in voxels.
        adn_ordering, act, norm, dropout, dropout_dim: as in ``monai.networks.blocks.Convolution``.
        dilation: distance of neighbouring taps in voxels.
        groups: blocks of channels that are convolved separately.
        bias: whether the convolution has a bias.
        conv_only: whether to omit activation, dropout and normalisation.
        is_transposed: whether to upsample instead of downsample.
        padding: voxels at both ends of an axis; default: keeps the size.
        output_padding: must be ``None`` or 0; other values break the symmetry.
        conv: "gmr", "gmr_harmonic", "group", "partial", "sre" or "plain", or a pair of the name and further arguments of the layer. For
            convolutions on fields ("group", "partial"), norm and dropout act on whole fields.
        rings: as in :func:`make_convolution`.
        spacing, padding_mode: as in :class:`GMRConv2d`.

    Raises:
        ConfigurationError: if arguments do not fit; the message says what does.

    Example:
        >>> GMRConvolution(2, 1, 8, strides=2, kernel_size=5)(torch.rand(1, 1, 9, 12)).shape
        torch.Size([1, 8, 5, 6])
    """

    @checked_arguments
    def __init__(
        self,
        spatial_dims: SpatialDims,
        in_channels: int,
        out_channels: int,
        strides: int | Sequence[int] = 1,
        kernel_size: int | Sequence[int] = 3,
        adn_ordering: Ordering = "NDA",
        act: Named | None = "PRELU",
        norm: Named | None = "INSTANCE",
        dropout: Named | float | None = None,
        dropout_dim: int | None = 1,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        conv_only: bool = False,
        is_transposed: bool = False,
        padding: int | Sequence[int] | None = None,
        output_padding: int | Sequence[int] | None = None,
        *,
        conv: Convolution = "gmr",
        rings: str = "gaussian",
        spacing: Sequence[float] | None = None,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        check_choice("dropout_dim", dropout_dim, (1, 2, 3, None))
        if is_number(dropout):
            check_number("dropout", dropout, 0, 1)
            dropout = float(dropout)  # type: ignore[arg-type]
        for name, value, factory in (("act", act, Act), ("norm", norm, Norm), ("dropout", dropout, Dropout)):
            check_named(name, value, factory)
        conv = with_elements(conv, spatial_dims)
        if output_padding is not None and any(whole_numbers("output_padding", output_padding, spatial_dims, least=0)):
            raise ConfigurationError(
                f"output_padding={output_padding} breaks the symmetry: leave it out, the block grows an axis exactly strides times."
            )
        factors = whole_numbers("strides", strides, spatial_dims)
        check_factors(conv, factors, spatial_dims)
        if any(factor != 1 for factor in factors):
            resample = GMRUpsample if is_transposed else GMRDownsample
            self.add_module("resample", resample(spatial_dims, factors))
        layer = make_convolution(
            conv,
            spatial_dims,
            in_channels,
            out_channels,
            kernel_size,
            padding=_same_padding(spatial_dims, kernel_size, dilation) if padding is None else padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            rings=rings,
            spacing=spacing,
        )
        self.add_module("conv", layer)
        if not conv_only and not (act is None and norm is None and dropout is None):
            norm = keep_channels_last(field_norm(conv, norm, spatial_dims))
            dropout, dropout_dim = field_dropout(conv, dropout, dropout_dim, spatial_dims)
            # harmonic responses are recomputed in the backward pass, so tensors between these modules are, too
            recomputes = isinstance(layer, GMRHarmonicConvNd)
            settings = (out_channels, act, norm, spatial_dims, dropout, dropout_dim)
            self.add_module("adn", GMRADN(adn_ordering, *settings, recomputes=recomputes))
            check_activation(conv, self.get_submodule("adn"), act)


class GMRResidualUnit(nn.Module):
    """A chain of :class:`GMRConvolution` plus its input: ``monai.networks.blocks.ResidualUnit``.

    Args:
        strides: factor by which axes become shorter, by a :class:`GMRDownsample` before both paths.
        subunits: number of convolutions.
        last_conv_only: whether the last convolution has no activation, dropout and normalisation.
        conv: as in :class:`GMRConvolution`; the first group convolution maps ``in_group`` to ``out_group``, partial ones map
            ``in_elements`` to ``out_elements``.
        kwargs: rings, spacing, padding_mode of :class:`GMRConvolution`.

    All other arguments are those of :class:`GMRConvolution`.

    Example:
        >>> GMRResidualUnit(3, 2, 4, strides=2)(torch.rand(1, 2, 7, 8, 9)).shape
        torch.Size([1, 4, 4, 4, 5])
    """

    @checked_arguments
    def __init__(
        self,
        spatial_dims: SpatialDims,
        in_channels: int,
        out_channels: int,
        strides: int | Sequence[int] = 1,
        kernel_size: int | Sequence[int] = 3,
        subunits: int = 2,
        adn_ordering: Ordering = "NDA",
        act: Named | None = "PRELU",
        norm: Named | None = "INSTANCE",
        dropout: Named | float | None = None,
        dropout_dim: int | None = 1,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        last_conv_only: bool = False,
        padding: int | Sequence[int] | None = None,
        *,
        conv: Convolution = "gmr",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        conv = with_elements(conv, spatial_dims)
        factors = whole_numbers("strides", strides, spatial_dims)
        check_factors(conv, factors, spatial_dims)
        strided = any(factor != 1 for factor in factors)
        self.resample = GMRDownsample(spatial_dims, factors) if strided else nn.Identity()
        check_count("in_channels", in_channels)
        check_count("out_channels", out_channels)
        if padding is not None and whole_numbers("padding", padding, spatial_dims, least=0) != _same_padding(
            spatial_dims, kernel_size, dilation
        ):
            raise ConfigurationError(
                f"padding={padding} changes the size, and the input is added to the result: leave it out."
            )
        self.residual: nn.Module = nn.Identity()
        if strided or in_channels != out_channels or not keeps_fields(conv, spatial_dims):
            self.residual = make_convolution(pointwise(conv), spatial_dims, in_channels, out_channels, 1, bias=bias)
        self.conv = nn.Sequential()
        options = {"kernel_size": kernel_size, "dilation": dilation, "bias": bias, "padding": padding, **kwargs}
        options |= {"adn_ordering": adn_ordering, "act": act, "norm": norm}
        options |= {"dropout": dropout, "dropout_dim": dropout_dim}
        steps = chain(conv, max(1, subunits), spatial_dims)
        for unit, step in enumerate(steps):
            options["conv_only"] = last_conv_only and unit == len(steps) - 1
            options["conv"] = step
            block = GMRConvolution(spatial_dims, out_channels if unit else in_channels, out_channels, **options)
            self.conv.add_module(f"unit{unit:d}", block)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, in_channels, *spatial)`` to ``(batch, out_channels, *ceil(spatial / strides))``."""
        x = self.resample(x)
        return self.residual(x) + self.conv(x)


class GMRResNetBlock(nn.Module):
    """Basic (two convolutions) or bottleneck (1, k, 1) residual block.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        channels: channels of the convolutions; the output has ``channels * expansion``.
        kernel_size: window length in voxels.
        stride: 1, or 2 to halve the grid before the convolutions, once for both paths.
        bottleneck: whether the block is a bottleneck of expansion 4.
        downsample: as in :func:`make_downsample`.
        act, norm, conv, kwargs: as in :class:`GMRConvolution`.
        downsample_inside: whether a bottleneck halves the grid after its first convolution, not before it (ResNet "v1.5").

    Example:
        >>> GMRResNetBlock(2, 8, 16, kernel_size=5, stride=2)(torch.rand(1, 8, 9, 12)).shape
        torch.Size([1, 16, 5, 6])
    """

    @checked_arguments
    def __init__(
        self,
        spatial_dims: SpatialDims,
        in_channels: int,
        channels: int,
        kernel_size: int | Sequence[int],
        stride: int = 1,
        bottleneck: bool = False,
        *,
        downsample: Named = ("lowpass", {"sigma": 1.5}),
        downsample_inside: bool = False,
        act: Named = "swish",
        norm: Named = "batch",
        conv: Convolution = "gmr",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        conv = with_elements(conv, spatial_dims)
        window = whole_numbers("kernel_size", kernel_size, spatial_dims)
        windows = [(1,) * spatial_dims, window, (1,) * spatial_dims] if bottleneck else [window, window]
        widths = [in_channels, channels, channels] + ([4 * channels] if bottleneck else [])
        self.downsample = make_downsample(downsample, spatial_dims) if stride > 1 else nn.Identity()
        self.inside = downsample_inside and bottleneck and stride > 1
        common: dict[str, Any] = {"norm": norm, "bias": False}
        self.convs = nn.Sequential()
        for i, (window, step) in enumerate(zip(windows, chain(conv, len(windows), spatial_dims))):
            options = common | kwargs | {"conv": pointwise(step) if max(window) == 1 else step, "kernel_size": window}
            options["act"] = act if i + 1 < len(windows) else None
            self.convs.add_module(f"conv{i + 1}", GMRConvolution(spatial_dims, widths[i], widths[i + 1], **options))
            if self.inside and i == 0:
                self.convs.add_module("downsample", make_downsample(downsample, spatial_dims))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != widths[-1] or not keeps_fields(conv, spatial_dims):
            options = common | {"kernel_size": 1, "act": None, "conv": pointwise(conv)}
            self.shortcut = GMRConvolution(spatial_dims, in_channels, widths[-1], **options)
        self.act = get_act_layer(act)

    def last_norm(self) -> nn.Module:
        """Norm before the sum; initialised to zero, it makes a fresh block pass its input through."""
        return self.convs[-1].get_submodule("adn.N")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, in_channels, *spatial)`` to ``(batch, channels * expansion, *ceil(spatial / stride))``."""
        coarse = self.downsample(x)
        return self.act(self.convs(x if self.inside else coarse) + self.shortcut(coarse))
