"""How the process deals with memory that it no longer needs."""

from __future__ import annotations

import ctypes
import sys

# of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 2**30


def keep_freed_memory(size: int = LARGEST_KEPT) -> bool:
    """Let the C library keep freed memory for the next tensor instead of giving it back to the system.

    By default glibc maps every block of more than some megabytes anew, and the system fills each page of it with zeros when it is first
    touched: a training step on a CPU takes up to 1.7 times as long. The process then stays as large as it once was.

    Args:
        size: largest block that is kept, in bytes.

    Returns:
        whether it was done: on Linux with glibc; elsewhere nothing happens.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    if not sys.platform.startswith("linux"):
        return False
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    return change is not None and bool(change(M_MMAP_THRESHOLD, size)) and bool(change(M_TRIM_THRESHOLD, 2**31 - 1))
