"""Measurements behind the defaults of GMRHarmonicConv: ``python tests/measurements/harmonic_variants.py DATA 2 OUT.csv``.

Not a test: it trains. DATA holds ``chularbc12_32.npz`` (2D, 11 classes, balanced accuracy) and ``fibsem3d_medulla.npz`` (3D,
membranes, Dice); scores are on validation data (smears, a block) that are held out from training. One row per variant and seed is added to
OUT.csv; rows that are there are not run again.
"""

import csv
import sys
import time
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.layers import Conv
from sklearn.metrics import balanced_accuracy_score

from monai_gmr.networks.layers import GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.networks.nets import GMRResNet, GMRUNet
from monai_gmr.networks.utils import parameter_groups

SEEDS = (0, 1)


class _Responses:
    """The layer by a dense kernel of all its responses, which variants change."""

    def forward(self, input):
        input, padding = self._padded(input)
        convolve = getattr(torch.nn.functional, f"conv{self.shells.dim()}d")
        responses = convolve(input, self.dense_kernel(), None, self.stride, padding, self.dilation, self.groups)
        return self._reduced(responses)


class _Squared(_Responses):
    """Squared norms in place of norms, brought to the variance of the responses."""

    def _reduced(self, responses):
        grouped = responses.unflatten(1, (self.groups, -1))
        parts, start = [], 0
        for order, channels, count in zip(self.orders, self.channels, self.components):
            part = grouped.narrow(2, start, channels * count)
            if order != 0:
                part = part.unflatten(2, (channels, count)).square().sum(3) / (2 * count) ** 0.5
            parts.append(part)
            start += channels * count
        bias = 0 if self.bias is None else self.bias.reshape(-1, *[1] * self.shells.dim())
        return torch.cat(parts, 2).flatten(1, 2) + bias


class _Shared(_Responses):
    """Channel c of every order has the weight of channel c of order 0 (a third of the weights)."""

    def dense_kernel(self):
        weight = self.weight
        channels = self.channels[0]
        tied = torch.cat([weight[:count] for count in self.channels]) if self.groups == 1 else weight
        assert channels == max(self.channels)
        parameters, self._parameters["weight"] = self._parameters["weight"], None
        try:
            object.__setattr__(self, "weight", tied)
            return super().dense_kernel()
        finally:
            object.__delattr__(self, "weight")
            self._parameters["weight"] = parameters


# name: (what is mixed into the layer, arguments of the layer, levels that keep it; the others are radial)
NORMS = {"inner_products": False}
VARIANTS = {
    "norms, split 1/2 1/4 1/4": (None, NORMS, 3),
    "radial only": (None, {"orders": (0,)}, 3),
    "squared norms": (_Squared, NORMS, 3),
    "inner products for half the norms (the default)": (None, {}, 3),
    "one weight for all orders": (_Shared, NORMS | {"order_split": (1, 1, 1)}, 3),
    "split 1/3 1/3 1/3": (None, NORMS | {"order_split": (1, 1, 1)}, 3),
    "split 1/4 3/8 3/8": (None, NORMS | {"order_split": (2, 3, 3)}, 3),
    "split 3/4 1/8 1/8": (None, NORMS | {"order_split": (6, 1, 1)}, 3),
    "orders 0 1": (None, NORMS | {"orders": (0, 1)}, 3),
    "orders 0 2": (None, NORMS | {"orders": (0, 2)}, 3),
    "orders 0 1 2 3": (None, NORMS | {"orders": (0, 1, 2, 3)}, 3),
    "orders 1 2 in the first two levels only": (None, NORMS, 2),
    "orders 1 2 in the first level only": (None, NORMS, 1),
}


def make_net(dims, name):
    """The net of a variant: three levels, k = 5 in 2D and 3 in 3D."""
    mixin, options, levels = VARIANTS[name]
    classes = {2: GMRHarmonicConv2d, 3: GMRHarmonicConv3d}
    if mixin is not None:
        classes = {d: type(base.__name__, (mixin, base), {}) for d, base in classes.items()}
    Conv.add_factory_callable("GMRHARMONIC", lambda d: classes[d])
    conv = [("gmr_harmonic", options)] * levels + ["gmr"] * (3 - levels)
    if dims == 2:
        return GMRResNet(2, 1, 11, layers=(1, 1, 1), width=16, kernel_sizes=5, conv=conv)
    return GMRUNet(3, 1, 2, features=(8, 16, 32), kernel_sizes=3, conv=conv)


def cells(data, section, limit=None):
    """Grey, standardised red blood cells of 11 classes: images ``(N, 1, 32, 32)`` and labels."""
    with np.load(Path(data) / "chularbc12_32.npz") as file:
        images, labels = file[f"{section}_images"].astype(np.float32).mean(-1), file[f"{section}_labels"][:, 0]
    keep = np.isin(labels, [*range(10), 11])
    images, labels = images[keep], np.minimum(labels[keep], 10)
    order = np.random.default_rng(0).permutation(len(images))[:limit]
    images = torch.as_tensor(images[order])[:, None]
    mean, std = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)
    return (images - mean) / std, torch.as_tensor(labels[order].astype(np.int64))


def membranes(data):
    """The FIB-SEM volume and its membranes, standardised, ``(250, 250, 250)`` each."""
    with np.load(Path(data) / "fibsem3d_medulla.npz") as file:
        image, bodies = file["image"].astype(np.float32), file["label"]
    edge = np.zeros(bodies.shape, bool)
    for axis in range(3):
        change = np.diff(bodies, axis=axis) != 0
        edge[(slice(None),) * axis + (slice(0, -1),)] |= change
        edge[(slice(None),) * axis + (slice(1, None),)] |= change
    return torch.as_tensor((image - image.mean()) / image.std()), torch.as_tensor(edge)


def train(net, batches, steps, loss_function, learning_rate):
    """Adam with a cosine schedule; returns the median time of a step in seconds."""
    optimizer = torch.optim.AdamW(parameter_groups(net, weight_decay=1e-3), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seconds = []
    for _, (x, y) in zip(range(steps), batches):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss_function(net(x), y).backward()
        optimizer.step()
        schedule.step()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def score_2d(name, seed, data, epochs=5, batch_size=64):
    """Balanced accuracy on the validation cells, parameters, seconds of a step."""
    x, y = cells(data, "train", 5000)
    weight = 1 / torch.bincount(y).float()
    torch.manual_seed(seed)
    net = make_net(2, name)
    draw = torch.Generator().manual_seed(seed)

    def batches():
        while True:
            for rows in torch.randperm(len(x), generator=draw).split(batch_size)[:-1]:
                yield x[rows], y[rows]

    loss = torch.nn.CrossEntropyLoss(weight / weight.mean())
    seconds = train(net, batches(), epochs * (len(x) // batch_size), loss, 0.005)
    x, y = cells(data, "val")
    with torch.no_grad():
        predicted = torch.cat([net.eval()(part).argmax(1) for part in x.split(256)])
    return balanced_accuracy_score(y, predicted), net, seconds


def score_3d(name, seed, data, steps=240):
    """Dice on a validation block, parameters, seconds of a step; the last 80 slices are held out."""
    image, edge = membranes(data)
    torch.manual_seed(seed)
    net = make_net(3, name)
    draw = np.random.default_rng(seed)

    def batches():
        while True:
            corners = draw.integers(0, (250 - 80 - 32, 250 - 32, 250 - 32), size=(2, 3))
            blocks = [tuple(slice(c, c + 32) for c in corner) for corner in corners]
            yield (torch.stack([array[block] for block in blocks])[:, None].float() for array in (image, edge))

    seconds = train(net, batches(), steps, DiceCELoss(to_onehot_y=True, softmax=True), 0.01)
    scores = []
    with torch.no_grad():
        for row, column in ((10, 10), (140, 10), (10, 140), (140, 140)):
            block = (slice(175, 239), slice(row, row + 64), slice(column, column + 64))
            predicted = net.eval()(image[block][None, None]).argmax(1)[0].bool()
            scores.append(2 * (predicted & edge[block]).sum() / (predicted.sum() + edge[block].sum()))
    return float(torch.stack(scores).mean()), net, seconds


def main(data, dims, out):
    """Run what is not in the table yet, seed by seed."""
    out = Path(out)
    done = set()
    if out.is_file():
        with open(out, newline="") as file:
            done = {(row["variant"], row["seed"]) for row in csv.DictReader(file)}
    for seed in SEEDS:
        for name in VARIANTS:
            if (name, str(seed)) in done:
                continue
            score, net, seconds = {2: score_2d, 3: score_3d}[dims](name, seed, data)
            parameters = sum(p.numel() for p in net.parameters())
            row = {"variant": name, "seed": seed, "score": round(score, 4), "parameters": parameters}
            row["step_ms"] = round(1000 * seconds, 1)
            new = not out.is_file()
            with open(out, "a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(row, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
