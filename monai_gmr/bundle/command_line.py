"""The command line of ``python -m monai.bundle run``: typing errors and bad settings end in one sentence."""

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
    """Without MONAI's lines about files that a config need not have."""
    # logging has no public way to ask for this level
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _refused_component(error: BaseException | None) -> ConfigurationError | None:
    """The sentence about a component of a config whose constructor refused its arguments, in MONAI's words for that."""
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
    """Print the error that ends the process: the sentence of a ``ConfigurationError``, however often MONAI wrapped it, or the traceback.

    With ``MONAI_GMR_TRACEBACK=1`` in the environment it is always the traceback. The arguments are those of ``sys.excepthook``. In a
    distributed run the first process that fails prints; errors of the others that follow, such as a closed connection, are left out.
    """
    sentence = find_configuration_error(error) or _refused_component(error)
    if os.environ.get(TRACEBACK_VARIABLE) or (sentence is None and is_first_to_fail()):
        sys.__excepthook__(kind, error, trace)
        return
    if sentence is not None and is_first_to_fail(announce=True):
        tqdm, has_tqdm = optional_import("tqdm", name="tqdm")
        # a progress bar leaves its line first
        with tqdm.external_write_mode(file=sys.stderr) if has_tqdm else nullcontext():
            print(f"error: {sentence}", file=sys.stderr)
    for thread in threading.enumerate():
        # one that fills a cache: an interpreter that ends beneath its C++ code aborts the process
        if isinstance(thread, DummyProcess):
            thread.join()


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of a log is more than ignite's copy of a sentence that ends the process."""
    if not record.name.startswith("ignite") or os.environ.get(TRACEBACK_VARIABLE):
        return True
    return find_configuration_error(sys.exc_info()[1]) is None and is_first_to_fail()


def _parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """The named ones as fire reads them for ``monai.bundle.run``, over those of the ``args_file``."""
    if not arguments:
        return {}
    # not among the requirements of this library, and needed by this command only
    import fire

    parsed: dict[str, Any] = {}
    # what follows "--" is for fire itself
    fire.Fire(lambda *_, **named: parsed.update(named), list(takewhile(lambda argument: argument != "--", arguments)))
    if isinstance(parsed.get("args_file"), str):
        parsed = {**ConfigParser.load_config_file(parsed["args_file"]), **parsed}
    return parsed


def _own_arguments() -> list[str]:
    """What follows ``python -m monai.bundle run``, or ours, in this process; empty in any other program."""
    package, *rest = Path(sys.argv[0]).parts[-3:] or ("",)
    is_command = package in ("monai", "monai_gmr") and rest == ["bundle", "__main__.py"]
    return sys.argv[2:] if is_command and sys.argv[1:2] == ["run"] else []


def _root_of(config_file: Any) -> str:
    folder = Path(ensure_tuple(config_file)[0]).resolve().parent
    return str(folder.parent if folder.name == "configs" else folder)


def find_bundle_root() -> str:
    """The folder of the bundle that ``python -m monai.bundle run`` runs, whatever the working directory.

    That is the absolute path of the folder above the ``configs`` of ``--config_file``; ``"."``, MONAI's convention, in another program,
    which gives ``bundle_root`` itself or makes a :class:`GMRWorkflow`.

    Example:
        >>> find_bundle_root()
        '.'
    """
    config_file = _parse_arguments(_own_arguments()).get("config_file")
    return _root_of(config_file) if config_file else "."


def check_overrides(arguments: Sequence[str]) -> None:
    """:func:`check_settings` for what follows ``python -m monai.bundle run``."""
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
    """Make a bundle run end in one sentence when the user asked for what cannot be done.

    It stands first in a config's ``initialize``. In ``python -m monai.bundle run`` errors are printed by :func:`report` from then on,
    and the overrides are checked; in another program it does nothing. MONAI applies overrides before any code of a bundle runs;
    ``python -m monai_gmr.bundle run`` checks them before that. ``arguments`` are by default those of this process.

    Raises:
        ConfigurationError: when an override is mistyped or impossible.
    """
    own = _own_arguments()
    if own:
        # Python's public hook: `monai.bundle run` catches nothing, and a config cannot name the workflow that it makes
        sys.excepthook = report
        for handler in logging.getLogger().handlers:
            handler.addFilter(_is_news)
    check_overrides(own if arguments is None else arguments)


def refuse(sentence: str) -> None:
    """Raise :class:`ConfigurationError`, in a config that is not made to be run."""
    raise ConfigurationError(sentence)


class GMRWorkflow(ConfigWorkflow):
    """``monai.bundle.ConfigWorkflow`` that checks overrides before it applies them (:func:`check_settings`), and knows its bundle's folder.

    Its arguments are those of ``ConfigWorkflow``; ``bundle_root``, where the config has it, is by default the folder above ``configs``,
    whatever the working directory.

    Example:
        >>> folder = getfixture("tmp_path") / "configs"; folder.mkdir()
        >>> _ = (folder / "train.json").write_text('{"bundle_root": ".", "epochs": 3}')
        >>> with quiet():
        ...     GMRWorkflow(str(folder / "train.json"), epohcs=4)
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: --epohcs is no setting of this config: did you mean --epochs?
    """

    def __init__(self, config_file: str | Sequence[str], *args: Any, **kwargs: Any) -> None:
        config = ConfigParser.load_config_files(config_file)
        own = inspect.signature(ConfigWorkflow.__init__).parameters
        overrides = {name: value for name, value in kwargs.items() if name not in own}
        check_settings(overrides, config, TRACKING_ARGUMENTS if kwargs.get("tracking") else ())
        if "bundle_root" in config:
            kwargs.setdefault("bundle_root", _root_of(config_file))
        super().__init__(config_file, *args, **kwargs)
