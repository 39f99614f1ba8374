"""The kernels in ``cpp``, which backend "cpp" computes with on a CPU: one library, compiled where it is used."""

from __future__ import annotations

import ctypes
import logging
import time
from pathlib import Path

import torch

from monai_gmr.ops.backend import get_backend
from monai_gmr.ops.memory_format import is_recorded, runs_channels_last
from monai_gmr.ops.once import Once

logger = logging.getLogger(__name__)

SOURCES = [
    Path(__file__).parent / "cpp" / name
    for name in ("vectors.h", "product.h", "ring_conv.cpp", "harmonic_conv.cpp", "voxel_sums.cpp", "resample.cpp")
]


def one_line(error: Exception) -> str:
    """What an error says, short."""
    return " ".join(str(error).split())[:200]


@Once
def say_dense(reason: str) -> None:
    """Say, once a process, why another backend runs."""
    logger.warning(f"backend 'cpp' is not used: {reason}; 'dense' runs in its place.")


def takes_kernels(x: torch.Tensor) -> bool:
    """Whether kernels compute on such a tensor: float32 on a CPU, without autocast, where no graph is recorded.

    Example:
        >>> takes_kernels(torch.zeros(3)), takes_kernels(torch.zeros(3, dtype=torch.float64)), takes_kernels(torch.zeros(0))
        (True, False, False)
    """
    return (
        not is_recorded(x)
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.numel() > 0
    )


def compile_kernels(lanes: int | None = None) -> ctypes.CDLL:
    """Compile the kernels for this processor, by the compiler and with the flags of torch.compile, which keeps them on disk.

    Args:
        lanes: floats of a vector, 8 or 16; by default what the processor has. Others are slower, and for tests.

    Raises:
        Exception: whatever a compiler says.
    """
    from torch._inductor import config
    from torch._inductor.codecache import CppCodeCache

    texts = [] if lanes is None else [f"#define LANES_OF_A_VECTOR {lanes}"]
    texts += [source.read_text(encoding="utf-8") for source in SOURCES]
    with config.patch({"cpp.enable_floating_point_contract_flag": "fast"}):
        return CppCodeCache.load("\n".join(texts))


@Once
def load_kernels() -> ctypes.CDLL:
    """The kernels, compiled or from disk; says what it took.

    Raises:
        Exception: whatever a compiler says.
    """
    start = time.perf_counter()
    library = compile_kernels()
    logger.warning(
        f"backend 'cpp': {time.perf_counter() - start:.1f} s for its kernels, which torch.compile's cache keeps on disk."
    )
    return library


@Once
def kernel_failure() -> str | None:
    """Why there are no kernels, or ``None``: asked once a process, so that a compiler that fails is not asked again."""
    try:
        load_kernels()
    except Exception as error:  # whatever a compiler says: the dense convolution needs none
        return f"its kernels cannot be compiled ({one_line(error)})"
    return None


def has_kernels() -> bool:
    """Whether there are kernels; if not, says once why."""
    if (reason := kernel_failure()) is not None:
        say_dense(reason)
    return reason is None


def runs_in_kernels(x: torch.Tensor) -> bool:
    """Whether what surrounds convolutions, norms and resampling, computes on an image in kernels: with channels last, on backend
    "cpp", and on "auto" once convolutions have asked for them.

    Args:
        x: ``(batch, channels, *spatial)``.

    Example:
        >>> runs_in_kernels(torch.zeros(1, 3, 4, 4))
        False
    """
    if not takes_kernels(x) or x.dim() not in (4, 5) or not runs_channels_last(x):
        return False
    name = get_backend()
    wanted = name == "cpp" or (name == "auto" and load_kernels.is_done())
    return wanted and has_kernels()


def call_kernel(name: str, *arguments: torch.Tensor | None) -> None:
    """Call a kernel with the addresses of tensors, which must be contiguous and of the types that it is written for."""
    addresses = [None if each is None else ctypes.c_void_p(each.data_ptr()) for each in arguments]
    getattr(load_kernels(), name)(*addresses)


def sum_voxels(x: torch.Tensor) -> torch.Tensor:
    """Sums over batch and voxels, in double precision from piece to piece where channels are last and there are kernels.

    Args:
        x: ``(batch, channels, *spatial)``.

    Returns:
        ``(channels,)``.

    Example:
        >>> sum_voxels(torch.ones(2, 3, 4))
        tensor([8., 8., 8.])
    """
    if (torch.is_grad_enabled() and x.requires_grad) or not runs_in_kernels(x):
        return x.sum((0, *range(2, x.dim())))
    voxels, channels, threads = x.numel() // x.shape[1], x.shape[1], torch.get_num_threads()
    found = x.new_zeros((threads, channels), dtype=torch.float64)
    call_kernel("sum_voxels", torch.tensor([1, voxels, channels, threads]), x, found)
    return found.sum(0).to(x.dtype)
