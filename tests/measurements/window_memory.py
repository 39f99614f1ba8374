"""Memory and time of sliding windows that are reduced to labels, beside MONAI's: ``python tests/measurements/window_memory.py``.

Prints the table in ``inferers/README.md``: the peak memory of tensors beside the image, of the windows of 192³ voxels and 10 classes, by
torch's profiler; seconds, of a network that takes hardly any; and the number of voxels whose labels differ. Rois and overlaps are such that
both inferers place windows alike.
``--quick`` measures a tiny image.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from monai.inferers import SlidingWindowInferer

from monai_gmr.apps.benchmark import describe
from monai_gmr.apps.peak_memory import peak_memory
from monai_gmr.apps.timing import describe_machine
from monai_gmr.inferers import GMRSlidingWindowInferer
from monai_gmr.tables import format_markdown

CPU = torch.device("cpu")
CLASSES, BATCH, MODE = 10, 1, "gaussian"


def measure(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float, float]:
    """Labels, MB and seconds of a run; labels and time are of another one than the memory."""
    memory = peak_memory(run, CPU) / 1e6
    start = time.perf_counter()
    return run(), memory, time.perf_counter() - start


@torch.no_grad()
def make_row(size: int, roi: int, overlap: float) -> list[str]:
    """Memory, its ratio, time and unlike labels for one roi and overlap."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, size, size, size)
    # it sees its surroundings, and needs no memory of its own
    net = torch.nn.Sequential(torch.nn.AvgPool3d(3, 1, 1), torch.nn.Conv3d(1, CLASSES, 1))
    options = (roi, BATCH, overlap, MODE)
    reduced, whole = GMRSlidingWindowInferer(*options, reduction="argmax"), SlidingWindowInferer(*options)
    labels, memory, seconds = measure(lambda: reduced(x, net))
    outputs, monais, monai_seconds = measure(lambda: whole(x, net))
    unlike = int((outputs.argmax(1, keepdim=True) != labels).sum())
    cells = [
        f"{size}³, roi {roi}, overlap {overlap:g}",
        f"{monais:.0f} MB",
        f"{memory:.0f} MB",
        f"{memory / monais:.2f}",
    ]
    return [*cells, f"{seconds / monai_seconds:.2f}", str(unlike)]


def make_table(quick: bool) -> str:
    cases = [(48, 12, 0.25)] if quick else [(192, 48, 0.25), (192, 64, 0.5), (192, 96, 0.5)]
    header = ["windows", "MONAI's", '`reduction="argmax"`', "memory, of MONAI's", "time, of MONAI's", "unlike labels"]
    return format_markdown([header, *(make_row(*case) for case in cases)], right=1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny image: whether it runs, not what it costs")
    options = parser.parse_args(arguments)
    print(f"{make_table(options.quick)}\n\n{describe(describe_machine(CPU))}")


if __name__ == "__main__":
    main()
