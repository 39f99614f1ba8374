"""Depthwise convolution with free taps in a training step: torch's forward pass, and a kernel for the gradient of the weights.

torch's gradients take ten times as long as its forward pass. Here the gradient of the image is the same convolution with mirrored taps;
the gradient of the weights is in ``csrc/depthwise_conv.cpp``, with one load and one multiplication per tap.
"""

from __future__ import annotations

from typing import Any

import torch

from monai_gmr.ops.cpu.library import DepthwiseGeometry, call_kernel
from monai_gmr.ops.cpu.memory_format import image_like, voxel_rows
from monai_gmr.ops.ring_conv import conv_nd
from monai_gmr.ops.ring_gradients import present, register_gradients


def _conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: list[int], dilation: list[int]
) -> torch.Tensor:
    return conv_nd(x, weight, bias, [1] * len(padding), padding, dilation, groups=weight.shape[0])


def _conv_rows(rows: torch.Tensor, *kernel: Any) -> torch.Tensor:
    """:func:`_conv` of ``(batch, *spatial, channels)``."""
    return _conv(rows.movedim(-1, 1), *kernel).movedim(1, -1).contiguous()


@torch.library.custom_op("monai_gmr::cpp_depthwise_conv", mutates_args=())
def cpp_depthwise_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: list[int], dilation: list[int]
) -> torch.Tensor:
    """:func:`~monai_gmr.ops.depthwise_conv` of stride 1, with gradients for ``x``, ``weight`` and ``bias``. Supports batches in 2D or 3D,
    float32, and a padding of at most ``dilation * (kernel_size - 1)``."""
    return image_like(_conv_rows(voxel_rows(x), weight, bias, padding, dilation), x)


@torch.library.custom_op("monai_gmr::cpp_depthwise_conv_backward", mutates_args=())
def _gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    padding: list[int],
    dilation: list[int],
    needed: list[bool],
) -> list[torch.Tensor]:
    """Gradients of image and weight."""
    rows, window = voxel_rows(gradient), weight.shape[2:]
    image_gradient = weight_gradient = None
    if needed[0]:
        margins = [d * (k - 1) - p for d, k, p in zip(dilation, window, padding)]
        mirrored = weight.flip(list(range(2, weight.dim())))
        image_gradient = image_like(_conv_rows(rows, mirrored, None, margins, dilation), x)
    if needed[1]:
        leading = 3 - len(window)
        threads = torch.get_num_threads()
        geometry = DepthwiseGeometry(
            batch=len(x),
            sizes=(*[1] * leading, *gradient.shape[2:]),
            image=(*[1] * leading, *x.shape[2:]),
            padding=(*[0] * leading, *padding),
            window=(*[1] * leading, *window),
            dilation=(*[1] * leading, *dilation),
            channels=x.shape[1],
            threads=threads,
        )
        sums = x.new_zeros((threads, window.numel(), x.shape[1]), dtype=torch.float64)
        call_kernel("depthwise_weight_gradient", geometry, voxel_rows(x), rows, sums)
        weight_gradient = sums.sum(0).float().T.contiguous().reshape(weight.shape)
    return present([image_gradient, weight_gradient], x)


def _dense(x: torch.Tensor, weight: torch.Tensor, padding: list[int], dilation: list[int]) -> torch.Tensor:
    return _conv(x, weight, None, padding, dilation)


register_gradients(cpp_depthwise_conv, _gradients, _dense, count=2, constants=0)
