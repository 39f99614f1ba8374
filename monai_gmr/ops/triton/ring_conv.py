"""Radial convolutions on backend "triton", for GPUs: sums over rings in a kernel, then a product over channels.

Operations and memory traffic for each output voxel, with ``k^d`` taps, ``S`` shells, ``R`` rings, ``C`` input and ``O`` output channels:

* forward: additions for the distinct taps of one plane and for their classes in ``k`` planes (3D: 15 and 16 at k=5, 36 and 39 at k=7,
  instead of 92 and 250 one tap after the other), ``R S C`` multiplications in float32, then ``R C O`` in the library's matrix product; a
  dense kernel takes ``k^d C O``. The rings' sums of a slab, ``R C`` numbers per voxel, are written and read once.
* backward: one pass of sums over the gradient of the output gives the gradients of input, weight and basis, because a radial kernel is its
  own adjoint: ``R S O`` more multiplications for the basis, and three products ``R C O``.

Slabs are so small that the sums of one take at most half of the memory of the input. Input, weight and basis are saved for backward.
The sums are bounded by the rate of additions and index arithmetic, the products by memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from monai_gmr.ops.call import output_sizes
from monai_gmr.ops.memory_format import follow_format, image_of
from monai_gmr.ops.ring_gradients import dense_operation, present, register_gradients
from monai_gmr.ops.slabs import Slab, make_slabs
from monai_gmr.ops.triton.launch import SumBlocks, choose_blocks, timer_of
from monai_gmr.ops.triton.tables import RingTable, ring_table_of, three_axes

# voxels below which a slab has too little work for a GPU
LEAST_SLAB = 2**16
# programs that keep a GPU busy
PROGRAMS = 1024
# largest basis that a thread keeps in registers; larger ones are loaded again for each plane
MOST_KEPT = 32


def column_length(lines: int, length: int, parts: int) -> int:
    """Planes of a column, out of ``lines`` in the result: few enough for sufficiently many programs (``parts`` with whole columns), and
    enough that neighbouring columns sum few planes twice.
    """
    return min(lines, max(-(-lines // max(1, PROGRAMS // parts)), 4 * length))


class Rings(NamedTuple):
    """Constants of the sums over rings of a slab."""

    table: RingTable
    basis: torch.Tensor  # (num_shells, rings), float32, contiguous
    sizes: tuple[int, ...]  # of the result's volume


def ring_sums(
    x: torch.Tensor, rings: Rings, slab: Slab, result: torch.Tensor, partner: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Fills ``result`` ``(voxels of the slab, rings * channels)`` with sums over rings of ``x`` ``(batch, *3 axes, channels)``, whose
    channels are adjacent.

    Returns the products ``(num_shells, rings)``, float32, of a ``partner`` of the result's shape with the sums over shells, or ``None``.
    """
    from monai_gmr.ops.triton import sum_kernels as triton_sums

    table, basis, sizes = rings
    channels = x.shape[-1]
    lines = -(-sizes[1] // table.dilation_1)
    kept: list[torch.Tensor] = []

    def launch(blocks: SumBlocks) -> None:
        tiles = -(-slab.samples * -(-slab.rows // blocks.rows) // blocks.tile_0) * -(-sizes[2] // blocks.tile_2)
        parts = tiles * -(-channels // blocks.channels) * table.dilation_1
        chunk = column_length(lines, table.length, parts)
        grid = (tiles, -(-lines // chunk) * table.dilation_1, -(-channels // blocks.channels))
        programs = math.prod(grid) if partner is not None else 0
        products = torch.empty((programs, *basis.shape), dtype=torch.float32, device=x.device)
        arrays = (x, basis, result, result if partner is None else partner, products)
        numbers = (*x.stride()[:3], *x.shape[1:4], *sizes[1:], *slab, chunk)
        constants = {
            "RINGS": basis.shape[1],
            "CHANNELS": channels,
            "STEP_2": x.stride(3),
            "PRODUCTS": partner is not None,
        }
        constants |= {"KEEP_BASIS": basis.numel() <= MOST_KEPT, **table.options(), **blocks.options()}
        triton_sums.ring_sums_kernel[grid](*arrays, *numbers, **constants)
        kept[:] = [products]

    candidates = SumBlocks.candidates(channels, slab.rows, table.length, partner is not None, x.dtype)
    rows = (slab.samples * slab.rows).bit_length()
    key = ("sums", x.device, x.dtype, table, channels, x.stride(3), basis.shape, partner is None, rows)
    launch(choose_blocks(key, candidates, launch, timer_of(x.device)))
    return None if partner is None else kept[0].sum(0)


def as_volume(x: torch.Tensor) -> torch.Tensor:
    """``(batch, channels, *spatial)`` as ``(batch, *three axes, channels)``, contiguous; missing axes come first, of length 1."""
    last = x.movedim(1, -1).contiguous()
    return last.reshape(last.shape[0], *(1,) * (5 - last.dim()), *last.shape[1:])


def rings_of(
    shells: torch.Tensor,
    basis: torch.Tensor,
    padding: list[int],
    dilation: list[int],
    sizes: Sequence[int],
    mirrored: bool,
) -> Rings:
    table = ring_table_of(shells, basis.shape[1], padding, dilation, mirrored)
    return Rings(table, basis.T.float().contiguous(), tuple(three_axes(sizes, 1)))


def slabs_of(samples: int, sizes: Sequence[int], numbers: int, channels: int) -> list[Slab]:
    """Slabs of volumes, so small that ``numbers`` per voxel of a slab take at most half of the memory of a volume with ``channels``."""
    most = samples * math.prod(sizes) * channels // (2 * numbers)
    # threads sum several rows at once
    return list(make_slabs(samples, sizes, max(most, LEAST_SLAB), multiple=4))


def voxels_of(slab: Slab, sizes: Sequence[int]) -> slice:
    plane = sizes[1] * sizes[2]
    first = (slab.first_sample * sizes[0] + slab.first_row) * plane
    return slice(first, first + slab.samples * slab.rows * plane)


def write_products(
    image: torch.Tensor, rings: Rings, weight: torch.Tensor, bias: torch.Tensor | None, result: torch.Tensor
) -> None:
    """Fills ``result`` ``(voxels, out_channels)``, whose rows need not be adjacent, with the convolution of ``image`` ``(batch, *3 axes,
    channels)`` by the ``weight`` of :func:`triton_ring_conv`."""
    outs, ins, count = weight.shape
    matrix = weight.permute(2, 1, 0).reshape(count * ins, outs)
    slabs = slabs_of(len(image), rings.sizes, ins * count, outs)
    here = [voxels_of(slab, rings.sizes) for slab in slabs]
    sums = image.new_empty((max((h.stop - h.start for h in here), default=0), count * ins))
    for slab, voxels in zip(slabs, here):
        part = sums[: voxels.stop - voxels.start]
        ring_sums(image, rings, slab, part)
        if bias is None:
            torch.mm(part, matrix, out=result[voxels])
        else:
            torch.addmm(bias, part, matrix, out=result[voxels])


def product_gradients(
    gradient: torch.Tensor, image: torch.Tensor, rings: Rings, weight: torch.Tensor, needed: Sequence[bool]
) -> list[torch.Tensor | None]:
    """Gradients of ``image`` ``(batch, *3 axes, channels)``, ``weight`` and basis, from the result's ``gradient`` ``(batch, *3 axes,
    out_channels)``, by the mirrored ``rings``; ``None`` if not needed."""
    outs, ins, count = weight.shape
    inputs = image.view(-1, ins)
    matrix = weight.permute(2, 0, 1).reshape(count * outs, ins)
    image_gradient = torch.empty_like(image) if needed[0] else None
    product = image.new_zeros((count * outs, ins), dtype=torch.float32)
    basis_gradient = torch.zeros_like(rings.basis)
    slabs = slabs_of(len(image), rings.sizes, (1 + needed[2]) * outs * count, ins)
    here = [voxels_of(slab, rings.sizes) for slab in slabs]
    most = max((h.stop - h.start for h in here), default=0)
    sums = image.new_empty((most, count * outs))
    partners = torch.empty_like(sums) if needed[2] else None
    for slab, voxels in zip(slabs, here):
        length = voxels.stop - voxels.start
        partner = None if partners is None else torch.mm(inputs[voxels], matrix.T, out=partners[:length])
        products = ring_sums(gradient, rings, slab, sums[:length], partner)
        if products is not None:
            basis_gradient += products
        if image_gradient is not None:
            torch.mm(sums[:length], matrix, out=image_gradient.view(-1, ins)[voxels])
        if needed[1]:
            product += sums[:length].T @ inputs[voxels]
    by_ring = product.view(count, outs, ins).permute(1, 2, 0)
    return [
        image_gradient,
        by_ring.to(weight.dtype, copy=True).contiguous() if needed[1] else None,
        basis_gradient.T.contiguous() if needed[2] else None,
    ]


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
    """:func:`~monai_gmr.ops.ring_conv` of stride 1 and one group, with gradients for ``x``, ``weight``, ``basis`` and ``bias``. Supports
    batches in float32, float16 or bfloat16, the dtype of weight and bias; shells beyond the basis ``(rings, num_shells)`` count as zero.
    Sums are computed in float32 and rounded to the dtype of ``x`` before the product."""
    sizes = output_sizes(x.shape[2:], shells.shape, [1] * shells.dim(), padding, dilation)
    y = x.new_empty((x.shape[0], *sizes, weight.shape[0]))
    rings = rings_of(shells, basis, padding, dilation, sizes, mirrored=False)
    write_products(as_volume(x), rings, weight, bias, y.view(-1, weight.shape[0]))
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
    rings = rings_of(shells, basis, padding, dilation, x.shape[2:], mirrored=True)
    found = product_gradients(as_volume(gradient), as_volume(x), rings, weight, needed)
    if found[0] is not None:
        found[0] = follow_format(image_of(found[0].view(len(x), *x.shape[2:], x.shape[1])), x)
    if found[2] is not None:
        found[2] = found[2].to(basis.dtype)
    return present(found, x)


register_gradients(triton_ring_conv, _gradients, dense_operation)
