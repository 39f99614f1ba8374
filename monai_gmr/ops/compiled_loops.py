"""Generated loops over voxels: made for the sizes they meet, kept, and fed part by part."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch

from monai_gmr.ops.memory_format import is_recorded
from monai_gmr.ops.tap_sums import OPTIONS, make_tap_sums, taps_by_shell

logger = logging.getLogger(__name__)

# a size that was met so often is taken to repeat, and gets loops of its own
USES_BEFORE_COMPILATION = 1
LARGEST_NUMBER_OF_LOOPS = 512

_uses: Counter = Counter()

# of what one part writes; parts that are reused stay in the last level of cache
BYTES_OF_A_PART = 5 * 2**20


class Window(NamedTuple):
    """Taps, in numbers that can be compared.

    Attributes:
        shells: the shell of each tap.
        shape: the window's shape.
        live: number of shells that count.
        dilation: distance of neighbouring taps in voxels, one an axis.
    """

    shells: tuple[int, ...]
    shape: tuple[int, ...]
    live: int
    dilation: tuple[int, ...]

    @classmethod
    def of(cls, shells: torch.Tensor, live: int, dilation: Sequence[int]) -> Window:
        """From the tensor of shells that a layer has."""
        return cls(tuple(shells.flatten().tolist()), tuple(shells.shape), live, tuple(dilation))

    def reach(self) -> list[int]:
        """How many voxels fewer a result has than the image, one an axis."""
        return [d * (k - 1) for d, k in zip(self.dilation, self.shape)]

    def taps(self) -> tuple:
        """:func:`~monai_gmr.ops.tap_sums.taps_by_shell`."""
        return taps_by_shell(torch.tensor(self.shells).reshape(self.shape), self.live, self.dilation)


class Sums(Protocol):
    """What a loop computes, in numbers that can be compared."""

    def function(self) -> Callable:
        """What is to be compiled: a function of the image, the sizes of the result, and further arguments."""

    def examples(self, batch: int, sizes: Sequence[int], channels: Sequence[int]) -> list[torch.Tensor]:
        """Its further arguments, for a result of these sizes."""


class TapSums(NamedTuple):
    """Sums with a factor a tap: :func:`~monai_gmr.ops.tap_sums.make_tap_sums`.

    Attributes:
        window: the taps; those of shells below 0 do not count.
        factors: of each component, of each tap.
        gather: from components to shells, not from shells to components.
    """

    window: Window
    factors: tuple[tuple[float, ...], ...]
    gather: bool

    def function(self) -> Callable:
        """What is to be compiled."""
        return make_tap_sums(self.window.shells, self.window.shape, self.window.dilation, self.factors, self.gather)

    def examples(self, batch: int, sizes: Sequence[int], channels: Sequence[int]) -> list[torch.Tensor]:
        """It has no further arguments."""
        return []


class Loop(NamedTuple):
    """What a generated loop is made for.

    Attributes:
        sums: what it computes.
        batch: samples of a part.
        sizes: sizes of a part's result.
        padded: sizes of what the taps see.
        channels: what the image has for each voxel: channels, or blocks and channels.
    """

    sums: Sums
    batch: int
    sizes: tuple[int, ...]
    padded: tuple[int, ...]
    channels: tuple[int, ...]


_loops: dict[Loop, Callable] = {}
_failures: list[str] = []


def _generate(loop: Loop) -> Callable:
    """Compile a loop for its sizes; inductor keeps what it compiles on disk."""
    from torch._guards import TracingContext, tracing
    from torch._inductor import compile as compile_graph
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    sums = loop.sums.function()
    examples: list[Any] = [torch.zeros((loop.batch, *loop.padded, *loop.channels))]
    examples += loop.sums.examples(loop.batch, loop.sizes, loop.channels)
    graph = make_fx(lambda padded, *others: sums(padded, loop.sizes, *others))(*examples)
    # inductor looks into its cache on disk only where sizes have an environment; in it they are to be numbers
    mode = FakeTensorMode(shape_env=ShapeEnv())
    stand_ins: list[Any] = [mode.from_tensor(example, static_shapes=True) for example in examples]
    with tracing(TracingContext(mode)):
        function = compile_graph(graph, stand_ins, options=OPTIONS)
    function(*examples)
    return function


@lru_cache(maxsize=1)
def compiler_failure() -> str | None:
    """Why inductor cannot compile a small loop, or ``None``: asked once a process."""
    window = Window((0,) * 9, (3, 3), 1, (1, 1))
    try:
        _generate(Loop(TapSums(window, ((1.0,) * 9,), gather=False), 1, (2, 2), (4, 4), (1, 1)))
    except Exception as error:  # whatever a compiler says: the dense convolution needs none
        return f"its loops cannot be compiled ({one_line(error)})"
    return None


def one_line(error: Exception) -> str:
    """What an error says, short."""
    return " ".join(str(error).split())[:200]


@lru_cache(maxsize=8)
def say_dense(reason: str) -> None:
    """Say, once a process, why another backend runs."""
    logger.warning(f"backend 'compiled' is not used: {reason}; 'dense' runs in its place.")


def takes_loops(x: torch.Tensor) -> bool:
    """Whether loops are made for such a tensor: float32 on a CPU, without autocast, where no graph is recorded.

    Example:
        >>> takes_loops(torch.zeros(3)), takes_loops(torch.zeros(3, dtype=torch.float64)), takes_loops(torch.zeros(0))
        (True, False, False)
    """
    return (
        not is_recorded(x)
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.numel() > 0
    )


def can_compile(use: tuple) -> bool:
    """Whether such a use repeats, and there are a compiler and room for its loops; if not, says once why.

    Args:
        use: all that its loops depend on.
    """
    _uses[use] += 1
    if _uses[use] <= USES_BEFORE_COMPILATION:
        return False
    reason = _failures[0] if _failures else compiler_failure()
    if len(_loops) >= LARGEST_NUMBER_OF_LOOPS:
        reason = f"it has {LARGEST_NUMBER_OF_LOOPS} loops for other sizes already"
    if reason is not None:
        say_dense(reason)
    return reason is None


def _say_seconds(loop: Loop, seconds: float) -> None:
    """What generating costs: aloud once a process."""
    text = f"backend 'compiled': {seconds:.1f} s for a loop over {loop.sizes} voxels of {loop.channels} channels"
    if len(_loops) == 1:
        logger.warning(f"{text}; each size that repeats gets a few loops, which inductor keeps on disk.")
    else:
        logger.info(f"{text}.")


def run_loop(loop: Loop, *arguments: torch.Tensor) -> list[torch.Tensor]:
    """Run a loop on a part, generating it when it is new; should that fail, run it as it is written, and leave further uses to "dense"."""
    if loop not in _loops:
        try:
            start = time.perf_counter()
            _loops[loop] = _generate(loop)
            _say_seconds(loop, time.perf_counter() - start)
        except Exception as error:  # whatever a compiler says: a run that has begun is to go on
            _failures.append(f"a loop cannot be compiled ({one_line(error)})")
            say_dense(_failures[0])
            function = loop.sums.function()
            _loops[loop] = lambda image, *others: function(image, loop.sizes, *others)
    return list(_loops[loop](*arguments))


def part_of(batch: int, sizes: Sequence[int], floats: int) -> tuple[int, int]:
    """Samples and rows along the first axis of a part: all rows of several samples, or some rows of one.

    Args:
        batch: number of samples.
        sizes: voxels of a sample along each axis.
        floats: floats that are written for each voxel.

    Example:
        >>> part_of(8, (64, 64), 320), part_of(1, (48, 48, 48), 96), part_of(32, (8, 8), 32)
        ((1, 64), (1, 5), (32, 8))
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


def slices_of(total: int, length: int) -> list[tuple[slice, slice]]:
    """Slices of equal length that cover all, the last one drawn back to the end, and what is new in each.

    Example:
        >>> slices_of(5, 3)
        [(slice(0, 3, None), slice(0, None, None)), (slice(2, 5, None), slice(1, None, None))]
    """
    starts = [(start, min(start, total - length)) for start in range(0, total, length)]
    return [(slice(begin, begin + length), slice(start - begin, None)) for start, begin in starts]


def pad_channels_last(x: torch.Tensor, margins: Sequence[int], first: int = 1) -> torch.Tensor:
    """Zeros around ``(batch, *sizes, ...)``, or voxels cut off for margins below 0, in one pass over memory.

    Args:
        x: batch, sizes, and what there is for each voxel.
        margins: voxels at both ends of an axis, one number an axis.
        first: where the sizes begin.

    Returns:
        a contiguous tensor; ``x`` itself if it is contiguous and has no margins.

    Example:
        >>> pad_channels_last(torch.ones(1, 2, 1), [1]).flatten()
        tensor([0., 1., 1., 0.])
    """
    for axis, margin in enumerate(margins, start=first):
        x = x.narrow(axis, max(0, -margin), x.shape[axis] - 2 * max(0, -margin))
    margins = [max(0, m) for m in margins]
    if max(margins) == 0:
        return x.contiguous()
    sizes = x.shape[first : first + len(margins)]
    grown = [n + 2 * m for n, m in zip(sizes, margins)]
    padded = x.new_empty((*x.shape[:first], *grown, *x.shape[first + len(margins) :]))
    inside = padded
    for axis, (n, m) in enumerate(zip(sizes, margins), start=first):
        inside.narrow(axis, 0, m).zero_()
        inside.narrow(axis, n + m, m).zero_()
        inside = inside.narrow(axis, m, n)
    inside.copy_(x)
    return padded


class Parts:
    """An image ``(batch, *sizes, ...)``, channels last, and the parts that its sums are computed in, each with its own margins of zeros.

    Args:
        x: the image.
        margins: voxels of zeros at both ends of an axis, or voxels that do not count for margins below 0.
        window: the taps.
        floats: floats that are written for each voxel.
    """

    def __init__(self, x: torch.Tensor, margins: Sequence[int], window: Window, floats: int) -> None:
        # a transposed copy a part would copy the rows that parts share as often
        self.x, self.margins, self.reach = x.contiguous(), list(margins), window.reach()
        self.sizes = [n + 2 * m - reach for n, m, reach in zip(x.shape[1:], margins, self.reach)]
        self.batch, rows = part_of(x.shape[0], self.sizes, floats)
        self.part_sizes = (rows, *self.sizes[1:])
        self.padded = x.new_empty((0,))
        self.filled = (-1, 0)  # the first sample and row that the padded rows hold
        if any(margins):
            lengths = [n + reach for n, reach in zip(self.part_sizes, self.reach)]
            shape = (self.batch, *lengths, *x.shape[len(margins) + 1 :])
            # neighbours see the same rows: as many parts are padded at once as fit into the bytes of a part
            most = BYTES_OF_A_PART * lengths[0] // (4 * math.prod(shape))
            further = max(0, min(most, self.sizes[0] + self.reach[0]) - lengths[0]) // rows
            self.padded = x.new_zeros((self.batch, lengths[0] + further * rows, *shape[2:]))

    def __iter__(self) -> Iterator[Part]:
        for samples, new_samples in slices_of(self.x.shape[0], self.batch):
            for rows, new_rows in slices_of(self.sizes[0], self.part_sizes[0]):
                yield Part(samples, rows, (new_samples, new_rows))

    def seen(self, part: Part) -> torch.Tensor:
        """What the taps of a part see, contiguous: rows of one sample or whole samples. The next call may overwrite it."""
        length = self.part_sizes[0] + self.reach[0]
        if not any(self.margins):
            return self.x[part.samples, part.rows.start : part.rows.start + length]
        sample, row = self.filled
        first = part.rows.start - row
        if sample != part.samples.start or first + length > self.padded.shape[1]:
            self._pad(part)
            first = 0
        return self.padded[:, first : first + length]

    def _pad(self, part: Part) -> None:
        """Fill the padded rows, from those that a part sees on."""
        self.filled = (part.samples.start, part.rows.start)
        inside, source = self.padded, self.x[part.samples]
        for axis, margin in enumerate(self.margins, start=1):
            # where the padded rows begin in the image
            begin = (part.rows.start if axis == 1 else 0) - margin
            first = min(max(0, -begin), inside.shape[axis])
            last = max(first, min(inside.shape[axis], source.shape[axis] - begin))
            if axis == 1:
                inside[:, :first].zero_()
                inside[:, last:].zero_()
            inside = inside.narrow(axis, first, last - first)
            source = source.narrow(axis, min(max(0, begin + first), source.shape[axis]), last - first)
        inside.copy_(source)

    def sums(self, sums: Sums, seen: torch.Tensor, *arguments: torch.Tensor) -> list[torch.Tensor]:
        """Run the loop for what :meth:`seen` gave, or for what was computed from it."""
        dims = len(self.part_sizes)
        padded, channels = tuple(seen.shape[1 : dims + 1]), tuple(seen.shape[dims + 1 :])
        return run_loop(Loop(sums, self.batch, self.part_sizes, padded, channels), seen, *arguments)
