"""Operations on tensors without values, on torch's meta device, for tensors on any device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from monai_gmr.ops import Backend, Call, RingKernel

META = torch.device("meta")
NUMBERS = (torch.ops.aten.lift_fresh.default, torch.ops.aten._local_scalar_dense.default)


class _Shape(NamedTuple):
    """A tensor without values."""

    dtype: torch.dtype
    size: Sequence[int]
    stride: Sequence[int]


class _Value(NamedTuple):
    """An argument that is not a tensor; with its type, because 1, 1.0 and True are equal."""

    kind: type
    value: Any


class SizesBackend(Backend):
    """Backend of radial and harmonic convolutions on the meta device, for a pass that only needs sizes.

    Args:
        inside: function, called at each convolution, that returns whether its inner operations may be skipped.

    Example:
        >>> from monai_gmr import set_backend
        >>> from monai_gmr.networks.layers import GMRConv2d
        >>> with set_backend(SizesBackend(inside=lambda: True)), torch.no_grad():
        ...     GMRConv2d(1, 4, 5, stride=2)(torch.empty(2, 1, 9, 7, device="meta")).shape
        torch.Size([2, 4, 3, 2])
    """

    name = "sizes"

    def __init__(self, inside: Callable[[], bool]) -> None:
        self.inside = inside

    def supports(self, call: Call) -> bool:
        """Calls that give a result, except those that record gradients or whose result has an axis of components."""
        if call.device != META or call.gradients or call.recorded or (call.angular and call.orders is None):
            return False
        return call.precision == call.weight_precision and min(call.output_sizes()) > 0 and self.inside()

    def conv(self, call: Call, x: torch.Tensor, kernel: RingKernel) -> torch.Tensor:
        """A tensor without values; also for the other convolutions."""
        size = (call.batch, call.num_outputs(), *call.output_sizes())
        return torch.empty(size, dtype=call.precision, device=META)

    conv_transpose = harmonic_conv = conv


def output_without_values(operation: Any, args: Sequence, kwargs: Mapping[str, Any]) -> Any:
    """Output of an operation of ``torch.ops.aten`` on the meta device; operations that create or read a given number keep its value.

    Arguments can be on any device. Arguments with values stay unchanged, also by operations in place.

    Example:
        >>> output_without_values(torch.ops.aten.mm.default, (torch.ones(2, 3), torch.ones(3, 4)), {}).shape
        torch.Size([2, 4])
    """
    # torch.tensor(number) and float(tensor)
    if operation in NUMBERS and args[0].numel() == 1 and not args[0].is_meta:
        return operation(*args)
    takes_device, in_place, makes_new = _kind_of(operation)
    if takes_device:
        kwargs = {**kwargs, "device": META}
    if in_place or makes_new:
        output = _output(operation, _describe(tuple(args)), tuple(kwargs), _describe(tuple(kwargs.values())))
        if makes_new:
            return _make(output)
        if args[0].is_meta and output == _describe(args[0]):
            return args[0]
    return operation(*map(_on_meta, args), **{key: _on_meta(value) for key, value in kwargs.items()})


@functools.cache
def _kind_of(operation: Any) -> tuple[bool, bool, bool]:
    """Whether an operation takes a device, works in place, and returns new tensors."""
    # private: torch has no public way from an operation to its schema
    schema = operation._schema
    makes_new = not schema.is_mutable and all(
        each.alias_info is None and str(each.type) == "Tensor" for each in schema.returns
    )
    return any(each.name == "device" for each in schema.arguments), schema.name.endswith("_"), makes_new


# networks repeat operations, and a lookup is a hundred times faster than the meta device
@functools.lru_cache(maxsize=2**14)
def _output(operation: Any, args: Any, names: tuple[str, ...], values: Any) -> Any:
    return _describe(operation(*_make(args), **dict(zip(names, _make(values)))))


def _describe(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _Shape(value.dtype, value.shape, value.stride())
    return tuple(map(_describe, value)) if isinstance(value, list | tuple) else _Value(type(value), value)


def _make(described: Any) -> Any:
    if isinstance(described, _Shape):
        return torch.empty_strided(described.size, described.stride, dtype=described.dtype, device=META)
    return described.value if isinstance(described, _Value) else tuple(map(_make, described))


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value if value.is_meta else value.detach().to(META)
    return [_on_meta(each) for each in value] if isinstance(value, list | tuple) else value
