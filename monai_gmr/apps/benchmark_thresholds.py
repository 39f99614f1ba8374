"""Measure the size from which a device's kernels are faster than "dense", and write the table that backend "auto" uses.

python -m monai_gmr.apps.benchmark thresholds                     the installed table, for CPUs like this machine's
python -m monai_gmr.apps.benchmark thresholds --device cuda       for GPUs like this machine's, in each precision
python -m monai_gmr.apps.benchmark thresholds --layers harmonic   only rows of harmonic layers
python -m monai_gmr.apps.benchmark thresholds --output FILE       another table

For each memory format, window, number of channels, width of groups, stride and size, for radial and harmonic layers, the forward pass and
the training step of two backends run in alternation: "dense" and "cpp" on a CPU; "triton" and "dense", with the fastest of cuDNN and
torch's default for TF32, on a GPU. Run nothing else meanwhile. The table is written after each row; an interrupted run keeps the old
rows that it did not reach.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from monai_gmr.apps.benchmark_cases import Candidate, Case, RingConvolution
from monai_gmr.apps.benchmark_measure import Notes, Trial, device_of, make_input, measuring
from monai_gmr.apps.timing import median_seconds
from monai_gmr.arguments import check_choice
from monai_gmr.command_line import command_parser
from monai_gmr.files import check_folder, write_text
from monai_gmr.networks.layers.factories import make_convolution
from monai_gmr.ops.thresholds import (
    HARMONIC_OUTPUTS,
    KERNELS,
    THRESHOLDS,
    Point,
    Row,
    least_voxels,
    merge_rows,
    processor_of,
    read_thresholds,
)
from monai_gmr.utils import ConfigurationError

WINDOWS: dict[int, tuple[int, ...]] = {2: (3, 5, 9), 3: (3, 5, 7)}


class Grid(NamedTuple):
    """The points to measure on a type of device; windows, and sizes as (length of an axis, batch), are keyed by the number of axes."""

    precisions: tuple[str, ...]
    windows: dict[int, tuple[int, ...]]
    channels: tuple[int, ...]
    grouped: tuple[tuple[int, int], ...]  # channels, and channels of each of their groups
    strided: tuple[int, ...]  # channels of convolutions and transposed ones with a stride of 2
    angular: tuple[int, ...]  # channels of harmonic layers
    sizes: dict[int, tuple[tuple[int, int], ...]]
    grouped_sizes: dict[int, tuple[tuple[int, int], ...]]
    # includes large images, for which "dense" uses other algorithms with a stride
    strided_sizes: dict[int, tuple[tuple[int, int], ...]]
    most_operations: float  # of a dense forward pass of a radial layer; larger sizes are skipped, smaller ones decide


GRIDS = {
    "cpu": Grid(
        precisions=("float32",),
        windows=WINDOWS,
        # 12 and 24 are not multiples of 16, for which "dense" is slower relative to its size
        channels=(1, 8, 12, 16, 24, 32, 128),
        grouped=((16, 1), (16, 2), (16, 8), (64, 1), (64, 2), (64, 8)),
        strided=(1, 8, 32, 128),
        angular=(1, 8, 12, 16, 24, 32, 128),
        # includes batches of small images, as in classifiers
        sizes={
            2: (*((n, 64) for n in (2, 4, 8, 16, 32)), (32, 1), *((64, n) for n in (1, 2, 4, 8)), (128, 4), (128, 16)),
            3: (*((n, 8) for n in (4, 8, 16)), *((n, 1) for n in (8, 16, 24, 32, 48))),
        },
        grouped_sizes={2: ((16, 4), (32, 4), (64, 8)), 3: ((16, 1), (32, 1))},
        strided_sizes={2: ((16, 4), (32, 4), (64, 8), (128, 16)), 3: ((16, 1), (32, 1), (64, 1))},
        most_operations=3e11,
    ),
    # a GPU needs large images to be busy, and compiles for each window and block of channels
    "cuda": Grid(
        precisions=("float32", "float16", "bfloat16"),
        windows=WINDOWS,
        channels=(1, 8, 32, 128),
        grouped=((32, 1), (32, 8), (128, 1), (128, 8)),
        strided=(),
        angular=(8, 32, 128),
        sizes={2: ((32, 4), (64, 16), (128, 16), (256, 16)), 3: ((16, 1), (32, 1), (64, 1), (128, 1))},
        grouped_sizes={2: ((64, 16), (256, 16)), 3: ((32, 1), (96, 1))},
        strided_sizes={},
        most_operations=1e13,
    ),
}
LAYERS = ("radial", "harmonic")
# checks that the command runs, not how fast kernels are
QUICK = Grid(
    precisions=("float32",),
    windows={2: (3,), 3: (3,)},
    channels=(2,),
    grouped=(),
    strided=(2,),
    angular=(2,),
    sizes={2: ((8, 1), (8, 2)), 3: ((4, 1),)},
    grouped_sizes={},
    strided_sizes={2: ((8, 1),), 3: ((4, 1),)},
    most_operations=math.inf,
)


def make_points(grid: Grid) -> list[Point]:
    """Makes the rows of the table: windows, channels, groups, strides and memory formats, and harmonic layers."""
    windows = [(dims, k) for dims, lengths in grid.windows.items() for k in lengths]
    channels = (*((count, count) for count in grid.channels), *grid.grouped)
    plain = [
        Point(dims, k, *counts, last) for last, (dims, k), counts in itertools.product((False, True), windows, channels)
    ]
    strided = itertools.product((False, True), (False, True), windows, grid.strided)
    plain += [Point(dims, k, n, n, last, 2, transposed=transposed) for transposed, last, (dims, k), n in strided]
    layers = itertools.product((False, True), windows, grid.angular)
    return plain + [Point(dims, k, n, n, last, angular=True) for last, (dims, k), n in layers]


def sizes_of(point: Point, grid: Grid) -> Iterator[tuple[int, ...]]:
    """Yields shapes of the input in ascending order, without those whose dense convolution takes too long."""
    if point.stride > 1:
        sizes = grid.strided_sizes
    else:
        sizes = grid.sizes if point.width_per_group == point.channels else grid.grouped_sizes
    for length, batch in sorted(sizes[point.dims], key=lambda size: size[1] * size[0] ** point.dims):
        pairs, voxels = point.channels * point.width_per_group, batch * length**point.dims
        if 2 * point.kernel_size**point.dims * pairs * voxels <= grid.most_operations:
            yield (batch, point.channels, *(length,) * point.dims)


class Ratios(NamedTuple):
    """A point, the voxels of its sizes over the batch, and the ratios of kernel to "dense" time, for forward pass and training step."""

    point: Point
    voxels: list[int]
    forward: list[float]
    step: list[float]

    def least(self) -> list[int | None]:
        """Returns the voxels from which kernels are faster, in the forward pass and in the step."""
        return [least_voxels(self.voxels, ratios) for ratios in (self.forward, self.step)]

    def __str__(self) -> str:
        point = self.point
        ratios = ", ".join(f"{n}: {one:.2f}/{two:.2f}" for n, one, two in zip(self.voxels, self.forward, self.step))
        sizes = zip(("forward", "step"), self.least())
        outcome = ", ".join(f"{part} " + ("dense" if n is None else f"kernels from {n} voxels") for part, n in sizes)
        text = f"{point.dims}D k={point.kernel_size} C{point.channels}"
        text += f" width {point.width_per_group}" if point.width_per_group < point.channels else ""
        text += " harmonic" if point.angular else ""
        text += f"{' transposed' if point.transposed else ''} stride {point.stride}" if point.stride > 1 else ""
        return f"{text}{' channels last' if point.channels_last else ''}: {ratios}; {outcome}"


def measure_ratios(
    point: Point, shape: tuple[int, ...], repeats: int, device: torch.device, precision: str, notes: Notes
) -> tuple[float, float]:
    """Measures the ratio of kernel to "dense" time, for forward pass and training step: medians of ``repeats`` runs in alternation;
    raises ``ConfigurationError`` if the kernels do not run here."""
    groups, kernels = point.channels // point.width_per_group, KERNELS[device.type]
    make: Callable[[], torch.nn.Module]
    if point.angular:
        outputs = HARMONIC_OUTPUTS if point.channels == 1 else point.channels
        layer = ("gmr_harmonic", point.dims, point.channels, outputs, point.kernel_size)
        make = partial(make_convolution, *layer, padding=point.kernel_size // 2, bias=False)
    else:
        sizes = (point.dims, point.channels, point.kernel_size, groups)
        make = partial(RingConvolution, *sizes, stride=point.stride, transposed=point.transposed)
    candidates = [Candidate("harmonic" if point.angular else "ring_conv", each, make) for each in ("dense", kernels)]
    case = Case("ring_conv", str(point), precision, shape, tuple(candidates))
    trials = [Trial(case, each, make_input(case, device, point.channels_last)) for each in candidates]
    trials[1].check_kernels(notes)
    runs = {(part, index): getattr(trial, part) for index, trial in enumerate(trials) for part in ("forward", "step")}
    seconds = median_seconds(runs, repeats, seconds=10.0)
    forward, step = (round(seconds[part, 1] / seconds[part, 0], 3) for part in ("forward", "step"))
    return forward, step


def measure_grid(grid: Grid, repeats: int, device: torch.device, precision: str, notes: Notes) -> Iterator[Ratios]:
    """Yields the ratios of all points of a grid, one point after the other."""
    for point in tqdm(make_points(grid), desc=f"Thresholds, {precision}", unit="row"):
        row = Ratios(point, [], [], [])
        for shape in sizes_of(point, grid):
            forward, step = measure_ratios(point, shape, repeats, device, precision, notes)
            row.voxels.append(shape[0] * shape[2] ** point.dims)
            row.forward.append(forward)
            row.step.append(step)
        yield row


def _is_measured(point: Point, dims: Sequence[int], layers: Sequence[str]) -> bool:
    """Checks whether a run with these numbers of axes and kinds of layers replaces the row of a point."""
    return point.dims in dims and LAYERS[point.angular] in layers


def main(arguments: Sequence[str]) -> int:
    """Runs ``benchmark thresholds``; returns the exit code."""
    parser = command_parser("benchmark thresholds", __doc__)
    add = parser.add_argument
    add("--device", default="cpu", help="cpu or cuda (cpu)")
    text = "on a GPU, measured in turn; rows of other precisions stay (all)"
    add("--precisions", nargs="+", metavar="PRECISION", help=text)
    text = "2 and/or 3, in this order; other rows stay (both)"
    add("--dims", type=int, nargs="+", default=[2, 3], help=text)
    text = "radial and/or harmonic; other rows stay (both)"
    add("--layers", nargs="+", metavar="LAYER", default=LAYERS, help=text)
    add("--output", type=Path, default=THRESHOLDS, help="the table; rows of other devices stay (the installed one)")
    add("--repeats", type=int, default=9, help="runs for the medians (9)")
    add("--quick", action="store_true", help="tiny sizes, to test that it runs")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        raise ConfigurationError(f"repeats={options.repeats} is out of range: give 1 or more.")
    device = device_of(options.device)
    grid = GRIDS[device.type]
    # kept rows stay in their places
    places = {point: place for place, point in enumerate(make_points(grid))}
    precisions = options.precisions or grid.precisions
    for precision in precisions:
        check_choice(f"precision on {device.type}", precision, grid.precisions)
    for dims in options.dims:
        check_choice("dims", dims, tuple(grid.windows))
    for layer in options.layers:
        check_choice("layers", layer, LAYERS)
    if options.quick:
        grid = QUICK._replace(strided=QUICK.strided if grid.strided else ())
    grid = grid._replace(windows={dims: grid.windows[dims] for dims in options.dims if dims in grid.windows})
    if "radial" not in options.layers:
        grid = grid._replace(channels=(), grouped=(), strided=())
    if "harmonic" not in options.layers:
        grid = grid._replace(angular=())
    check_folder(options.output.parent)

    def write_table(rows: list[Row]) -> None:
        in_turn = sorted(rows, key=lambda row: places.get(row.point, -1))
        write_text(merge_rows(options.output, in_turn), options.output)

    with measuring() as notes:
        for precision in precisions:
            kind = (device.type, processor_of(device), precision)
            old = read_thresholds(options.output) if options.output.exists() else []
            # rows of this processor and precision that this run does not measure, or not yet
            others = {row.point: row for row in old if row[:3] == kind}
            rows: list[Row] = []
            print(" ".join(kind))
            for each in measure_grid(grid, options.repeats, device, precision, notes):
                rows.append(Row(*kind, each.point, *each.least()))
                others.pop(each.point, None)
                write_table([*others.values(), *rows])
                print(each, flush=True)
            kept = [row for row in others.values() if not _is_measured(row.point, options.dims, options.layers)]
            write_table([*kept, *rows])
            print()
    print(f"table: {options.output}")
    return 0
