"""Sizes that images had on their way down, for the upsampling that meets them again on its way up.

A decoder that doubles its grid cannot know whether ``n`` or ``n - 1`` voxels were halved. In a converted network the downsampling layers
leave their sizes in a trail that lasts as long as one call of the network, and the upsampling layers look there. Places in the network are
named by the sizes that an image of a *reference size* has there (:mod:`monai_gmr.networks.convert.trace`), a pair ``(before, after)`` for
each call of a layer. Nothing is kept on a module; threads have a trail each.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

Levels = Sequence[tuple[Sequence[int], Sequence[int]]]


class _Traced:
    """Trails of a network that torch.compile traces: it can follow an attribute, but not set a context variable."""

    stack: tuple[dict[tuple[int, int], int], ...] = ()


_trails: ContextVar[tuple[dict[tuple[int, int], int], ...]] = ContextVar("monai_gmr_trails", default=())
_traced = _Traced()


def _current() -> dict[tuple[int, int], int] | None:
    # what dynamo leaves to Python, between two graphs, finds the trail of the graphs
    stack = _trails.get() or _traced.stack
    return stack[-1] if stack else None


def begin_trail(net: nn.Module, args: tuple, kwargs: dict) -> None:
    """Forward pre-hook of a converted network: begin a trail with the size of its input."""
    reference: Any = net.trail_reference
    trail: dict[tuple[int, int], int] = {}
    images = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)]
    if images and images[0].dim() == len(reference) + 2:
        for axis, key in enumerate(reference):
            trail[axis, key] = images[0].shape[axis + 2]
    if torch.compiler.is_compiling():
        _traced.stack = (*_traced.stack, trail)
    else:
        _trails.set((*_trails.get(), trail))


def end_trail(net: nn.Module, args: tuple, output: Any) -> None:
    """Forward hook of a converted network: forget the trail, also when the network has raised."""
    if torch.compiler.is_compiling() or not _trails.get():
        _traced.stack = _traced.stack[:-1]
    else:
        _trails.set(_trails.get()[:-1])


def _fitting(levels: Levels, trail: dict, sizes: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """Which of the calls that a layer had with the reference size this one is."""
    for level in levels:
        if all(trail.get((axis, key), n) == n for axis, (key, n) in enumerate(zip(level[0], sizes))):
            return level
    return levels[0]


def record_sizes(levels: Levels, before: Sequence[int], after: Sequence[int]) -> None:
    """Leave the sizes that a layer has met; outside a converted network nothing happens.

    Args:
        levels: for each call with the reference size, the sizes before and after the layer.
        before, after: the sizes now.
    """
    trail = _current() if levels else None
    if trail is not None:
        level = _fitting(levels, trail, before)
        for keys, sizes in zip(level, (before, after)):
            for axis, (key, n) in enumerate(zip(keys, sizes)):
                trail.setdefault((axis, key), n)


def sizes_above(levels: Levels, coarse: Sequence[int], default: Sequence[int], factors: Sequence[int]) -> list[int]:
    """The sizes that upsampling is to reach: those that the trail has for this place, if they are within one step of the layer's own.

    Args:
        levels: as for :func:`record_sizes`.
        coarse: sizes of the input.
        default: sizes that the layer reaches on its own.
        factors: fine voxels in a coarse one.

    Example:
        >>> sizes_above([], [3, 3], [6, 6], [2, 2])
        [6, 6]
    """
    trail = _current() if levels else None
    target = list(default)
    if trail is None:
        return target
    references = _fitting(levels, trail, coarse)[1]
    for axis, (reference, factor) in enumerate(zip(references, factors)):
        if factor == 1:
            continue
        for shift in range(factor):
            found = [trail[axis, key] for key in (reference + shift, reference - shift) if (axis, key) in trail]
            if found:
                if abs(found[0] - factor * coarse[axis]) < factor:
                    target[axis] = found[0]
                break
    return target
