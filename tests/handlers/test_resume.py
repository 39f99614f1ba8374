"""A training that is broken off and started again ends like one that was not."""

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointSaver, LrScheduleHandler, MeanSquaredError, ValidationHandler, from_engine
from monai.transforms import RandGaussianNoised

from monai_gmr.handlers import NewestCheckpoint, SeedEpochs, TrainingProgress
from monai_gmr.utils import ConfigurationError

EPOCHS = 5


class Killed(Exception):
    """Stands for a kill at a moment that the test chooses."""


def train(folder, epochs=EPOCHS, killed_in=None, batch_size=2, network=None, **arguments):
    """A small training with everything that must continue: momentum, schedule, dropout, noise, best model."""
    torch.manual_seed(0)
    network = network or torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 1))
    data = [{"image": torch.rand(4), "label": torch.rand(1)} for _ in range(8)]
    dataset = Dataset(data, RandGaussianNoised("image", prob=1.0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / EPOCHS / 2)
    metric = MeanSquaredError(output_transform=from_engine(["pred", "label"]))
    best_saver = CheckpointSaver(
        str(folder),
        {"model": network},
        save_key_metric=True,
        key_metric_filename="model.pt",
    )
    validator = SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(data), batch_size=4),
        network,
        key_val_metric={"error": metric},
        val_handlers=[best_saver],
    )
    newest = NewestCheckpoint(
        folder,
        {"model": network, "optimizer": optimizer, "lr_scheduler": scheduler},
        validator=validator,
        best_saver=best_saver,
        **arguments,
    )
    trainer = SupervisedTrainer(
        torch.device("cpu"),
        epochs,
        DataLoader(dataset, batch_size=batch_size, shuffle=True),
        network,
        optimizer,
        torch.nn.MSELoss(),
        train_handlers=[
            SeedEpochs(7, dataset),
            LrScheduleHandler(scheduler, print_lr=False),
            TrainingProgress(validator),
            ValidationHandler(1, validator),
            newest,
        ],
    )
    trained = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: trained.append(engine.state.epoch))
    if killed_in is not None:

        def kill(engine):
            if engine.state.epoch == killed_in and engine.state.iteration % engine.state.epoch_length == 2:
                raise Killed

        trainer.add_event_handler(Events.ITERATION_COMPLETED, kill)
    trainer.run()
    return network, optimizer, validator, trained


@pytest.mark.parametrize("killed_in", [1, 2, 4])
def test_a_resumed_training_equals_an_uninterrupted_one(killed_in, tmp_path):
    network, optimizer, validator, _ = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "broken", killed_in=killed_in)
    resumed, resumed_optimizer, resumed_validator, trained = train(tmp_path / "broken")
    assert trained == list(range(killed_in, EPOCHS + 1))
    for expected, found in zip(network.state_dict().values(), resumed.state_dict().values()):
        assert torch.equal(expected, found)
    assert optimizer.param_groups[0]["lr"] == resumed_optimizer.param_groups[0]["lr"]
    for name in ("best_metric", "best_metric_epoch"):
        assert getattr(validator.state, name) == pytest.approx(getattr(resumed_validator.state, name))
    best = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "broken")]
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in best)))


def test_a_worse_epoch_after_resuming_leaves_the_best_model(tmp_path):
    train(tmp_path, epochs=2)
    newest = torch.load(tmp_path / "newest.pt", weights_only=True)
    newest["best"] = {"best_metric": 1e9, "best_metric_epoch": 1}
    torch.save(newest, tmp_path / "newest.pt")
    before = (tmp_path / "model.pt").read_bytes()
    _, _, validator, _ = train(tmp_path)
    assert (tmp_path / "model.pt").read_bytes() == before
    assert validator.state.best_metric == 1e9


def test_a_lost_best_model_is_written_again(tmp_path):
    train(tmp_path, epochs=2)
    (tmp_path / "model.pt").unlink()
    train(tmp_path, epochs=3)
    assert (tmp_path / "model.pt").is_file()


def test_every_validation_is_a_line(tmp_path, capsys):
    train(tmp_path, epochs=2)
    printed = capsys.readouterr()
    for epoch in (1, 2):
        assert f"epoch {epoch}: loss" in printed.out
    assert "8/8" in printed.err


def test_a_finished_training_does_nothing_and_can_be_continued(tmp_path):
    train(tmp_path, epochs=2)
    assert train(tmp_path, epochs=2)[-1] == []
    assert train(tmp_path, epochs=4)[-1] == [3, 4]


def test_another_batch_size_keeps_the_epoch_count(tmp_path):
    train(tmp_path, epochs=2)
    assert train(tmp_path, epochs=3, batch_size=4)[-1] == [3]


def test_starting_anew_when_asked(tmp_path):
    train(tmp_path, epochs=2)
    assert train(tmp_path, epochs=2, resume=False)[-1] == [1, 2]


def test_checkpoints_that_cannot_be_continued_are_refused_in_one_sentence(tmp_path):
    train(tmp_path, epochs=3)
    with pytest.raises(ConfigurationError, match="has run 3 epochs and epochs=2: give more --epochs"):
        train(tmp_path, epochs=2)
    with pytest.raises(ConfigurationError, match=r"another network or optimizer.*--resume False"):
        train(tmp_path, network=torch.nn.Linear(4, 1))
