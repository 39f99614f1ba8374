"""Calls of the kernels of radial convolutions, ``csrc/ring_conv.cpp``, for one tile and for whole images, tile by tile."""

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
# sums line by line are chosen if they need at most this share of the additions tap by tap
WORTHWHILE = 0.75


class Sums(NamedTuple):
    """Sums of the kernels for each shell: over taps of the window, or first over equal lines of it, then over taps of these sums."""

    first_taps: torch.Tensor  # (shells + 1,), the first tap of each shell, and the number of taps
    taps: torch.Tensor  # (taps, 3), positions in voxels
    sets_of_taps: torch.Tensor  # (taps,), the set of lines whose sum has a tap; 0 if taps are of the window itself
    first_lines: torch.Tensor  # (sets + 1,), first line of each set of equal lines, and their number; (1,) without sets
    lines: torch.Tensor  # (lines, 3), positions in voxels

    def additions(self, length: int, reach: int) -> float:
        """Additions and stores per voxel of a line of ``length`` voxels; ``reach`` is the window's reach along the line."""
        sums = len(self.lines) + 2 * len(self.first_lines) - 2
        return len(self.taps) + sums * (length + reach) / length


def _first_and_all(sets: Sequence[Sequence[Any]]) -> tuple[torch.Tensor, list[Any]]:
    return torch.tensor([0, *map(len, sets)]).cumsum(0), [each for one in sets for each in one]


def _places(places: Sequence[Sequence[int]]) -> torch.Tensor:
    """Positions ``(count, 3)``, with zeros along the missing leading axes."""
    return torch.tensor([[0] * (3 - len(place)) + [*place] for place in places], dtype=torch.int64).reshape(-1, 3)


@lru_cache(maxsize=256)
def tap_sums(window: Window) -> Sums:
    """Sums of a window tap by tap."""
    first, taps = _first_and_all(window.taps())
    zeros = torch.zeros(len(taps), dtype=torch.int64)
    return Sums(first, _places(taps), zeros, torch.zeros(1, dtype=torch.int64), _places([]))


@lru_cache(maxsize=256)
def line_sums(window: Window) -> Sums:
    """Sums of a window line by line, along the last axis."""
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
    """The faster sums for lines of ``length`` voxels: line by line if that saves many additions."""
    taps, lines = tap_sums(window), line_sums(window)
    additions = [each.additions(length, window.reach()[-1]) for each in (taps, lines)]
    return lines if additions[1] <= WORTHWHILE * additions[0] else taps


def check_memory(image: torch.Tensor, result: torch.Tensor, sizes: Sequence[int]) -> None:
    """Refuses an image or a result ``(batch, *sizes, channels)`` that a kernel would read or write out of bounds."""
    for tensor in (image, result):
        if not tensor.is_contiguous() or tensor.dtype != torch.float32:
            raise AssertionError(f"a tensor of shape {tuple(tensor.shape)} is not contiguous and float32")
    if list(sizes) != list(result.shape[1:-1]) or len(image) != len(result):
        raise AssertionError(f"an image of shape {tuple(image.shape)} does not give {tuple(result.shape)}")


def check_bias(bias: torch.Tensor | None, channels: int) -> torch.Tensor | None:
    """A contiguous bias of ``channels`` numbers; a kernel would read any other out of bounds."""
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
    """The first arguments of both kernels, for an image ``(batch, *sizes + reach, channels)``, a result ``(batch, *sizes, all)`` and
    weights ``(groups, columns, channels, rings)``, or channels before columns."""
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
    """Multiplies the ring sums of an image ``(batch, *sizes + reach, groups * channels)`` by weights ``(groups, columns, channels,
    rings)``, adds a bias ``(groups * columns,)``, and writes the columns of all groups to ``channels`` of a result ``(batch, *sizes,
    all)``."""
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
    """Computes ring sums as in :func:`ring_products`, and gradients from them.

    ``other`` is ``(batch, *sizes, groups * columns)``; weights can have channels before columns. The three gradients, each ``None`` if not
    needed, have the shape of ``other``, of the weights, and ``(rings, shells)`` in float64. The first is overwritten by the sums times the
    weights; added to the second are the products of the sums with ``other``, to the third the inner products of the shells' sums with
    ``other`` times the weights.
    """
    call = _arguments(image, other, weights, columns_first, window, basis)
    call_kernel("ring_conv_backward", *call, other, weights, *gradients)


def merged_groups(groups: int, channels: Sequence[int]) -> int:
    """Number of merged groups: the kernels compute several groups of a convolution as one, with zeros in its weights, so that its channels
    ``(in, out)`` fill a vector."""
    sizes = (size for size in range(1, groups + 1) if groups % size == 0 and size * min(channels) >= LANES)
    return groups // next(sizes, groups)


def _blocks(weights: torch.Tensor, shape: Sequence[int], groups: int) -> torch.Tensor:
    """A view of merged weights without their zeros, ``(merged, out, in, rings, groups per merged group)``."""
    split = (len(weights), groups // len(weights), shape[0] // groups, groups // len(weights), *shape[1:])
    return weights.view(split).diagonal(dim1=1, dim2=3)


def merge_groups(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Weights ``(out_channels, in_channels / groups, rings)`` as weights of merged groups, contiguous ``(merged, out, in, rings)``."""
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
    """The inverse of :func:`merge_groups`; returns weights of a shape."""
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
    """Gradients of ``x``, ``weight`` and ``basis`` of :func:`write_products` from the result's ``gradient``, ``None`` if not needed."""
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
