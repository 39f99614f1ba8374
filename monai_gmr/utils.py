"""Errors and warnings that every floor of the library shares."""

from __future__ import annotations


class ConfigurationError(ValueError):
    """What the user asked for cannot be done; the message is one sentence that says what can.

    Example:
        >>> raise ConfigurationError("rings='gausian' is unknown: use 'gaussian', 'indexed' or 'hard'.")
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: rings='gausian' is unknown: use 'gaussian', 'indexed' or 'hard'.
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
