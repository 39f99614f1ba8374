"""Shapes and gradients of the custom operations that backends compute radial convolutions with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from monai_gmr.ops.cpu.library import sum_voxels
from monai_gmr.ops.memory_format import follow_format
from monai_gmr.ops.ring_conv import dense_ring_conv, output_sizes


def differentiable_gradients(
    y: torch.Tensor, inputs: Sequence[torch.Tensor], needed: Sequence[bool], gradient: torch.Tensor
) -> list[torch.Tensor | None]:
    """Gradients that can be differentiated again, of a dense operation's result ``y``; ``None`` where not needed.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> differentiable_gradients(3 * x, [x, x], [True, False], torch.ones(2))
        [tensor([3., 3.]), None]
    """
    wanted = [each for each, asked in zip(inputs, needed) if asked]
    gradients = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
    return [next(gradients) if asked else None for asked in needed]


def register_ring_conv(operation: Any, gradients: Any) -> None:
    """Give a radial convolution and its backward pass shapes, and the convolution gradients.

    Args:
        operation: a custom operation ``(x, weight, basis, shells, bias, padding, dilation)`` of stride 1, which may take ``groups`` after
            these.
        gradients: one ``(gradient, x, weight, basis, shells, padding, dilation, needed)``, with ``groups`` before ``needed`` if the
            operation takes them, whose results are the gradients of input, weight and basis, of shape ``(0,)`` where not needed. Gradients
            of gradients are those of the dense operation.
    """

    def fake_result(x, weight, basis, shells, bias, padding, dilation, groups=1):
        sizes = output_sizes(x.shape[2:], shells.shape, [1] * shells.dim(), padding, dilation)
        return follow_format(x.new_empty((x.shape[0], *sizes, weight.shape[0])).movedim(-1, 1), x)

    def fake_gradients(gradient, x, weight, basis, shells, *geometry_and_needed):
        asked = zip((x, weight, basis), geometry_and_needed[-1])
        return [torch.empty_like(each) if needed else each.new_empty((0,)) for each, needed in asked]

    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        ctx.geometry = inputs[5:]
        ctx.save_for_backward(*inputs[:4])

    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        needed = list(ctx.needs_input_grad[:3])
        bias = sum_voxels(gradient) if ctx.needs_input_grad[4] else None
        if torch.is_grad_enabled():
            x, weight, basis, shells = ctx.saved_tensors
            padded = F.pad(basis, [0, int(shells.max()) + 1 - basis.shape[1]])
            padding, dilation, *groups = ctx.geometry
            geometry = {"stride": [1] * shells.dim(), "padding": padding, "dilation": dilation}
            y = dense_ring_conv(x, weight, padded, shells, None, **geometry, groups=groups[0] if groups else 1)
            results = differentiable_gradients(y, (x, weight, basis), needed, gradient)
        else:
            results = gradients(gradient, *ctx.saved_tensors, *ctx.geometry, needed)
            results = [each if asked else None for each, asked in zip(results, needed)]
        return *results, None, bias, *(None for _ in ctx.geometry)

    operation.register_fake(fake_result)
    gradients.register_fake(fake_gradients)
    operation.register_autograd(backward, setup_context=setup_context)
