"""Errors, nested tensors and progress bars, shared by every folder of the library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from monai.utils import optional_import

Item = TypeVar("Item")


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


def map_tensors(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """Nested tuples, lists and dictionaries with a function applied to every tensor; everything else is unchanged.

    Example:
        >>> map_tensors({"a": torch.zeros(1), "b": [torch.ones(1), "c"]}, float)
        {'a': 0.0, 'b': [1.0, 'c']}
    """
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, function) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, function) for item in value)
    return value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor in nested tuples, lists and dictionaries, in order.

    Example:
        >>> tensors_in({"a": torch.zeros(1), "b": [torch.ones(1), "c"]})
        [tensor([0.]), tensor([1.])]
    """
    tensors: list[torch.Tensor] = []
    map_tensors(value, tensors.append)
    return tensors


def progress_bar(items: Sequence[Item], description: str, show: bool = True) -> Iterable[Item]:
    """The items, with a bar over them if it is wanted and tqdm is installed.

    Example:
        >>> list(progress_bar([1, 2], "windows", show=False))
        [1, 2]
    """
    tqdm, has_tqdm = optional_import("tqdm", name="tqdm")
    return tqdm(items, desc=description) if show and has_tqdm else items
