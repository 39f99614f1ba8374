"""Which implementation of :func:`~monai_gmr.ops.ring_conv` runs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from monai_gmr.ops.memory_format import has_channels_last, is_recorded
from monai_gmr.ops.thresholds import KERNELS, Use, crossover
from monai_gmr.utils import ConfigurationError, check_choice

ENVIRONMENT_VARIABLE = "MONAI_GMR_BACKEND"
PATIENCE_VARIABLE, PATIENCE = "MONAI_GMR_PATIENCE", 1.0
# operations a second that a dense convolution is taken to run at, and passes of one that has gradients
DENSE_RATE, PASSES = {"cpu": 1e11, "cuda": 1e14}, 3
_BACKENDS: dict[str, Callable[..., torch.Tensor]] = {}
_TAKES_FACTORS: set[Callable] = set()
_HARMONICS: dict[Callable, Callable[..., torch.Tensor | None]] = {}
_TRANSPOSED: dict[Callable, Callable[..., torch.Tensor | None]] = {}
_forced: list[str] = []


class Waiting:
    """Seconds that convolutions have taken on "dense" while "auto" waited."""

    seconds = 0.0


_waiting = Waiting()


def register_backend(
    name: str,
    takes_factors: bool = False,
    harmonics: Callable[..., torch.Tensor | None] | None = None,
    transposed: Callable[..., torch.Tensor | None] | None = None,
) -> Callable[[Callable], Callable]:
    """Decorator that makes a function of ``ring_conv``'s signature selectable as ``name``.

    Args:
        name: what :func:`set_backend` calls it.
        takes_factors: whether it gains from radial profile and angular factors being given apart; otherwise harmonic layers build one
            dense kernel of all orders.
        harmonics: a function of a whole harmonic layer, which gives ``None`` where it cannot run it:
            :func:`~monai_gmr.ops.cpu.backend.compiled_harmonics` is one.
        transposed: likewise of ``ring_conv_transpose``'s arguments.
    """

    def register(function: Callable) -> Callable:
        _BACKENDS[name] = function
        if takes_factors:
            _TAKES_FACTORS.add(function)
        if harmonics is not None:
            _HARMONICS[function] = harmonics
        if transposed is not None:
            _TRANSPOSED[function] = transposed
        return function

    return register


def takes_factors(backend: Callable) -> bool:
    """Whether a backend gains from radial profile and angular factors of a convolution being given apart."""
    return backend in _TAKES_FACTORS


def harmonics_of(backend: Callable) -> Callable[..., torch.Tensor | None] | None:
    """A backend's function of whole harmonic layers, if it has one."""
    return _HARMONICS.get(backend)


def transposed_of(backend: Callable) -> Callable[..., torch.Tensor | None] | None:
    """A backend's function of transposed convolutions, if it has one."""
    return _TRANSPOSED.get(backend)


def available_backends() -> tuple[str, ...]:
    """Names that :func:`set_backend` takes.

    Example:
        >>> import monai_gmr.ops
        >>> available_backends()
        ('auto', 'dense', 'cpp', 'triton')
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


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """:func:`set_backend` for a block of code.

    Args:
        name: one of :func:`available_backends`.

    Example:
        >>> with use_backend("dense"):
        ...     get_backend()
        'dense'
        >>> get_backend()
        'auto'
    """
    before = list(_forced)
    set_backend(name)
    try:
        yield
    finally:
        _forced[:] = before


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


def select_backend(
    x: torch.Tensor,
    kernel_size: tuple[int, ...],
    channels: tuple[int, int],
    stride: Sequence[int] = (1,),
    groups: int = 1,
    transposed: bool = False,
    angular: bool = False,
) -> Callable:
    """The function that runs a radial convolution of this input.

    Args:
        x: the input, for its device, dtype and size.
        kernel_size: window length along each axis.
        channels: input and output channels.
        stride: in voxels.
        groups: blocks of channels that do not see each other.
        transposed: whether it is a transposed convolution.
        angular: whether angular factors are part of it.
    """
    name = get_backend()
    if name == "auto" and is_recorded(x):
        name = "dense"
    if name == "auto":
        last, gradients, most = has_channels_last(x), torch.is_grad_enabled(), max(stride)
        name = _choose(x, Use(kernel_size, channels, groups, last, gradients, most, transposed and most > 1, angular))
    return _BACKENDS[name]


def prefers_channels_last(x: torch.Tensor, kernel_size: tuple[int, ...], channels: tuple[int, int]) -> bool:
    """Whether a net does well to compute with channels last in memory: where its convolutions take backend "cpp".

    Args:
        x: the net's input.
        kernel_size: window length along each axis of its convolutions on the finest grid.
        channels: their input and output channels.

    Example:
        >>> set_backend("cpp"); prefers_channels_last(torch.zeros(1, 1, 8, 8), (3, 3), (16, 16))
        True
        >>> set_backend("auto")
    """
    name = get_backend()
    if name == "auto" and not is_recorded(x):
        name = _choose(x, Use(kernel_size, channels, channels_last=True, gradients=torch.is_grad_enabled()))
    return name == "cpp"


def _precision(x: torch.Tensor) -> torch.dtype:
    """What a convolution of ``x`` computes in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and x.dtype.itemsize <= 4 else x.dtype


def _choose(x: torch.Tensor, use: Use) -> str:
    """What "auto" stands for: the device's kernels beyond the measured crossovers, in a run that has shown that it pays for compilation."""
    kind = x.device.type
    # a CPU has kernels for strides and for angular factors, not for both; the table of GPUs tells of neither
    beyond = (use.stride > 1) + use.angular > (1 if kind == "cpu" else 0)
    if kind not in KERNELS or beyond:
        return "dense"
    least = crossover(x.device, _precision(x), use)
    if least is None:
        return "dense"
    voxels = x.numel() // max(x.shape[-len(use.kernel_size) - 1], 1)
    if voxels < least:
        return "dense"
    if _waiting.seconds >= patience():
        return KERNELS[kind]
    left_out = 1 if use.transposed else use.stride ** len(use.kernel_size)
    operations = 2 * math.prod(use.kernel_size) * math.prod(use.channels) * voxels / (use.groups * left_out)
    _waiting.seconds += operations * (PASSES if use.gradients else 1) / DENSE_RATE[kind]
    return "dense"


def patience() -> float:
    """Seconds that "auto" lets convolutions take on "dense" before it compiles kernels; ``MONAI_GMR_PATIENCE``, 1 by default. Compiling
    takes a few seconds once a machine (on a GPU for each window), so what ends sooner does not wait for it. Counted are operations of
    convolutions that the kernels would be faster at, at 100 GFLOP/s (on a GPU 100 TFLOP/s), so that the moment is the same in every run.

    Example:
        >>> patience()
        1.0
    """
    text = os.environ.get(PATIENCE_VARIABLE, str(PATIENCE))
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f"{PATIENCE_VARIABLE}={text} is no number: give seconds.") from None
