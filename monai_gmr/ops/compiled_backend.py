"""Backend "compiled": which convolutions run in kernels, and which are left to "dense"."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_gmr.ops.backends import register_backend
from monai_gmr.ops.compiled_conv import compiled_ring_conv
from monai_gmr.ops.compiled_harmonics import compiled_harmonic_conv
from monai_gmr.ops.harmonic_kernels import has_kernel
from monai_gmr.ops.kernels import has_kernels, takes_kernels
from monai_gmr.ops.ring_conv import dense_ring_conv, output_sizes


def _has_kernel(
    x: torch.Tensor,
    weight: torch.Tensor,
    shells: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> bool:
    """Whether there is a kernel for such a convolution; not for strides, groups, half precision, recorded graphs, ``torch.func``,
    windows without a centre, and images smaller than the window, of which the framework says what is wrong."""
    window = shells.flatten().tolist()
    if not takes_kernels(x) or weight.dtype != torch.float32 or max(stride) > 1 or groups > 1 or window != window[::-1]:
        return False
    sizes = output_sizes(x.shape[x.dim() - shells.dim() :], shells.shape, stride, padding, dilation)
    return min(sizes) > 0 and has_kernels()


def compiled_harmonics(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    angular_weight: torch.Tensor,
    shells: torch.Tensor,
    factors: torch.Tensor,
    bias: torch.Tensor | None,
    sizes: tuple[list[int], list[int], list[int]],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor | None:
    """A harmonic layer from channels to scalars, or ``None`` where there is no kernel for it.

    Args:
        x: ``(batch, in_channels, *spatial)`` or without the batch.
        weight, basis, angular_weight, shells, factors, bias: as in
            :func:`~monai_gmr.ops.compiled_harmonics.compiled_harmonic_conv`.
        sizes: norms, inner products and components of each order.
        stride, padding, dilation: in voxels, one an axis.
        groups: blocks of channels that do not see each other.
    """
    reach = [d * (k - 1) for d, k in zip(dilation, shells.shape)]
    fits = all(has_kernel(reach, *order, padding) for order in zip(*sizes) if order[2] > 0)
    if not fits or not _has_kernel(x, angular_weight, shells, stride, padding, dilation, groups):
        return None
    batched = x if x.dim() == shells.dim() + 2 else x[None]
    tensors = (batched, weight, basis.float(), angular_weight, shells, factors, bias)
    y = compiled_harmonic_conv(*tensors, *sizes, padding, dilation)
    return y if x.dim() == shells.dim() + 2 else y[0]


@register_backend("compiled", harmonics=compiled_harmonics)
def compiled_backend(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    shells: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    factors: torch.Tensor | None = None,
    live: int | None = None,
) -> torch.Tensor:
    """Backend "compiled": kernels; "dense" where there are none, and for components of angular factors, which layers do not ask for."""
    if factors is not None or not _has_kernel(x, weight, shells, stride, padding, dilation, groups):
        return dense_ring_conv(x, weight, basis, shells, bias, stride, padding, dilation, groups, factors)
    batched = x if x.dim() == shells.dim() + 2 else x[None]
    y = compiled_ring_conv(batched, weight, basis[:, :live].to(weight.dtype), shells, bias, padding, dilation)
    return y if x.dim() == shells.dim() + 2 else y[0]
