"""Guard of the command line of ``python -m monai.bundle run``: typing errors and bad settings end in one sentence."""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from multiprocessing.dummy import DummyProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow, run
from monai.utils import ensure_tuple, optional_import

from monai_gmr.bundle.overrides import check_settings
from monai_gmr.bundle.process import is_first_to_fail
from monai_gmr.command_line import TRACEBACK_VARIABLE
from monai_gmr.utils import ConfigurationError, find_configuration_error, reason

REFUSED = re.compile(r"Failed to instantiate component '([\w.]+)'")
TRACKING_ARGUMENTS = ("output_dir", "tracking_uri", "experiment_name", "run_name", "save_execute_config")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences MONAI's log lines about optional files of a config."""
    # logging has no public getter of this level
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _refused_component(error: BaseException | None) -> ConfigurationError | None:
    """Returns the sentence about a config component whose constructor refused its arguments, recognised by MONAI's message."""
    refused = None
    while error is not None:
        component = REFUSED.match(str(error))
        if component and isinstance(error.__cause__, (TypeError, ValueError, AssertionError, NotImplementedError)):
            refused = ConfigurationError(
                f"{component[1]} cannot be made with these settings ({reason(error)}): give others, or {TRACEBACK_VARIABLE}=1 in the "
                "environment to get the traceback."
            )
        error = error.__cause__
    return refused


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints the error that ends the process: the sentence of a ``ConfigurationError``, however often MONAI wrapped it, or the traceback.

    ``MONAI_GMR_TRACEBACK=1`` in the environment always prints the traceback. The arguments are those of ``sys.excepthook``. In a
    distributed run only the first process that fails prints; errors that follow in others, such as a closed connection, are left out.
    """
    sentence = find_configuration_error(error) or _refused_component(error)
    if os.environ.get(TRACEBACK_VARIABLE) or (sentence is None and is_first_to_fail()):
        sys.__excepthook__(kind, error, trace)
        return
    if sentence is not None and is_first_to_fail(announce=True):
        tqdm, has_tqdm = optional_import("tqdm", name="tqdm")
        # a progress bar clears its line first
        with tqdm.external_write_mode(file=sys.stderr) if has_tqdm else nullcontext():
            print(f"error: {sentence}", file=sys.stderr)
    for thread in threading.enumerate():
        # threads that fill a cache: if the interpreter ends while their C++ code runs, the process aborts
        if isinstance(thread, DummyProcess):
            thread.join()


def _is_news(record: logging.LogRecord) -> bool:
    """Checks whether a log line is more than ignite's copy of the sentence that ends the process."""
    if not record.name.startswith("ignite") or os.environ.get(TRACEBACK_VARIABLE):
        return True
    return find_configuration_error(sys.exc_info()[1]) is None and is_first_to_fail()


def _parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Parses named arguments like fire for ``monai.bundle.run``; they override those of the ``args_file``."""
    if not arguments:
        return {}
    # not a requirement of this library, only of this command
    import fire

    parsed: dict[str, Any] = {}
    # arguments after "--" are for fire itself
    fire.Fire(lambda *_, **named: parsed.update(named), list(takewhile(lambda argument: argument != "--", arguments)))
    if isinstance(parsed.get("args_file"), str):
        parsed = {**ConfigParser.load_config_file(parsed["args_file"]), **parsed}
    return parsed


def _own_arguments() -> list[str]:
    """Returns the arguments of ``python -m monai.bundle run``, or ours, in this process; empty in any other program."""
    package, *rest = Path(sys.argv[0]).parts[-3:] or ("",)
    is_command = package in ("monai", "monai_gmr") and rest == ["bundle", "__main__.py"]
    return sys.argv[2:] if is_command and sys.argv[1:2] == ["run"] else []


def _root_of(config_file: Any) -> str:
    folder = Path(ensure_tuple(config_file)[0]).resolve().parent
    return str(folder.parent if folder.name == "configs" else folder)


def find_bundle_root() -> str:
    """Returns the folder of the bundle that ``python -m monai.bundle run`` runs, independent of the working directory.

    This is the absolute path of the folder above the ``configs`` of ``--config_file``. In another program, which gives ``bundle_root``
    itself or makes a :class:`GMRWorkflow`, it is ``"."``, MONAI's convention.

    Example:
        >>> find_bundle_root()
        '.'
    """
    config_file = _parse_arguments(_own_arguments()).get("config_file")
    return _root_of(config_file) if config_file else "."


def check_overrides(arguments: Sequence[str]) -> None:
    """Calls :func:`check_settings` for the arguments of ``python -m monai.bundle run``."""
    given = _parse_arguments(arguments)
    if not given.get("config_file"):
        return
    takers = (run, create_workflow, ConfigWorkflow.__init__)
    accepted = {name for taker in takers for name in inspect.signature(taker).parameters}
    accepted -= {"self", "override", "kwargs"}
    if "tracking" in given:
        accepted |= set(TRACKING_ARGUMENTS)
    check_settings(given, ConfigParser.load_config_files(given["config_file"]), accepted)


def guard_command_line(arguments: Sequence[str] | None = None) -> None:
    """Makes a bundle run end in one sentence if the user requested something impossible.

    Place it first in a config's ``initialize``. In ``python -m monai.bundle run`` it checks the overrides, and :func:`report` prints all
    later errors; in another program it does nothing. MONAI applies overrides before any code of a bundle runs;
    ``python -m monai_gmr.bundle run`` checks them before that. ``arguments`` default to those of this process.

    Raises:
        ConfigurationError: if an override is mistyped or impossible.
    """
    own = _own_arguments()
    if own:
        # Python's public hook: `monai.bundle run` catches nothing, and a config cannot choose its workflow
        sys.excepthook = report
        for handler in logging.getLogger().handlers:
            handler.addFilter(_is_news)
    check_overrides(own if arguments is None else arguments)


def refuse(sentence: str) -> None:
    """Raises :class:`ConfigurationError`, for a config that is not meant to be run."""
    raise ConfigurationError(sentence)


class GMRWorkflow(ConfigWorkflow):
    """``monai.bundle.ConfigWorkflow`` that checks overrides before it applies them (:func:`check_settings`), and knows its bundle's folder.

    Its arguments are those of ``ConfigWorkflow``; ``bundle_root``, if the config has it, is by default the folder above ``configs``,
    independent of the working directory.

    Example:
        >>> folder = getfixture("tmp_path") / "configs"; folder.mkdir()
        >>> _ = (folder / "train.json").write_text('{"bundle_root": ".", "epochs": 3}')
        >>> with quiet():
        ...     GMRWorkflow(str(folder / "train.json"), epohcs=4)
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: --epohcs is not a setting of this config: did you mean --epochs?
    """

    def __init__(self, config_file: str | Sequence[str], *args: Any, **kwargs: Any) -> None:
        config = ConfigParser.load_config_files(config_file)
        own = inspect.signature(ConfigWorkflow.__init__).parameters
        overrides = {name: value for name, value in kwargs.items() if name not in own}
        check_settings(overrides, config, TRACKING_ARGUMENTS if kwargs.get("tracking") else ())
        if "bundle_root" in config:
            kwargs.setdefault("bundle_root", _root_of(config_file))
        super().__init__(config_file, *args, **kwargs)
