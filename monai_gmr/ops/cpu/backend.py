"""Backend "cpp": convolutions in C++ kernels on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from monai_gmr.ops.backend import Backend
from monai_gmr.ops.call import Call, Orders, RingKernel
from monai_gmr.ops.cpu import library
from monai_gmr.ops.cpu.harmonic_conv import cpp_harmonic_conv
from monai_gmr.ops.cpu.harmonic_kernels import supports_order
from monai_gmr.ops.cpu.ring_conv import cpp_ring_conv
from monai_gmr.ops.harmonic_operation import group_arguments, parts_of
from monai_gmr.ops.memory_format import has_channels_last, keep_format

# with fewer channels per group, harmonic convolutions group by group are slower than one dense kernel
LEAST_WIDTH_PER_GROUP = 8


class CppBackend(Backend):
    """Backend "cpp": float32 on a CPU, outside graphs and autocast, with windows that are their own mirror image."""

    name = "cpp"
    prefers_channels_last = True

    def supports(self, call: Call) -> bool:
        """Supports no angular components, which no layer uses, and harmonic convolutions only with stride 1."""
        fits = call.device.type == "cpu" and call.precision == call.weight_precision == torch.float32
        if call.recorded or not fits or call.voxels() == 0 or min(call.channels) == 0 or not call.is_symmetric():
            return False
        if call.orders is not None:
            fits = _supports_orders(call, call.orders)
        elif call.transposed:
            fits = min(_transposed_padding(call)) >= 0
        else:
            fits = not call.angular
        # for images smaller than the window, torch raises the error
        return fits and min(call.output_sizes(), default=1) > 0 and library.load_kernels() is not None

    def conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """Runs the kernels, which compute every voxel for any stride."""
        y = _ring_conv(call, x, kernel, list(call.padding))
        if max(call.stride) == 1:
            return y
        # a copy, which frees the memory of the voxels left out
        places: tuple[Any, ...] = (..., *(slice(None, None, step) for step in call.stride))
        kept = y[places]
        return kept.movedim(1, -1).contiguous().movedim(-1, 1) if has_channels_last(x) else kept.contiguous()

    def conv_transpose(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """A convolution of the image with zeros between its voxels."""
        # the window is its own mirror image
        weight = kernel.weight.unflatten(0, (call.groups, -1)).transpose(1, 2).flatten(0, 1).contiguous()
        spread = insert_zeros(x, call.stride, call.output_padding)
        return _ring_conv(call, spread, kernel._replace(weight=weight), _transposed_padding(call))

    def harmonic_conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """Group by group, from channels to scalars."""
        arguments = zip(parts_of(x, call.groups, 1), group_arguments(call, kernel))
        scalars = [cpp_harmonic_conv(x=part, **own) for part, own in arguments]
        if call.groups == 1:
            return scalars[0]
        return keep_format(torch.cat(scalars, 1), x)


def _ring_conv(call: Call, x: torch.Tensor, kernel: RingKernel, padding: list[int]) -> torch.Tensor:
    basis = kernel.basis[:, : kernel.num_shells].to(kernel.weight.dtype)
    geometry = {"padding": padding, "dilation": list(call.dilation), "groups": call.groups}
    return cpp_ring_conv(x, kernel.weight, basis, kernel.shells, kernel.bias, **geometry)


def _transposed_padding(call: Call) -> list[int]:
    """Padding of the convolution that computes a transposed convolution."""
    return [reach - p for reach, p in zip(call.reach(), call.padding)]


def _supports_orders(call: Call, orders: Orders) -> bool:
    width = min(call.channels[0], sum(orders.channels()) * call.groups) // call.groups
    if max(call.stride) > 1 or (call.groups > 1 and width < LEAST_WIDTH_PER_GROUP):
        return False
    return all(supports_order(call.reach(), *order, call.padding) for order in zip(*orders) if order[2] > 0)


def insert_zeros(x: torch.Tensor, stride: Sequence[int], more: Sequence[int]) -> torch.Tensor:
    """``x`` with zeros between its voxels, and ``more`` at the end of an axis; its convolution is the transposed convolution of ``x``."""
    sizes = [(n - 1) * s + 1 + m for n, s, m in zip(x.shape[2:], stride, more)]
    if has_channels_last(x):
        image = x.new_zeros((x.shape[0], *sizes, x.shape[1])).movedim(-1, 1)
    else:
        image = x.new_zeros((*x.shape[:2], *sizes))
    places: tuple[Any, ...] = (..., *(slice(0, (n - 1) * s + 1, s) for n, s in zip(x.shape[2:], stride)))
    image[places] = x
    return image
