"""Backend "triton": convolutions in Triton kernels on a GPU, and the choice of the kernel."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from monai_gmr.ops.autocast import without_autocast
from monai_gmr.ops.backend import Backend, log_dense
from monai_gmr.ops.call import Call, RingKernel
from monai_gmr.ops.harmonic_operation import group_arguments
from monai_gmr.ops.scalars import fused_scalars
from monai_gmr.ops.triton.harmonic_conv import triton_harmonic_conv
from monai_gmr.ops.triton.ring_conv import triton_ring_conv
from monai_gmr.ops.triton.shell_conv import triton_shell_conv

HAS_TRITON = find_spec("triton") is not None


class TritonBackend(Backend):
    """Backend "triton": sums over rings; harmonic layers as one operation; strides and groups in one kernel of sums and products."""

    name = "triton"

    def supports(self, call: Call) -> bool:
        """Does not support graphs for export, ``torch.func``, images smaller than the window, transposed convolutions and float64; logs
        the reason if Triton, a GPU or a kernel is missing."""
        compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        if call.transposed or (call.recorded and not compiling) or min(call.output_sizes()) < 1:
            return False
        reason = None
        if not HAS_TRITON:
            reason = "Triton is not installed"
        elif call.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            reason = f"it needs a CUDA device and the input is on {call.device.type}"
        elif call.precision not in (torch.float32, torch.float16, torch.bfloat16):
            reason = f"it has no kernel for {call.precision}"
        # a log line would break a graph
        if reason is not None and not compiling:
            log_dense(self.name, reason)
        return reason is None

    def conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """Runs the kernel of sums over rings if it supports the call, otherwise the convolution with functions on shells."""
        x, shells, basis = x.to(call.precision), kernel.shells, kernel.basis[:, : kernel.num_shells]
        bias = None if kernel.bias is None else kernel.bias.to(x.dtype)
        geometry = {"padding": list(call.padding), "dilation": list(call.dilation)}
        if kernel.angular is None and call.groups == 1 and max(call.stride) == 1:
            return triton_ring_conv(x, kernel.weight.to(x.dtype), basis, shells, bias, **geometry)
        with without_autocast(x):
            weight = kernel.weight.to(basis.dtype) @ basis
        angular = torch.ones((1, shells.numel()), device=x.device) if kernel.angular is None else kernel.angular
        y = triton_shell_conv(x, weight, shells, angular, stride=list(call.stride), **geometry, groups=call.groups)
        y = y[:, :, 0] if kernel.angular is None else y
        return y if bias is None else y + bias.reshape([-1] + [1] * shells.dim())

    def harmonic_conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """Runs one operation; groups and strides run order by order, with all responses in memory."""
        if call.groups == 1 and max(call.stride) == 1:
            with without_autocast(x):
                (arguments,) = group_arguments(call, kernel)
                return triton_harmonic_conv(x=x.to(call.precision), **arguments)
        assert call.orders is not None
        assert kernel.angular is not None
        x, groups, sizes = x.to(call.precision), call.groups, call.output_sizes()
        norms, products, components = call.orders
        rows = kernel.weight.unflatten(0, (groups, -1)).split(call.orders.channels(), dim=1)
        angular = kernel.angular.split([max(count, 1) for count in components])
        parts = []  # scalars, or responses if terms need all of them
        for index, count in enumerate(components):
            weight, basis = rows[index].flatten(0, 1), kernel.basis[index]
            if len(weight) == 0:
                continue
            own = angular[index] if count else None
            y = self.conv(call, x, kernel._replace(weight=weight, basis=basis, bias=None, angular=own))
            # a group's channels and their components are adjacent
            y = y.reshape(len(x), groups, -1, *sizes).flatten(3)
            if call.kept:
                parts.append(y)
            else:
                parts.append(fused_scalars(y, None, None, [norms[index]], [products[index]], [count]))
        y = torch.cat(parts, dim=2)
        if call.kept:
            y = fused_scalars(y, kernel.linear, kernel.chiral, list(norms), list(products), list(components))
        y = y.flatten(1, 2).unflatten(-1, sizes)
        return y if kernel.bias is None else y + kernel.bias.to(y.dtype).reshape([-1] + [1] * len(sizes))
