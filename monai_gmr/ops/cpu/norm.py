"""Instance norm of images with channels last, and the rectifier behind it, in kernels: for nets on backend "cpp".

The framework's own is for channels first, and its batch norm with channels last adds up in single precision along the whole image: at
128^3 voxels it is off by 1e-3, and a net would not be exactly equivariant. Here pieces are added up first, about their first voxel,
and then, in double precision, their sums.

Of memory, a forward pass reads the image twice and writes the result, rectified, once; a backward pass reads image and gradient twice and
writes one gradient. What the rectifier lets through is told by the image, so that nothing else is saved.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from monai_gmr.ops.cpu.library import call_kernel, runs_in_kernels
from monai_gmr.ops.memory_format import image_of


def _rows(x: torch.Tensor) -> torch.Tensor:
    """``(batch, *spatial, channels)``, contiguous."""
    return x.movedim(1, -1).contiguous()


def _geometry(rows: torch.Tensor) -> torch.Tensor:
    """What kernels are told of an image: samples, voxels, channels, threads."""
    voxels = rows.numel() // (rows.shape[0] * rows.shape[-1])
    return torch.tensor([rows.shape[0], voxels, rows.shape[-1], torch.get_num_threads()])


def _numbers(
    mean: torch.Tensor, inverse: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, slope: float
) -> list[torch.Tensor]:
    """Mean, scale and shift of each sample and channel, and the slope, as kernels take them."""
    scale = inverse if weight is None else inverse * weight
    shift = torch.zeros_like(mean) if bias is None else bias.expand_as(mean).contiguous()
    return [mean, scale, shift, torch.tensor([slope])]


@torch.library.custom_op("monai_gmr::compiled_instance_norm", mutates_args=())
def compiled_instance_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, slope: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``torch.nn.functional.instance_norm`` by the statistics of the image, then ``leaky_relu``; with gradients for the tensors.

    Args:
        x: ``(batch, channels, *spatial)``, float32, 2D or 3D.
        weight, bias: ``(channels,)`` or ``None``.
        eps: added to the variance.
        slope: of the rectifier below 0; 1 leaves it out.

    Returns:
        the normalised and rectified image, channels last in memory; the mean and the inverse of the standard deviation,
        ``(batch, channels)``, which have no gradients.
    """
    rows = _rows(x)
    geometry, channels = _geometry(rows), x.shape[1]
    seen = x.new_zeros((torch.get_num_threads(), x.shape[0], 1 + 2 * channels), dtype=torch.float64)
    call_kernel("moments", geometry, rows, seen)
    voxels, means, squares = seen.split([1, channels, channels], dim=-1)
    total = voxels.sum(0)
    mean = (voxels * means).sum(0) / total
    variance = (squares + voxels * (means - mean).square()).sum(0) / total
    mean, inverse = mean.float(), (variance + eps).rsqrt().float()
    y = torch.empty_like(rows)
    call_kernel("normalise", geometry, rows, *_numbers(mean, inverse, weight, bias, slope), y)
    return image_of(y), mean, inverse


@compiled_instance_norm.register_fake
def _(x, weight, bias, eps, slope):
    y = torch.empty_like(x.movedim(1, -1).contiguous()).movedim(-1, 1)
    return y, x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])


@torch.library.custom_op("monai_gmr::compiled_instance_norm_backward", mutates_args=())
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
    rows, gradient_rows = _rows(x), _rows(gradient)
    geometry, numbers = _geometry(rows), _numbers(mean, inverse, weight, bias, slope)
    sums = x.new_zeros((torch.get_num_threads(), x.shape[0], 2, x.shape[1]), dtype=torch.float64)
    call_kernel("normalise_sums", geometry, rows, *numbers, gradient_rows, sums)
    total, product = sums.sum(0).unbind(1)
    precise, voxels = inverse.double(), int(geometry[1])
    scale = precise if weight is None else precise * weight
    constant, multiple = scale * total / voxels, scale * precise.square() * product / voxels
    found = torch.empty_like(rows)
    call_kernel(
        "normalise_backward", geometry, rows, *numbers, gradient_rows, constant.float(), multiple.float(), found
    )
    return [image_of(found), (product * precise).sum(0).float(), total.sum(0).float()]


@_gradients.register_fake
def _(gradient, x, weight, bias, mean, inverse, slope):
    y = torch.empty_like(x.movedim(1, -1).contiguous()).movedim(-1, 1)
    return [y, x.new_empty(x.shape[1:2]), x.new_empty(x.shape[1:2])]


def _setup_context(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, ...]) -> None:
    x, weight, bias, ctx.eps, ctx.slope = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple:
    needed = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():
        # a gradient that is to be differentiated itself
        x, weight, bias = ctx.saved_tensors[:3]
        wanted = [each for each, asked in zip((x, weight, bias), needed) if asked]
        y = F.leaky_relu(F.instance_norm(x, None, None, weight, bias, True, 0.0, ctx.eps), ctx.slope)
        found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
        return *(next(found) if asked else None for asked in needed), None, None
    results = _gradients(gradient, *ctx.saved_tensors, ctx.slope)
    return *(each if asked else None for each, asked in zip(results, needed)), None, None


compiled_instance_norm.register_autograd(_backward, setup_context=_setup_context)


def has_norm_kernels(x: torch.Tensor, weight: torch.Tensor | None) -> bool:
    """Whether an image is normalised in kernels: with channels last, on backend "cpp"."""
    several = x.dim() > 1 and x.shape[1] > 1 and x.numel() > x.shape[0] * x.shape[1]
    return several and (weight is None or weight.dtype == torch.float32) and runs_in_kernels(x)


def instance_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, slope: float = 1.0
) -> torch.Tensor:
    """``torch.nn.functional.instance_norm`` by the statistics of the image; in kernels that keep channels last where they are.

    Args:
        x: ``(batch, channels, *spatial)``.
        weight, bias: ``(channels,)`` or ``None``.
        eps: added to the variance.
        slope: what the result is multiplied with where it is negative, as by ``torch.nn.functional.leaky_relu``.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 1, 2, 2)
        >>> instance_norm(x, None, None, 0.0).flatten().round(decimals=3)
        tensor([-1.0690, -0.5350,  0.0000,  1.6040])
        >>> instance_norm(x, None, None, 0.0, slope=0.1).flatten().round(decimals=3)
        tensor([-0.1070, -0.0530,  0.0000,  1.6040])
    """
    if has_norm_kernels(x, weight):
        return compiled_instance_norm(x, weight, bias, eps, slope)[0]
    y = F.instance_norm(x, None, None, weight, bias, True, 0.0, eps)
    return y if slope == 1.0 else F.leaky_relu(y, slope)
