"""What this library shows on a GPU, in the order of worth and within a time: tests, thresholds, benchmark, trainings.

``tests/measurements/gpu.sh SECONDS`` runs the steps of :func:`make_steps`, each in a process of its own with a share of the time; what a
step leaves goes to those after it. A step that fails or is stopped at its limit keeps what it wrote, and the next one runs. OUT gets, after
each step,

    gpu.json        machine, versions, and of each step how it ended and what it took
    gpu.md          the same and all tables
    gpu.tar.gz      all that the steps wrote
    thresholds.csv  the table that backend "auto" goes by, with the rows of this GPU
    *.png           pictures of the trainings; those of the benchmark are in gpu.tar.gz

The steps work in runs/gpu. ``--dry-run`` runs all of them on a CPU at tiny sizes; it says whether they run, not how fast.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gpu_training import SOURCES

from monai_gmr.apps.benchmark import describe
from monai_gmr.apps.timing import describe_machine
from monai_gmr.files import write_text
from monai_gmr.ops.thresholds import THRESHOLDS
from monai_gmr.tables import format_markdown

ROOT = Path(__file__).parents[2]
# seconds that a step has to end after it was interrupted
GRACE = 10.0
PACKED = (".csv", ".json", ".log", ".md", ".png", ".xml", ".yaml")
NO_TESTS = 5


class Step(NamedTuple):
    """A part of the run: its arguments after ``python``, its weight when the time is divided, what it writes in its folder, the most
    seconds that it gets, and the exit statuses with which it succeeds."""

    name: str
    arguments: tuple[str, ...]
    weight: float
    writes: tuple[str, ...]
    most: float = float("inf")
    good: tuple[int, ...] = (0,)


def make_steps(work: Path, data: Path, dry: bool) -> list[Step]:
    """The steps; FOLDER and SECONDS in their arguments stand for a step's folder and its limit."""
    device = ("--device", "cpu" if dry else "cuda")
    tests = ("-m", "gpu", "tests")
    if dry:
        tests = ("-m", "rehearsal", "tests/networks/layers/test_partial_group_conv.py", "-k", "half_precision")
    short = ("--quick", "--repeats", "1") if dry else ("--repeats", "20", "--seconds", "1.5")
    backends = ("--backends", "auto", "dense", *(() if dry else ("triton",)))
    measure = (*device, "--dims", "3", *backends, *short, "--output", "FOLDER")
    halves, all_precisions = ("bfloat16", "float16"), ("bfloat16", "tf32", "float16", "float32")
    large = () if dry else ("--cases", "96x96x96", "128x128x128")
    operation = ("-m", "benchmark_page", "ring_conv", *measure, *large, "--precisions", *all_precisions)
    benchmark = ("benchmark.json", "benchmark.md", "benchmark.png")
    table = work / "thresholds" / "thresholds.csv" if dry else THRESHOLDS
    fewer = (
        ("--quick", "--repeats", "1") if dry else ("--repeats", "5", "--precisions", *all_precisions[::2], "float32")
    )
    thresholds = ("-m", "monai_gmr.apps.benchmark", "thresholds", *device, "--dims", "3", "2", *fewer)
    report = ("-p", "no:cacheprovider", "--continue-on-collection-errors", "--durations", "15", "-rfE")
    tables = tuple(f"{data}/{name}" for data in SOURCES for name in ("table.md", "table.csv", "study.png"))
    training = ("--data", str(data), "--output", "FOLDER", "--seconds", "SECONDS", *(("--dry-run",) if dry else ()))
    return [
        Step("tests", ("-m", "pytest", *tests, *report, "--junitxml", "FOLDER/tests.xml"), 3, ("tests.xml",), 180),
        Step("thresholds", (*thresholds, "--output", str(table)), 2, ()),
        Step(
            "nets", ("-m", "benchmark_page", "nets", "test_time", *measure, "--precisions", *halves[:1]), 1.5, benchmark
        ),
        Step("channels last", (*operation, "--channels-last"), 3, benchmark),
        Step("training", ("-m", "gpu_training", *training), 4, tables),
        Step("channels first", (*operation, "--no-channels-last"), 1, benchmark),
    ]


def run_step(step: Step, folder: Path, limit: float, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a step until it ends or for ``limit`` seconds; returns its name, ``status``, ``seconds`` and ``limit``. Its output goes to
    ``step.log``. At the limit it is interrupted, and killed after :data:`GRACE` seconds, with all processes that it started."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"FOLDER": str(folder), "SECONDS": f"{limit:.0f}"}
    words = [values.get(word, word.replace("FOLDER", str(folder))) for word in step.arguments]
    start, stopped = time.monotonic(), False
    with open(folder / "step.log", "w", encoding="utf-8") as log:
        options = {"stdout": log, "stderr": subprocess.STDOUT, "cwd": ROOT, "env": dict(environment)}
        process = subprocess.Popen(
            [environment.get("PYTHON", sys.executable), *words],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            **options,
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            stopped = True
        finally:
            _end(process)
    missing = [name for name in step.writes if not (folder / name).is_file()]
    status = "done"
    if stopped:
        status = "stopped at its limit"
    elif process.returncode not in step.good:
        status = f"failed with exit status {process.returncode}"
    elif missing:
        status = f"failed: it wrote no {', '.join(missing)}"
    return {
        "step": step.name,
        "status": status,
        "seconds": round(time.monotonic() - start, 1),
        "limit": round(limit, 1),
    }


def _end(process: subprocess.Popen) -> None:
    """Interrupt a process that still runs, and kill what is left of its group."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def limits(steps: Sequence[Step], seconds: float) -> float:
    """Seconds that the first of some steps gets of those that are left: its share by weight, at most its own limit.

    Example:
        >>> steps = [Step("a", (), 1, (), most=10), Step("b", (), 3, ())]
        >>> limits(steps, 20), limits(steps, 100), limits(steps[1:], 100)
        (5.0, 10, 100.0)
    """
    return min(steps[0].most, seconds * steps[0].weight / sum(step.weight for step in steps))


def run_steps(
    steps: Sequence[Step], seconds: float, work: Path, output: Path, machine: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Run steps one after the other within ``seconds``, write what they left after each, and return how each ended."""
    end = time.monotonic() + seconds
    # of the tests that this run is part of, nothing reaches the tests that it runs
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    results: list[dict[str, Any]] = []
    for index, step in enumerate(steps):
        left = end - GRACE - time.monotonic()
        if left <= 0:
            results.append({"step": step.name, "status": "not reached", "seconds": 0.0, "limit": 0.0})
            continue
        limit = limits(steps[index:], left)
        print(f"{step.name}: at most {limit:.0f} s", flush=True)
        results.append(run_step(step, work / step.name.replace(" ", "-"), limit, environment))
        print(f"{step.name}: {results[-1]['status']}, {results[-1]['seconds']:.0f} s", flush=True)
        collect(results, work, output, machine)
    collect(results, work, output, machine)
    return results


def collect(results: Sequence[Mapping[str, Any]], work: Path, output: Path, machine: Mapping[str, Any]) -> None:
    """Write to ``output`` what the steps left in ``work``: few files, without folders, as a machine gives them back."""
    output.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps({"machine": machine, "steps": list(results)}, indent=1), output / "gpu.json")
    write_text(describe_results(results, work, machine), output / "gpu.md")
    for picture in sorted(work.glob("training/*/study.png")):
        shutil.copyfile(picture, output / f"{picture.parent.name}.png")
    table = work / "thresholds" / "thresholds.csv"
    if "thresholds" in {each["step"] for each in results}:
        shutil.copyfile(table if table.exists() else THRESHOLDS, output / "thresholds.csv")
    with tarfile.open(output / "gpu.tar.gz", "w:gz") as archive:
        for file in sorted(work.rglob("*")):
            if file.suffix in PACKED and "data" not in file.relative_to(work).parts:
                archive.add(file, file.relative_to(work))


def describe_results(results: Sequence[Mapping[str, Any]], work: Path, machine: Mapping[str, Any]) -> str:
    """The machine, how each step ended, the tables of those that have some, and the last lines of the others."""
    rows = [[each["step"], each["status"], f"{each['seconds']:.0f}", f"{each['limit']:.0f}"] for each in results]
    details = ", ".join(f"{name} {machine.get(name)}" for name in ("cuda", "cudnn", "driver", "date"))
    parts = [f"# {describe(machine)}", details, format_markdown([["step", "", "seconds", "limit"], *rows])]
    for each in results:
        folder = work / each["step"].replace(" ", "-")
        tables = [file.read_text(encoding="utf-8") for file in sorted([*folder.glob("*.md"), *folder.glob("*/*.md")])]
        log = folder / "step.log"
        if not tables and log.exists():
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]
            tables = ["\n".join(f"    {line}" for line in lines)]
        parts += [f"## {each['step']}", *tables] if tables else []
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 when every step is done, 1 when one is not, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(
        "gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seconds", type=float, metavar="SECONDS", help="of the whole run")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="some of the steps, in their order (all)")
    parser.add_argument("--dry-run", action="store_true", help="everything on a CPU at tiny sizes")
    default = Path(os.environ.get("OUT", ROOT / "runs" / "gpu-results"))
    parser.add_argument(
        "--output", type=Path, default=default, metavar="OUT", help="folder ($OUT, else runs/gpu-results)"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "gpu", help="folder of the steps (runs/gpu)")
    parser.add_argument("--data", type=Path, default=ROOT / ".gpu_data", help="folder of the npz files (.gpu_data)")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("gpu.sh: torch sees no GPU here: give --dry-run.", file=sys.stderr)
        return 2
    steps = make_steps(options.work.resolve(), options.data.resolve(), options.dry_run)
    unknown = sorted(set(options.only or ()) - {step.name for step in steps})
    if unknown:
        print(f"gpu.sh: there is no step {unknown[0]!r}: use some of {[step.name for step in steps]}.", file=sys.stderr)
        return 2
    steps = [step for step in steps if not options.only or step.name in options.only]
    # ended from outside, it ends its step and keeps what there is
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    machine = describe_machine(torch.device("cpu" if options.dry_run else "cuda")) | {"dry_run": options.dry_run}
    results = run_steps(steps, options.seconds, options.work.resolve(), options.output.resolve(), machine)
    print((options.output / "gpu.md").read_text(encoding="utf-8"))
    return 0 if all(each["status"] == "done" for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
