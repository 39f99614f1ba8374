"""Warnings name missing classes after the first epoch, in one process."""

import warnings

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler

from monai_gmr.handlers import WarnOfUnseenClasses


def warnings_of(training, validation, num_classes, epochs=2):
    """Returns the warnings of a training on labels with these values, one list per image."""
    network = torch.nn.Conv1d(1, num_classes, 1)
    loaders = [
        DataLoader(
            Dataset([{"image": torch.ones(1, 4), "label": torch.tensor([values]).float()} for values in labels]), 2
        )
        for labels in (training, validation)
    ]
    device = torch.device("cpu")
    validator = SupervisedEvaluator(device, loaders[1], network)
    trainer = SupervisedTrainer(
        device,
        epochs,
        loaders[0],
        network,
        torch.optim.SGD(network.parameters(), 0.01),
        lambda output, label: torch.nn.functional.cross_entropy(output, label[:, 0].long()),
        train_handlers=[ValidationHandler(1, validator), WarnOfUnseenClasses(num_classes, validator)],
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        trainer.run()
    return [str(each.message) for each in caught if "no label" in str(each.message)]


def test_classes_that_no_label_has_are_named_once():
    found = warnings_of([[0, 0, 1, 1], [0, 0, 0, 4], [1, 1, 1, 1]], [[0, 0, 0, 0]], 5)
    assert len(found) == 2
    assert any("this training epoch holds the values 2 and 3, which" in sentence for sentence in found)
    assert any("of the validation holds the values 1, 2, 3 and 4, which" in sentence for sentence in found)


def test_nothing_is_said_where_every_class_is_seen():
    assert warnings_of([[0, 0, 1, 1], [2, 0, 0, 0], [1, 1, 1, 1]], [[2, 1, 0, 0]], 3) == []
