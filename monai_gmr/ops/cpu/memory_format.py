"""Conversion of images between memory formats in a kernel, several times as fast as torch's copies."""

from __future__ import annotations

import torch

from monai_gmr.ops.cpu.library import TransposeGeometry, call_kernel
from monai_gmr.ops.memory_format import has_channels_last, image_of


def _transpose(x: torch.Tensor, rows: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Transposes samples ``(rows, columns)``, contiguous float32, to ``(columns, rows)``, returned in a shape."""
    y = x.new_empty(shape)
    geometry = TransposeGeometry(len(x), rows, x[:1].numel() // rows, torch.get_num_threads())
    call_kernel("transpose", geometry, x, y)
    return y


def voxel_rows(x: torch.Tensor) -> torch.Tensor:
    """A nonempty float32 image ``(batch, channels, *spatial)`` as contiguous ``(batch, *spatial, channels)``, without a gradient.

    Example:
        >>> voxel_rows(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
        tensor([[[1., 3.],
                 [2., 4.]]])
    """
    last = x.movedim(1, -1)
    if last.is_contiguous() or not x.is_contiguous():
        return last.contiguous()
    return _transpose(x, x.shape[1], tuple(last.shape))


def image_like(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Rows ``(batch, *spatial, channels)``, contiguous float32 and used nowhere else, as an image ``(batch, channels, *spatial)`` that is
    not a view, in the memory format of ``x``, like the results of torch's convolutions.

    Example:
        >>> image_like(torch.tensor([[[1.0, 3.0], [2.0, 4.0]]]), torch.zeros(1, 2, 2))
        tensor([[[1., 2.],
                 [3., 4.]]])
    """
    if has_channels_last(x):
        return image_of(rows)
    if rows.shape[-1] == 1:
        return image_of(rows).contiguous()
    shape = (len(rows), rows.shape[-1], *rows.shape[1:-1])
    return _transpose(rows, rows[0].numel() // rows.shape[-1], shape)
