"""Time and memory of the candidates of a case."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from monai_gmr.apps.benchmark_cases import FORWARD_ONLY, PRECISIONS, Candidate, Case
from monai_gmr.apps.benchmark_table import add_ratios
from monai_gmr.apps.peak_memory import peak_memory, profiled
from monai_gmr.apps.timing import interleave
from monai_gmr.bundle import keep_freed_memory
from monai_gmr.ops import get_backend, set_backend
from monai_gmr.ops.memory_format import FORMATS
from monai_gmr.utils import ConfigurationError


class Notes(logging.Handler):
    """A handler that collects the library's warnings, such as why a backend is not used, which is logged once per process."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a message."""
        self.messages.append(record.getMessage())

    def about(self, backend: str) -> str | None:
        """Returns the last message that says why a backend is not used."""
        return next((text for text in reversed(self.messages) if f"'{backend}' is not used" in text), None)


def device_of(name: str) -> torch.device:
    """Returns a CPU, or a CUDA device, which becomes the current one; raises :class:`~monai_gmr.utils.ConfigurationError` for others."""
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
        # torch needs a number here
        torch.cuda.set_device(device.index or 0)
    return device


@contextmanager
def multiplying_in(precision: str) -> Iterator[None]:
    """Enables TF32 only for "tf32", for plain convolutions and ours, and restores the settings afterwards."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = precision == "tf32"
        yield
    finally:
        for switch, allowed in zip(switches, before):
            switch.allow_tf32 = allowed


@contextmanager
def measuring(threads: int | None = None) -> Iterator[Notes]:
    """Enables cuDNN's benchmark mode, keeps freed memory, sets the number of threads if given, and collects the library's warnings instead
    of printing them. Restores these settings and the backend afterwards."""
    keep_freed_memory()
    before, search = torch.get_num_threads(), torch.backends.cudnn.benchmark
    notes, logger = Notes(), logging.getLogger("monai_gmr")
    logger.addHandler(notes)
    try:
        torch.set_num_threads(before if threads is None else threads)
        torch.backends.cudnn.benchmark = True
        with set_backend(get_backend()):
            yield notes
    finally:
        logger.removeHandler(notes)
        torch.set_num_threads(before)
        torch.backends.cudnn.benchmark = search


def runs_kernels(run: Callable[[], Any]) -> bool:
    """Checks whether a call runs one of the library's kernels, which torch's profiler lists as operations ``monai_gmr::NAME``."""
    return any(event.key.startswith("monai_gmr::") for event in profiled(run).key_averages())


def make_input(case: Case, device: torch.device, channels_last: bool) -> torch.Tensor:
    """Makes a random input; the input of a layer requires a gradient and has the precision of autocast, as inside a net."""
    inner = case.group not in ("nets", *FORWARD_ONLY)
    dtype = PRECISIONS[case.precision] if inner else torch.float32
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    if channels_last and case.group == "ring_conv":
        x = x.to(memory_format=FORMATS[x.dim()])
    return x.requires_grad_(inner)


class Trial:
    """A candidate on a case's input, ready to run; computes the gradient of the input if the input requires it."""

    def __init__(self, case: Case, candidate: Candidate, x: torch.Tensor) -> None:
        torch.manual_seed(0)
        self.candidate, self.x = candidate, x
        self.module = candidate.make().to(x.device).train(case.group not in FORWARD_ONLY)
        dtype = PRECISIONS[case.precision]
        self.autocast = partial(torch.autocast, x.device.type, dtype, dtype != torch.float32)
        parameters = list(self.module.parameters())
        # a rate of zero leaves the net unchanged, however often it runs
        self.optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9) if case.group == "nets" else None
        self.seed = torch.ones_like(self.forward())

    def forward(self) -> torch.Tensor:
        """Runs a forward pass without gradients."""
        set_backend(self.candidate.backend or "dense")
        with torch.no_grad(), self.autocast():
            return self.module(self.x)

    def step(self) -> None:
        """Runs forward and backward pass, for nets also the optimizer, and clears the gradients."""
        set_backend(self.candidate.backend or "dense")
        with self.autocast():
            y = self.module(self.x)
        y.backward(self.seed)
        if self.optimizer is not None:
            self.optimizer.step()
        self.module.zero_grad(set_to_none=True)
        self.x.grad = None

    def check_kernels(self, notes: Notes) -> None:
        """Raises :class:`~monai_gmr.utils.ConfigurationError` with the library's reason if "dense" runs in place of a forced backend."""
        backend = self.candidate.backend
        if backend not in (None, "dense", "auto") and not runs_kernels(self.forward):
            raise ConfigurationError(notes.about(str(backend)) or f"backend '{backend}' left its work to 'dense'.")


def measure_case(
    case: Case,
    device: torch.device,
    notes: Notes,
    *,
    repeats: int = 10,
    seconds: float = 20.0,
    channels_last: bool = False,
) -> list[dict[str, Any]]:
    """Measures all candidates of a case in alternation (:func:`~monai_gmr.apps.timing.interleave`); returns a row for each: seconds,
    bytes and their ratios, or ``None`` and a ``reason`` if it cannot run."""
    with multiplying_in(case.precision):
        rows = _measure_case(case, make_input(case, device, channels_last), notes, repeats, seconds)
    return add_ratios(rows)


def _measure_case(case: Case, x: torch.Tensor, notes: Notes, repeats: int, seconds: float) -> list[dict[str, Any]]:
    device, parts = x.device, ("forward",) if case.group in FORWARD_ONLY else ("forward", "step")
    rows: list[dict[str, Any]] = []
    runs: dict[tuple[int, str], Callable[[], Any]] = {}
    for index, candidate in enumerate(case.candidates):
        row: dict[str, Any] = {"group": case.group, "case": case.name, "dims": case.dims, "precision": case.precision}
        row |= {"method": candidate.method, "backend": candidate.backend, "label": candidate.label}
        row |= {"reason": None, "rounds": 0, "forward": None, "step": None, "memory": None}
        rows.append(row)
        try:
            trial = Trial(case, candidate, x)
            trial.check_kernels(notes)
            last = getattr(trial, parts[-1])
            last()
            row["memory"] = peak_memory(last, device)
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            row["reason"] = text if len(text) <= 160 else f"{text[:157]}..."
            x.grad = None
            if device.type == "cuda":
                torch.cuda.empty_cache()
        else:
            runs |= {(index, part): getattr(trial, part) for part in parts}
    for (index, part), times in interleave(runs, repeats, seconds).items():
        rows[index] |= {part: statistics.median(times), "rounds": len(times)}
    return rows
