"""Memory of a run's process, and start, failure and end of the processes of a distributed run."""

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
    """Makes the C library keep freed memory for the next tensor instead of returning it to the system; returns success (glibc only).

    By default glibc maps every block of more than some megabytes anew, and the system zeroes each page, so a training step on a CPU takes
    up to 1.7 times as long. The process stays at its peak size; ``size`` is the largest block to keep, in bytes.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    if not sys.platform.startswith("linux"):
        return False
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    return change is not None and bool(change(M_MMAP_THRESHOLD, size)) and bool(change(M_TRIM_THRESHOLD, 2**31 - 1))


def join_process_group(backend: str) -> None:
    """Calls ``torch.distributed.init_process_group`` in a process started by torchrun, with a store that records the first failure."""
    global _store
    _store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group(backend, store=_store, rank=rank, world_size=size)


def is_first_to_fail(announce: bool = False) -> bool:
    """Checks whether no other process of a distributed run has failed before; ``announce`` tells the others that this one fails now."""
    try:
        return _store is None or bool(_store.add(FAILURE_KEY, int(announce)) == int(announce))
    except RuntimeError:
        # the process that held the store has ended
        return True


def leave_process_group() -> None:
    """Ends a distributed run: waits for the other processes, then leaves their group; without a group, does nothing.

    A network in ``DistributedDataParallel`` keeps the group's threads alive after ``torch.distributed.destroy_process_group``, and a
    thread that still holds a tensor at interpreter shutdown aborts the process (pytorch/pytorch issue 190489). So the run's garbage is
    collected before.
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        atexit.register(gc.collect)
