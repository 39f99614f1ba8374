"""Harmonic convolution, radial profiles times harmonics reduced to scalars, and its reference, which builds the kernel of all responses."""

import torch

from monai_gmr.ops.backend import select_backend
from monai_gmr.ops.call import Call, Orders, RingKernel
from monai_gmr.ops.invariants import fused_invariants, invariants
from monai_gmr.ops.memory_format import is_recorded


def harmonic_tap_basis(
    profiles: torch.Tensor, shells: torch.Tensor, angular: torch.Tensor, components: list[int]
) -> torch.Tensor:
    """Functions on taps of all components of all orders.

    Args:
        profiles: ``(2, rings, shells)``, radial profiles of order 0 and of the others.
        shells: integers of the window's shape, the shell of each tap.
        angular: ``(components, taps)``, harmonics of all orders.
        components: of each order, 0 for order 0, which has one row of ``angular``.

    Returns:
        ``(components, rings, taps)``.

    Example:
        >>> profiles, angular = torch.ones(2, 1, 2), torch.tensor([[1.0, 1.0, 1.0], [-1.0, 0.0, 1.0]])
        >>> harmonic_tap_basis(profiles, torch.tensor([1, 0, 1]), angular, [0, 1])[:, 0]
        tensor([[ 1.,  1.,  1.],
                [-1.,  0.,  1.]])
    """
    radial = profiles.index_select(2, shells.flatten())
    functions: list[torch.Tensor] = []
    for count, rows in zip(components, angular.split([max(count, 1) for count in components])):
        functions.append((radial[:1] if count == 0 else radial[1:]) * rows.unsqueeze(1))
    return torch.cat(functions)


def responses_kernel(
    weight: torch.Tensor, basis: torch.Tensor, channels: list[int], components: list[int], groups: int
) -> torch.Tensor:
    """Kernel rows of all responses: by group, order, channel, then component.

    Args:
        weight: ``(out_channels, in_channels / groups, rings)``.
        basis: ``(components, rings, taps)``, as :func:`harmonic_tap_basis` makes it.
        channels: of a group, in each order.
        components: of each order, 0 for order 0.
        groups: blocks of channels that do not see each other.

    Returns:
        ``(responses, in_channels / groups, taps)``, dtype of ``weight``.

    Example:
        >>> responses_kernel(torch.ones(2, 1, 1), torch.arange(6.0).reshape(3, 1, 2), [1, 1], [0, 2], 1)[:, 0]
        tensor([[0., 1.],
                [2., 3.],
                [4., 5.]])
    """
    rows = weight.to(basis.dtype).unflatten(0, [groups, -1]).split(channels, dim=1)
    functions = basis.split([max(count, 1) for count in components])
    kernels: list[torch.Tensor] = []
    for row, each in zip(rows, functions):
        if row.shape[1] > 0:
            kernels.append(torch.matmul(row.unsqueeze(2), each).flatten(1, 2))
    return torch.cat(kernels, dim=1).flatten(0, 1).to(weight.dtype)


def response_invariants(
    responses: torch.Tensor, norms: list[int], products: list[int], components: list[int], groups: int, dims: int
) -> torch.Tensor:
    """Norms and inner products over the components of each order; order 0 stays as it is.

    Args:
        responses: ``(batch, responses, *spatial)`` or without the batch, ordered as by :func:`responses_kernel`.
        norms, products, components: as :func:`~monai_gmr.ops.invariants.invariants` takes them.
        groups: blocks of channels that do not see each other.
        dims: number of spatial axes.

    Returns:
        ``(batch, out_channels, *spatial)``.
    """
    axis, sizes = responses.dim() - dims - 1, list(responses.shape)
    grouped = responses.flatten(axis + 1).unflatten(axis, [groups, sizes[axis] // groups])
    if axis == 0:
        grouped = grouped.unsqueeze(0)
    if torch.jit.is_scripting():
        output = invariants(grouped, norms, products, components)
    elif is_recorded(grouped):
        # compilers fuse it themselves
        output = invariants(grouped, norms, products, components)
    else:
        output = fused_invariants(grouped, norms, products, components)
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
    """Convolve with radial profiles times harmonics, and reduce the responses to scalars that no rotation changes.

    Args:
        x: ``(batch, in_channels, *spatial)`` or without the batch.
        kernel: weights, profiles ``(2, rings, shells)`` and harmonics of all orders.
        orders: channels and components of each order.
        stride, padding, dilation: in voxels, one an axis.
        groups: blocks of channels that do not see each other.

    Returns:
        ``(batch, out_channels, *spatial_out)``: by group, then order.

    Example:
        >>> shells, angular = torch.tensor([1, 0, 1]), torch.tensor([[1.0, 1.0, 1.0], [-1.0, 0.0, 1.0]])
        >>> kernel, orders = RingKernel(torch.ones(2, 1, 1), torch.ones(2, 1, 2), shells, None, angular), Orders((1, 1), (0, 0), (0, 1))
        >>> x = torch.tensor([[[1.0, 2.0, 4.0]]])
        >>> harmonic_conv(x, kernel, orders, stride=(1,), padding=[0], dilation=(1,)).flatten()
        tensor([7.0000, 2.9900])
    """
    geometry = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}
    call = Call.of_kernel(x, kernel, groups=groups, orders=orders, **geometry)
    return select_backend(call).harmonic_conv(call, x, kernel)
