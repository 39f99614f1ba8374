"""Resampling and pooling that keep the centre of the grid in place, on every size."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import nn

from monai_gmr.annotations import Named, SpatialDims, check_argument, checked_arguments
from monai_gmr.arguments import check_choice, check_number
from monai_gmr.networks.layers.conv_nd import whole_numbers
from monai_gmr.networks.layers.size_trail import Levels, record_sizes
from monai_gmr.ops import symmetric_downsample, symmetric_upsample
from monai_gmr.ops.free_sizes import is_free, voxels
from monai_gmr.ops.resample import apply_along_axis, is_as_before, window_matrix
from monai_gmr.utils import ConfigurationError, on_plain_tensor


class GMRDownsample(nn.Module):
    """Radial low-pass, then subsampling about the same centre: an axis of ``n`` voxels becomes ``ceil(n / scale_factor)``.

    Exactly equivariant on every size; the low-pass (a fixed Gaussian) also reduces aliasing, which keeps rotations by other angles close.

    Args:
        spatial_dims: 1, 2 or 3.
        scale_factor: step in voxels, one number or one per axis.
        sigma: width of the Gaussian in voxels for a step of 2; it scales with the step.

    Example:
        >>> GMRDownsample(2)(torch.rand(1, 3, 7, 8)).shape
        torch.Size([1, 3, 4, 4])

    Source:
        Zhang, Making convolutional networks shift-invariant again, arXiv 1904.11486.
    """

    @checked_arguments
    def __init__(self, spatial_dims: SpatialDims, scale_factor: int | Sequence[int] = 2, *, sigma: float = 0.8) -> None:
        super().__init__()
        self.factors = list(whole_numbers("scale_factor", scale_factor, spatial_dims))
        check_number("sigma", sigma, 0, above=True)
        self.sigma = float(sigma)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return symmetric_downsample(x, self.factors, self.sigma)

    def extra_repr(self) -> str:
        return f"scale_factor={tuple(self.factors)}, sigma={self.sigma:g}"


class GMRUpsample(nn.Module):
    """Linear interpolation about the centre: an axis of ``m`` voxels becomes ``factor * m``, or any size that downsamples to ``m``.

    Args:
        spatial_dims: 1, 2 or 3.
        scale_factor: fine voxels per coarse voxel, one number or one per axis.
        align_corners: whether the outermost voxels keep their positions, as in
            MONAI's ``UpSample(mode="nontrainable", align_corners=True)``.

    Example:
        >>> up, x = GMRUpsample(2), torch.rand(1, 3, 4, 4)
        >>> up(x).shape, up(x, [7, 8]).shape
        (torch.Size([1, 3, 8, 8]), torch.Size([1, 3, 7, 8]))
    """

    @checked_arguments
    def __init__(
        self, spatial_dims: SpatialDims, scale_factor: int | Sequence[int] = 2, *, align_corners: bool = False
    ) -> None:
        super().__init__()
        self.factors = list(whole_numbers("scale_factor", scale_factor, spatial_dims))
        self.mode, self.align_corners = ("linear", "bilinear", "trilinear")[spatial_dims - 1], align_corners

    def forward(self, x: torch.Tensor, size: list[int] | None = None) -> torch.Tensor:
        """``(..., *spatial)`` to ``(..., *size)``; ``size`` is the size of the skip connection, default ``scale_factor * spatial``."""
        target: list[int] = []
        if size is None:
            for i, factor in enumerate(self.factors):
                target.append(factor * x.shape[x.dim() - len(self.factors) + i])
        else:
            target = list(size)
        if self.align_corners:
            return F.interpolate(x, size=target, mode=self.mode, align_corners=True)
        return symmetric_upsample(x, target, self.factors)

    def extra_repr(self) -> str:
        return f"scale_factor={tuple(self.factors)}, align_corners={self.align_corners}"


class SymmetricPoolNd(nn.Module):
    """Max and average pooling with windows that are exact on every size: a window gets one more voxel if its parity requires it."""

    @checked_arguments
    def __init__(
        self,
        spatial_dims: SpatialDims,
        kernel_size: int | Sequence[int] = 2,
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        *,
        rounding: str = "cover",
    ) -> None:
        super().__init__()
        check_choice("rounding", rounding, ("cover", "floor", "ceil"))
        self.rounding = rounding
        self.levels: Levels | None = None
        self.kernel_size = list(whole_numbers("kernel_size", kernel_size, spatial_dims))
        self.stride = list(whole_numbers("stride", kernel_size if stride is None else stride, spatial_dims))
        self.padding = list(whole_numbers("padding", padding, spatial_dims, least=0))
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size)):
            raise ConfigurationError(f"padding={padding} is impossible: give up to half of kernel_size={kernel_size}.")

    def _window(self, sizes: list[int]) -> tuple[list[int], list[int], list[int]]:
        """Number of windows, window and padding of each axis, such that the windows cover the axis symmetrically. Uses only arithmetic,
        because sizes can be symbols of a graph."""
        count: list[int] = []
        kernel: list[int] = []
        padding: list[int] = []
        for n, k, s, p in zip(sizes, self.kernel_size, self.stride, self.padding):
            # the last window starts at the last multiple of the stride up to n + last
            last = 2 * p - k
            if self.rounding == "ceil":
                # no window starts after the image and its padding at the start
                last = min(last + s - 1, p - 1)
            elif self.rounding == "cover" and last < -1:
                last = -1 if last >= -s else last + s - 1
            windows = (n + last) // s + 1
            missing = (windows - 1) * s + k - n
            # its positive part: missing is last + k minus a remainder of s, and torch.export.save knows no abs
            around = missing if last + k + 1 >= s else missing * ((missing + s - 1) // s)
            longer = around % 2
            count.append(windows)
            kernel.append(k + around - missing + longer)
            padding.append((around + longer) // 2)
        return count, kernel, padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, *spatial)`` to ``(batch, channels, *ceil(spatial / stride))`` for ``kernel_size = stride``."""
        if not torch.jit.is_scripting() and isinstance(x, MetaTensor):
            return on_plain_tensor(partial(SymmetricPoolNd.forward, self), x)
        sizes = list(x.shape)[x.dim() - len(self.kernel_size) :]
        count, kernel, padding = self._window(sizes)
        if torch.jit.is_scripting():
            return self._pooled(x, count, kernel, padding)
        y = (self._pooled_free if is_free(sizes) else self._pooled)(x, count, kernel, padding)
        record_sizes(self.levels, sizes, y.shape[2:])
        return y

    def _pooled(self, x: torch.Tensor, count: list[int], kernel: list[int], padding: list[int]) -> torch.Tensor:
        """Applies windows of integer sizes to an image."""
        raise NotImplementedError

    @torch.jit.unused
    def _pooled_free(self, x: torch.Tensor, count: list[Any], kernel: list[Any], padding: list[Any]) -> torch.Tensor:
        """Applies windows of symbolic sizes to an image; average pooling is a matrix product, whose sizes can be symbols."""
        return self._pooled(x, count, kernel, padding)

    def extra_repr(self) -> str:
        return f"kernel_size={tuple(self.kernel_size)}, stride={tuple(self.stride)}, padding={tuple(self.padding)}"


class GMRMaxPool(SymmetricPoolNd):
    """Max pooling that is exactly equivariant on every size: window 2 on even axes, 3 with padding 1 on odd ones (for ``kernel_size=2``).

    Args:
        spatial_dims: 1, 2 or 3.
        kernel_size: window in voxels, one number or one per axis.
        stride: step in voxels; default ``kernel_size``.
        padding: voxels at both ends of an axis, at most half of ``kernel_size``; they are ignored (never the maximum).
        rounding: number of windows along an axis: "cover": at least ``ceil(n / stride)``; "floor" or "ceil": as torch's pools without or
            with ``ceil_mode``.

    Example:
        >>> GMRMaxPool(2)(-torch.ones(1, 1, 5, 6))[0, 0, 0]
        tensor([-1., -1., -1.])
    """

    def _pooled(self, x: torch.Tensor, count: list[int], kernel: list[int], padding: list[int]) -> torch.Tensor:
        if max(padding) > 0:
            reverse: list[int] = []
            for p in padding:
                reverse = [p, p] + reverse
            x = F.pad(x, reverse, value=float("-inf"))
        if len(kernel) == 1:
            return F.max_pool1d(x, kernel, self.stride)
        if len(kernel) == 2:
            return F.max_pool2d(x, kernel, self.stride)
        return F.max_pool3d(x, kernel, self.stride)

    @torch.jit.unused
    def _pooled_free(self, x: torch.Tensor, count: list[Any], kernel: list[Any], padding: list[Any]) -> torch.Tensor:
        # axis by axis, over the taps of the longest window
        for i, (windows, k, p) in enumerate(zip(count, kernel, padding)):
            axis = x.dim() - len(count) + i
            last = voxels(x.shape[axis], x)[-1]
            first, largest = voxels(windows, x) * self.stride[i] - p, torch.tensor(float("-inf"), dtype=x.dtype)
            for tap in range(self.kernel_size[i] + self.stride[i]):
                place = first + tap
                outside = (place < 0) | (place > last) | (place - first >= k)
                for _ in range(len(count) - 1 - i):
                    outside = outside.unsqueeze(-1)
                taken = x.index_select(axis, place.clamp_min(0).minimum(last))
                largest = torch.maximum(taken.masked_fill(outside, float("-inf")), largest)
            x = largest
        return x


class GMRAvgPool(SymmetricPoolNd):
    """Average pooling that is exactly equivariant on every size, with the windows and arguments of :class:`GMRMaxPool`.

    Args:
        count_padding: whether padding counts as voxels of 0 (torch's ``count_include_pad``).

    Example:
        >>> GMRAvgPool(2)(torch.ones(1, 1, 5, 6))[0, 0, 0]
        tensor([1., 1., 1.])
    """

    @checked_arguments
    def __init__(
        self,
        spatial_dims: SpatialDims,
        kernel_size: int | Sequence[int] = 2,
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        *,
        rounding: str = "cover",
        count_padding: bool = False,
    ) -> None:
        super().__init__(spatial_dims, kernel_size, stride, padding, rounding=rounding)
        self.count_padding = count_padding

    def _pooled(self, x: torch.Tensor, count: list[int], kernel: list[int], padding: list[int]) -> torch.Tensor:
        sizes = list(x.shape)[-len(kernel) :]
        matrix = x  # replaced by the matrix of the previous axis
        for i in range(len(kernel)):
            if not is_as_before(i, [sizes, count, kernel, padding, list(self.stride)]):
                counted = self.count_padding
                window = (sizes[i], count[i], kernel[i], self.stride[i], padding[i])
                matrix = window_matrix(*window, x, count_padding=counted)
            x = apply_along_axis(x, matrix, i - len(kernel), self.kernel_size[i] + self.stride[i])
        return x


class GMRTrim(nn.Module):
    """Means over windows of ``n - size + 1`` voxels, which shorten an axis from ``n`` to ``size`` voxels about the same centre.

    Example:
        >>> GMRTrim()(torch.arange(4.0)[None, None], [3])
        tensor([[[0.5000, 1.5000, 2.5000]]])
    """

    def forward(self, x: torch.Tensor, size: list[int]) -> torch.Tensor:
        """``(batch, channels, *spatial)`` to ``(batch, channels, *size)``; no axis can become longer."""
        sizes = list(x.shape)[-len(size) :]
        matrix = x  # replaced by the matrix of the previous axis
        for i in range(len(size)):
            # a window of one voxel leaves an axis unchanged; a recorded graph has to cover both cases
            surplus, recorded = sizes[i] - size[i], False
            if not torch.jit.is_scripting():
                recorded = is_free([surplus])
            if recorded or surplus != 0:
                if not is_as_before(i, [sizes, size]):
                    matrix = window_matrix(sizes[i], size[i], surplus + 1, 1, 0, x)
                x = apply_along_axis(x, matrix, i - len(size), 2)
        return x


DOWNSAMPLE: dict[str, Callable[..., nn.Module]] = {
    "lowpass": GMRDownsample,
    "avg": GMRAvgPool,
    "max": GMRMaxPool,
    "plain_max": lambda spatial_dims, **arguments: getattr(nn, f"MaxPool{spatial_dims}d")(**arguments),
}


def make_downsample(downsample: Named, spatial_dims: int) -> nn.Module:
    """Makes the layer that halves the grid, exactly on every size.

    Args:
        downsample: "lowpass" (:class:`GMRDownsample`, anti-aliased), "avg" or "max", or a tuple of the name and further arguments, such as
            ``("lowpass", {"sigma": 0.8})`` or ``("max", {"kernel_size": 3, "padding": 1})``; or "plain_max" (``torch.nn.MaxPoolNd``, for
            foreign checkpoints: **not exact** if its windows do not end with the grid).
        spatial_dims: 1, 2 or 3.

    Raises:
        ConfigurationError: if there is no such layer.

    Example:
        >>> make_downsample("max", 2)
        GMRMaxPool(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0))
        >>> make_downsample(("lowpass", {"sigma": 1.0}), 2)
        GMRDownsample(scale_factor=(2, 2), sigma=1)
    """
    check_argument("downsample", downsample, Named)
    name, arguments = (downsample, {}) if isinstance(downsample, str) else downsample
    check_choice("downsample", name, tuple(DOWNSAMPLE))
    step: dict[str, Any] = {"scale_factor": 2} if name == "lowpass" else {"kernel_size": 2, "stride": 2}
    return DOWNSAMPLE[name](spatial_dims, **(step | dict(arguments)))
