"""Tests that a resumed training ends like an uninterrupted one."""

import subprocess
import time
from functools import partial

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointSaver, LrScheduleHandler, MeanSquaredError, ValidationHandler, from_engine
from monai.transforms import RandGaussianNoised

from monai_gmr.handlers import BestCheckpoint, LatestCheckpoint, SeedEpochs, TrainingProgress
from monai_gmr.utils import ConfigurationError

EPOCHS = 5
MONAIS = {"save_key_metric": True, "key_metric_filename": "model.pt"}


class Killed(Exception):
    """Stand-in for a kill at a moment chosen by the test."""


def make_adamw(parameters, **settings):
    """The optimizer of a training whose settings are not tested."""
    return torch.optim.AdamW(parameters, **{"lr": 0.05, **settings})


def train(
    folder,
    epochs=EPOCHS,
    killed_in=None,
    batch_size=2,
    network=None,
    saver=BestCheckpoint,
    val_interval=1,
    make_optimizer=make_adamw,
    **arguments,
):
    """Runs a small training with everything that must be restored: momentum, schedule, dropout, noise, best model."""
    torch.manual_seed(0)
    network = network or torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 1))
    data = [{"image": torch.rand(4), "label": torch.rand(1)} for _ in range(8)]
    dataset = Dataset(data, RandGaussianNoised("image", prob=1.0))
    optimizer = make_optimizer(network.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / EPOCHS / 2)
    metric = MeanSquaredError(output_transform=from_engine(["pred", "label"]))
    best_saver = saver(folder, network) if saver is BestCheckpoint else saver(str(folder), {"model": network}, **MONAIS)
    validator = SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(data), batch_size=4),
        network,
        key_val_metric={"error": metric},
        val_handlers=[best_saver],
    )
    latest = LatestCheckpoint(
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
            ValidationHandler(val_interval, validator),
            latest,
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


@pytest.mark.parametrize("saver", [BestCheckpoint, CheckpointSaver])
@pytest.mark.parametrize("killed_in", [1, 2, 4])
def test_a_resumed_training_equals_an_uninterrupted_one(killed_in, saver, tmp_path):
    network, optimizer, validator, _ = train(tmp_path / "whole", saver=saver)
    with pytest.raises(Killed):
        train(tmp_path / "broken", killed_in=killed_in, saver=saver)
    resumed, resumed_optimizer, resumed_validator, trained = train(tmp_path / "broken", saver=saver)
    assert trained == list(range(killed_in, EPOCHS + 1))
    for expected, found in zip(network.state_dict().values(), resumed.state_dict().values()):
        assert torch.equal(expected, found)
    assert optimizer.param_groups[0]["lr"] == resumed_optimizer.param_groups[0]["lr"]
    for name in ("best_metric", "best_metric_epoch"):
        assert getattr(validator.state, name) == pytest.approx(getattr(resumed_validator.state, name))
    best = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "broken")]
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in best)))


@pytest.mark.parametrize("killed_in", [2, 4])
def test_the_history_has_each_epoch_once_and_no_stop(killed_in, tmp_path):
    start = time.monotonic()
    train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "broken", killed_in=killed_in)
    running = time.monotonic() - start
    time.sleep(0.5)
    start = time.monotonic()
    train(tmp_path / "broken")
    running += time.monotonic() - start
    whole, broken = (
        torch.load(tmp_path / name / "latest.pt", weights_only=True)["best"]["history"] for name in ("whole", "broken")
    )
    assert [row["epoch"] for row in broken] == list(range(1, EPOCHS + 1))
    assert [row["score"] for row in broken] == pytest.approx([row["score"] for row in whole])
    assert 0 < sum(row["seconds"] for row in broken) < running
    # one thread, and slightly more if libraries start others
    assert all(0 < row["processor_seconds"] < 10 * row["seconds"] + 0.1 for row in broken)


def test_an_epoch_without_validation_has_no_score(tmp_path):
    train(tmp_path, val_interval=2)
    history = torch.load(tmp_path / "latest.pt", weights_only=True)["best"]["history"]
    assert [row["score"] is None for row in history] == [True, False, True, False, True]


def test_a_checkpoint_without_a_history_resumes(tmp_path):
    train(tmp_path, epochs=2)
    latest = torch.load(tmp_path / "latest.pt", weights_only=True)
    del latest["best"]["history"]
    torch.save(latest, tmp_path / "latest.pt")
    train(tmp_path)
    history = torch.load(tmp_path / "latest.pt", weights_only=True)["best"]["history"]
    assert [row["epoch"] for row in history] == list(range(3, EPOCHS + 1))


def test_a_worse_epoch_after_resuming_leaves_the_best_model(tmp_path):
    train(tmp_path, epochs=2)
    latest = torch.load(tmp_path / "latest.pt", weights_only=True)
    latest["best"] = {"best_metric": 1e9, "best_metric_epoch": 1}
    torch.save(latest, tmp_path / "latest.pt")
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
    with pytest.raises(ConfigurationError, match=r"is of another network.*--resume False"):
        train(tmp_path, network=torch.nn.Linear(4, 1))


@pytest.mark.parametrize("settings", [{"lr": 0.005}, {"weight_decay": 0.5}, {"lr": 0.1, "weight_decay": 0.0}])
def test_another_learning_rate_or_weight_decay_is_taken(settings, tmp_path, caplog):
    for name in ("same", "changed"):
        train(tmp_path / name, epochs=3)
    network, _, _, _ = train(tmp_path / "same")
    with caplog.at_level("INFO"):
        changed, optimizer, _, trained = train(tmp_path / "changed", make_optimizer=partial(make_adamw, **settings))
    assert trained == [4, 5]
    assert caplog.text.count("Changes the ") == len(settings)
    (group,) = optimizer.param_groups
    expected = {"lr": 0.05, "weight_decay": 0.01} | settings
    assert group["weight_decay"] == expected["weight_decay"]
    assert group["initial_lr"] == expected["lr"]
    # the schedule's factor after five epochs
    assert group["lr"] == pytest.approx(expected["lr"] / 2)
    assert not any(torch.equal(a, b) for a, b in zip(network.state_dict().values(), changed.state_dict().values()))
    assert torch.load(tmp_path / "changed" / "latest.pt", weights_only=True)["lr_scheduler"]["base_lrs"] == [
        expected["lr"]
    ]


def test_a_changed_rate_is_that_of_a_training_that_changes_it_itself(tmp_path):
    train(tmp_path, epochs=3)
    resumed, _, _, _ = train(tmp_path, make_optimizer=partial(make_adamw, lr=0.01))

    def make_changing(parameters):
        optimizer, steps = make_adamw(parameters), []

        def change(optimizer, *_, factor):
            # from the fourth epoch of four steps on
            if len(steps) >= 12:
                optimizer.param_groups[0]["lr"] *= factor

        optimizer.register_step_pre_hook(partial(change, factor=0.2))
        optimizer.register_step_post_hook(partial(change, factor=5))
        optimizer.register_step_post_hook(lambda *_: steps.append(1))
        return optimizer

    whole, _, _, _ = train(tmp_path / "whole", make_optimizer=make_changing)
    for one, other in zip(resumed.state_dict().values(), whole.state_dict().values()):
        assert torch.allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("other", [torch.optim.SGD, torch.optim.Adam])
def test_another_optimizer_is_refused_and_the_files_stay(other, tmp_path):
    train(tmp_path, epochs=1)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    with pytest.raises(ConfigurationError, match=f"with the optimizer AdamW, here {other.__name__}: give the settings"):
        train(tmp_path, make_optimizer=partial(other, lr=0.05))
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")} == before


CASES = [[{"image": [0.5, 1.5], "label": 1}, {"image": [2.5, 3.5], "label": 0}], [{"image": [4.5, 5.5], "label": 1}]]
FEWER, OTHER = [CASES[0][:1], CASES[1]], [CASES[0], [{"image": [4.5, 5.5], "label": 0}]]


@pytest.mark.parametrize(
    ("first", "then", "match"),
    [
        ({"seed": 0}, {"seed": 1}, r"with seed=0, here 1: give --seed 0, give another --ckpt_dir"),
        ({"cases": CASES}, {"cases": FEWER}, r"other data \(2 and 1 cases, here 1 and 1\): give another --ckpt_dir"),
        ({"cases": CASES}, {"cases": OTHER}, r"other data \(as many cases, 2 and 1, of other files or values\): give"),
        ({"cases": CASES, "seed": 3}, {"cases": CASES, "seed": 3}, None),
        ({"cases": CASES, "seed": 3}, {}, None),
        ({}, {"cases": CASES, "seed": 3}, None),
    ],
)
def test_other_cases_or_another_seed_are_refused(first, then, match, tmp_path):
    """Refused only if both state them: a checkpoint of an earlier version states neither."""
    train(tmp_path, epochs=1, **first)
    assert torch.load(tmp_path / "latest.pt", weights_only=True)["made_with"].get("seed") == first.get("seed")
    if match is None:
        assert train(tmp_path, epochs=2, **then)[-1] == [2]
        return
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    with pytest.raises(ConfigurationError, match=rf"latest\.pt is of a training .*{match}.*--resume False") as caught:
        train(tmp_path, epochs=2, **then)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")} == before
    assert train(tmp_path, epochs=1, resume=False, **then)[-1] == [1]


def with_activation(kind):
    return torch.nn.Sequential(torch.nn.Linear(4, 4), kind(), torch.nn.Linear(4, 1))


def test_another_network_of_equal_shapes_does_not_resume(tmp_path):
    train(tmp_path, epochs=1, network=with_activation(torch.nn.ReLU))
    with pytest.raises(
        ConfigurationError, match=r"another network \(its 1 is ReLU, here Tanh\): give the settings .*, give"
    ):
        train(tmp_path, epochs=2, network=with_activation(torch.nn.Tanh))
    assert train(tmp_path, epochs=2, network=with_activation(torch.nn.ReLU))[-1] == [2]


def test_checkpoints_without_a_description_resume(tmp_path):
    train(tmp_path, epochs=1, network=with_activation(torch.nn.ReLU))
    latest = torch.load(tmp_path / "latest.pt", weights_only=True)
    del latest["made_with"]
    torch.save({**latest, "model": dict(latest["model"])}, tmp_path / "latest.pt")
    torch.save(dict(torch.load(tmp_path / "model.pt", weights_only=True)), tmp_path / "model.pt")
    assert train(tmp_path, epochs=2, network=with_activation(torch.nn.Tanh), seed=1)[-1] == [2]


def test_a_best_model_of_another_network_is_written_again(tmp_path, caplog):
    network = with_activation(torch.nn.ReLU)
    train(tmp_path / "other", epochs=1, network=with_activation(torch.nn.Tanh))
    train(tmp_path / "own", epochs=1, network=network)
    (tmp_path / "other" / "model.pt").replace(tmp_path / "own" / "model.pt")
    train(tmp_path / "own", epochs=2, network=network)
    assert "The next validation writes it anew." in caplog.text
    best = torch.load(tmp_path / "own" / "model.pt", weights_only=True)
    assert all(torch.equal(best[name], value) for name, value in network.state_dict().items())


def damage(kind, path):
    """Replaces a good checkpoint."""
    latest = torch.load(path, weights_only=True)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "hostile":
        torch.save({**latest, "model": torch.nn.Linear(1, 1)}, path)
    elif kind == "nan":
        latest["model"]["0.bias"][1] = float("nan")
        torch.save(latest, path)
    elif kind == "nan in the optimizer":
        latest["optimizer"]["state"][0]["exp_avg"][0] = float("nan")
        torch.save(latest, path)
    elif kind == "nan in a rate":
        latest["optimizer"]["param_groups"][0]["lr"] = float("nan")
        torch.save(latest, path)
    elif kind == "nan in the schedule":
        latest["lr_scheduler"]["base_lrs"] = [float("nan")]
        torch.save(latest, path)
    else:
        others = {"list": [1, 2], "tensor": torch.ones(3), "lacking": {"model": latest["model"]}}
        others |= {part: {**latest, part: 3} for part in ("model", "optimizer", "lr_scheduler", "trainer", "best")}
        torch.save(others[kind], path)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("empty", "it is empty"),
        ("truncated", "its end is missing"),
        ("hostile", "could run any program"),
        ("nan", r"not finite \(the first in 0\.bias\)"),
        ("nan in the optimizer", "holds NaN in the state of the optimizer"),
        ("nan in a rate", "holds NaN in the state of the optimizer"),
        ("nan in the schedule", "holds NaN in the state of the lr_scheduler"),
        ("list", "not a checkpoint of such a training"),
        ("tensor", "not a checkpoint of such a training"),
        ("lacking", "not a checkpoint of such a training, which holds model, optimizer"),
        ("model", "another network or optimizer"),
        ("optimizer", "another network or optimizer"),
        ("lr_scheduler", "another network or optimizer"),
        ("trainer", "another network or optimizer"),
        ("best", "another network or optimizer"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence_and_stays(kind, match, tmp_path):
    train(tmp_path, epochs=2)
    damage(kind, tmp_path / "latest.pt")
    before = (tmp_path / "latest.pt").read_bytes()
    with pytest.raises(ConfigurationError, match=rf"latest.pt .*{match}.*--resume False") as caught:
        train(tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "latest.pt").read_bytes() == before
    assert train(tmp_path, epochs=1, resume=False)[-1] == [1]


@pytest.mark.parametrize("kind", ["empty", "truncated", "nan"])
def test_a_damaged_best_model_is_written_again(kind, tmp_path, caplog):
    own = BestCheckpoint(tmp_path, torch.nn.Linear(1, 1))
    train(tmp_path, epochs=2)
    model = torch.load(tmp_path / "model.pt", weights_only=True)
    if kind == "nan":
        model["0.bias"][:] = float("nan")
        torch.save(model, tmp_path / "model.pt")
    else:
        own.path.write_bytes(b"" if kind == "empty" else own.path.read_bytes()[:-200])
    train(tmp_path, epochs=3)
    assert "The next validation writes it anew." in caplog.text
    best = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in best.values())


@pytest.mark.parametrize("kind", ["latest.pt", "model.pt", "both"])
def test_a_folder_in_the_place_of_a_checkpoint_is_refused_before_training(kind, tmp_path):
    names = ("latest.pt", "model.pt") if kind == "both" else (kind,)
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigurationError, match=rf"{names[0]} is a folder and this run writes a file of that name"):
        train(tmp_path, epochs=1)
    assert sum(file.is_file() for file in tmp_path.iterdir()) == 0


def test_what_killed_processes_left_is_removed(tmp_path):
    for name in (".7_c0ffee00.part_latest.pt", ".7_c0ffee00.part_model.pt"):
        (tmp_path / name).touch()
    train(tmp_path, epochs=1)
    assert {file.name for file in tmp_path.iterdir()} - {".in_use.lock"} == {"model.pt", "latest.pt"}


def test_a_folder_is_free_when_a_training_has_ended(tmp_path, forked_python):
    train(tmp_path, epochs=1)
    take = f"from monai_gmr.files import FolderLock; FolderLock({str(tmp_path)!r})"
    done = subprocess.run([forked_python, "-c", take], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
