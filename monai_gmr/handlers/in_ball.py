"""Scores inside the ball that every rotation of an image shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.handlers import from_engine

from monai_gmr.symmetry import inscribed_ball


def from_engine_in_ball(keys: KeysCollection, spacing: Sequence[float] | None = None) -> Callable:
    """``monai.handlers.from_engine`` whose items are set to 0 outside the largest centred disc or ball.

    A rotated image lacks corners of the upright one and has others: only what lies inside the ball can be compared from view to view.
    For one-hot segmentations, background left out.

    Args:
        keys: items of the engine's output, channel-first, of shape ``(C, *spatial)``.
        spacing: voxel size in millimetres, one an axis; default 1.

    Returns:
        ``output_transform`` for a metric handler.

    Example:
        >>> take = from_engine_in_ball("pred")
        >>> take([{"pred": torch.ones(1, 3, 3)}])[0].int().tolist()
        [[[0, 1, 0], [1, 1, 1], [0, 1, 0]]]
    """
    take = from_engine(keys)

    def mask(item: torch.Tensor) -> torch.Tensor:
        ball = torch.as_tensor(inscribed_ball(item.shape[1:], spacing), device=item.device)
        return item * ball.to(item.dtype)

    def output_transform(output: Any) -> Any:
        taken = take(output)
        if isinstance(taken, tuple):
            return tuple([mask(item) for item in items] for items in taken)
        return [mask(item) for item in taken]

    return output_transform
