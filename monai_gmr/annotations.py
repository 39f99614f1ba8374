"""Annotations of arguments as tests of values, and a decorator that checks arguments against them."""

from __future__ import annotations

import inspect
import os
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from functools import cache, partial, wraps
from typing import Annotated, Any, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from monai_gmr.arguments import describe, is_device, is_list, is_number, is_seed, is_whole, reads_as_number, scalar
from monai_gmr.utils import ConfigurationError

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")
# layer of a MONAI factory
Named = Annotated[str | tuple[Any, Mapping[str, Any]], "a name or a pair of it and its arguments"]
Device = Annotated[torch.device | str | int, is_device, "a device of this machine, such as 'cpu'"]
SpatialDims = Annotated[int, lambda dims: dims in (1, 2, 3), "1, 2 or 3"]
Seed = Annotated[int, is_seed, "a whole number from 0 to 2**63 - 1"]


class Kind(NamedTuple):
    """Values that an annotation allows: ``passes`` tests a value; ``one`` and ``many`` are the words for one value and for several."""

    passes: Callable[[Any], bool]
    one: str
    many: str


def _names_device(value: Any) -> bool:
    try:
        return bool(torch.device(value).type)
    except (RuntimeError, TypeError):
        return False


def _is_flag(value: Any) -> bool:
    # torch and MONAI treat any other value as False
    value = scalar(value)
    return value is None or isinstance(value, (bool, np.bool_)) or (is_whole(value) and value in (0, 1))


_PLAIN: dict[Any, Kind] = {
    None: Kind(lambda value: value is None, "None", "None"),
    bool: Kind(_is_flag, "True or False", "truth values"),
    int: Kind(is_whole, "a whole number", "whole numbers"),
    float: Kind(is_number, "a number", "numbers"),
    str: Kind(lambda value: isinstance(value, str), "a name", "names"),
    tuple: Kind(is_list, "a list", "lists"),
    # arrays only count as lists of numbers
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
    """Joins possibilities so that nested ones stay separate."""
    parts = list(dict.fromkeys(words))
    last = ", or " if any(" or " in each for each in parts) else " or "
    return last.join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _any_of(hints: Sequence[Any]) -> Kind | None:
    # here strings name devices or paths
    if torch.device in hints:
        hints = [each for each in hints if each not in (str, int)]
    elif any(map(_is_path_class, hints)):
        hints = [each for each in hints if each is not str]
    kinds = [kind_of(each) for each in hints]
    found = [each for each in kinds if each is not None]
    if len(found) < len(kinds):
        return None
    # the shortest comes first, None last
    found.sort(key=lambda kind: (kind.one == "None", len(kind.one)))
    one, many = (_in_words(words) for words in zip(*((kind.one, kind.many) for kind in found)))
    return Kind(lambda value: any(kind.passes(value) for kind in found), one, many)


def _list_of(container: type, hint: Any) -> Kind:
    each = kind_of(hint)

    def passes(value: Any) -> bool:
        # a collection can be unordered
        fits = is_list(value) if issubclass(container, Sequence) else is_list(value) or isinstance(value, container)
        return fits and not isinstance(value, (str, Mapping)) and all(each is None or each.passes(v) for v in value)

    return Kind(passes, f"a list of {each.many}" if each else "a list", f"lists of {each.many}" if each else "lists")


def _pair_of(hints: Sequence[Any]) -> Kind:
    kinds = [kind_of(each) for each in hints]

    def passes(value: Any) -> bool:
        return (
            is_list(value)
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
    """Values that an annotation allows; ``None`` if it allows any value or is unknown.

    Example:
        >>> kind = kind_of(int | Sequence[int] | None)
        >>> kind.one, kind.passes([3, 5]), kind.passes("3")
        ('a whole number, a list of whole numbers or None', True, False)
    """
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        # its words, optionally preceded by a function that tests a value
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


def check_argument(name: str, value: Any, hint: Any) -> None:
    """Raises :class:`~monai_gmr.utils.ConfigurationError` if an annotation does not allow a value.

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
    if is_list(value) and len(value) > 1:
        # name the first wrong entry if others are right
        wrong = [index for index, item in enumerate(value) if not kind.passes([item])]
        if 0 < len(wrong) < len(value):
            name, value = f"{name}[{wrong[0]}]", value[wrong[0]]
    raise ConfigurationError(f"{name}={describe(value)} is impossible: give {kind.one}.")


@cache
def _is_name(hint: Any) -> bool:
    """Whether an annotation only allows names, which :func:`check_choice` checks."""
    parts = get_args(hint) or (hint,)
    kinds = [each for each in parts if isinstance(each, type) and issubclass(each, (str, Enum))]
    return bool(kinds) and len(kinds) + parts.count(type(None)) == len(parts)


def checked_arguments(function: Callable[Parameters, Answer]) -> Callable[Parameters, Answer]:
    """Decorator of a function or an ``__init__`` that checks its arguments against their annotations.

    Numbers, lists and devices can be those of Python, NumPy and torch. Arguments annotated only as names are not checked: the function
    checks which names are possible.

    Raises:
        ConfigurationError: if an argument is of another kind.

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
    # read at the first call, when the names of all modules are known
    read_hints = cache(partial(get_type_hints, function, include_extras=True))

    @wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            # Python raises its error about a name or the number of arguments
            return function(*args, **kwargs)
        for name, value in given.items():
            hint = read_hints().get(name)
            if hint is not None and not _is_name(hint):
                check_argument(name, value, hint)
        return function(*args, **kwargs)

    return checked
