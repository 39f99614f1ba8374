"""Shared code of the custom operations of harmonic layers: indices of each order, arguments, and gradients of gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from monai_gmr.ops.call import Call, RingKernel
from monai_gmr.ops.harmonic_conv import response_invariants
from monai_gmr.ops.ring_conv import dense_shell_conv
from monai_gmr.ops.ring_gradients import dense_operation


class Order(NamedTuple):
    """Sizes and indices of one order that has channels."""

    norms: int
    products: int
    components: int
    channels: slice  # of the layer
    rows: slice  # of ``angular_weight``
    own: slice  # of the rows of ``angular``
    responses: slice  # of the columns of ``linear``


def orders_of(norms: Sequence[int], products: Sequence[int], components: Sequence[int]) -> Iterator[Order]:
    """Sizes and indices of each order that has channels."""
    channel = row = component = response = 0
    for n, m, count in zip(norms, products, components):
        if size := n + m:
            places = ((channel, size), (row, size), (component, count), (response, size * count))
            yield Order(n, m, count, *(slice(first, first + length) for first, length in places))
            channel, row, response = channel + size, row + (size if count else 0), response + size * count
        component += count


def parts_of(x: torch.Tensor, groups: int, axis: int = 0) -> Sequence[torch.Tensor]:
    """Splits an axis into groups; a single group is the tensor itself, so that its gradient is not copied."""
    return (x,) if groups == 1 else x.chunk(groups, axis)


def group_arguments(call: Call, kernel: RingKernel) -> list[dict[str, Any]]:
    """Arguments of the custom operation of a harmonic layer of stride 1, except the image, for each group of channels.

    ``weight`` ``(channels, in_channels, rings)`` and ``basis`` ``(rings, num_shells)`` belong to order 0, ``angular_weight``
    ``(channels, in_channels, num_shells)`` and the constant factors ``angular`` ``(components, taps)`` to the other orders; ``norms``,
    ``products`` and ``components`` have one number per order, as in :func:`~monai_gmr.ops.invariants.invariants`; ``linear``
    ``(channels, responses of the orders above 0)`` and ``chiral`` ``(channels,)`` are the arguments of
    :func:`~monai_gmr.ops.kept_terms.add_kept_terms` for one group.
    """
    assert call.orders is not None
    assert kernel.angular is not None
    channels, components = call.orders.channels(), call.orders.components
    profiles = kernel.basis[:, :, : kernel.num_shells].unbind()
    harmonics = kernel.angular.split([max(count, 1) for count in components])
    angular = torch.cat([kernel.angular[:0], *(rows for rows, count in zip(harmonics, components) if count)])
    none = [None] * call.groups
    biases = none if kernel.bias is None else parts_of(kernel.bias, call.groups)
    kept = zip(*(none if factors is None else factors for factors in (kernel.linear, kernel.chiral)))
    arguments = []
    for weight, bias, (linear, chiral) in zip(parts_of(kernel.weight, call.groups), biases, kept):
        rows = list(zip(weight.split(channels), profiles, components))
        centred = [(row, profile) for row, profile, count in rows if count == 0]
        radial_weight, radial = centred[0] if centred else (weight[:0], profiles[0])
        others = [row.to(profile.dtype) @ profile for row, profile, count in rows if count]
        own = {
            "weight": radial_weight,
            "basis": radial.float(),
            "angular_weight": torch.cat(others or [weight[:0].to(radial.dtype) @ radial]),
            "linear": linear,
            "chiral": chiral,
            "shells": kernel.shells,
            "angular": angular,
            "bias": bias,
            "padding": list(call.padding),
            "dilation": list(call.dilation),
            **{name: list(value) for name, value in call.orders._asdict().items()},
        }
        arguments.append(own)
    return arguments


def dense_harmonic_operation(
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
) -> torch.Tensor:
    """The layer computed by dense convolutions, for gradients of gradients; takes the arguments that :func:`group_arguments` returns."""
    geometry: dict[str, Any] = {"stride": [1] * shells.dim(), "padding": padding, "dilation": dilation, "groups": 1}
    responses = []
    for order in orders_of(norms, products, components):
        if order.components == 0:
            responses.append(dense_operation(x, weight, basis, shells, padding, dilation))
        else:
            own = dense_shell_conv(x, angular_weight[order.rows], shells, angular[order.own], **geometry)
            responses.append(own.flatten(1, 2))
    linear, chiral = (None if each is None else each.unsqueeze(0) for each in (linear, chiral))
    image = torch.cat(responses, dim=1)
    return response_invariants(image, norms, products, components, 1, shells.dim(), linear=linear, chiral=chiral)
