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
from monai_gmr.networks.blocks import GMRConvolution
from monai_gmr.networks.layers import GMRConv3d, GMRDownsample, GMRHarmonicConv3d, GMRUpsample
from monai_gmr.ops.resample import apply_along_axis, lowpass_matrix
from monai_gmr.symmetry import inscribed_ball, transform_image
from monai_gmr.symmetry.views import angle_views
from monai_gmr.tables import format_markdown

CONFIG = Path(__file__).parents[2] / "bundles/volume_segmentation_gmr_unet/configs/train.yaml"
COLUMNS = ("shift", "rotation", "upright", "angles", "worst angle", "answer rotated", "parameters")
ANGLES = (30, 45)
CASES = 6


def low_pass(x, sigma):
    """A Gaussian of width ``sigma`` voxels along each axis, cut at 3 sigma, normalised at the border; none for 0."""
    for axis in (-1, -2, -3) if sigma else ():
        matrix = lowpass_matrix(x.shape[axis], 1, sigma, x, 3.0)
        x = apply_along_axis(x, matrix, axis, int((matrix != 0).sum(1).max()))
    return x


class LowPass(nn.Module):
    """:func:`low_pass` as a module."""

    def __init__(self, sigma):
        super().__init__()
        self.sigma = sigma

    def forward(self, x):
        return low_pass(x, self.sigma)


class SmoothOrders(nn.Module):
    """A harmonic layer whose orders above 0 take a smoothed image, and whose invariants are smoothed; it has weights of its own."""

    def __init__(self, layer, before, behind):
        super().__init__()
        options = {"padding": layer.padding, "bias": layer.bias is not None}
        inputs, radial = layer.in_channels, layer.channels[0]
        self.radial = GMRConv3d(inputs, radial, layer.kernel_size, **options)
        others = layer.out_channels - radial
        self.others = GMRHarmonicConv3d(inputs, others, layer.kernel_size, orders=layer.orders[1:], **options)
        self.before, self.behind = before, behind

    def forward(self, x):
        others = low_pass(self.others(low_pass(x, self.before)), self.behind)
        return torch.cat([self.radial(x), others], 1)


class FineBlock(nn.Module):
    """Convolution, norm and activation on a grid twice as fine, between interpolation and low-pass."""

    def __init__(self, block):
        super().__init__()
        # as far apart in voxels of the coarse grid as before
        block.conv.dilation, block.conv.padding = (2, 2, 2), (2, 2, 2)
        self.block, self.finer, self.coarser = block, GMRUpsample(3, 2), GMRDownsample(3, 2)

    def forward(self, x):
        return self.coarser(self.block(self.finer(x)))


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


def smooth_orders(before, behind):
    """A change of a net: low-pass filters before and behind the orders above 0, of these widths in voxels."""
    return lambda net: replace(net, GMRHarmonicConv3d, lambda layer: SmoothOrders(layer, before, behind))


def smooth_ends(image, answer):
    """A change of a net: low-pass filters of its image and its answer, of these widths in voxels."""

    def change(net):
        net.stem, net.head = nn.Sequential(LowPass(image), net.stem), nn.Sequential(net.head, LowPass(answer))

    return change


def refine(net):
    """A change of a net: blocks below the finest grid on a grid twice as fine."""
    for part in [*net.encoders, *net.decoders[:-1]]:
        replace(part, GMRConvolution, FineBlock)


# name: (ids of the config, what changes the net)
VARIANTS = {
    "harmonic": ({}, None),
    "plain": ({"conv": "plain"}, None),
    "radial": ({"conv": "gmr"}, None),
    "harmonic, GELU": ({"network_def::act": "GELU"}, None),
    "harmonic, trained with shifts": ({"train::rotation_transforms": [RandShift()]}, None),
    "harmonic, answer smoothed": ({}, smooth_ends(0, 0.7)),
    "harmonic, image and answer smoothed": ({}, smooth_ends(0.7, 0.7)),
    "harmonic, orders take a smoothed image": ({}, smooth_orders(0.7, 0)),
    "harmonic, orders smoothed before and behind": ({}, smooth_orders(0.7, 0.7)),
    "harmonic, orders smoothed more before, and behind": ({}, smooth_orders(1.0, 0.7)),
    "harmonic, below the finest grid on one twice as fine": ({}, refine),
    "harmonic, windows of 5 below the finest grid": ({"network_def::kernel_sizes": [3, 5, 5]}, None),
    "harmonic, wider low-pass before halving": ({"network_def::downsample": ["lowpass", {"sigma": 1.2}]}, None),
    "harmonic, replicated border": ({"network_def::padding_mode": "replicate"}, None),
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
            rows = [row for row in csv.DictReader(file) if row["trained"] == "yes"]
        done = {(row["variant"], row["seed"], row["epochs"]) for row in rows}
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
