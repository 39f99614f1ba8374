"""Upsampling in converted networks, to the sizes that images had before downsampling."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import check_choice, check_counts
from monai_gmr.networks.layers.conv_nd import passes_arguments_to, whole_numbers
from monai_gmr.networks.layers.gmr_conv import GMRConv1d, GMRConv2d, GMRConv3d, GMRConvNd
from monai_gmr.networks.layers.size_trail import Levels, SizedLayer, sizes_above
from monai_gmr.ops import symmetric_upsample
from monai_gmr.ops.free_sizes import all_equal, is_free
from monai_gmr.ops.split_axis import split_axis
from monai_gmr.utils import ConfigurationError

MODES = ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "bicubic")


def _check_axes(scale_factor: Sequence[int], x: torch.Tensor) -> None:
    """Raises if there is not one factor per spatial axis of an image."""
    if x.dim() != len(scale_factor) + 2:
        raise ConfigurationError(
            f"scale_factor={tuple(scale_factor)} does not fit an image of shape {tuple(x.shape)}: give one number an axis."
        )


class GMRInterpolate(SizedLayer, nn.Module):
    """``torch.nn.Upsample`` about the centre of the grid, to the size of the skip connection in a converted network.

    Outside a converted network, or if the trail of sizes has no entry, the output size is ``(size - 1) * scale_factor + extent``.

    Args:
        scale_factor: fine voxels per coarse voxel, one number per axis.
        mode: as in ``torch.nn.Upsample``. "nearest" becomes linear for sizes that are not multiples, where it would not be exact.
        align_corners: as in ``torch.nn.Upsample``.
        extent: voxels added to ``(size - 1) * scale_factor``, one number per axis, possibly negative; default ``scale_factor``.

    Example:
        >>> GMRInterpolate((2, 2), "bilinear")(torch.rand(1, 3, 4, 5)).shape
        torch.Size([1, 3, 8, 10])
    """

    @checked_arguments
    def __init__(
        self,
        scale_factor: Sequence[int],
        mode: str = "linear",
        align_corners: bool | None = False,
        extent: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_choice("mode", mode, MODES)
        check_counts("scale_factor", scale_factor, (2, 2))
        self.scale_factor, self.mode, self.align_corners = list(scale_factor), mode, bool(align_corners)
        given = self.scale_factor if extent is None else extent
        self.extent = list(whole_numbers("extent", given, len(self.scale_factor), least=None))
        self.levels: Levels | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, *spatial)`` to ``(batch, channels, *size)``."""
        _check_axes(self.scale_factor, x)
        coarse = x.shape[2:]
        multiple = [n * f for n, f in zip(coarse, self.scale_factor)]
        own = [(n - 1) * f + e for n, f, e in zip(coarse, self.scale_factor, self.extent)]
        size = sizes_above(self.levels, coarse, own, self.scale_factor)
        if self.mode.startswith("nearest"):
            if is_free([*size, *multiple]):
                return symmetric_upsample(x, size, self.scale_factor, all_equal(size, multiple))
            if size == multiple:
                return F.interpolate(x, size=size, mode="nearest-exact")
        elif self.mode == "bicubic" or self.align_corners:
            name = self.mode if self.mode == "bicubic" else ("linear", "bilinear", "trilinear")[len(coarse) - 1]
            return F.interpolate(x, size=size, mode=name, align_corners=self.align_corners)
        return symmetric_upsample(x, size, self.scale_factor)

    def extra_repr(self) -> str:
        return f"scale_factor={tuple(self.scale_factor)}, mode={self.mode!r}, align_corners={self.align_corners}"


class GMRSubpixelMean(nn.Module):
    """Replacement of pixel shuffling by ``scale_factor``, one number per axis: the mean over the channels that form one voxel, then linear
    interpolation.

    Example:
        >>> GMRSubpixelMean((2, 2))(torch.rand(1, 12, 4, 5)).shape
        torch.Size([1, 3, 8, 10])
    """

    @checked_arguments
    def __init__(self, scale_factor: Sequence[int]) -> None:
        super().__init__()
        self.interpolate = GMRInterpolate(scale_factor, "linear")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _check_axes(self.interpolate.scale_factor, x)
        return self.interpolate(split_axis(x, 1, math.prod(self.interpolate.scale_factor)).mean(2))


class ResizedConvNd(SizedLayer, GMRConvNd):
    """Replacement of a transposed convolution: a radial convolution on the coarse grid, then linear interpolation about the centre.

    Args:
        factors: fine voxels per coarse voxel, one number per axis.
        extent: voxels that the transposed layer added to ``(size - 1) * factor``, one number per axis, possibly negative.

    All other arguments are those of :class:`GMRConv2d`, for the convolution on the coarse grid.
    """

    @passes_arguments_to(GMRConvNd)
    @checked_arguments
    def __init__(self, *args, factors: Sequence[int], extent: Sequence[int], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.factors = list(whole_numbers("factors", factors, self.spatial_dims))
        self.extent = list(whole_numbers("extent", extent, self.spatial_dims, least=None))
        self.levels: Levels | None = None

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """``(batch, in_channels, *spatial)`` to ``output_size``, or the size of the skip connection, or that of the transposed layer."""
        dims = self.spatial_dims
        coarse = list(input.shape)[-dims:]
        if output_size is None:
            own = [(n - 1) * f + e for n, f, e in zip(coarse, self.factors, self.extent)]
            size = sizes_above(self.levels, coarse, own, self.factors)
        else:
            size = list(output_size)[-dims:]
        return symmetric_upsample(super().forward(input), size, self.factors)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, factors={tuple(self.factors)}"


class GMRResizedConv2d(ResizedConvNd, GMRConv2d):
    """:class:`ResizedConvNd` in two dimensions."""


class GMRResizedConv1d(ResizedConvNd, GMRConv1d):
    """:class:`GMRResizedConv2d` in one dimension."""


class GMRResizedConv3d(ResizedConvNd, GMRConv3d):
    """:class:`GMRResizedConv2d` in three dimensions."""
