"""``python -m monai_gmr.apps.exactness_table``: what is exact and what it costs, the README's table, as Markdown."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from monai_gmr.bundle import keep_freed_memory
from monai_gmr.metrics import equivariance_error
from monai_gmr.networks.nets import GMRUNet, gmr_resnet18

SIZES = {2: ((64, 64), (65, 65), (60, 49)), 3: ((24, 24, 24), (25, 25, 25), (24, 25, 18))}
NETS: tuple[tuple[str, int, Callable[..., nn.Module], dict[str, Any]], ...] = (
    ("GMRUNet 2D, features 16 32 64", 2, GMRUNet, {"out_channels": 2, "in_channels": 1}),
    ("GMRUNet 3D, features 16 32 64", 3, GMRUNet, {"out_channels": 2, "in_channels": 1}),
    ("gmr_resnet18 2D", 2, gmr_resnet18, {"num_classes": 10, "n_input_channels": 1}),
    ("gmr_resnet18 3D, width 16", 3, gmr_resnet18, {"num_classes": 10, "n_input_channels": 1, "width": 16}),
)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"conv": "plain"},
    "gmr": {"conv": "gmr"},
    "gmr, replicate": {"conv": "gmr", "padding_mode": "replicate"},
    "gmr_harmonic": {"conv": "gmr_harmonic"},
}


def smooth_image(size: Sequence[int], seed: int = 0) -> torch.Tensor:
    """A random image that a turn loses nothing of, shape ``(1, 1, *size)``.

    It has no frequencies that interpolation would lose, and fades to zero inside the inscribed disc or ball, beyond which a turn
    would bring in what was not there.

    Example:
        >>> smooth_image((8, 9)).shape
        torch.Size([1, 1, 8, 9])
    """
    from scipy import ndimage

    noise = torch.randn(*size, generator=torch.Generator().manual_seed(seed)).numpy()
    image = ndimage.gaussian_filter(noise, 1.5)
    axes = [2 * np.arange(n) / (n - 1) - 1 for n in size]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    fade = np.cos(np.pi / 2 * np.clip((radius - 0.5) / 0.4, 0, 1)) ** 2
    return torch.as_tensor(image / image.std() * fade, dtype=torch.float32)[None, None]


def step_seconds(nets: Sequence[nn.Module], x: torch.Tensor, repeats: int) -> list[float]:
    """Median time of a forward and backward pass of each net, in seconds, the nets taking turns.

    Args:
        nets: the nets to compare.
        x: their input.
        repeats: passes of each net that are counted.

    Example:
        >>> len(step_seconds([nn.Conv2d(1, 1, 3)], torch.rand(1, 1, 8, 8), repeats=2))
        1
    """
    seconds: list[list[float]] = [[] for _ in nets]
    for turn in range(repeats + 1):
        for net, times in zip(nets, seconds):
            start = time.perf_counter()
            net(x).square().mean().backward()
            if turn:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def table_rows(repeats: int = 5) -> list[list[str]]:
    """The table's rows: net, convolution, parameters, errors over the group by size, at 15, 30 and 45 degrees, time of a step.

    Args:
        repeats: passes over which the time's median is taken.
    """
    rows = []
    for name, dims, make, arguments in tqdm(NETS, desc="nets"):
        nets = []
        for options in KINDS.values():
            torch.manual_seed(0)
            nets.append(make(dims, **options, **arguments).train())
        images = torch.cat([smooth_image(SIZES[dims][1], seed) for seed in range(8)])
        close = [equivariance_error(getattr(net, "features", net), images, [], (15, 30, 45)).worst for net in nets]
        seconds = step_seconds(nets, torch.randn(2, 1, *SIZES[dims][0]), repeats)
        for index, (kind, net) in enumerate(zip(KINDS, nets)):
            net.eval()
            exact = [equivariance_error(net, torch.randn(1, 1, *size)).worst for size in SIZES[dims]]
            parameters = sum(p.numel() for p in net.parameters())
            cells = [name, kind, f"{parameters:,}", *(f"{error:.0e}" for error in exact), f"{close[index]:.3f}"]
            rows.append([*cells, f"{1000 * seconds[index]:.0f}", f"{seconds[index] / seconds[0]:.2f}"])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table.

    Args:
        argv: command-line arguments; default ``sys.argv[1:]``.

    Returns:
        exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m monai_gmr.apps.exactness_table", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="passes over which the time's median is taken")
    repeats = parser.parse_args(argv).repeats
    keep_freed_memory()
    rows = table_rows(repeats)
    even, odd, mixed = ("2D 64², 3D 24³", "65², 25³", "60x49, 24x25x18")
    header = ["net (untrained)", "conv", "parameters", f"group, {even}", odd, mixed, "15/30/45°", "step, ms", "ratio"]
    for row in [header, ["---"] * len(header), *rows]:
        print("| " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
