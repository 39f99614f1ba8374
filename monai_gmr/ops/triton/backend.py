"""Backend "triton": which convolutions run in kernels on a GPU, and in which."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from monai_gmr.ops.backend import Backend, log_dense
from monai_gmr.ops.call import Call, RingKernel
from monai_gmr.ops.free_sizes import is_exporting
from monai_gmr.ops.invariants import fused_invariants
from monai_gmr.ops.triton.ring_conv import triton_ring_conv
from monai_gmr.ops.triton.shell_conv import triton_shell_conv

HAS_TRITON = find_spec("triton") is not None


class TritonBackend(Backend):
    """Backend "triton": sums over rings; one kernel of sums and products for strides, groups and angular components."""

    name = "triton"

    def supports(self, call: Call) -> bool:
        """Not graphs for export, images smaller than the window, transposed convolutions, and float64; logs what is missing."""
        exporting = torch.jit.is_tracing() or is_exporting()
        if call.transposed or exporting or min(call.output_sizes()) < 1:
            return False
        reason = None
        if not HAS_TRITON:
            reason = "Triton is not installed"
        elif call.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            reason = f"it needs a CUDA device and the input is on {call.device.type}"
        elif call.precision not in (torch.float32, torch.float16, torch.bfloat16):
            reason = f"it has no kernel for {call.precision}"
        # a log line would break a graph
        if reason is not None and not torch.compiler.is_compiling():
            log_dense(self.name, reason)
        return reason is None

    def conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """In the kernel of sums where it applies."""
        batched = _batched(call, x)
        bias = None if kernel.bias is None else kernel.bias.to(batched.dtype)
        basis = kernel.basis[:, : kernel.num_shells]
        if kernel.angular is None and call.groups == 1 and max(call.stride) == 1:
            geometry = {"padding": list(call.padding), "dilation": list(call.dilation)}
            y = triton_ring_conv(batched, kernel.weight.to(batched.dtype), basis, kernel.shells, bias, **geometry)
            return y if x.dim() == batched.dim() else y[0]
        angular = kernel.angular
        if angular is None:
            angular = torch.ones((1, kernel.shells.numel()), device=x.device)
        y = _shell_conv(call, batched, kernel.weight, basis, kernel.shells, angular)
        y = y[:, :, 0] if kernel.angular is None else y
        if bias is not None:
            y = y + bias.reshape([-1] + [1] * kernel.shells.dim())
        return y if x.dim() == batched.dim() else y[0]

    def harmonic_conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """Order by order."""
        assert call.orders is not None
        assert kernel.angular is not None
        batched, groups, (norms, products, components) = _batched(call, x), call.groups, call.orders
        rows = kernel.weight.unflatten(0, (groups, -1)).split(call.orders.channels(), dim=1)
        angular = kernel.angular.split([max(count, 1) for count in components])
        sizes, scalars = call.output_sizes(), []
        for index, count in enumerate(components):
            weight, basis = rows[index].flatten(0, 1), kernel.basis[min(count, 1)]
            if len(weight) == 0:
                continue
            radial = RingKernel(
                weight, basis, kernel.shells, None, angular[index] if count else None, kernel.num_shells
            )
            y = self.conv(call, batched, radial)
            # a group's channels and their components, which lie next to each other
            y = y.reshape(len(batched), groups, -1, *sizes).flatten(3)
            scalars.append(fused_invariants(y, [norms[index]], [products[index]], [count]))
        y = torch.cat(scalars, dim=2).flatten(1, 2).unflatten(-1, sizes)
        if kernel.bias is not None:
            y = y + kernel.bias.to(y.dtype).reshape([-1] + [1] * len(sizes))
        return y if x.dim() == batched.dim() else y[0]


def _batched(call: Call, x: torch.Tensor) -> torch.Tensor:
    x = x.to(call.precision)
    return x if x.dim() == len(call.kernel_size) + 2 else x[None]


def _shell_conv(
    call: Call, x: torch.Tensor, weight: torch.Tensor, basis: torch.Tensor, shells: torch.Tensor, angular: torch.Tensor
) -> torch.Tensor:
    with torch.autocast(device_type=x.device.type, enabled=False):
        per_shell = weight.to(basis.dtype) @ basis
    geometry = {"stride": list(call.stride), "padding": list(call.padding), "dilation": list(call.dilation)}
    return triton_shell_conv(x, per_shell, shells, angular, **geometry, groups=call.groups)
