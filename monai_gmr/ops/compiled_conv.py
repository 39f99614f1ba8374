"""Backend "compiled": sums over shells in one generated loop, then one matrix product, for CPUs (design, section 2).

Operations and bytes for each output voxel, with ``T`` taps inside the support, ``S`` shells, ``R`` rings, ``C`` input and ``O`` output
channels:

* forward: ``T C`` additions, ``R S C`` + ``R C O`` multiplications, against ``k^d C O`` of a dense kernel; ``4 R C`` bytes written and
  read between the two steps, by parts that stay in the last cache level.
* gradient of the input: the same with the channels exchanged, for a radial kernel is its own adjoint.
* gradient of weight and basis: the shells' sums that the same loop writes beside the rings' (``4 S O`` bytes), and ``S O C``
  multiplications.

Saved for the backward pass are input, weight and basis. The additions are bound by the first two cache levels, the product by arithmetic.
Matrix products run as 1x1 convolutions with channels last, which oneDNN makes two to four times as fast as ``torch.mm`` does on some
processors. Adding mirrored taps in pairs first, in two or four running sums, or as a tree takes as long as one after the other (3D, C 32,
k 5 and 7, AMD EPYC: 2.8 to 3.6 ms and 8.8 to 9.5 ms), for loads are the limit.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from monai_gmr.ops.backends import register_backend
from monai_gmr.ops.ring_conv import dense_ring_conv
from monai_gmr.ops.ring_sums import OPTIONS, make_ring_sums, taps_by_shell

logger = logging.getLogger(__name__)

# a size that was met so often is taken to repeat, and gets loops of its own
USES_BEFORE_COMPILATION = 1
LARGEST_NUMBER_OF_LOOPS = 512
# of what one part writes; parts that are reused stay in the last level of cache
BYTES_OF_A_PART = 8 * 2**20


class Loop(NamedTuple):
    """What a generated loop is made for.

    Attributes:
        window: the shell of each tap, as a nested tuple's flat content, and the window's shape.
        live: number of shells that count.
        dilation: distance of neighbouring taps in voxels, one an axis.
        batch: samples of a part.
        sizes: sizes of a part's result.
        padded: sizes of the whole padded image that it is a part of.
        channels: channels of the image.
        rings: number of rings.
        with_shells: whether the sums of the shells are returned as well.
    """

    window: tuple[tuple[int, ...], tuple[int, ...]]
    live: int
    dilation: tuple[int, ...]
    batch: int
    sizes: tuple[int, ...]
    padded: tuple[int, ...]
    channels: int
    rings: int
    with_shells: bool


_loops: dict[Loop, Callable] = {}
_uses: Counter = Counter()


def _generate(loop: Loop) -> Callable:
    """Compile a loop for its sizes; inductor keeps what it compiles on disk."""
    from torch._guards import TracingContext, tracing
    from torch._inductor import compile as compile_graph
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    shells = torch.tensor(loop.window[0]).reshape(loop.window[1])
    sums = make_ring_sums(taps_by_shell(shells, loop.live, loop.dilation), loop.with_shells)
    reach = [d * (k - 1) for d, k in zip(loop.dilation, loop.window[1])]
    rows = [n + r for n, r in zip(loop.sizes, reach)]
    whole = torch.zeros((loop.batch, *loop.padded, loop.channels))
    part = whole[:, : rows[0]] if loop.batch == 1 else whole
    examples: list[Any] = [part, torch.zeros((loop.rings, loop.live))]
    start = time.perf_counter()
    graph = make_fx(lambda padded, basis: sums(padded, basis, *loop.sizes))(*examples)
    # inductor looks into its cache on disk only where sizes have an environment
    with tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv()))):
        function = compile_graph(graph, examples, options=OPTIONS)
    function(*examples)
    seconds = time.perf_counter() - start
    logger.info(f"backend 'compiled': {seconds:.1f} s for a loop of {loop.sizes} voxels, {loop.channels} channels.")
    return function


@lru_cache(maxsize=1)
def _say_dense(reason: str) -> None:
    logger.warning(f"backend 'compiled' is not used: {reason}; 'dense' runs in its place.")


@lru_cache(maxsize=1)
def _compiler_failure() -> str | None:
    """Why inductor cannot compile a small loop, or ``None``: asked once a process."""
    loop = Loop(((0,) * 9, (3, 3)), 1, (1, 1), 1, (2, 2), (4, 4), 1, 1, False)
    try:
        _generate(loop)
    except Exception as error:  # whatever a compiler says: the dense convolution needs none
        return f"its loops cannot be compiled ({' '.join(str(error).split())[:200]})"
    return None


def _loop_function(loop: Loop) -> Callable:
    if loop not in _loops:
        _loops[loop] = _generate(loop)
    return _loops[loop]


def part_of(batch: int, sizes: Sequence[int], floats: int) -> tuple[int, int]:
    """Samples and rows along the first axis of a part: all rows of several samples, or some rows of one.

    Args:
        batch: number of samples.
        sizes: voxels of a sample along each axis.
        floats: floats that are written for each voxel.

    Example:
        >>> part_of(8, (64, 64), 320), part_of(1, (48, 48, 48), 96), part_of(32, (8, 8), 32)
        ((1, 64), (1, 8), (32, 8))
    """
    row = 4 * floats
    for n in sizes[1:]:
        row *= n
    most = max(1, BYTES_OF_A_PART // row)
    if most >= 2 * sizes[0]:
        samples = min(batch, most // sizes[0])
        return -(-batch // -(-batch // samples)), sizes[0]
    return 1, -(-sizes[0] // -(-sizes[0] // most))


class Part(NamedTuple):
    """Samples and rows of a result; those before ``fresh`` are of the part before as well."""

    samples: slice
    rows: slice
    fresh: tuple[slice, slice]


def _slices(total: int, length: int) -> list[tuple[slice, slice]]:
    """Slices of equal length that cover all, the last one drawn back to the end, and what is new in each.

    Example:
        >>> _slices(5, 3)
        [(slice(0, 3, None), slice(0, None, None)), (slice(2, 5, None), slice(1, None, None))]
    """
    starts = [(start, min(start, total - length)) for start in range(0, total, length)]
    return [(slice(begin, begin + length), slice(start - begin, None)) for start, begin in starts]


def _pad_last(x: torch.Tensor, margins: Sequence[int]) -> torch.Tensor:
    """Zeros around ``(batch, *sizes, channels)``, or voxels cut off for margins below 0, in one pass over memory."""
    x = x[(slice(None), *(slice(max(0, -m), x.shape[axis + 1] - max(0, -m)) for axis, m in enumerate(margins)))]
    margins = [max(0, m) for m in margins]
    padded = x.new_empty((x.shape[0], *(n + 2 * m for n, m in zip(x.shape[1:], margins)), x.shape[-1]))
    inside = padded
    for axis, m in enumerate(margins):
        inside.narrow(axis + 1, 0, m).zero_()
        inside.narrow(axis + 1, inside.shape[axis + 1] - m, m).zero_()
        inside = inside.narrow(axis + 1, m, x.shape[axis + 1])
    inside.copy_(x)
    return padded


class _Image(NamedTuple):
    """An image with its channels last, zeros around it, and the loop that sums over it."""

    padded: torch.Tensor
    loop: Loop

    @classmethod
    def of(
        cls,
        x: torch.Tensor,
        window: tuple,
        live: int,
        rings: int,
        margins: Sequence[int],
        dilation: Sequence[int],
        with_shells: bool,
    ) -> _Image:
        padded = _pad_last(x.movedim(1, -1), margins)
        sizes = [n - d * (k - 1) for n, d, k in zip(padded.shape[1:-1], dilation, window[1])]
        channels = x.shape[1]
        batch, rows = part_of(x.shape[0], sizes, channels * (rings + live * with_shells))
        spatial = (rows, *sizes[1:])
        whole = tuple(padded.shape[1:-1])
        loop = Loop(window, live, tuple(dilation), batch, spatial, whole, channels, rings, with_shells)
        return cls(padded, loop)

    def sizes(self) -> list[int]:
        """Batch and sizes of the whole result."""
        rows = self.padded.shape[1] - self.loop.dilation[0] * (self.loop.window[1][0] - 1)
        return [self.padded.shape[0], rows, *self.loop.sizes[1:]]

    def parts(self) -> list[Part]:
        """All parts of the result."""
        batch, rows = self.sizes()[:2]
        return [
            Part(samples, part, (new_samples, new_rows))
            for samples, new_samples in _slices(batch, self.loop.batch)
            for part, new_rows in _slices(rows, self.loop.sizes[0])
        ]

    def sums(self, part: Part, basis: torch.Tensor) -> list[torch.Tensor]:
        """Rings' and, if asked for, shells' sums of a part, ``(batch, *sizes, rings or shells, channels)``."""
        reach = self.loop.dilation[0] * (self.loop.window[1][0] - 1)
        seen = self.padded[part.samples, part.rows.start : part.rows.stop + reach]
        return list(_loop_function(self.loop)(seen, basis))


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


def _window(shells: torch.Tensor) -> tuple:
    return tuple(shells.flatten().tolist()), tuple(shells.shape)


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
    image = _Image.of(x, _window(shells), basis.shape[1], basis.shape[0], padding, dilation, False)
    matrix, basis = weight.permute(0, 2, 1).flatten(1), basis.contiguous()
    y = x.new_empty((*image.sizes(), matrix.shape[0]))
    for part in image.parts():
        y[part.samples, part.rows] = _product(image.sums(part, basis)[0], matrix)
    return y.movedim(-1, 1)


@compiled_ring_conv.register_fake
def _(x, weight, basis, shells, padding, dilation):
    sizes = [n + 2 * p - d * (k - 1) for n, p, d, k in zip(x.shape[2:], padding, dilation, shells.shape)]
    return x.new_empty((x.shape[0], *sizes, weight.shape[0])).movedim(-1, 1)


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    x, weight, basis, shells, ctx.padding, ctx.dilation = inputs
    ctx.save_for_backward(x, weight, basis, shells)


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
    margins = [d * (k - 1) - p for p, d, k in zip(padding, dilation, shells.shape)]
    image = _Image.of(gradient, _window(shells), basis.shape[1], basis.shape[0], margins, dilation, needed[1])
    basis, matrix = basis.contiguous(), weight.permute(1, 2, 0).flatten(1)
    x_last = x.movedim(1, -1)
    x_gradient = x.new_empty(x_last.shape if needed[0] else (0,))
    kernel = weight.new_zeros((weight.shape[1], basis.shape[1] * weight.shape[0]) if needed[1] else (0,))
    for part in image.parts():
        sums = image.sums(part, basis)
        if needed[0]:
            x_gradient[part.samples, part.rows] = _product(sums[0], matrix)
        if needed[1]:
            kernel += _outer_product(sums[1][part.fresh], x_last[part.samples, part.rows][part.fresh])
    if needed[0]:
        x_gradient = x_gradient.movedim(-1, 1)
    if needed[1]:
        kernel = kernel.reshape(weight.shape[1], basis.shape[1], weight.shape[0]).permute(2, 0, 1)
    return [x_gradient, kernel.contiguous()]


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


def _refusal(
    x: torch.Tensor, shells: torch.Tensor, stride: list[int], groups: int, factors: torch.Tensor | None
) -> bool:
    """Whether the geometry is none that the loops are made for."""
    window = shells.flatten().tolist()
    return (
        x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_autocast_enabled("cpu")
        or max(stride) > 1
        or groups > 1
        or factors is not None
        or x.numel() == 0
        or window != window[::-1]
    )


@register_backend("compiled")
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
    """Backend "compiled": :func:`compiled_ring_conv`; "dense" where it does not pay: strides, groups, factors, half precision."""
    dense = partial(dense_ring_conv, x, weight, basis, shells, bias, stride, padding, dilation, groups, factors)
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or _refusal(x, shells, stride, groups, factors):
        return dense()
    batched = x if x.dim() == shells.dim() + 2 else x[None]
    use = (batched.shape, shells.shape, weight.shape, tuple(padding), tuple(dilation), live)
    _uses[use] += 1
    if _uses[use] <= USES_BEFORE_COMPILATION:
        return dense()
    if len(_loops) > LARGEST_NUMBER_OF_LOOPS:
        _say_dense(f"it has {len(_loops)} loops for other sizes already")
        return dense()
    if _compiler_failure() is not None:
        _say_dense(str(_compiler_failure()))
        return dense()
    y = compiled_ring_conv(batched, weight, basis[:, :live].to(weight.dtype), shells, padding, dilation)
    y = y if x.dim() == shells.dim() + 2 else y[0]
    return y if bias is None else y + bias.reshape([-1] + [1] * shells.dim())
