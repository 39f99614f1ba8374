"""Errors, nested tensors and progress bars, shared by every folder of the library."""

from __future__ import annotations

import inspect
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from monai.data import MetaTensor
from monai.utils import optional_import

Item = TypeVar("Item")
# packages whose lines a warning does not show; code run by ``eval`` has no name
NOT_THE_CALLERS = ("monai_gmr", "monai", "torch", "ignite", "fire", "")


class ConfigurationError(ValueError):
    """Raised if a request is impossible; the message is one sentence that says what is possible.

    Example:
        >>> raise ConfigurationError("rings='gausian' is unknown: use 'gaussian', 'indexed' or 'hard'.")
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: rings='gausian' is unknown: use 'gaussian', 'indexed' or 'hard'.
    """


class WriteError(ConfigurationError):
    """Raised if a file cannot be written; ends the run, because the next file could not be written either."""


class SymmetryWarning(UserWarning):
    """Warns that a layer works, but its result is not exactly equivariant."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn with the caller's line: the innermost one outside of this library, torch, ignite and MONAI.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warn("the net is not exact", SymmetryWarning)
        >>> caught[0].category.__name__, str(caught[0].message)
        ('SymmetryWarning', 'the net is not exact')
    """
    # from Python 3.12 on, warnings.warn has skip_file_prefixes for this
    frames = traceback.walk_stack(inspect.currentframe())
    packages = [frame.f_globals.get("__name__", "").split(".")[0] for frame, _ in frames]
    callers = [level for level, package in enumerate(packages, 1) if package not in NOT_THE_CALLERS]
    warnings.warn(message, category, stacklevel=callers[0] if callers else len(packages))


@contextmanager
def kept_buffers(net: torch.nn.Module) -> Iterator[None]:
    """Restores a network's buffers, which it may change or replace inside the context.

    Example:
        >>> norm = torch.nn.BatchNorm1d(1)
        >>> with kept_buffers(norm):
        ...     _ = norm(torch.ones(2, 1))
        >>> norm.running_mean
        tensor([0.])
    """
    before = [
        (module, name, buffer, buffer.detach().clone())
        for module in net.modules()
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, values in before:
                if getattr(module, name) is not buffer:
                    setattr(module, name, buffer)
                # writing into a table marks it as changed
                if not torch.equal(buffer, values):
                    buffer.copy_(values)


def windowed_layers(net: torch.nn.Module) -> list[Any]:
    """Layers with weights and a window, in the order of ``modules()``.

    Modules without own weights are left out: they can hold the windows of their levels under the same name, like
    ``monai.networks.nets.DynUNet``.

    Example:
        >>> [layer.in_channels for layer in windowed_layers(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5), torch.nn.MaxPool2d(2)))]
        [3]
    """
    return [each for each in net.modules() if hasattr(each, "kernel_size") and hasattr(each, "weight")]


def can_import(package: str, without: str) -> bool:
    """Whether an optional package can be imported; if not, prints a sentence with the consequence, ``without``."""
    there = bool(optional_import(package)[1])
    if not there:
        print(f"{package} cannot be imported, so {without}: pip install 'monai-gmr[bundle]'.")
    return there


def can_draw(what: str = "picture") -> bool:
    """Whether matplotlib, which is optional, can be imported; if not, prints a sentence on what is left out."""
    return can_import("matplotlib", f"no {what} is drawn")


WORKER_SENTENCE = re.compile(rf"(?m)^{ConfigurationError.__module__}\.{ConfigurationError.__qualname__}: (.+)$")


def find_configuration_error(error: BaseException | None) -> ConfigurationError | None:
    """First :class:`ConfigurationError` among an error, its causes and its contexts; MONAI wraps errors once for each level of its
    config."""
    visited: list[BaseException] = []
    waiting = [error]
    while waiting:
        current = waiting.pop(0)
        if current is None or current in visited:
            continue
        if isinstance(current, ConfigurationError):
            return current
        # torch passes on an error of a loader's worker as the text of its traceback
        sentence = WORKER_SENTENCE.search(str(current))
        if sentence is not None:
            return ConfigurationError(sentence.group(1))
        visited.append(current)
        waiting += [current.__cause__, current.__context__]
    return None


def reason(error: BaseException) -> str:
    """An error in one line: the sentence of a ``ConfigurationError``, or the first cause of all.

    Example:
        >>> wrapped = RuntimeError("applying transform LoadImaged")
        >>> wrapped.__cause__ = FileNotFoundError("no such file: a.nii.gz\\nread on")
        >>> reason(wrapped), reason(KeyError("image")), reason(ValueError())
        ('FileNotFoundError: no such file: a.nii.gz', "KeyError: 'image'", 'ValueError')
    """
    known = find_configuration_error(error)
    if known is not None:
        return str(known)
    # the cause of a missing reference in a config only says that a list of ids does not contain it
    while error.__cause__ is not None and "the referring item" not in str(error):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # torch begins with "Error(s) in loading state_dict for UNet:"
    return f"{type(error).__name__}: {lines[-1 if lines[0].endswith(':') else 0].rstrip('.')}"


def map_tensors(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """Nested tuples, lists and dictionaries with a function applied to every tensor; everything else is unchanged.

    Example:
        >>> map_tensors({"a": torch.zeros(1), "b": [torch.ones(1), "c"]}, float)
        {'a': 0.0, 'b': [1.0, 'c']}
    """
    if isinstance(value, torch.Tensor):
        return function(value)
    # before the check for a mapping, which takes longer
    if isinstance(value, (list, tuple)):
        items = [map_tensors(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, function) for key, item in value.items()}
    return value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor in nested tuples, lists and dictionaries, in order."""
    tensors: list[torch.Tensor] = []
    map_tensors(value, tensors.append)
    return tensors


def on_plain_tensor(function: Callable[..., Any], x: MetaTensor, *args: Any, **kwargs: Any) -> Any:
    """Result of a function of a MetaTensor, computed on a plain tensor; its tensors get the metadata that a torch operation would give.

    Each operation on a MetaTensor scans the metadata, which takes as long as a small layer.

    Example:
        >>> image = MetaTensor(torch.ones(1, 1, 2, 2), affine=2 * torch.eye(4))
        >>> answer = on_plain_tensor(lambda x: [type(x), x + 1], image)
        >>> answer[0].__name__, type(answer[1]).__name__, float(answer[1].affine[0, 0])
        ('Tensor', 'MetaTensor', 2.0)
    """

    def with_metadata(answer: torch.Tensor) -> torch.Tensor:
        # torch's protocol for operations on subclasses
        return MetaTensor.__torch_function__(lambda _: answer, (MetaTensor,), (x,))

    return map_tensors(function(x.as_subclass(torch.Tensor), *args, **kwargs), with_metadata)


def progress_bar(items: Sequence[Item], description: str, show: bool = True) -> Iterable[Item]:
    """The items, with a progress bar if ``show`` and tqdm is installed."""
    tqdm, has_tqdm = optional_import("tqdm", name="tqdm")
    return tqdm(items, desc=description) if show and has_tqdm else items
