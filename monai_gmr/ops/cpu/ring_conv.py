"""Radial convolutions on backend "cpp": sums over shells, products over channels, tile by tile, in the kernels of ``csrc/ring_conv.cpp``.

Operations for each output voxel, with ``T`` taps, ``S`` shells, ``R`` rings, ``C`` input and ``O`` output channels (of one group):

* forward: ``A C`` additions, ``R S C`` + ``R C O`` multiplications; a dense kernel takes ``k^d C O``. ``A`` is ``T``, or less if many
  lines of the window are equal, which are then added first (3D: 64 instead of 93 at k=5, 124 instead of 251 at k=7). The rings' sums of a
  tile stay in the second cache level; input and output pass through memory once.
* backward: the products with the input again, ``R C O``; ``A O`` additions and ``R S O`` multiplications for the rings' sums of the
  gradient (a radial kernel is its own adjoint), and as many for the gradient of the basis; ``2 R C O`` for both gradients of the product.
  If the input needs no gradient and has fewer channels, the sums are over the input: ``A C`` and ``R S C``.

A bias is added in the product. Input, weight and basis are saved for backward.
"""

from __future__ import annotations

from typing import Any

import torch

from monai_gmr.ops.call import output_sizes
from monai_gmr.ops.cpu.memory_format import image_like, voxel_rows
from monai_gmr.ops.cpu.ring_kernels import product_gradients, write_products
from monai_gmr.ops.cpu.tiles import Window
from monai_gmr.ops.ring_gradients import dense_operation, present, register_gradients


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
    """:func:`~monai_gmr.ops.ring_conv` of stride 1, with gradients for ``x``, ``weight``, ``basis`` and ``bias``. Supports batches in
    float32 and shells that are symmetric about the centre; shells beyond the basis ``(rings, num_shells)`` count as zero."""
    window = Window.of(shells, basis.shape[1], dilation)
    sizes = output_sizes(x.shape[2:], shells.shape, [1] * shells.dim(), padding, dilation)
    y = x.new_empty((x.shape[0], *sizes, weight.shape[0]))
    geometry: dict[str, Any] = {"padding": padding, "channels": slice(0, weight.shape[0]), "groups": groups}
    write_products(voxel_rows(x), weight, basis, window, bias, result=y, **geometry)
    return image_like(y, x)


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
    last, x_last = voxel_rows(gradient), voxel_rows(x)
    image, *others = product_gradients(last, x_last, weight, basis, window, padding, needed=needed, groups=groups)
    return present([None if image is None else image_like(image, x), *others], x)


register_gradients(cpp_ring_conv, _gradients, dense_operation)
