"""How the processes of a distributed run start, fail and end together."""

from __future__ import annotations

import atexit
import gc
from typing import Any

import torch.distributed as dist

FAILURE_KEY = "monai_gmr/failed"
_store: Any = None


def join_process_group(backend: str) -> None:
    """``torch.distributed.init_process_group`` of a process that torchrun started, with the store that says who failed first.

    Args:
        backend: "nccl" or "gloo".
    """
    global _store
    _store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group(backend, store=_store, rank=rank, world_size=size)


def is_first_to_fail(announce: bool = False) -> bool:
    """Whether no other process of a distributed run has failed before; always so without one.

    Args:
        announce: make it known to the others that this process fails now.

    Example:
        >>> is_first_to_fail(announce=True)
        True
    """
    if _store is None:
        return True
    try:
        # adding is the operation of a store that two processes cannot do at once
        return bool(_store.add(FAILURE_KEY, int(announce)) == int(announce))
    except RuntimeError:
        # the process that held the store is gone
        return True


def leave_process_group() -> None:
    """End a distributed run: wait for the other processes, then leave their group; without a group, do nothing.

    A network wrapped in ``DistributedDataParallel`` keeps the group's threads alive beyond
    ``torch.distributed.destroy_process_group``, and one of them that still holds a tensor when the interpreter shuts down aborts
    the process (pytorch/pytorch issue 190489). So what is left of the run is collected before the interpreter shuts down.

    Example:
        >>> leave_process_group()
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    dist.barrier()
    dist.destroy_process_group()
    atexit.register(gc.collect)
