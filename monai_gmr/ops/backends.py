"""Which implementation of :func:`~monai_gmr.ops.ring_conv` runs."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from monai_gmr.utils import ConfigurationError, check_choice

ENVIRONMENT_VARIABLE = "MONAI_GMR_BACKEND"
_BACKENDS: dict[str, Callable[..., torch.Tensor]] = {}
_TAKES_FACTORS: dict[Callable, Callable[..., bool]] = {}
_forced: list[str] = []


def register_backend(name: str, takes_factors: Callable[..., bool] | None = None) -> Callable[[Callable], Callable]:
    """Decorator that makes a function of ``ring_conv``'s signature selectable as ``name``.

    Args:
        name: what :func:`set_backend` calls it.
        takes_factors: tells by input, shells, stride and groups whether it gains from radial profile and angular factors being given
            apart; otherwise harmonic layers build one dense kernel of all orders.
    """

    def register(function: Callable) -> Callable:
        _BACKENDS[name] = function
        if takes_factors is not None:
            _TAKES_FACTORS[function] = takes_factors
        return function

    return register


def takes_factors(backend: Callable, x: torch.Tensor, shells: torch.Tensor, stride: list[int], groups: int) -> bool:
    """Whether a backend gains from radial profile and angular factors of a convolution being given apart."""
    return backend in _TAKES_FACTORS and _TAKES_FACTORS[backend](x, shells, stride, groups)


def available_backends() -> tuple[str, ...]:
    """Names that :func:`set_backend` takes.

    Example:
        >>> import monai_gmr.ops
        >>> available_backends()
        ('auto', 'dense', 'compiled', 'triton')
    """
    return ("auto", *_BACKENDS)


def set_backend(name: str) -> None:
    """Choose the backend of every radial convolution in this process.

    Args:
        name: one of :func:`available_backends`; "auto" picks by the input. The environment variable ``MONAI_GMR_BACKEND`` does the
            same for a whole run.

    Raises:
        ConfigurationError: when there is no such backend.

    Example:
        >>> set_backend("dense"); set_backend("auto")
    """
    check_choice("backend", name, available_backends())
    _forced[:] = [name]


def get_backend() -> str:
    """The backend that :func:`set_backend` or ``MONAI_GMR_BACKEND`` asks for, "auto" by default.

    Example:
        >>> get_backend()
        'auto'
    """
    name = _forced[0] if _forced else os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if name not in available_backends():
        raise ConfigurationError(
            f"{ENVIRONMENT_VARIABLE}={name} is unknown: use one of {', '.join(available_backends())}."
        )
    return name


def select_backend(x: torch.Tensor, kernel_size: tuple[int, ...], channels: tuple[int, int]) -> Callable:
    """The function that runs a radial convolution of this input.

    Args:
        x: the input, for its device, dtype and size.
        kernel_size: window length along each axis.
        channels: input and output channels.
    """
    name = get_backend()
    return _BACKENDS["dense" if name == "auto" else name]
