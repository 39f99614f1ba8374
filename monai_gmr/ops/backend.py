"""Which implementation runs a radial convolution: the class of a backend, and how one is chosen."""

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
    """An implementation of radial convolutions; "dense" runs what it does not support.

    A subclass sets ``name`` and overrides :meth:`supports` and the methods that it says yes to. :func:`register_backend` makes it known.

    Attributes:
        name: what :func:`set_backend` calls it.
        prefers_channels_last: whether a net does well to compute with channels last in memory.
    """

    name: str
    prefers_channels_last = False

    def supports(self, call: Call) -> bool:
        """Whether it runs such a call."""
        return False

    def conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """:func:`~monai_gmr.ops.ring_conv`: to ``(batch, out_channels, *sizes)``, with angular components one axis more."""
        raise NotImplementedError

    def conv_transpose(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """:func:`~monai_gmr.ops.ring_conv_transpose`."""
        raise NotImplementedError

    def harmonic_conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """:func:`~monai_gmr.ops.harmonic_conv`."""
        raise NotImplementedError


def choose_backend(x: torch.Tensor, kernel: RingKernel, groups: int, **more: Any) -> tuple[Backend, Call, torch.Tensor]:
    """The backend that is chosen for an image, with or without a batch, and a kernel; the call, whose further attributes are ``more``; and
    the image with a batch."""
    orders, shells = more.get("orders"), kernel.shells
    image = x[None] if x.dim() == shells.dim() + 1 else x
    rows, columns = kernel.weight.shape[0], kernel.weight.shape[1] * groups
    if orders is not None:
        rows = groups * orders.num_responses()
    channels = (rows, columns) if more.get("transposed") else (columns, rows)
    # of several precisions, that of a tensor unlike the weight: no kernel takes both
    others = [each.dtype for each in (kernel.bias, kernel.linear, kernel.chiral) if each is not None]
    precision = next((dtype for dtype in others if dtype != kernel.weight.dtype), kernel.weight.dtype)
    known = {"weight_precision": precision, "angular": kernel.angular is not None, "shells": shells}
    known["kept"] = kernel.linear is not None or kernel.chiral is not None
    factors = (kernel.weight, kernel.basis, kernel.bias, kernel.linear, kernel.chiral)
    call = Call.of_input(image, tuple(shells.shape), channels, factors, groups=groups, **known, **more)
    return select_backend(call), call, image


def register_backend(backend: Backend) -> None:
    """Make a backend selectable by its name."""
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
    """Choose the backend of every radial convolution in this process, or within a ``with`` block.

    Args:
        name: one of :func:`available_backends`, or a backend that is not registered; "auto" picks by the input. The environment variable
            ``MONAI_GMR_BACKEND`` does the same for a whole run.

    Raises:
        ConfigurationError: when there is no such backend.

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
    """The backend that :func:`set_backend` or ``MONAI_GMR_BACKEND`` asks for, "auto" by default.

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
    """The backend that was set, or for "auto" the device's where a table says that it is faster; "dense" for what that does not support."""
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
    # harmonic layers with a stride are not measured, on a GPU neither strides, nor angular components of no layer or in groups
    strided, on_cpu = max(call.stride) > 1, call.device.type == "cpu"
    beyond = call.angular and (strided or (not on_cpu and (call.orders is None or call.groups > 1)))
    least = None if beyond or (strided and not on_cpu) else threshold(call)
    return least is not None and call.voxels() >= least


def log_dense(name: str, reason: str) -> None:
    """Log, once a process, why "dense" runs in a backend's place."""
    message, mine = f"backend {name!r} is not used: {reason}; 'dense' runs in its place.", object()
    # one step for all threads
    if _logged.setdefault(message, mine) is mine:
        logger.warning(message)


def prefers_channels_last(
    x: torch.Tensor, kernel_size: tuple[int, ...], channels: tuple[int, int], harmonic: bool = False
) -> bool:
    """Whether a net does well to compute its input with channels last in memory: by window and channels of its first convolutions."""
    # thresholds go by channels: order 0 stands for all
    kind: dict[str, Any] = {"angular": True, "orders": Orders((channels[1],), (0,), (0,))} if harmonic else {}
    call = Call.of_input(x, kernel_size, channels, padding=[k // 2 for k in kernel_size], channels_last=True, **kind)
    return select_backend(call).prefers_channels_last
