"""Time and memory of the operation, the layers and the nets compared with plain convolution, in alternation in one process.

python -m monai_gmr.apps.benchmark                      everything on the CPU
python -m monai_gmr.apps.benchmark ring_conv --device cuda
python -m monai_gmr.apps.benchmark nets --precisions bfloat16 float32 --device cuda
python -m monai_gmr.apps.benchmark layers --dims 3 --backends dense triton --threads 1
python -m monai_gmr.apps.benchmark thresholds --help    sizes from which kernels are faster: what backend auto uses

Each case measures a forward pass, a training step and the peak memory of a step, for every backend and for torch.nn.ConvNd with the
same window and with window 3. Writes benchmark.json and benchmark.md (a shorter table) to OUT_DIR after each case, and benchmark.png at
the end. A candidate that cannot run a case is shown as "-", with the reason below the table.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from monai_gmr.apps.benchmark_cases import GROUPS, PRECISIONS, Case, make_cases
from monai_gmr.apps.benchmark_measure import device_of, measure_case, measuring
from monai_gmr.apps.benchmark_table import (
    SHORT_COLUMNS,
    Column,
    draw_rows,
    format_missing,
    format_rows,
    format_short_rows,
    is_drawn,
)
from monai_gmr.apps.benchmark_thresholds import main as thresholds
from monai_gmr.apps.timing import describe_machine
from monai_gmr.arguments import check_choice
from monai_gmr.command_line import command, command_parser
from monai_gmr.files import check_folder, write_text
from monai_gmr.ops import available_backends
from monai_gmr.utils import ConfigurationError, can_draw


def chosen_cases(options: argparse.Namespace, device: torch.device) -> list[Case]:
    """Returns the cases that a command line selects; raises :class:`~monai_gmr.utils.ConfigurationError` for impossible options."""
    choices = {"group": GROUPS, "backend": available_backends(), "dims": (2, 3), "precision": tuple(PRECISIONS)}
    for name, known in choices.items():
        for value in getattr(options, name if name == "dims" else f"{name}s") or ():
            check_choice(name, value, known)
    for name in ("repeats", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigurationError(f"{name}={value} is out of range: give 1 or more.")
    if not (math.isfinite(options.seconds) and options.seconds >= 0):
        raise ConfigurationError(f"seconds={options.seconds:g} is out of range: give 0 or more.")
    check_folder(options.output)
    backends = options.backends or available_backends()
    switches = {"on_cuda": device.type == "cuda", "quick": options.quick}
    cases = make_cases(options.groups or GROUPS, options.dims, backends, precisions=options.precisions, **switches)
    cases = [case for case in cases if any(text in case.title for text in options.cases)]
    if not cases:
        raise ConfigurationError(
            f"there is no case of {options.groups} with dims={options.dims} and cases={options.cases}: ask for others."
        )
    return cases


def measure_cases(
    cases: Sequence[Case],
    options: argparse.Namespace,
    device: torch.device,
    complete: Callable[[Case, list[dict[str, Any]]], None] = lambda case, rows: None,
    columns: Sequence[Column] = SHORT_COLUMNS,
) -> dict[str, Any]:
    """Measures cases, writes ``benchmark.json`` and ``benchmark.md`` after each, and returns the content of ``benchmark.json``.
    ``complete`` adds further columns to the rows of a case; ``columns`` are the columns of the table."""
    channels_last = device.type == "cpu" if options.channels_last is None else options.channels_last
    settings = {"repeats": options.repeats, "seconds": options.seconds, "channels_last": channels_last}
    rows: list[dict[str, Any]] = []
    with measuring(options.threads) as notes, tqdm(cases, desc="Benchmark", unit="case") as bar:
        given = {key: value for key, value in vars(options).items() if key != "output"}
        machine = describe_machine(device) | {"channels_last": channels_last}
        content = {"machine": machine, "options": given, "rows": rows}
        for case in bar:
            bar.set_postfix_str(case.title)
            found = measure_case(case, device, notes, **settings)
            complete(case, found)
            rows += found
            write_text(json.dumps(content, indent=1), options.output / "benchmark.json")
            write_text(format_short_rows(rows, columns) + "\n", options.output / "benchmark.md")
    return content


def describe(machine: Mapping[str, Any]) -> str:
    """Describes the machine in one line.

    Example:
        >>> describe({"processor": "Chip", "cores": 8, "threads": 2, "gpu": None, "torch": "2.9.0"})
        'Chip, 2 threads of 8 cores, torch 2.9.0'
    """
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads of {machine['cores']} cores"
    return ". ".join(filter(None, [f"{where}, torch {machine['torch']}", machine.get("remark")]))


def draw_content(content: Mapping[str, Any], folder: Path) -> None:
    """Draws ``benchmark.png`` if any row can be drawn."""
    if any(is_drawn(row) for row in content["rows"]) and can_draw():
        draw_rows(content["rows"], folder / "benchmark.png", describe(content["machine"]))


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = command_parser("benchmark", __doc__)
    add = parser.add_argument
    add("groups", nargs="*", metavar="GROUP", help=f"which of {', '.join(GROUPS)} (all), or thresholds")
    add("--device", default="cpu", help="cpu, cuda or cuda:NUMBER (cpu)")
    add("--repeats", type=int, default=30, help="rounds per case for the medians (30)")
    add("--seconds", type=float, default=20.0, help="time limit of a case, after at least three rounds (20)")
    add("--threads", type=int, help="CPU threads (torch's own choice)")
    add("--dims", type=int, nargs="+", default=[2, 3], help="2 and/or 3 (both)")
    add("--cases", nargs="+", default=[""], metavar="TEXT", help="only cases whose title contains one of these (all)")
    add("--backends", nargs="+", metavar="BACKEND", help="backends to compare (all)")
    text = f"some of {', '.join(PRECISIONS)}, measured in turn (float32)"
    add("--precisions", nargs="+", default=["float32"], metavar="PRECISION", help=text)
    add("--channels-last", action=argparse.BooleanOptionalAction, help="input of ring_conv (yes on the CPU)")
    add("--output", type=Path, default=Path("runs/benchmark"), metavar="OUT_DIR", help="folder (runs/benchmark)")
    add("--quick", action="store_true", help="tiny sizes, to test that it runs")
    return parser


@command("benchmark", "OUT_DIR has the finished cases")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 2 if the options or OUT_DIR are wrong, 130 if interrupted."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["thresholds"]:
        return thresholds(words[1:])
    options = make_parser().parse_args(words)
    device = device_of(options.device)
    content = measure_cases(chosen_cases(options, device), options, device)
    rows, machine = content["rows"], describe(content["machine"])
    draw_content(content, options.output)
    print(f"\n{machine}\n\n{format_rows(rows)}")
    if missing := format_missing(rows):
        print(missing)
    print(f"\nnumbers, table and picture: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
