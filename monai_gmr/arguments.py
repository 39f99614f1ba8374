"""Arguments compared with their annotations: one of another kind is refused in one sentence before it is used."""

from __future__ import annotations

import inspect
import math
import os
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from functools import cache, wraps
from numbers import Integral, Real
from typing import Annotated, Any, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from monai_gmr.utils import ConfigurationError

# a layer of one of MONAI's factories
Named = Annotated[str | tuple[Any, Mapping[str, Any]], "a name or a pair of it and its arguments"]

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")
# longer values are described by their class
LONGEST_VALUE = 80


class Kind(NamedTuple):
    """What an annotation allows: ``passes`` takes a value; ``one`` and ``many`` are the words for one value and for several."""

    passes: Callable[[Any], bool]
    one: str
    many: str


def _scalar(value: Any) -> Any:
    """The number of an array of no axes; other values as they are."""
    if isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 0 and not getattr(value, "is_meta", False):
        return value.item()
    return value


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number of Python, NumPy or torch; truth values are none.

    Example:
        >>> [is_whole(value) for value in (3, np.int64(3), torch.tensor(3), 3.0, True, "3")]
        [True, True, True, False, False, False]
    """
    value = _scalar(value)
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number of Python, NumPy or torch; truth values are none.

    Example:
        >>> [is_number(value) for value in (3, 0.5, np.float32(3), math.inf, 1j, True, "3")]
        [True, True, True, True, False, False, False]
    """
    value = _scalar(value)
    return isinstance(value, Real) and not isinstance(value, bool)


def is_device(value: Any) -> bool:
    """Whether this machine has a device.

    Example:
        >>> is_device("cpu"), is_device("meta"), is_device("gpu"), is_device(None)
        (True, True, False, False)
    """
    try:
        device = torch.device(value)
        return device.type in ("cpu", "meta") or torch.empty(0, device=device).device.type == device.type
    except (RuntimeError, TypeError, AssertionError):
        return False


def _names_device(value: Any) -> bool:
    try:
        return bool(torch.device(value).type)
    except (RuntimeError, TypeError):
        return False


def is_seed(value: Any) -> bool:
    """Whether a value can begin the random numbers of NumPy and of torch.

    Example:
        >>> is_seed(0), is_seed(-1), is_seed(2**63)
        (True, False, False)
    """
    return is_whole(value) and 0 <= value < 2**63


def _is_flag(value: Any) -> bool:
    # torch and MONAI take what is neither for False
    value = _scalar(value)
    return value is None or isinstance(value, (bool, np.bool_)) or (is_whole(value) and value in (0, 1))


def _is_list(value: Any) -> bool:
    """Whether a value has an order and a length: sets and text have not."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


Device = Annotated[torch.device | str | int, is_device, "a device of this machine, such as 'cpu'"]
Seed = Annotated[int, is_seed, "a whole number from 0 to 2**63 - 1"]


_PLAIN: dict[Any, Kind] = {
    None: Kind(lambda value: value is None, "None", "None"),
    bool: Kind(_is_flag, "True or False", "truth values"),
    int: Kind(is_whole, "a whole number", "whole numbers"),
    float: Kind(is_number, "a number", "numbers"),
    str: Kind(lambda value: isinstance(value, str), "a name", "names"),
    tuple: Kind(_is_list, "a list", "lists"),
    # an array is a list of numbers alone
    Sequence: Kind(lambda value: isinstance(value, (list, tuple, range)), "a list", "lists"),
    Mapping: Kind(lambda value: isinstance(value, Mapping), "a dictionary", "dictionaries"),
    torch.device: Kind(_names_device, "a device, such as 'cpu' or 'cuda:0'", "devices"),
    torch.dtype: Kind(
        lambda value: isinstance(value, torch.dtype), "a torch.dtype, such as torch.float32", "torch.dtypes"
    ),
    torch.nn.Module: Kind(lambda value: isinstance(value, torch.nn.Module), "a torch.nn.Module", "networks"),
    torch.Tensor: Kind(lambda value: isinstance(value, torch.Tensor), "a tensor", "tensors"),
    np.ndarray: Kind(lambda value: isinstance(value, np.ndarray), "an array", "arrays"),
}
_PLAIN[type(None)] = _PLAIN[None]


def _is_path_class(hint: Any) -> bool:
    hint = get_origin(hint) or hint
    return isinstance(hint, type) and issubclass(hint, os.PathLike)


def _in_words(words: Sequence[str]) -> str:
    """Possibilities, joined so that those of parts stay apart."""
    parts = list(dict.fromkeys(words))
    last = ", or " if any(" or " in each for each in parts) else " or "
    return last.join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _any_of(hints: Sequence[Any]) -> Kind | None:
    # strings among them stand for one
    if torch.device in hints:
        hints = [each for each in hints if each not in (str, int)]
    elif any(map(_is_path_class, hints)):
        hints = [each for each in hints if each is not str]
    kinds = [kind_of(each) for each in hints]
    found = [each for each in kinds if each is not None]
    if len(found) < len(kinds):
        return None
    # the simplest is named first, None last
    found.sort(key=lambda kind: (kind.one == "None", len(kind.one)))
    one, many = (_in_words(words) for words in zip(*((kind.one, kind.many) for kind in found)))
    return Kind(lambda value: any(kind.passes(value) for kind in found), one, many)


def _list_of(container: type, hint: Any) -> Kind:
    each = kind_of(hint)

    def passes(value: Any) -> bool:
        # a collection need not have an order
        fits = _is_list(value) if issubclass(container, Sequence) else _is_list(value) or isinstance(value, container)
        return fits and not isinstance(value, (str, Mapping)) and all(each is None or each.passes(v) for v in value)

    return Kind(passes, f"a list of {each.many}" if each else "a list", f"lists of {each.many}" if each else "lists")


def _pair_of(hints: Sequence[Any]) -> Kind:
    kinds = [kind_of(each) for each in hints]

    def passes(value: Any) -> bool:
        return (
            _is_list(value)
            and len(value) == len(kinds)
            and all(kind is None or kind.passes(item) for kind, item in zip(kinds, value))
        )

    parts = " and ".join("a value" if kind is None else kind.one for kind in kinds)
    return Kind(passes, f"a pair of {parts}" if len(kinds) == 2 else f"a list of {parts}", f"lists of {parts}")


def _mapping_of(hints: Sequence[Any]) -> Kind:
    kinds = [kind_of(each) for each in hints]
    known = [kind.many for kind in kinds if kind is not None]

    def passes(value: Any) -> bool:
        return isinstance(value, Mapping) and all(
            kind is None or kind.passes(part) for item in value.items() for kind, part in zip(kinds, item)
        )

    words = f" of {known[0]} to {known[1]}" if len(known) == 2 else ""
    return Kind(passes, f"a dictionary{words}", f"dictionaries{words}")


@cache
def kind_of(hint: Any) -> Kind | None:
    """The values that an annotation allows; ``None`` where it allows all, or is not known here.

    Example:
        >>> kind = kind_of(int | Sequence[int] | None)
        >>> kind.one, kind.passes([3, 5]), kind.passes("3")
        ('a whole number, a list of whole numbers or None', True, False)
    """
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        # with its words, and perhaps a function that says which values of its kind are possible
        *tests, words = hint.__metadata__
        kind = kind_of(parts[0])
        tests = [*([] if kind is None else [kind.passes]), *tests]
        return Kind(lambda value: all(test(value) for test in tests), words, words)
    if origin in (Union, types.UnionType):
        return _any_of(parts)
    if isinstance(hint, TypeVar):
        return _any_of(hint.__constraints__) if hint.__constraints__ else None
    if origin is tuple and parts[-1] is not Ellipsis:
        return _pair_of(parts)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping_of(parts)
    if isinstance(origin, type) and issubclass(origin, Collection):
        return _list_of(origin, parts[0])
    if origin is Callable or hint is Callable:
        return Kind(callable, "a function", "functions")
    if _is_path_class(hint):
        return Kind(lambda value: isinstance(value, (str, os.PathLike)), "a path", "paths")
    if isinstance(hint, type) and hint not in (object, Any) and origin is None:
        return Kind(lambda value: isinstance(value, hint), f"an object of class {hint.__name__}", f"{hint.__name__}s")
    return None


def describe(value: Any) -> str:
    """A value in an error: as it is written, or its class where that is long.

    Example:
        >>> describe("wide"), describe(torch.zeros(9, 9)), describe(torch.nn.ReLU())
        ("'wide'", 'Tensor', 'ReLU')
    """
    text = repr(value.item() if isinstance(value, np.generic) else value)
    long = len(text) > LONGEST_VALUE or "\n" in text
    return type(value).__name__ if long or isinstance(value, torch.nn.Module) else text


def check_choice(name: str, value: object, choices: tuple) -> None:
    """Raise :class:`~monai_gmr.utils.ConfigurationError` when ``value`` is not one of ``choices``."""
    # an array is compared value by value
    if isinstance(value, (np.ndarray, torch.Tensor)) or value not in choices:
        possible = ", ".join(repr(choice) for choice in choices)
        raise ConfigurationError(f"{name}={describe(value)} is unknown: use one of {possible}.")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise :class:`~monai_gmr.utils.ConfigurationError` when ``value`` is no whole number of at least ``least``."""
    if not is_whole(value) or value < least:
        raise ConfigurationError(f"{name}={describe(value)} is impossible: give a whole number of at least {least}.")


def check_counts(name: str, values: Any, example: tuple) -> None:
    """Raise :class:`~monai_gmr.utils.ConfigurationError` when ``values`` are no list of whole numbers of at least 1; ``example`` is one."""
    if not _is_list(values) or not len(values):
        raise ConfigurationError(
            f"{name}={describe(values)} is impossible: give a list of whole numbers, such as {list(example)}."
        )
    for index, value in enumerate(values):
        check_count(f"{name}[{index}]", value)


def check_number(name: str, value: Any, least: float, most: float = math.inf, above: bool = False) -> None:
    """Raise :class:`~monai_gmr.utils.ConfigurationError` when ``value`` is no number from ``least`` to ``most``, or ``above`` the least.

    Example:
        >>> check_number("prob", 1.5, 0, 1)
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: prob=1.5 is impossible: give a number from 0 to 1.
    """
    if not is_number(value) or not least <= value <= most or math.isinf(value) or (above and value == least):
        limits = f"{'above' if above else 'of at least'} {least:g}"
        if most < math.inf:
            limits = f"above {least:g} and at most {most:g}" if above else f"from {least:g} to {most:g}"
        raise ConfigurationError(f"{name}={describe(value)} is impossible: give a number {limits}.")


def voxel_spacing(spacing: Sequence[float] | None, spatial_dims: int) -> tuple[float, ...]:
    """The voxel size along each axis in millimetres, 1 where none is given.

    Raises:
        ConfigurationError: when they are no positive numbers, one an axis.

    Example:
        >>> voxel_spacing(None, 2), voxel_spacing([1, 3], 2)
        ((1.0, 1.0), (1.0, 3.0))
    """
    if spacing is None:
        return (1.0,) * spatial_dims
    fits = _is_list(spacing) and all(is_number(step) and 0 < step < math.inf for step in spacing)
    if not fits or len(spacing) != spatial_dims:
        raise ConfigurationError(
            f"spacing={describe(spacing)} does not fit: give {spatial_dims} voxel sizes above 0 in millimetres, one an axis."
        )
    return tuple(float(step) for step in spacing)


def reads_as_number(value: Any) -> bool:
    """Whether a value is a finite number written as text.

    Example:
        >>> [reads_as_number(value) for value in ("30", "1e-4", "few", 30, "inf")]
        [True, True, False, False, False]
    """
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def check_argument(name: str, value: Any, hint: Any) -> None:
    """Raise :class:`~monai_gmr.utils.ConfigurationError` when a value is not what an annotation allows.

    Example:
        >>> check_argument("sigma", "1e-4", float)
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: sigma='1e-4' is text, as YAML reads it: give a number, with a point as in 1.0e-4.
    """
    kind = kind_of(hint)
    if kind is None or kind.passes(value):
        return
    if reads_as_number(value) and "e" in value.lower() and kind.passes(float(value)):
        raise ConfigurationError(
            f"{name}={value!r} is text, as YAML reads it: give {kind.one}, with a point as in 1.0e-4."
        )
    if _is_list(value) and len(value) > 1:
        # the entry that is wrong, where it is one
        wrong = [index for index, item in enumerate(value) if not kind.passes([item])]
        if 0 < len(wrong) < len(value):
            name, value = f"{name}[{wrong[0]}]", value[wrong[0]]
    raise ConfigurationError(f"{name}={describe(value)} is impossible: give {kind.one}.")


@cache
def _is_name(hint: Any) -> bool:
    """Whether an annotation allows names alone; which there are is for :func:`check_choice` to say."""
    parts = get_args(hint) or (hint,)
    kinds = [each for each in parts if isinstance(each, type) and issubclass(each, (str, Enum))]
    return bool(kinds) and len(kinds) + parts.count(type(None)) == len(parts)


def checked_arguments(function: Callable[Parameters, Answer]) -> Callable[Parameters, Answer]:
    """A function, or an ``__init__``, that first compares its arguments with their annotations.

    Numbers, lists and devices are those of Python, NumPy and torch. Which names there are is for the function to say: it does not compare
    what is annotated as a name alone.

    Raises:
        ConfigurationError: when an argument is of another kind.

    Example:
        >>> @checked_arguments
        ... def blur(sigma: float, axes: int | Sequence[int] = 0) -> float:
        ...     return sigma
        >>> blur(2, axes=[0, 1])
        2
        >>> blur(2.0, axes="all")
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: axes='all' is impossible: give a whole number or a list of whole numbers.
    """
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if not hints:
            # only now are names of all modules known
            hints.update(get_type_hints(function, include_extras=True), **{"return": None})
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            # Python's own sentence about a name, or about their number
            return function(*args, **kwargs)
        for name, value in given.items():
            hint = hints.get(name)
            if hint is not None and not _is_name(hint):
                check_argument(name, value, hint)
        return function(*args, **kwargs)

    return checked
