"""Tests that a non-finite loss, gradient, weight or score ends a training before a good checkpoint is lost."""

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import MeanSquaredError, ValidationHandler, from_engine
from monai.utils import CommonKeys

from monai_gmr.handlers import BestCheckpoint, LatestCheckpoint, StopAtNotFinite
from monai_gmr.handlers.not_finite import name_cases
from monai_gmr.utils import ConfigurationError

NAN, INF = float("nan"), float("inf")


class InfiniteGradient(torch.autograd.Function):
    """Identity with an infinite gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * INF


def make_trainer(folder, data, epochs=3, loss=None, stop=True, scores=None, batch_size=1):
    """Makes a training of a linear net with a validation after each epoch; ``scores`` can be given."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    best = BestCheckpoint(str(folder), network)
    metric = MeanSquaredError(output_transform=from_engine(["pred", "label"]))
    good = [{"image": torch.ones(1, 4), "label": torch.ones(1)}]
    validator = SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(good), batch_size=1),
        network,
        key_val_metric={"error": metric},
        metric_cmp_fn=lambda new, old: new < old,
        val_handlers=[best],
    )
    if scores is not None:
        given = iter(scores)
        metric.compute = lambda: next(given)
    trainer = SupervisedTrainer(
        torch.device("cpu"),
        epochs,
        DataLoader(Dataset(data), batch_size=batch_size),
        network,
        optimizer,
        loss or torch.nn.MSELoss(),
        train_handlers=[
            *([StopAtNotFinite()] if stop else []),
            ValidationHandler(1, validator),
            LatestCheckpoint(folder, {"model": network, "optimizer": optimizer}, validator=validator, best_saver=best),
        ],
    )
    return trainer, validator


def make_data(poisoned=None, part="image", value=NAN):
    data = []
    for case in range(4):
        item = {"image": MetaTensor(torch.ones(1, 4), meta={"filename_or_obj": f"/data/case_{case}.nii.gz"})}
        item["label"] = torch.ones(1)
        if case == poisoned:
            item[part] = item[part].clone()
            item[part].view(-1)[-1] = value
        data.append(item)
    return data


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*.pt")}


@pytest.mark.parametrize(("part", "value"), [("image", NAN), ("image", INF), ("image", -INF), ("label", NAN)])
@pytest.mark.parametrize("poisoned", [0, 2, 3])
def test_a_poisoned_case_is_named_and_the_checkpoints_stay(part, value, poisoned, tmp_path):
    make_trainer(tmp_path, make_data(), epochs=1)[0].run()
    before = contents(tmp_path)
    assert set(before) == {"model.pt", "latest.pt"}
    trainer, _ = make_trainer(tmp_path, make_data(poisoned, part, value))
    with pytest.raises(ConfigurationError) as caught:
        trainer.run()
    sentence = str(caught.value)
    assert f"in epoch 2, batch {poisoned + 1}," in sentence
    assert f"values that are not finite: /data/case_{poisoned}.nii.gz;" in sentence
    assert contents(tmp_path) == before
    assert all(torch.isfinite(parameter).all() for parameter in trainer.network.parameters())


def test_a_finite_case_with_a_loss_that_is_not_is_named_too(tmp_path):
    trainer, _ = make_trainer(tmp_path, make_data(), loss=lambda pred, label: (pred * 1e30).square().sum())
    with pytest.raises(ConfigurationError, match=r"the loss is inf, with the cases /data/case_0.nii.gz: look at their"):
        trainer.run()


def test_gradients_that_are_not_finite_stop_a_finite_loss(tmp_path):
    trainer, _ = make_trainer(tmp_path, make_data(), loss=lambda pred, label: InfiniteGradient.apply(pred).sum())
    before = [parameter.clone() for parameter in trainer.network.parameters()]
    with pytest.raises(ConfigurationError, match=r"gradients are not finite though the loss is, .*case_0.nii.gz"):
        trainer.run()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters()))
    assert not contents(tmp_path)


def test_gradients_are_left_to_a_scaler_that_is_on(tmp_path):
    class Scaler:
        def is_enabled(self):
            return True

    trainer, _ = make_trainer(tmp_path, make_data(), loss=lambda pred, label: InfiniteGradient.apply(pred).sum())
    trainer.network(torch.ones(1, 4)).sum().backward()
    trainer.state.output = {CommonKeys.LOSS: torch.tensor(1.0)}
    trainer.network[1].weight.grad[0, 0] = INF
    trainer.amp, trainer.scaler = True, Scaler()
    StopAtNotFinite()(trainer)
    trainer.state.output = {CommonKeys.LOSS: torch.tensor(NAN)}
    trainer.state.epoch, trainer.state.iteration, trainer.state.epoch_length = 1, 1, 4
    trainer.state.batch = make_data()[0]
    with pytest.raises(ConfigurationError, match="the loss is nan"):
        StopAtNotFinite()(trainer)


def test_gradients_are_not_changed(tmp_path):
    trained = []
    for stop in (True, False):
        trainer, _ = make_trainer(tmp_path / str(stop), make_data(), stop=stop)
        trainer.run()
        trained.append([parameter.detach().clone() for parameter in trainer.network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*trained))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_broken_weights_replace_no_checkpoint(value, tmp_path):
    make_trainer(tmp_path, make_data(), epochs=1)[0].run()
    before = contents(tmp_path)
    trainer, _ = make_trainer(tmp_path, make_data(), epochs=3)

    @trainer.on(IterationEvents.MODEL_COMPLETED)
    def break_weights(engine):
        if engine.state.epoch == 2 and engine.state.iteration == 8:
            engine.network[1].bias.data[0] = value

    with pytest.raises(ConfigurationError, match=r"was not saved to .*, holds weights that are not finite .*1\.bias"):
        trainer.run()
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("scores", "best", "epoch"),
    [
        ([NAN, 3.0, 2.0], 2.0, 3),
        ([3.0, NAN, 4.0], 3.0, 1),
        ([3.0, -INF, 2.0], 2.0, 3),
        ([INF, NAN, 5.0], 5.0, 3),
    ],
)
def test_a_score_that_is_not_finite_is_passed_over(scores, best, epoch, tmp_path, caplog):
    trainer, validator = make_trainer(tmp_path, make_data(), scores=scores)
    trainer.run()
    assert (validator.state.best_metric, validator.state.best_metric_epoch) == (best, epoch)
    assert "model.pt stays as it is" in caplog.text
    latest = torch.load(tmp_path / "latest.pt", weights_only=True)
    model = torch.load(tmp_path / "model.pt", weights_only=True)
    same = all(torch.equal(latest["model"][name], tensor) for name, tensor in model.items())
    assert same == (epoch == 3)


def test_scores_that_are_never_finite_leave_no_best_network(tmp_path):
    trainer, validator = make_trainer(tmp_path, make_data(), scores=[NAN] * 3)
    trainer.run()
    assert set(contents(tmp_path)) == {"latest.pt"}
    assert validator.state.best_metric_epoch == -1


@pytest.mark.parametrize("broken", [[], ["a"], ["a", "c"]])
@pytest.mark.parametrize("collated", [True, False])
def test_cases_of_a_batch_have_names(broken, collated):
    images = torch.zeros(3, 1, 2, 2)
    names = ["a", "b", "c"]
    for name in broken:
        images[names.index(name), 0, 1, 1] = NAN
    batch = {"image": images, "label": torch.zeros(3, 1), "name": names}
    if not collated:
        batch = [{"image": images[i : i + 1], "name": names[i : i + 1]} for i in range(3)]
    assert name_cases(batch) == (broken or names, bool(broken))


def test_cases_without_a_name_have_a_place():
    assert name_cases({"image": torch.tensor([[0.0], [NAN]])}) == (["sample 2 of the batch"], True)
    patches = MetaTensor(torch.zeros(4, 1, 2), meta={"filename_or_obj": ["x.nii", "x.nii", "y.nii", "y.nii"]})
    assert name_cases({"image": patches}) == (["x.nii", "y.nii"], False)
