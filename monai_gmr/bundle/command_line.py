"""The command line of ``python -m monai.bundle run``: typing errors and bad settings end in one sentence."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.dummy import DummyProcess
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from types import TracebackType
from typing import Any

from monai.utils import optional_import

from monai_gmr.utils import ConfigurationError

TRACEBACK_VARIABLE = "MONAI_GMR_TRACEBACK"
WORKER_SENTENCE = re.compile(rf"(?m)^{ConfigurationError.__module__}\.{ConfigurationError.__qualname__}: (.+)$")
# what a component of MONAI's configs has beside the arguments of its target
COMPONENT_KEYS = ("_target_", "_disabled_", "_requires_", "_desc_", "_mode_")
IDS = re.compile(r"@(\w+)")
TRACKING_ARGUMENTS = ("output_dir", "tracking_uri", "experiment_name", "run_name", "save_execute_config")


@contextmanager
def quiet() -> Iterator[None]:
    """Without MONAI's lines about files that a config need not have.

    Example:
        >>> with quiet():
        ...     logging.getLogger("monai").error("there is no metadata.json")
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def find_configuration_error(error: BaseException | None) -> ConfigurationError | None:
    """The sentence in an error that MONAI wrapped, once for every floor of its config.

    Args:
        error: what was raised; all its causes and contexts are looked through.

    Returns:
        the first :class:`~monai_gmr.utils.ConfigurationError`, or ``None``.

    Example:
        >>> wrapped = RuntimeError("Failed to instantiate")
        >>> wrapped.__cause__ = ConfigurationError("give --epochs 3.")
        >>> str(find_configuration_error(wrapped))
        'give --epochs 3.'
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        current = waiting.pop(0)
        if current is None or id(current) in seen:
            continue
        if isinstance(current, ConfigurationError):
            return current
        # torch hands on an error of a loader's worker as the text of its traceback
        told = WORKER_SENTENCE.search(str(current))
        if told is not None:
            return ConfigurationError(told.group(1))
        seen.add(id(current))
        waiting += [current.__cause__, current.__context__]
    return None


def reason(error: BaseException) -> str:
    """What went wrong, in one line: the sentence of a ``ConfigurationError``, or the first error below all that was wrapped around it.

    Example:
        >>> wrapped = RuntimeError("applying transform LoadImaged")
        >>> wrapped.__cause__ = FileNotFoundError("no such file: a.nii.gz\\nread on")
        >>> reason(wrapped), reason(KeyError("image")), reason(ValueError())
        ('FileNotFoundError: no such file: a.nii.gz', "KeyError: 'image'", 'ValueError')
    """
    found = find_configuration_error(error)
    if found is not None:
        return str(found)
    # below a missing reference of a config stands only that a list of ids does not hold it
    while error.__cause__ is not None and "the referring item" not in str(error):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # torch begins with "Error(s) in loading state_dict for UNet:"
    line = lines[-1] if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {line.rstrip('.')}"


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    found = find_configuration_error(error)
    if found is None or os.environ.get(TRACEBACK_VARIABLE):
        sys.__excepthook__(kind, error, trace)
        return
    tqdm, has_tqdm = optional_import("tqdm", name="tqdm")
    # a progress bar leaves its line first
    with tqdm.external_write_mode(file=sys.stderr) if has_tqdm else nullcontext():
        print(f"error: {found}", file=sys.stderr)
    for thread in threading.enumerate():
        # one that fills a cache: an interpreter that ends beneath its C++ code aborts the process
        if isinstance(thread, DummyProcess):
            thread.join()


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of a log is more than ignite's copy of a sentence that ends the process."""
    told = record.name.startswith("ignite") and find_configuration_error(sys.exc_info()[1]) is not None
    return not told or bool(os.environ.get(TRACEBACK_VARIABLE))


def find_bundle_root() -> str:
    """The folder of the bundle whose config is being run, whatever the working directory.

    MONAI tells an expression of a config nothing about the file it stands in, so the running
    ``monai.bundle.ConfigWorkflow`` is looked up on the call stack.

    Returns:
        absolute path of the folder above ``configs``; ``"."``, MONAI's convention, when no workflow is running.

    Example:
        >>> find_bundle_root()
        '.'
    """
    from monai.bundle import ConfigWorkflow

    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigWorkflow):
            folder = Path(owner.config_root_path).resolve()
            return str(folder.parent if folder.name == "configs" else folder)
        frame = frame.f_back
    return "."


def _parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """``--name value``, ``--name=value`` and ``--name`` the way fire reads them."""
    from fire.parser import DefaultParseValue

    parsed: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        item = rest.pop(0)
        if item == "--":
            break
        if not item.startswith("--"):
            continue
        name, equals, value = item[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "True"
        parsed[name.replace("-", "_")] = DefaultParseValue(value)
    return parsed


def _is_kind(value: Any, default: Any) -> bool:
    """Whether an override can stand where the config has a plain value; references and expressions always can."""
    if isinstance(value, str) and value[:1] in ("$", "@", "%"):
        return True
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, list):
        return isinstance(value, (list, tuple))
    return True


def _arguments_of(component: Mapping[str, Any]) -> set[str] | None:
    """What the ``_target_`` of a component takes by name; ``None`` where that is anything, or is not known."""
    from monai.bundle import ComponentLocator

    target = component.get("_target_")
    if not isinstance(target, str) or target[:1] in ("$", "@", "%"):
        return None
    try:
        found: Any = ComponentLocator().get_component_module_name(target)
        found = locate(f"{found[0] if isinstance(found, list) else found}.{target}" if found else target)
        parameters = inspect.signature(found).parameters.values()
    except (ErrorDuringImport, TypeError, ValueError, ImportError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL}


def _find_nested(name: str, config: Mapping[str, Any], prefix: str) -> Any:
    """What a config has under an id, ``None`` where the id adds something; raises where it adds what nothing reads."""
    keys = name.replace("#", "::").split("::")
    node: Any = config
    for depth, key in enumerate(keys):
        before, last = "::".join(keys[:depth]), depth == len(keys) - 1
        if isinstance(node, Mapping):
            if key in node:
                node = node[key]
                continue
            known = _arguments_of(node) if "_target_" in node else None
            names = sorted({*node, *(known or ()), *(COMPONENT_KEYS if "_target_" in node else ())})
            # a dictionary that is no component may hold anything, so only what looks like a typing error is refused
            strict = known is not None or not last
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.5 if strict else 0.75)
            if last and ((known is not None and key in names) or (not strict and not near)):
                return None
            hint = f"did you mean {prefix}{before}::{near[0]}?" if near else f"{before} has {', '.join(names)}."
        elif isinstance(node, list):
            if key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
                continue
            hint = f"{before} is a list of {len(node)}, whose entries are 0 to {len(node) - 1}."
        elif isinstance(node, str) and node[:1] == "@":
            hint = f"{before} is what {node[1:]} is: did you mean {prefix}{node[1:]}::{'::'.join(keys[depth:])}?"
        else:
            part = next((part for part in IDS.findall(str(node)) if isinstance(config.get(part), Mapping)), None)
            hint = f"{before} is {node}, which has no parts: " + (
                f"did you mean {prefix}{part}::{'::'.join(keys[depth:])}?"
                if part
                else f"give {prefix}{before} as a whole."
            )
        raise ConfigurationError(f"{prefix}{name} is no setting of this config: {hint}")
    return node


def check_settings(
    settings: Mapping[str, Any], config: Mapping[str, Any], accepted: Iterable[str] = (), prefix: str = "--"
) -> None:
    """Raise when a setting names nothing in a config, which MONAI would accept silently, or is of another kind.

    Args:
        settings: ids of the config, ``"::"`` or ``"#"`` between the names of nested ones, to values.
        config: the content of the config files.
        accepted: further names that may be given.
        prefix: what the user writes before a name.

    Raises:
        ConfigurationError: when a name is neither in the config nor accepted nor an argument of the component that it is below (the
            nearest name is given), or a value cannot stand where the config has a switch, a number or a list.

    Example:
        >>> check_settings({"epohcs": 3}, {"epochs": 10}, prefix="")
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: epohcs is no setting of this config: did you mean epochs?
    """
    names = {*config, *accepted}
    for name, value in settings.items():
        head = name.replace("#", "::").split("::")[0]
        if head not in names and head != "_meta_":
            near = difflib.get_close_matches(head, sorted(names), n=1, cutoff=0.5)
            plain = sorted(k for k, v in config.items() if not isinstance(v, (dict, list)) and not k.startswith("_"))
            hint = f"did you mean {prefix}{near[0]}?" if near else f"the settings are {', '.join(plain)}."
            raise ConfigurationError(f"{prefix}{name} is no setting of this config: {hint}")
        default = None if head == "_meta_" or head not in config else _find_nested(name, config, prefix)
        if not _is_kind(value, default):
            kinds = {bool: "True or False", int: "a whole number", float: "a number", list: "a list such as"}
            kind = kinds[type(default)] + (f" {default}" if isinstance(default, list) else "")
            raise ConfigurationError(f"{prefix}{name} {value} cannot be used: give {kind}.")


def check_overrides(arguments: Sequence[str]) -> None:
    """Raise when an override names nothing in the config, which MONAI would accept silently, or is of another kind.

    Args:
        arguments: what follows ``python -m monai.bundle run``.

    Raises:
        ConfigurationError: when a top-level name is neither in the config files nor an argument of ``monai.bundle run``;
            the nearest name is given.
    """
    from monai.bundle import ConfigParser, ConfigWorkflow, run

    given = _parse_arguments(arguments)
    if isinstance(given.get("args_file"), str):
        given = {**ConfigParser.load_config_file(given["args_file"]), **given}
    if not given.get("config_file"):
        return
    config = ConfigParser.load_config_files(given["config_file"])
    accepted = {*inspect.signature(run).parameters, *inspect.signature(ConfigWorkflow.__init__).parameters}
    accepted -= {"self", "override"}
    if "tracking" in given:
        accepted |= set(TRACKING_ARGUMENTS)
    check_settings(given, config, accepted)


def guard_command_line(arguments: Sequence[str] | None = None) -> None:
    """Make a bundle run end in one sentence when the user asked for what cannot be done.

    A :class:`~monai_gmr.utils.ConfigurationError` that ends the process is printed as one line, however often MONAI
    wrapped it, and the exit status is 1; ``MONAI_GMR_TRACEBACK=1`` in the environment brings the traceback back. Then the
    overrides of ``python -m monai.bundle run`` are checked. It stands first in a config's ``initialize``.

    Args:
        arguments: what follows ``python -m monai.bundle run``; default: this process's own, if it is one.

    Raises:
        ConfigurationError: when an override on the command line is mistyped.

    Example:
        >>> guard_command_line(["--seed", "3"])
    """
    sys.excepthook = _report
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
    if arguments is None:
        program = Path(sys.argv[0])
        if program.parts[-3:] != ("monai", "bundle", "__main__.py") or sys.argv[1:2] != ["run"]:
            return
        arguments = sys.argv[2:]
    check_overrides(arguments)
