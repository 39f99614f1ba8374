"""How the processes of a distributed run part."""

from __future__ import annotations

import atexit
import gc

import torch.distributed


def leave_process_group() -> None:
    """End a distributed run: wait for the other processes, then leave their group; without a group, do nothing.

    A network wrapped in ``DistributedDataParallel`` keeps the group's threads alive beyond
    ``torch.distributed.destroy_process_group``, and one of them that still holds a tensor when the interpreter shuts down aborts
    the process (pytorch/pytorch issue 190489). So what is left of the run is collected before the interpreter shuts down.

    Example:
        >>> leave_process_group()
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    atexit.register(gc.collect)
