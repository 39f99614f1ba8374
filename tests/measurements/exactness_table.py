"""What is exact and what it costs: the table of ``monai_gmr/networks/README.md``, as Markdown.

``python tests/measurements/exactness_table.py`` measures it (about two minutes on two cores).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from monai_gmr.apps.timing import median_seconds
from monai_gmr.bundle import keep_freed_memory
from monai_gmr.metrics import equivariance_error
from monai_gmr.networks.nets import GMRUNet, gmr_resnet18
from monai_gmr.tables import format_markdown

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
HEAD = [
    *("net (untrained)", "conv", "parameters", "group, 2D 64², 3D 24³", "65², 25³", "60x49, 24x25x18"),
    *("15/30/45°", "step, ms", "ratio"),
]


def smooth_image(size: Sequence[int], seed: int = 0) -> torch.Tensor:
    """A random image that a rotation loses nothing of, shape ``(1, 1, *size)``.

    It has no frequencies that interpolation would lose, and fades to zero inside the inscribed disc or ball, beyond which a rotation
    would move other voxels in.

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


def _step(net: nn.Module, x: torch.Tensor) -> None:
    net(x).square().mean().backward()


def table_rows(repeats: int = 5) -> list[list[str]]:
    """The table's rows: net, convolution, parameters, errors over the group by size, at 15, 30 and 45 degrees, time of a step.

    Args:
        repeats: passes over which the time's median is taken.
    """
    rows = []
    for name, dims, make, arguments in tqdm(NETS, desc="nets"):
        nets = {}
        for kind, options in KINDS.items():
            torch.manual_seed(0)
            nets[kind] = make(dims, **options, **arguments).train()
        images = torch.cat([smooth_image(SIZES[dims][1], seed) for seed in range(8)])
        close = {
            kind: equivariance_error(getattr(net, "features", net), images, [], (15, 30, 45)).worst
            for kind, net in nets.items()
        }
        x = torch.randn(2, 1, *SIZES[dims][0])
        seconds = median_seconds({kind: partial(_step, net, x) for kind, net in nets.items()}, repeats)
        for kind, net in nets.items():
            net.eval()
            exact = [equivariance_error(net, torch.randn(1, 1, *size)).worst for size in SIZES[dims]]
            parameters = sum(p.numel() for p in net.parameters())
            cells = [name, kind, f"{parameters:,}", *(f"{error:.0e}" for error in exact), f"{close[kind]:.3f}"]
            rows.append([*cells, f"{1000 * seconds[kind]:.0f}", f"{seconds[kind] / seconds['plain']:.2f}"])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="passes over which the time's median is taken")
    repeats = parser.parse_args(argv).repeats
    keep_freed_memory()
    print(format_markdown([HEAD, *table_rows(repeats)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
