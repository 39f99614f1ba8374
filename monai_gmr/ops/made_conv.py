"""Convolution whose kernel is made of few numbers: these are saved for backward, which makes the kernel again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from monai_gmr.ops.autocast import autocast_dtype, without_autocast
from monai_gmr.ops.call import Call
from monai_gmr.ops.dense_gradients import dense_gradients, takes_dense_gradients
from monai_gmr.ops.ring_conv import conv_nd, conv_transpose_nd

# kernels of at most this many bytes are kept: making them again takes longer than it is worth
KEPT_BYTES = 2**20
# and kernels of at most this share of the image's size, because the image is kept as well
KEPT_SHARE = 1.0


class MadeKernel(NamedTuple):
    """A kernel ``make(*parts)``, as ``torch.nn.ConvNd.weight``, with gradients for its parts.

    Example:
        >>> kernel = MadeKernel(torch.matmul, (torch.ones(2, 1, 1), torch.tensor([[1.0, 2.0, 1.0]])))
        >>> kernel.tensor()[0]
        tensor([[1., 2., 1.]])
    """

    make: Callable[..., torch.Tensor]
    parts: tuple[torch.Tensor, ...]

    def tensor(self) -> torch.Tensor:
        """The kernel."""
        return self.make(*self.parts)

    def to(self, dtype: torch.dtype) -> MadeKernel:
        """The kernel in another data type."""
        return self._replace(make=lambda *parts: self.make(*parts).to(dtype))


class KernelOfLeaves:
    """A kernel made for a backward pass, which propagates a gradient to its parts.

    Example:
        >>> made = KernelOfLeaves(torch.mul, (torch.ones(2), torch.full((2,), 3.0)), needed=[True, False])
        >>> made.kernel, made.part_gradients(torch.ones(2))
        (tensor([3., 3.]), [tensor([3., 3.]), None])
    """

    def __init__(
        self, make: Callable[..., torch.Tensor], parts: Sequence[torch.Tensor], needed: Sequence[bool]
    ) -> None:
        self.needed = list(needed)
        self._leaves = [part.detach().requires_grad_(asked) for part, asked in zip(parts, needed)]
        with torch.enable_grad(), without_autocast(parts[0]):
            self._made = make(*self._leaves)
        self.kernel = self._made.detach()

    def part_gradients(self, gradient: torch.Tensor | None) -> list[torch.Tensor | None]:
        """Gradients of the parts, ``None`` if not needed."""
        wanted = [leaf for leaf, asked in zip(self._leaves, self.needed) if asked]
        if not self._made.requires_grad:
            return [None] * len(self.needed)
        # the kernel may not depend on a part, such as the orientation of a radial kernel
        with without_autocast(self.kernel):
            found = iter(torch.autograd.grad(self._made, wanted, gradient, allow_unused=True))
        return [next(found) if asked else None for asked in self.needed]


def conv_gradients(
    gradient: torch.Tensor, x: torch.Tensor, kernel: torch.Tensor, call: Call, needed: Sequence[bool]
) -> list[torch.Tensor | None]:
    """torch's gradients of image, kernel and bias of a convolution, ``None`` if not needed."""
    lengths = [list(each) for each in (call.stride, call.padding, call.dilation)]
    extra = list(call.output_padding) if call.transposed else [0] * len(call.kernel_size)
    geometry = (*lengths, call.transposed, extra, call.groups)
    return list(torch.ops.aten.convolution_backward(gradient, x, kernel, [call.channels[1]], *geometry, list(needed)))


def made_conv(x: torch.Tensor, kernel: MadeKernel, bias: torch.Tensor | None, call: Call) -> torch.Tensor:
    """torch's convolution, transposed if ``call.transposed``, with gradients for image, bias and parts of the kernel.

    Kernels of at most 1 MB, or no larger than the image, are kept; graphs and ``torch.func`` use the plain operations.

    Example:
        >>> x, weight = torch.ones(1, 1, 4), torch.ones(2, 1, 1, requires_grad=True)
        >>> call = Call.of_input(x, (3,), (1, 2), stride=[1], padding=[0], dilation=[1])
        >>> y = made_conv(x, MadeKernel(torch.matmul, (weight, torch.tensor([[1.0, 2.0, 1.0]]))), None, call)
        >>> y[0, 0], torch.autograd.grad(y.sum(), weight)[0].flatten()
        (tensor([4., 4.], grad_fn=<SelectBackward0>), tensor([8., 8.]))
    """
    if autocast_dtype(x) is not None:
        x, kernel, bias = x.to(call.precision), kernel.to(call.precision), _in_precision(bias, call.precision)
    # call.recorded first: sizes can be symbols in a graph
    if call.recorded or not torch.is_grad_enabled() or _is_kept(x, call):
        with without_autocast(x):
            return _conv(x, kernel.tensor(), bias, call)
    return _MadeConv.apply(call, kernel.make, x, bias, *kernel.parts)


def _is_kept(x: torch.Tensor, call: Call) -> bool:
    ins, outs = call.channels
    numbers = ins * outs // call.groups * math.prod(call.kernel_size)
    return numbers <= max(KEPT_BYTES / call.precision.itemsize, KEPT_SHARE * x.numel())


def _in_precision(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _conv(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, call: Call) -> torch.Tensor:
    if call.transposed:
        return conv_transpose_nd(x, kernel, bias, **call.conv_arguments(), output_padding=list(call.output_padding))
    return conv_nd(x, kernel, bias, **call.conv_arguments())


class _MadeConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        call: Call,
        make: Callable[..., torch.Tensor],
        x: torch.Tensor,
        bias: torch.Tensor | None,
        *parts: torch.Tensor,
    ) -> torch.Tensor:
        ctx.call, ctx.make = call, make
        ctx.save_for_backward(x, bias, *parts)
        with without_autocast(x):
            return _conv(x, make(*parts), bias, call)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        x, bias, *parts = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        if takes_dense_gradients(gradient):

            def whole(x: torch.Tensor, bias: torch.Tensor | None, *parts: torch.Tensor) -> torch.Tensor:
                return _conv(x, ctx.make(*parts), bias, ctx.call)

            return None, None, *dense_gradients(whole, (x, bias, *parts), needed, gradient)
        made = KernelOfLeaves(ctx.make, parts, needed[2:])
        # within autocast too, the backward pass uses the precision of the forward pass
        with without_autocast(x):
            masks = (needed[0], any(needed[2:]), needed[1])
            by_image, by_kernel, by_bias = conv_gradients(gradient, x, made.kernel, ctx.call, masks)
        return None, None, by_image, by_bias, *made.part_gradients(by_kernel)
