"""Harmonic layers on backend "cpp": all orders as one operation; the angular ones run in the kernels of ``csrc/harmonic_conv.cpp``.

Operations for each output voxel of an order with ``m`` components, ``T`` taps, ``S`` shells whose factors are not all zero, ``C`` input
and ``O`` output channels of the order:

* forward: the product over channels comes first, ``S C O``, because an order has few output channels; mirrored taps, whose factors are the
  same up to a sign, are added, ``T O / 2``, and multiplied, ``T m O / 2``; a dense kernel takes ``k^d m C O``.
* backward: the forward operations again; gradients through the mirrored window, at most ``T m O``; then both gradients of the product,
  ``2 S C O``.
* linear terms of a layer that keeps a subgroup: ``m O`` times the number of scalars forward, and twice as many backward.

Input, weights and basis are saved for backward, not the responses, which are 1.5 (2D) or 2.5 (3D) times as large as the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from monai_gmr.ops.call import output_sizes
from monai_gmr.ops.cpu.harmonic_kernels import AngularOrder, KeptTerms
from monai_gmr.ops.cpu.memory_format import image_like, voxel_rows
from monai_gmr.ops.cpu.ring_kernels import product_gradients, write_products
from monai_gmr.ops.cpu.tiles import Window
from monai_gmr.ops.harmonic_operation import Order, dense_harmonic_operation, orders_of
from monai_gmr.ops.ring_gradients import present, register_gradients

OrdersAndKernels = tuple[tuple[Order, AngularOrder | None], ...]


@lru_cache(maxsize=256)
def _make_orders(window: Window, angular: tuple, padding: tuple, *sizes: tuple) -> OrdersAndKernels:
    """Orders that have channels, each with its kernels; ``None`` for order 0, which comes first because it overwrites the result."""
    found = []
    for order in sorted(orders_of(*sizes), key=lambda order: order.components):
        own = angular[order.own]
        found.append((order, AngularOrder(window, own, order.norms, order.products, padding) if own else None))
    return tuple(found)


def _orders(window: Window, angular: torch.Tensor, padding: Sequence[int], *sizes: Sequence[int]) -> OrdersAndKernels:
    """:func:`_make_orders`, cached for equal layers."""
    return _make_orders(window, tuple(map(tuple, angular.tolist())), tuple(padding), *map(tuple, sizes))


def _kept(order: Order, linear: torch.Tensor | None, chiral: torch.Tensor | None) -> KeptTerms:
    """An order's columns of the layer's factors, or of their gradients."""
    return KeptTerms(
        None if linear is None else linear[:, order.responses], None if chiral is None else chiral[order.channels]
    )


@torch.library.custom_op("monai_gmr::cpp_harmonic_conv", mutates_args=())
def cpp_harmonic_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    angular_weight: torch.Tensor,
    linear: torch.Tensor | None,
    chiral: torch.Tensor | None,
    shells: torch.Tensor,
    angular: torch.Tensor,
    bias: torch.Tensor | None,
    padding: list[int],
    dilation: list[int],
    norms: list[int],
    products: list[int],
    components: list[int],
) -> torch.Tensor:
    """A harmonic layer of stride 1 and one group, with gradients for ``x``, both weights, ``basis``, ``linear``, ``chiral`` and ``bias``.

    Arguments as :func:`~monai_gmr.ops.harmonic_operation.group_arguments` makes them.
    """
    window = Window.of(shells, basis.shape[1], dilation)
    sizes = output_sizes(x.shape[2:], shells.shape, [1] * shells.dim(), padding, dilation)
    image = voxel_rows(x)
    # each order adds its linear terms to all channels
    make = x.new_empty if linear is None else x.new_zeros
    y = make((x.shape[0], *sizes, sum(norms) + sum(products)))
    angular_weight, linear = angular_weight.contiguous(), None if linear is None else linear.contiguous()
    for order, kernels in _orders(window, angular, padding, norms, products, components):
        channels = order.channels
        shift = None if bias is None else bias[channels]
        if kernels is None:
            write_products(image, weight, basis, window, shift, padding=padding, result=y, channels=channels)
            continue
        kept = _kept(order, linear, chiral)
        kernels.write_scalars(image, angular_weight[order.rows], shift, y, channels, kept)
    return image_like(y, x)


@torch.library.custom_op("monai_gmr::cpp_harmonic_conv_backward", mutates_args=())
def _gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    angular_weight: torch.Tensor,
    linear: torch.Tensor | None,
    chiral: torch.Tensor | None,
    shells: torch.Tensor,
    angular: torch.Tensor,
    padding: list[int],
    dilation: list[int],
    norms: list[int],
    products: list[int],
    components: list[int],
    needed: list[bool],
) -> list[torch.Tensor]:
    """Gradients of input, weight, basis, angular weight, linear and chiral factors; those that are not needed are empty."""
    window = Window.of(shells, basis.shape[1], dilation)
    image, last = voxel_rows(x), voxel_rows(gradient)
    angular_weight, linear = angular_weight.contiguous(), None if linear is None else linear.contiguous()
    image_gradient = None
    pairs = zip((weight, basis, angular_weight, linear, chiral), needed[1:])
    sums = [torch.zeros_like(each) if asked and each is not None else None for each, asked in pairs]
    radial, others = sums[:2], sums[2:]
    for order, kernels in _orders(window, angular, padding, norms, products, components):
        if kernels is None:
            if any(needed[:3]):
                own_gradient = last[..., order.channels]
                geometry: dict[str, Any] = {"padding": padding, "needed": needed[:3]}
                image_gradient, *radial = product_gradients(own_gradient, image, weight, basis, window, **geometry)
        elif needed[0] or any(needed[3:]):
            if needed[0] and image_gradient is None:
                image_gradient = torch.zeros_like(image)
            own_rows = None if others[0] is None else others[0][order.rows]
            kernels.add_gradients(
                image,
                angular_weight[order.rows],
                last,
                order.channels,
                image_gradient=image_gradient,
                weight_gradient=own_rows,
                kept=_kept(order, linear, chiral),
                kept_gradients=_kept(order, *others[1:]),
            )
    image_gradient = None if image_gradient is None else image_like(image_gradient, x)
    return present([image_gradient, *radial, *others], x)


register_gradients(cpp_harmonic_conv, _gradients, dense_harmonic_operation, count=6, constants=2, weights=(1, 3))
