"""The process of a run: its memory, and how the processes of a distributed run start, fail and end together."""

from __future__ import annotations

import atexit
import ctypes
import gc
import sys
from typing import Any

import torch.distributed as dist

# of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 2**30
FAILURE_KEY = "monai_gmr/failed"
_store: Any = None


def keep_freed_memory(size: int = LARGEST_KEPT) -> bool:
    """Let the C library keep freed memory for the next tensor instead of returning it to the system; whether it does (Linux with glibc).

    By default glibc maps every block of more than some megabytes anew, and the system fills each page of it with zeros: a training step
    on a CPU takes up to 1.7 times as long. The process keeps the largest size that it ever had; ``size`` is the largest block, in bytes.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    if not sys.platform.startswith("linux"):
        return False
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    return change is not None and bool(change(M_MMAP_THRESHOLD, size)) and bool(change(M_TRIM_THRESHOLD, 2**31 - 1))


def join_process_group(backend: str) -> None:
    """``torch.distributed.init_process_group`` of a process that torchrun started, with a store of which process failed first."""
    global _store
    _store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group(backend, store=_store, rank=rank, world_size=size)


def is_first_to_fail(announce: bool = False) -> bool:
    """Whether no other process of a distributed run has failed before; ``announce``: this one fails now, which the others then know."""
    try:
        return _store is None or bool(_store.add(FAILURE_KEY, int(announce)) == int(announce))
    except RuntimeError:
        # the process that held the store has ended
        return True


def leave_process_group() -> None:
    """End a distributed run: wait for the other processes, then leave their group; without a group, do nothing.

    A network in ``DistributedDataParallel`` keeps the group's threads alive beyond ``torch.distributed.destroy_process_group``, and one
    that still holds a tensor when the interpreter shuts down aborts the process (pytorch/pytorch issue 190489). So the garbage of the run
    is collected before.
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        atexit.register(gc.collect)
