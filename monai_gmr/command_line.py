"""Common parts of all command lines: one-line errors of use, and exit statuses."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from monai_gmr.utils import ConfigurationError

TRACEBACK_VARIABLE = "MONAI_GMR_TRACEBACK"
Main = Callable[..., int]


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Parser of ``python -m monai_gmr.apps.NAME`` whose help shows the description unchanged."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python -m monai_gmr.apps.{name}", description=description, formatter_class=layout)


def command(name: str, interrupted: str = "nothing is written") -> Callable[[Main], Callable[..., int]]:
    """Decorator of ``main`` of the command ``name``: an error of use is one line on standard error and exit status 2, Ctrl-C is exit status
    130, with a line that says what remains (``interrupted``). ``MONAI_GMR_TRACEBACK=1`` in the environment raises the error instead.
    Passes on keyword arguments of ``main``.

    Example:
        >>> @command("halve")
        ... def main(arguments=None):
        ...     raise ConfigurationError("3 is odd: give an even number.")
        >>> main(["3"])
        2
    """

    def decorate(main: Main) -> Callable[..., int]:
        @functools.wraps(main)
        def run(arguments: Sequence[str] | None = None, **options: Any) -> int:
            try:
                return main(arguments, **options)
            except (ConfigurationError, OSError) as error:
                if os.environ.get(TRACEBACK_VARIABLE):
                    raise
                print(f"{name}: {error}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print(f"{name}: interrupted; {interrupted}.", file=sys.stderr)
                return 130

        return run

    return decorate
