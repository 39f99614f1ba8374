"""Calls of the kernels of radial convolutions, ``csrc/ring_conv.cpp``, for a tile, and tile by tile for whole images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from monai_gmr.ops.cpu.library import RingConvGeometry, call_kernel
from monai_gmr.ops.cpu.tiles import Tiles, Window

# numbers in the longest vectors of a processor
LANES = 16
# line by line is chosen where it needs at most this part of the additions tap by tap
WORTHWHILE = 0.75


class Sums(NamedTuple):
    """What the kernels add for each shell: taps of the window; or sums over lines of the window that are alike, and taps in these sums."""

    first_taps: torch.Tensor  # (shells + 1,), the first tap of each shell, and one more
    taps: torch.Tensor  # (taps, 3), places in voxels
    sets_of_taps: torch.Tensor  # (taps,), in which lines' sum a tap lies; of the window itself 0
    first_lines: torch.Tensor  # (sets + 1,), the first line of each set that are alike, and one more; without sums (1,)
    lines: torch.Tensor  # (lines, 3), places in voxels

    def additions(self, length: int, reach: int) -> float:
        """Numbers that are added or stored for a voxel of a line of ``length`` voxels, with the reach of the window along it."""
        sums = len(self.lines) + 2 * len(self.first_lines) - 2
        return len(self.taps) + sums * (length + reach) / length


def _first_and_all(sets: Sequence[Sequence[Any]]) -> tuple[torch.Tensor, list[Any]]:
    return torch.tensor([0, *map(len, sets)]).cumsum(0), [each for one in sets for each in one]


def _places(places: Sequence[Sequence[int]]) -> torch.Tensor:
    """With zeros along axes that are missing before the others."""
    return torch.tensor([[0] * (3 - len(place)) + [*place] for place in places], dtype=torch.int64).reshape(-1, 3)


@lru_cache(maxsize=256)
def tap_sums(window: Window) -> Sums:
    """Tap by tap."""
    first, taps = _first_and_all(window.taps())
    zeros = torch.zeros(len(taps), dtype=torch.int64)
    return Sums(first, _places(taps), zeros, torch.zeros(1, dtype=torch.int64), _places([]))


@lru_cache(maxsize=256)
def line_sums(window: Window) -> Sums:
    """Line by line of the window, along the last axis."""
    *leading, length = window.shape
    alike: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for number, place in enumerate(itertools.product(*map(range, leading))):
        line = tuple(s if s < window.num_shells else -1 for s in window.shells[number * length : (number + 1) * length])
        if max(line) >= 0:
            alike.setdefault(line, []).append((*(p * d for p, d in zip(place, window.dilation)), 0))
    origin, step = (0,) * len(leading), window.dilation[-1]
    taps = [
        [
            (number, (*origin, place * step))
            for number, line in enumerate(alike)
            for place in range(length)
            if line[place] == shell
        ]
        for shell in range(window.num_shells)
    ]
    first_taps, all_taps = _first_and_all(taps)
    first_lines, lines = _first_and_all(list(alike.values()))
    sets = torch.tensor([number for number, _ in all_taps], dtype=torch.int64)
    return Sums(first_taps, _places([place for _, place in all_taps]), sets, first_lines, _places(lines))


@lru_cache(maxsize=256)
def choose_sums(window: Window, length: int) -> Sums:
    """The faster of both ways for lines of ``length`` voxels: line by line where that saves many additions."""
    taps, lines = tap_sums(window), line_sums(window)
    additions = [each.additions(length, window.reach()[-1]) for each in (taps, lines)]
    return lines if additions[1] <= WORTHWHILE * additions[0] else taps


def check_memory(image: torch.Tensor, result: torch.Tensor, sizes: Sequence[int]) -> None:
    """Refuse an image or a result ``(batch, *sizes, channels)`` that a kernel would read or write elsewhere."""
    for tensor in (image, result):
        if not tensor.is_contiguous() or tensor.dtype != torch.float32:
            raise AssertionError(f"a tensor of shape {tuple(tensor.shape)} is not contiguous and float32")
    if list(sizes) != list(result.shape[1:-1]) or len(image) != len(result):
        raise AssertionError(f"an image of shape {tuple(image.shape)} does not give {tuple(result.shape)}")


def check_bias(bias: torch.Tensor | None, channels: int) -> torch.Tensor | None:
    """A bias of so many output channels, contiguous; a kernel would read another length elsewhere."""
    if bias is not None and bias.shape != (channels,):
        raise AssertionError(f"a bias of shape {tuple(bias.shape)} is not for {channels} channels")
    return None if bias is None else bias.contiguous()


def _arguments(
    image: torch.Tensor,
    result: torch.Tensor,
    weights: torch.Tensor,
    columns_first: bool,
    window: Window,
    basis: torch.Tensor,
) -> list[Any]:
    """What both kernels take first: of an image ``(batch, *sizes + reach, channels)``, a result ``(batch, *sizes, all)`` and weights
    ``(groups, columns, channels, rings)``, or channels before columns."""
    if basis.shape[1] != window.num_shells:
        raise AssertionError(f"a basis of shape {tuple(basis.shape)} is not for {window.num_shells} shells")
    groups, *lengths, rings = weights.shape
    columns, channels = lengths if columns_first else lengths[::-1]
    if groups * channels != image.shape[-1] or rings != basis.shape[0] or not weights.is_contiguous():
        raise AssertionError(
            f"weights of shape {tuple(weights.shape)} are not for an image of shape {tuple(image.shape)}"
        )
    padded, sizes = image.shape[1:-1], result.shape[1:-1]
    check_memory(image, result, [n - reach for n, reach in zip(padded, window.reach())])
    sums = choose_sums(window, sizes[-1])
    leading = (1,) * (3 - len(sizes))
    geometry = RingConvGeometry(
        batch=len(image),
        sizes=(*leading, *sizes),
        image=(*leading, *padded),
        channels=image.shape[-1],
        columns=groups * columns,
        shells=window.num_shells,
        rings=rings,
        threads=torch.get_num_threads(),
        row=result.shape[-1],
        groups=groups,
        lines=len(sums.first_lines) - 1,
        columns_first=columns_first,
    )
    return [geometry, *sums[:5], basis.contiguous(), image]


def ring_products(
    image: torch.Tensor,
    window: Window,
    basis: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor | None,
    result: torch.Tensor,
    channels: slice,
) -> None:
    """Sums of rings of an image ``(batch, *sizes + reach, groups * channels)``, times weights ``(groups, columns, channels, rings)``, plus
    a bias ``(groups * columns,)``, written to some ``channels``, the columns of all groups, of a result ``(batch, *sizes, all)``."""
    call = _arguments(image, result, weights, True, window, basis)
    bias = check_bias(bias, weights.shape[0] * weights.shape[1])
    call_kernel("ring_conv", *call, weights, bias, result[..., channels])


def ring_gradients(
    image: torch.Tensor,
    window: Window,
    basis: torch.Tensor,
    other: torch.Tensor,
    weights: torch.Tensor,
    gradients: Sequence[torch.Tensor | None],
    columns_first: bool = True,
) -> None:
    """Sums of rings as in :func:`ring_products`, and the gradients that follow from them.

    ``other`` is ``(batch, *sizes, groups * columns)``; weights may have channels before columns. The gradients, each ``None`` where not
    needed, are: of the shape of ``other``, written to, the sums times the weights; of the shape of the weights, to which the products of
    the sums with ``other`` are added; ``(rings, shells)``, float64, to which the inner products of the shells' sums with ``other`` times
    the weights are added.
    """
    call = _arguments(image, other, weights, columns_first, window, basis)
    call_kernel("ring_conv_backward", *call, other, weights, *gradients)


def merged_groups(groups: int, channels: Sequence[int]) -> int:
    """Number of groups of the kernels, which take several of a convolution as one, with zeros in its weights, so that the channels
    ``(in, out)`` of one fill a vector."""
    sizes = (size for size in range(1, groups + 1) if groups % size == 0 and size * min(channels) >= LANES)
    return groups // next(sizes, groups)


def _blocks(weights: torch.Tensor, shape: Sequence[int], groups: int) -> torch.Tensor:
    """A view of merged weights: those of the convolution, ``(merged, out, in, rings, groups in one of them)``."""
    split = (len(weights), groups // len(weights), shape[0] // groups, groups // len(weights), *shape[1:])
    return weights.view(split).diagonal(dim1=1, dim2=3)


def merge_groups(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Weights ``(out_channels, in_channels / groups, rings)`` as those of merged groups, contiguous ``(merged groups, out, in, rings)``."""
    weight = weight.contiguous()
    out_channels, in_channels, rings = len(weight) // groups, *weight.shape[1:]
    merged = merged_groups(groups, (out_channels, in_channels))
    if merged == groups:
        return weight.unflatten(0, (groups, out_channels))
    size = groups // merged
    weights = weight.new_zeros((merged, size * out_channels, size * in_channels, rings))
    own = weight.view(merged, size, out_channels, in_channels, rings)
    _blocks(weights, weight.shape, groups).copy_(own.movedim(1, -1))
    return weights


def split_groups(weights: torch.Tensor, shape: Sequence[int], groups: int) -> torch.Tensor:
    """The inverse of :func:`merge_groups`, to weights of a shape."""
    if len(weights) == groups:
        return weights.view(*shape)
    return _blocks(weights, shape, groups).movedim(-1, 1).reshape(*shape)


def write_products(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    window: Window,
    bias: torch.Tensor | None,
    padding: Sequence[int],
    result: torch.Tensor,
    channels: slice,
    groups: int = 1,
) -> None:
    """A radial convolution of ``(batch, *sizes, in_channels)``, written to some channels of ``result`` ``(batch, *sizes_out, all)``."""
    tiles = Tiles(x, padding, window, x.shape[-1])
    weights = merge_groups(weight, groups)
    for tile in tiles:
        rows = result[tile.samples, tile.rows]
        ring_products(tiles.input_of(tile), window, basis, weights, bias, result=rows, channels=channels)


def product_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    window: Window,
    padding: Sequence[int],
    needed: Sequence[bool],
    groups: int = 1,
) -> list[torch.Tensor | None]:
    """Gradients of ``x``, ``weight`` and ``basis`` of :func:`write_products` from that of the result, ``None`` where not needed."""
    weights = merge_groups(weight, groups)
    image, other, margins = gradient, x, [reach - p for reach, p in zip(window.reach(), padding)]
    if swapped := not needed[0] and x.shape[-1] < weight.shape[0]:
        # a first layer: the input has fewer channels to sum over than the gradient
        image, other, margins = x, gradient, list(padding)
    tiles = Tiles(image, margins, window, image.shape[-1])
    other = other.contiguous()
    x_gradient = torch.empty_like(other) if needed[0] else None
    weight_sums = weights.new_zeros(weights.shape) if needed[1] else None
    basis_sums = basis.new_zeros(basis.shape, dtype=torch.float64) if needed[2] else None
    for tile in tiles:
        own = None if x_gradient is None else x_gradient[tile.samples, tile.rows][tile.new]
        rows = other[tile.samples, tile.rows][tile.new]
        gradients = (own, weight_sums, basis_sums)
        part = tiles.input_of(tile)[tile.new]
        ring_gradients(part, window, basis, rows, weights, gradients, columns_first=swapped)
    return [
        x_gradient,
        None if weight_sums is None else split_groups(weight_sums, weight.shape, groups),
        None if basis_sums is None else basis_sums.float(),
    ]
