"""Checks of single values that raise one-sentence errors, and descriptions of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from monai_gmr.utils import ConfigurationError

# longer values are described by their class
LONGEST_VALUE = 80


def scalar(value: Any) -> Any:
    """The number in an array without axes; other values unchanged.

    Example:
        >>> scalar(torch.tensor(3)), scalar("3")
        (3, '3')
    """
    if isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 0 and not getattr(value, "is_meta", False):
        return value.item()
    return value


def is_whole(value: Any) -> bool:
    """Whether a value is an integer of Python, NumPy or torch; booleans are not.

    Example:
        >>> [is_whole(value) for value in (3, np.int64(3), torch.tensor(3), 3.0, True, "3")]
        [True, True, True, False, False, False]
    """
    value = scalar(value)
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number of Python, NumPy or torch; booleans are not.

    Example:
        >>> [is_number(value) for value in (3, 0.5, np.float32(3), math.inf, 1j, True, "3")]
        [True, True, True, True, False, False, False]
    """
    value = scalar(value)
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


def devices() -> list[str]:
    """Returns the names of the devices of this machine, the CPU first.

    Example:
        >>> devices()[0]
        'cpu'
    """
    accelerator = torch.accelerator.current_accelerator()
    numbers = range(torch.accelerator.device_count()) if accelerator else ()
    return ["cpu", *(f"{accelerator.type}:{number}" for number in numbers if accelerator)]


def is_seed(value: Any) -> bool:
    """Whether a value can seed the random numbers of NumPy and torch.

    Example:
        >>> is_seed(0), is_seed(-1), is_seed(2**63)
        (True, False, False)
    """
    return is_whole(value) and 0 <= value < 2**63


def is_list(value: Any) -> bool:
    """Whether a value is an ordered sequence; sets and strings are not.

    Example:
        >>> [is_list(value) for value in ([1], (1, 2), np.ones(2), {1, 2}, "12")]
        [True, True, True, False, False]
    """
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def describe(value: Any) -> str:
    """Description of a value in an error: its ``repr``, or its class if that is too long.

    Example:
        >>> describe("wide"), describe(torch.zeros(9, 9)), describe(torch.nn.ReLU())
        ("'wide'", 'Tensor', 'ReLU')
    """
    text = repr(value.item() if isinstance(value, np.generic) else value)
    long = len(text) > LONGEST_VALUE or "\n" in text
    return type(value).__name__ if long or isinstance(value, torch.nn.Module) else text


def check_choice(name: str, value: object, choices: tuple) -> None:
    """Raises :class:`~monai_gmr.utils.ConfigurationError` if ``value`` is not one of ``choices``."""
    # arrays are compared element by element
    if isinstance(value, (np.ndarray, torch.Tensor)) or value not in choices:
        possible = ", ".join(repr(choice) for choice in choices)
        raise ConfigurationError(f"{name}={describe(value)} is unknown: use one of {possible}.")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises :class:`~monai_gmr.utils.ConfigurationError` if ``value`` is not an integer of at least ``least``."""
    if not is_whole(value) or value < least:
        raise ConfigurationError(f"{name}={describe(value)} is impossible: give a whole number of at least {least}.")


def check_counts(name: str, values: Any, example: tuple) -> None:
    """Raises :class:`~monai_gmr.utils.ConfigurationError` if ``values`` is not a list of integers of at least 1, such as ``example``."""
    if not is_list(values) or not len(values):
        raise ConfigurationError(
            f"{name}={describe(values)} is impossible: give a list of whole numbers, such as {list(example)}."
        )
    for index, value in enumerate(values):
        check_count(f"{name}[{index}]", value)


def check_number(name: str, value: Any, least: float, most: float = math.inf, above: bool = False) -> None:
    """Raises :class:`~monai_gmr.utils.ConfigurationError` if ``value`` is not a number from ``least`` (excluded if ``above``) to ``most``.

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
    """Voxel size along each axis in millimetres, by default 1.

    Raises:
        ConfigurationError: if they are not positive numbers, one per axis.

    Example:
        >>> voxel_spacing(None, 2), voxel_spacing([1, 3], 2)
        ((1.0, 1.0), (1.0, 3.0))
    """
    if spacing is None:
        return (1.0,) * spatial_dims
    fits = is_list(spacing) and all(is_number(step) and 0 < step < math.inf for step in spacing)
    if not fits or len(spacing) != spatial_dims:
        raise ConfigurationError(
            f"spacing={describe(spacing)} does not fit: give {spatial_dims} voxel sizes above 0 in millimetres, one per axis."
        )
    return tuple(float(step) for step in spacing)


def reads_as_number(value: Any) -> bool:
    """Whether a value is a string of a finite number.

    Example:
        >>> [reads_as_number(value) for value in ("30", "1e-4", "few", 30, "inf")]
        [True, True, False, False, False]
    """
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False
