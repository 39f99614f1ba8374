"""Windows as hashable tuples, and images split into tiles that fit in the last level of cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

# output of one tile: tiles of this size fit in the last level of cache
BYTES_OF_A_TILE = 5 * 2**20

Taps = tuple[tuple[tuple[int, ...], ...], ...]


class Window(NamedTuple):
    """The taps of a window as hashable tuples."""

    shells: tuple[int, ...]  # the shell of each tap
    shape: tuple[int, ...]
    num_shells: int  # number of shells in use
    dilation: tuple[int, ...]  # distance of neighbouring taps in voxels, one per axis

    @classmethod
    def of(cls, shells: torch.Tensor, num_shells: int, dilation: Sequence[int]) -> Window:
        """The window of a layer's tensor of shells."""
        return cls(tuple(shells.flatten().tolist()), tuple(shells.shape), num_shells, tuple(dilation))

    def reach(self) -> list[int]:
        """Image size minus result size in voxels, one number per axis."""
        return [d * (k - 1) for d, k in zip(self.dilation, self.shape)]

    def taps(self) -> Taps:
        """Positions of the taps of each shell, in voxels from the window's first tap."""
        places: list[list[tuple[int, ...]]] = [[] for _ in range(self.num_shells)]
        for shell, place in zip(self.shells, itertools.product(*map(range, self.shape))):
            if shell < self.num_shells:
                places[shell].append(tuple(p * d for p, d in zip(place, self.dilation)))
        return tuple(map(tuple, places))


def tile_of(batch: int, sizes: Sequence[int], floats: int) -> tuple[int, int]:
    """Samples and rows along the first axis of a tile with ``floats`` per voxel: all rows of several samples, or some rows of one."""
    most = max(1, BYTES_OF_A_TILE // (4 * floats * math.prod(sizes[1:])))
    if most >= 2 * sizes[0]:
        samples = min(batch, most // sizes[0])
        return -(-batch // -(-batch // samples)), sizes[0]
    return 1, -(-sizes[0] // -(-sizes[0] // most))


class Tile(NamedTuple):
    """Samples and rows of a result; those before ``new`` also belong to the previous tile."""

    samples: slice
    rows: slice
    new: tuple[slice, slice]


def slices_of(total: int, length: int) -> list[tuple[slice, slice]]:
    """Slices of equal length that cover an axis, with the last one moved back to fit, and the new part of each."""
    starts = [(start, min(start, total - length)) for start in range(0, total, length)]
    return [(slice(begin, begin + length), slice(start - begin, None)) for start, begin in starts]


class Tiles:
    """Tiles in which the sums of an image ``(batch, *sizes, ...)``, channels last, are computed. ``margins`` are voxels of zeros at both
    ends of an axis, or, if negative, voxels that are cut off; ``floats`` are written for each voxel."""

    def __init__(self, x: torch.Tensor, margins: Sequence[int], window: Window, floats: int) -> None:
        # once for all tiles: a copy per tile would copy shared rows several times
        self.x, self.margins, self.reach = x.contiguous(), list(margins), window.reach()
        self.sizes = [n + 2 * m - reach for n, m, reach in zip(x.shape[1:], margins, self.reach)]
        self.batch, rows = tile_of(x.shape[0], self.sizes, floats)
        self.tile_sizes = (rows, *self.sizes[1:])
        self.padded = x.new_empty((0,))
        self.filled = (-1, 0)  # the first sample and row that the padded rows hold
        # a single tile is padded in one operation; for many tiles it is faster to reuse the rows that they share
        self.is_one = (self.batch, rows) == (x.shape[0], self.sizes[0])
        if any(margins) and not self.is_one:
            lengths = [n + reach for n, reach in zip(self.tile_sizes, self.reach)]
            shape = (self.batch, *lengths, *x.shape[len(margins) + 1 :])
            # neighbours share rows: pad as many tiles at once as fit into the bytes of a tile
            most = BYTES_OF_A_TILE * lengths[0] // (4 * math.prod(shape))
            further = max(0, min(most, self.sizes[0] + self.reach[0]) - lengths[0]) // rows
            self.padded = x.new_empty((self.batch, lengths[0] + further * rows, *shape[2:]))

    def __iter__(self) -> Iterator[Tile]:
        for samples, new_samples in slices_of(self.x.shape[0], self.batch):
            for rows, new_rows in slices_of(self.sizes[0], self.tile_sizes[0]):
                yield Tile(samples, rows, (new_samples, new_rows))

    def input_of(self, tile: Tile) -> torch.Tensor:
        """The contiguous input of a tile: rows of one sample or whole samples. The next call can overwrite it."""
        length = self.tile_sizes[0] + self.reach[0]
        if not any(self.margins):
            return self.x[tile.samples, tile.rows.start : tile.rows.start + length]
        if self.is_one:
            zeros = [0] * (self.x.dim() - len(self.margins) - 1)
            padded = F.pad(self.x, [*zeros, *zeros, *(m for margin in self.margins[::-1] for m in (margin, margin))])
            # with an axis of one voxel, torch can mistake the image for one with channels last
            return padded.contiguous()
        sample, row = self.filled
        first = tile.rows.start - row
        if sample != tile.samples.start or first + length > self.padded.shape[1]:
            self._pad(tile)
            first = 0
        return self.padded[:, first : first + length]

    def _pad(self, tile: Tile) -> None:
        """Fills the padded rows, starting with the first row of a tile's input."""
        is_new, self.filled = self.filled[0] < 0, (tile.samples.start, tile.rows.start)
        inside, source = self.padded, self.x[tile.samples]
        for axis, margin in enumerate(self.margins, start=1):
            # where the padded rows begin in the image
            begin = (tile.rows.start if axis == 1 else 0) - margin
            first = min(max(0, -begin), inside.shape[axis])
            last = max(first, min(inside.shape[axis], source.shape[axis] - begin))
            # margins along the other axes are the same in all tiles
            if axis == 1 or is_new:
                inside.narrow(axis, 0, first).zero_()
                inside.narrow(axis, last, inside.shape[axis] - last).zero_()
            inside = inside.narrow(axis, first, last - first)
            source = source.narrow(axis, min(max(0, begin + first), source.shape[axis]), last - first)
        inside.copy_(source)
