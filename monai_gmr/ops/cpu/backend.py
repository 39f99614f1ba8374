"""Backend "cpp": which convolutions run in kernels, and which are left to "dense"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from monai_gmr.ops.backend import register_backend
from monai_gmr.ops.cpu.harmonic_conv import cpp_harmonic_conv
from monai_gmr.ops.cpu.harmonic_kernels import supports_order
from monai_gmr.ops.cpu.library import supports
from monai_gmr.ops.cpu.ring_conv import cpp_ring_conv
from monai_gmr.ops.memory_format import has_channels_last
from monai_gmr.ops.ring_conv import dense_ring_conv, output_sizes


def _has_kernel(x: torch.Tensor, weight: torch.Tensor, shells: torch.Tensor, sizes: Sequence[int]) -> bool:
    """Whether there is a kernel for such a convolution; not for half precision, recorded graphs, ``torch.func``, windows without a centre,
    and images smaller than the window, of which the framework says what is wrong."""
    window = shells.flatten().tolist()
    if not supports(x) or weight.dtype != torch.float32 or window != window[::-1]:
        return False
    return min(sizes) > 0


def _sizes(
    x: torch.Tensor, shells: torch.Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    return output_sizes(x.shape[x.dim() - shells.dim() :], shells.shape, stride, padding, dilation)


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
) -> torch.Tensor | None:
    """A harmonic layer of one group from channels to scalars, or ``None`` where there is no kernel for it.

    Args:
        x: ``(batch, in_channels, *spatial)`` or without the batch.
        weight, basis, angular_weight, shells, factors, bias: as in
            :func:`~monai_gmr.ops.cpu.harmonic_conv.cpp_harmonic_conv`.
        sizes: norms, inner products and components of each order.
        stride, padding, dilation: in voxels, one an axis.
    """
    reach = [d * (k - 1) for d, k in zip(dilation, shells.shape)]
    fits = all(supports_order(reach, *order, padding) for order in zip(*sizes) if order[2] > 0)
    sizes_out = _sizes(x, shells, stride, padding, dilation)
    if not fits or max(stride) > 1 or not _has_kernel(x, angular_weight, shells, sizes_out):
        return None
    batched = x if x.dim() == shells.dim() + 2 else x[None]
    tensors = (batched, weight, basis.float(), angular_weight, shells, factors, bias)
    y = cpp_harmonic_conv(*tensors, *sizes, padding, dilation)
    return y if x.dim() == shells.dim() + 2 else y[0]


def insert_zeros(x: torch.Tensor, stride: Sequence[int], more: Sequence[int]) -> torch.Tensor:
    """The image whose convolution is the transposed convolution of ``x``.

    Args:
        x: ``(batch, channels, *spatial)``.
        stride: distance of the voxels of ``x`` in the result.
        more: voxels of zeros at the end of an axis.

    Example:
        >>> insert_zeros(torch.tensor([[[1.0, 2.0]]]), [2], [1])
        tensor([[[1., 0., 2., 0.]]])
    """
    sizes = [(n - 1) * s + 1 + m for n, s, m in zip(x.shape[2:], stride, more)]
    if has_channels_last(x):
        image = x.new_zeros((x.shape[0], *sizes, x.shape[1])).movedim(-1, 1)
    else:
        image = x.new_zeros((*x.shape[:2], *sizes))
    places: tuple[Any, ...] = (..., *(slice(0, (n - 1) * s + 1, s) for n, s in zip(x.shape[2:], stride)))
    image[places] = x
    return image


def compiled_transposed(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    shells: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    groups: int,
    dilation: list[int],
    live: int | None,
) -> torch.Tensor | None:
    """A transposed convolution, as a convolution of the image with zeros in between, or ``None`` where there is no kernel for it.

    Args:
        x: ``(batch, in_channels, *spatial)`` or without the batch.
        weight: ``(in_channels, out_channels / groups, rings)``.
        basis, shells, bias: as in :func:`compiled_backend`.
        stride, padding, output_padding, groups, dilation, live: as in :func:`~monai_gmr.ops.ring_conv_transpose`.
    """
    batched = x if x.dim() == shells.dim() + 2 else x[None]
    margins = [d * (k - 1) - p for d, k, p in zip(dilation, shells.shape, padding)]
    spans = zip(batched.shape[2:], stride, padding, margins, output_padding)
    sizes = [(n - 1) * s + 1 - p + m + more for n, s, p, m, more in spans]
    if min(margins) < 0 or not _has_kernel(x, weight, shells, sizes):
        return None
    image = insert_zeros(batched, stride, output_padding)
    # the window is its own mirror image
    turned = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).contiguous()
    y = cpp_ring_conv(image, turned, basis[:, :live].to(weight.dtype), shells, bias, margins, dilation, groups)
    return y if x.dim() == shells.dim() + 2 else y[0]


@register_backend("cpp", harmonics=compiled_harmonics, transposed=compiled_transposed)
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
    """Backend "cpp": kernels, which with strides compute every voxel; "dense" where there are none, and for components of angular
    factors, which layers do not ask for."""
    batched = x if x.dim() == shells.dim() + 2 else x[None]
    if factors is not None or not _has_kernel(x, weight, shells, _sizes(x, shells, stride, padding, dilation)):
        return dense_ring_conv(x, weight, basis, shells, bias, stride, padding, dilation, groups, factors)
    y = cpp_ring_conv(batched, weight, basis[:, :live].to(weight.dtype), shells, bias, padding, dilation, groups)
    if max(stride) > 1:
        # a copy, lest the voxels that are left out stay in memory
        kept = y[(..., *(slice(None, None, step) for step in stride))]
        last = has_channels_last(batched)
        y = kept.movedim(1, -1).contiguous().movedim(-1, 1) if last else kept.contiguous()
    return y if x.dim() == shells.dim() + 2 else y[0]
