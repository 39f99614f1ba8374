"""Backend "compiled": sums over shells in one generated loop, then one matrix product, for CPUs (design, section 2).

Operations and bytes for each output voxel, with ``T`` taps inside the support, ``S`` shells, ``R`` rings, ``C`` input and ``O`` output
channels:

* forward: ``T C`` additions, ``R S C`` + ``R C O`` multiplications, against ``k^d C O`` of a dense kernel; ``4 R C`` bytes written and
  read between the two steps, by parts that stay in the last cache level.
* gradient of the input: the same with the channels exchanged, for a radial kernel is its own adjoint.
* gradient of weight and basis: the shells' sums that the same loop writes beside the rings' (``4 S O`` bytes), and ``S O C``
  multiplications.
* an order with ``m`` components: the product comes first (``S C O``), then every tap is read once and multiplied ``m`` times for each of
  its few output channels (``T m O``); backward likewise.

Saved for the backward pass are input, weight and basis. The additions are bound by the first two cache levels, the product by arithmetic.
Matrix products run as 1x1 convolutions with channels last, which oneDNN makes two to four times as fast as ``torch.mm`` does on some
processors. Adding mirrored taps in pairs first, in two or four running sums, or as a tree takes as long as one after the other (3D, C 32,
k 5 and 7, AMD EPYC: 2.8 to 3.6 ms and 8.8 to 9.5 ms), for loads are the limit.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F

from monai_gmr.ops.backends import register_backend
from monai_gmr.ops.compiled_loops import (
    Part,
    Parts,
    RingSums,
    TapSums,
    Window,
    compiler_failure,
    number_of_loops,
    pad_channels_last,
)
from monai_gmr.ops.ring_conv import dense_ring_conv, output_sizes

logger = logging.getLogger(__name__)

# a size that was met so often is taken to repeat, and gets loops of its own
USES_BEFORE_COMPILATION = 1
LARGEST_NUMBER_OF_LOOPS = 512

_uses: Counter = Counter()


@lru_cache(maxsize=1)
def _say_dense(reason: str) -> None:
    logger.warning(f"backend 'compiled' is not used: {reason}; 'dense' runs in its place.")


def _product(sums: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """``(batch, *sizes, n, channels)`` times ``(out, n * channels)``."""
    flat = sums.flatten(-2).flatten(0, -2)
    image = flat[None, None].permute(0, 3, 1, 2)
    y = F.conv2d(image, matrix[:, :, None, None])
    return y.permute(0, 2, 3, 1).reshape(*sums.shape[:-2], matrix.shape[0])


def _outer_product(sums: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """``(batch, *sizes, n, channels)`` and ``(batch, *sizes, out)`` to ``(out, n * channels)``, summed over voxels."""
    flat, seed = sums.flatten(-2).flatten(0, -2), other.flatten(0, -2)
    image, seed = flat[None, None].permute(0, 3, 1, 2), seed[None, None].permute(0, 3, 1, 2)
    matrix = flat.new_empty((seed.shape[1], flat.shape[1], 1, 1))
    options: tuple = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])
    return torch.ops.aten.convolution_backward(seed, image, matrix, None, *options)[1][:, :, 0, 0]


def _gradients_by_part(
    parts: Parts,
    sums_of: Callable[[Part], list[torch.Tensor]],
    x: torch.Tensor,
    weight: torch.Tensor,
    needed: list[bool],
) -> list[torch.Tensor]:
    """Gradients of input and weights from sums over the output's gradient.

    Args:
        parts: parts of the input.
        sums_of: sums ``(batch, *sizes, n, out)`` of a part: first those that ``weight`` is for, last those of the shells.
        x: the input.
        weight: ``(out, in, n)``.
        needed: which of both are asked for; the other one is empty.

    Returns:
        gradients of ``x`` and of ``(out, in, shells)``.
    """
    outs, x_last, matrix = weight.shape[0], x.movedim(1, -1), weight.permute(1, 2, 0).flatten(1)
    x_gradient, products = x.new_empty(x_last.shape if needed[0] else (0,)), []
    for part in parts:
        sums = sums_of(part)
        if needed[0]:
            x_gradient[part.samples, part.rows] = _product(sums[0], matrix)
        if needed[1]:
            products.append(_outer_product(sums[-1][part.fresh], x_last[part.samples, part.rows][part.fresh]))
    if needed[0]:
        x_gradient = x_gradient.movedim(-1, 1)
    kernel = weight.new_empty((0,))
    if needed[1]:
        kernel = torch.stack(products).sum(0).unflatten(1, (-1, outs)).permute(2, 0, 1).contiguous()
    return [x_gradient, kernel]


@torch.library.custom_op("monai_gmr::compiled_ring_conv", mutates_args=())
def compiled_ring_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    shells: torch.Tensor,
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    """:func:`~monai_gmr.ops.ring_conv` of stride 1 and one group, with gradients for ``x``, ``weight`` and ``basis``.

    Args:
        x: ``(batch, in_channels, *spatial)``, float32.
        weight: ``(out_channels, in_channels, rings)``.
        basis: ``(rings, live shells)``; shells beyond count as zero.
        shells: integers of shape ``kernel_size``, symmetric about the centre.
        padding, dilation: in voxels, one an axis.

    Returns:
        ``(batch, out_channels, *spatial_out)``, channels last in memory.
    """
    window = Window.of(shells, basis.shape[1], dilation)
    loop = RingSums(window, basis.shape[0], False)
    parts = Parts(pad_channels_last(x.movedim(1, -1), padding), window, basis.shape[0] * x.shape[1])
    matrix, basis = weight.permute(0, 2, 1).flatten(1), basis.contiguous()
    y = x.new_empty((x.shape[0], *parts.sizes, matrix.shape[0]))
    for part in parts:
        y[part.samples, part.rows] = _product(parts.sums(loop, parts.seen(part), basis)[0], matrix)
    return y.movedim(-1, 1)


@compiled_ring_conv.register_fake
def _(x, weight, basis, shells, padding, dilation):
    sizes = output_sizes(x.shape[2:], shells.shape, [1] * shells.dim(), padding, dilation)
    return x.new_empty((x.shape[0], *sizes, weight.shape[0])).movedim(-1, 1)


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    *tensors, ctx.padding, ctx.dilation = inputs
    ctx.save_for_backward(*tensors)


@torch.library.custom_op("monai_gmr::compiled_ring_conv_backward", mutates_args=())
def _gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    shells: torch.Tensor,
    padding: list[int],
    dilation: list[int],
    needed: list[bool],
) -> list[torch.Tensor]:
    """Gradients of input and of ``(out, in, live shells)``, the kernel on shells."""
    window = Window.of(shells, basis.shape[1], dilation)
    loop = RingSums(window, basis.shape[0], needed[1])
    margins = [reach - p for reach, p in zip(window.reach(), padding)]
    floats = sum(basis.shape) if needed[1] else basis.shape[0]
    parts = Parts(pad_channels_last(gradient.movedim(1, -1), margins), window, floats * weight.shape[0])
    basis = basis.contiguous()
    return _gradients_by_part(parts, lambda part: parts.sums(loop, parts.seen(part), basis), x, weight, needed)


@_gradients.register_fake
def _(gradient, x, weight, basis, shells, padding, dilation, needed):
    return [
        x.new_empty(x.movedim(1, -1).shape).movedim(-1, 1) if needed[0] else x.new_empty((0,)),
        weight.new_empty((weight.shape[0], weight.shape[1], basis.shape[1]) if needed[1] else (0,)),
    ]


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple:
    x, weight, basis, shells = ctx.saved_tensors
    needed = [ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])]
    x_gradient, kernel = _gradients(gradient, x, weight, basis, shells, ctx.padding, ctx.dilation, needed)
    return (
        x_gradient if needed[0] else None,
        kernel @ basis.T if ctx.needs_input_grad[1] else None,
        torch.einsum("oir,ois->rs", weight, kernel) if ctx.needs_input_grad[2] else None,
        None,
        None,
        None,
    )


compiled_ring_conv.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("monai_gmr::compiled_factor_conv", mutates_args=())
def compiled_factor_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    shells: torch.Tensor,
    factors: torch.Tensor,
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    """:func:`~monai_gmr.ops.dense_shell_conv` of stride 1 and one group, with gradients for ``x`` and ``weight``.

    Args:
        x: ``(batch, in_channels, *spatial)``, float32.
        weight: ``(out_channels, in_channels, shells)``.
        shells: integers of shape ``kernel_size``; taps of shells below 0 do not count.
        factors: ``(components, taps)``, constants.
        padding, dilation: in voxels, one an axis.

    Returns:
        ``(batch, out_channels, components, *spatial_out)``; in memory the channels are last.
    """
    window = Window.of(shells, weight.shape[2], dilation)
    loop = TapSums(window, _rows(factors), gather=False)
    parts = Parts(pad_channels_last(x.movedim(1, -1), padding), window, weight.shape[0] * weight.shape[2])
    # every shell's product for all output channels: (shells * out, in)
    matrix = weight.permute(2, 0, 1).flatten(0, 1)
    y = x.new_empty((x.shape[0], *parts.sizes, len(factors), weight.shape[0]))
    for part in parts:
        seen = _product(parts.seen(part).unsqueeze(-2), matrix).unflatten(-1, (-1, weight.shape[0]))
        y[part.samples, part.rows] = parts.sums(loop, seen)[0]
    return y.movedim((-1, -2), (1, 2))


@compiled_factor_conv.register_fake
def _(x, weight, shells, factors, padding, dilation):
    sizes = output_sizes(x.shape[2:], shells.shape, [1] * shells.dim(), padding, dilation)
    return x.new_empty((x.shape[0], *sizes, factors.shape[0], weight.shape[0])).movedim((-1, -2), (1, 2))


@torch.library.custom_op("monai_gmr::compiled_factor_conv_backward", mutates_args=())
def _factor_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    shells: torch.Tensor,
    factors: torch.Tensor,
    padding: list[int],
    dilation: list[int],
    needed: list[bool],
) -> list[torch.Tensor]:
    """Gradients of input and weight."""
    window = Window.of(shells.flip(tuple(range(shells.dim()))), weight.shape[2], dilation)
    loop = TapSums(window, _rows(factors.flip(1)), gather=True)
    margins = [reach - p for reach, p in zip(window.reach(), padding)]
    last = gradient.movedim((2, 1), (-2, -1))
    parts = Parts(pad_channels_last(last, margins), window, weight.shape[0] * weight.shape[2])
    return _gradients_by_part(parts, lambda part: parts.sums(loop, parts.seen(part)), x, weight, needed)


@_factor_gradients.register_fake
def _(gradient, x, weight, shells, factors, padding, dilation, needed):
    return [
        x.new_empty(x.movedim(1, -1).shape).movedim(-1, 1) if needed[0] else x.new_empty((0,)),
        weight.new_empty(weight.shape if needed[1] else (0,)),
    ]


def _factor_backward(ctx: Any, gradient: torch.Tensor) -> tuple:
    x, weight, shells, factors = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:2])
    x_gradient, weight_gradient = _factor_gradients(
        gradient, x, weight, shells, factors, ctx.padding, ctx.dilation, needed
    )
    return x_gradient if needed[0] else None, weight_gradient if needed[1] else None, None, None, None, None


compiled_factor_conv.register_autograd(_factor_backward, setup_context=_setup_context)


def _rows(factors: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, factors.tolist()))


@lru_cache(maxsize=256)
def _shells_with_factors(window: tuple[int, ...], live: int, rows: tuple[tuple[float, ...], ...]) -> tuple[list, list]:
    """The shells that some factor is not zero on, and the window with these numbered from 0, others -1."""
    used = sorted({shell for t, shell in enumerate(window) if shell < live and any(row[t] != 0 for row in rows)})
    number = {shell: i for i, shell in enumerate(used)}
    return used, [number.get(shell, -1) for shell in window]


def has_loops(x: torch.Tensor, shells: torch.Tensor, stride: list[int], groups: int) -> bool:
    """Whether there are loops for such a convolution; not for strides, groups, half precision, and windows without a centre."""
    window = shells.flatten().tolist()
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and max(stride) == groups == 1
        and x.numel() > 0
        and window == window[::-1]
    )


def _can_compile(use: tuple) -> bool:
    """Whether such a use repeats, and there are a compiler and room for its loops; if not, says once why."""
    _uses[use] += 1
    if _uses[use] <= USES_BEFORE_COMPILATION:
        return False
    reason = compiler_failure()
    if number_of_loops() >= LARGEST_NUMBER_OF_LOOPS:
        reason = f"it has {LARGEST_NUMBER_OF_LOOPS} loops for other sizes already"
    if reason is not None:
        _say_dense(reason)
    return reason is None


@register_backend("compiled", takes_factors=has_loops)
def compiled_backend(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    shells: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    factors: torch.Tensor | None = None,
    live: int | None = None,
) -> torch.Tensor:
    """Backend "compiled": generated loops; "dense" where there are none, and for a size that has not repeated yet."""
    dense = partial(dense_ring_conv, x, weight, basis, shells, bias, stride, padding, dilation, groups, factors)
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or not has_loops(x, shells, stride, groups):
        return dense()
    batched = x if x.dim() == shells.dim() + 2 else x[None]
    components = None if factors is None else len(factors)
    if not _can_compile((batched.shape, shells.shape, weight.shape, components, tuple(padding), tuple(dilation), live)):
        return dense()
    if factors is None or bool((factors == 1).all()):
        y = compiled_ring_conv(batched, weight, basis[:, :live].to(weight.dtype), shells, padding, dilation)
        y = y if factors is None else y.unsqueeze(2)
    else:
        shape = shells.shape
        used, window = _shells_with_factors(tuple(shells.flatten().tolist()), live or basis.shape[1], _rows(factors))
        per_shell = weight @ basis[:, used].to(weight.dtype)
        y = compiled_factor_conv(batched, per_shell, torch.tensor(window).reshape(shape), factors, padding, dilation)
    y = y if x.dim() == shells.dim() + 2 else y[0]
    return y if bias is None else y + bias.reshape([-1] + [1] * shells.dim())
