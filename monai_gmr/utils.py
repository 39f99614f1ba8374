"""Errors and warnings that every floor of the library shares."""

from __future__ import annotations

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
