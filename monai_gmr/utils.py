"""Errors and warnings that all packages share."""

from __future__ import annotations

import re

from monai.utils import optional_import


class ConfigurationError(ValueError):
    """What the user asked for cannot be done; the message is one sentence that says what can.

    Example:
        >>> raise ConfigurationError("rings='gausian' is unknown: use 'gaussian', 'indexed' or 'hard'.")
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: rings='gausian' is unknown: use 'gaussian', 'indexed' or 'hard'.
    """


class WriteError(ConfigurationError):
    """What a run makes cannot be written: no later case would fare better, so it ends the run.

    Example:
        >>> issubclass(WriteError, ConfigurationError)
        True
    """


class SymmetryWarning(UserWarning):
    """A layer works, but its result will not turn exactly with its input."""


def check_choice(name: str, value: object, choices: tuple) -> None:
    """Raise :class:`ConfigurationError` when ``value`` is not one of ``choices``.

    Example:
        >>> check_choice("rings", "hard", ("gaussian", "indexed", "hard"))
    """
    if value not in choices:
        possible = ", ".join(repr(choice) for choice in choices)
        raise ConfigurationError(f"{name}={value!r} is unknown: use one of {possible}.")


def can_draw(what: str = "picture") -> bool:
    """Whether matplotlib, which is optional, is there; where it is not, says in one sentence what is left out.

    Example:
        >>> can_draw()
        True
    """
    there = bool(optional_import("matplotlib")[1])
    if not there:
        print(f"matplotlib cannot be imported, so no {what} is drawn: pip install 'monai-gmr[bundle]'.")
    return there


WORKER_SENTENCE = re.compile(rf"(?m)^{ConfigurationError.__module__}\.{ConfigurationError.__qualname__}: (.+)$")


def find_configuration_error(error: BaseException | None) -> ConfigurationError | None:
    """The sentence in an error that MONAI wrapped, once for each level of its config.

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
    visited: set[int] = set()
    waiting = [error]
    while waiting:
        current = waiting.pop(0)
        if current is None or id(current) in visited:
            continue
        if isinstance(current, ConfigurationError):
            return current
        # torch passes an error of a loader's worker on as the text of its traceback
        sentence = WORKER_SENTENCE.search(str(current))
        if sentence is not None:
            return ConfigurationError(sentence.group(1))
        visited.add(id(current))
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
