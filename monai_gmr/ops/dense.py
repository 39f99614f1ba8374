"""Backend "dense": build the kernel, call the framework's convolution; the reference, which runs everywhere."""

from __future__ import annotations

import torch

from monai_gmr.ops.backend import Backend
from monai_gmr.ops.call import Call, RingKernel
from monai_gmr.ops.harmonic_conv import harmonic_tap_basis, response_invariants, responses_kernel
from monai_gmr.ops.memory_format import make_channels_last, runs_channels_last
from monai_gmr.ops.ring_conv import conv_nd, conv_transpose_nd, dense_ring_conv, full_precision_kernel


class DenseBackend(Backend):
    """Backend "dense"."""

    name = "dense"

    def supports(self, call: Call) -> bool:
        """Every call."""
        return True

    def conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """By :func:`~monai_gmr.ops.ring_conv.dense_ring_conv`."""
        return dense_ring_conv(x, *kernel[:4], **_geometry(call), angular=kernel.angular)

    def conv_transpose(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """By a dense kernel and the framework's transposed convolution."""
        dense, geometry = full_precision_kernel(*kernel[:3]), _geometry(call)
        return conv_transpose_nd(x, dense, kernel.bias, **geometry, output_padding=list(call.output_padding))

    def harmonic_conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """By one convolution, whose kernel has rows for all responses."""
        assert call.orders is not None
        assert kernel.angular is not None
        assert kernel.responses is not None
        norms, products, components = map(list, call.orders)
        with torch.autocast(device_type="cpu" if x.is_meta else x.device.type, enabled=False):
            profile, channel, component = kernel.responses
            basis = harmonic_tap_basis(kernel.basis, kernel.shells, kernel.angular, profile)
            rows = responses_kernel(kernel.weight, basis, channel, component, call.groups)
        y = conv_nd(x, rows.unflatten(2, call.kernel_size), None, **_geometry(call))
        dims = len(call.kernel_size)
        terms = {"linear": kernel.linear, "chiral": kernel.chiral}
        y = response_invariants(y, norms, products, components, call.groups, dims, **terms)
        if kernel.bias is not None:
            y = y + kernel.bias.to(y.dtype).reshape([-1] + [1] * dims)
        elif y.requires_grad and not call.recorded:
            # the backward pass keeps it, and what follows a convolution without a bias may work in place
            y = y.clone()
        return make_channels_last(y) if runs_channels_last(x) else y


def _geometry(call: Call) -> dict:
    lengths = {"stride": list(call.stride), "padding": list(call.padding), "dilation": list(call.dilation)}
    return lengths | {"groups": call.groups}
