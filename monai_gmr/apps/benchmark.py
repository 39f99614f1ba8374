"""Time and memory of the operation, the layers and the nets against plain convolution and other packages, in one process taking turns.

python -m monai_gmr.apps.benchmark                      everything on the CPU
python -m monai_gmr.apps.benchmark ring_conv --device cuda
python -m monai_gmr.apps.benchmark layers --dims 3 --backends dense triton --threads 1

Each case measures a forward pass, a training step and the most memory that a step has in use, for every backend, for torch.nn.ConvNd of the
same window and of window 3, and for those of GMR-Conv, SRE-Conv, e2cnn and escnn that are installed (their radial convolutions). The
machine's bandwidth and arithmetic are measured in the same run. OUT_DIR gets benchmark.json, benchmark.md (a shorter table) and
benchmark.png; what cannot run a case is shown as "-", with the reason at the end.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from monai_gmr.apps.benchmark_cases import (
    GROUPS,
    PEERS,
    Candidate,
    Case,
    count_cost,
    installed_peers,
    make_cases,
)
from monai_gmr.apps.benchmark_measure import (
    PRECISIONS,
    describe_machine,
    interleave,
    measure_limits,
    peak_memory,
    roofline,
    timer_of,
)
from monai_gmr.apps.benchmark_table import add_ratios, draw_rows, format_markdown, format_missing, format_rows, is_drawn
from monai_gmr.bundle import keep_freed_memory
from monai_gmr.files import check_folder, write_text
from monai_gmr.ops import available_backends, get_backend, set_backend
from monai_gmr.ops.memory_format import FORMATS
from monai_gmr.ops.ring_conv import dense_ring_conv
from monai_gmr.utils import ConfigurationError, can_draw, check_choice


class Notes(logging.Handler):
    """Collects what the library says while a candidate runs: why a backend left its work to another is said once a process."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.messages.append(record.getMessage())

    def about(self, backend: str) -> str | None:
        """The last message that says why a backend is not used."""
        return next((text for text in reversed(self.messages) if f"'{backend}' is not used" in text), None)


@contextmanager
def collected_notes() -> Iterator[Notes]:
    """Keep the library's warnings instead of printing them."""
    notes, logger = Notes(), logging.getLogger("monai_gmr")
    logger.addHandler(notes)
    try:
        yield notes
    finally:
        logger.removeHandler(notes)


def runs_dense(function: Callable[[], Any]) -> bool:
    """Whether the backend "dense" runs somewhere within a call, whoever calls it.

    Example:
        >>> from monai_gmr.networks.layers import GMRConv2d
        >>> runs_dense(lambda: GMRConv2d(1, 1, 3)(torch.rand(1, 1, 4, 4))), runs_dense(lambda: None)
        (True, False)
    """
    found = False

    def look(frame: Any, event: str, argument: Any) -> None:
        nonlocal found
        found = found or (event == "call" and frame.f_code is dense_ring_conv.__code__)

    previous = sys.getprofile()
    sys.setprofile(look)
    try:
        function()
    finally:
        sys.setprofile(previous)
    return found


class Trial:
    """A candidate on a case's input, ready to run.

    Args:
        case: the case.
        candidate: one of its candidates.
        x: the input; its gradient is taken where it asks for one.
    """

    def __init__(self, case: Case, candidate: Candidate, x: torch.Tensor) -> None:
        torch.manual_seed(0)
        self.candidate, self.x = candidate, x
        self.module = candidate.make().to(x.device).train()
        self.autocast = partial(torch.autocast, x.device.type, PRECISIONS[case.precision], case.precision != "float32")
        parameters = list(self.module.parameters())
        # a net is trained; a rate of zero keeps it what it is, however often it runs
        self.optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9) if case.group == "nets" else None
        self.seed = torch.ones_like(self.forward())

    def forward(self) -> torch.Tensor:
        """A forward pass without gradients."""
        set_backend(self.candidate.backend or "dense")
        with torch.no_grad(), self.autocast():
            return self.module(self.x)

    def cost(self) -> tuple[int | None, int]:
        """Multiply-adds and bytes at least moved of a forward pass."""
        return count_cost(self.module, self.forward, self.candidate.backend)

    def step(self) -> None:
        """Forward and backward; a net's optimizer too. No gradient is left behind."""
        set_backend(self.candidate.backend or "dense")
        with self.autocast():
            y = self.module(self.x)
        y.backward(self.seed)
        if self.optimizer is not None:
            self.optimizer.step()
        self.module.zero_grad(set_to_none=True)
        self.x.grad = None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."


def make_input(case: Case, device: torch.device, channels_last: bool) -> torch.Tensor:
    """A random input; inside a net it would ask for a gradient and be in autocast's type."""
    inner = case.group != "nets"
    dtype = PRECISIONS[case.precision] if inner else torch.float32
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    if channels_last and case.group == "ring_conv":
        x = x.to(memory_format=FORMATS[x.dim()])
    return x.requires_grad_(inner)


def check_kernels(trial: Trial, notes: Notes) -> None:
    """Make sure that a forced backend computes.

    Args:
        trial: of any backend, or none.
        notes: the library's warnings.

    Raises:
        ConfigurationError: when the backend left its work to "dense"; the message says why, where it is known.
    """
    backend = trial.candidate.backend
    if backend not in (None, "dense", "auto") and runs_dense(trial.forward):
        raise ConfigurationError(notes.about(str(backend)) or f"backend '{backend}' left its work to 'dense'.")


def prepare(case: Case, candidate: Candidate, x: torch.Tensor, notes: Notes) -> tuple[Trial, int]:
    """Set up a candidate, run it once unmeasured, and once for its memory.

    Returns:
        the trial, and the bytes that a step has in use at once.

    Raises:
        ConfigurationError: when the backend left its work to "dense".
    """
    trial = Trial(case, candidate, x)
    # in a net some layers may be left to it
    if case.group != "nets" or notes.about(str(candidate.backend)) is not None:
        check_kernels(trial, notes)
    trial.step()
    return trial, peak_memory(trial.step, x.device)


def measure_case(
    case: Case,
    device: torch.device,
    limits: Mapping[str, float],
    notes: Notes,
    repeats: int = 10,
    seconds: float = 20.0,
    channels_last: bool = False,
) -> list[dict[str, Any]]:
    """Measure all candidates of a case, taking turns.

    Args:
        case: the case.
        device: where.
        limits: what :func:`~monai_gmr.apps.benchmark_measure.measure_limits` returned.
        notes: the library's warnings.
        repeats, seconds: as in :func:`~monai_gmr.apps.benchmark_measure.interleave`.
        channels_last: whether the operation's input lies channels last.

    Returns:
        a row for each candidate: seconds, bytes, multiply-adds and their ratios; ``None`` and a ``reason`` where it cannot run.
    """
    x = make_input(case, device, channels_last)
    trials: dict[int, Trial] = {}
    memory: dict[int, int] = {}
    costs: dict[int, tuple[int | None, int]] = {}
    reasons: dict[int, str] = {}
    for index, candidate in enumerate(case.candidates):
        try:
            trials[index], memory[index] = prepare(case, candidate, x, notes)
            costs[index] = trials[index].cost()
        except Exception as error:
            trials.pop(index, None)
            reasons[index] = _one_line(error)
            x.grad = None
            if device.type == "cuda":
                torch.cuda.empty_cache()
    runs: dict[tuple[int, str], Callable[[], Any]] = {}
    for index, trial in trials.items():
        runs |= {(index, "forward"): trial.forward, (index, "step"): trial.step}
    times = interleave(runs, repeats, seconds, timer_of(device))
    rows = []
    for index, candidate in enumerate(case.candidates):
        row: dict[str, Any] = {"group": case.group, "case": case.name, "dims": case.dims, "precision": case.precision}
        row |= {"method": candidate.method, "backend": candidate.backend, "label": candidate.label}
        row |= {"reason": reasons.get(index), "rounds": len(times.get((index, "forward"), []))}
        row |= dict.fromkeys(("forward", "step", "memory", "operations", "moved"))
        row |= dict.fromkeys(("flops_per_second", "limit_share", "bound_by"))
        if index in trials:
            forward, step = (statistics.median(times[index, part]) for part in ("forward", "step"))
            operations, moved = costs[index]
            share, bound = roofline(operations, moved, forward, limits["bandwidth"], limits[case.precision])
            row |= {"forward": forward, "step": step, "memory": memory[index], "operations": operations, "moved": moved}
            row |= {"flops_per_second": None if operations is None else 2 * operations / forward}
            row |= {"limit_share": share, "bound_by": bound}
        rows.append(row)
    return add_ratios(rows)


@contextmanager
def settings_of(options: argparse.Namespace) -> Iterator[None]:
    """Threads and TF32 as the options ask for them, and the fastest of cuDNN; afterwards these and the backend are what they were."""
    threads, backend, search = torch.get_num_threads(), get_backend(), torch.backends.cudnn.benchmark
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        # plain convolutions and ours multiply alike
        for switch in switches:
            switch.allow_tf32 = options.tf32
        torch.backends.cudnn.benchmark = True
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = search
        set_backend(backend)
        for switch, value in zip(switches, before):
            switch.allow_tf32 = value


def device_of(name: str) -> torch.device:
    """A CPU, or a CUDA device that is then the current one.

    Args:
        name: as torch has it: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigurationError: when it is another one, or not there.

    Example:
        >>> device_of("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device={name} cannot be used: give cpu, cuda or cuda:NUMBER.")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigurationError(f"device={name} is not there: torch sees {count} CUDA devices; give --device cpu.")
        # torch takes no device without a number here
        torch.cuda.set_device(device.index or 0)
    return device


def check_options(options: argparse.Namespace) -> torch.device:
    """The device, when the options are possible.

    Raises:
        ConfigurationError: when one is not.
    """
    for group in options.groups:
        check_choice("group", group, GROUPS)
    for backend in options.backends or []:
        check_choice("backend", backend, available_backends())
    for dims in options.dims:
        check_choice("dims", dims, (2, 3))
    for name in ("repeats", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigurationError(f"{name}={value} is out of range: give 1 or more.")
    if not (math.isfinite(options.seconds) and options.seconds >= 0):
        raise ConfigurationError(f"seconds={options.seconds:g} is out of range: give 0 or more.")
    return device_of(options.device)


def run_benchmark(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure all cases, and write ``benchmark.json`` after each, ``benchmark.md`` and ``benchmark.png`` at the end.

    Args:
        options: of the command line.
        device: where.

    Returns:
        what is in ``benchmark.json``: ``machine``, ``limits``, ``options`` and ``rows``.
    """
    from tqdm import tqdm

    backends = options.backends or list(available_backends())
    peers = installed_peers() if options.peers else []
    on_cuda = device.type == "cuda"
    cases = make_cases(
        options.groups or GROUPS, options.dims, backends, peers, on_cuda, options.autocast, options.quick
    )
    cases = [case for case in cases if any(text in case.title for text in options.cases)]
    if not cases:
        raise ConfigurationError(
            f"there is no case of {options.groups} with dims={options.dims} and cases={options.cases}: ask for others."
        )
    channels_last = not on_cuda if options.channels_last is None else options.channels_last
    machine = describe_machine(device)
    versions = {name: importlib.metadata.version(name) for name in peers}
    content: dict[str, Any] = {"machine": machine | {"channels_last": channels_last, "packages": versions}}
    content["options"] = {key: value for key, value in vars(options).items() if key != "output"}
    rows: list[dict[str, Any]] = []
    with collected_notes() as notes, tqdm(cases, desc="Benchmark", unit="case") as bar:
        bar.set_postfix_str("limits of the machine")
        limits = measure_limits(device, sorted({case.precision for case in cases}), options.quick)
        content |= {"limits": limits, "rows": rows}
        for case in bar:
            bar.set_postfix_str(case.title)
            rows += measure_case(case, device, limits, notes, options.repeats, options.seconds, channels_last)
            write_text(json.dumps(content, indent=1), options.output / "benchmark.json")
    write_text(format_markdown(rows) + "\n", options.output / "benchmark.md")
    if any(is_drawn(row) for row in rows) and can_draw():
        draw_rows(rows, options.output / "benchmark.png", describe(content))
    return content


def describe(content: Mapping[str, Any]) -> str:
    """The machine and its limits in a line.

    Example:
        >>> machine = {"processor": "Chip", "cores": 8, "threads": 2, "gpu": None, "torch": "2.9.0"}
        >>> describe({"machine": machine, "limits": {"bandwidth": 2e10, "float32": 1e11}})
        'Chip, 2 threads of 8 cores, torch 2.9.0; at most 20 GB/s, float32 100 GFLOP/s'
    """
    machine, limits = content["machine"], content["limits"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads of {machine['cores']} cores"
    arithmetic = "".join(f", {name} {limits[name] / 1e9:.0f} GFLOP/s" for name in limits if name != "bandwidth")
    return f"{where}, torch {machine['torch']}; at most {limits['bandwidth'] / 1e9:.0f} GB/s{arithmetic}"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_gmr.apps.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("groups", nargs="*", metavar="GROUP", help=f"which of {', '.join(GROUPS)} (all)")
    add("--device", default="cpu", help="cpu, cuda or cuda:NUMBER (cpu)")
    add("--repeats", type=int, default=30, help="rounds of a case, over which medians are taken (30)")
    add("--seconds", type=float, default=20.0, help="after these no round of a case begins, once there are three (20)")
    add("--threads", type=int, help="CPU threads (torch's own choice)")
    add("--dims", type=int, nargs="+", default=[2, 3], help="2 and/or 3 (both)")
    add("--cases", nargs="+", default=[""], metavar="TEXT", help="those whose title contains one of these (all)")
    add("--backends", nargs="+", metavar="BACKEND", help="backends to compare (all)")
    add("--autocast", action="store_true", help="every case under bfloat16 autocast too")
    add("--tf32", action="store_true", help="let a GPU multiply float32 in TF32, plain convolutions and ours alike")
    add("--peers", action=argparse.BooleanOptionalAction, default=True, help=f"compare with {', '.join(PEERS)} (yes)")
    add("--channels-last", action=argparse.BooleanOptionalAction, help="input of ring_conv (yes on the CPU)")
    add("--output", type=Path, default=Path("runs/benchmark"), metavar="OUT_DIR", help="folder (runs/benchmark)")
    add("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2 when the options or OUT_DIR are wrong, 130 when interrupted."""
    options = make_parser().parse_args(arguments)
    keep_freed_memory()
    try:
        device = check_options(options)
        check_folder(options.output)
        with settings_of(options):
            content = run_benchmark(options, device)
    except (ConfigurationError, OSError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"benchmark: interrupted; the cases done are in {options.output}.", file=sys.stderr)
        return 130
    print(f"\n{describe(content)}\n\n{format_rows(content['rows'])}")
    missing = format_missing(content["rows"])
    absent = [name for name in PEERS if options.peers and name not in content["machine"]["packages"]]
    for line in filter(None, [missing, f"not installed: {', '.join(absent)}" if absent else ""]):
        print(line)
    print(f"\nnumbers, table and picture: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
