"""Functions on tensors: the radial convolution and its backends, resampling about the centre."""

import monai_gmr.ops.cpu.backend
import monai_gmr.ops.triton.backend  # noqa: F401  (they register themselves)
from monai_gmr.ops.backend import available_backends, get_backend, register_backend, set_backend
from monai_gmr.ops.cpu.ring_conv import cpp_ring_conv
from monai_gmr.ops.resample import symmetric_downsample, symmetric_upsample
from monai_gmr.ops.ring_conv import dense_kernel, pad_nd, ring_conv, ring_conv_transpose
from monai_gmr.ops.triton.ring_conv import triton_ring_conv
from monai_gmr.ops.triton.shell_conv import dense_shell_conv, triton_shell_conv

__all__ = [
    "available_backends",
    "cpp_ring_conv",
    "dense_kernel",
    "dense_shell_conv",
    "get_backend",
    "pad_nd",
    "register_backend",
    "ring_conv",
    "ring_conv_transpose",
    "set_backend",
    "symmetric_downsample",
    "symmetric_upsample",
    "triton_ring_conv",
    "triton_shell_conv",
]
