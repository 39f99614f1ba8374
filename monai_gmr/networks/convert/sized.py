"""A converted network's class: the given one, whose public methods keep a trail of sizes and which TorchScript can take."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from monai_gmr.networks.convert.script import scriptable_network
from monai_gmr.networks.layers.size_trail import begin_trail, end_trail
from monai_gmr.ops.free_sizes import recorded_number


class TrailStart(NamedTuple):
    """How the trail of each call begins.

    Attributes:
        network: name of the network, shared by its copies.
        reference: the reference size.
        in_channels: channels of the image.
    """

    network: str
    reference: Sequence[int]
    in_channels: int


def _keeps_trail(method: Callable) -> Callable:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        start: TrailStart | None = getattr(self, "trail_start", None)
        if start is None:
            return method(self, *args, **kwargs)
        if torch.jit.is_tracing() and self.conversion_report.limits:
            args = _of_recorded_size(args)
        inputs, output = (*args, *kwargs.values()), None
        trail = begin_trail(start.network, start.reference, start.in_channels, inputs)
        try:
            output = method(self, *args, **kwargs)
            return output
        finally:
            end_trail(trail, output)

    return call


def _of_recorded_size(args: tuple) -> tuple:
    """Images that a recorded graph takes of the recorded size alone: parts that tell positions apart decide by the size."""
    return tuple(
        each.expand(-1, -1, *map(recorded_number, each.shape[2:]))
        if isinstance(each, torch.Tensor) and each.dim() > 2
        else each
        for each in args
    )


def _new(cls: type, *args: Any) -> Any:
    made = sized_class(cls)
    return made.__new__(made, *args)


def _reduce(self: Any, protocol: Any) -> Any:
    """For ``copy`` and ``pickle``: the class is made again from the given one."""
    parent: Any = type(self).__mro__[1]
    make, args, *rest = parent.__reduce_ex__(self, protocol)
    return (_new, (parent, *args[1:]), *rest) if args[:1] == (type(self),) else (make, args, *rest)


@functools.cache
def sized_class(cls: Any) -> Any:
    """A subclass whose ``forward`` and public methods keep the trail of sizes that ``trail_start`` begins.

    ``torch.jit.trace`` records a graph for every size, or, of a network whose report has limits, one that refuses other sizes than the
    recorded one. Instances are copied and pickled as those of the given class are, and ``torch.jit.script`` takes what
    :func:`~monai_gmr.networks.convert.script.scriptable_network` makes of them.

    Args:
        cls: class of the network.

    Example:
        >>> from torch import nn
        >>> made = sized_class(nn.Sequential)
        >>> issubclass(made, nn.Sequential), made.__name__, sized_class(made) is made
        (True, 'Sequential', True)
    """
    if "trail_start" in vars(cls):
        return cls
    methods: dict[str, Any] = {"forward": _keeps_trail(cls.forward)}
    for owner in cls.__mro__:
        if not owner.__module__.startswith("torch."):
            for name, value in vars(owner).items():
                if inspect.isfunction(value) and not name.startswith("_"):
                    methods.setdefault(name, _keeps_trail(value))
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    members = {"trail_start": None, "__reduce_ex__": _reduce, "__prepare_scriptable__": scriptable_network}
    return type(cls.__name__, (cls,), names | members | methods)
