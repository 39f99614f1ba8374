"""Splits one axis of a tensor into two."""

import torch


def split_axis(x: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """``x`` with an axis split into two, the second of ``size``: ``Tensor.unflatten`` makes torch's older ONNX exporter freeze all sizes.

    Example:
        >>> split_axis(torch.rand(1, 16, 5, 6), 1, 8).shape
        torch.Size([1, 2, 8, 5, 6])
    """
    # a negative axis has no end to slice at
    axis = axis % x.dim()
    # not -1, which is ambiguous for an empty batch
    return x.reshape(list(x.shape[:axis]) + [x.shape[axis] // size, size] + list(x.shape[axis + 1 :]))
