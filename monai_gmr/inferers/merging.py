"""Weighted mean of the outputs of overlapping windows, held whole or reduced part by part."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from monai_gmr.inferers.windows import window_placements
from monai_gmr.utils import ConfigurationError

# share of a window's length: shorter cells save little memory and need as many operations
SHORTEST_CELL = 4

Reduction = Callable[[torch.Tensor], torch.Tensor]
# an image of the batch and the first voxel of a window on it
Tile = tuple[int, tuple[int, ...]]


class Windows(NamedTuple):
    """How windows lie on an image."""

    size: tuple[int, ...]
    padding: list[int]  # voxels at both ends of each axis
    starts: list[list[int]]  # along each axis of the padded image

    @property
    def image_size(self) -> list[int]:
        """Padded size of the image."""
        return [starts[-1] + n for starts, n in zip(self.starts, self.size)]

    @property
    def corners(self) -> list[tuple[int, ...]]:
        """First voxel of each window, in order along the longest axis, so that the fewest voxels wait for later windows.

        Example:
            >>> Windows((2, 2), [0, 0], [[0, 1], [0, 2, 4]]).corners
            [(0, 0), (1, 0), (0, 2), (1, 2), (0, 4), (1, 4)]
        """
        axes = sorted(range(len(self.size)), key=lambda axis: -self.image_size[axis])
        corners = itertools.product(*(self.starts[axis] for axis in axes))
        return [tuple(start for _, start in sorted(zip(axes, corner))) for corner in corners]


def argmax_labels(output: torch.Tensor, channel_axis: int) -> torch.Tensor:
    """Index of the largest channel of each voxel, the first of equal ones, in the smallest integer type that holds all channels.

    Example:
        >>> argmax_labels(torch.tensor([[0.1, 0.7, 0.7]]), 1), argmax_labels(torch.zeros(1, 257), 1)
        (tensor([[1]], dtype=torch.uint8), tensor([[0]], dtype=torch.int16))
    """
    channels = output.shape[channel_axis]
    if channels < 2:
        raise ConfigurationError(
            f"reduction='argmax' is 0 everywhere over the only channel of {tuple(output.shape)}: give a function, such as lambda y: y > 0."
        )
    types = (torch.uint8, torch.int16, torch.int32, torch.int64)
    smallest = next(dtype for dtype in types if channels - 1 <= torch.iinfo(dtype).max)
    return output.argmax(channel_axis, keepdim=True).to(smallest)


def cell_edges(pieces: Sequence[tuple[int, int]], size: int, shortest: int) -> list[int]:
    """Ends of the cells of an axis: the ends of pieces, except those that would make a cell too short.

    Example:
        >>> cell_edges([(0, 8), (5, 13), (9, 17)], 17, shortest=2)
        [0, 5, 8, 13, 17]
    """
    edges = [0]
    for place in sorted({place for piece in pieces for place in piece}):
        if place - edges[-1] >= shortest and size - place >= shortest:
            edges.append(place)
    return [*edges, size]


def cells_of(edges: Sequence[int], start: int, stop: int) -> range:
    """The cells of an axis that voxels from ``start`` to ``stop`` touch.

    Example:
        >>> cells_of([0, 5, 8, 13, 17], 4, 8)
        range(0, 2)
    """
    return range(bisect_right(edges, start) - 1, bisect_left(edges, stop))


class WindowMerger:
    """One output of a network for a batch of images, merged from its outputs for windows.

    With a reduction, the weighted mean is never held whole. The image is split into cells where windows begin and end; a cell is allocated
    with the first window that touches it, and reduced and freed with the last one.

    Args:
        first: an output of shape ``(windows, *leading, *spatial)``.
        windows: how windows lie on the image.
        batch_size: number of images.
        importance: function from the size of a window to the weights of its voxels, or to None for equal weights.
        buffer: axis and steps of a buffer on the device of the outputs, through which they reach the result, or None.
        reduction: maps a part of the mean, of shape ``(1, *leading, *spatial)``, voxel by voxel to one of any channels and type.
        device, dtype: device and type of the sums.
        out_dtype: type of the mean.
    """

    def __init__(
        self,
        first: torch.Tensor,
        windows: Windows,
        batch_size: int,
        importance: Callable[[tuple[int, ...]], torch.Tensor | None],
        *,
        buffer: tuple[int, int] | None,
        reduction: Reduction | None,
        device: torch.device | str,
        dtype: torch.dtype,
        out_dtype: torch.dtype,
    ) -> None:
        self.dims = dims = len(windows.size)
        self.shape, self.out_window = tuple(first.shape[1:]), tuple(first.shape[-dims:])
        self.windows, self.batch_size, self.reduction = windows, batch_size, reduction
        self.buffer_axis = 0 if buffer is None else buffer[0]
        self.device, self.dtype, self.out_dtype = torch.device(device), dtype, out_dtype
        self.size = [n * q // r for n, q, r in zip(windows.image_size, self.out_window, windows.size)]
        self.weight = importance(self.out_window)
        # per axis: for each start of a window, first voxels and shares of its places in the output
        self.places: list[dict[int, list[tuple[int, float]]]] = [
            {start: window_placements(start, *sizes) for start in starts}
            for starts, *sizes in zip(windows.starts, windows.image_size, windows.size, self.size, self.out_window)
        ]
        # per axis: first and last voxels of the parts that are added at once
        self.pieces = [
            [(place, place + n) for start in starts for place, _ in places[start]]
            for starts, places, n in zip(windows.starts, self.places, self.out_window)
        ]
        if buffer is not None:
            axis, steps = buffer
            starts = windows.starts[axis]
            self.pieces = [[(0, n)] for n in self.size]
            self.pieces[axis] = [self._span(starts[i : i + steps]) for i in range(0, len(starts), steps)]
        self.edges = [
            [0, size] if reduction is None else cell_edges(pieces, size, max(n // SHORTEST_CELL, 1))
            for pieces, size, n in zip(self.pieces, self.size, self.out_window)
        ]
        self.whole: Any = self._zeros(batch_size, self.size) if reduction is None else None
        self.reduced: Any = None
        self.cells: dict[tuple, torch.Tensor] = {}
        self.missing: dict[tuple, int] = {}
        self.buffer: Any = None

    def add(self, outputs: torch.Tensor, tiles: Sequence[Tile], run: Sequence[Tile] | None) -> None:
        """Adds the outputs for windows; those of a ``run`` of one image go to a buffer on their device, which is added to the result with
        the last of them."""
        if outputs.shape != (len(tiles), *self.shape):
            raise ConfigurationError(
                f"The network returned a tensor of shape {tuple(outputs.shape)} for {len(tiles)} windows: sliding windows need "
                f"{(len(tiles), *self.shape)}, like the first output."
            )
        outputs = outputs.as_subclass(torch.Tensor)
        outputs = outputs if self.reduction is None else outputs.detach()
        for output, (image, start) in zip(outputs, tiles):
            corners = itertools.product(*(places[s] for places, s in zip(self.places, start)))
            placed = [(tuple(s for s, _ in each), math.prod(share for _, share in each)) for each in corners]
            if run is not None:
                self._put_in_buffer(self._weighted(output), placed, run)
                continue
            for corner, share in placed:
                self._put(image, corner, output, share, weighted=False)
        if run is not None and tiles[-1] == run[-1]:
            place = [0] * self.dims
            place[self.buffer_axis] = self._run_span(run)[0]
            self._put(run[0][0], place, self.buffer.to(self.device))
            self.buffer = None

    def result(self) -> torch.Tensor:
        """Weighted mean, or its reduction, without the padding."""
        whole = self.reduced if self.whole is None else self.whole.to(self.out_dtype)
        cuts = [round(p * q / r) for p, q, r in zip(self.windows.padding, self.out_window, self.windows.size)]
        index: list[Any] = [slice(cut, n - cut) for cut, n in zip(cuts, self.size)]
        return whole[(Ellipsis, *index)] if any(cuts) else whole

    def _zeros(self, batch_size: int, size: Sequence[int]) -> torch.Tensor:
        return torch.zeros(batch_size, *self.shape[: -self.dims], *size, device=self.device, dtype=self.dtype)

    def _span(self, starts: Sequence[int]) -> tuple[int, int]:
        """First and last voxel of windows with these starts, along the axis of the buffer."""
        places = [place for start in starts for place, _ in self.places[self.buffer_axis][start]]
        return min(places), max(places) + self.out_window[self.buffer_axis]

    def _run_span(self, run: Sequence[Tile]) -> tuple[int, int]:
        return self._span([start[self.buffer_axis] for _, start in run])

    def _put_in_buffer(self, output: torch.Tensor, placed: Sequence[tuple], run: Sequence[Tile]) -> None:
        first, last = self._run_span(run)
        if self.buffer is None:
            size = [*self.size]
            size[self.buffer_axis] = last - first
            self.buffer = output.new_zeros(*self.shape[: -self.dims], *size, dtype=self.dtype)
        for corner, share in placed:
            index: list[Any] = [slice(s, s + n) for s, n in zip(corner, self.out_window)]
            start = corner[self.buffer_axis] - first
            index[self.buffer_axis] = slice(start, start + self.out_window[self.buffer_axis])
            self.buffer[(Ellipsis, *index)].add_(output, alpha=share)

    def _overlaps(self, corner: Sequence[int], size: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple, tuple]]:
        """Cells that a box touches, and the slices of the overlap in the cell and in the box."""
        axes = [
            [
                (i, slice(max(s - e[i], 0), min(s + n, e[i + 1]) - e[i]), slice(max(e[i] - s, 0), min(e[i + 1] - s, n)))
                for i in cells_of(e, s, s + n)
            ]
            for e, s, n in zip(self.edges, corner, size)
        ]
        for each in itertools.product(*axes):
            cell, in_cell, in_box = zip(*each)
            yield cell, (Ellipsis, *in_cell), (Ellipsis, *in_box)

    def _weighted(self, output: torch.Tensor, part: tuple = ()) -> torch.Tensor:
        """Part of the output for a window, times its weights."""
        return output[part].to(self.dtype) if self.weight is None else output[part] * self.weight[part]

    def _put(
        self, image: int, corner: Sequence[int], values: torch.Tensor, share: float = 1.0, weighted: bool = True
    ) -> None:
        """Adds values to an image from a corner on, and reduces the cells that are complete with them."""
        for cell, in_cell, in_box in self._overlaps(corner, values.shape[-self.dims :]):
            key = (image, *cell)
            if key not in self.missing:
                ends = [(edges[i], edges[i + 1]) for edges, i in zip(self.edges, cell)]
                touching = [
                    sum(a < stop and b > start for a, b in each) for each, (start, stop) in zip(self.pieces, ends)
                ]
                self.missing[key] = math.prod(touching)
                if self.whole is None:
                    self.cells[key] = self._zeros(1, [stop - start for start, stop in ends])[0]
            # a new view for autograd: a kept view would miss what was added through others
            sums = self.cells[key] if self.whole is None else self.whole[image]
            # weighted part by part: a copy of the whole window would be the largest tensor besides the cells
            part = values[in_box] if weighted else self._weighted(values, in_box)
            sums[in_cell].add_(part.to(self.device), alpha=share)
            self.missing[key] -= 1
            if not self.missing[key]:
                self._finish(image, cell)

    def _finish(self, image: int, cell: tuple[int, ...]) -> None:
        if self.reduction is None:
            self.whole[image].div_(self._counts(cell))
            return
        mean = self.cells.pop((image, *cell)).div_(self._counts(cell))
        size = mean.shape[-self.dims :]
        part = self.reduction(mean[None].to(self.out_dtype))
        if not isinstance(part, torch.Tensor) or part.shape[:1] != (1,) or part.shape[-self.dims :] != size:
            given = f"shape {tuple(part.shape)}" if isinstance(part, torch.Tensor) else f"type {type(part).__name__}"
            raise ConfigurationError(
                f"reduction turned a part of the output of shape {(1, *mean.shape)} into a result of {given}: it must keep the batch and "
                "spatial axes and work voxel by voxel."
            )
        if self.reduced is None:
            shape = (self.batch_size, *part.shape[1 : -self.dims], *self.size)
            self.reduced = torch.empty(shape, dtype=part.dtype, device=part.device)
        place: list[Any] = [slice(edges[i], edges[i + 1]) for edges, i in zip(self.edges, cell)]
        self.reduced[(image, Ellipsis, *place)] = part[0]

    def _counts(self, cell: tuple[int, ...]) -> torch.Tensor:
        """Sum of the weights at each voxel of a cell."""
        starts = [edges[i] for edges, i in zip(self.edges, cell)]
        size = [edges[i + 1] - start for edges, i, start in zip(self.edges, cell, starts)]
        counts = torch.zeros(size, device=self.device, dtype=self.dtype)
        weight = torch.ones(()) if self.weight is None else self.weight
        weight = weight.to(self.device, self.dtype).expand(self.out_window)
        axes = [
            [
                (slice(max(s - first, 0), min(s + n - first, length)), slice(max(first - s, 0), first + length - s), w)
                for places in places_of.values()
                for s, w in places
                if s < first + length and s + n > first
            ]
            for places_of, first, length, n in zip(self.places, starts, size, self.out_window)
        ]
        for each in itertools.product(*axes):
            in_cell, in_window, shares = zip(*each)
            counts[in_cell].add_(weight[in_window], alpha=math.prod(shares))
        return counts
