"""Extents that a partial net learns from upright and from rotated digits: ``python tests/measurements/learned_extents.py DATA OUT.csv``.

Not a test: it trains. DATA holds ``mnist.npz`` and ``mnist_rr_test_rednn.npz``. One row per task and layer: the share of the rotations and
of the mirrors that the layer keeps, and the accuracy on digits of the task. Rows that are there are not measured again. ``--table`` prints
Markdown.

Source: Romero and Lohit, Learning partial equivariances from data, arXiv 2110.10211, section 5.2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from group_digits import accuracy, load_digits, train_net
from torch import nn

from monai_gmr.apps.study_progress import read_rows
from monai_gmr.command_line import command
from monai_gmr.files import check_folder, write_rows
from monai_gmr.networks.layers import extent_penalty, partial_extents
from monai_gmr.networks.nets import GMRResNet
from monai_gmr.tables import format_markdown

TASKS = ("upright", "rotated")
EPOCHS, LEARNING_RATE, PENALTY, SEED = 6, 0.01, 0.1, 0
CONV = ("partial", {"group": "E(2)", "samples": 4, "seed": 0})


def make_net() -> GMRResNet:
    """A small net of two stages, each layer of which learns how much of the group it keeps."""
    return GMRResNet(2, 1, 10, layers=(1, 1), width=32, kernel_sizes=5, stem_stride=2, conv=CONV)


def penalty(net: nn.Module) -> torch.Tensor:
    """That on extents that grow with depth."""
    return PENALTY * extent_penalty(net)


@command("learned_extents")
def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT.csv")
    parser.add_argument("--table", action="store_true", help="only print the table")
    arguments = parser.parse_args(argv)
    for task in () if arguments.table else TASKS:
        check_folder(arguments.out.parent)
        done = read_rows(arguments.out)
        if not any(row["task"] == task for row in done):
            x, y, test_x, test_y = load_digits(arguments.data, task)
            net, _ = train_net(make_net, x, y, LEARNING_RATE, EPOCHS, SEED, penalty=penalty)
            score = accuracy(net, test_x, test_y)
            rows = [{"task": task, **each._asdict(), "accuracy": score} for each in partial_extents(net)]
            write_rows([*done, *rows], arguments.out)
    rows = [[str(value) for value in row.values()] for row in read_rows(arguments.out)]
    print(format_markdown([["digits", "layer", "group", "rotations", "mirrors", "accuracy"], *rows], right=3))
    return 0


if __name__ == "__main__":
    sys.exit(main())
