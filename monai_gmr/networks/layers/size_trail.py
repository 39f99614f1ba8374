"""The trail of a converted network: sizes of an image before each downsampling, for the upsampling layers of the decoder.

A decoder that doubles its grid cannot know whether ``n`` or ``n - 1`` voxels were halved. Downsampling layers record the sizes in a trail,
one per thread, that lasts for one call of the network. Positions in the network are identified by the sizes that an image of a *reference
size* has there (:mod:`monai_gmr.networks.convert.trace`), a pair ``(before, after)`` for each call of a layer.

Activation checkpointing calls parts of a network again in the backward pass, on any thread, after the trail has ended. So the graph of the
output keeps its trail alive, and a layer called without a trail uses the one whose backward pass started last.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from monai_gmr.ops.free_sizes import is_free, same_size
from monai_gmr.utils import ConfigurationError, tensors_in

Call = tuple[Sequence[int], Sequence[int]]


class TrailStart(NamedTuple):
    """Start of the trail of each call of a converted network: network name (shared by copies), reference size, and channels."""

    network: str
    reference: Sequence[int]
    in_channels: int


class Levels(NamedTuple):
    """Position of a layer: its network, and the sizes before and after it in each call with the reference size."""

    network: str
    calls: list[Call]


class Trail:
    """Sizes in one call of a network: the actual size, by axis and size of the reference image."""

    def __init__(self, network: str, owner: object = None) -> None:
        self.network, self.owner = network, owner
        self.sizes: dict[tuple[int, int], Any] = {}
        self.began_backward = 0

    def begin_backward(self, gradients: Any) -> None:
        """Autograd hook: the backward pass of this call starts."""
        self.began_backward = next(_count)

    def fitting(self, levels: Levels, sizes: Sequence[Any]) -> Call | None:
        """The call of a layer with the reference size whose input sizes match ``sizes``."""
        for call in levels.calls:
            known = [self.sizes.get((axis, key), n) for axis, (key, n) in enumerate(zip(call[0], sizes))]
            if all(same_size(before, n) for before, n in zip(known, sizes)):
                return call
        return None

    def record(self, call: Call, before: Sequence[Any], after: Sequence[Any]) -> None:
        """Records the sizes before and after a layer."""
        for keys, sizes in zip(call, (before, after)):
            for axis, (key, n) in enumerate(zip(keys, sizes)):
                self.sizes.setdefault((axis, key), n)


class _Trails(threading.local):
    """Trails of the calls that run in a thread, innermost last. torch.compile traces it; context variables only from 2.14 on."""

    def __init__(self) -> None:
        # not a class attribute: a guard of torch.compile looks for it in the attributes of each thread
        self.stack: tuple[Trail, ...] = ()


_trails = _Trails()
_living: weakref.WeakSet[Trail] = weakref.WeakSet()
_lock = threading.Lock()
_count = itertools.count(1)


def _current(place: Levels) -> Trail | None:
    if torch.compiler.is_compiling():
        # the innermost: a graph that compares names would not be shared by networks of the same structure
        return _trails.stack[-1] if _trails.stack else None
    return next((trail for trail in reversed(_trails.stack) if trail.network == place.network), None)


def _new_trail(start: TrailStart, owner: object) -> Trail | None:
    """The trail of a call of a network; ``None`` inside another call of it."""
    if torch.compiler.is_compiling():
        return None if any(trail.owner is owner for trail in _trails.stack) else Trail("", owner)
    known = any(trail.network == start.network or trail.owner is owner for trail in _trails.stack)
    return None if known else Trail(start.network, owner)


def begin_trail(start: TrailStart, inputs: Sequence[Any], owner: object = None) -> Trail | None:
    """Starts the trail of one call of a network ``owner``, with the size of the image in ``inputs``, to be passed to :func:`end_trail`;
    ``None`` inside another call."""
    trail, dims = _new_trail(start, owner), len(start.reference)
    if trail is None:
        return None
    for each in inputs:
        if isinstance(each, torch.Tensor) and each.dim() == dims + 2 and each.shape[1] == start.in_channels:
            trail.record((start.reference, ()), each.shape[2:], ())
            break
    _trails.stack = (*_trails.stack, trail)
    return trail


def end_trail(trail: Trail | None, output: Any = None) -> None:
    """Ends a trail, even if the network has raised; the graph of its output keeps it alive for the backward pass."""
    if trail is None:
        return
    _trails.stack = _trails.stack[:-1]
    if torch.compiler.is_compiling():
        return
    nodes = [each.grad_fn for each in tensors_in(output) if each.grad_fn is not None]
    if nodes and not is_free(list(trail.sizes.values())):
        for node in nodes:
            node.register_prehook(trail.begin_backward)
        with _lock:
            _living.add(trail)


def record_sizes(levels: Levels | None, before: Sequence[Any], after: Sequence[Any]) -> None:
    """Records the sizes before and after a layer at ``levels``; does nothing outside a converted network."""
    trail = None if levels is None or not levels.calls else _current(levels)
    if trail is not None:
        assert levels is not None
        trail.record(trail.fitting(levels, before) or levels.calls[0], before, after)


class SizedLayer:
    """Layer that reads the trail, or whose window depends on the size: TorchScript compiles the network around it, not the layer."""

    def __prepare_scriptable__(self) -> Any:
        # torch.jit.script calls this on each module before compiling
        raise ConfigurationError(
            f"{type(self).__name__} is part of a converted network, which torch.jit.script compiles as a whole: script the network, or "
            "record this part by torch.jit.trace."
        )


def _find_call(levels: Levels, sizes: Sequence[Any]) -> tuple[Trail, Call] | None:
    """The trail that a layer reads, and the call of the layer that this is."""
    trail = _current(levels)
    if trail is not None:
        return trail, trail.fitting(levels, sizes) or levels.calls[0]
    if torch.compiler.is_compiling():
        return None
    with _lock:
        living = [each for each in _living if each.network == levels.network and each.began_backward]
    for each in sorted(living, key=lambda trail: -trail.began_backward):
        call = each.fitting(levels, sizes)
        if call is not None:
            return each, call
    return None


def sizes_above(
    levels: Levels | None, coarse: Sequence[Any], default: Sequence[Any], factors: Sequence[int]
) -> list[Any]:
    """Sizes for upsampling: those of the trail for this position, if they are within one step of ``default``, the layer's own."""
    target = list(default)
    found = None if levels is None or not levels.calls else _find_call(levels, coarse)
    if found is None:
        return target
    trail, call = found
    for axis, (below, above, factor) in enumerate(zip(*call, factors)):
        for shift in range(factor if factor > 1 else 0):
            keys = [key for key in (above + shift, above - shift) if (axis, key) in trail.sizes]
            if not keys:
                continue
            size = trail.sizes[axis, keys[0]]
            # compare symbols by their values for the reference image
            fine, given = (keys[0], below) if is_free([size, coarse[axis]]) else (size, coarse[axis])
            if abs(fine - factor * given) < factor:
                target[axis] = size
            break
    return target
