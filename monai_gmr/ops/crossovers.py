"""From which size on backend "compiled" is faster than "dense": what backend "auto" goes by, measured by ``monai_gmr.apps.crossovers``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

CROSSOVERS = Path(__file__).with_name("crossovers.json")
# a size counts as faster from this ratio of times on, for other processors have other ratios
FASTER = 0.85


class Point(NamedTuple):
    """Where times were compared.

    Attributes:
        dims: number of spatial axes.
        kernel_size: window length in voxels, along all axes.
        channels: of input and output.
        channels_last: whether the input has its channels last in memory.
    """

    dims: int
    kernel_size: int
    channels: int
    channels_last: bool = False


def least_voxels(voxels: Sequence[int], ratios: Sequence[float], work: int = 1) -> int | None:
    """The smallest measured size from which on all ratios are at most :data:`FASTER`, ``None`` if there is none.

    Args:
        voxels: measured sizes over the batch, growing.
        ratios: time over that of "dense", the larger one of forward pass and training step.
        work: how many times as many voxels as "dense" the kernels compute: with strides they compute what is left out, too.

    Example:
        >>> least_voxels([10, 100, 1000], [0.2, 0.9, 0.5]), least_voxels([10, 100], [0.5, 1.5])
        (1000, None)
        >>> least_voxels([10, 100], [0.4, 0.2], work=4)
        100
    """
    found = None
    for size, ratio in zip(reversed(voxels), reversed(ratios)):
        if ratio * work > FASTER:
            break
        found = size
    return found


def device_kind(device_type: str) -> str:
    """What the table calls this machine's device: CPUs go by their vector instructions, which set the pace of both backends.

    Args:
        device_type: "cpu" or "cuda".

    Example:
        >>> device_kind("cuda"), device_kind("cpu").split()[0]
        ('cuda', 'cpu')
    """
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if device_type == "cpu" else device_type


@lru_cache(maxsize=32)
def read_crossovers(kind: str, work: int = 1, path: Path = CROSSOVERS) -> dict[Point, int | None]:
    """The measured table: voxels over the batch from which "compiled" is faster.

    Args:
        kind: :func:`device_kind`.
        work: as in :func:`least_voxels`.
        path: the file.

    Returns:
        of a CPU whose kind was not measured, what holds on every kind that was; of another device that was not measured, nothing.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    kinds = [kind] if kind in content else [each for each in content if each.split()[0] == kind.split()[0]]
    return latest_of([_table_of(content[each]["rows"], work) for each in kinds])


def _table_of(rows: Sequence[Mapping[str, Any]], work: int) -> dict[Point, int | None]:
    points = [Point(*(row[name] for name in Point._fields)) for row in rows]
    return {point: least_voxels(row["voxels"], row["ratios"], work) for point, row in zip(points, rows)}


def latest_of(tables: Sequence[Mapping[Point, int | None]]) -> dict[Point, int | None]:
    """The table that keeps to several: of each point that all have, the largest number of voxels, ``None`` where one has ``None``.

    Args:
        tables: any number of tables.

    Example:
        >>> a, b = {Point(2, 3, 8): 100, Point(2, 5, 8): 10}, {Point(2, 3, 8): 1000, Point(2, 5, 8): None, Point(2, 7, 8): 1}
        >>> list(latest_of([a, b]).values())
        [1000, None]
    """
    points = [point for point in (tables[0] if tables else ()) if all(point in table for table in tables)]
    return {
        point: max((table[point] for table in tables), key=lambda size: math.inf if size is None else size)
        for point in points
    }


def least_of_neighbours(
    table: Mapping[Point, int | None],
    kernel_size: Sequence[int],
    channels: tuple[int, int],
    channels_last: bool = False,
) -> int | None:
    """Voxels over the batch from which a convolution lies beyond the measured crossovers on all sides, ``None`` if it never does.

    Args:
        table: :func:`read_crossovers`.
        kernel_size: window length along each axis; the next smaller measured one counts.
        channels: of input and output; for both the next smaller and the next larger measured number have to be faster.
        channels_last: whether the input has its channels last in memory.

    Example:
        >>> table = {Point(2, 3, 8): None, Point(2, 3, 32): 1000, Point(2, 3, 64): 500}
        >>> least_of_neighbours(table, (3, 3), (32, 48)), least_of_neighbours(table, (3, 3), (16, 64))
        (1000, None)
    """
    dims = len(kernel_size)
    points = [point for point in table if (point.dims, point.channels_last) == (dims, channels_last)]
    windows = [point.kernel_size for point in points if point.kernel_size <= min(kernel_size)]
    measured = sorted({point.channels for point in points})
    if not windows or min(channels) < measured[0]:
        return None
    found = []
    for count in channels:
        smaller = max(c for c in measured if c <= count)
        larger = min((c for c in measured if c >= count), default=measured[-1])
        found += [table.get(Point(dims, max(windows), each, channels_last)) for each in (smaller, larger)]
    known = [least for least in found if least is not None]
    return max(known) if len(known) == len(found) else None


@lru_cache(maxsize=1024)
def crossover(
    device_type: str, kernel_size: tuple[int, ...], channels: tuple[int, int], channels_last: bool, work: int = 1
) -> int | None:
    """:func:`least_of_neighbours` in the installed table, kept, for every call of a layer asks."""
    return least_of_neighbours(read_crossovers(device_kind(device_type), work), kernel_size, channels, channels_last)


def merge_rows(path: Path, kind: str, machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The table's text with the rows of one kind of device replaced.

    Args:
        path: the table; it may be missing.
        kind: :func:`device_kind`.
        machine: what was measured on.
        rows: ``dims``, ``kernel_size``, ``channels``, ``channels_last``, ``voxels`` and ``ratios``.
    """
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content[kind] = {"machine": dict(machine), "rows": list(rows)}
    return json.dumps(content, indent=1) + "\n"
