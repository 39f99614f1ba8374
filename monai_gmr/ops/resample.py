"""Down- and up-sampling about the centre of the grid, exact on every size.

An axis of ``n`` voxels and an axis of ``m`` voxels, ``factor`` times coarser, share their centre: coarse voxel ``j`` is at
``(n - 1) / 2 + factor * (j - (m - 1) / 2)``. For factor 2 this gives an even window on even sizes and an odd one on odd sizes.

Resampling an axis is a product with a matrix, in float64 for a float64 image and otherwise in float32; ``like`` is an image on the
matrix' device.
"""

import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from monai_gmr.ops.cpu.library import supports
from monai_gmr.ops.cpu.resample import cpp_resample
from monai_gmr.ops.free_sizes import has_symbols, is_free, voxels
from monai_gmr.ops.memory_format import runs_channels_last
from monai_gmr.utils import on_plain_tensor

# reach of the low-pass filter, in sigma
CUT = 4.0


def downsampled_size(size: int, factor: int) -> int:
    """Length of an axis after downsampling: ``ceil(size / factor)``."""
    return (size + factor - 1) // factor


def _positions(count: int, like: torch.Tensor) -> torch.Tensor:
    """Indices of the voxels of an axis, in the precision of a matrix."""
    return voxels(count, like, torch.float64 if like.dtype == torch.float64 else torch.float32)


def lowpass_matrix(size: int, factor: int, sigma: float, like: torch.Tensor, cut: float = CUT) -> torch.Tensor:
    """Gaussian low-pass of width ``sigma`` voxels, cut at ``cut`` sigma, and centred subsampling, ``(ceil(size / factor), size)``.

    Each row sums to 1. A Gaussian is the only radial function that is a product over axes, so filtering axis by axis is a radial filter.
    """
    coarse = downsampled_size(size, factor)
    fine_axis, coarse_axis = _positions(size, like) - 0.5 * (size - 1), _positions(coarse, like) - 0.5 * (coarse - 1)
    distance = torch.sub(fine_axis[None, :], coarse_axis[:, None], alpha=factor) / sigma
    squared = distance * distance
    return torch.softmax((-0.5 * squared).masked_fill(squared > cut * cut, float("-inf")), dim=1)


def window_matrix(
    size: int,
    windows: int,
    kernel_size: int,
    stride: int,
    padding: int,
    like: torch.Tensor,
    count_padding: bool = False,
) -> torch.Tensor:
    """Means over windows, ``(windows, size)``; with ``count_padding``, padding counts as voxels of 0, otherwise each row sums to 1."""
    starts = _positions(windows, like) * stride - padding
    offset = _positions(size, like)[None, :] - starts[:, None]
    inside = torch.logical_and(offset >= 0, offset < kernel_size).to(offset.dtype)
    if count_padding:
        return inside / kernel_size
    return inside / inside.sum(dim=1, keepdim=True)


def linear_matrix(size: int, target: int, factor: int, like: torch.Tensor) -> torch.Tensor:
    """Centred linear interpolation of ``size`` coarse to ``target`` fine voxels, ``(target, size)``; constant beyond the last coarse voxel.

    For factor 2 it equals ``interpolate(mode="linear")`` with ``align_corners=False`` on even targets and ``True`` on odd ones.
    """
    coarse_axis = _positions(size, like)
    position = (_positions(target, like) - 0.5 * (target - 1)) / factor + 0.5 * (size - 1)
    position = position.clamp_min(0.0).minimum(coarse_axis[-1])
    return (1.0 - (position[:, None] - coarse_axis[None, :]).abs()).clamp_min(0.0)


def nearest_matrix(size: int, target: int, factor: int, like: torch.Tensor) -> torch.Tensor:
    """Repetition of voxels, ``(target, size)``, exact if ``target`` is ``factor * size``.

    Example:
        >>> nearest_matrix(2, 4, 2, torch.zeros(1)).argmax(1)
        tensor([0, 0, 1, 1])
    """
    fine_axis, coarse_axis = voxels(target, like), voxels(size, like)
    repeated = fine_axis[:, None].div(factor, rounding_mode="floor") == coarse_axis[None, :]
    return repeated.to(_positions(0, like).dtype)


def apply_along_axis(x: torch.Tensor, matrix: torch.Tensor, axis: int, taps: int) -> torch.Tensor:
    """Multiplies a negative ``axis`` by a matrix ``(m, n)`` whose rows are windows of at most ``taps`` neighbouring voxels."""
    matrix = matrix.to(x.dtype)
    if not torch.jit.is_scripting():
        if has_symbols(x):
            return _apply_taps(x, matrix, axis, taps)
        if torch.jit.is_tracing():
            # without a reshape, after which the legacy ONNX exporter does not know the number of channels
            return torch.matmul(x.transpose(axis, -1), matrix.transpose(0, 1)).transpose(axis, -1)
        if runs_channels_last(x) and axis + x.dim() > 1:
            return _apply_channels_last(x, matrix, axis)
    if axis == -1:
        return torch.matmul(x, matrix.transpose(0, 1))
    tail = x.shape[x.dim() + axis + 1 :]
    y = torch.matmul(matrix, x.flatten(x.dim() + axis + 1))
    return y.reshape(list(y.shape[:-1]) + list(tail))


@torch.jit.unused
def _apply_channels_last(x: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """:func:`apply_along_axis` for an image with channels last; the result has channels last, too."""
    last = x.movedim(1, -1)
    before, after = last.shape[: axis - 1], last.shape[last.dim() + axis :]
    image = last.reshape(before.numel(), x.shape[axis], after.numel())
    if supports(x, matrix):
        y = cpp_resample(image, matrix)
    else:
        # a convolution with one tap is a matrix product, and up to twice as fast here
        y = F.conv1d(image, matrix[:, :, None])
    return y.reshape(*before, matrix.shape[0], *after).movedim(-1, 1)


@torch.jit.unused
def _apply_taps(x: torch.Tensor, matrix: torch.Tensor, axis: int, taps: int) -> torch.Tensor:
    """:func:`apply_along_axis` tap by tap: a matrix product of symbolic sizes would bind the graph to the recorded sizes."""
    last = voxels(x.shape[axis], x)[-1]
    first = (matrix != 0).to(torch.int64).argmax(dim=1)
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for tap in range(taps):
        place = (first + tap).minimum(last)
        weight = matrix.gather(1, place[:, None])[:, 0] * (first + tap <= last).to(x.dtype)
        for _ in range(-1 - axis):
            weight = weight.unsqueeze(-1)
        total = total + x.index_select(axis, place) * weight
    return total


@torch.jit.unused
def _any_free(lengths: list[list[int]]) -> bool:
    return any(is_free(each) for each in lengths)


def is_as_before(axis: int, lengths: list[list[int]]) -> bool:
    """Whether an axis has the same lengths as the previous one, so that both share a matrix; ``False`` for symbols.

    Example:
        >>> [is_as_before(axis, [[9, 9, 8], [2, 2, 2]]) for axis in range(3)]
        [False, True, False]
    """
    if not torch.jit.is_scripting() and _any_free(lengths):
        return False
    alike = axis > 0
    for each in lengths:
        alike = alike and each[axis] == each[axis - 1]
    return alike


def symmetric_downsample(x: torch.Tensor, factors: list[int], sigma: float, cut: float = CUT) -> torch.Tensor:
    """Low-pass filters and subsamples the last axes about their centre.

    Args:
        x: ``(..., *spatial)``.
        factors: one per axis; 1 leaves an axis unchanged.
        sigma: width of the Gaussian in fine voxels, for factor 2; it grows with the factor.
        cut: reach of the Gaussian, in sigma.

    Returns:
        ``(..., *ceil(spatial / factors))``.

    Example:
        >>> symmetric_downsample(torch.ones(1, 1, 5, 8), [2, 2], 0.7).shape
        torch.Size([1, 1, 3, 4])
    """
    if not torch.jit.is_scripting() and isinstance(x, MetaTensor):
        return on_plain_tensor(symmetric_downsample, x, factors, sigma, cut)
    sizes = list(x.shape)[-len(factors) :]
    matrix = x  # placeholder; then the matrix of the previous axis
    for i, factor in enumerate(factors):
        if factor > 1:
            width = 0.5 * sigma * factor
            if not is_as_before(i, [sizes, factors]):
                matrix = lowpass_matrix(sizes[i], factor, width, x, cut)
            x = apply_along_axis(x, matrix, i - len(factors), int(2 * cut * width) + 1)
    return x


def symmetric_upsample(
    x: torch.Tensor, target: list[int], factors: list[int], nearest: torch.Tensor | None = None
) -> torch.Tensor:
    """Interpolates the last axes linearly about their centre.

    Args:
        x: ``(..., *spatial)``.
        target: length of each axis in voxels.
        factors: fine voxels per coarse voxel, one per axis; 1 leaves an axis unchanged.
        nearest: if true, voxels are repeated instead; a tensor, because it can be computed in a graph.

    Returns:
        ``(..., *target)``.

    Example:
        >>> symmetric_upsample(torch.ones(1, 1, 3, 4), [5, 8], [2, 2]).shape
        torch.Size([1, 1, 5, 8])
    """
    if not torch.jit.is_scripting() and isinstance(x, MetaTensor):
        return on_plain_tensor(symmetric_upsample, x, target, factors, nearest)
    sizes = list(x.shape)[-len(factors) :]
    matrix = x  # placeholder; then the matrix of the previous axis
    for i, factor in enumerate(factors):
        if factor > 1:
            if not is_as_before(i, [sizes, target, factors]):
                matrix = linear_matrix(sizes[i], target[i], factor, x)
                if nearest is not None:
                    repeated = nearest_matrix(sizes[i], target[i], factor, x)
                    matrix = torch.where(nearest.to(matrix) > 0.5, repeated, matrix)
            x = apply_along_axis(x, matrix, i - len(factors), 2)
    return x
