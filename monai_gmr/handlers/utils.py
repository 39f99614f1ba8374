"""What metric handlers read from an engine's output, and how tables are written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.handlers import from_engine

from monai_gmr.files import replacing, write_text
from monai_gmr.symmetry import inscribed_ball


def from_engine_in_ball(keys: KeysCollection, spacing: Sequence[float] | None = None) -> Callable:
    """``monai.handlers.from_engine`` whose items are set to 0 outside the largest centred disc or ball.

    A turned image has corners that the upright one has not, and lacks others: only what lies inside the ball can be
    compared from view to view. For one-hot segmentations, background left out.

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


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write dictionaries as CSV, under a temporary name first; what a row lacks stays empty.

    Args:
        rows: the columns are the keys of all of them, in the order in which they come.
        path: file to write; its folder is made if need be.

    Example:
        >>> file = getfixture("tmp_path") / "table.csv"
        >>> write_rows([{"view": "upright", "dice": 0.5}, {"view": "m [100]"}], file)
        >>> file.read_text().split()
        ['view,dice', 'upright,0.5', 'm', '[100],']
    """
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_json(content: Any, path: Path) -> None:
    """Write JSON, under a temporary name first; what is not a number becomes ``null``, which every reader takes.

    Example:
        >>> file = getfixture("tmp_path") / "table.json"
        >>> write_json({"p": float("nan")}, file)
        >>> json.loads(file.read_text())
        {'p': None}
    """
    write_text(json.dumps(_finite(content), indent=1, allow_nan=False, default=str), path)


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float) and content - content != 0:
        return None
    return content
