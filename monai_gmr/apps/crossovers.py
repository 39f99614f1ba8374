"""Measure from which size on a device's kernels are faster than "dense", and write the table that backend "auto" goes by.

python -m monai_gmr.apps.crossovers                     remake the installed table for CPUs like this machine's
python -m monai_gmr.apps.crossovers --device cuda       for GPUs like this machine's, in each precision
python -m monai_gmr.apps.crossovers --output FILE       write another one

For each memory format, window, number of channels, width of groups, stride and size both backends take turns, in the forward pass and in
the training step: "dense" and "cpp" on a CPU; "dense", with the fastest of cuDNN and torch's own choice of TF32, and "triton" on a
GPU. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from monai_gmr.apps.benchmark import Notes, Trial, check_kernels, collected_notes, device_of, make_input
from monai_gmr.apps.benchmark_cases import Candidate, Case, RingConvolution
from monai_gmr.apps.benchmark_measure import interleave, timer_of
from monai_gmr.bundle import keep_freed_memory
from monai_gmr.files import check_folder, write_text
from monai_gmr.ops import get_backend, set_backend
from monai_gmr.ops.thresholds import KERNELS, THRESHOLDS, Point, Row, least_voxels, merge_rows, processor_of
from monai_gmr.utils import ConfigurationError, check_choice


class Grid(NamedTuple):
    """What is measured on a type of device.

    Attributes:
        precisions: that its kernels compute in.
        windows: lengths in voxels, by the number of axes.
        channels: of input and output.
        grouped: channels, and channels of each of their groups.
        strided: channels of convolutions and transposed ones with a stride of 2.
        sizes: length of an axis and batch, by the number of axes.
        grouped_sizes: likewise for groups.
        strided_sizes: likewise for strides; "dense" takes other ways for large images there, so these are among them.
        most_operations: of a dense forward pass; above these a smaller size has decided.
    """

    precisions: tuple[str, ...]
    windows: dict[int, tuple[int, ...]]
    channels: tuple[int, ...]
    grouped: tuple[tuple[int, int], ...]
    strided: tuple[int, ...]
    sizes: dict[int, tuple[tuple[int, int], ...]]
    grouped_sizes: dict[int, tuple[tuple[int, int], ...]]
    strided_sizes: dict[int, tuple[tuple[int, int], ...]]
    most_operations: float


GRIDS = {
    "cpu": Grid(
        precisions=("float32",),
        windows={2: (3, 5, 9), 3: (3, 5, 7)},
        channels=(1, 8, 16, 32, 128),
        grouped=((16, 1), (16, 2), (16, 8), (64, 1), (64, 2), (64, 8)),
        strided=(1, 8, 32, 128),
        sizes={2: ((4, 16), (16, 4), (32, 4), (64, 8), (128, 16)), 3: ((8, 1), (16, 1), (32, 1), (64, 1))},
        grouped_sizes={2: ((16, 4), (32, 4), (64, 8)), 3: ((16, 1), (32, 1))},
        strided_sizes={2: ((16, 4), (32, 4), (64, 8), (128, 16)), 3: ((16, 1), (32, 1), (64, 1))},
        most_operations=3e11,
    ),
    # a GPU needs large images to be busy, and a compilation for each window and block of channels
    "cuda": Grid(
        precisions=("float32", "float16", "bfloat16"),
        windows={2: (3, 5, 9), 3: (3, 5, 7)},
        channels=(1, 8, 32, 128),
        grouped=((32, 1), (32, 8), (128, 1), (128, 8)),
        strided=(),
        sizes={2: ((32, 4), (64, 16), (128, 16), (256, 16)), 3: ((16, 1), (32, 1), (64, 1), (128, 1))},
        grouped_sizes={2: ((64, 16), (256, 16)), 3: ((32, 1), (96, 1))},
        strided_sizes={},
        most_operations=1e13,
    ),
}
# whether the script runs, not how fast kernels are
QUICK = Grid(
    precisions=("float32",),
    windows={2: (3,), 3: (3,)},
    channels=(2,),
    grouped=(),
    strided=(2,),
    sizes={2: ((8, 1), (8, 2)), 3: ((4, 1),)},
    grouped_sizes={},
    strided_sizes={2: ((8, 1),), 3: ((4, 1),)},
    most_operations=math.inf,
)


def grid_of(device_type: str, quick: bool = False) -> Grid:
    """What is measured.

    Args:
        device_type: of :data:`GRIDS`.
        quick: tiny sizes.

    Example:
        >>> grid_of("cpu").precisions, grid_of("cuda", quick=True).strided
        (('float32',), ())
    """
    grid = GRIDS[device_type]
    return QUICK._replace(strided=QUICK.strided if grid.strided else ()) if quick else grid


def make_points(grid: Grid) -> list[Point]:
    """The windows and channels of the table.

    Args:
        grid: by :func:`grid_of`.

    Example:
        >>> make_points(GRIDS["cpu"])[0]
        Point(dims=2, kernel_size=3, channels=1, width_per_group=1, channels_last=False, stride=1, transposed=False)
    """
    windows = [(dims, k) for dims, lengths in grid.windows.items() for k in lengths]
    channels = (*((count, count) for count in grid.channels), *grid.grouped)
    kinds = itertools.product((False, True), windows, channels)
    points = [Point(dims, k, *counts, channels_last) for channels_last, (dims, k), counts in kinds]
    strided = itertools.product((False, True), (False, True), windows, grid.strided)
    return points + [
        Point(dims, k, count, count, last, 2, transposed) for transposed, last, (dims, k), count in strided
    ]


def sizes_of(point: Point, grid: Grid) -> Iterator[tuple[int, ...]]:
    """Shapes of the input, growing, without those whose dense convolution takes too long."""
    if point.stride > 1:
        sizes = grid.strided_sizes
    else:
        sizes = grid.sizes if point.width_per_group == point.channels else grid.grouped_sizes
    for length, batch in sizes[point.dims]:
        voxels = batch * length**point.dims
        operations = 2 * point.kernel_size**point.dims * point.channels * point.width_per_group * voxels
        if operations <= grid.most_operations:
            yield (batch, point.channels, *(length,) * point.dims)


def measure_ratios(
    point: Point, shape: tuple[int, ...], repeats: int, device: torch.device, precision: str, notes: Notes
) -> dict[str, float]:
    """Time of the device's kernels over that of "dense", of forward pass and training step, medians of runs that take turns.

    Args:
        point: window, channels and memory format.
        shape: of the input.
        repeats: runs of each.
        device: where.
        precision: "float32", or "float16" or "bfloat16" for autocast.
        notes: the library's warnings.

    Raises:
        ConfigurationError: when the kernels do not run here.
    """
    groups, kernels = point.channels // point.width_per_group, KERNELS[device.type]
    trials = {}
    for backend in ("dense", kernels):
        geometry = (point.dims, point.channels, point.kernel_size, groups, point.stride, point.transposed)
        candidate = Candidate("ring_conv", backend, partial(RingConvolution, *geometry))
        case = Case("ring_conv", str(point), precision, shape, (candidate,))
        trials[backend] = Trial(case, candidate, make_input(case, device, point.channels_last))
    check_kernels(trials[kernels], notes)
    runs = {(name, part): getattr(trial, part) for name, trial in trials.items() for part in ("forward", "step")}
    for run in runs.values():
        run()
    times = interleave(runs, repeats, seconds=10.0, timer=timer_of(device))
    medians = {key: statistics.median(each) for key, each in times.items()}
    return {part: round(medians[kernels, part] / medians["dense", part], 3) for part in ("forward", "step")}


def measure_rows(repeats: int, device: torch.device, precision: str, quick: bool = False) -> list[dict[str, Any]]:
    """The rows of the table for this device and precision."""
    from tqdm import tqdm

    grid = grid_of(device.type, quick)
    jobs = [(point, shape) for point in make_points(grid) for shape in sizes_of(point, grid)]
    rows: dict[Point, dict[str, Any]] = {}
    with collected_notes() as notes:
        for point, shape in tqdm(jobs, desc=f"Crossovers, {precision}", unit="size"):
            row = rows.setdefault(point, {**point._asdict(), "voxels": [], "forward": [], "step": []})
            row["voxels"].append(shape[0] * shape[2] ** point.dims)
            for part, ratio in measure_ratios(point, shape, repeats, device, precision, notes).items():
                row[part].append(ratio)
    return list(rows.values())


def row_of(ratios: Mapping[str, Any], device: torch.device, precision: str) -> Row:
    """A row of the table from the ratios at each size."""
    point = Point(*(ratios[name] for name in Point._fields))
    least = [least_voxels(ratios["voxels"], ratios[part]) for part in ("forward", "step")]
    return Row(device.type, processor_of(device), precision, point, *least)


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Ratios by size, of forward pass and training step, and the crossovers.

    Example:
        >>> row = {**Point(2, 3, 8, 2, True)._asdict(), "voxels": [10, 99], "forward": [1.9, 0.9], "step": [1.5, 0.5]}
        >>> print(format_table([row]))
        2D k=3 C8 width 2 channels last: 10: 1.90/1.50, 99: 0.90/0.50; forward dense, step kernels from 99 voxels
    """
    lines = []
    for row in rows:
        found = zip(row["voxels"], row["forward"], row["step"])
        ratios = ", ".join(f"{size}: {forward:.2f}/{step:.2f}" for size, forward, step in found)
        least = {part: least_voxels(row["voxels"], row[part]) for part in ("forward", "step")}
        outcome = ", ".join(
            f"{part} dense" if size is None else f"{part} kernels from {size} voxels" for part, size in least.items()
        )
        width = f" width {row['width_per_group']}" if row["width_per_group"] < row["channels"] else ""
        width += f"{' transposed' if row['transposed'] else ''} stride {row['stride']}" if row["stride"] > 1 else ""
        last = " channels last" if row["channels_last"] else ""
        lines.append(f"{row['dims']}D k={row['kernel_size']} C{row['channels']}{width}{last}: {ratios}; {outcome}")
    return "\n".join(lines)


def check_options(options: argparse.Namespace) -> tuple[torch.device, Sequence[str]]:
    """The device and the precisions, when the options are possible.

    Raises:
        ConfigurationError: when one is not.
    """
    if options.repeats < 1:
        raise ConfigurationError(f"repeats={options.repeats} is out of range: give 1 or more.")
    device = device_of(options.device)
    possible = GRIDS[device.type].precisions
    for precision in options.precisions or ():
        check_choice(f"precision on {device.type}", precision, possible)
    return device, options.precisions or possible


@contextmanager
def fastest_dense() -> Iterator[None]:
    """The fastest of cuDNN for "dense"; afterwards that and the backend are what they were."""
    backend, search = get_backend(), torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = search
        set_backend(backend)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2 when an option or the output is wrong, or the kernels do not run."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_gmr.apps.crossovers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", default="cpu", help="cpu or cuda (cpu)")
    add("--precisions", nargs="+", metavar="PRECISION", help="on a GPU; the table keeps the others' rows (all)")
    add("--output", type=Path, default=THRESHOLDS, help="the table; other devices' rows stay (the installed one)")
    add("--repeats", type=int, default=9, help="runs over which medians are taken (9)")
    add("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    try:
        device, precisions = check_options(options)
        check_folder(options.output.parent)
        with fastest_dense():
            for precision in precisions:
                ratios = measure_rows(options.repeats, device, precision, options.quick)
                rows = [row_of(each, device, precision) for each in ratios]
                write_text(merge_rows(options.output, rows), options.output)
                print(f"{' '.join(rows[0][:3])}\n{format_table(ratios)}\n")
    except (ConfigurationError, OSError) as error:
        print(f"crossovers: {error}", file=sys.stderr)
        return 2
    print(f"table: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
