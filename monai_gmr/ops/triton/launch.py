"""Block sizes of the kernels, and the choice of the fastest."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch


class SumBlocks(NamedTuple):
    """Block sizes of a program of the sums."""

    rows: int  # rows that a thread sums at once
    tile_0: int  # threads along the first axis
    tile_2: int  # and along the last
    channels: int
    warps: int
    registers: int  # most registers per thread; fewer let more programs run at once

    @classmethod
    def candidates(cls, channels: int, rows: int, length: int, products: bool, dtype: torch.dtype) -> list[SumBlocks]:
        """A short list to choose from by time. Depends on the input's ``channels`` and ``dtype`` (a thread takes two numbers of two bytes
        at a time); on the ``rows`` of a slab (a single row shares nothing); on the window's ``length`` (a long one leaves no registers for
        several rows); and on whether there are ``products`` with a partner, which need registers, too."""
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
        """The constants of the kernel."""
        sizes = {"ROWS": self.rows, "TILE_0": self.tile_0, "TILE_2": self.tile_2, "BLOCK_CHANNELS": self.channels}
        # one stage: prefetching would take the shared memory that the cache needs
        return {**sizes, "num_warps": self.warps, "num_stages": 1, "maxnreg": self.registers}


def product_options(dtype: torch.dtype) -> dict[str, Any]:
    """Precision of a kernel's products, the same as in ``torch.matmul``."""
    import triton
    import triton.language as tl

    types = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    # Triton's interpreter multiplies with numpy, which has no bfloat16
    wide = dtype not in types or (dtype == torch.bfloat16 and triton.knobs.runtime.interpret)
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return {"PRODUCT_TYPE": tl.float32 if wide else types[dtype], "PRECISION": "tf32" if tf32 else "ieee"}


class Blocks(NamedTuple):
    """Block sizes of a kernel."""

    voxels: int
    out: int
    inner: int
    warps: int

    @classmethod
    def candidates(cls, in_channels: int, out_channels: int) -> list[Blocks]:
        """A short list to choose from by time: powers of two from 16 that hold the channels, up to 64, and several numbers of voxels."""
        fit = [max(16, min(64, 1 << (count - 1).bit_length())) for count in (in_channels, out_channels)]
        return [cls(voxels, fit[1], min(fit[0], 32), warps) for voxels, warps in ((64, 4), (32, 2), (128, 4), (128, 8))]

    def options(self, dtype: torch.dtype) -> dict[str, Any]:
        """The constants of both kernels."""
        sizes = {"BLOCK_VOXELS": self.voxels, "BLOCK_OUT": self.out, "BLOCK_IN": self.inner}
        return {**sizes, "num_warps": self.warps, **product_options(dtype)}


# most accumulators per thread
MOST_ACCUMULATORS = 112


class HarmonicBlocks(NamedTuple):
    """Block sizes of a program of a harmonic order."""

    voxels: int
    columns: int  # of the responses, by component
    channels: int
    warps: int

    @classmethod
    def candidates(cls, channels: int, columns: int, components: int) -> list[HarmonicBlocks]:
        """A short list to choose from by time, for an image of ``channels``, with as many columns of ``components`` as fit in registers."""
        fit = [max(16, min(most, 1 << (count - 1).bit_length())) for count, most in ((channels, 64), (columns, 32))]
        wide = [cls(voxels, fit[1], fit[0], warps) for voxels, warps in ((128, 8), (64, 4), (128, 4))]
        narrow = [cls(voxels, 16, fit[0], 4) for voxels in (128, 64, 32)]
        held = [
            each
            for each in wide + narrow
            if components * each.voxels * each.columns <= 32 * each.warps * MOST_ACCUMULATORS
        ]
        return list(dict.fromkeys(held))[:4]

    def options(self, dtype: torch.dtype) -> dict[str, Any]:
        """The constants of the kernels."""
        sizes = {"BLOCK_VOXELS": self.voxels, "BLOCK_COLUMNS": self.columns, "BLOCK_CHANNELS": self.channels}
        return {**sizes, "num_warps": self.warps, **product_options(dtype)}


Sizes = TypeVar("Sizes", bound=Hashable)
_fastest: dict[tuple, Any] = {}


def choose_blocks(
    key: tuple,
    candidates: Sequence[Sizes],
    launch: Callable[[Sizes], None],
    timer: Callable[[Callable[[], None]], float] | None,
) -> Sizes:
    """The candidate whose launch is fastest, measured by ``timer`` (in milliseconds) once per key and process; without a timer the first.
    Raises RuntimeError if no candidate can run."""
    if timer is None:
        return candidates[0]
    if key not in _fastest:
        times, errors = {}, []
        for blocks in candidates:
            try:
                times[blocks] = timer(partial(launch, blocks))
            except Exception as error:  # too large for this GPU's shared memory or registers
                errors.append(" ".join(str(error).split()))
        if not times:
            raise RuntimeError(f"no block size of backend 'triton' runs here ({errors[0]}): set_backend('dense').")
        _fastest[key] = min(times, key=times.__getitem__)
    return _fastest[key]


def timer_of(device: torch.device) -> Callable[[Callable[[], None]], float] | None:
    """Triton's own timing on a GPU; in its interpreter all blocks are equally slow."""
    if device.type != "cuda":
        return None
    from triton.testing import do_bench

    return partial(do_bench, warmup=5, rep=20)
