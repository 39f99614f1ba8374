"""Windows in numbers that can be compared, and images in parts that stay in the last level of cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

# of what one part writes; parts that are reused stay in the last level of cache
BYTES_OF_A_PART = 5 * 2**20

Taps = tuple[tuple[tuple[int, ...], ...], ...]


def taps_by_shell(shells: torch.Tensor, live: int, dilation: Sequence[int]) -> Taps:
    """Places of the taps of each shell, in voxels from the window's first.

    Args:
        shells: integers of the window's shape, the shell of each tap.
        live: number of shells that count.
        dilation: distance of neighbouring taps in voxels, one an axis.

    Example:
        >>> taps_by_shell(torch.tensor([2, 1, 0, 1, 2]), 2, [3])
        (((6,),), ((3,), (9,)))
    """
    places: list[list[tuple[int, ...]]] = [[] for _ in range(live)]
    numbers = shells.flatten().tolist()
    for shell, place in zip(numbers, itertools.product(*map(range, shells.shape))):
        if shell < live:
            places[shell].append(tuple(p * d for p, d in zip(place, dilation)))
    return tuple(map(tuple, places))


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

    def taps(self) -> Taps:
        """:func:`taps_by_shell`."""
        return taps_by_shell(torch.tensor(self.shells).reshape(self.shape), self.live, self.dilation)


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
            self.padded = x.new_empty((self.batch, lengths[0] + further * rows, *shape[2:]))

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
        is_new, self.filled = self.filled[0] < 0, (part.samples.start, part.rows.start)
        inside, source = self.padded, self.x[part.samples]
        for axis, margin in enumerate(self.margins, start=1):
            # where the padded rows begin in the image
            begin = (part.rows.start if axis == 1 else 0) - margin
            first = min(max(0, -begin), inside.shape[axis])
            last = max(first, min(inside.shape[axis], source.shape[axis] - begin))
            # margins along the other axes are the same in all parts
            if axis == 1 or is_new:
                inside.narrow(axis, 0, first).zero_()
                inside.narrow(axis, last, inside.shape[axis] - last).zero_()
            inside = inside.narrow(axis, first, last - first)
            source = source.narrow(axis, min(max(0, begin + first), source.shape[axis]), last - first)
        inside.copy_(source)
