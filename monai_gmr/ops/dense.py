"""Backend "dense": builds the kernel and calls torch's convolution; the reference, which runs everywhere."""

from __future__ import annotations

import torch

from monai_gmr.ops.backend import Backend
from monai_gmr.ops.call import Call, RingKernel
from monai_gmr.ops.dense_harmonic import Factors, dense_harmonic_conv
from monai_gmr.ops.harmonic_conv import harmonic_tap_basis, responses_kernel
from monai_gmr.ops.made_conv import MadeKernel, made_conv
from monai_gmr.ops.memory_format import keep_format
from monai_gmr.ops.ring_conv import dense_kernel, dense_ring_conv


class DenseBackend(Backend):
    """Backend "dense"."""

    name = "dense"

    def supports(self, call: Call) -> bool:
        """Supports every call."""
        return True

    def conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """Builds a dense kernel and calls torch's convolution."""
        if kernel.angular is not None:
            return dense_ring_conv(x, *kernel[:4], **call.conv_arguments(), angular=kernel.angular)
        return keep_format(made_conv(x, _ring_kernel(kernel), kernel.bias, call), x)

    def conv_transpose(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """Builds a dense kernel and calls torch's transposed convolution."""
        return made_conv(x, _ring_kernel(kernel), kernel.bias, call)

    def harmonic_conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """Calls one convolution whose kernel has rows for all responses."""
        assert kernel.angular is not None
        assert kernel.responses is not None
        profile, channel, component = kernel.responses
        shells, angular, groups = kernel.shells, kernel.angular, call.groups

        def make(weight: torch.Tensor, profiles: torch.Tensor) -> torch.Tensor:
            basis = harmonic_tap_basis(profiles, shells, angular, profile)
            return responses_kernel(weight, basis, channel, component, groups).unflatten(2, shells.shape)

        rows = MadeKernel(make, (kernel.weight, kernel.basis))
        return dense_harmonic_conv(x, rows, Factors(kernel.linear, kernel.chiral, kernel.bias), call)


def _ring_kernel(kernel: RingKernel) -> MadeKernel:
    return MadeKernel(lambda weight, basis: dense_kernel(weight, basis, kernel.shells), (kernel.weight, kernel.basis))
