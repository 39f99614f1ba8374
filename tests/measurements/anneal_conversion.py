"""A trained DynUNet made equivariant without starting over: ``python tests/measurements/anneal_conversion.py DATA OUT``.

Not a test: it trains. DATA is the folder fibsem that ``python -m monai_gmr.apps.prepare_data`` writes (cell membranes, 3D). For each seed a
DynUNet is trained, and then, for as many steps again: trained on as it is; converted with projected weights; annealed. Beside them a
converted net with fresh weights is trained for the same total. Settings of each are those of the best Dice on the validation block after
the last step, with seed 0; the test block is read for those alone, once, with the weights of the last step, upright and in orientations of
the cube. OUT/runs.csv has a row for each training, OUT/curves.csv the validation Dice on the way. What is there is not run again.
``--table`` prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet
from torch import nn

from monai_gmr.apps.study_progress import read_rows
from monai_gmr.apps.study_table import interval
from monai_gmr.command_line import command
from monai_gmr.files import check_folder, write_rows
from monai_gmr.metrics import equivariance_error
from monai_gmr.networks import convert_to_gmr
from monai_gmr.networks.annealing import RestPenalty, drop_rests, rest_sizes
from monai_gmr.networks.utils import parameter_groups
from monai_gmr.symmetry import point_group, transform_grid
from monai_gmr.tables import format_markdown

STEPS, PATCH, BATCH, CURVE_POINTS = 300, 32, 2, 6
# of the blocks of 125 voxels, so that MONAI's net, whose sizes are multiples of 4, takes them
SIZE, SMALL_SIZE = 120, 48
WEIGHT_DECAY = 1e-4
ORIENTATIONS = point_group(3)[::6]
ROW = (
    "conv",
    "arm",
    "seed",
    "setting",
    "parameters",
    "val_start",
    "val_end",
    "upright",
    "turned",
    "worst",
    "error",
    "seconds",
)


class Arm(NamedTuple):
    """How a training goes: what it begins with, for how many times STEPS, and the settings that are tried."""

    weights: str
    times: int
    settings: tuple[dict[str, float], ...]


def _settings(rates: Sequence[float], **others: Sequence[float]) -> tuple[dict[str, float], ...]:
    found = [{"lr": rate} for rate in rates]
    for name, values in others.items():
        found = [each | {name: value} for each in found for value in values]
    return tuple(found)


# the original comes first: others begin with it
ARMS = {
    "original": Arm("plain", 1, _settings((0.003,))),
    "original, trained on": Arm("trained", 1, _settings((0.001, 0.003))),
    "fresh": Arm("init", 2, _settings((0.003, 0.01))),
    "projected": Arm("project", 1, _settings((0.003, 0.01))),
    "annealed": Arm("anneal", 1, _settings((0.003, 0.01), until=(0.5, 0.75), strength=(0.3,))),
}


class Block(NamedTuple):
    """An image ``(1, 1, *spatial)``, standardised, and its labels ``(1, 1, *spatial)``."""

    image: torch.Tensor
    label: torch.Tensor

    def cropped(self, size: int) -> Block:
        """Its middle."""
        starts = [(n - size) // 2 for n in self.image.shape[2:]]
        part = (slice(None), slice(None), *(slice(start, start + size) for start in starts))
        return Block(self.image[part], self.label[part])


def load_blocks(data: Path, key: str) -> list[Block]:
    """The cases of a list of dataset.json."""
    blocks = []
    for case in json.loads((data / "dataset.json").read_text())[key]:
        image, label = (
            torch.as_tensor(np.asarray(nibabel.load(data / case[name]).dataobj, dtype=np.float32))[None, None]
            for name in ("image", "label")
        )
        blocks.append(Block((image - image.mean()) / image.std(), label))
    return blocks


def make_original() -> nn.Module:
    """MONAI's net, of the sizes of the bundle's overlay dynunet.yaml for these data."""
    return DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[8, 16, 32])


def draw_patches(blocks: Sequence[Block], random: np.random.Generator) -> Block:
    """Patches about voxels of the membrane, three of four, or of the rest."""
    parts = []
    for _ in range(BATCH):
        block = blocks[random.integers(len(blocks))]
        wanted = random.random() < 0.75
        while True:
            starts = [int(random.integers(0, n - PATCH + 1)) for n in block.image.shape[2:]]
            middle = block.label[(0, 0, *(start + PATCH // 2 for start in starts))]
            if bool(middle) is bool(wanted):
                break
        part = (slice(None), slice(None), *(slice(start, start + PATCH) for start in starts))
        parts.append((block.image[part], block.label[part]))
    return Block(torch.cat([image for image, _ in parts]), torch.cat([label for _, label in parts]))


@torch.no_grad()
def dice(net: nn.Module, block: Block) -> float:
    """Dice of the membranes."""
    modes = [(each, each.training) for each in net.modules()]
    found = net.eval()(block.image).argmax(1, keepdim=True)
    for each, mode in modes:
        each.training = mode
    return float(2 * (found * block.label).sum() / (found.sum() + block.label.sum()))


def train(
    net: nn.Module, blocks: Sequence[Block], validation: Block, steps: int, seed: int, setting: dict[str, float]
) -> tuple[nn.Module, list[dict[str, float]]]:
    """A net trained by AdamW with a cosine schedule, annealed if it has rests; and validation Dice on the way."""
    random = np.random.default_rng(1000 + seed)
    torch.manual_seed(seed)
    rate = setting["lr"]
    optimizer = torch.optim.AdamW(parameter_groups(net, WEIGHT_DECAY), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
    )
    penalty = RestPenalty(net, optimizer, setting["strength"]) if "until" in setting else None
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    curve: list[dict[str, float]] = []

    def look(step: int) -> None:
        sizes = list(rest_sizes(net).values())
        fraction = 0.0 if penalty is None else penalty.fraction
        found = {"step": step, "fraction": fraction, "dice": round(dice(net, validation), 4)}
        found |= {"rest": float(np.mean(sizes)) if sizes else 0.0, "layers": sum(size > 0 for size in sizes)}
        curve.append(found)

    look(0)
    for step in range(steps):
        if penalty is not None:
            penalty.fraction = min(1.0, (step + 1) / (setting["until"] * steps))
        batch = draw_patches(blocks, random)
        optimizer.zero_grad()
        loss(net.train()(batch.image), batch.label).backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % (steps // CURVE_POINTS) == 0:
            look(step + 1)
    return net, curve


def evaluate(net: nn.Module, block: Block) -> dict[str, float]:
    """Dice of the test block upright and in all orientations, and the error of equivariance."""
    net.eval()
    scores = [dice(net, Block(*(transform_grid(each, g) for each in block))) for g in ORIENTATIONS]
    small = block.cropped(SMALL_SIZE).image
    error = equivariance_error(net, small, ORIENTATIONS).worst
    upright = dice(net, block)
    return {"upright": upright, "turned": float(np.mean(scores)), "worst": min(scores), "error": error}


def begin(arm: str, conv: str, seed: int, out: Path) -> nn.Module:
    """The net with which a training of an arm begins."""
    weights = ARMS[arm].weights
    torch.manual_seed(seed)
    net = make_original()
    if weights not in ("plain", "init"):
        net.load_state_dict(torch.load(out / f"original_{seed}.pt", weights_only=True))
    return net if weights in ("plain", "trained") else convert_to_gmr(net, conv=conv, weights=weights)


def weights_file(row: dict[str, Any], out: Path) -> Path:
    """Where the trained weights of a row are kept until the best setting is tested."""
    return out / f"{'_'.join(str(value) for value in _key(row).values()).replace(' ', '-').replace(',', '')}.pt"


def run(arm: str, conv: str, seed: int, setting: dict[str, float], data: Path, out: Path) -> None:
    """One training, its row, without scores of the test block, its curve and its weights."""
    net = begin(arm, conv, seed, out)
    validation = load_blocks(data, "validation")[0].cropped(SIZE)
    start = time.perf_counter()
    net, curve = train(net, load_blocks(data, "training"), validation, ARMS[arm].times * STEPS, seed, setting)
    seconds = time.perf_counter() - start
    if ARMS[arm].weights == "anneal":
        net = drop_rests(net)
    count = sum(parameter.numel() for parameter in net.parameters())
    row = {"conv": conv, "arm": arm, "seed": seed, "setting": setting_text(setting), "parameters": count}
    row |= {"val_start": curve[0]["dice"], "val_end": curve[-1]["dice"], "seconds": round(seconds)}
    torch.save(net.state_dict(), weights_file(row, out))
    write_rows([*_rows(out / "curves.csv"), *({**_key(row), **point} for point in curve)], out / "curves.csv")
    write_rows([*_rows(out / "runs.csv"), {name: row.get(name) for name in ROW}], out / "runs.csv")
    print(*row.values(), flush=True)


def test_best(best: dict[str, Any], data: Path, out: Path) -> None:
    """Read the test block for the setting that validation chose, once."""
    if best["upright"] not in (None, ""):
        return
    net = begin(best["arm"], best["conv"], best["seed"], out)
    if ARMS[best["arm"]].weights == "anneal":
        # the net without rests is that of a conversion
        net = convert_to_gmr(make_original(), conv=best["conv"], weights="init")
    net.load_state_dict(torch.load(weights_file(best, out), weights_only=True))
    result = evaluate(net, load_blocks(data, "test")[0].cropped(SIZE))
    rows = [row | result if _key(row) == _key(best) else row for row in _rows(out / "runs.csv")]
    write_rows(rows, out / "runs.csv")
    print(*_key(best).values(), *result.values(), flush=True)


def setting_text(setting: dict[str, float]) -> str:
    """A setting in a few words."""
    return " ".join(f"{name}={value:g}" for name, value in setting.items())


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_rows(path) if path.is_file() else []


def _key(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("conv", "arm", "seed", "setting")}


def run_missing(arm: str, conv: str, seeds: Sequence[int], data: Path, out: Path) -> None:
    """All settings with seed 0, then the best with the others; the best of each seed is tested."""

    def rows_of(seed: int) -> list[dict[str, Any]]:
        return [row for row in _rows(out / "runs.csv") if (row["conv"], row["arm"], row["seed"]) == (conv, arm, seed)]

    for seed in seeds:
        wanted = ARMS[arm].settings
        if seed != 0:
            if not rows_of(0):
                continue
            best = max(rows_of(0), key=lambda row: row["val_end"])["setting"]
            wanted = tuple(each for each in wanted if setting_text(each) == best)
        done = {row["setting"] for row in rows_of(seed)}
        for each in wanted:
            if setting_text(each) not in done:
                run(arm, conv, seed, each, data, out)
        best_row = max(rows_of(seed), key=lambda row: row["val_end"])
        if arm == "original":
            (out / f"original_{seed}.pt").write_bytes(weights_file(best_row, out).read_bytes())
        test_best(best_row, data, out)


def make_table(out: Path) -> str:
    """Markdown: of each arm the setting that was chosen; means over seeds with the half-width of their 95 % interval by Student's t."""
    rows = _rows(out / "runs.csv")
    columns = ("val_start", "val_end", "upright", "turned", "worst")
    table = [
        [
            "net",
            "setting",
            "parameters",
            "validation Dice, start",
            "end",
            "test upright",
            "turned, mean",
            "turned, worst",
            "error",
        ]
    ]
    for conv, arm in dict.fromkeys((row["conv"], row["arm"]) for row in rows):
        own = [row for row in rows if (row["conv"], row["arm"]) == (conv, arm)]
        first = [row for row in own if row["seed"] == 0]
        if not first:
            continue
        best = max(first, key=lambda row: row["val_end"])["setting"]
        own = [row for row in own if row["setting"] == best]
        cells = []
        for name in columns:
            mean, half = interval([row[name] for row in own])
            cells.append(f"{mean:.3f} ± {half:.3f}" if half else f"{mean:.3f}")
        label = arm if conv == "plain" else f"{arm}, {conv}"
        table.append([label, best, f"{own[0]['parameters']:,}", *cells, f"{max(row['error'] for row in own):.0e}"])
    return format_markdown(table)


@command("anneal_conversion")
def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder fibsem")
    parser.add_argument("output", type=Path, help="folder of runs.csv, curves.csv and trained nets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--convs", nargs="+", default=["gmr_harmonic"], choices=("gmr", "gmr_harmonic"))
    parser.add_argument(
        "--arms", nargs="+", default=list(ARMS), choices=tuple(ARMS), metavar="ARM", help="(default: all)"
    )
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    arguments = parser.parse_args(argv)
    if arguments.table:
        print(make_table(arguments.output))
        return 0
    check_folder(arguments.output)
    for arm in arguments.arms:
        convs = ["plain"] if ARMS[arm].weights in ("plain", "trained") else arguments.convs
        for conv in convs:
            run_missing(arm, conv, arguments.seeds, arguments.data, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
