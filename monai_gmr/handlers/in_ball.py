"""Scores inside the ball that all rotations of an image share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.handlers import from_engine

from monai_gmr.annotations import checked_arguments
from monai_gmr.symmetry import inscribed_ball
from monai_gmr.utils import map_tensors


@checked_arguments
def from_engine_in_ball(keys: KeysCollection, spacing: Sequence[float] | None = None) -> Callable:
    """Makes an ``output_transform`` for a metric handler: ``from_engine`` with items set to 0 outside the largest centred disc or ball.

    A rotated image lacks corners of the upright image and has others, so views can only be compared inside the ball.
    Items are one-hot segmentations ``(C, *spatial)`` without background; ``spacing`` in millimetres, one per axis, is 1 by default.

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
        return map_tensors(take(output), mask)

    return output_transform
