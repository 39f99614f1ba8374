"""Small networks, data and reports that the tests of the rotation report share."""

import csv

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.transforms import AsDiscreted

from monai_gmr.rotation_report import RotationReport

SHAPE = (16, 16)
DISCRETE = AsDiscreted(keys=["pred", "label"], argmax=[True, False], to_onehot=2, allow_missing_keys=True)


class UpperHalf(torch.nn.Module):
    """A network that predicts foreground in the upper half of any image."""

    def forward(self, x):
        rows = torch.arange(x.shape[2])[:, None].expand(x.shape[2:]) < x.shape[2] // 2
        upper = rows.expand_as(x).float()
        return torch.cat([0.5 - upper, upper - 0.5], 1)


class Failing(Dataset):
    """A dataset with one case that cannot be loaded."""

    def __init__(self, data, index):
        super().__init__(data)
        self.index = index

    def __getitem__(self, index):
        if index == self.index:
            raise RuntimeError("no reader for this file\nsecond line")
        return super().__getitem__(index)


def half(shape=SHAPE):
    """Makes a mask of the upper half of an image, ``(1, *shape)``."""
    label = torch.zeros(1, *shape)
    label[:, : shape[0] // 2] = 1
    return label


def make_dice(**settings):
    """Makes MONAI's Dice metric of predictions and labels."""
    return {"dice": MeanDice(output_transform=from_engine(["pred", "label"]), **settings)}


def make_evaluator(network, shape=SHAPE, dataset=None, postprocessing=None, batch_size=1, **settings):
    """Makes an evaluator of two classes, by default on two cases whose image and label are the upper half."""
    dataset = dataset or Dataset([{"image": half(shape), "label": half(shape)}] * 2)
    arguments = {"key_val_metric": make_dice(include_background=False), "postprocessing": postprocessing or DISCRETE}
    loader = DataLoader(dataset, batch_size=batch_size)
    return SupervisedEvaluator(torch.device("cpu"), loader, network, **arguments | settings)


def make_report(evaluator, folder, **settings):
    """Makes a report of few views without intervals and pictures."""
    few = {"views": ["all", {"angles": 60}], "shifts": None, "worst_cases": 0, "num_resamples": 0, "order": 1}
    return RotationReport(evaluator, folder, **few | settings)


def find(rows, **wanted):
    """Finds the only row with these values."""
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def read(path):
    """Reads the rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
