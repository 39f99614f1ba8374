"""Timing of alternating functions, and a description of the machine."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Hashable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.benchmark import timer

Key = TypeVar("Key", bound=Hashable)
LEAST_ROUNDS = 3


def seconds_of(run: Callable[[], Any]) -> float:
    """Measures the seconds of a call with the clock of ``torch.utils.benchmark``, which waits for GPUs."""
    start = timer()
    run()
    return timer() - start


def interleave(
    runs: Mapping[Key, Callable[[], Any]], repeats: int, seconds: float = math.inf
) -> dict[Key, list[float]]:
    """Measures the seconds of each call of alternating functions, so that other work on the machine affects all of them equally.

    Each of ``repeats`` rounds calls every function once, in a random order, so that no function always finds the cache of the same other
    one; after ``seconds`` and at least three rounds, no round begins. Call every function before, so that nothing is compiled while it is
    timed. (``torch.utils.benchmark.Timer`` times one function after the other.)"""
    times: dict[Key, list[float]] = {name: [] for name in runs}
    names, start, generator = list(runs), time.monotonic(), torch.Generator().manual_seed(0)
    for finished in range(repeats):
        if finished >= LEAST_ROUNDS and time.monotonic() - start > seconds:
            break
        for index in torch.randperm(len(names), generator=generator):
            times[names[index]].append(seconds_of(runs[names[index]]))
    return times


def median_seconds(runs: Mapping[Key, Callable[[], Any]], repeats: int, seconds: float = math.inf) -> dict[Key, float]:
    """Measures the median seconds of alternating functions (:func:`interleave`), after one round that does not count.

    Example:
        >>> list(median_seconds({"one": lambda: None, "two": lambda: None}, repeats=3))
        ['one', 'two']
    """
    for run in runs.values():
        run()
    return {name: statistics.median(times) for name, times in interleave(runs, repeats, seconds).items()}


def processor_name(cpuinfo: str | Path = "/proc/cpuinfo") -> str:
    """Returns the model name of the first processor; without such a file, Python's name of it."""
    try:
        lines = Path(cpuinfo).read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def graphics_driver() -> str | None:
    """Returns the version of NVIDIA's driver from ``nvidia-smi``; ``None`` if unknown."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.partition("\n")[0] or None if answer.returncode == 0 else None


def warn_of_versions(torch_version: str, cudnn: int | None) -> str | None:
    """Warns of versions with unnecessarily slow plain convolutions, which make a comparison unfair; returns a sentence, ``None`` for other
    versions.

    Example:
        >>> warn_of_versions("2.9.1+cu128", 91002)
        'torch 2.9.1 with cuDNN 9.10.2: half-precision conv3d takes a slow path from torch 2.9 on under cuDNN 9.15; do not compare with it.'
        >>> warn_of_versions("2.9.1", 91501), warn_of_versions("2.8.0", 91002)
        (None, None)

    Source:
        Release notes of PyTorch 2.9.1.
    """
    numbers = [int(number) for number in re.findall(r"\d+", torch_version)[:2]]
    if cudnn is None or cudnn >= 91500 or numbers < [2, 9]:
        return None
    version = f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}"
    problem = "half-precision conv3d takes a slow path from torch 2.9 on under cuDNN 9.15"
    return f"torch {torch_version.partition('+')[0]} with cuDNN {version}: {problem}; do not compare with it."


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Returns processor, cores, threads, GPU, versions and date, recorded with times, and the remark of :func:`warn_of_versions`."""
    on_gpu = device.type == "cuda"
    cudnn = torch.backends.cudnn.version() if on_gpu else None
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "driver": graphics_driver() if on_gpu else None,
        "cudnn": cudnn,
        "remark": warn_of_versions(torch.__version__, cudnn),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
