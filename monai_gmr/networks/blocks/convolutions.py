"""MONAI's ``Convolution`` and ``ResidualUnit`` with radial kernels and strides that are exact on every size."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.utils import _ntuple

from monai_gmr.networks.blocks.adn import GMRADN
from monai_gmr.networks.layers import GMRDownsample, GMRUpsample, keep_channels_last, make_convolution
from monai_gmr.utils import ConfigurationError


def symmetric_same_padding(
    spatial_dims: int, kernel_size: int | Sequence[int], dilation: int | Sequence[int]
) -> tuple[int, ...]:
    """Voxels at both ends of an axis that keep its length.

    Args:
        spatial_dims: number of axes.
        kernel_size: odd window length in voxels.
        dilation: distance of neighbouring taps in voxels.

    Raises:
        ConfigurationError: for an even window, which can keep the length only by padding one end more than the other.

    Example:
        >>> symmetric_same_padding(2, (3, 5), 2)
        (2, 4)
    """
    per_axis = _ntuple(spatial_dims)
    reach = [d * (k - 1) for k, d in zip(per_axis(kernel_size), per_axis(dilation))]
    if any(r % 2 for r in reach):
        raise ConfigurationError(
            f"kernel_size={kernel_size} cannot keep the size symmetrically: use an odd kernel_size, or give the padding."
        )
    return tuple(r // 2 for r in reach)


class GMRConvolution(nn.Sequential):
    """Resampling, radial convolution, then activation, dropout and normalisation: ``monai.networks.blocks.Convolution``.

    A stride is a :class:`GMRDownsample` before the convolution, a transposed stride a :class:`GMRUpsample` before it, so that
    the block is exactly equivariant on every size.

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        strides: factor by which axes become shorter, or longer if ``is_transposed``.
        kernel_size: window length in voxels.
        adn_ordering, act, norm, dropout, dropout_dim: as in ``monai.networks.blocks.Convolution``.
        dilation: distance of neighbouring taps in voxels.
        groups: blocks of channels that do not see each other.
        bias: whether the convolution has a bias.
        conv_only: leave activation, dropout and normalisation out.
        is_transposed: upsample rather than downsample.
        padding: voxels at both ends of an axis; default: what keeps the size.
        output_padding: must be ``None`` or 0: any other breaks the symmetry.
        conv: "gmr", "gmr_harmonic", "sre" or "plain", or a pair of the name and further arguments of the layer.
        rings: as in :func:`make_convolution`.
        spacing, padding_mode: as in :class:`GMRConv2d`.

    Raises:
        ConfigurationError: when arguments do not fit; one sentence that says what does.

    Example:
        >>> GMRConvolution(2, 1, 8, strides=2, kernel_size=5)(torch.rand(1, 1, 9, 12)).shape
        torch.Size([1, 8, 5, 6])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        strides: int | Sequence[int] = 1,
        kernel_size: int | Sequence[int] = 3,
        adn_ordering: str = "NDA",
        act: tuple | str | None = "PRELU",
        norm: tuple | str | None = "INSTANCE",
        dropout: tuple | str | float | None = None,
        dropout_dim: int | None = 1,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        conv_only: bool = False,
        is_transposed: bool = False,
        padding: int | Sequence[int] | None = None,
        output_padding: int | Sequence[int] | None = None,
        *,
        conv: str | Sequence = "gmr",
        rings: str = "gaussian",
        spacing: Sequence[float] | None = None,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        if output_padding is not None and any(_ntuple(spatial_dims)(output_padding)):
            raise ConfigurationError(
                f"output_padding={output_padding} breaks the symmetry: leave it out, the block grows an axis exactly strides times."
            )
        factors = _ntuple(spatial_dims)(strides)
        if any(factor != 1 for factor in factors):
            resample = GMRUpsample if is_transposed else GMRDownsample
            self.add_module("resample", resample(spatial_dims, factors))
        layer = make_convolution(
            conv,
            spatial_dims,
            in_channels,
            out_channels,
            kernel_size,
            padding=symmetric_same_padding(spatial_dims, kernel_size, dilation) if padding is None else padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            rings=rings,
            spacing=spacing,
        )
        self.add_module("conv", layer)
        if not conv_only and not (act is None and norm is None and dropout is None):
            norm = keep_channels_last(norm)
            self.add_module("adn", GMRADN(adn_ordering, out_channels, act, norm, spatial_dims, dropout, dropout_dim))


class GMRResidualUnit(nn.Module):
    """A chain of :class:`GMRConvolution` plus its input: ``monai.networks.blocks.ResidualUnit``.

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        strides: factor by which axes become shorter, by a :class:`GMRDownsample` in front of both paths.
        kernel_size: window length in voxels.
        subunits: number of convolutions.
        adn_ordering, act, norm, dropout, dropout_dim, dilation, bias: as in :class:`GMRConvolution`.
        last_conv_only: whether the last convolution goes without activation, dropout and normalisation.
        padding: voxels at both ends of an axis; default: what keeps the size.
        conv, rings, spacing, padding_mode: as in :class:`GMRConvolution`.

    Example:
        >>> GMRResidualUnit(3, 2, 4, strides=2)(torch.rand(1, 2, 7, 8, 9)).shape
        torch.Size([1, 4, 4, 4, 5])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        strides: int | Sequence[int] = 1,
        kernel_size: int | Sequence[int] = 3,
        subunits: int = 2,
        adn_ordering: str = "NDA",
        act: tuple | str | None = "PRELU",
        norm: tuple | str | None = "INSTANCE",
        dropout: tuple | str | float | None = None,
        dropout_dim: int | None = 1,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        last_conv_only: bool = False,
        padding: int | Sequence[int] | None = None,
        *,
        conv: str | Sequence = "gmr",
        rings: str = "gaussian",
        spacing: Sequence[float] | None = None,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        factors = _ntuple(spatial_dims)(strides)
        strided = any(factor != 1 for factor in factors)
        self.resample = GMRDownsample(spatial_dims, factors) if strided else nn.Identity()
        self.residual: nn.Module = nn.Identity()
        if strided or in_channels != out_channels:
            self.residual = make_convolution("plain", spatial_dims, in_channels, out_channels, 1, bias=bias)
        self.conv = nn.Sequential()
        for unit in range(max(1, subunits)):
            block = GMRConvolution(
                spatial_dims,
                in_channels if unit == 0 else out_channels,
                out_channels,
                kernel_size=kernel_size,
                adn_ordering=adn_ordering,
                act=act,
                norm=norm,
                dropout=dropout,
                dropout_dim=dropout_dim,
                dilation=dilation,
                bias=bias,
                conv_only=last_conv_only and unit == max(1, subunits) - 1,
                padding=padding,
                conv=conv,
                rings=rings,
                spacing=spacing,
                padding_mode=padding_mode,
            )
            self.conv.add_module(f"unit{unit:d}", block)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, in_channels, *spatial)`` to ``(batch, out_channels, *ceil(spatial / strides))``."""
        x = self.resample(x)
        return self.residual(x) + self.conv(x)
