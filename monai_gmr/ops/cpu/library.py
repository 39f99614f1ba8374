"""The kernels in ``csrc``, built when the package is installed: the choice of the processor's library, and calls of its functions."""

from __future__ import annotations

import ctypes
import functools
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch

from monai_gmr.ops.backend import get_backend, log_dense
from monai_gmr.ops.memory_format import runs_channels_last
from monai_gmr.ops.recorded import is_recorded

# the libraries that are built, best first, by the processor's name in torch.backends.cpu.get_cpu_capability
PROCESSORS = {"AVX512": "avx512", "AVX2": "avx2", "DEFAULT": "generic"}


class Array:
    """Argument type for ctypes: the data pointer of a CPU tensor of a dtype, or a null pointer for ``None``."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def from_param(self, x: torch.Tensor | None) -> ctypes.c_void_p | None:
        """The value that ctypes passes for an argument."""
        if x is None:
            return None
        if x.dtype != self.dtype or x.device.type != "cpu":
            raise TypeError(f"a tensor of {x.dtype} on {x.device} is not one of {self.dtype} on a CPU")
        return ctypes.c_void_p(x.data_ptr())


_int, _three, _float = ctypes.c_int64, ctypes.c_int64 * 3, ctypes.c_float
_indices, _floats, _doubles = Array(torch.int64), Array(torch.float32), Array(torch.float64)


def _fields(names: str) -> list[tuple[str, Any]]:
    """Fields of 64 bits; names that end in ``[3]`` have three numbers."""
    return [(name.removesuffix("[3]"), _three if name.endswith("[3]") else _int) for name in names.split()]


# the structures of csrc/kernels.h
class RingConvGeometry(ctypes.Structure):
    _fields_ = _fields("batch sizes[3] image[3] channels columns shells rings threads row groups lines columns_first")


class HarmonicConvGeometry(ctypes.Structure):
    _fields_ = _fields(
        "batch sizes[3] image[3] padding[3] reach[3] channels shells components norms products all_shells row linear_row "
        "terms entries threads"
    )


class VoxelGeometry(ctypes.Structure):
    _fields_ = _fields("batch voxels channels threads")


class ResampleGeometry(ctypes.Structure):
    _fields_ = _fields("before size target after width threads")


class TransposeGeometry(ctypes.Structure):
    _fields_ = _fields("batch rows columns threads")


class DepthwiseGeometry(ctypes.Structure):
    _fields_ = _fields("batch sizes[3] image[3] padding[3] window[3] dilation[3] channels threads")


_ring = (ctypes.POINTER(RingConvGeometry), *[_indices] * 5, *[_floats] * 2)
_harmonic = (ctypes.POINTER(HarmonicConvGeometry), *[_indices] * 2, *[_floats] * 2, _indices)
_voxels = (ctypes.POINTER(VoxelGeometry), _floats)
# the functions of csrc/kernels.h
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "ring_conv": (*_ring, *[_floats] * 3),
    "ring_conv_backward": (*_ring, *[_floats] * 4, _doubles),
    "harmonic_conv": (*_harmonic, *[_floats] * 2, _float, _float, *[_floats] * 5),
    "harmonic_conv_backward": (*_harmonic, *[_indices] * 2, *[_floats] * 2, _float, _float, *[_floats] * 7, _doubles),
    "moments": (*_voxels, _doubles),
    "normalise": (*_voxels, *[_floats] * 3, _float, _floats),
    "normalise_sums": (*_voxels, *[_floats] * 3, _float, _floats, _doubles),
    "normalise_backward": (*_voxels, *[_floats] * 3, _float, *[_floats] * 4),
    "sum_voxels": (*_voxels, _doubles),
    "transpose": (ctypes.POINTER(TransposeGeometry), *[_floats] * 2),
    "depthwise_weight_gradient": (ctypes.POINTER(DepthwiseGeometry), *[_floats] * 2, _doubles),
    "resample": (ctypes.POINTER(ResampleGeometry), _indices, *[_floats] * 3),
}
# functions that return whether they could allocate memory
CHECKED = ("ring_conv", "ring_conv_backward", "harmonic_conv", "harmonic_conv_backward")


def open_library(processor: str) -> ctypes.CDLL:
    """The kernels built for "avx512", "avx2" or "generic"; raises OSError if they were not built or cannot be loaded."""
    spec = PathFinder.find_spec(f"_kernels_{processor}", [str(Path(__file__).parent)])
    if spec is None or spec.origin is None:
        raise OSError("its kernels were not built")
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as error:
        if "undefined symbol" not in str(error):
            raise
        # the kernels use the OpenMP runtime that torch has loaded; load one if this torch does not share its own
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(spec.origin)
    for name, types in ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, ctypes.c_bool if name in CHECKED else None
    return library


@functools.cache
def load_kernels() -> ctypes.CDLL | None:
    """The best kernels that this processor supports; ``None`` if there are none, with the reason in the log."""
    names, capability, errors = list(PROCESSORS), torch.backends.cpu.get_cpu_capability(), []
    for name in names[names.index(capability) if capability in names else -1 :]:
        try:
            return open_library(PROCESSORS[name])
        except OSError as error:
            errors.append(" ".join(str(error).split()))
    log_dense("cpp", f"{', '.join(dict.fromkeys(errors))} (install monai_gmr where there is a C++ compiler)")
    return None


def runs_float32(x: torch.Tensor) -> bool:
    """Whether an image outside recorded graphs can run in kernels: float32 on a CPU, with backend "cpp" or "auto"."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and get_backend() in ("auto", "cpp")
        and load_kernels() is not None
    )


def supports(x: torch.Tensor, *factors: torch.Tensor | None) -> bool:
    """Whether norms and resampling of an image run in kernels: float32 with channels last, with backend "cpp" or "auto"; ``factors`` are
    further tensors of the operation."""
    return runs_channels_last(x) and runs_float32(x) and not is_recorded(*factors)


def call_kernel(name: str, geometry: ctypes.Structure, *arguments: torch.Tensor | float | None) -> None:
    """Calls a kernel of ``csrc/kernels.h``; tensors are contiguous, except along the axis for which the kernel takes a step.

    Raises:
        MemoryError: if the kernel cannot allocate memory.
    """
    if getattr(load_kernels(), name)(geometry, *arguments) is False:
        raise MemoryError(
            f"kernel {name!r} cannot allocate memory for its copies of the weights, up to one for each of {geometry.threads} threads: "
            "free memory, or set fewer threads by torch.set_num_threads."
        )


def sum_voxels(x: torch.Tensor) -> torch.Tensor:
    """Sums over batch and voxels of ``(batch, channels, *spatial)``, in double precision if :func:`supports` is true."""
    if (torch.is_grad_enabled() and x.requires_grad) or not supports(x):
        return x.sum((0, *range(2, x.dim())))
    threads = torch.get_num_threads()
    sums = x.new_zeros((threads, x.shape[1]), dtype=torch.float64)
    call_kernel("sum_voxels", VoxelGeometry(1, x.numel() // x.shape[1], x.shape[1], threads), x, sums)
    return sums.sum(0).to(x.dtype)
