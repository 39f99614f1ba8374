"""Radial convolutions on backend "cpp": sums over shells, products over channels, tile by tile, in the kernels of ``csrc/ring_conv.cpp``.

Operations for each output voxel, with ``T`` taps, ``S`` shells, ``R`` rings, ``C`` input and ``O`` output channels, of a group where there
are several:

* forward: ``A C`` additions, ``R S C`` + ``R C O`` multiplications, against ``k^d C O`` of a dense kernel. ``A`` is ``T``, or less where
  many lines of the window are alike, which are then added first (3D: 64 for 93 at k=5, 124 for 251 at k=7). The rings' sums of a tile
  stay in the second cache level; input and output pass through memory once.
* backward: the products with the input once more, ``R C O``; ``A O`` additions and ``R S O`` multiplications for the rings' sums of the
  gradient (a radial kernel is its own adjoint), and as many for the gradient of the basis; ``2 R C O`` for both gradients of the product.
  Where the input needs no gradient and has fewer channels, the sums are over the input: ``A C`` and ``R S C``.

A bias is added in the product. Saved for the backward pass are input, weight and basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from monai_gmr.ops.call import output_sizes
from monai_gmr.ops.cpu.ring_kernels import LANES, pad_columns, ring_gradients, ring_products
from monai_gmr.ops.cpu.tiles import Tiles, Window
from monai_gmr.ops.memory_format import follow_format, image_of
from monai_gmr.ops.ring_gradients import dense_operation, present, register_gradients


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
    """Weights ``(out_channels, in_channels / groups, rings)`` as those of merged groups, ``(merged groups, out, in, rings)``."""
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
    return _blocks(weights.contiguous(), shape, groups).movedim(-1, 1).reshape(*shape)


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
    matrices = pad_columns(weights.permute(0, 3, 2, 1).flatten(1, 2))
    bias = None if bias is None else pad_columns(bias.unflatten(0, weights.shape[:2]))
    for tile in tiles:
        rows = result[tile.samples, tile.rows]
        ring_products(tiles.input_of(tile), window, basis, matrices, bias, result=rows, channels=channels)


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
        image, other, margins, weights = x, gradient, list(padding), weights.transpose(1, 2)
    rings, channels, columns = basis.shape[0], *weights.shape[1:3]
    tiles = Tiles(image, margins, window, image.shape[-1])
    other = other.contiguous()
    matrices = pad_columns(weights.permute(0, 3, 1, 2).flatten(1, 2))
    transposed = pad_columns(weights.permute(0, 2, 3, 1)).flatten(2)
    threads = torch.get_num_threads()
    x_gradient = torch.empty_like(other) if needed[0] else None
    products = matrices.new_zeros((threads, *matrices.shape)) if needed[1] else None
    basis_sums = matrices.new_zeros((threads, *basis.T.shape), dtype=torch.float64) if needed[2] else None
    for tile in tiles:
        own = None if x_gradient is None else x_gradient[tile.samples, tile.rows][tile.new]
        rows = other[tile.samples, tile.rows][tile.new]
        gradients = (own, products, basis_sums)
        image = tiles.input_of(tile)[tile.new]
        ring_gradients(image, window, basis, rows, matrices, transposed, gradients=gradients)
    weight_gradient = None
    if products is not None:
        merged = products.sum(0)[..., :columns].unflatten(1, (rings, channels))
        merged = merged.permute((0, 3, 2, 1) if swapped else (0, 2, 3, 1))
        weight_gradient = split_groups(merged, weight.shape, groups)
    return [x_gradient, weight_gradient, None if basis_sums is None else basis_sums.sum(0).T.float().contiguous()]


@torch.library.custom_op("monai_gmr::cpp_ring_conv", mutates_args=())
def cpp_ring_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    shells: torch.Tensor,
    bias: torch.Tensor | None,
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """:func:`~monai_gmr.ops.ring_conv` of stride 1, with gradients for ``x``, ``weight``, ``basis`` and ``bias``: of a batch, float32, with
    shells that are symmetric about the centre and a basis ``(rings, num_shells)`` beyond which they count as zero."""
    window = Window.of(shells, basis.shape[1], dilation)
    sizes = output_sizes(x.shape[2:], shells.shape, [1] * shells.dim(), padding, dilation)
    y = x.new_empty((x.shape[0], *sizes, weight.shape[0]))
    geometry: dict[str, Any] = {"padding": padding, "channels": slice(0, weight.shape[0]), "groups": groups}
    write_products(x.movedim(1, -1), weight, basis, window, bias, result=y, **geometry)
    return follow_format(image_of(y), x)


@torch.library.custom_op("monai_gmr::cpp_ring_conv_backward", mutates_args=())
def _gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    shells: torch.Tensor,
    padding: list[int],
    dilation: list[int],
    groups: int,
    needed: list[bool],
) -> list[torch.Tensor]:
    """Gradients of input, weight and basis."""
    window = Window.of(shells, basis.shape[1], dilation)
    last, x_last = gradient.movedim(1, -1), x.movedim(1, -1)
    image, *others = product_gradients(last, x_last, weight, basis, window, padding, needed=needed, groups=groups)
    return present([None if image is None else follow_format(image_of(image), x), *others], x)


register_gradients(cpp_ring_conv, _gradients, dense_operation)
