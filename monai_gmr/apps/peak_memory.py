"""Peak memory of a call, on a CPU or a GPU."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def profiled(run: Callable[[], Any], profile_memory: bool = False) -> profile:
    """Profiles the operations of a call on the CPU with torch's profiler."""
    # otherwise the profiler prints a line on standard error at every start
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=profile_memory) as profiler:
        run()
    return profiler


def replay_peak(events: Iterable[tuple[int, int]]) -> int:
    """Computes the peak number of bytes in use from the address and bytes of every allocation (negative for releases), in order of time.
    Ignores a release without an allocation: that memory was allocated before."""
    sizes: dict[int, int] = {}
    now = peak = 0
    for address, size in events:
        if size > 0:
            sizes[address] = size
        now += size if size > 0 else -sizes.pop(address, 0)
        peak = max(peak, now)
    return peak


def peak_memory(run: Callable[[], Any], device: torch.device) -> int:
    """Measures the peak number of bytes that ``run`` allocates, beyond those already in use. On a CPU this counts the tensors that torch's
    profiler lists, without oneDNN's scratch space."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled(run, profile_memory=True).export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    memory.sort(key=lambda event: event["ts"])
    return replay_peak((event["args"]["Addr"], event["args"]["Bytes"]) for event in memory)
