"""Instance norm of images with channels last, and the leaky ReLU after it, in kernels.

torch's batch norm with channels last sums over the whole image in single precision: at 128^3 voxels its error is 1e-3, and a net would
not be exactly equivariant. Here pieces are summed first, relative to their first voxel, and then their sums in double precision.

A forward pass reads the image twice and writes the result once; a backward pass reads image and gradient twice and writes one gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from monai_gmr.ops.cpu.library import VoxelGeometry, call_kernel, supports
from monai_gmr.ops.cpu.memory_format import voxel_rows
from monai_gmr.ops.dense_gradients import dense_gradients, takes_dense_gradients
from monai_gmr.ops.memory_format import image_of


def _geometry(x: torch.Tensor) -> VoxelGeometry:
    batch, channels = x.shape[:2]
    return VoxelGeometry(batch, x.numel() // (batch * channels), channels, torch.get_num_threads())


def _affine(
    mean: torch.Tensor, inverse: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, scale and shift of each sample and channel."""
    scale = inverse if weight is None else inverse * weight
    return mean, scale, torch.zeros_like(mean) if bias is None else bias.expand_as(mean).contiguous()


@torch.library.custom_op("monai_gmr::cpp_instance_norm", mutates_args=())
def cpp_instance_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, slope: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`instance_norm` of a 2D or 3D float32 image, with gradients for the tensors. Also returns, without gradients, the mean and the
    inverse standard deviation, ``(batch, channels)``."""
    rows, geometry = voxel_rows(x), _geometry(x)
    moments = x.new_zeros((geometry.threads, geometry.batch, 1 + 2 * geometry.channels), dtype=torch.float64)
    call_kernel("moments", geometry, rows, moments)
    voxels, means, squares = moments.split([1, geometry.channels, geometry.channels], dim=-1)
    total = voxels.sum(0)
    mean = (voxels * means).sum(0) / total
    variance = (squares + voxels * (means - mean).square()).sum(0) / total
    mean, inverse = mean.float(), (variance + eps).rsqrt().float()
    y = torch.empty_like(rows)
    call_kernel("normalise", geometry, rows, *_affine(mean, inverse, weight, bias), slope, y)
    return image_of(y), mean, inverse


@cpp_instance_norm.register_fake
def _(x, weight, bias, eps, slope):
    return x.new_empty(x.movedim(1, -1).shape).movedim(-1, 1), x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])


@torch.library.custom_op("monai_gmr::cpp_instance_norm_backward", mutates_args=())
def _gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    inverse: torch.Tensor,
    slope: float,
) -> list[torch.Tensor]:
    """Gradients of image, weight and bias."""
    rows, gradient_rows, geometry = voxel_rows(x), voxel_rows(gradient), _geometry(x)
    arguments = (rows, *_affine(mean, inverse, weight, bias), slope, gradient_rows)
    sums = x.new_zeros((geometry.threads, geometry.batch, 2, geometry.channels), dtype=torch.float64)
    call_kernel("normalise_sums", geometry, *arguments, sums)
    total, product = sums.sum(0).unbind(1)
    precise = inverse.double()
    scale = precise if weight is None else precise * weight
    constant, multiple = scale * total / geometry.voxels, scale * precise.square() * product / geometry.voxels
    image_gradient = torch.empty_like(rows)
    call_kernel("normalise_backward", geometry, *arguments, constant.float(), multiple.float(), image_gradient)
    return [image_of(image_gradient), (product * precise).sum(0).float(), total.sum(0).float()]


@_gradients.register_fake
def _(gradient, x, weight, bias, mean, inverse, slope):
    return [x.new_empty(x.movedim(1, -1).shape).movedim(-1, 1), x.new_empty(x.shape[1:2]), x.new_empty(x.shape[1:2])]


def _dense(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, slope: float
) -> torch.Tensor:
    y = F.instance_norm(x, weight=weight, bias=bias, eps=eps)
    return y if slope == 1.0 else F.leaky_relu(y, slope)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, ...]) -> None:
    x, weight, bias, ctx.eps, ctx.slope = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple:
    needed = ctx.needs_input_grad[:3]
    if takes_dense_gradients(gradient):

        def run(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
            return _dense(x, weight, bias, ctx.eps, ctx.slope)

        return *dense_gradients(run, ctx.saved_tensors[:3], needed, gradient), None, None
    results = _gradients(gradient, *ctx.saved_tensors, ctx.slope)
    return *(each if asked else None for each, asked in zip(results, needed)), None, None


cpp_instance_norm.register_autograd(_backward, setup_context=_setup_context)


def supports_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> bool:
    """Whether :func:`instance_norm` of an image runs in kernels."""
    several = x.dim() > 1 and x.shape[1] > 1 and x.numel() > x.shape[0] * x.shape[1]
    return several and (weight is None or weight.dtype == torch.float32) and supports(x, weight, bias)


def instance_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, slope: float = 1.0
) -> torch.Tensor:
    """``torch.nn.functional.instance_norm`` with the statistics of the image; keeps channels last if kernels run.

    Args:
        x: ``(batch, channels, *spatial)``.
        weight, bias: ``(channels,)`` or ``None``.
        eps: added to the variance.
        slope: factor of negative results, as in ``torch.nn.functional.leaky_relu``.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 1, 2, 2)
        >>> instance_norm(x, None, None, 0.0).flatten().round(decimals=3)
        tensor([-1.0690, -0.5350,  0.0000,  1.6040])
        >>> instance_norm(x, None, None, 0.0, slope=0.1).flatten().round(decimals=3)
        tensor([-0.1070, -0.0530,  0.0000,  1.6040])
    """
    if supports_norm(x, weight, bias):
        return cpp_instance_norm(x, weight, bias, eps, slope)[0]
    return _dense(x, weight, bias, eps, slope)
