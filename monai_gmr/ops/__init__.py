"""Functions on tensors: radial and harmonic convolutions with their backends, and resampling about the centre."""

from monai_gmr.ops.backend import Backend, available_backends, get_backend, register_backend, set_backend
from monai_gmr.ops.call import Call, Orders, ResponseTables, RingKernel
from monai_gmr.ops.cpu.backend import CppBackend
from monai_gmr.ops.cpu.ring_conv import cpp_ring_conv
from monai_gmr.ops.dense import DenseBackend
from monai_gmr.ops.depthwise_conv import depthwise_conv
from monai_gmr.ops.harmonic_conv import harmonic_conv
from monai_gmr.ops.resample import symmetric_downsample, symmetric_upsample
from monai_gmr.ops.ring_conv import dense_kernel, dense_shell_conv, pad_nd, ring_conv, ring_conv_transpose
from monai_gmr.ops.triton.backend import TritonBackend
from monai_gmr.ops.triton.ring_conv import triton_ring_conv
from monai_gmr.ops.triton.shell_conv import triton_shell_conv

__all__ = [
    "Backend",
    "Call",
    "Orders",
    "ResponseTables",
    "RingKernel",
    "available_backends",
    "cpp_ring_conv",
    "dense_kernel",
    "dense_shell_conv",
    "depthwise_conv",
    "get_backend",
    "harmonic_conv",
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

for _backend in (DenseBackend(), CppBackend(), TritonBackend()):
    register_backend(_backend)
