"""Slabs of a batch of images: parts along the batch or a spatial axis that a convolution computes one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Slab(NamedTuple):
    """A range of samples and a range of rows along an axis; one of them is complete."""

    first_sample: int
    samples: int
    first_row: int
    rows: int

    def of(self, image: torch.Tensor, axis: int) -> torch.Tensor:
        """The slab of an image ``(batch, channels, *spatial)`` whose rows lie along ``axis``, as a view."""
        return image.narrow(0, self.first_sample, self.samples).narrow(axis, self.first_row, self.rows)


def make_slabs(samples: int, sizes: Sequence[int], most: int, multiple: int = 1) -> Iterator[Slab]:
    """Splits a batch of images into consecutive slabs of about ``most`` voxels; a row is never split.

    Args:
        samples: number of images.
        sizes: of an image, in voxels; rows lie along the first axis.
        most: voxels of a slab.
        multiple: a slab's number of rows is a multiple of this, unless it is smaller or the slab is the last.

    Example:
        >>> [slab.rows for slab in make_slabs(1, (5, 10, 10), 200)]
        [2, 2, 1]
        >>> [slab.samples for slab in make_slabs(3, (5, 10, 10), 1000)]
        [2, 1]
    """
    rows, plane = sizes[0], math.prod(sizes[1:])
    if rows * plane <= most or rows == 1:
        step = max(1, most // max(1, rows * plane))
        yield from (Slab(first, min(step, samples - first), 0, rows) for first in range(0, samples, step))
        return
    parts = -(-rows // max(1, most // plane))
    step = -(-rows // parts)
    step -= step % multiple if step > multiple else 0
    for sample in range(samples):
        yield from (Slab(sample, 1, first, min(step, rows - first)) for first in range(0, rows, step))


class InputSlab(NamedTuple):
    """Rows of the input that a slab of a convolution's result needs, and numbers of rows of zeros before and after them."""

    place: Slab
    before: int
    after: int

    def of(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """These rows of an image ``(batch, channels, *spatial)`` along ``axis``, with the zeros before and after them."""
        part = self.place.of(x, axis)
        if self.before == self.after == 0:
            return part
        return F.pad(part, [0, 0] * (x.dim() - 1 - axis) + [self.before, self.after])


def input_slab(slab: Slab, size: int, *, window: int, stride: int, padding: int, dilation: int) -> InputSlab:
    """The part of the input from which a slab of a convolution's result is computed; all lengths are along the slabs' axis, in voxels.

    Example:
        >>> input_slab(Slab(0, 1, 0, 2), 8, window=3, stride=1, padding=1, dilation=1)
        InputSlab(place=Slab(first_sample=0, samples=1, first_row=0, rows=3), before=1, after=0)
    """
    first = slab.first_row * stride - padding
    length = (slab.rows - 1) * stride + dilation * (window - 1) + 1
    start, stop = (min(max(row, 0), size) for row in (first, first + length))
    before = min(max(-first, 0), length)
    return InputSlab(slab._replace(first_row=start, rows=stop - start), before, length - before - (stop - start))
