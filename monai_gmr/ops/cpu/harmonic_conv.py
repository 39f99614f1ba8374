"""Harmonic layers on backend "cpp": all orders as one operation; the angular ones run in the kernels of ``csrc/harmonic_conv.cpp``.

Operations for each output voxel of an order with ``m`` components, with ``T`` taps, ``S`` shells whose factors are not all zero, ``C``
input and ``O`` output channels of the order:

* forward: the product over channels comes first, ``S C O``, for an order has few output channels; mirrored taps, whose factors are the same
  up to a sign, are added, ``T O / 2``, and multiplied, ``T m O / 2``, against ``k^d m C O`` of a dense kernel.
* backward: that again; the gradients go back through the mirrored window, at most ``T m O``, then both gradients of the product,
  ``2 S C O``.

Saved for the backward pass are input, weights and basis, not the responses, which are 1.5 (2D) or 2.5 (3D) times as large as the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from monai_gmr.ops.call import output_sizes
from monai_gmr.ops.cpu.harmonic_kernels import AngularOrder
from monai_gmr.ops.cpu.memory_format import image_like, voxel_rows
from monai_gmr.ops.cpu.ring_kernels import product_gradients, write_products
from monai_gmr.ops.cpu.tiles import Window
from monai_gmr.ops.invariants import invariants
from monai_gmr.ops.ring_conv import dense_shell_conv
from monai_gmr.ops.ring_gradients import dense_operation, present, register_gradients


def _orders(norms: Sequence[int], products: Sequence[int], components: Sequence[int]) -> Iterator[tuple]:
    """Of each order that has channels: norms, products, components; slices of the layer's channels, of the rows of ``angular_weight`` and
    of those of ``angular``."""
    channel = row = component = 0
    for n, m, count in zip(norms, products, components):
        if n + m:
            channels, rows = slice(channel, channel + n + m), slice(row, row + n + m)
            yield n, m, count, channels, rows, slice(component, component + count)
            channel, row = channel + n + m, row + (n + m if count else 0)
        component += count


def _rows(angular: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, angular.tolist()))


@torch.library.custom_op("monai_gmr::cpp_harmonic_conv", mutates_args=())
def cpp_harmonic_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    angular_weight: torch.Tensor,
    shells: torch.Tensor,
    angular: torch.Tensor,
    bias: torch.Tensor | None,
    padding: list[int],
    dilation: list[int],
    norms: list[int],
    products: list[int],
    components: list[int],
) -> torch.Tensor:
    """A harmonic layer of stride 1 and one group, with gradients for ``x``, both weights, ``basis`` and ``bias``.

    ``weight`` ``(channels, in_channels, rings)`` and ``basis`` as in :func:`~monai_gmr.ops.cpu.ring_conv.cpp_ring_conv` are of order 0,
    ``angular_weight`` ``(channels, in_channels, num_shells)`` and the constant factors ``angular`` ``(components, taps)`` of the others;
    ``norms``, ``products`` and ``components`` are those of each order, as :func:`~monai_gmr.ops.invariants.invariants` takes them.
    """
    window = Window.of(shells, basis.shape[1], dilation)
    sizes = output_sizes(x.shape[2:], shells.shape, [1] * shells.dim(), padding, dilation)
    image = voxel_rows(x)
    y = x.new_empty((x.shape[0], *sizes, sum(norms) + sum(products)))
    for n, m, count, channels, rows, own in _orders(norms, products, components):
        shift = None if bias is None else bias[channels]
        if count == 0:
            write_products(image, weight, basis, window, shift, padding=padding, result=y, channels=channels)
        else:
            order = AngularOrder(window, _rows(angular[own]), n, m, padding)
            order.write_scalars(image, angular_weight[rows], shift, y, channels)
    return image_like(y, x)


@torch.library.custom_op("monai_gmr::cpp_harmonic_conv_backward", mutates_args=())
def _gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    angular_weight: torch.Tensor,
    shells: torch.Tensor,
    angular: torch.Tensor,
    padding: list[int],
    dilation: list[int],
    norms: list[int],
    products: list[int],
    components: list[int],
    needed: list[bool],
) -> list[torch.Tensor]:
    """Gradients of input, weight, basis and angular weight; those that are not needed are empty."""
    window = Window.of(shells, basis.shape[1], dilation)
    image, last = voxel_rows(x), voxel_rows(gradient)
    orders = sorted(_orders(norms, products, components), key=lambda order: order[2])
    image_gradient = None
    radial: list[torch.Tensor | None] = [torch.zeros_like(each) for each in (weight, basis)]
    angular_gradient = torch.zeros_like(angular_weight) if needed[3] else None
    for n, m, count, channels, rows, own in orders:
        if count == 0:
            # it comes first, for it does not add to a gradient
            own_gradient = last[..., channels]
            geometry: dict[str, Any] = {"padding": padding, "needed": needed[:3]}
            image_gradient, *radial = product_gradients(own_gradient, image, weight, basis, window, **geometry)
        elif needed[0] or needed[3]:
            if needed[0] and image_gradient is None:
                image_gradient = torch.zeros_like(image)
            order = AngularOrder(window, _rows(angular[own]), n, m, padding)
            own_rows = None if angular_gradient is None else angular_gradient[rows]
            order.add_gradients(image, angular_weight[rows], last, channels, image_gradient, own_rows)
    image_gradient = None if image_gradient is None else image_like(image_gradient, x)
    return present([image_gradient, *radial, angular_gradient], x)


def _dense(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    angular_weight: torch.Tensor,
    shells: torch.Tensor,
    angular: torch.Tensor,
    padding: list[int],
    dilation: list[int],
    *sizes: list[int],
) -> torch.Tensor:
    """The layer by dense convolutions, for gradients of gradients."""
    results = []
    for n, m, count, _, rows, own in _orders(*sizes):
        if count == 0:
            results.append(dense_operation(x, weight, basis, shells, padding, dilation))
            continue
        geometry: dict[str, Any] = {"stride": [1] * shells.dim(), "padding": padding, "dilation": dilation, "groups": 1}
        responses = dense_shell_conv(x, angular_weight[rows], shells, angular[own], **geometry)
        scalars = invariants(responses.flatten(3).flatten(1, 2)[:, None], [n], [m], [count])[:, 0]
        results.append(scalars.unflatten(-1, responses.shape[3:]))
    return torch.cat(results, dim=1)


register_gradients(cpp_harmonic_conv, _gradients, _dense, count=4)
