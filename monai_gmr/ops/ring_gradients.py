"""Shapes and gradients of the backends' custom operations for convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from monai_gmr.ops.call import output_sizes
from monai_gmr.ops.cpu.library import sum_voxels
from monai_gmr.ops.dense_gradients import dense_gradients, takes_dense_gradients
from monai_gmr.ops.memory_format import follow_format
from monai_gmr.ops.ring_conv import dense_ring_conv


def register_gradients(
    operation: Any,
    gradients: Any,
    dense: Callable[..., torch.Tensor],
    count: int = 3,
    constants: int = 1,
    weights: Sequence[int] = (1,),
) -> None:
    """Registers output shapes for a convolution of stride 1 and its backward pass, and gradients for the convolution.

    ``operation`` is a custom operation of ``(*inputs, *constants, bias, padding, dilation, *others)``. It has ``count`` inputs: image,
    weight, and optionally basis, the weight of further channels and more, some of which can be ``None``. Its ``constants`` are the shells
    of the taps and optionally angular factors; without constants the weight is ``(out, in, *kernel_size)``. ``weights`` are the indices of
    the inputs that have a row per output channel. ``gradients`` is a custom operation of ``(gradient, *inputs, *constants, padding,
    dilation, *others, needed)`` that returns the gradients of the inputs, with shape ``(0,)`` if not needed. Gradients of gradients and
    batched gradients are computed by ``dense(*inputs, *constants, padding, dilation, *others)``.
    """
    bias_place = count + constants

    def fake_result(*arguments: Any) -> torch.Tensor:
        x, (padding, dilation) = arguments[0], arguments[bias_place + 1 : bias_place + 3]
        window = arguments[count].shape if constants else arguments[1].shape[2:]
        sizes = output_sizes(x.shape[2:], window, [1] * len(window), padding, dilation)
        channels = sum(arguments[place].shape[0] for place in weights)
        return follow_format(x.new_empty((x.shape[0], *sizes, channels)).movedim(-1, 1), x)

    def fake_gradients(gradient: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
        asked = zip(arguments, arguments[-1])
        return [torch.empty_like(each) if needed else gradient.new_empty((0,)) for each, needed in asked]

    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        ctx.geometry = inputs[bias_place + 1 :]
        ctx.save_for_backward(*inputs[:bias_place])

    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        needed, tensors = list(ctx.needs_input_grad[:count]), ctx.saved_tensors
        bias = sum_voxels(gradient) if ctx.needs_input_grad[bias_place] else None
        if takes_dense_gradients(gradient):
            others = (*tensors[count:], *ctx.geometry)
            results = dense_gradients(lambda *inputs: dense(*inputs, *others), tensors[:count], needed, gradient)
        else:
            results = gradients(gradient, *tensors, *ctx.geometry, needed)
            results = [each if asked else None for each, asked in zip(results, needed)]
        return *results, *[None] * constants, bias, *[None] * len(ctx.geometry)

    operation.register_fake(fake_result)
    gradients.register_fake(fake_gradients)
    operation.register_autograd(backward, setup_context=setup_context)


def dense_operation(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    shells: torch.Tensor,
    padding: list[int],
    dilation: list[int],
    groups: int = 1,
) -> torch.Tensor:
    """:func:`~monai_gmr.ops.ring_conv.dense_ring_conv` of stride 1; shells beyond the basis count as zero."""
    padded = F.pad(basis, [0, max(0, int(shells.max()) + 1 - basis.shape[1])])
    geometry: dict[str, Any] = {"padding": padding, "dilation": dilation, "groups": groups}
    return dense_ring_conv(x, weight, padded, shells, None, stride=[1] * shells.dim(), **geometry)


def present(gradients: Sequence[torch.Tensor | None], x: torch.Tensor) -> list[torch.Tensor]:
    """Gradients as results of a custom operation, which cannot be ``None``: empty tensors replace ``None``."""
    return [x.new_empty((0,)) if each is None else each for each in gradients]
