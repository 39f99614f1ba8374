"""Backend "dense": build the kernel, call the framework's convolution; the reference, which runs everywhere."""

from __future__ import annotations

import torch

from monai_gmr.ops.autocast import without_autocast
from monai_gmr.ops.backend import Backend
from monai_gmr.ops.call import Call, RingKernel
from monai_gmr.ops.dense_harmonic import Factors, dense_harmonic_conv
from monai_gmr.ops.harmonic_conv import harmonic_tap_basis, responses_kernel
from monai_gmr.ops.ring_conv import conv_transpose_nd, dense_ring_conv, full_precision_kernel


class DenseBackend(Backend):
    """Backend "dense"."""

    name = "dense"

    def supports(self, call: Call) -> bool:
        """Every call."""
        return True

    def conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """By :func:`~monai_gmr.ops.ring_conv.dense_ring_conv`."""
        return dense_ring_conv(x, *kernel[:4], **call.conv_arguments(), angular=kernel.angular)

    def conv_transpose(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """By a dense kernel and the framework's transposed convolution."""
        dense, geometry = full_precision_kernel(*kernel[:3]), call.conv_arguments()
        return conv_transpose_nd(x, dense, kernel.bias, **geometry, output_padding=list(call.output_padding))

    def harmonic_conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """By one convolution, whose kernel has rows for all responses."""
        assert call.orders is not None
        assert kernel.angular is not None
        assert kernel.responses is not None
        with without_autocast(x):
            profile, channel, component = kernel.responses
            basis = harmonic_tap_basis(kernel.basis, kernel.shells, kernel.angular, profile)
            rows = responses_kernel(kernel.weight, basis, channel, component, call.groups)
        factors = Factors(rows.unflatten(2, call.kernel_size), kernel.linear, kernel.chiral, kernel.bias)
        return dense_harmonic_conv(x, factors, call)
