"""Resampling and pooling that keep the centre of the grid where it is, on every size (design, section 3)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.utils import _ntuple

from monai_gmr.networks.layers.size_trail import Levels, record_sizes
from monai_gmr.ops import symmetric_downsample, symmetric_upsample
from monai_gmr.ops.free_sizes import is_free, voxels
from monai_gmr.ops.resample import apply_along_axis, window_matrix
from monai_gmr.utils import ConfigurationError, check_choice


def _factors(name: str, spatial_dims: int, value: int | tuple[int, ...]) -> list[int]:
    """One whole number of at least 1 an axis."""
    factors = list(_ntuple(spatial_dims)(value))
    if len(factors) != spatial_dims or any(int(f) != f or f < 1 for f in factors):
        raise ConfigurationError(
            f"{name}={value} is impossible: give {spatial_dims} whole numbers of at least 1, or one."
        )
    return [int(f) for f in factors]


class GMRDownsample(nn.Module):
    """Radial low-pass, then subsampling: an axis of ``n`` voxels becomes ``ceil(n / factor)``, about the same centre.

    Exactly equivariant on every size; the low-pass (a Gaussian without weights) is also the anti-aliasing that keeps rotations by other
    angles close.

    Args:
        spatial_dims: 1, 2 or 3.
        scale_factor: step in voxels, one number or one an axis.
        sigma: width of the Gaussian for a step of 2, in voxels; it grows with the step.

    Example:
        >>> GMRDownsample(2)(torch.rand(1, 3, 7, 8)).shape
        torch.Size([1, 3, 4, 4])

    Source:
        design, section 3; Zhang, Making convolutional networks shift-invariant again, arXiv 1904.11486.
    """

    def __init__(self, spatial_dims: int, scale_factor: int | tuple[int, ...] = 2, sigma: float = 0.8) -> None:
        super().__init__()
        self.factors = _factors("scale_factor", spatial_dims, scale_factor)
        if sigma <= 0:
            raise ConfigurationError(f"sigma={sigma} is impossible: give a positive width in voxels.")
        self.sigma = float(sigma)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., *spatial)`` to ``(..., *ceil(spatial / scale_factor))``."""
        return symmetric_downsample(x, self.factors, self.sigma)

    def extra_repr(self) -> str:
        """Factors and width."""
        return f"scale_factor={tuple(self.factors)}, sigma={self.sigma:g}"


class GMRUpsample(nn.Module):
    """Linear interpolation about the centre: an axis of ``m`` voxels becomes ``factor * m``, or any size that came from it.

    Args:
        spatial_dims: 1, 2 or 3.
        scale_factor: fine voxels in a coarse one, one number or one an axis.

    Example:
        >>> up, x = GMRUpsample(2), torch.rand(1, 3, 4, 4)
        >>> up(x).shape, up(x, [7, 8]).shape
        (torch.Size([1, 3, 8, 8]), torch.Size([1, 3, 7, 8]))
    """

    def __init__(self, spatial_dims: int, scale_factor: int | tuple[int, ...] = 2) -> None:
        super().__init__()
        self.factors = _factors("scale_factor", spatial_dims, scale_factor)

    def forward(self, x: torch.Tensor, size: list[int] | None = None) -> torch.Tensor:
        """``(..., *spatial)`` to ``(..., *size)``; ``size`` is that of the skip connection, default ``scale_factor * spatial``."""
        dims = len(self.factors)
        target: list[int] = []
        if size is None:
            for i, factor in enumerate(self.factors):
                target.append(factor * x.shape[x.dim() - dims + i])
        else:
            target = list(size)
        return symmetric_upsample(x, target, self.factors)

    def extra_repr(self) -> str:
        """Factors."""
        return f"scale_factor={tuple(self.factors)}"


class SymmetricPoolNd(nn.Module):
    """Windows of max and average pooling that are exact on every size: one voxel is added to a window where its parity asks for it.

    Args:
        spatial_dims: 1, 2 or 3.
        kernel_size: window in voxels, one number or one an axis.
        stride: step in voxels; default ``kernel_size``.
        padding: voxels at both ends of an axis that no window counts.
        rounding: number of windows along an axis: "cover": at least ``ceil(n / stride)``; "floor" or "ceil": as torch's pools have it
            without and with ``ceil_mode``.
    """

    def __init__(
        self,
        spatial_dims: int,
        kernel_size: int | tuple[int, ...] = 2,
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        rounding: str = "cover",
    ) -> None:
        super().__init__()
        check_choice("rounding", rounding, ("cover", "floor", "ceil"))
        self.rounding = rounding
        self.levels: Levels | None = None
        self.kernel_size = _factors("kernel_size", spatial_dims, kernel_size)
        self.stride = _factors("stride", spatial_dims, kernel_size if stride is None else stride)
        self.padding = [int(p) for p in _ntuple(spatial_dims)(padding)]
        if any(p < 0 or 2 * p > k for p, k in zip(self.padding, self.kernel_size)):
            raise ConfigurationError(
                f"padding={padding} is impossible: it may be at most half of kernel_size={kernel_size}."
            )

    def _window(self, sizes: list[int]) -> tuple[list[int], list[int], list[int]]:
        """Number of windows, window and padding of each axis: the windows cover the axis and end where it ends.

        By arithmetic alone, for a size may be the symbol of a graph.
        """
        count: list[int] = []
        kernel: list[int] = []
        padding: list[int] = []
        for n, k, s, p in zip(sizes, self.kernel_size, self.stride, self.padding):
            # the last window begins at the last multiple of the stride up to n + last
            last = 2 * p - k
            if self.rounding == "ceil":
                # none begins where the image and its first padding have ended
                last = min(last + s - 1, p - 1)
            elif self.rounding == "cover" and last < -1:
                last = -1 if last >= -s else last + s - 1
            windows = (n + last) // s + 1
            missing = (windows - 1) * s + k - n
            around = missing if last + k + 1 >= s else (missing + abs(missing)) // 2
            longer = around % 2
            count.append(windows)
            kernel.append(k + around - missing + longer)
            padding.append((around + longer) // 2)
        return count, kernel, padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, *spatial)`` to ``(batch, channels, *ceil(spatial / stride))`` for ``kernel_size = stride``."""
        sizes = list(x.shape)[x.dim() - len(self.kernel_size) :]
        count, kernel, padding = self._window(sizes)
        if not torch.jit.is_scripting():
            free = is_free(sizes)
            y = self._pooled_free(x, count, kernel, padding) if free else self._pooled(x, count, kernel, padding)
            record_sizes(self.levels, sizes, y.shape[2:])
            return y
        return self._pooled(x, count, kernel, padding)

    def _pooled(self, x: torch.Tensor, count: list[int], kernel: list[int], padding: list[int]) -> torch.Tensor:
        """Windows of numbers applied to an image."""
        raise NotImplementedError

    @torch.jit.unused
    def _pooled_free(self, x: torch.Tensor, count: list[Any], kernel: list[Any], padding: list[Any]) -> torch.Tensor:
        """Windows of symbols applied to an image."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Window, step and padding."""
        return f"kernel_size={tuple(self.kernel_size)}, stride={tuple(self.stride)}, padding={tuple(self.padding)}"


class GMRMaxPool(SymmetricPoolNd):
    """Max pooling that is exactly equivariant on every size: window 2 on even axes, 3 with padding 1 on odd ones (for ``kernel_size=2``).

    Args:
        spatial_dims: 1, 2 or 3.
        kernel_size: window in voxels, one number or one an axis.
        stride: step in voxels; default ``kernel_size``.
        padding: voxels at both ends of an axis that no window counts (they are never the maximum).
        rounding: number of windows, see :class:`SymmetricPoolNd`.

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
        # axis by axis, over as many voxels as the longest window has
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
    """Average pooling that is exactly equivariant on every size, by the rule of :class:`GMRMaxPool`.

    Args:
        spatial_dims: 1, 2 or 3.
        kernel_size: window in voxels, one number or one an axis.
        stride: step in voxels; default ``kernel_size``.
        padding: voxels at both ends of an axis.
        rounding: number of windows, see :class:`SymmetricPoolNd`.
        count_padding: whether padding counts as voxels of 0 (torch's ``count_include_pad``).

    Example:
        >>> GMRAvgPool(2)(torch.ones(1, 1, 5, 6))[0, 0, 0]
        tensor([1., 1., 1.])
    """

    def __init__(
        self,
        spatial_dims: int,
        kernel_size: int | tuple[int, ...] = 2,
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        rounding: str = "cover",
        count_padding: bool = False,
    ) -> None:
        super().__init__(spatial_dims, kernel_size, stride, padding, rounding)
        self.count_padding = count_padding

    def _pooled(self, x: torch.Tensor, count: list[int], kernel: list[int], padding: list[int]) -> torch.Tensor:
        for i in range(len(kernel)):
            axis = i - len(kernel)
            matrix = window_matrix(
                x.shape[axis], count[i], kernel[i], self.stride[i], padding[i], x, self.count_padding
            )
            x = apply_along_axis(x, matrix, axis, self.kernel_size[i] + self.stride[i])
        return x

    @torch.jit.unused
    def _pooled_free(self, x: torch.Tensor, count: list[Any], kernel: list[Any], padding: list[Any]) -> torch.Tensor:
        # means over windows are a product with a matrix, whose sizes may be symbols
        return self._pooled(x, count, kernel, padding)
