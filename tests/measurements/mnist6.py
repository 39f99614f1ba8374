"""Is the six rotated by 180 degrees, is it mirrored: ``python tests/measurements/mnist6.py DATA OUT.csv`` (MNIST6-180 and MNIST6-M).

Not a test: it trains. DATA holds ``mnist.npz`` and ``mnist_rr_test_rednn.npz``. Every six of MNIST is transformed or not, by a coin. Nets
that keep the whole group cannot answer; those that keep a smaller one, or learn how much they keep, can. One row per task, net and seed is
added to OUT.csv; rows that are there are not run again. ``--table`` prints Markdown.

Source: Romero and Lohit, Learning partial equivariances from data, arXiv 2110.10211, section 5.1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from group_digits import accuracy, load_digits, train_net

from monai_gmr.apps.study_progress import read_rows
from monai_gmr.apps.study_table import interval
from monai_gmr.command_line import command
from monai_gmr.files import check_folder, write_rows
from monai_gmr.networks.layers import partial_extents
from monai_gmr.networks.nets import GMRResNet
from monai_gmr.tables import format_markdown

SEEDS, EPOCHS, LEARNING_RATE, DIGIT = (0, 1, 2), 12, 0.01, 6
TASKS: dict[str, Sequence[int]] = {"MNIST6-180": (2, 3), "MNIST6-M": (3,)}
NETS: dict[str, Any] = {
    "plain": "plain",
    "harmonic": "gmr_harmonic",
    "harmonic, keeps rotations": ("gmr_harmonic", {"keeps": "rotations"}),
    "harmonic, keeps 2mm": ("gmr_harmonic", {"keeps": "2mm"}),
    "harmonic, keeps m": ("gmr_harmonic", {"keeps": "m"}),
    "harmonic, keeps 1": ("gmr_harmonic", {"keeps": "1"}),
    "partial, E(2)": ("partial", {"group": "E(2)", "samples": 4, "seed": 0}),
}
# a multiple of the elements of a field
WIDTHS = {"partial, E(2)": 32}
# whether the net can answer, by what it keeps: a rotation by 180 degrees, or a mirror image from left to right
POSSIBLE: dict[str, tuple[bool, bool]] = {
    "plain": (True, True),
    "harmonic": (False, False),
    "harmonic, keeps rotations": (False, True),
    "harmonic, keeps 2mm": (False, False),
    "harmonic, keeps m": (True, True),
    "harmonic, keeps 1": (True, True),
    "partial, E(2)": (True, True),
}
NAMES = ("task", "net", "seed", "parameters", "accuracy")


def transform_sixes(
    images: torch.Tensor, digits: torch.Tensor, axes: Sequence[int], seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sixes among images ``(N, 1, 28, 28)``, each flipped along ``axes`` or not, and whether it was."""
    sixes = images[digits == DIGIT]
    flipped = torch.rand(len(sixes), generator=torch.Generator().manual_seed(seed)) < 0.5
    return torch.where(flipped[:, None, None, None], sixes.flip(list(axes)), sixes), flipped.long()


def make_net(name: str) -> GMRResNet:
    """A small net of two stages."""
    return GMRResNet(2, 1, 2, layers=(1, 1), width=WIDTHS.get(name, 12), kernel_sizes=5, stem_stride=2, conv=NETS[name])


def run(task: str, name: str, data: Path, path: Path) -> None:
    """All seeds of a net, each added to the file when it is done."""
    done = {row["seed"] for row in read_rows(path) if (row["task"], row["net"]) == (task, name)}
    missing = [seed for seed in SEEDS if seed not in done]
    if not missing:
        return
    images, digits, test_images, test_digits = load_digits(data, "upright")
    for seed in missing:
        x, y = transform_sixes(images, digits, TASKS[task], seed)
        test = transform_sixes(test_images, test_digits, TASKS[task], seed)
        net, _ = train_net(lambda: make_net(name), x, y, LEARNING_RATE, EPOCHS, seed)
        for each in partial_extents(net):
            print(each, flush=True)
        count = sum(parameter.numel() for parameter in net.parameters())
        write_rows([*read_rows(path), dict(zip(NAMES, (task, name, seed, count, accuracy(net, *test))))], path)
        print(task, name, seed, read_rows(path)[-1]["accuracy"], flush=True)


def make_table(path: Path) -> str:
    """Markdown: mean accuracy over the seeds with the half-width of its 95 % interval by Student's t, beside whether the net can answer."""
    table = [["net", "parameters", *(f"{task}{words}" for task in TASKS for words in ("", ": can answer"))]]
    rows = read_rows(path)
    for name in NETS:
        own = [row for row in rows if row["net"] == name]
        if not own:
            continue
        cells = [name, f"{own[0]['parameters']:,}"]
        for task, possible in zip(TASKS, POSSIBLE[name]):
            values = [row["accuracy"] for row in own if row["task"] == task]
            mean, half = interval(values) if values else (float("nan"), float("nan"))
            cells += [f"{mean:.3f} ± {half:.3f}", "yes" if possible else "no"]
        table.append(cells)
    return format_markdown(table, right=1)


@command("mnist6")
def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT.csv")
    parser.add_argument("--table", action="store_true", help="only print the table")
    arguments = parser.parse_args(argv)
    if not arguments.table:
        check_folder(arguments.out.parent)
        for task in TASKS:
            for name in NETS:
                run(task, name, arguments.data, arguments.out)
    print(make_table(arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
