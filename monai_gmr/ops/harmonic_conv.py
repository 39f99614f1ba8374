"""Harmonic convolution: radial profiles times harmonics, reduced to scalars; and its reference, which builds a kernel of all responses."""

import torch
from monai.data import MetaTensor

from monai_gmr.ops.backend import choose_backend
from monai_gmr.ops.call import Orders, RingKernel
from monai_gmr.ops.invariants import invariants
from monai_gmr.ops.kept_terms import add_kept_terms
from monai_gmr.ops.scalars import fused_scalars
from monai_gmr.utils import on_plain_tensor


def harmonic_tap_basis(
    profiles: torch.Tensor, shells: torch.Tensor, angular: torch.Tensor, profile: torch.Tensor
) -> torch.Tensor:
    """Functions on taps, ``(components, rings, taps)``, from profiles ``(orders, rings, shells)``, harmonics ``(components, taps)`` and the
    index of each component's profile."""
    return profiles.index_select(0, profile).index_select(2, shells.flatten()) * angular.unsqueeze(1)


def responses_kernel(
    weight: torch.Tensor, basis: torch.Tensor, channel: torch.Tensor, component: torch.Tensor, groups: int
) -> torch.Tensor:
    """Kernel rows of all responses, ``(groups * responses, in_channels / groups, taps)``, dtype of ``weight``, from a basis of
    :func:`harmonic_tap_basis` and the tables of :class:`~monai_gmr.ops.ResponseTables`."""
    rows = weight.to(basis.dtype).unflatten(0, [groups, -1]).index_select(1, channel)
    return torch.matmul(rows, basis.index_select(0, component)).flatten(0, 1).to(weight.dtype)


def response_invariants(
    responses: torch.Tensor,
    norms: list[int],
    products: list[int],
    components: list[int],
    groups: int,
    dims: int,
    linear: torch.Tensor | None = None,
    chiral: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`~monai_gmr.ops.invariants.invariants` of responses ``(batch, groups * responses, *spatial)`` or without the batch, plus the
    terms of :func:`~monai_gmr.ops.kept_terms.add_kept_terms`."""
    axis, sizes = responses.dim() - dims - 1, list(responses.shape)
    grouped = responses.flatten(axis + 1).unflatten(axis, [groups, sizes[axis] // groups])
    if axis == 0:
        grouped = grouped.unsqueeze(0)
    if torch.jit.is_scripting():
        output = invariants(grouped, norms, products, components)
        output = add_kept_terms(output, grouped, norms, products, components, linear=linear, chiral=chiral)
    else:
        output = fused_scalars(grouped, linear, chiral, norms, products, components)
    return output.reshape(sizes[:axis] + [groups * (sum(norms) + sum(products))] + sizes[axis + 1 :])


def harmonic_conv(
    x: torch.Tensor,
    kernel: RingKernel,
    orders: Orders,
    *,
    stride: tuple[int, ...],
    padding: list[int],
    dilation: tuple[int, ...],
    groups: int = 1,
) -> torch.Tensor:
    """Convolves with radial profiles times harmonics, and reduces the responses to scalars that are unchanged by rotations.

    Args:
        x: ``(batch, in_channels, *spatial)`` or without the batch.
        kernel: weights, profiles ``(orders, rings, shells)``, harmonics of all orders, and ``responses``; with ``linear`` and ``chiral``
            terms the scalars are unchanged only under a subgroup.
        orders: channels and components of each order.
        stride, padding, dilation: in voxels, one per axis.
        groups: blocks of channels that do not mix.

    Returns:
        ``(batch, out_channels, *spatial_out)``, channels sorted by group, then order.

    Example:
        >>> from monai_gmr.ops import ResponseTables
        >>> shells, angular = torch.tensor([1, 0, 1]), torch.tensor([[1.0, 1.0, 1.0], [-1.0, 0.0, 1.0]])
        >>> tables = ResponseTables(*[torch.tensor([0, 1])] * 3)
        >>> kernel = RingKernel(torch.ones(2, 1, 1), torch.ones(2, 1, 2), shells, angular=angular, responses=tables)
        >>> orders = Orders(norms=(1, 1), products=(0, 0), components=(0, 1))
        >>> x = torch.tensor([[[1.0, 2.0, 4.0]]])
        >>> harmonic_conv(x, kernel, orders, stride=(1,), padding=[0], dilation=(1,)).flatten()
        tensor([7.0000, 2.9900])
    """
    geometry = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    if isinstance(x, MetaTensor):
        return on_plain_tensor(harmonic_conv, x, kernel, orders, groups=groups, **geometry)
    backend, call, image = choose_backend(x, kernel, groups, orders=orders, **geometry)
    y = backend.harmonic_conv(call, image, kernel)
    return y if image is x else y[0]
