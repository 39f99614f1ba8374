"""Tests of annealing: a training with the schedule ends in an ordinary equivariant network, which is kept as the best."""

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanSquaredError, ValidationHandler, from_engine
from torch import nn

from monai_gmr.handlers import AnnealRests, BestCheckpoint, LatestCheckpoint, SeedEpochs
from monai_gmr.metrics import equivariance_error
from monai_gmr.networks import convert_to_gmr, drop_rests
from monai_gmr.networks.annealing import rest_sizes
from monai_gmr.utils import ConfigurationError

ANNEALED, EPOCHS = 2, 4


class Killed(Exception):
    """Stand-in for a kill."""


def make_original():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1)
    )


def make_trainer(folder, epochs=EPOCHS, conv="gmr_harmonic", optimizer=None, **arguments):
    net = convert_to_gmr(make_original(), conv=conv, weights="anneal", spatial_size=(16, 16))
    generator = torch.Generator().manual_seed(1)
    data = [
        {"image": torch.rand(1, 16, 16, generator=generator), "label": torch.rand(1, 8, 8, generator=generator)}
        for _ in range(6)
    ]
    dataset = Dataset(data)
    optimizer = optimizer or torch.optim.AdamW(net.parameters(), lr=0.01)
    best_saver = BestCheckpoint(folder, net)
    validator = SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(dataset, batch_size=3),
        net,
        key_val_metric={"error": MeanSquaredError(output_transform=from_engine(["pred", "label"]))},
        # the first validation stays the best
        metric_cmp_fn=lambda current, best: False,
        val_handlers=[best_saver],
    )
    saved = {"model": net, "optimizer": optimizer}
    trainer = SupervisedTrainer(
        torch.device("cpu"),
        epochs,
        DataLoader(dataset, batch_size=2, shuffle=True),
        net,
        optimizer,
        nn.MSELoss(),
        train_handlers=[
            SeedEpochs(7, dataset),
            AnnealRests(net, optimizer, validator=validator, **{"epochs": ANNEALED, **arguments}),
            ValidationHandler(1, validator),
            LatestCheckpoint(folder, saved, validator=validator, best_saver=best_saver),
        ],
    )
    return trainer, net


@pytest.mark.parametrize("conv", ["gmr", "gmr_harmonic"])
def test_rests_are_zero_after_the_epochs_of_the_schedule(tmp_path, conv):
    trainer, net = make_trainer(tmp_path, conv=conv)
    sizes, kept = [], []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: sizes.append(max(rest_sizes(net).values())))
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: kept.append(sorted(torch.load(tmp_path / "model.pt", weights_only=True)))
    )
    trainer.run()
    last = ANNEALED * 3
    assert all(size > 0 for size in sizes[: last - 1])
    assert all(size <= (1 - (i + 1) / last) ** 3 + 1e-6 for i, size in enumerate(sizes[:last]))
    assert sizes[last - 1 :] == [0.0] * (len(sizes) - last + 1)
    # the best score is reset at the first network without rests
    assert any("rest.weight" in key for key in kept[0])
    ordinary = convert_to_gmr(make_original(), conv=conv, spatial_size=(16, 16))
    assert kept[ANNEALED - 1] == kept[-1] == sorted(ordinary.state_dict())
    ordinary.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    for size in (16, 17):
        assert equivariance_error(ordinary.eval(), torch.randn(1, 1, size, size)).worst < 1e-5
    assert type(drop_rests(net)[0]) is type(ordinary[0])


@pytest.mark.parametrize("killed_in", [1, 2, 3])
def test_a_training_that_resumes_ends_as_one_that_was_not_interrupted(tmp_path, killed_in):
    trainer, expected = make_trainer(tmp_path / "whole")
    trainer.run()
    trainer, _ = make_trainer(tmp_path / "parts")

    def kill(engine):
        if engine.state.epoch == killed_in and engine.state.iteration % 3 == 2:
            raise Killed

    trainer.add_event_handler(Events.ITERATION_COMPLETED, kill)
    with pytest.raises(Killed):
        trainer.run()
    trainer, net = make_trainer(tmp_path / "parts")
    trainer.run()
    for one, other in zip(net.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def refusals(folder):
    _, net = make_trainer(folder)
    optimizer = torch.optim.SGD(net.parameters())
    plain = make_original()
    yield lambda: AnnealRests(net, optimizer, epochs=0), "epochs=0 is impossible: give a whole number of at least 1"
    yield lambda: AnnealRests(net, optimizer, epochs=1.5), "epochs=1.5 is impossible"
    yield lambda: AnnealRests(net, optimizer, 1, strength=-1), "strength=-1 is impossible: give a number of at least 0"
    yield lambda: AnnealRests(net, optimizer, 1, power="2"), "power='2' is impossible"
    yield lambda: AnnealRests(plain, optimizer, 1), "has no rests of trained kernels"
    yield lambda: AnnealRests(net, torch.optim.SGD(plain.parameters()), 1), "does not hold the rests"
    yield make_trainer(folder, epochs=1)[0].run, "rises over 2 epochs and the training ends after 1"


@pytest.mark.parametrize("case", range(7))
def test_refusals_are_one_sentence(tmp_path, case):
    call, message = list(refusals(tmp_path))[case]
    with pytest.raises(ConfigurationError, match=message):
        call()
