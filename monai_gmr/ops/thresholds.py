"""Sizes from which a device's kernels are faster than "dense", for backend "auto".

``thresholds.csv`` has one row for each convolution that ``python -m monai_gmr.apps.benchmark thresholds`` measured. ``forward`` and
``step`` (a training step) are voxels over the batch; an empty field means that "dense" was faster at every size.
"""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from monai_gmr.ops.call import Call

THRESHOLDS = Path(__file__).with_name("thresholds.csv")
# the backend that has kernels for a type of device
KERNELS = {"cpu": "cpp", "cuda": "triton"}
# output channels of a harmonic layer measured with one input channel: a single output would have only order 0
HARMONIC_OUTPUTS = 8
# a size counts as faster at this ratio of times or below: a margin, because ratios differ between processors
FASTER = 0.85


class Point(NamedTuple):
    """The convolution of a row."""

    dims: int  # number of spatial axes
    kernel_size: int  # window length in voxels, along all axes
    channels: int  # of input and output; a harmonic layer with one input channel has HARMONIC_OUTPUTS output channels
    width_per_group: int  # channels per group; all channels for one group
    channels_last: bool = False  # whether the input has its channels last in memory
    stride: int = 1  # in voxels, along all axes
    transposed: bool = False
    angular: bool = False  # whether it is a harmonic convolution


class Row(NamedTuple):
    """A row of the table; ``forward`` and ``step`` are voxels over the batch from which kernels are faster, ``None`` if they never are."""

    device: str  # type, "cpu" or "cuda"
    processor: str  # result of processor_of
    precision: str  # data type of the computation
    point: Point
    forward: int | None
    step: int | None


COLUMNS = [*Row._fields[:3], *Point._fields, *Row._fields[4:]]


def least_voxels(voxels: Sequence[int], ratios: Sequence[float]) -> int | None:
    """The smallest measured size from which all ratios, times over "dense", are at most :data:`FASTER`; ``None`` if there is none."""
    least = None
    for size, ratio in zip(reversed(voxels), reversed(ratios)):
        if ratio > FASTER:
            break
        least = size
    return least


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "i686")


def processor_of(device: torch.device) -> str:
    """Name of a CPU or CUDA device in the table: vector instructions of x86, architecture and instructions of other CPUs, model of GPUs."""
    if device.type == "cuda":
        # a FakeTensor can be on a GPU that does not exist
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else "no GPU"
    instructions = torch.backends.cpu.get_cpu_capability()
    return instructions if _is_x86() else f"{platform.machine()} {instructions}"


def read_thresholds(path: Path = THRESHOLDS) -> list[Row]:
    """The rows of a table."""
    number = lambda text: int(text) if text else None  # noqa: E731
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))[1:]
    rows = []
    for device, processor, precision, *values, forward, step in lines:
        dims, kernel_size, channels, width, last, stride, transposed, angular = map(int, values)
        kind = {"transposed": bool(transposed), "angular": bool(angular)}
        point = Point(dims, kernel_size, channels, width, bool(last), stride, **kind)
        rows.append(Row(device, processor, precision, point, number(forward), number(step)))
    return rows


def merge_rows(path: Path, rows: Sequence[Row]) -> str:
    """The text of a table in which ``rows`` replace those of the same processors and precisions; the file can be missing."""
    replaced = {row[:3] for row in rows}
    kept = [row for row in (read_thresholds(path) if path.exists() else []) if row[:3] not in replaced]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    # the csv module writes None as an empty field
    writer.writerows([*row[:3], *map(int, row.point), row.forward, row.step] for row in [*kept, *rows])
    return text.getvalue()


@lru_cache(maxsize=32)
def thresholds_of(
    device: str, processor: str, precision: str, gradients: bool, path: Path = THRESHOLDS
) -> dict[Point, int | None]:
    """Voxels over the batch from which kernels are faster, in a training step (``gradients``) or only a forward pass.

    A point that was not measured on this processor takes the largest number of the other processors in this precision, ``None`` if one of
    them has ``None``. A CPU that is not x86 uses only its own rows.
    """
    own: dict[Point, int | None] = {}
    careful: dict[Point, int | None] = {}
    for row in read_thresholds(path):
        if (row.device, row.precision) != (device, precision):
            continue
        size = row.step if gradients else row.forward
        if row.processor == processor:
            own[row.point] = size
        elif device != "cpu" or _is_x86():
            before = careful.get(row.point, 0)
            careful[row.point] = None if size is None or before is None else max(size, before)
    return careful | own


def _neighbours(value: int, measured: Iterable[int]) -> set[int]:
    """The measured values next below and next above a value; 0, which is not measured, if none is below, the largest if none is above."""
    smaller = max((each for each in measured if each <= value), default=0)
    return {smaller, min((each for each in measured if each >= value), default=smaller)}


def least_of_neighbours(table: Mapping[Point, int | None], call: Call) -> int | None:
    """Voxels over the batch from which a convolution exceeds the thresholds of all measured neighbours, ``None`` if it never does.

    For windows, the neighbour is the next smaller measured length, along the shortest axis. For the channels of input and output, in total
    and per group, both the next smaller and the next larger measured number must be faster. Groups of one channel, for which "dense" has
    special kernels, are compared only with each other, and so are strides, transposed convolutions and harmonic ones. On a CPU, harmonic
    convolutions without rows, such as those with groups, use the radial rows.
    """
    dims, stride = len(call.kernel_size), max(call.stride)

    def points_of(kind: tuple) -> list[Point]:
        alike = (each for each in table if (each.dims, *each[4:]) == (dims, *kind))
        return [each for each in alike if (each.width_per_group < each.channels) == (call.groups > 1)]

    angular, geometry = call.angular, (call.channels_last, stride, call.transposed and stride > 1)
    if angular and call.device.type == "cpu":
        angular = bool(points_of((*geometry, True)))
    kind = (*geometry, angular)
    points = points_of(kind)
    window = max((p.kernel_size for p in points if p.kernel_size <= min(call.kernel_size)), default=0)
    sizes = []
    # a harmonic layer has more responses than channels
    for channels in (call.channels[0], call.num_outputs()) if angular else call.channels:
        width = channels // call.groups
        widths = {1} if width == 1 else _neighbours(width, {p.width_per_group for p in points} - {1})
        for count in _neighbours(channels, {p.channels for p in points}):
            own = widths if call.groups > 1 else {count}
            sizes += [table.get(Point(*(dims, window, count, each), *kind)) for each in own]
    known = [size for size in sizes if size is not None]
    return max(known) if len(known) == len(sizes) else None


def threshold(call: Call) -> int | None:
    """:func:`least_of_neighbours` in the installed table; ``None`` on devices without kernels."""
    if call.device.type not in KERNELS:
        return None
    # runs at every call of a layer: cached by the properties that the table depends on
    kind = (call.groups, call.transposed, call.angular, call.orders)
    convolution = (call.kernel_size, call.channels, max(call.stride), *kind)
    return _kept_threshold(call.device, call.precision, call.gradients, call.channels_last, convolution)


@lru_cache(maxsize=1024)
def _kept_threshold(
    device: torch.device, precision: torch.dtype, gradients: bool, last: bool, convolution: tuple
) -> int | None:
    kernel_size, channels, stride, groups, transposed, angular, orders = convolution
    table = thresholds_of(device.type, processor_of(device), str(precision).removeprefix("torch."), gradients)
    known = {"groups": groups, "transposed": transposed, "angular": angular, "orders": orders}
    call = Call(kernel_size, channels, (stride,), device=device, channels_last=last, **known)
    return least_of_neighbours(table, call)
