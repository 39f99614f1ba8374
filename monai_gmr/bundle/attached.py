"""Runs a module as ``python -m`` does, in a process that ends with the one that started it.

``python -m monai_gmr.bundle.attached MODULE ARGUMENTS``, with a pipe as standard input that the other process holds open: when that
process ends, in whatever way, the system closes the pipe, on every system.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading


def _end_at_end_of_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_at_end_of_input, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
