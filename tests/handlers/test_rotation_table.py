"""The rotation table scores every view with the evaluator's own metrics, and says what moved."""

import csv
import logging

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice
from monai.transforms import AsDiscreted

from monai_gmr.engines import PrepareBatchView
from monai_gmr.handlers import RotationTable, from_engine_in_ball
from monai_gmr.handlers.rotation_table import read_view_rows
from monai_gmr.symmetry import angle_views, group_views, inscribed_ball
from monai_gmr.utils import ConfigurationError

SHAPE = (16, 16)


class Brightness(torch.nn.Module):
    """Foreground where the image is bright: does not care how it is turned."""

    def forward(self, x):
        return torch.cat([0.5 - x, x - 0.5], 1)


class UpperHalf(torch.nn.Module):
    """Foreground in the upper half of the image, whatever it shows."""

    def forward(self, x):
        rows = torch.arange(x.shape[2])[:, None].expand(x.shape[2:]) < x.shape[2] // 2
        upper = rows.expand_as(x).float()
        return torch.cat([0.5 - upper, upper - 0.5], 1)


def make_evaluator(network, spatial_dims=2):
    shape = SHAPE if spatial_dims == 2 else (8, 8, 8)
    label = torch.zeros(1, *shape)
    label[:, : shape[0] // 2] = 1
    prepare_batch = PrepareBatchView(order=1)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": label, "label": label}] * 2), batch_size=1),
        network=network,
        prepare_batch=prepare_batch,
        postprocessing=AsDiscreted(keys=["pred", "label"], argmax=[True, False], to_onehot=2),
        key_val_metric={
            "dice": MeanDice(include_background=False, output_transform=from_engine_in_ball(["pred", "label"]))
        },
    )
    return evaluator, prepare_batch


def test_a_network_that_turns_with_the_image_does_not_move(tmp_path, capsys):
    summary = RotationTable(*make_evaluator(Brightness()), tmp_path, spatial_dims=2, angle_step=30).run()
    assert [(row["family"], row["views"]) for row in summary] == [("upright", 1), ("group", 8), ("angles", 9)]
    assert all(row["mean"] == row["worst"] == 1 and row["spread"] == 0 for row in summary[:2])
    assert summary[2]["worst"] > 0.9
    printed = capsys.readouterr().out
    assert "dice" in printed
    assert "spread" in printed


def test_a_network_that_does_not_turn_is_found_out(tmp_path):
    upright, group, _ = RotationTable(*make_evaluator(UpperHalf()), tmp_path, spatial_dims=2, angle_step=30).run()
    assert upright["mean"] == 1
    assert group["worst"] == 0
    assert group["spread"] == 1


def test_files_hold_what_was_measured(tmp_path):
    summary = RotationTable(*make_evaluator(UpperHalf()), tmp_path / "new", spatial_dims=2, angle_step=60).run()
    rows = read_view_rows(tmp_path / "new" / "rotation_views.csv")
    assert [row["view"] for row in rows] == [view.name for view in [*group_views(2), *angle_views(2, 60)]]
    half_turn = next(row for row in rows if row["angle"] == 180)
    assert half_turn["dice"] == 0
    with open(tmp_path / "new" / "rotation_table.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["family"] for row in table] == ["upright", "group", "angles"]
    assert float(table[1]["mean"]) == pytest.approx(summary[1]["mean"])
    for family in ("group", "angles"):
        values = [row["dice"] for row in rows if row["family"] in ("upright", family)]
        found = next(row for row in summary if row["family"] == family)
        assert found["mean"] == pytest.approx(np.mean(values))
        assert found["spread"] == pytest.approx(max(values) - min(values))
    assert (tmp_path / "new" / "rotation_table.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.rglob("*.part"))


def test_views_can_be_few(tmp_path):
    table = RotationTable(*make_evaluator(Brightness(), 3), tmp_path, spatial_dims=3, angle_step=0, group_elements=5)
    assert len(table.views) == 5
    assert table.views[0].family == "upright"
    assert len({view.matrix.tobytes() for view in table.views}) == 5
    summary = table.run()
    assert [(row["family"], row["views"]) for row in summary] == [("upright", 1), ("group", 5)]


def test_the_evaluator_is_upright_again_and_speaks_as_before(tmp_path):
    evaluator, prepare_batch = make_evaluator(Brightness())
    evaluator.logger.setLevel(logging.INFO)
    RotationTable(evaluator, prepare_batch, tmp_path, spatial_dims=2, angle_step=0).run()
    assert prepare_batch.view is None
    assert evaluator.logger.level == logging.INFO
    ticks = []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: ticks.append(1))
    evaluator.run()
    assert evaluator.state.metrics["dice"] == 1
    assert len(ticks) == 2


def test_axes_of_unlike_spacing_are_not_exchanged(tmp_path):
    evaluator, prepare_batch = make_evaluator(Brightness(), 3)
    table = RotationTable(evaluator, prepare_batch, tmp_path, spatial_dims=3, angle_step=0, spacing=(1, 1, 3))
    assert len(table.views) == 16
    assert all(abs(view.matrix[2, 2]) == 1 for view in table.views)


def test_another_run_can_be_shown_beside_it(tmp_path, capsys):
    RotationTable(*make_evaluator(UpperHalf()), tmp_path / "a", spatial_dims=2, angle_step=60).run()
    other = {"upper half": str(tmp_path / "a" / "rotation_views.csv")}
    RotationTable(*make_evaluator(Brightness()), tmp_path / "b", spatial_dims=2, angle_step=60, compare=other).run()
    alone, together = ((tmp_path / name / "rotation_table.png").stat().st_size for name in "ab")
    assert together > alone
    assert "\nupper half\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"angle_step": -1}, "angle_step=-1 is out of range"),
        ({"group_elements": 0}, "group_elements=0 is out of range"),
        ({"compare": {"x": "nowhere.csv"}}, "no table at nowhere.csv"),
        ({"metrics": ["auc"], "angle_step": 0}, "no metric 'auc': it has dice"),
    ],
)
def test_settings_that_cannot_be_used(settings, match, tmp_path):
    with pytest.raises(ConfigurationError, match=match):
        RotationTable(*make_evaluator(Brightness()), tmp_path, **{"spatial_dims": 2, **settings}).run()


@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (5, 6, 7)])
def test_the_ball_masks_predictions_and_labels_alike(shape):
    take = from_engine_in_ball(["pred", "label"])
    pred, label = torch.rand(3, *shape), torch.rand(3, *shape)
    (masked,), (masked_label,) = take([{"pred": pred, "label": label}])
    ball = torch.as_tensor(inscribed_ball(shape))
    assert torch.equal(masked, torch.where(ball, pred, 0))
    assert torch.equal(masked_label, torch.where(ball, label, 0))
