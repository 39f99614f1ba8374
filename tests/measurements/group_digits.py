"""Digits read by small nets of group convolutions: ``python tests/measurements/group_digits.py DATA OUT.csv``.

Not a test: it trains. DATA holds ``mnist.npz`` and ``mnist_rr_test_rednn.npz``. "rotated": 12,000 digits, each rotated by an angle of its
own, tested on RED-NN's; "upright": the same digits upright, tested on MNIST's. The learning rate is the best of three after two epochs on
2,000 digits held out; three seeds are then trained on all. One row per net and seed is added to OUT.csv; rows that are there are not run
again. ``--table`` prints Markdown, and counts of the ResNets.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from group_nets import RESNET44, ROTATED_MNIST, UPRIGHT
from scipy import ndimage
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from monai_gmr.apps.study_progress import read_rows
from monai_gmr.apps.study_table import interval
from monai_gmr.command_line import command
from monai_gmr.files import check_folder, write_rows
from monai_gmr.tables import format_markdown

TRAINING, HELD_OUT, BATCH, EPOCHS, TUNING_EPOCHS = 12_000, 2_000, 64, 6, 2
LEARNING_RATES, SEEDS = (0.001, 0.003, 0.01), (0, 1, 2)
NETS: dict[str, dict[str, Any]] = {
    "rotated": {name: make for name, (make, _) in ROTATED_MNIST.items()},
    "upright": UPRIGHT,
}
NAMES = ("task", "net", "seed", "learning_rate", "parameters", "macs", "accuracy", "step_ms")


def rotate_digits(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Each image about its centre by an angle drawn evenly, by cubic splines."""
    angles = np.random.default_rng(seed).uniform(0, 360, len(images))
    rotated = [ndimage.rotate(image.astype(np.float32), angle, reshape=False) for image, angle in zip(images, angles)]
    return np.clip(np.stack(rotated), 0, 255)


def load_digits(data: Path, task: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images ``(N, 1, 28, 28)`` and labels to train with, and to test with."""
    with np.load(data / "mnist.npz") as file:
        train, labels, test, test_labels = (
            file[f"{part}_{kind}"] for part in ("train", "test") for kind in ("images", "labels")
        )
    train, labels = train[:TRAINING], labels[:TRAINING]
    if task == "rotated":
        train = rotate_digits(train)
        with np.load(data / "mnist_rr_test_rednn.npz") as file:
            test, test_labels = file["x"], file["y"]

    def images(array: np.ndarray) -> torch.Tensor:
        return (torch.as_tensor(array.astype(np.float32))[:, None] / 255 - 0.13) / 0.31

    return (
        images(train),
        torch.as_tensor(labels.astype(np.int64)),
        images(test),
        torch.as_tensor(test_labels.astype(np.int64)),
    )


def train_net(
    make: Any,
    images: torch.Tensor,
    labels: torch.Tensor,
    learning_rate: float,
    epochs: int,
    seed: int,
    penalty: Callable[[nn.Module], torch.Tensor] | None = None,
) -> tuple[nn.Module, float]:
    """A net trained by Adam with a cosine schedule, batches of 64; and the median milliseconds of a step. ``penalty`` of the net is added
    to the loss."""
    torch.manual_seed(seed)
    net = make().train()
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(images) // BATCH))
    seconds = []
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            start = time.perf_counter()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
            (loss if penalty is None else loss + penalty(net)).backward()
            optimizer.step()
            schedule.step()
            seconds.append(time.perf_counter() - start)
    return net.eval(), float(np.median(seconds)) * 1e3


@torch.no_grad()
def accuracy(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of right answers."""
    return float(
        np.mean([bool(right) for x, y in zip(images.split(500), labels.split(500)) for right in net(x).argmax(1) == y])
    )


def multiplications(net: nn.Module, shape: Sequence[int] = (1, 28, 28)) -> int:
    """Of one image, as the layers run: products of group convolutions "gc" and their filters apart."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


def run(task: str, name: str, data: Path, path: Path) -> None:
    """All seeds of a net, each added to the file when it is done."""
    done = {row["seed"]: row for row in read_rows(path) if (row["task"], row["net"]) == (task, name)}
    missing = [seed for seed in SEEDS if seed not in done]
    if not missing:
        return
    make = NETS[task][name]
    x, y, test_x, test_y = load_digits(data, task)
    rate = next((row["learning_rate"] for row in done.values()), None)
    if rate is None:
        kept = TRAINING - HELD_OUT
        scores = {}
        for candidate in LEARNING_RATES:
            net, _ = train_net(make, x[:kept], y[:kept], candidate, TUNING_EPOCHS, seed=0)
            scores[candidate] = accuracy(net, x[kept:], y[kept:])
        rate = max(scores, key=lambda each: scores[each])
        print(task, name, "learning rates", scores, flush=True)
    for seed in missing:
        net, step = train_net(make, x, y, rate, EPOCHS, seed)
        count = sum(parameter.numel() for parameter in net.parameters())
        row = (task, name, seed, rate, count, multiplications(net), accuracy(net, test_x, test_y), round(step, 2))
        write_rows([*read_rows(path), dict(zip(NAMES, row))], path)
        print(*row, flush=True)


def make_table(path: Path, task: str) -> str:
    """Markdown: means over seeds with the half-width of their 95 % interval by Student's t."""
    table = [["net", "parameters", "multiplications", "learning rate", "accuracy", "errors, %", "step, ms"]]
    for name in NETS[task]:
        rows = [row for row in read_rows(path) if (row["task"], row["net"]) == (task, name)]
        if rows:
            values = [row["accuracy"] for row in rows]
            mean, half = interval(values)
            steps = float(np.median([row["step_ms"] for row in rows]))
            cells = [f"{rows[0]['parameters']:,}", f"{rows[0]['macs'] / 1e6:.2f}M", f"{rows[0]['learning_rate']:g}"]
            table.append(
                [
                    name,
                    *cells,
                    f"{mean:.4f} ± {half:.4f}" if half else f"{mean:.4f}",
                    f"{100 * (1 - mean):.2f}",
                    f"{steps:.1f}",
                ]
            )
    return format_markdown(table)


def make_counts() -> str:
    """Markdown: parameters and multiplications of the ResNets for images of 32 x 32 in colour."""
    table = [["net", "parameters", "multiplications"]]
    for name, (make, _) in RESNET44.items():
        net = make()
        count = sum(parameter.numel() for parameter in net.parameters())
        table.append([name, f"{count:,}", f"{multiplications(net, (3, 32, 32)) / 1e6:,.0f}M"])
    return format_markdown(table)


@command("group_digits")
def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--task", choices=tuple(NETS), help="one of both (default: both)")
    parser.add_argument("--nets", nargs="+", metavar="NAME", help="these alone (default: all)")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there")
    arguments = parser.parse_args(argv)
    if arguments.table and not arguments.task:
        print(f"{make_counts()}\n")
    tasks = [arguments.task] if arguments.task else list(NETS)
    for task in tasks:
        if arguments.table:
            print(f"{task}\n\n{make_table(arguments.output, task)}\n")
            continue
        check_folder(arguments.output.parent)
        for name in (name for name in NETS[task] if arguments.nets is None or name in arguments.nets):
            run(task, name, arguments.data, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
