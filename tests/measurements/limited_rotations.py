"""How much symmetry is learned from digits rotated by at most 45 degrees: ``python tests/measurements/limited_rotations.py DATA FOLDER``.

Not a test: it trains. DATA holds ``mnist.npz`` and ``mnist_rr_test_rednn.npz``. 12,000 digits, each rotated by an angle between -45 and 45
degrees, train a net that keeps the whole group, nets that keep nothing with several strengths of the threshold, and a plain one. Each is
tested on MNIST's digits rotated by 0 to 180 degrees. FOLDER gets ``limited_rotations.csv``, one row a net and angle, with the accuracy and
with the change of the answer relative to the upright one (``error``), and a picture. Nets that are there are not run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from group_digits import load_digits
from scipy import ndimage
from torch import nn

from monai_gmr.apps.study_progress import read_rows
from monai_gmr.command_line import command
from monai_gmr.files import check_folder, replacing, write_rows
from monai_gmr.metrics import broken_symmetry
from monai_gmr.networks.nets import GMRResNet
from monai_gmr.networks.symmetry_penalty import SymmetryThreshold
from monai_gmr.networks.utils import parameter_groups

LIMIT, BATCH, EPOCHS, LEARNING_RATE, SEED, TESTED = 45, 64, 4, 0.01, 0, 2000
ANGLES = (0, 15, 30, 45, 60, 90, 135, 180)
KEEPS_1 = ("gmr_harmonic", {"keeps": "1"})
# convolution, and strength of the threshold
NETS: dict[str, tuple[Any, float]] = {
    "harmonic": ("gmr_harmonic", 0.0),
    "keeps 1, strength 0.4": (KEEPS_1, 0.4),
    "keeps 1, strength 0.2": (KEEPS_1, 0.2),
    "keeps 1, strength 0": (KEEPS_1, 0.0),
    "plain": ("plain", 0.0),
}


def rotate(images: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Images ``(N, 28, 28)``, each about its centre by its angle in degrees, by cubic splines."""
    rotated = [ndimage.rotate(image.astype(np.float32), angle, reshape=False) for image, angle in zip(images, angles)]
    return np.stack(rotated)


def train(name: str, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """A net trained by AdamW with a cosine schedule, and the threshold of its strength."""
    torch.manual_seed(SEED)
    conv, strength = NETS[name]
    net = GMRResNet(2, 1, 10, layers=(1, 1, 1), width=12, kernel_sizes=3 if conv == "plain" else 5, conv=conv)
    optimizer = torch.optim.AdamW(parameter_groups(net, weight_decay=0.01), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * (len(images) // BATCH))
    threshold = SymmetryThreshold(net, optimizer, strength) if strength else None
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    if threshold is not None:
        threshold.settle()
    return net.eval()


@torch.no_grad()
def rows_of(name: str, net: nn.Module, images: np.ndarray, labels: torch.Tensor) -> list[dict[str, Any]]:
    """Accuracy and relative change of the answer for each angle."""
    upright, rows = torch.zeros(0), []
    for angle in ANGLES:
        x = torch.as_tensor(rotate(images, np.full(len(images), angle)))[:, None]
        logits = torch.cat([net(part) for part in x.split(500)])
        upright = logits if angle == 0 else upright
        accuracy = float((logits.argmax(1) == labels).float().mean())
        error = float((logits - upright).norm() / upright.norm())
        rows.append({"net": name, "angle": angle, "accuracy": accuracy, "error": error})
    return rows


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Accuracy and error over the angle, a line for each net; the angles that were trained are shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, key, label in zip(panels, ("accuracy", "error"), ("accuracy", "change of the answer")):
        panel.axvspan(0, LIMIT, color="0.92")
        for name in NETS:
            own = [row for row in rows if row["net"] == name]
            panel.plot([row["angle"] for row in own], [row[key] for row in own], marker="o", ms=3, label=name)
        panel.set(xlabel="rotated by, degrees", ylabel=label, xticks=ANGLES[::2], ylim=(0, None))
    panels[0].legend(fontsize="small", loc="lower left")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


@command("limited_rotations")
def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    arguments = parser.parse_args(argv)
    check_folder(arguments.folder)
    path = arguments.folder / "limited_rotations.csv"
    x, y, test, test_labels = load_digits(arguments.data, "upright")
    angles = np.random.default_rng(SEED).uniform(-LIMIT, LIMIT, len(x))
    rotated = torch.as_tensor(rotate(x[:, 0].numpy(), angles))[:, None]
    for name in NETS:
        if any(row["net"] == name for row in read_rows(path)):
            continue
        net = train(name, rotated, y)
        if NETS[name][0] == KEEPS_1:
            print(name, broken_symmetry(net), sep="\n", flush=True)
        rows = rows_of(name, net, test[:TESTED, 0].numpy(), test_labels[:TESTED])
        write_rows([*read_rows(path), *rows], path)
        print(*[f"{row['angle']}: {row['accuracy']:.3f} ({row['error']:.2f})" for row in rows], flush=True)
    draw(path.with_suffix(".png"), read_rows(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
