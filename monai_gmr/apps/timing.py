"""Times of functions that alternate, and the machine that they are measured on."""

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
    """Seconds that a call takes, on a GPU until it is done, by the clock of ``torch.utils.benchmark``."""
    start = timer()
    run()
    return timer() - start


def interleave(
    runs: Mapping[Key, Callable[[], Any]], repeats: int, seconds: float = math.inf
) -> dict[Key, list[float]]:
    """Seconds of each call of functions that alternate, so that other work on the machine affects all of them alike.

    Each of ``repeats`` rounds calls every function once, in a random order, so that no function always runs on the cache of the same other
    one; after ``seconds`` no round begins, once there are three. Call every function before, so that nothing is compiled while it is timed.
    (``torch.utils.benchmark.Timer`` times one function after the other.)"""
    times: dict[Key, list[float]] = {name: [] for name in runs}
    names, start, generator = list(runs), time.monotonic(), torch.Generator().manual_seed(0)
    for finished in range(repeats):
        if finished >= LEAST_ROUNDS and time.monotonic() - start > seconds:
            break
        for index in torch.randperm(len(names), generator=generator):
            times[names[index]].append(seconds_of(runs[names[index]]))
    return times


def median_seconds(runs: Mapping[Key, Callable[[], Any]], repeats: int, seconds: float = math.inf) -> dict[Key, float]:
    """Median time of each of several functions that alternate as in :func:`interleave`, after one round that does not count.

    Example:
        >>> list(median_seconds({"one": lambda: None, "two": lambda: None}, repeats=3))
        ['one', 'two']
    """
    for run in runs.values():
        run()
    return {name: statistics.median(times) for name, times in interleave(runs, repeats, seconds).items()}


def processor_name(cpuinfo: str | Path = "/proc/cpuinfo") -> str:
    """The model name of the first processor; where there is no such file, what Python knows."""
    try:
        lines = Path(cpuinfo).read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def graphics_driver() -> str | None:
    """Version of NVIDIA's driver, as ``nvidia-smi`` says it; ``None`` where it says nothing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.partition("\n")[0] or None if answer.returncode == 0 else None


def warn_of_versions(torch_version: str, cudnn: int | None) -> str | None:
    """A sentence about versions with which plain convolutions are slower than they need to be, so that nothing is compared with them
    unnoticed; ``None`` for others.

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
    """Processor, cores, threads, GPU, versions and date, for every measured time, and what :func:`warn_of_versions` says of them."""
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
