"""The table of times of ``monai_gmr/ops/README.md``: the benchmark with other packages beside, and the share of the machine's limits.

``python tests/measurements/benchmark_page.py ring_conv nets`` takes the options of ``python -m monai_gmr.apps.benchmark``, adds the radial
and group convolutions of GMR-Conv, SRE-Conv, e2cnn and escnn that are installed, measures the machine's bandwidth and arithmetic in the
same run, and writes OUT_DIR/benchmark.md and benchmark.json with multiply-adds and bytes.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from benchmark_counts import count_cost
from benchmark_peers import PEERS, SPACES, installed_peers, make_peer

from monai_gmr.apps.benchmark import chosen_cases, describe, draw_content, make_parser, measure_cases
from monai_gmr.apps.benchmark_cases import PRECISIONS, Candidate, Case
from monai_gmr.apps.benchmark_measure import Trial, device_of, make_input, measuring, multiplying_in
from monai_gmr.apps.benchmark_table import COLUMNS, SHORT_COLUMNS, format_missing, format_short_rows
from monai_gmr.apps.timing import seconds_of
from monai_gmr.command_line import command
from monai_gmr.files import write_text

LIMIT_REPEATS = 5
# elements of the copied tensor, far beyond the caches, and side of the multiplied matrices
LIMIT_SIZES = {"cpu": (2**26, 2048), "cuda": (2**29, 8192), "quick": (2**18, 128)}
LIMIT = ("% of the limit", "limit_share", 100, ".0f")
COUNTS = (
    *(("Mop", "operations", 1e-6, ",.1f"), ("GFLOP/s", "flops_per_second", 1e-9, ".1f")),
    *(("moved MB", "moved", 1e-6, ".1f"), LIMIT),
)
EXPLANATION = (
    "Mop: million multiply-adds of the forward pass by the method's own count; moved: input, output and weights once; limit: the least\n"
    "time that the machine's bandwidth and arithmetic, measured in the same run, allow, over the forward time."
)


def measure_limits(device: torch.device, precisions: Sequence[str], quick: bool = False) -> dict[str, float]:
    """The machine's limits: the best of a large copy and a large sum, and of a large product of matrices, also as a 1x1 convolution.

    Returns:
        ``"bandwidth"`` in bytes a second, each read and each write counted, and each precision's floating-point operations a second.
        ``quick`` takes tensors that fit in the caches: for tests only.

    Example:
        >>> limits = measure_limits(torch.device("cpu"), ["float32"], quick=True)
        >>> sorted(limits), min(limits.values()) > 0
        (['bandwidth', 'float32'], True)
    """
    elements, side = LIMIT_SIZES["quick" if quick else device.type]

    def best(run: Callable[[], Any]) -> float:
        run()
        return min(seconds_of(run) for _ in range(LIMIT_REPEATS))

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

    limits = {"bandwidth": bandwidth()}
    for name in precisions:
        with multiplying_in(name):
            limits[name] = arithmetic(PRECISIONS[name])
    return limits


def roofline(operations: int, moved: int, seconds: float, bandwidth: float, arithmetic: float) -> tuple[float, str]:
    """The share that a run reaches of the nearer limit of the machine, and that limit, "arithmetic" or "memory".

    Args:
        operations: multiply-adds, two floating-point operations each.
        moved: bytes that are moved at least.
        seconds: that the run took.
        bandwidth: bytes a second.
        arithmetic: floating-point operations a second.

    Example:
        >>> roofline(operations=50, moved=10, seconds=4.0, bandwidth=10.0, arithmetic=100.0)
        (0.25, 'memory')

    Source:
        Williams, Waterman, Patterson, Roofline, CACM 52 (2009).
    """
    calculating, moving = 2 * operations / arithmetic, moved / bandwidth
    return max(calculating, moving) / seconds, "arithmetic" if calculating > moving else "memory"


def with_peers(case: Case, peers: Sequence[str]) -> Case:
    """A case of the operation, or of group convolutions, with the convolutions of other packages that can run it."""
    size = case.name.split()
    if case.group not in ("ring_conv", "point_groups") or "groups" in size:
        return case
    kernel_size = int(size[size.index(next(word for word in size if word.startswith("k=")))].strip("k=,"))
    group = size[-1] if case.group == "point_groups" else None
    if group is None:
        able = [peer for peer in peers if case.dims == 2 or peer != "e2cnn"]
    else:
        able = [peer for peer in peers if (peer, group) in SPACES]
    make = partial(make_peer, spatial_dims=case.dims, channels=case.shape[1], kernel_size=kernel_size, group=group)
    more = [Candidate(peer, None, partial(make, peer)) for peer in able]
    return case._replace(candidates=(*case.candidates, *more))


def add_counts(case: Case, rows: Sequence[dict[str, Any]], device: torch.device, limits: dict[str, float]) -> None:
    """Give the rows of a case, one a candidate, their counts and the share of the limit that the forward pass reaches."""
    for candidate, row in zip(case.candidates, rows):
        row |= dict.fromkeys(("operations", "moved", "flops_per_second", "limit_share", "bound_by"))
        if row["forward"] is None:
            continue
        trial = Trial(case, candidate, make_input(case, device, channels_last=False))
        row["operations"], row["moved"] = count_cost(trial.module, trial.forward, candidate.backend)
        if row["operations"] is not None:
            row["flops_per_second"] = 2 * row["operations"] / row["forward"]
            share = (row["operations"], row["moved"], row["forward"], limits["bandwidth"], limits[case.precision])
            row["limit_share"], row["bound_by"] = roofline(*share)


@command("benchmark_page", "OUT_DIR has the finished cases")
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; returns the exit status."""
    options = make_parser().parse_args(arguments)
    device, peers = device_of(options.device), installed_peers()
    cases = [with_peers(case, peers) for case in chosen_cases(options, device)]
    with measuring(options.threads):
        limits = measure_limits(device, sorted({case.precision for case in cases}), options.quick)
    complete = partial(add_counts, device=device, limits=limits)
    content = measure_cases(cases, options, device, complete, (*SHORT_COLUMNS, LIMIT))
    versions = {name: importlib.metadata.version(name) for name in peers}
    content |= {"limits": limits, "packages": versions}
    write_text(json.dumps(content, indent=1), options.output / "benchmark.json")
    draw_content(content, options.output)
    arithmetic = "".join(f", {name} {limits[name] / 1e9:.0f} GFLOP/s" for name in limits if name != "bandwidth")
    print(f"\n{describe(content['machine'])}; at most {limits['bandwidth'] / 1e9:.0f} GB/s{arithmetic}\n")
    print(f"{format_short_rows(content['rows'], (*COLUMNS, *COUNTS))}\n\n{EXPLANATION}")
    print(format_missing(content["rows"]))
    print(f"not installed: {', '.join(name for name in PEERS if name not in peers) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
