"""What the benchmark measures with: functions that take turns, peaks of memory, and the machine's limits."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

Key = TypeVar("Key", bound=Hashable)
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LEAST_ROUNDS = 3
LIMIT_REPEATS = 5
# elements of the copied tensor, far beyond the caches, and side of the multiplied matrices
LIMIT_SIZES = {"cpu": (2**26, 2048), "cuda": (2**29, 8192), "quick": (2**18, 128)}


def time_on_cpu(run: Callable[[], Any]) -> float:
    """Seconds that ``run`` takes.

    Example:
        >>> time_on_cpu(lambda: None) < 1
        True
    """
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def time_on_cuda(run: Callable[[], Any]) -> float:
    """Seconds from when the GPU, idle before, begins what ``run`` gives it until it has done it, by CUDA events."""
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def timer_of(device: torch.device) -> Callable[[Callable[[], Any]], float]:
    """:func:`time_on_cpu` or :func:`time_on_cuda`."""
    return time_on_cuda if device.type == "cuda" else time_on_cpu


def interleave(
    runs: Mapping[Key, Callable[[], Any]],
    repeats: int,
    seconds: float,
    timer: Callable[[Callable[[], Any]], float] = time_on_cpu,
    clock: Callable[[], float] = time.monotonic,
    seed: int = 0,
) -> dict[Key, list[float]]:
    """Time functions that take turns, so that what else the machine does meets all of them alike.

    Each round calls every function once, in an order drawn anew, so that none always follows the same other, whose traces it would meet.

    Args:
        runs: functions by name; they have run before, so that nothing is compiled while it is timed.
        repeats: rounds.
        seconds: after this time no round begins, once there are three.
        timer: seconds that a call takes.
        clock: the time in seconds.
        seed: of the orders.

    Returns:
        the seconds of each call of each function.

    Example:
        >>> times = interleave({"one": lambda: None, "two": lambda: None}, repeats=4, seconds=60.0)
        >>> {name: len(each) for name, each in times.items()}
        {'one': 4, 'two': 4}
    """
    times: dict[Key, list[float]] = {name: [] for name in runs}
    names, start, generator = list(runs), clock(), torch.Generator().manual_seed(seed)
    for turn in range(repeats):
        if turn >= LEAST_ROUNDS and clock() - start > seconds:
            break
        for place in torch.randperm(len(names), generator=generator):
            times[names[place]].append(timer(runs[names[place]]))
    return times


def replay_peak(events: Iterable[tuple[int, int]]) -> int:
    """The most bytes that are in use at once.

    Args:
        events: address and bytes of what is allocated, address and minus the bytes of what is freed, in the order of time. What is freed
            without having been allocated here was there before, and is not counted.

    Example:
        >>> replay_peak([(1, 100), (2, 50), (1, -100), (3, 60), (9, -1000)])
        150
    """
    live: dict[int, int] = {}
    now = peak = 0
    for address, size in events:
        if size > 0:
            live[address] = size
            now += size
            peak = max(peak, now)
        else:
            now -= live.pop(address, 0)
    return peak


def _memory_events(trace: Path) -> list[tuple[int, int]]:
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    found = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    found.sort(key=lambda event: event["ts"])
    return [(event["args"]["Addr"], event["args"]["Bytes"]) for event in found]


def peak_memory(run: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that ``run`` has in use at once, beyond what was there before.

    On a CPU the allocations that torch's profiler has seen are replayed: tensors, but not the scratch space that oneDNN takes for itself.

    Example:
        >>> peak_memory(lambda: torch.zeros(1000) + 1, torch.device("cpu")) >= 8000
        True
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # otherwise the profiler greets on standard error at every start
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
        profiler.export_chrome_trace(str(trace))
        return replay_peak(_memory_events(trace))


def measure_limits(device: torch.device, precisions: Sequence[str], quick: bool = False) -> dict[str, float]:
    """What the machine can do at most: the best of a large copy and a large sum, and of a large product of matrices, also as a
    1x1 convolution.

    Args:
        device: where.
        precisions: of :data:`PRECISIONS`.
        quick: with small tensors, that fit in the caches: for tests only.

    Returns:
        ``"bandwidth"`` in bytes a second, each read and each write counted, and each precision's floating-point operations a second.

    Example:
        >>> limits = measure_limits(torch.device("cpu"), ["float32"], quick=True)
        >>> sorted(limits), min(limits.values()) > 0
        (['bandwidth', 'float32'], True)
    """
    elements, side = LIMIT_SIZES["quick" if quick else device.type]
    timer = timer_of(device)

    def best(run: Callable[[], Any]) -> float:
        run()
        return min(timer(run) for _ in range(LIMIT_REPEATS))

    def bandwidth() -> float:
        one, two, three = (torch.ones(elements, device=device) for _ in range(3))
        array = elements * one.element_size()
        copy, add = best(lambda: two.copy_(one)), best(lambda: torch.add(one, two, out=three))
        return max(2 * array / copy, 3 * array / add)

    def arithmetic(dtype: torch.dtype) -> float:
        one, two, three = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(3))
        # on some processors the library for convolutions multiplies twice as fast as the one for matrices
        image, kernel = one.T[None, :, None].to(memory_format=torch.channels_last), two[:, :, None, None]
        product = min(best(lambda: torch.mm(one, two, out=three)), best(lambda: F.conv2d(image, kernel)))
        return 2 * side**3 / product

    return {"bandwidth": bandwidth()} | {name: arithmetic(PRECISIONS[name]) for name in precisions}


def roofline(
    operations: int | None, moved: int, seconds: float, bandwidth: float, arithmetic: float
) -> tuple[float | None, str | None]:
    """How near a run comes to the limit of the machine that is nearer, and which limit that is.

    Args:
        operations: multiply-adds, two floating-point operations each; ``None`` when they are not known.
        moved: bytes at least moved.
        seconds: what the run took.
        bandwidth: bytes a second.
        arithmetic: floating-point operations a second.

    Returns:
        the least time possible over the time taken, and "arithmetic" or "memory"; ``None`` when the operations are not known.

    Example:
        >>> roofline(operations=50, moved=10, seconds=4.0, bandwidth=10.0, arithmetic=100.0)
        (0.25, 'memory')

    Source:
        Williams, Waterman, Patterson, Roofline, CACM 52 (2009).
    """
    if operations is None:
        return None, None
    calculating, moving = 2 * operations / arithmetic, moved / bandwidth
    bound = "arithmetic" if calculating > moving else "memory"
    return max(calculating, moving) / seconds, bound


def processor_name(cpuinfo: str | Path = "/proc/cpuinfo") -> str:
    """The model name of the first processor; what Python knows of it where there is no such file."""
    try:
        lines = Path(cpuinfo).read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, GPU, versions and date: what a time means nothing without.

    Example:
        >>> describe_machine(torch.device("cpu"))["gpu"] is None
        True
    """
    on_gpu = device.type == "cuda"
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "tf32": torch.backends.cudnn.allow_tf32 if on_gpu else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
