"""Launches of the kernels of the orders above 0 of a harmonic layer, with their arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from monai_gmr.ops.invariants import NORM_SMOOTHING, inner_product_scale
from monai_gmr.ops.kept_terms import triple_product_scale
from monai_gmr.ops.slabs import Slab
from monai_gmr.ops.triton.launch import HarmonicBlocks, choose_blocks, timer_of
from monai_gmr.ops.triton.layout import AngularPart, Layout
from monai_gmr.ops.triton.ring_conv import PROGRAMS
from monai_gmr.ops.triton.tables import TapTable, tap_table_of


class Planes(NamedTuple):
    """Ring buffer of the responses' gradients: for each sample of a slab ``kept`` planes of the first axis, plane ``n`` at index ``n %
    kept``."""

    rows: torch.Tensor  # (samples * planes * voxels of a plane, numbers of a row)
    kept: int

    def base(self, first: int) -> int:
        """The plane at index 0, for planes from ``first`` on."""
        return max(first, 0) // self.kept * self.kept


class AngularOrders:
    """The orders above 0 of one call: ``image`` ``(batch, *sizes, in_channels)``, contiguous, and the kernels' other arguments.

    Missing axes come last, because slabs are cut along the first.
    """

    def __init__(
        self, image: torch.Tensor, layout: Layout, weight: torch.Tensor, angular: torch.Tensor, out_sizes: Sequence[int]
    ) -> None:
        self.image, self.layout = image, layout
        self.channels, self.shells = image.shape[-1], weight.shape[2]
        self.sizes, self.out_sizes = (_three(each) for each in (image.shape[1:-1], out_sizes))
        self.weight = layout.pack(weight, image.dtype)
        self.angular = angular.to(torch.float32)

    def _arrays(self, table: TapTable, width: int) -> tuple[torch.Tensor, ...]:
        """Offsets of the taps, their factors, and the first tap of each shell; ``width`` is the number of axes."""
        return table.offsets.roll(width, 1).contiguous(), self.angular[:, table.order].contiguous(), table.starts

    def set_window(self, shells: torch.Tensor, padding: list[int], dilation: list[int]) -> AngularOrders:
        """Sets the taps and the mirrored taps."""
        window = (shells, self.image.device, self.shells, padding, dilation)
        self.taps, self.mirrored = (self._arrays(tap_table_of(*window, flip), shells.dim()) for flip in (False, True))
        self.padding, self.reach = padding[0], dilation[0] * (shells.shape[0] - 1)
        return self

    def _launch(self, name: str, voxels: int, sizes: tuple[int, int], run: Callable[..., None]) -> None:
        """Calls ``run(blocks, final)`` with the fastest blocks for ``sizes``, columns and components; ``final`` is false in timing runs."""
        candidates = HarmonicBlocks.candidates(self.channels, *sizes)
        key = (name, self.image.device, self.image.dtype, self.channels, self.shells, *sizes, voxels.bit_length())
        run(choose_blocks(key, candidates, partial(run, final=False), timer_of(self.image.device)), final=True)

    def _constants(self, blocks: HarmonicBlocks) -> dict[str, Any]:
        known = {"CHANNELS": self.channels, "RESPONSES": self.layout.responses}
        known |= {"SHELLS": self.shells, "TAPS": self.taps[1].shape[1]}
        return known | blocks.options(self.image.dtype)

    def run_order(
        self,
        part: AngularPart,
        slab: Slab,
        scalars: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        chiral: torch.Tensor | None = None,
        linear: torch.Tensor | None = None,
        responses: torch.Tensor | None = None,
        planes: Planes | None = None,
    ) -> torch.Tensor | None:
        """Fills an order's part of ``scalars`` ``(voxels of the batch, outputs)`` for a slab of the result, and ``responses`` ``(voxels of
        the slab, numbers of a row)`` if given; with ``planes``, ``scalars`` is a gradient, and the planes are filled.

        ``bias`` and ``chiral`` are float32, for the order's outputs; ``linear`` is packed, for all outputs. Returns, with planes, the
        gradient of ``chiral`` for the inner products, otherwise ``None``.
        """
        from monai_gmr.ops.triton import harmonic_kernels as kernels

        order, (plane, outputs) = part.order, (math.prod(self.out_sizes[1:]), scalars.shape[1])
        voxels = slab.samples * slab.rows * plane
        chiral, backward = (chiral if part.chiral else None), planes is not None
        own = slice(part.first_response, None)
        factors = None if linear is None else linear[:, own]
        rows = [None if each is None else each[:, own] for each in (responses, None if planes is None else planes.rows)]
        triple = part.slots == 4
        scales = (inner_product_scale(order.components), triple_product_scale() if triple else inner_product_scale(2))
        partial_sums: list[torch.Tensor] = []

        def run(blocks: HarmonicBlocks, final: bool) -> None:
            grid = (-(-voxels // blocks.voxels), -(-part.columns // blocks.columns))
            grown = None
            if backward and chiral is not None:
                grown = scalars.new_empty((grid[0], outputs), dtype=torch.float32)
            numbers = (*self.sizes, *self.out_sizes, voxels, slab.rows, slab.first_sample, slab.first_row)
            kernels.harmonic_kernel[grid](
                *(self.image, self.weight[:, :, part.first_column :], self.taps[0]),
                *(self.taps[1][part.first_component :], self.taps[2]),
                # the image stands for missing arrays, which are not read
                *(self.image if each is None else each for each in (bias, chiral, factors, scalars, *rows, grown)),
                *(*numbers, 1 if planes is None else planes.kept),
                *(NORM_SMOOTHING, *scales),
                **{"OUTPUTS": outputs, "FIRST": order.channels.start, "WIDTH": self.layout.width},
                **{"COLUMNS": part.columns, "SLOTS": part.slots, "COMPONENTS": order.components},
                **{"NORMS": order.norms, "PRODUCTS": order.products, "BACKWARD": backward},
                **{"BIAS": bias is not None, "CHIRAL": chiral is not None, "LINEAR": linear is not None},
                **{"STORES": responses is not None, **self._constants(blocks)},
            )
            partial_sums[:] = [] if grown is None else [grown]

        name = f"harmonic {'backward' if backward else 'forward'} {part.slots} {linear is not None}"
        self._launch(name, voxels, (part.columns, order.components), run)
        places = slice(order.norms, order.norms + order.products)
        return partial_sums[0][:, places].sum(0) if partial_sums else None

    def add_image_gradient(self, slab: Slab, planes: Planes, adds: bool, result: torch.Tensor) -> None:
        """Fills ``result`` ``(voxels of the batch, in_channels)`` for a slab of the image, or adds to it."""
        from monai_gmr.ops.triton import harmonic_gradient_kernels as kernels

        voxels = slab.samples * slab.rows * math.prod(self.sizes[1:])
        orders = tuple(
            number
            for p in self.layout.parts
            for number in (p.columns, p.order.components, p.first_column, p.first_response, p.first_component)
        )

        def run(blocks: HarmonicBlocks, final: bool) -> None:
            grid = (-(-voxels // blocks.voxels), -(-self.channels // blocks.channels))
            # timing runs repeat, and must not add to the result
            target = result if final else torch.empty_like(result)
            arrays = (planes.rows, self.weight, *self.mirrored, result, target)
            constants = {"WIDTH": self.layout.width, "ORDERS": orders, "ADDS": adds, **self._constants(blocks)}
            kernels.input_gradient_kernel[grid](*arrays, *self._slab_numbers(slab, planes, voxels), **constants)

        self._launch(f"harmonic image {orders}", voxels, (max(p.columns for p in self.layout.parts), 1), run)

    def weight_gradient(self, part: AngularPart, slab: Slab, planes: Planes) -> torch.Tensor:
        """Weight gradient of an order for a slab of the image, ``(shells, in_channels, columns)``, float32."""
        from monai_gmr.ops.triton import harmonic_gradient_kernels as kernels

        voxels = slab.samples * slab.rows * math.prod(self.sizes[1:])
        found: list[torch.Tensor] = []

        def run(blocks: HarmonicBlocks, final: bool) -> None:
            tiles = -(-part.columns // blocks.columns) * -(-self.channels // blocks.channels)
            # as many parts as keep a GPU busy; they are summed afterwards, so that the result does not depend on their order
            parts = max(1, min(PROGRAMS // (tiles * self.shells), -(-voxels // blocks.voxels)))
            chunk = -(-voxels // parts)
            sums = self.image.new_empty((parts, self.shells, self.channels, part.columns), dtype=torch.float32)
            arrays = (
                *(self.image, planes.rows[:, part.first_response :], self.mirrored[0]),
                *(self.mirrored[1][part.first_component :], self.mirrored[2], sums),
            )
            constants = {"COLUMNS": part.columns, "COMPONENTS": part.order.components, **self._constants(blocks)}
            numbers = (*self._slab_numbers(slab, planes, voxels), chunk)
            kernels.weight_gradient_kernel[parts, tiles, self.shells](*arrays, *numbers, **constants)
            found[:] = [sums]

        self._launch(f"harmonic weight {part.order.components}", voxels, (part.columns, 1), run)
        return found[0].sum(0)

    def _slab_numbers(self, slab: Slab, planes: Planes, voxels: int) -> tuple[int, ...]:
        base = planes.base(slab.first_row + self.padding - self.reach)
        numbers = (voxels, slab.rows, slab.first_sample, slab.first_row, planes.kept, base)
        return (*self.sizes, *self.out_sizes, *numbers)


def _three(sizes: Sequence[int]) -> tuple[int, ...]:
    return (*sizes, *(1,) * (3 - len(sizes)))
