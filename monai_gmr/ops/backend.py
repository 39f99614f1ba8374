"""Implementations of radial convolutions: the class of a backend, and the choice of one."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from monai_gmr.arguments import check_choice
from monai_gmr.ops.call import Call, Orders, RingKernel
from monai_gmr.ops.thresholds import KERNELS, threshold
from monai_gmr.utils import ConfigurationError

logger = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "MONAI_GMR_BACKEND"
_BACKENDS: dict[str, Backend] = {}
_forced: list[str | Backend] = []
_logged: dict[str, object] = {}


class Backend:
    """An implementation of radial convolutions; "dense" runs the calls that it does not support.

    A subclass sets ``name`` and overrides :meth:`supports` and the methods for the calls that it supports. :func:`register_backend`
    registers it.

    Attributes:
        name: its name for :func:`set_backend`.
        prefers_channels_last: whether a net is faster with channels last in memory.
    """

    name: str
    prefers_channels_last = False

    def supports(self, call: Call) -> bool:
        """Whether the backend can run a call."""
        return False

    def conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """:func:`~monai_gmr.ops.ring_conv`: returns ``(batch, out_channels, *sizes)``, with one more axis for angular components."""
        raise NotImplementedError

    def conv_transpose(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """:func:`~monai_gmr.ops.ring_conv_transpose`."""
        raise NotImplementedError

    def harmonic_conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """:func:`~monai_gmr.ops.harmonic_conv`."""
        raise NotImplementedError


def choose_backend(x: torch.Tensor, kernel: RingKernel, groups: int, **more: Any) -> tuple[Backend, Call, torch.Tensor]:
    """The backend chosen for a kernel and an image, with or without a batch; the call, whose further attributes are ``more``; and the
    image with a batch."""
    orders, shells = more.get("orders"), kernel.shells
    image = x[None] if x.dim() == shells.dim() + 1 else x
    rows, columns = kernel.weight.shape[0], kernel.weight.shape[1] * groups
    if orders is not None:
        rows = groups * orders.num_responses()
    channels = (rows, columns) if more.get("transposed") else (columns, rows)
    # if precisions differ, take one unlike the weight's: no kernel supports both
    others = [each.dtype for each in (kernel.bias, kernel.linear, kernel.chiral) if each is not None]
    precision = next((dtype for dtype in others if dtype != kernel.weight.dtype), kernel.weight.dtype)
    known = {"weight_precision": precision, "angular": kernel.angular is not None, "shells": shells}
    known["kept"] = kernel.linear is not None or kernel.chiral is not None
    factors = (kernel.weight, kernel.basis, kernel.bias, kernel.linear, kernel.chiral)
    call = Call.of_input(image, tuple(shells.shape), channels, factors, groups=groups, **known, **more)
    return select_backend(call), call, image


def register_backend(backend: Backend) -> None:
    """Makes a backend selectable by its name."""
    _BACKENDS[backend.name] = backend


def available_backends() -> tuple[str, ...]:
    """Names that :func:`set_backend` takes.

    Example:
        >>> import monai_gmr.ops
        >>> available_backends()
        ('auto', 'dense', 'cpp', 'triton')
    """
    return ("auto", *_BACKENDS)


class set_backend:
    """Sets the backend of every radial convolution in this process, or within a ``with`` block.

    Args:
        name: one of :func:`available_backends`, or a backend that is not registered; "auto" picks by the input. The environment variable
            ``MONAI_GMR_BACKEND`` does the same for a whole run.

    Raises:
        ConfigurationError: if there is no such backend.

    Example:
        >>> with set_backend("dense"):
        ...     get_backend()
        'dense'
        >>> get_backend()
        'auto'
    """

    def __init__(self, name: str | Backend) -> None:
        if not isinstance(name, Backend):
            check_choice("backend", name, available_backends())
        self._before = list(_forced)
        _forced[:] = [name]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        _forced[:] = self._before


def get_backend() -> str:
    """The backend that :func:`set_backend` or ``MONAI_GMR_BACKEND`` selects, "auto" by default.

    Example:
        >>> get_backend()
        'auto'
    """
    name = _forced[0] if _forced else os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if isinstance(name, Backend):
        return name.name
    if name not in available_backends():
        raise ConfigurationError(
            f"{ENVIRONMENT_VARIABLE}={name} is unknown: use one of {', '.join(available_backends())}."
        )
    return name


def select_backend(call: Call) -> Backend:
    """The backend that was set, or for "auto" the device's backend if the table says that it is faster; "dense" for unsupported calls."""
    backend = _forced[0] if _forced else get_backend()
    if backend == "auto":
        backend = KERNELS[call.device.type] if _is_faster(call) else "dense"
    if not isinstance(backend, Backend):
        backend = _BACKENDS[backend]
    return backend if backend.supports(call) else _BACKENDS["dense"]


def _is_faster(call: Call) -> bool:
    """Whether the device's kernels are faster than "dense"."""
    if call.recorded:
        return False
    # not measured: harmonic layers with a stride; on a GPU also strides, and angular components without orders or in groups
    strided, on_cpu = max(call.stride) > 1, call.device.type == "cpu"
    beyond = call.angular and (strided or (not on_cpu and (call.orders is None or call.groups > 1)))
    least = None if beyond or (strided and not on_cpu) else threshold(call)
    return least is not None and call.voxels() >= least


def log_dense(name: str, reason: str) -> None:
    """Logs, once per process, why "dense" runs instead of a backend."""
    message, mine = f"backend {name!r} is not used: {reason}; 'dense' runs in its place.", object()
    # setdefault is atomic: only one thread logs
    if _logged.setdefault(message, mine) is mine:
        logger.warning(message)


def prefers_channels_last(
    x: torch.Tensor, kernel_size: tuple[int, ...], channels: tuple[int, int], harmonic: bool = False
) -> bool:
    """Whether a net is faster with channels last in memory, judged by window and channels of its first convolutions."""
    # thresholds depend only on channels: order 0 stands for all
    kind: dict[str, Any] = {"angular": True, "orders": Orders((channels[1],), (0,), (0,))} if harmonic else {}
    call = Call.of_input(x, kernel_size, channels, padding=[k // 2 for k in kernel_size], channels_last=True, **kind)
    return select_backend(call).prefers_channels_last
