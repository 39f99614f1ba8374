"""Radial convolutions on backend "triton", for GPUs: sums over rings in a kernel, then a product over channels (design, section 2).

Operations and bytes for each output voxel, with ``k^d`` taps, ``S`` shells, ``R`` rings, ``C`` input and ``O`` output channels:

* forward: additions for the taps of one plane that differ and for the classes of them in ``k`` planes (3D: 15 and 16 at k=5, 36 and 39 at
  k=7, against 92 and 250 one tap after the other), ``R S C`` multiplications in float32, then ``R C O`` in the library's matrix product,
  against ``k^d C O`` of a dense kernel. The rings' sums of a slab, ``R C`` numbers a voxel, are written and read once.
* backward: one pass of sums over the gradient of the output serves the gradients of input, weight and basis, for a radial kernel is its own
  adjoint: ``R S O`` multiplications more for the basis, and three products ``R C O``.

Slabs are so small that the sums of one take at most half of the memory of the input. Saved for the backward pass are input, weight and
basis. What bounds it: the sums by the rate of additions and of the integers that lead to them, the products by memory.

Ways that were timed on an NVIDIA H200 (torch 2.11, 3D C64, 128^3, bfloat16, channels last), forward in ms for k 5 and 7: one kernel that
multiplies the classes of each plane by the weights of their shells, on matrix units, and adds up planes 1.7 and 6.5 (in float32, by three
products in TF32, 21 and 64); sums and a product as here, before the kernel asked for the next plane ahead 1.5 and 3.5 (kept). The kernels
of this file have not been timed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from monai_gmr.ops.memory_format import follow_format, image_of
from monai_gmr.ops.ring_conv import output_sizes
from monai_gmr.ops.ring_gradients import register_ring_conv
from monai_gmr.ops.triton.shell_conv import choose_blocks, content_of, timer_of

# voxels below which a slab has too little work for a GPU
LEAST_SLAB = 2**16
# programs that keep a GPU busy
PROGRAMS = 1024
# numbers of a basis that a thread keeps in registers; it loads larger ones anew for each plane
MOST_KEPT = 32


class RingTable(NamedTuple):
    """Which taps are summed together: what a kernel is compiled for.

    Attributes:
        taps_2: along the last axis, the taps' places relative to the voxel, by group: columns of the window that are alike.
        group_starts: the first tap of each group.
        class_lines: ``row * groups + group``, the rows' groups, by class: those of a plane that are alike in all planes.
        class_starts: the first of each class.
        shell_places: ``plane * classes + class``, by shell.
        shell_starts: the first of each shell.
        length_0, length: of the window along the first and the middle axis.
        margin_0, margin_1: padding along them, in voxels.
        dilation_0, dilation_1: distance of neighbouring taps along them, in voxels.
    """

    taps_2: tuple[int, ...]
    group_starts: tuple[int, ...]
    class_lines: tuple[int, ...]
    class_starts: tuple[int, ...]
    shell_places: tuple[int, ...]
    shell_starts: tuple[int, ...]
    length_0: int
    length: int
    margin_0: int
    margin_1: int
    dilation_0: int
    dilation_1: int

    def options(self) -> dict[str, Any]:
        """As the kernel names them."""
        return {name.upper(): value for name, value in self._asdict().items()}


def _grouped(keys: Sequence[Any]) -> list[list[int]]:
    """Places of equal keys, in the order of their first."""
    groups: dict[Any, list[int]] = {}
    for place, key in enumerate(keys):
        if key is not None:
            groups.setdefault(key, []).append(place)
    return list(groups.values())


def _starts(groups: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(int(n) for n in np.cumsum([0, *map(len, groups)]))


def ring_table(shells: np.ndarray, live: int, padding: Sequence[int], dilation: Sequence[int]) -> RingTable:
    """Find the taps that no ring tells apart, along the last axis, within planes, and in all planes.

    Args:
        shells: integers, three axes.
        live: number of shells that are not zero.
        padding, dilation: in voxels, one an axis.

    Example:
        >>> table = ring_table(np.array([[[2, 1, 2], [1, 0, 1], [2, 1, 2]]]), 2, [0, 1, 1], [1, 1, 1])
        >>> table.taps_2, table.group_starts
        ((-1, 1, 0), (0, 2, 3))
        >>> table.shell_places, table.shell_starts
        ((3, 1, 2, 5), (0, 1, 4))
    """
    kept = np.where(shells < live, shells, -1)
    columns = _grouped([column.tobytes() if column.max() >= 0 else None for column in np.moveaxis(kept, 2, 0)])
    lines = [kept[a, :, columns[g][0]] for a in range(kept.shape[0]) for g in range(len(columns))]
    classes = _grouped([line.tobytes() if line.max() >= 0 else None for line in lines])
    places = [int(lines[kind[0]][j]) for j in range(kept.shape[1]) for kind in classes]
    by_shell = [[place for place, shell in enumerate(places) if shell == each] for each in range(live)]
    return RingTable(
        tuple(b * dilation[2] - padding[2] for column in columns for b in column),
        _starts(columns),
        tuple(line for kind in classes for line in kind),
        _starts(classes),
        tuple(place for shell in by_shell for place in shell),
        _starts(by_shell),
        *kept.shape[:2],
        *padding[:2],
        *dilation[:2],
    )


@lru_cache(maxsize=256)
def _table_of(content: bytes, shape: tuple, live: int, padding: tuple, dilation: tuple, mirrored: bool) -> RingTable:
    shells = np.frombuffer(content, np.int64).reshape(shape)
    return ring_table(np.flip(shells) if mirrored else shells, live, padding, dilation)


class Slab(NamedTuple):
    """Samples, and rows along the first axis of each; all samples, or all rows of them."""

    first_sample: int
    samples: int
    first_row: int
    rows: int


def make_slabs(samples: int, sizes: Sequence[int], most: int) -> Iterator[Slab]:
    """Split a batch of volumes into slabs whose voxels follow each other in memory.

    Args:
        samples: of the batch.
        sizes: of a volume.
        most: voxels of a slab, about; a row is never split.

    Example:
        >>> [tuple(slab) for slab in make_slabs(2, (5, 4, 4), 48)]
        [(0, 1, 0, 3), (0, 1, 3, 2), (1, 1, 0, 3), (1, 1, 3, 2)]
        >>> [tuple(slab) for slab in make_slabs(3, (1, 4, 4), 32)]
        [(0, 2, 0, 1), (2, 1, 0, 1)]
    """
    rows, plane = sizes[0], sizes[1] * sizes[2]
    if rows * plane <= most or rows == 1:
        step = max(1, most // (rows * plane))
        yield from (Slab(first, min(step, samples - first), 0, rows) for first in range(0, samples, step))
        return
    step = max(1, most // plane)
    # threads sum several rows at once
    step -= step % 4 if step > 4 else 0
    for sample in range(samples):
        yield from (Slab(sample, 1, first, min(step, rows - first)) for first in range(0, rows, step))


class SumBlocks(NamedTuple):
    """Sizes of a program, and what it is compiled with.

    Attributes:
        rows: that a thread sums at once.
        tile_0, tile_2: threads along the first and the last axis.
        channels: of a program.
        warps: of a program.
        registers: of a thread, at most; fewer let more programs run at once.
    """

    rows: int
    tile_0: int
    tile_2: int
    channels: int
    warps: int
    registers: int

    @classmethod
    def candidates(cls, channels: int, rows: int, length: int, products: bool, dtype: torch.dtype) -> list[SumBlocks]:
        """A short list to choose from by time.

        Args:
            channels: of the input.
            rows: of a slab; of one row none is shared.
            length: of the window; long ones leave no registers for several rows.
            products: whether there is a partner, which takes registers, too.
            dtype: of the input; of two bytes a thread takes two at a time.

        Example:
            >>> SumBlocks.candidates(64, 32, 3, False, torch.float16)[0]
            SumBlocks(rows=2, tile_0=2, tile_2=4, channels=32, warps=4, registers=255)
        """
        width = 1 << (channels - 1).bit_length()
        few, many = min(width, 16), min(width, 32)
        less = 168 if dtype.itemsize < 4 else 255
        if rows == 1 or length > 5:
            if products:
                return [cls(1, 2, 128 // many, many, 8, 255), cls(1, 2, 128 // few, few, 8, 255)]
            return [cls(1, 1, 256 // many, many, 4, 255), cls(1, 2, 128 // few, few, 4, less)]
        if products:
            return [cls(2, 2, 128 // many, many, 4, 255), cls(2, 1, 128 // few, few, 4, less)]
        return [cls(2, 2, 128 // many, many, 4, 255), cls(2, 2, 128 // few, few, 4, less)]

    def options(self) -> dict[str, Any]:
        """The constants that the kernel is compiled for."""
        sizes = {"ROWS": self.rows, "TILE_0": self.tile_0, "TILE_2": self.tile_2, "BLOCK_CHANNELS": self.channels}
        # a stage of loads ahead would take the shared memory that the cache needs
        return {**sizes, "num_warps": self.warps, "num_stages": 1, "maxnreg": self.registers}


def column_length(lines: int, length: int, parts: int) -> int:
    """Planes of a column: so few that there are programs enough, and so many that few planes are summed for two columns.

    Args:
        lines: planes of the result.
        length: of the window.
        parts: programs, if columns are whole.

    Example:
        >>> column_length(128, 5, 2000), column_length(128, 5, 256), column_length(128, 5, 1)
        (128, 32, 20)
    """
    return min(lines, max(-(-lines // max(1, PROGRAMS // parts)), 4 * length))


class Rings(NamedTuple):
    """What a slab is summed with.

    Attributes:
        table: the taps.
        basis: ``(live shells, rings)``, float32, contiguous.
        sizes: of the result's volume.
    """

    table: RingTable
    basis: torch.Tensor
    sizes: tuple[int, ...]


def ring_sums(
    x: torch.Tensor, rings: Rings, slab: Slab, result: torch.Tensor, partner: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Fill the sums over rings of a slab.

    Args:
        x: ``(batch, *sizes, channels)``, three axes, contiguous.
        rings: taps, basis and sizes.
        slab: which rows of the result.
        result: ``(voxels of the slab, rings * channels)``.
        partner: of the same shape: asks for its products with the sums over shells.

    Returns:
        the products ``(live shells, rings)``, float32, or ``None`` without a partner.
    """
    from monai_gmr.ops.triton import sum_kernels as triton_sums

    table, basis, sizes = rings
    channels = x.shape[-1]
    lines = -(-sizes[1] // table.dilation_1)
    found: list[torch.Tensor] = []

    def launch(blocks: SumBlocks) -> None:
        tiles = -(-slab.samples * -(-slab.rows // blocks.rows) // blocks.tile_0) * -(-sizes[2] // blocks.tile_2)
        parts = tiles * -(-channels // blocks.channels) * table.dilation_1
        chunk = column_length(lines, table.length, parts)
        grid = (tiles, -(-lines // chunk) * table.dilation_1, -(-channels // blocks.channels))
        programs = math.prod(grid) if partner is not None else 0
        products = torch.empty((programs, *basis.shape), dtype=torch.float32, device=x.device)
        triton_sums.ring_sums_kernel[grid](
            x,
            basis,
            result,
            result if partner is None else partner,
            products,
            *x.stride()[:3],
            *x.shape[1:4],
            *sizes[1:],
            *slab,
            chunk,
            **table.options(),
            RINGS=basis.shape[1],
            CHANNELS=channels,
            PRODUCTS=partner is not None,
            KEEP_BASIS=basis.numel() <= MOST_KEPT,
            **blocks.options(),
        )
        found[:] = [products]

    candidates = SumBlocks.candidates(channels, slab.rows, table.length, partner is not None, x.dtype)
    key = (
        "sums",
        x.device,
        x.dtype,
        table,
        channels,
        basis.shape,
        partner is None,
        (slab.samples * slab.rows).bit_length(),
    )
    launch(choose_blocks(key, candidates, launch, timer_of(x.device)))
    return None if partner is None else found[0].sum(0)


def _as_volume(x: torch.Tensor) -> torch.Tensor:
    """``(batch, channels, *spatial)`` as ``(batch, *three axes, channels)``, contiguous; missing axes come first, of length 1."""
    last = x.movedim(1, -1).contiguous()
    return last.reshape(last.shape[0], *(1,) * (5 - last.dim()), *last.shape[1:])


def _three(values: Sequence[int], missing: int) -> list[int]:
    return [missing] * (3 - len(values)) + list(values)


def _rings_of(
    shells: torch.Tensor,
    basis: torch.Tensor,
    padding: Sequence[int],
    dilation: Sequence[int],
    sizes: Sequence[int],
    mirrored: bool,
) -> Rings:
    shape = tuple(_three(shells.shape, 1))
    margins, steps = _three(padding, 0), _three(dilation, 1)
    if mirrored:
        margins = [d * (k - 1) - p for d, k, p in zip(steps, shape, margins)]
    table = _table_of(content_of(shells), shape, basis.shape[1], tuple(margins), tuple(steps), mirrored)
    return Rings(table, basis.T.float().contiguous(), tuple(_three(sizes, 1)))


def _slabs_of(samples: int, rings: Rings, channels: int, outputs: int, arrays: int) -> list[Slab]:
    """Slabs so small that ``arrays`` arrays of sums of ``channels`` take at most half of the memory of ``outputs`` channels."""
    voxels = samples * math.prod(rings.sizes)
    most = voxels * outputs // (2 * arrays * channels * rings.basis.shape[1])
    return list(make_slabs(samples, rings.sizes, max(most, LEAST_SLAB)))


def _voxels_of(slab: Slab, sizes: Sequence[int]) -> slice:
    plane = sizes[1] * sizes[2]
    first = (slab.first_sample * sizes[0] + slab.first_row) * plane
    return slice(first, first + slab.samples * slab.rows * plane)


@torch.library.custom_op("monai_gmr::triton_ring_conv", mutates_args=())
def triton_ring_conv(
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
        x: ``(batch, in_channels, *spatial)``, float32, float16 or bfloat16.
        weight: ``(out_channels, in_channels, rings)``, dtype of ``x``.
        basis: ``(rings, live shells)``; shells beyond count as zero.
        shells: integers of shape ``kernel_size``.
        bias: ``(out_channels,)``, dtype of ``x``, or ``None``.
        padding, dilation: in voxels, one an axis.

    Returns:
        ``(batch, out_channels, *spatial_out)``, in memory as ``x`` is. Sums are taken in float32 and rounded to the dtype of ``x`` before
        the product.
    """
    sizes = output_sizes(x.shape[2:], shells.shape, [1] * shells.dim(), padding, dilation)
    image = _as_volume(x)
    outs, ins, count = weight.shape
    rings = _rings_of(shells, basis, padding, dilation, sizes, False)
    matrix = weight.permute(2, 1, 0).reshape(count * ins, outs)
    y = x.new_empty((x.shape[0], *sizes, outs))
    flat = y.view(-1, outs)
    slabs = _slabs_of(x.shape[0], rings, ins, outs, 1)
    here = [_voxels_of(slab, rings.sizes) for slab in slabs]
    sums = x.new_empty((max((h.stop - h.start for h in here), default=0), count * ins))
    for slab, voxels in zip(slabs, here):
        part = sums[: voxels.stop - voxels.start]
        ring_sums(image, rings, slab, part)
        if bias is None:
            torch.mm(part, matrix, out=flat[voxels])
        else:
            torch.addmm(bias, part, matrix, out=flat[voxels])
    return follow_format(image_of(y), x)


@torch.library.custom_op("monai_gmr::triton_ring_conv_backward", mutates_args=())
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
    """Gradients of input, weight and basis; those that are not needed are empty."""
    rings = _rings_of(shells, basis, padding, dilation, x.shape[2:], True)
    image = _as_volume(gradient)
    outs, ins, count = weight.shape
    met = _as_volume(x).view(-1, ins)
    matrix = weight.permute(2, 0, 1).reshape(count * outs, ins)
    found = x.new_empty((x.shape[0], *x.shape[2:], ins) if needed[0] else (0, ins))
    product = x.new_zeros((count * outs, ins), dtype=torch.float32)
    numbers = torch.zeros(basis.T.shape, dtype=torch.float32, device=basis.device)
    slabs = _slabs_of(x.shape[0], rings, outs, ins, 1 + needed[2])
    here = [_voxels_of(slab, rings.sizes) for slab in slabs]
    most = max((h.stop - h.start for h in here), default=0)
    sums = x.new_empty((most, count * outs))
    partners = torch.empty_like(sums) if needed[2] else None
    for slab, voxels in zip(slabs, here):
        length = voxels.stop - voxels.start
        partner = None if partners is None else torch.mm(met[voxels], matrix.T, out=partners[:length])
        products = ring_sums(image, rings, slab, sums[:length], partner)
        if products is not None:
            numbers += products
        if needed[0]:
            torch.mm(sums[:length], matrix, out=found.view(-1, ins)[voxels])
        if needed[1]:
            product += sums[:length].T @ met[voxels]
    by_ring = product.view(count, outs, ins).permute(1, 2, 0)
    return [
        follow_format(image_of(found), x) if needed[0] else x.new_empty((0,)),
        by_ring.to(weight.dtype, copy=True).contiguous() if needed[1] else weight.new_empty((0,)),
        numbers.T.to(basis.dtype).contiguous() if needed[2] else basis.new_empty((0,)),
    ]


register_ring_conv(triton_ring_conv, _gradients)
