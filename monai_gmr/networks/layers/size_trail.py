"""The trail of a converted network: sizes that an image had on its way down, for the upsampling layers on its way up.

A decoder that doubles its grid cannot know whether ``n`` or ``n - 1`` voxels were halved. So downsampling layers record their sizes in a
trail that lasts as long as one call of the network, and upsampling layers read them. Places in the network are named by the sizes of an
image of a *reference size* (:mod:`monai_gmr.networks.convert.trace`), a pair ``(before, after)`` for each call of a layer. No state stays
on a module; each thread has its own trail.

Activation checkpointing calls parts of a network again in the backward pass, on any thread, when the trail has ended. So the graph of the
output keeps its trail alive, and a layer that is called without one takes the trail whose backward pass began last: autograd runs through
the calls of a network one after the other.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from monai_gmr.ops.free_sizes import is_free, same_size
from monai_gmr.utils import tensors_in


class Levels(NamedTuple):
    """Where a layer stands.

    Attributes:
        network: name of the converted network, shared by its copies.
        calls: for each call with the reference size, the sizes before and after the layer.
    """

    network: str
    calls: list[tuple[Sequence[int], Sequence[int]]]


class Trail:
    """Sizes in one call of a network: the size now, by axis and size of the reference image."""

    def __init__(self, network: str) -> None:
        self.network = network
        self.sizes: dict[tuple[int, int], Any] = {}
        self.began_backward = 0

    def begin_backward(self, gradients: Any) -> None:
        """Hook of autograd: the backward pass of this call begins."""
        self.began_backward = next(_count)

    def fitting(self, levels: Levels, sizes: Sequence[Any]) -> tuple[Sequence[int], Sequence[int]] | None:
        """The call of a layer with the reference size that has these sizes before it."""
        for call in levels.calls:
            known = [self.sizes.get((axis, key), n) for axis, (key, n) in enumerate(zip(call[0], sizes))]
            if all(same_size(before, n) for before, n in zip(known, sizes)):
                return call
        return None

    def record(self, call: tuple[Sequence[int], Sequence[int]], before: Sequence[Any], after: Sequence[Any]) -> None:
        """Record the sizes before and after a layer."""
        for keys, sizes in zip(call, (before, after)):
            for axis, (key, n) in enumerate(zip(keys, sizes)):
                self.sizes.setdefault((axis, key), n)

    def sizes_above(
        self,
        call: tuple[Sequence[int], Sequence[int]],
        coarse: Sequence[Any],
        default: Sequence[Any],
        factors: Sequence[int],
    ) -> list[Any]:
        """Sizes for upsampling: those of this place, if they are within one step of the layer's own."""
        target = list(default)
        for axis, (below, above, factor) in enumerate(zip(*call, factors)):
            for shift in range(factor if factor > 1 else 0):
                keys = [key for key in (above + shift, above - shift) if (axis, key) in self.sizes]
                if not keys:
                    continue
                size = self.sizes[axis, keys[0]]
                # a symbol is compared by its value for the reference image
                fine, given = (keys[0], below) if is_free([size, coarse[axis]]) else (size, coarse[axis])
                if abs(fine - factor * given) < factor:
                    target[axis] = size
                break
        return target


class _Traced:
    """Trails of a network that torch.compile traces, which can set an attribute, but not a context variable."""

    stack: tuple[Trail, ...] = ()


_trails: ContextVar[tuple[Trail, ...]] = ContextVar("monai_gmr_trails", default=())
_traced = _Traced()
_living: weakref.WeakSet[Trail] = weakref.WeakSet()
_lock = threading.Lock()
_count = itertools.count(1)


def _current(network: str) -> Trail | None:
    # Python code between two graphs of torch.compile uses the trail of the graphs
    stack = _trails.get() or _traced.stack
    return next((trail for trail in reversed(stack) if trail.network == network), None)


def begin_trail(network: str, reference: Sequence[int], in_channels: int, inputs: Sequence[Any]) -> Trail | None:
    """Begin the trail of one call of a network, for :func:`end_trail`; ``None`` if the network is being called already.

    Args:
        network: its name.
        reference: the reference size.
        in_channels: channels of its image.
        inputs: arguments of the call; the first that can be the image gives the trail its first sizes.
    """
    if _current(network) is not None:
        return None
    trail = Trail(network)
    for each in inputs:
        if isinstance(each, torch.Tensor) and each.dim() == len(reference) + 2 and each.shape[1] == in_channels:
            trail.record((reference, ()), each.shape[2:], ())
            break
    if torch.compiler.is_compiling():
        _traced.stack = (*_traced.stack, trail)
    else:
        _trails.set((*_trails.get(), trail))
    return trail


def end_trail(trail: Trail | None, output: Any = None) -> None:
    """End a trail, also when the network has raised; the graph of its output keeps it alive for the backward pass.

    Args:
        trail: of :func:`begin_trail`; ``None`` ends nothing.
        output: of the call.
    """
    if trail is None:
        return
    if torch.compiler.is_compiling() or not _trails.get():
        _traced.stack = _traced.stack[:-1]
        return
    _trails.set(_trails.get()[:-1])
    nodes = [each.grad_fn for each in tensors_in(output) if each.grad_fn is not None]
    if nodes and not is_free(list(trail.sizes.values())):
        for node in nodes:
            node.register_prehook(trail.begin_backward)
        with _lock:
            _living.add(trail)


def record_sizes(levels: Levels | None, before: Sequence[Any], after: Sequence[Any]) -> None:
    """Record the sizes before and after a layer that stands at ``levels``; outside a converted network nothing happens."""
    trail = None if levels is None or not levels.calls else _current(levels.network)
    if trail is not None:
        assert levels is not None
        trail.record(trail.fitting(levels, before) or levels.calls[0], before, after)


def sizes_above(
    levels: Levels | None, coarse: Sequence[Any], default: Sequence[Any], factors: Sequence[int]
) -> list[Any]:
    """Sizes for upsampling: those that the trail has for this place, if they are within one step of the layer's own.

    Args:
        levels: where the layer stands.
        coarse: sizes of the input.
        default: sizes that the layer reaches on its own.
        factors: fine voxels in a coarse one.

    Example:
        >>> sizes_above(None, [3, 3], [6, 6], [2, 2])
        [6, 6]
    """
    if levels is None or not levels.calls:
        return list(default)
    trail = _current(levels.network)
    if trail is not None:
        return trail.sizes_above(trail.fitting(levels, coarse) or levels.calls[0], coarse, default, factors)
    if torch.compiler.is_compiling():
        return list(default)
    with _lock:
        living = [each for each in _living if each.network == levels.network and each.began_backward]
    for each in sorted(living, key=lambda trail: -trail.began_backward):
        call = each.fitting(levels, coarse)
        if call is not None:
            return each.sizes_above(call, coarse, default, factors)
    return list(default)
