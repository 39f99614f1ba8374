"""The direction of metrics, compared with their values for right and wrong answers."""

import inspect

import ignite.metrics
import monai.metrics
import numpy as np
import pytest
import torch
from ignite.metrics import MeanSquaredError as IgniteMeanSquaredError
from monai.data import Dataset
from monai.handlers import HausdorffDistance, MeanAbsoluteError, MeanSquaredError, SurfaceDistance, from_engine
from monai.metrics import ConfusionMatrixMetric, CumulativeIterationMetric
from small_reports import find, half, make_dice, make_evaluator, make_report, read

from monai_gmr.rotation_report.__main__ import make_parser, read_direction
from monai_gmr.rotation_report.directions import is_smaller_better
from monai_gmr.utils import ConfigurationError

TRUTH = torch.zeros(2, 2, 24, 24)
TRUTH[:, 1, 6:14, 5:15] = 1
TRUTH[:, 0] = 1 - TRUTH[:, 1]
WRONG = TRUTH.roll(5, 2)
# arguments that the classes need
ARGUMENTS = {
    "FBetaScore": {},
    "HausdorffDistanceMetric": {"percentile": 95},
    "LossMetric": {"loss_fn": torch.nn.MSELoss()},
    "MultiScaleSSIMMetric": {"spatial_dims": 2, "kernel_size": 3, "weights": (0.5, 0.5)},
    "PSNRMetric": {"max_val": 1},
    "PanopticQualityMetric": {"num_classes": 1},
    "SSIMMetric": {"spatial_dims": 2},
    "SurfaceDiceMetric": {"class_thresholds": [1.0]},
}
# metrics of one number per case and class
OF_CASES = ("AveragePrecisionMetric", "ROCAUCMetric")
# packages that are not installed, and abstract classes
LEFT_OUT = ("CumulativeIterationMetric", "MetricsReloadedBinary", "MetricsReloadedCategorical")
CLASSES = [
    name
    for name, each in vars(monai.metrics).items()
    if inspect.isclass(each) and issubclass(each, CumulativeIterationMetric) and name not in LEFT_OUT
]


def score(metric, answer, truth):
    metric.reset()
    metric(answer, truth)
    result = metric.aggregate()
    return float(torch.as_tensor(result[0] if isinstance(result, (list, tuple)) else result).float().nanmean())


@pytest.mark.parametrize("name", CLASSES)
def test_every_metric_of_monai_is_known_by_what_it_gives(name):
    """A wrong answer has the larger value exactly if smaller is better."""
    metric = getattr(monai.metrics, name)(**ARGUMENTS.get(name, {}))
    truth, wrong = TRUTH, WRONG
    if name in OF_CASES:
        truth, wrong = torch.eye(2), 1 - torch.eye(2)
    elif name == "PanopticQualityMetric":
        truth, wrong = (torch.stack([each[:, 1], each[:, 1]], 1).int() for each in (TRUTH, WRONG))
    elif name == "PSNRMetric":
        truth = TRUTH * 0.9  # infinite for equal images
        assert score(metric, TRUTH, truth) > score(metric, wrong, truth)
    elif name == "MAPEMetric":
        truth, wrong = TRUTH + 1, WRONG + 1
    elif name == "AbsoluteVolumeDifferenceMetric":
        wrong = (TRUTH + TRUTH.roll(9, 2)).clamp(0, 1)
    right = TRUTH if name == "PSNRMetric" else truth
    assert is_smaller_better(metric) == (score(metric, wrong, truth) > score(metric, right, truth))


@pytest.mark.parametrize(
    "name", ["sensitivity", "precision", "accuracy", "f1 score", "miss rate", "fall out", "false discovery rate", "fnr"]
)
def test_each_score_of_a_confusion_matrix_has_its_own_direction(name):
    metric = ConfusionMatrixMetric(metric_name=name)
    assert is_smaller_better(metric) == (score(metric, WRONG, TRUTH) > score(metric, TRUTH, TRUTH))


@pytest.mark.parametrize(
    ("metric", "smaller"),
    [
        (IgniteMeanSquaredError(), True),
        (ignite.metrics.Loss(torch.nn.functional.mse_loss), True),
        (ignite.metrics.regression.MaximumAbsoluteError(), True),
        (ignite.metrics.regression.R2Score(), False),
        (ignite.metrics.Accuracy(), False),
        (object(), False),
    ],
)
def test_metrics_of_ignite_and_unknown_ones(metric, smaller):
    assert is_smaller_better(metric) == smaller


class Rising(torch.nn.Module):
    """A network that predicts foreground in the upper half of the image plus one row."""

    def forward(self, x):
        rows = (torch.arange(x.shape[2])[:, None] <= x.shape[2] // 2).expand(x.shape[2:]).expand_as(x).float()
        return torch.cat([0.5 - rows, rows - 0.5], 1)


def make_distances(**more):
    """Dice with distances and errors, which are larger in wrong views."""
    take = {"output_transform": from_engine(["pred", "label"])}
    distances = {
        "hd95": HausdorffDistance(percentile=95, **take),
        "assd": SurfaceDistance(**take),
        "mse": MeanSquaredError(**take),
        "mae": MeanAbsoluteError(**take),
    }
    # the second of two cases is wrong upright: the worst cases depend on the direction
    images = [{"image": half(), "label": half()}, {"image": half(), "label": half().roll(3, 1)}]
    return make_evaluator(
        Rising(), dataset=Dataset(images), key_val_metric=make_dice(), additional_metrics=distances | more
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Makes a report with Dice and distances of one evaluator; returns the rows and the folder."""
    folder = tmp_path_factory.mktemp("distances")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monai_gmr.rotation_report.handler.can_draw", lambda: False)
        return make_report(make_distances(), folder, views="4").run(), folder


@pytest.mark.parametrize(("metric", "worst"), [("dice", min), ("hd95", max), ("assd", max), ("mse", max), ("mae", max)])
def test_the_worst_view_goes_by_the_class_of_each_metric(measured, metric, worst):
    rows, folder = measured
    views = [float(row[metric]) for row in read(folder / "rotation_views.csv")]
    assert max(views) > min(views)
    assert find(rows, metric=metric, family="group")["worst"] == pytest.approx(worst(views))


@pytest.mark.parametrize("given", [None, {"hd95": False}])
def test_the_worst_cases_go_by_it_too(tmp_path, monkeypatch, given):
    worst = []
    monkeypatch.setattr("monai_gmr.rotation_report.handler.draw_worst_cases", lambda cases, path: worst.extend(cases))
    settings = {"views": "4", "metrics": ["hd95"], "worst_cases": 1, "greater_is_better": given}
    make_report(make_distances(), tmp_path, **settings).run()
    values = {row["case"]: [] for row in read(tmp_path / "rotation_cases.csv")}
    for row in read(tmp_path / "rotation_cases.csv"):
        values[row["case"]].append(float(row["hd95"]))
    assert worst[0].value == pytest.approx(max(map(max, values.values())))
    assert worst[0].case == max(values, key=lambda case: max(values[case]))


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, [min, max]), (True, [min, min]), (False, [max, max]), ({"hd95": True}, [min, min])],
)
def test_the_direction_can_be_given_for_all_or_by_name(tmp_path, monkeypatch, given, expected):
    monkeypatch.setattr("monai_gmr.rotation_report.handler.can_draw", lambda: False)
    settings = {"views": "4", "metrics": ["dice", "hd95"], "greater_is_better": given}
    rows = make_report(make_distances(), tmp_path, **settings).run()
    for metric, worst in zip(("dice", "hd95"), expected):
        views = [float(row[metric]) for row in read(tmp_path / "rotation_views.csv")]
        assert find(rows, metric=metric, family="group")["worst"] == pytest.approx(worst(views))


def test_a_case_without_a_finite_distance_is_the_worst(tmp_path, monkeypatch):
    """MONAI's distance to an empty answer is infinite."""
    worst = []
    monkeypatch.setattr("monai_gmr.rotation_report.handler.draw_worst_cases", lambda cases, path: worst.extend(cases))

    class Empty(Rising):
        def forward(self, x):
            # nothing in bright images
            answer = super().forward(x)
            empty = torch.cat([torch.ones_like(x), -torch.ones_like(x)], 1)
            return torch.where(x.amax((1, 2, 3), keepdim=True) > 1.5, empty, answer)

    images = [{"image": half(), "label": half()}, {"image": half() + 1, "label": half()}]
    metric = {"distance": HausdorffDistance(output_transform=from_engine(["pred", "label"]))}
    evaluator = make_evaluator(Empty(), dataset=Dataset(images), key_val_metric=metric)
    rows = make_report(evaluator, tmp_path, views="4", worst_cases=1).run()
    assert worst[0].case == "case 1"
    assert np.isinf(find(rows, metric="distance", family="upright")["mean"])
    assert (tmp_path / "report.html").is_file()


def test_a_metric_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(
        ConfigurationError, match="greater_is_better names 'hd', which is not a metric of the evaluator: it"
    ):
        make_report(make_distances(), tmp_path, greater_is_better={"hd": False}).run()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], None),
        (["--smaller_is_better"], False),
        (["--smaller_is_better_for", "hd95", "assd"], {"hd95": False, "assd": False}),
        (["--greater_is_better_for", "gain"], {"gain": True}),
    ],
)
def test_the_command_line_names_metrics(options, expected):
    assert read_direction(make_parser().parse_args(["bundle", *options])) == expected


@pytest.mark.parametrize(
    "options",
    [
        ["--smaller_is_better", "--smaller_is_better_for", "a"],
        ["--smaller_is_better_for", "a", "--greater_is_better_for", "a"],
    ],
)
def test_the_command_line_says_it_once(options):
    with pytest.raises(ConfigurationError, match=r"leave it out where others are named|both name 'a': use one"):
        read_direction(make_parser().parse_args(["bundle", *options]))
