"""Memory and time of harmonic layers on backend "dense", of those of plain ones: ``python tests/measurements/recomputed_responses.py``.

Prints the table in ``ops/README.md``: the memory of a training step and of a forward pass without gradients, of that of the plain layer or
net, and the time of a step, of that of a layer that keeps its responses, in alternation. ``--quick`` measures tiny sizes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from monai_gmr import set_backend
from monai_gmr.apps.benchmark import describe
from monai_gmr.apps.peak_memory import peak_memory
from monai_gmr.apps.timing import describe_machine, median_seconds
from monai_gmr.networks.layers import make_convolution
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.ops import dense_harmonic
from monai_gmr.tables import format_markdown

CPU = torch.device("cpu")


def layer(kernel_size: int, channels: int, conv: str) -> nn.Module:
    return make_convolution(conv, 3, channels, channels, kernel_size, padding=kernel_size // 2)


def net(features: Sequence[int], conv: str) -> nn.Module:
    return GMRUNet(3, 1, 2, features=features, conv=conv)


@contextmanager
def kept_responses(keeps: bool):
    """Layers that keep all responses, as those did that recompute none; or as they are."""
    before = dense_harmonic.KEPT_BYTES
    dense_harmonic.KEPT_BYTES = sys.maxsize if keeps else before
    try:
        yield
    finally:
        dense_harmonic.KEPT_BYTES = before


def step(module: nn.Module, x: torch.Tensor, keeps: bool = False) -> None:
    with kept_responses(keeps):
        y = module(x)
        y.backward(torch.ones_like(y))
    module.zero_grad()
    x.grad = None


@torch.no_grad()
def forward(module: nn.Module, x: torch.Tensor) -> None:
    module(x)


def make_row(
    name: str, make: Callable[[str], nn.Module], shape: Sequence[int], run: Callable[..., Any], repeats: int
) -> list[str]:
    """Name, memory and time of one case; a forward pass is not timed."""
    plain, ours = make("plain"), make("gmr_harmonic")
    x = torch.randn(*shape, requires_grad=shape[1] > 1)
    for module in (plain, ours):
        run(module, x)
    memory = [peak_memory(partial(run, module, x), CPU) for module in (ours, plain)]
    ratio = "-"
    if run is step:
        seconds = median_seconds({keeps: partial(step, ours, x, keeps) for keeps in (False, True)}, repeats)
        ratio = f"{seconds[False] / seconds[True]:.2f}"
    return [name, f"{memory[0] / memory[1]:.2f}", ratio]


def make_table(quick: bool) -> str:
    sizes = (4, 8, 12, 16, (2, 4)) if quick else (32, 48, 64, 128, (16, 32, 64))
    channels, length, image, volume, features = sizes
    rows, repeats = [], 3 if quick else 9
    for k in (3, 5):
        shape = (1, channels, *(length,) * 3)
        rows.append(
            make_row(f"layer, C{channels} {length}³, k = {k}", partial(layer, k, channels), shape, step, repeats)
        )
    unet = partial(net, features)
    for length, run, rest in ((image, step, ""), (volume, forward, ", without gradients")):
        name = f"`GMRUNet` {features}, {length}³{rest}"
        rows.append(make_row(name, unet, (1, 1, *(length,) * 3), run, repeats))
    header = ["harmonic on `dense`, 3D", "memory, of plain", "time of a step, of one that keeps responses"]
    return format_markdown([header, *rows], right=1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not what it costs")
    options = parser.parse_args(arguments)
    with set_backend("dense"):
        print(f"{make_table(options.quick)}\n\n{describe(describe_machine(CPU))}")


if __name__ == "__main__":
    main()
