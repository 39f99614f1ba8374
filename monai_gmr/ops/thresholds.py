"""From which size on a device's kernels are faster than "dense": what backend "auto" goes by, measured by ``monai_gmr.apps.crossovers``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

CROSSOVERS = Path(__file__).with_name("crossovers.json")
# the backend that has kernels for a type of device
KERNELS = {"cpu": "cpp", "cuda": "triton"}
# a size counts as faster from this ratio of times on, for other processors have other ratios
FASTER = 0.85


class Point(NamedTuple):
    """Where times were compared.

    Attributes:
        dims: number of spatial axes.
        kernel_size: window length in voxels, along all axes.
        channels: of input and output.
        width_per_group: channels of a group; as many as there are for one group.
        channels_last: whether the input has its channels last in memory.
        stride: in voxels, along all axes; the kernels compute what it leaves out, too.
        transposed: whether the convolution is a transposed one.
    """

    dims: int
    kernel_size: int
    channels: int
    width_per_group: int
    channels_last: bool = False
    stride: int = 1
    transposed: bool = False


class Use(NamedTuple):
    """A convolution that a backend is chosen for.

    Attributes:
        kernel_size: window length in voxels along each axis.
        channels: of input and output.
        groups: blocks of channels that do not see each other.
        channels_last: whether the input has its channels last in memory.
        gradients: whether a training step is run, or a forward pass alone.
        stride: in voxels, the largest of the axes.
        transposed: whether it is a transposed convolution with a stride.
        angular: whether angular factors are part of it.
    """

    kernel_size: tuple[int, ...]
    channels: tuple[int, int]
    groups: int = 1
    channels_last: bool = False
    gradients: bool = True
    stride: int = 1
    transposed: bool = False
    angular: bool = False


def least_voxels(voxels: Sequence[int], ratios: Sequence[float]) -> int | None:
    """The smallest measured size from which on all ratios are at most :data:`FASTER`, ``None`` if there is none.

    Args:
        voxels: measured sizes over the batch, growing.
        ratios: time over that of "dense".

    Example:
        >>> least_voxels([10, 100, 1000], [0.2, 0.9, 0.5]), least_voxels([10, 100], [0.5, 1.5])
        (1000, None)
    """
    found = None
    for size, ratio in zip(reversed(voxels), reversed(ratios)):
        if ratio > FASTER:
            break
        found = size
    return found


def device_kind(device: torch.device, precision: torch.dtype) -> str:
    """What the table calls this machine's device, and what it computes in: CPUs go by their vector instructions, which set the pace of both
    backends, GPUs by their model.

    Args:
        device: a CPU or a CUDA device.
        precision: of the convolution.

    Example:
        >>> device_kind(torch.device("cpu"), torch.float32).split()[:2]
        ['cpu', 'float32']
    """
    on_cpu = device.type == "cpu"
    model = torch.backends.cpu.get_cpu_capability() if on_cpu else torch.cuda.get_device_name(device)
    return f"{device.type} {str(precision).removeprefix('torch.')} {model}"


@lru_cache(maxsize=32)
def read_crossovers(kind: str, gradients: bool = True, path: Path = CROSSOVERS) -> dict[Point, int | None]:
    """The measured table: voxels over the batch from which the kernels are faster.

    Args:
        kind: :func:`device_kind`.
        gradients: whether in a training step, or in a forward pass alone.
        path: the file.

    Returns:
        of points that were not measured on such a CPU or GPU, what holds on every one where they were, in this precision; of another type
        of device or another precision, nothing.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    tables = {
        each: _table_of(content[each]["rows"], "step" if gradients else "forward")
        for each in content
        if each.split()[:2] == kind.split()[:2]
    }
    return {**latest_of([table for each, table in tables.items() if each != kind]), **tables.get(kind, {})}


def _table_of(rows: Sequence[Mapping[str, Any]], part: str) -> dict[Point, int | None]:
    points = [Point(*(row[name] for name in Point._fields)) for row in rows]
    return {point: least_voxels(row["voxels"], row[part]) for point, row in zip(points, rows)}


def latest_of(tables: Sequence[Mapping[Point, int | None]]) -> dict[Point, int | None]:
    """The table that keeps to several: of each point the largest number of voxels, ``None`` where one has ``None``.

    Args:
        tables: any number of tables.

    Example:
        >>> a, b = Point(2, 3, 8, 8), Point(2, 5, 8, 8)
        >>> list(latest_of([{a: 100, b: 10}, {a: 1000, b: None}]).values())
        [1000, None]
    """
    found: dict[Point, int | None] = {}
    for point, size in (entry for table in tables for entry in table.items()):
        found[point] = max(found.get(point, 0), size, key=lambda each: math.inf if each is None else each)
    return found


def _neighbours(value: int, measured: Iterable[int]) -> set[int]:
    """The next smaller and the next larger of the measured values; 0, which is none of them, below all, and the largest beyond all."""
    smaller = max((each for each in measured if each <= value), default=0)
    return {smaller, min((each for each in measured if each >= value), default=smaller)}


def least_of_neighbours(table: Mapping[Point, int | None], use: Use) -> int | None:
    """Voxels over the batch from which a convolution lies beyond the measured crossovers on all sides, ``None`` if it never does.

    Args:
        table: :func:`read_crossovers`.
        use: the convolution. Of windows the next smaller measured one counts, along the shortest axis. Of the channels of input and output,
            and of those of a group of each, both the next smaller and the next larger measured number have to be faster; groups of one
            channel, which "dense" has kernels of its own for, count for themselves, and so do strides and transposed convolutions.

    Example:
        >>> table = {Point(2, 3, 8, 8): None, Point(2, 3, 32, 32): 1000, Point(2, 3, 64, 64): 500}
        >>> least_of_neighbours(table, Use((3, 3), (32, 48))), least_of_neighbours(table, Use((3, 3), (16, 64)))
        (1000, None)
    """
    dims, found = len(use.kernel_size), []
    own_kind = (use.channels_last, use.stride, use.transposed)
    points = [
        each for each in table if (each.dims, each.channels_last, each.stride, each.transposed) == (dims, *own_kind)
    ]
    points = [point for point in points if (point.width_per_group < point.channels) == (use.groups > 1)]
    window = max((p.kernel_size for p in points if p.kernel_size <= min(use.kernel_size)), default=0)
    for channels in use.channels:
        width = channels // use.groups
        widths = {1} if width == 1 else _neighbours(width, {p.width_per_group for p in points} - {1})
        for count in _neighbours(channels, {p.channels for p in points}):
            own = widths if use.groups > 1 else {count}
            found += [table.get(Point(dims, window, count, each, *own_kind)) for each in own]
    known = [least for least in found if least is not None]
    return max(known) if len(known) == len(found) else None


@lru_cache(maxsize=1024)
def crossover(device: torch.device, precision: torch.dtype, use: Use) -> int | None:
    """:func:`least_of_neighbours` in the installed table, kept, for every call of a layer asks; ``None`` on devices without kernels."""
    if device.type not in KERNELS:
        return None
    return least_of_neighbours(read_crossovers(device_kind(device, precision), use.gradients), use)


def merge_rows(path: Path, kind: str, machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The table's text with the rows of one kind of device and precision replaced.

    Args:
        path: the table; it may be missing.
        kind: :func:`device_kind`.
        machine: what was measured on.
        rows: the attributes of a :class:`Point`, ``voxels``, and the ratios of times of ``forward`` pass and training ``step``.
    """
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content[kind] = {"machine": dict(machine), "rows": list(rows)}
    return json.dumps(content, indent=1) + "\n"
