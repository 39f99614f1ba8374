"""Product of one axis with a banded matrix in a kernel: interpolation, filters and windows of images with channels last."""

from __future__ import annotations

from typing import Any

import torch

from monai_gmr.ops.cpu.library import ResampleGeometry, call_kernel


def band_of(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The band of a matrix, outside which it is zero: the first column of each row, int64, and the numbers from there on, as many as the
    longest row has, ``(rows, width)``."""
    columns = torch.arange(matrix.shape[1])
    outside = matrix == 0
    first = columns.masked_fill(outside, matrix.shape[1]).amin(1)
    last = columns.masked_fill(outside, -1).amax(1)
    width = max(1, int((last - first).amax()) + 1)
    first = first.clamp(max=matrix.shape[1] - width)
    return first, matrix.gather(1, first[:, None] + torch.arange(width)).contiguous()


@torch.library.custom_op("monai_gmr::cpp_resample", mutates_args=())
def cpp_resample(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Multiplies the middle axis of ``x`` ``(before, columns, after)``, float32, by a constant matrix ``(rows, columns)``. The result is
    contiguous, with a gradient for ``x``. The narrower the matrix' band, the faster."""
    first, weights = band_of(matrix)
    y = x.new_empty((x.shape[0], matrix.shape[0], x.shape[2]))
    before, size, after = x.shape
    geometry = ResampleGeometry(before, size, matrix.shape[0], after, weights.shape[1], torch.get_num_threads())
    call_kernel("resample", geometry, first, weights, x.contiguous(), y)
    return y


@cpp_resample.register_fake
def _(x, matrix):
    return x.new_empty((x.shape[0], matrix.shape[0], x.shape[2]))


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple:
    (matrix,) = ctx.saved_tensors
    return cpp_resample(gradient, matrix.T), None


cpp_resample.register_autograd(_backward, setup_context=_setup_context)
