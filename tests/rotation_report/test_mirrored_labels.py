"""Left and right in the report: a network that distinguishes them is right on mirror images, whose labels are exchanged."""

import pytest
import torch
from monai.data import Dataset
from monai.transforms import AsDiscreted
from small_reports import find, make_dice, make_evaluator, make_report

from monai_gmr.utils import ConfigurationError

DISCRETE = AsDiscreted(keys=["pred", "label"], argmax=[True, False], to_onehot=3)


class LeftAndRight(torch.nn.Module):
    """A network that predicts class 1 for bodies in the first half of the image, else class 2."""

    def forward(self, x):
        first = torch.arange(x.shape[2])[:, None] < x.shape[2] / 2
        return torch.cat([0.5 - x, (x - 0.5) * first, (x - 0.5) * ~first], 1)


def evaluator(batch_size=2):
    image, label = torch.zeros(1, 12, 10), torch.zeros(1, 12, 10)
    for value, rows in ((1, slice(1, 4)), (2, slice(8, 11))):
        image[:, rows, 3:8], label[:, rows, 3:8] = 1, value
    metrics = {"key_val_metric": make_dice(include_background=False), "postprocessing": DISCRETE}
    return make_evaluator(
        LeftAndRight(), dataset=Dataset([{"image": image, "label": label}] * 2), batch_size=batch_size, **metrics
    )


@pytest.mark.parametrize("frame", ["rotated", "upright"])
@pytest.mark.parametrize(("pairs", "dice"), [([], 0.0), ([(1, 2)], 1.0)])
def test_mirror_images_are_judged_by_mirrored_labels(tmp_path, frame, pairs, dice):
    rows = make_report(evaluator(), tmp_path, views="m", mirrored_labels=pairs, frame=frame, in_ball=False).run()
    assert find(rows, metric="dice", family="upright")["mean"] == 1
    # the mean of the upright image and its mirror image, or only the latter
    assert find(rows, metric="dice", family="group")["worst"] == pytest.approx(dice)
    error = find(rows, metric="equivariance_error", family="group")["worst"]
    assert error < 1e-6 if pairs else error > 0.1


def test_averages_and_rotated_answers_trade_places_too(tmp_path):
    options = {"views": "m", "average": "m", "rotated_answers": True, "in_ball": False}
    blind = make_report(evaluator(), tmp_path / "blind", **options).run()
    seeing = make_report(evaluator(), tmp_path / "seeing", mirrored_labels=[(1, 2)], **options).run()
    names = {row["network"] for row in seeing}
    assert len(names) == 3
    for name in names:
        assert find(seeing, network=name, metric="dice", family="group")["worst"] == pytest.approx(1)
    assert min(row["worst"] for row in blind if row["metric"] == "dice") < 0.6


def test_records_of_other_pairs_are_replaced(tmp_path, capsys):
    make_report(evaluator(), tmp_path, views="m").run()
    rows = make_report(evaluator(), tmp_path, views="m", mirrored_labels=[(1, 2)], in_ball=False).run()
    assert "are replaced" in capsys.readouterr().out
    assert find(rows, metric="dice", family="group")["worst"] == pytest.approx(1)


def test_bad_pairs_are_one_sentence(tmp_path):
    with pytest.raises(ConfigurationError, match="give pairs of whole numbers"):
        make_report(evaluator(), tmp_path, mirrored_labels=[(1, 1)])
