"""Autocast on a tensor's device; torch has none for some devices, such as "meta"."""

from __future__ import annotations

import torch
from torch.amp import is_autocast_available


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The precision that autocast sets on a tensor's device, ``None`` outside autocast.

    Example:
        >>> x = torch.zeros(1)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     autocast_dtype(x), autocast_dtype(x.to("meta"))
        (torch.bfloat16, None)
    """
    kind = x.device.type
    if is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def without_autocast(x: torch.Tensor) -> torch.autocast:
    """A context in which operations on a tensor's device keep the precision of their arguments.

    Example:
        >>> x = torch.ones(1, 1)
        >>> with torch.autocast("cpu", torch.bfloat16), without_autocast(x):
        ...     (x @ x).dtype
        torch.float32
    """
    kind = x.device.type
    return torch.autocast(device_type=kind if is_autocast_available(kind) else "cpu", enabled=False)
