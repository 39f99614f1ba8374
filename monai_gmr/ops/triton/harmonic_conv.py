"""Harmonic layers on backend "triton", for GPUs: from an image to scalars, and back, as one operation.

Order 0 is a radial convolution, see :mod:`monai_gmr.ops.triton.ring_conv`. For each output voxel of another order with ``m`` components,
``T`` taps, ``S`` shells, ``C`` input and ``O`` output channels:

* forward: one kernel; products over channels ``T C O`` on tensor cores, which all components share, then ``T m O`` multiplications; a dense
  kernel takes ``k^d m C O``. The responses stay in registers: the kernel only reads the image and writes the scalars.
* backward: the responses again, slab by slab of the first axis, and from them their gradients, which stay in memory for the planes of a
  slab and of the window's reach; then ``T m O`` additions for each of the gradients of image and weights, and products ``S C O``.
* linear terms of a layer that keeps a subgroup: a product of a slab's responses with the factors, computed by the library.

Slabs are so small that their gradients take at most half of the memory of the image. Input, weights and basis are saved for backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from monai_gmr.ops.call import output_sizes
from monai_gmr.ops.harmonic_operation import Order, dense_harmonic_operation, orders_of
from monai_gmr.ops.memory_format import follow_format, image_of
from monai_gmr.ops.ring_gradients import present, register_gradients
from monai_gmr.ops.slabs import Slab
from monai_gmr.ops.triton.angular_orders import AngularOrders, Planes
from monai_gmr.ops.triton.layout import layout_of
from monai_gmr.ops.triton.ring_conv import (
    as_volume,
    product_gradients,
    rings_of,
    slabs_of,
    voxels_of,
    write_products,
)

# least number of voxels of a part of a slab whose products are accumulated in one precision
LEAST_PART = 1024


def _own(factors: torch.Tensor | None, order: Order) -> torch.Tensor | None:
    """An order's factors, float32."""
    return None if factors is None else factors[order.channels].float().contiguous()


@torch.library.custom_op("monai_gmr::triton_harmonic_conv", mutates_args=())
def triton_harmonic_conv(
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

    Takes the arguments that :func:`~monai_gmr.ops.harmonic_operation.group_arguments` returns; ``x`` and the result are float32, float16 or
    bfloat16, and all sums are computed in float32.
    """
    sizes = output_sizes(x.shape[2:], shells.shape, [1] * shells.dim(), padding, dilation)
    volume = as_volume(x)
    y = x.new_empty((x.shape[0], *sizes, sum(norms) + sum(products)))
    scalars = y.view(-1, y.shape[-1])
    for order in orders_of(norms, products, components):
        if order.components == 0:
            rings = rings_of(shells, basis, padding, dilation, sizes, mirrored=False)
            shift = None if bias is None else bias[order.channels].to(x.dtype)
            write_products(volume, rings, weight.to(x.dtype), shift, scalars[:, order.channels])
    layout = layout_of(norms, products, components, chiral is not None, x.device)
    if layout.parts and scalars.numel():
        image = volume.view(len(x), *x.shape[2:], x.shape[1])
        own = AngularOrders(image, layout, angular_weight, angular, sizes).set_window(shells, padding, dilation)
        _write_angular(own, scalars, bias, linear, chiral)
    return follow_format(image_of(y), x)


def _write_angular(
    own: AngularOrders,
    scalars: torch.Tensor,
    bias: torch.Tensor | None,
    linear: torch.Tensor | None,
    chiral: torch.Tensor | None,
) -> None:
    """Fills the columns of the orders above 0, and adds the linear terms to all columns."""
    layout, samples, responses = own.layout, len(own.image), None
    slabs = [Slab(0, samples, 0, own.out_sizes[0])]
    if linear is not None:
        slabs = slabs_of(samples, own.out_sizes, layout.responses, own.channels)
        factors = layout.pack_linear(linear, scalars.dtype).T
        most = max(each.samples * each.rows for each in slabs) * math.prod(own.out_sizes[1:])
        responses = scalars.new_empty((most, layout.responses))
    for slab in slabs:
        voxels = voxels_of(slab, own.out_sizes)
        here = None if responses is None else responses[: voxels.stop - voxels.start]
        for part in layout.parts:
            terms = {"bias": _own(bias, part.order), "chiral": _own(chiral, part.order), "responses": here}
            own.run_order(part, slab, scalars, planes=None, **terms)
        if here is not None:
            scalars[voxels].addmm_(here, factors)


def _new_planes(own: AngularOrders, slabs: Sequence[Slab]) -> Iterator[tuple[Slab, Slab]]:
    """For each slab of the image, the slab of the result whose gradients it needs in addition to those of earlier slabs; can be empty."""
    done = 0
    for slab in slabs:
        if slab.first_row == 0:
            done = max(0, own.padding - own.reach)
        last = max(done, min(own.out_sizes[0], slab.first_row + slab.rows + own.padding))
        yield slab, Slab(slab.first_sample, slab.samples, done, last - done)
        done = last


def _sum_of_products(left: torch.Tensor, right: torch.Tensor, planes: int) -> torch.Tensor:
    """``left.T @ right`` of two arrays with equally many rows, in float32; half precision rounds only once for each of several parts."""
    parts = max((n for n in range(1, planes + 1) if planes % n == 0 and len(left) // n >= LEAST_PART), default=1)
    left, right = (each.unflatten(0, (parts, -1)) for each in (left, right))
    return torch.bmm(left.transpose(1, 2), right).sum(0, dtype=torch.float32)


def _angular_gradients(
    own: AngularOrders,
    gradient: torch.Tensor,
    linear: torch.Tensor | None,
    chiral: torch.Tensor | None,
    image_gradient: torch.Tensor | None,
    adds: bool,
    needed: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Gradients of the angular weight, linear and chiral factors, from the scalars' ``gradient`` ``(batch, *sizes, outputs)``; fills
    ``image_gradient`` ``(voxels, in_channels)``, or adds to it if ``adds``."""
    layout, image, outputs = own.layout, own.image, gradient.shape[-1]
    slabs = slabs_of(len(image), own.sizes, layout.responses, own.channels)
    plane = math.prod(own.out_sizes[1:])
    count = min(own.out_sizes[0], max(slab.rows for slab in slabs) + own.reach)
    samples = max(slab.samples for slab in slabs)
    planes = Planes(image.new_empty((samples * count * plane, layout.responses)), count)
    factors = None if linear is None else layout.pack_linear(linear, image.dtype)
    zeros = partial(torch.zeros, dtype=torch.float32, device=image.device)
    weight_gradient = zeros((own.shells, own.channels, layout.width)) if needed[0] else None
    linear_gradient = zeros((outputs, layout.responses)) if needed[1] and linear is not None else None
    chiral_gradient = zeros(outputs) if needed[2] and chiral is not None else None
    scalars = gradient.view(-1, outputs)
    for slab, fresh in _new_planes(own, slabs):
        voxels = fresh.samples * fresh.rows * plane
        responses = None if linear_gradient is None else image.new_empty((voxels, layout.responses))
        for part in layout.parts if voxels else ():
            terms = {"chiral": _own(chiral, part.order), "linear": factors, "responses": responses}
            turned = own.run_order(part, fresh, scalars, **terms, planes=planes)
            if chiral_gradient is not None and turned is not None:
                chiral_gradient[part.order.channels][part.order.norms :].add_(turned)
        if linear_gradient is not None and responses is not None and voxels:
            rows = gradient.view(len(image), own.out_sizes[0], plane, outputs)
            rows = rows[fresh.first_sample :][: fresh.samples, fresh.first_row :][:, : fresh.rows]
            linear_gradient += _sum_of_products(rows.reshape(-1, outputs), responses, fresh.samples * fresh.rows)
        if image_gradient is not None:
            own.add_image_gradient(slab, planes, adds, image_gradient)
        if weight_gradient is not None:
            sums = [own.weight_gradient(part, slab, planes) for part in layout.parts]
            weight_gradient += torch.cat(sums, dim=2)
    return [
        None if weight_gradient is None else layout.unpack(weight_gradient),
        None if linear_gradient is None else layout.unpack_linear(linear_gradient),
        chiral_gradient,
    ]


@torch.library.custom_op("monai_gmr::triton_harmonic_conv_backward", mutates_args=())
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
    volume, last = as_volume(x), as_volume(gradient)
    tensors = (x, weight, basis, angular_weight, linear, chiral)
    # zeros for orders that the layer does not have, and for empty images
    found: list[torch.Tensor | None] = [
        torch.zeros_like(each) if asked and each is not None else None for each, asked in zip(tensors[1:], needed[1:])
    ]
    image_gradient, adds = None, False
    for order in orders_of(norms, products, components):
        if order.components == 0:
            rings = rings_of(shells, basis, padding, dilation, x.shape[2:], mirrored=True)
            own_gradient = last[..., order.channels]
            first = product_gradients(own_gradient, volume, rings, weight.to(x.dtype), needed[:3])
            image_gradient, found[:2], adds = first[0], first[1:], True
    if needed[0] and image_gradient is None:
        image_gradient = torch.empty_like(volume)
    layout = layout_of(norms, products, components, chiral is not None, x.device)
    if layout.parts and gradient.numel() and (needed[0] or any(needed[3:])):
        image = volume.view(len(x), *x.shape[2:], x.shape[1])
        own = AngularOrders(image, layout, angular_weight, angular, gradient.shape[2:])
        flat = None if image_gradient is None else image_gradient.view(-1, x.shape[1])
        own.set_window(shells, padding, dilation)
        found[2:] = _angular_gradients(own, last, linear, chiral, image_gradient=flat, adds=adds, needed=needed[3:])
    if image_gradient is not None:
        image_gradient = follow_format(image_of(image_gradient.view(len(x), *x.shape[2:], x.shape[1])), x)
    others = [None if each is None or like is None else each.to(like.dtype) for each, like in zip(found, tensors[1:])]
    return present([image_gradient, *others], x)


register_gradients(triton_harmonic_conv, _gradients, dense_harmonic_operation, count=6, constants=2, weights=(1, 3))
