"""Runner of a module like ``python -m``, in a process that ends with the process that started it.

Start ``python -m monai_gmr.bundle.attached MODULE ARGUMENTS`` with a pipe as standard input that the other process holds open. However
that process ends, every operating system closes the pipe.
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
