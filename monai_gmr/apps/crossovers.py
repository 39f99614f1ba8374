"""Measure from which size on backend "compiled" is faster than "dense", and write the table that backend "auto" goes by.

python -m monai_gmr.apps.crossovers                     remake the installed table for CPUs like this machine's
python -m monai_gmr.apps.crossovers --output FILE       write another one

For each memory format, window, number of channels, width of groups and size both backends take turns, in the forward pass and in the
training step. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from monai_gmr.apps.benchmark import Trial, make_input, write_text
from monai_gmr.apps.benchmark_cases import Candidate, Case, RingConvolution
from monai_gmr.apps.benchmark_measure import describe_machine, interleave
from monai_gmr.engines import keep_freed_memory
from monai_gmr.ops import get_backend, set_backend
from monai_gmr.ops.crossovers import CROSSOVERS, Point, device_kind, least_voxels, merge_rows
from monai_gmr.utils import ConfigurationError

CHANNELS = (1, 8, 16, 32, 128)
# channels, and channels of each of their groups
GROUPED = ((16, 1), (16, 2), (16, 8), (64, 1), (64, 2), (64, 8))
WINDOWS = {2: (3, 5, 9), 3: (3, 5, 7)}
# length of an axis and batch
SIZES = {2: ((4, 16), (16, 4), (32, 4), (64, 8), (128, 16)), 3: ((8, 1), (16, 1), (32, 1), (64, 1))}
GROUPED_SIZES = {2: ((16, 4), (32, 4), (64, 8)), 3: ((16, 1), (32, 1))}
QUICK_SIZES = {2: ((8, 1), (8, 2)), 3: ((4, 1),)}
# above these a dense pass takes seconds and a smaller size has decided
MOST_OPERATIONS = 3e11


def make_points(quick: bool = False) -> list[Point]:
    """The windows and channels of the table.

    Example:
        >>> make_points()[0]
        Point(dims=2, kernel_size=3, channels=1, width_per_group=1, channels_last=False)
    """
    windows = {dims: lengths[:1] for dims, lengths in WINDOWS.items()} if quick else WINDOWS
    channels = ((2, 2),) if quick else (*((count, count) for count in CHANNELS), *GROUPED)
    kinds = itertools.product(
        (False, True), ((dims, k) for dims, lengths in windows.items() for k in lengths), channels
    )
    return [Point(dims, k, *counts, channels_last) for channels_last, (dims, k), counts in kinds]


def sizes_of(point: Point, quick: bool = False) -> Iterator[tuple[int, ...]]:
    """Shapes of the input, growing, without those whose dense convolution takes too long."""
    sizes = SIZES if point.width_per_group == point.channels else GROUPED_SIZES
    for length, batch in (QUICK_SIZES if quick else sizes)[point.dims]:
        voxels = batch * length**point.dims
        if 2 * point.kernel_size**point.dims * point.channels * point.width_per_group * voxels <= MOST_OPERATIONS:
            yield (batch, point.channels, *(length,) * point.dims)


def measure_ratios(point: Point, shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Time of "compiled" over that of "dense", of forward pass and training step, medians of runs that take turns."""
    groups = point.channels // point.width_per_group
    trials = {}
    for backend in ("dense", "compiled"):
        candidate = Candidate(
            "ring_conv", backend, lambda: RingConvolution(point.dims, point.channels, point.kernel_size, groups)
        )
        case = Case("ring_conv", str(point), "float32", shape, (candidate,))
        trials[backend] = Trial(case, candidate, make_input(case, torch.device("cpu"), point.channels_last))
    runs = {(name, part): getattr(trial, part) for name, trial in trials.items() for part in ("forward", "step")}
    for run in runs.values():
        run()
    times = interleave(runs, repeats, seconds=10.0)
    medians = {key: statistics.median(each) for key, each in times.items()}
    return {part: round(medians["compiled", part] / medians["dense", part], 3) for part in ("forward", "step")}


def measure_rows(repeats: int, quick: bool = False) -> list[dict[str, Any]]:
    """The rows of the table for this CPU."""
    from tqdm import tqdm

    jobs = [(point, shape) for point in make_points(quick) for shape in sizes_of(point, quick)]
    rows: dict[Point, dict[str, Any]] = {}
    for point, shape in tqdm(jobs, desc="Crossovers", unit="size"):
        row = rows.setdefault(point, {**point._asdict(), "voxels": [], "forward": [], "step": []})
        row["voxels"].append(shape[0] * shape[2] ** point.dims)
        for part, ratio in measure_ratios(point, shape, repeats).items():
            row[part].append(ratio)
    return list(rows.values())


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Ratios by size, of forward pass and training step, and the crossovers.

    Example:
        >>> row = {**Point(2, 3, 8, 2, True)._asdict(), "voxels": [10, 99], "forward": [1.9, 0.9], "step": [1.5, 0.5]}
        >>> print(format_table([row]))
        2D k=3 C8 width 2 channels last: 10: 1.90/1.50, 99: 0.90/0.50; forward dense, step compiled from 99 voxels
    """
    lines = []
    for row in rows:
        found = zip(row["voxels"], row["forward"], row["step"])
        ratios = ", ".join(f"{size}: {forward:.2f}/{step:.2f}" for size, forward, step in found)
        least = {part: least_voxels(row["voxels"], row[part]) for part in ("forward", "step")}
        outcome = ", ".join(
            f"{part} dense" if size is None else f"{part} compiled from {size} voxels" for part, size in least.items()
        )
        width = f" width {row['width_per_group']}" if row["width_per_group"] < row["channels"] else ""
        last = " channels last" if row["channels_last"] else ""
        lines.append(f"{row['dims']}D k={row['kernel_size']} C{row['channels']}{width}{last}: {ratios}; {outcome}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2 when an option or the output is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_gmr.apps.crossovers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=CROSSOVERS, help="the table; other devices' rows stay (the installed one)"
    )
    parser.add_argument("--repeats", type=int, default=9, help="runs over which medians are taken (9)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    backend = get_backend()
    try:
        if options.repeats < 1:
            raise ConfigurationError(f"repeats={options.repeats} is out of range: give 1 or more.")
        rows = measure_rows(options.repeats, options.quick)
        text = merge_rows(options.output, device_kind("cpu"), describe_machine(torch.device("cpu")), rows)
        write_text(text, options.output)
    except (ConfigurationError, OSError) as error:
        print(f"crossovers: {error}", file=sys.stderr)
        return 2
    finally:
        set_backend(backend)
    print(f"{format_table(rows)}\n\ntable: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
