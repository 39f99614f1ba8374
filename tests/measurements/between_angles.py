"""What nets do between the grid's angles: ``python tests/measurements/between_angles.py OUT.csv [VARIANT ...] [--seed 0]``.

Not a test: it trains the main job of ``volume_segmentation_gmr_unet`` once for each variant (minutes on a core) and adds rows to OUT.csv;
rows that are there are not run again. Measured on further phantoms, inside the ball: the relative change of the raw answer by a shift of
half a voxel and a rotation by 30 degrees (splines of order 5), Dice upright and at 30 and 45 degrees about each axis (image linear, label
nearest), and Dice of the upright answer, rotated linearly: what an exactly equivariant net would have. Untrained nets have no Dice.
"""

import argparse
import csv
import logging
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from monai.bundle import ConfigWorkflow
from monai.metrics import compute_dice
from monai.transforms import RandomizableTransform
from torch import nn
from tqdm import tqdm

from monai_gmr.data import make_phantom
from monai_gmr.metrics import equivariance_error
from monai_gmr.networks.layers import GMRHarmonicConv3d
from monai_gmr.symmetry import inscribed_ball, transform_image
from monai_gmr.symmetry.views import angle_views
from monai_gmr.tables import format_markdown

CONFIG = Path(__file__).parents[2] / "bundles/volume_segmentation_gmr_unet/configs/train.yaml"
COLUMNS = ("shift", "rotation", "upright", "angles", "worst angle", "answer rotated", "parameters")
ANGLES = (30, 45)
CASES = 6


def low_pass(x, times):
    """Binomial weights 1/4, 1/2, 1/4 along each axis, several times; the border is repeated."""
    for _ in range(times):
        x = F.avg_pool3d(F.avg_pool3d(F.pad(x, (1,) * 6, mode="replicate"), 2, 1), 2, 1)
    return x


class LowPass(nn.Module):
    """:func:`low_pass` as a module."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x):
        return low_pass(x, self.times)


class SmoothOrders(nn.Module):
    """A harmonic layer whose orders above 0 take a smoothed image, and whose invariants are smoothed."""

    def __init__(self, layer, before, after):
        super().__init__()
        self.layer, self.before, self.after = layer, before, after

    def forward(self, x):
        radial = self.layer.channels[0]
        invariants = self.layer(low_pass(x, self.before))[:, radial:]
        return torch.cat([self.layer(x)[:, :radial], low_pass(invariants, self.after)], 1)


class RandShift(RandomizableTransform):
    """Moves the image by up to half a voxel along each axis, by splines of order 3; the label stays."""

    def __call__(self, data):
        self.randomize(None)
        shift = self.R.uniform(-0.5, 0.5, 3)
        moved = transform_image(torch.as_tensor(np.asarray(data["image"])), np.eye(3), 3, shift=shift)
        return {**data, "image": moved}


def replace(net, kind, make):
    """Put another module in the place of each one of a kind."""
    for path, module in list(net.named_modules()):
        if isinstance(module, kind):
            net.set_submodule(path, make(module))


def smooth_orders(before, after, below_the_finest=False):
    """A change of a net: low-pass filters before and behind the orders above 0."""

    def change(net):
        parts = [*net.encoders, *net.decoders[:-1]] if below_the_finest else [net]
        for part in parts:
            replace(part, GMRHarmonicConv3d, lambda layer: SmoothOrders(layer, before, after))

    return change


def smooth_ends(image, answer):
    """A change of a net: low-pass filters of its image and its answer."""

    def change(net):
        net.stem, net.head = nn.Sequential(LowPass(image), net.stem), nn.Sequential(net.head, LowPass(answer))

    return change


# name: (ids of the config, what changes the net)
VARIANTS = {
    "harmonic": ({}, None),
    "plain": ({"conv": "plain"}, None),
    "radial": ({"conv": "gmr"}, None),
    "harmonic, GELU": ({"network_def::act": "GELU"}, None),
    "harmonic, trained with shifts": ({"train::rotation_transforms": [RandShift()]}, None),
    "harmonic, answer smoothed": ({}, smooth_ends(0, 1)),
    "harmonic, image and answer smoothed": ({}, smooth_ends(1, 1)),
    "harmonic, orders take a smoothed image": ({}, smooth_orders(1, 0)),
    "the same, below the finest grid": ({}, smooth_orders(1, 0, True)),
    "harmonic, orders smoothed before and behind": ({}, smooth_orders(1, 1)),
    "harmonic, orders smoothed twice before, once behind": ({}, smooth_orders(2, 1)),
}


def train(name, seed, epochs, folder):
    """The net of a variant, untrained weights and trained net."""
    settings, change = VARIANTS[name]
    settings = {"seed": seed, "resume": False, "cache_rate": 1.0, **settings}
    settings |= {"phantom_dir": str(folder / "phantoms"), "ckpt_dir": str(folder / "models"), "val_interval": epochs}
    workflow = ConfigWorkflow(
        str(CONFIG), logging_file=False, workflow_type="train", bundle_root=str(folder), epochs=epochs, **settings
    )
    workflow.initialize()
    net = workflow.network_def
    if change is not None:
        change(net)
    first = measure(net.eval(), 2)
    workflow.run()
    return first, net.eval()


def phantom(case):
    """Image, standardised, and label of a phantom that no net was trained on, ``(1, 1, 48, 48, 48)``."""
    image, label = map(torch.as_tensor, make_phantom((48, 48, 48), seed=1000 + case))
    return ((image - image.mean()) / image.std(correction=0))[None, None], label[None, None]


@torch.no_grad()
def measure(net, cases):
    """Relative changes of the raw answer."""
    errors = []
    for case in range(cases):
        found = equivariance_error(net, phantom(case)[0], [np.eye(3)], angles=[30], shifts=[0.5])
        errors.append((found.shifts.mean, found.angles.mean))
    return dict(zip(COLUMNS, np.mean(errors, 0)))


def dice(answer, label, ball):
    """Mean over the classes of a phantom, inside the ball."""
    one_hot = [F.one_hot((x * ball).long(), 4).movedim(-1, 1) for x in (answer, label[:, 0])]
    return float(compute_dice(*one_hot, include_background=False).nanmean())


@torch.no_grad()
def score(net):
    """Dice upright, and mean and worst over angles; that of the upright answer, rotated."""
    known = {view.name: view for angle in ANGLES for view in angle_views(3, angle)}
    views = [known[f"{angle} degrees about axis {axis}"] for angle in ANGLES for axis in range(3)]
    upright, rotated, given = [], {view.name: [] for view in views}, []
    for case in range(CASES):
        image, label = phantom(case)
        ball = torch.as_tensor(inscribed_ball(label.shape[2:]))
        answer = net(image)
        upright.append(dice(answer.argmax(1), label, ball))
        for view in views:
            there = transform_image(label, view.matrix, 0)
            rotated[view.name].append(dice(net(transform_image(image, view.matrix, 1)).argmax(1), there, ball))
            given.append(dice(transform_image(answer, view.matrix, 1).argmax(1), there, ball))
    means = [float(np.mean(values)) for values in rotated.values()]
    return {
        "upright": np.mean(upright),
        "angles": np.mean(means),
        "worst angle": min(means),
        "answer rotated": np.mean(given),
    }


def write(out, row):
    """Add a row, and print the table."""
    new = not out.is_file()
    with open(out, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("variant", "seed", "epochs", "trained", *COLUMNS), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()})
    with open(out, newline="", encoding="utf-8") as file:
        print(format_markdown(list(csv.reader(file))), flush=True)


def main():
    """Run the variants that are not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("variants", nargs="*", choices=[[], *VARIANTS], metavar="VARIANT", help=f"of {list(VARIANTS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    done = set()
    if options.out.is_file():
        with open(options.out, newline="", encoding="utf-8") as file:
            done = {(row["variant"], row["seed"], row["epochs"]) for row in csv.DictReader(file)}
    for name in tqdm(options.variants or list(VARIANTS), unit="variant"):
        key = {"variant": name, "seed": options.seed, "epochs": options.epochs}
        if tuple(map(str, key.values())) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            first, net = train(name, options.seed, options.epochs, Path(folder))
        count = {"parameters": sum(p.numel() for p in net.parameters())}
        write(options.out, {**key, "trained": "no", **{k: float(v) for k, v in first.items()}, **count})
        values = {k: float(v) for k, v in (measure(net, CASES) | score(net)).items()}
        write(options.out, {**key, "trained": "yes", **values, **count})


if __name__ == "__main__":
    main()
