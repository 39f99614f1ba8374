"""Backend "compiled" for CPUs: sums over shells and matrix products over channels, tile by tile (design, section 2).

Radial convolutions run in the kernels of ``ring_conv.cpp``, which take any window, number of rings, channels and size; orders with angular
factors in loops that torch.compile's inductor generates for sizes that repeat, and matrix products between them.

Operations and bytes for each output voxel, with ``T`` taps inside the support, ``S`` shells, ``R`` rings, ``C`` input and ``O`` output
channels:

* forward: ``T C`` additions, ``R S C`` + ``R C O`` multiplications, against ``k^d C O`` of a dense kernel. The rings' sums of a tile of 64
  voxels, ``4 R C`` bytes a voxel, are written and read in the second cache level; of memory, input and output are read and written once.
* backward: the rings' products with the input, ``R C O``, once more; ``T O`` additions and ``R S O`` multiplications for the rings' sums of
  the gradient (a radial kernel is its own adjoint), and as many for their inner products with the rings' products, which are the gradient
  of the basis; then both gradients of the product, ``2 R C O``. Where the input needs no gradient (a first layer) and has fewer channels,
  the sums are over the input: ``T C`` and ``R S C``.
* an order with ``m`` components: the product comes first (``S C O``), then every tap is read once and multiplied ``m`` times for each of
  its few output channels (``T m O``); backward likewise.

A bias is added in the product. Saved for the backward pass are input, weight and basis.

What bounds it: the products by arithmetic (300 to 350 GFLOP/s where the benchmark found at most 300 to 327), the additions by loads from
the first two cache levels, small windows by memory.

Between loops for angular factors, with AVX-512, matrix products run as 1x1 convolutions with channels last, which oneDNN makes two to four
times as fast as ``torch.mm`` does on some processors; with AVX2 ``torch.mm`` takes .91 to .97 of the time of a training step, and .97 to
1.05 of a forward pass (AMD EPYC, measured when radial convolutions ran in such loops too, medians of 20 runs that take turns).

Ways of summing that were measured in generated loops, 3D, C 32, 48^3, AMD EPYC, in ms for k 5 and 7: one tap after the other 1.9 and 5.7
(kept); mirrored taps in pairs, two or four running sums, trees: the same within the noise; mirrored planes added first and kept, then the
taps of half the window 2.2 and 4.6; equal columns of the window (sums over two axes) first, then along the third 3.3 and 6.8; mirrored rows
first 3.3 and 9.4. What is kept in between costs as much as the additions that it saves.

Ways of summing in the kernels, 2D C 64 k 9, then 3D k 3, 5, 7 as above, Intel Xeon with AVX-512, ms of one run: four vectors of a line at a
time, loops over the taps 2.4, 2.1, 5.5, 11.2 (kept); source written out for each window 2.0, 2.0, 5.0, 12.9; two taps at a time, four lines
at a time, sixteen channels along a line first: the same within the noise or slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F

from monai_gmr.ops.backends import register_backend
from monai_gmr.ops.compiled_loops import (
    Part,
    Parts,
    TapSums,
    Window,
    can_compile,
    takes_loops,
)
from monai_gmr.ops.memory_format import follow_format, image_of
from monai_gmr.ops.ring_conv import dense_ring_conv, output_sizes
from monai_gmr.ops.ring_kernels import has_kernels, pad_columns, ring_gradients, ring_products
from monai_gmr.ops.shell_conv import dense_shell_conv


@lru_cache(maxsize=1)
def _multiplies_by_convolution() -> bool:
    """Whether 1x1 convolutions multiply matrices faster than ``torch.mm`` does."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _as_image(tensor: torch.Tensor) -> torch.Tensor:
    """``(batch, *sizes, channels)`` as an image of one row, channels last in memory."""
    return tensor.flatten(0, -2)[None, None].permute(0, 3, 1, 2)


def _product(x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``(batch, *sizes, channels)`` times ``(out, channels)``, plus ``(out,)``, contiguous."""
    if not _multiplies_by_convolution():
        return F.linear(x, matrix, bias)
    y = F.conv2d(_as_image(x), matrix[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], matrix.shape[0]).contiguous()


def _product_gradients(
    gradient: torch.Tensor, x: torch.Tensor, matrix: torch.Tensor, needed: list[bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of ``x`` and ``matrix`` of :func:`_product`, ``None`` where not needed."""
    if not _multiplies_by_convolution():
        rows, others = gradient.flatten(0, -2), x.flatten(0, -2)
        return (rows @ matrix).reshape(x.shape) if needed[0] else None, rows.T @ others if needed[1] else None
    options: tuple = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [*needed, False])
    images = (_as_image(gradient), _as_image(x), matrix[:, :, None, None])
    image, kernel, _ = torch.ops.aten.convolution_backward(*images, *options)
    return (
        image.permute(0, 2, 3, 1).reshape(x.shape) if needed[0] else None,
        kernel[:, :, 0, 0] if needed[1] else None,
    )


def _ring_matrix(weight: torch.Tensor) -> torch.Tensor:
    """``(out, in, n)`` as ``(n * out, in)``: products of all rings or shells at once."""
    return weight.permute(2, 0, 1).flatten(0, 1)


def _gradients_by_part(
    parts: Parts,
    sums_of: Callable[[Part], torch.Tensor],
    other: torch.Tensor,
    matrix: torch.Tensor,
    needed: list[bool],
) -> list[torch.Tensor]:
    """Gradients of a product that sums over taps follow, from adjoint sums over the gradient of the output.

    Args:
        parts: parts of the input.
        sums_of: sums of a part: ``(batch, *sizes, n, out)``.
        other: the input, channels last.
        matrix: ``(n * out, in)``, what the input was multiplied with.
        needed: whether the gradients of ``other`` and of ``matrix`` are asked for; the others are empty.

    Returns:
        gradients of ``other`` and ``matrix``.
    """
    gradient = other.new_empty(other.shape if needed[0] else (0,))
    matrices = []
    for part in parts:
        met = other[part.samples, part.rows][part.fresh]
        image, kernel = _product_gradients(sums_of(part)[part.fresh].flatten(-2), met, matrix, needed)
        if image is not None:
            gradient[part.samples, part.rows][part.fresh] = image
        if kernel is not None:
            matrices.append(kernel)
    return [gradient, torch.stack(matrices).sum(0) if needed[1] else matrix.new_empty((0,))]


@torch.library.custom_op("monai_gmr::compiled_ring_conv", mutates_args=())
def compiled_ring_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    shells: torch.Tensor,
    bias: torch.Tensor | None,
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    """:func:`~monai_gmr.ops.ring_conv` of stride 1 and one group, with gradients for ``x``, ``weight``, ``basis`` and ``bias``.

    Args:
        x: ``(batch, in_channels, *spatial)``, float32.
        weight: ``(out_channels, in_channels, rings)``.
        basis: ``(rings, live shells)``; shells beyond count as zero.
        shells: integers of shape ``kernel_size``, symmetric about the centre.
        bias: ``(out_channels,)`` or ``None``.
        padding, dilation: in voxels, one an axis.

    Returns:
        ``(batch, out_channels, *spatial_out)``, in memory as ``x`` is.
    """
    window = Window.of(shells, basis.shape[1], dilation)
    parts = Parts(x.movedim(1, -1), padding, window, x.shape[1])
    matrix = pad_columns(weight.permute(2, 1, 0).flatten(0, 1))
    bias = None if bias is None else pad_columns(bias)
    y = x.new_empty((x.shape[0], *parts.sizes, weight.shape[0]))
    for part in parts:
        ring_products(parts.seen(part), window, basis, matrix, bias, y[part.samples, part.rows])
    return follow_format(image_of(y), x)


@compiled_ring_conv.register_fake
def _(x, weight, basis, shells, bias, padding, dilation):
    sizes = output_sizes(x.shape[2:], shells.shape, [1] * shells.dim(), padding, dilation)
    return follow_format(x.new_empty((x.shape[0], *sizes, weight.shape[0])).movedim(-1, 1), x)


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
    """Gradients of input, weight and basis."""
    window = Window.of(shells, basis.shape[1], dilation)
    image, other, margins = gradient, x, [reach - p for reach, p in zip(window.reach(), padding)]
    if mirrored := not needed[0] and x.shape[1] < weight.shape[0]:
        # a first layer: the input has fewer channels to sum over than the gradient
        image, other, margins, weight = x, gradient, padding, weight.transpose(0, 1)
    rings, channels, others = basis.shape[0], *weight.shape[:2]
    parts = Parts(image.movedim(1, -1), margins, window, channels)
    other = other.movedim(1, -1).contiguous()
    matrix = pad_columns(_ring_matrix(weight))
    transposed = pad_columns(weight.permute(1, 2, 0)).flatten(1)
    threads = torch.get_num_threads()
    x_gradient = torch.empty_like(other) if needed[0] else None
    product = matrix.new_zeros((threads, *matrix.shape)) if needed[1] else None
    numbers = matrix.new_zeros((threads, *basis.T.shape), dtype=torch.float64) if needed[2] else None
    for part in parts:
        own = None if x_gradient is None else x_gradient[part.samples, part.rows][part.fresh]
        met = other[part.samples, part.rows][part.fresh]
        found = (own, product, numbers)
        ring_gradients(parts.seen(part)[part.fresh], window, basis, met, matrix, transposed, found)
    if product is not None:
        product = product.sum(0)[:, :others].unflatten(0, (rings, channels))
        product = product.permute((2, 1, 0) if mirrored else (1, 2, 0)).contiguous()
    return [
        x.new_empty((0,)) if x_gradient is None else follow_format(image_of(x_gradient), x),
        x.new_empty((0,)) if product is None else product,
        x.new_empty((0,)) if numbers is None else numbers.sum(0).T.float().contiguous(),
    ]


@_gradients.register_fake
def _(gradient, x, weight, basis, shells, padding, dilation, needed):
    return [
        torch.empty_like(x) if needed[0] else x.new_empty((0,)),
        weight.new_empty(weight.shape if needed[1] else (0,)),
        basis.new_empty(basis.shape if needed[2] else (0,)),
    ]


def _differentiable(
    y: torch.Tensor, inputs: Sequence[torch.Tensor], needed: Sequence[bool], gradient: torch.Tensor
) -> list[torch.Tensor | None]:
    """Gradients that are to be differentiated themselves, by the dense operation; ``None`` where not needed."""
    wanted = [each for each, asked in zip(inputs, needed) if asked]
    found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
    return [next(found) if asked else None for asked in needed]


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple:
    needed = list(ctx.needs_input_grad[:3])
    bias = gradient.sum((0, *range(2, gradient.dim()))) if ctx.needs_input_grad[4] else None
    if torch.is_grad_enabled():
        x, weight, basis, shells = ctx.saved_tensors
        dims = shells.dim()
        padded = F.pad(basis, [0, int(shells.max()) + 1 - basis.shape[1]])
        y = dense_ring_conv(x, weight, padded, shells, None, [1] * dims, ctx.padding, ctx.dilation, 1)
        return *_differentiable(y, (x, weight, basis), needed, gradient), None, bias, None, None
    found = _gradients(gradient, *ctx.saved_tensors, ctx.padding, ctx.dilation, needed)
    return *(each if wanted else None for each, wanted in zip(found, needed)), None, bias, None, None


def _setup_ring_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    *tensors, _, padding, dilation = inputs
    _setup_context(ctx, (*tensors, padding, dilation), output)


compiled_ring_conv.register_autograd(_backward, setup_context=_setup_ring_context)


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
    parts = Parts(x.movedim(1, -1), padding, window, weight.shape[0] * weight.shape[2])
    matrix = _ring_matrix(weight)
    y = x.new_empty((x.shape[0], *parts.sizes, len(factors), weight.shape[0]))
    for part in parts:
        seen = _product(parts.seen(part), matrix).unflatten(-1, (-1, weight.shape[0]))
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
    parts = Parts(last, margins, window, weight.shape[0] * weight.shape[2])
    matrix, outs, x_last = _ring_matrix(weight), weight.shape[0], x.movedim(1, -1).contiguous()
    found = _gradients_by_part(parts, lambda part: parts.sums(loop, parts.seen(part))[0], x_last, matrix, needed)
    if needed[0]:
        found[0] = follow_format(found[0].movedim(-1, 1), x)
    if needed[1]:
        found[1] = found[1].unflatten(0, (-1, outs)).permute(1, 2, 0).contiguous()
    return found


@_factor_gradients.register_fake
def _(gradient, x, weight, shells, factors, padding, dilation, needed):
    return [
        torch.empty_like(x) if needed[0] else x.new_empty((0,)),
        weight.new_empty(weight.shape if needed[1] else (0,)),
    ]


def _factor_backward(ctx: Any, gradient: torch.Tensor) -> tuple:
    x, weight, shells, factors = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:2])
    if torch.is_grad_enabled():
        counted = shells.where(shells >= 0, weight.shape[2])
        y = dense_shell_conv(x, weight, counted, factors, [1] * shells.dim(), ctx.padding, ctx.dilation, 1)
        return *_differentiable(y, (x, weight), needed, gradient), None, None, None, None
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
    """Whether there are kernels and loops for such a convolution; not for strides, groups, half precision, recorded graphs,
    ``torch.func``, and windows without a centre."""
    window = shells.flatten().tolist()
    return takes_loops(x) and max(stride) == groups == 1 and window == window[::-1]


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
    """Backend "compiled": kernels, with angular factors generated loops; "dense" where there are none, and where there are loops for a
    size that has not repeated yet."""
    dense = partial(dense_ring_conv, x, weight, basis, shells, bias, stride, padding, dilation, groups, factors)
    if not has_loops(x, shells, stride, groups):
        return dense()
    batched = x if x.dim() == shells.dim() + 2 else x[None]
    if min(output_sizes(batched.shape[2:], shells.shape, stride, padding, dilation)) < 1:
        # the framework says what is wrong
        return dense()
    if factors is None or bool((factors == 1).all()):
        if not has_kernels():
            return dense()
        y = compiled_ring_conv(batched, weight, basis[:, :live].to(weight.dtype), shells, bias, padding, dilation)
        y = y if factors is None else y.unsqueeze(2)
    else:
        shape = shells.shape
        if not can_compile((batched.shape, shape, weight.shape, len(factors), tuple(padding), tuple(dilation), live)):
            return dense()
        used, window = _shells_with_factors(tuple(shells.flatten().tolist()), live or basis.shape[1], _rows(factors))
        per_shell = weight @ basis[:, used].to(weight.dtype)
        y = compiled_factor_conv(batched, per_shell, torch.tensor(window).reshape(shape), factors, padding, dilation)
    return y if x.dim() == shells.dim() + 2 else y[0]
