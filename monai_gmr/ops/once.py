"""What is made once a process, whichever thread asks first."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from functools import lru_cache, update_wrapper
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """Decorator of a function that is to run once for its arguments: ``functools.lru_cache`` lets threads that call at the same time all
    run it, here the first one runs it and the others wait for what it returns. An error is not remembered.

    Args:
        function: takes nothing, or what can be hashed.

    Example:
        >>> @Once
        ... def made() -> list:
        ...     return []
        >>> made() is made(), made.is_done()
        (True, True)
    """

    def __init__(self, function: Callable[..., T]) -> None:
        self._cached = lru_cache(maxsize=8)(function)
        self._renew()
        update_wrapper(self, function)
        if hasattr(os, "register_at_fork"):
            # a thread that held the lock does not live on in a forked process
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        # a function may ask for itself, as what compiles may call back
        self._lock = threading.RLock()

    def __call__(self, *args: Hashable) -> T:
        with self._lock:
            return self._cached(*args)

    def is_done(self) -> bool:
        """Whether it has returned, at least for one set of arguments."""
        return self._cached.cache_info().currsize > 0

    def forget(self) -> None:
        """Run it anew at the next call."""
        self._cached.cache_clear()
