"""The rotation report scores every view with the evaluator's own metrics, and an interrupted one resumes."""

import json
import logging

import numpy as np
import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Accuracy
from monai.data import DataLoader, Dataset, MetaTensor
from monai.handlers import IgniteMetricHandler, MeanAbsoluteError, MeanDice, from_engine
from monai.inferers import SimpleInferer
from monai.transforms import AsDiscreted, Compose, Identityd, SaveImaged
from small_reports import Failing, UpperHalf, find, half, make_evaluator, make_report, read

from monai_gmr.handlers import from_engine_in_ball
from monai_gmr.metrics import MacroAUCMetric
from monai_gmr.symmetry import View, inscribed_ball, make_views, point_group, rotation_matrix, transform_image
from monai_gmr.utils import ConfigurationError


class Brightness(torch.nn.Module):
    """An equivariant network that predicts foreground where the image is bright."""

    def forward(self, x):
        return torch.cat([0.5 - x, x - 0.5], 1)


@pytest.mark.parametrize("labels", ["nearest", "share"])
def test_scores_of_an_equivariant_network_are_equal(tmp_path, capsys, labels):
    views = ["all", {"angles": 30}, {"random": 3}]
    summary = make_report(make_evaluator(Brightness()), tmp_path, views=views, labels=labels).run()
    dice = [row for row in summary if row["metric"] == "dice"]
    assert [(row["family"], row["views"]) for row in dice] == [
        ("upright", 1),
        ("flips", 4),
        ("group", 8),
        ("angles", 9),
        ("turns", 12),
        ("random", 4),
    ]
    assert all(row["mean"] == row["worst"] == 1 and row["spread"] == 0 for row in dice[:3])
    assert dice[3]["worst"] > 0.9
    assert find(summary, metric="equivariance_error", family="group")["worst"] == 0
    printed = capsys.readouterr().out
    assert "dice" in printed
    assert "spread" in printed


def test_scores_of_a_network_that_is_not_equivariant_differ(tmp_path):
    summary = make_report(make_evaluator(UpperHalf()), tmp_path).run()
    assert find(summary, metric="dice", family="upright")["mean"] == 1
    group = find(summary, metric="dice", family="group")
    assert group["worst"] == 0
    assert group["spread"] == 1
    assert find(summary, metric="equivariance_error", family="group")["worst"] == pytest.approx(2)


def test_values_are_those_of_the_evaluator_on_rotated_files(tmp_path):
    """A plain evaluator on images and labels that were rotated beforehand gives the same numbers."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(1, 9, 11, generator=generator) for _ in range(3)]
    labels = [(image > 0.6).float() for image in images]
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    data = [{"image": image, "label": label} for image, label in zip(images, labels)]
    make_report(make_evaluator(network, dataset=Dataset(data)), tmp_path).run()
    rows = {row["view"]: float(row["dice"]) for row in read(tmp_path / "rotation_views.csv")}
    for view in make_views(["all", {"angles": 60}], 2):
        rotated = [
            {
                "image": transform_image(item["image"], view.matrix, order=1),
                "label": transform_image(item["label"], view.matrix, order=0),
            }
            for item in data
        ]
        take = from_engine_in_ball(["pred", "label"])
        metric = {"dice": MeanDice(include_background=False, output_transform=take)}
        evaluator = make_evaluator(network, dataset=Dataset(rotated), key_val_metric=metric)
        evaluator.run()
        assert rows[view.name] == pytest.approx(evaluator.state.metrics["dice"], abs=1e-6)


def test_the_error_of_a_regression_is_that_inside_the_ball(tmp_path):
    images, labels = torch.rand(2, 3, 1, 16, 20), torch.rand(2, 3, 1, 16, 20)
    data = Dataset([{"image": image, "label": label} for image, label in zip(images[0], labels[0])])
    metric = {"mae": MeanAbsoluteError(output_transform=from_engine(["pred", "label"]))}
    evaluator = make_evaluator(
        torch.nn.Identity(), dataset=data, key_val_metric=metric, postprocessing=Identityd(keys="pred")
    )
    report = make_report(evaluator, tmp_path, views=[{"angles": 90}])
    upright = find(report.run(), metric="mae", family="upright")
    ball = torch.as_tensor(inscribed_ball((16, 20)))
    assert upright["mean"] == pytest.approx(float(((images[0] - labels[0]).abs() * ball).mean()), rel=1e-5)
    rows = read(tmp_path / "rotation_views.csv")
    assert [float(row["mae"]) for row in rows] == pytest.approx([upright["mean"]] * len(rows), rel=1e-5)


def test_files_hold_what_was_measured(tmp_path):
    folder = tmp_path / "new"
    summary = make_report(make_evaluator(UpperHalf()), folder).run()
    rows, table, cases = (read(folder / f"rotation_{name}.csv") for name in ("views", "table", "cases"))
    views = make_views(["all", {"angles": 60}], 2)
    assert [row["view"] for row in rows] == [view.name for view in views]
    assert float(next(row for row in rows if row["angle"] == "180.0")["dice"]) == 0
    assert [(row["metric"], row["family"]) for row in table] == [(row["metric"], row["family"]) for row in summary]
    assert float(table[1]["mean"]) == pytest.approx(summary[1]["mean"])
    assert [(row["case"], row["view"]) for row in cases] == [
        (f"case {i}", view.name) for i in range(2) for view in views
    ]
    for view in views:
        values = [float(row["dice"]) for row in cases if row["view"] == view.name]
        assert float(next(row for row in rows if row["view"] == view.name)["dice"]) == pytest.approx(np.mean(values))
    assert (folder / "rotation_table.png").read_bytes()[:4] == b"\x89PNG"
    report = json.loads((folder / "rotation_report.json").read_text())
    assert report["networks"]["this run"]["passes_per_case"] == 1
    assert report["networks"]["this run"]["seconds_per_case"] > 0
    assert len(report["views"]) == len(views)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 8, 9)])
def test_any_network_averaged_over_the_group_is_equivariant(tmp_path, shape):
    """A plain convolution is not equivariant, but its average over the 48 symmetries is; its passes are counted."""
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 2, 3, padding=1)
    data = Dataset([{"image": torch.rand(1, *shape), "label": (torch.rand(1, *shape) > 0.5).float()} for _ in range(2)])
    views = {"group": "all", "count": 6}
    report = make_report(
        {"plain": make_evaluator(network, dataset=data)}, tmp_path, views=views, average="all", views_per_batch=8
    )
    summary = report.run()
    errors = [find(summary, network=name, metric="equivariance_error", family="group") for name in report.networks]
    assert list(report.networks) == ["plain", "plain, 48 views"]
    assert errors[0]["worst"] > 0.1
    assert errors[1]["worst"] < 1e-5
    content = json.loads((tmp_path / "rotation_report.json").read_text())
    assert [content["networks"][name]["passes_per_case"] for name in report.networks] == [1, 48]
    paired = [row for row in content["paired"] if row["family"] == "group"]
    assert [(row["first"], row["second"], row["cases"]) for row in paired] == [("plain", "plain, 48 views", 2)]


def test_the_evaluator_is_as_before(tmp_path):
    evaluator = make_evaluator(UpperHalf())
    evaluator.logger.setLevel(logging.INFO)
    own = (evaluator.prepare_batch, evaluator.inferer, evaluator.data_loader)
    make_report(evaluator, tmp_path).run()
    # metrics are left at the values of the upright images, even during the report
    assert evaluator.state.metrics["dice"] == 1
    assert own == (evaluator.prepare_batch, evaluator.inferer, evaluator.data_loader)
    assert evaluator.logger.level == logging.INFO
    assert not evaluator.network._forward_pre_hooks
    ticks = []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: ticks.append(1))
    evaluator.run()
    assert evaluator.state.metrics["dice"] == 1
    assert len(ticks) == 2


def test_axes_of_unlike_spacing_are_not_exchanged(tmp_path):
    report = make_report(make_evaluator(Brightness(), (8, 8, 8)), tmp_path, views="all", spacing=(1, 1, 3))
    assert len(report.views) == 16
    assert all(abs(view.matrix[2, 2]) == 1 for view in report.views)


def test_unlike_spacing_of_the_images_is_pointed_out(tmp_path, capsys):
    image = MetaTensor(half((8, 8, 8)), affine=torch.diag(torch.tensor([1.0, 1.0, 2.5, 1.0])))
    dataset = Dataset([{"image": image, "label": half((8, 8, 8))}])
    make_report(make_evaluator(Brightness(), dataset=dataset), tmp_path)
    assert "give spacing=[1.0, 1.0, 2.5]" in capsys.readouterr().out


def test_another_report_can_be_shown_and_tested_beside_it(tmp_path, capsys):
    make_report(make_evaluator(UpperHalf()), tmp_path / "a", name="upper").run()
    other = {"upper half": str(tmp_path / "a" / "rotation_views.csv")}
    summary = make_report(make_evaluator(Brightness()), tmp_path / "b", compare=other).run()
    assert {row["network"] for row in summary} == {"this run"}
    assert {row["network"] for row in read(tmp_path / "b" / "rotation_table.csv")} == {"this run", "upper half"}
    assert "this run less upper half" in capsys.readouterr().out


def test_cases_that_fail_are_named_and_the_others_finished(tmp_path, capsys):
    """One case does not load, one has no label, one is too large for the network."""
    fits, large = half(), half((32, 16))
    data = [{"image": fits, "label": fits} for _ in range(4)]
    data[2] = {"image": fits}
    data[3] = {"image": large, "label": large}

    class Small(Brightness):
        def forward(self, x):
            if max(x.shape[2:]) > 16:
                raise RuntimeError("this is too large")
            return super().forward(x)

    summary = make_report(make_evaluator(Small(), dataset=Failing(data, 1)), tmp_path).run()
    assert {row["cases"] for row in summary} == {1}
    assert find(summary, metric="dice", family="group")["mean"] == 1
    printed = capsys.readouterr().out
    assert "case 1 is left out: RuntimeError: no reader for this file\n" in printed
    assert "case 2 is left out: it has no label" in printed
    assert "case 3 is left out: RuntimeError: this is too large" in printed
    failures = json.loads((tmp_path / "rotation_report.json").read_text())["networks"]["this run"]["failures"]
    assert set(failures) == {"case 1", "case 2", "case 3"}


def test_a_batch_keeps_its_other_cases_when_one_does_not_load(tmp_path):
    dataset = Failing([{"image": half(), "label": half()}] * 5, 1)
    evaluator = make_evaluator(Brightness(), dataset=dataset)
    evaluator.data_loader = DataLoader(dataset, batch_size=2)
    summary = make_report(evaluator, tmp_path).run()
    assert {row["cases"] for row in summary} == {4}


def test_without_metrics_the_equivariance_error_is_reported(tmp_path):
    evaluator = make_evaluator(
        UpperHalf(),
        dataset=Dataset([{"image": half()}]),
        key_val_metric=None,
        postprocessing=AsDiscreted(keys="pred", argmax=True),
    )
    summary = make_report(evaluator, tmp_path, worst_cases=1).run()
    assert {row["metric"] for row in summary} == {"equivariance_error"}
    assert find(summary, family="group")["worst"] == pytest.approx(2)
    assert (tmp_path / "worst_cases.png").is_file()


class Several(Brightness):
    """A network with several answers."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        answer = super().forward(x)
        return {"out": answer, "aux": answer * 0} if self.kind is dict else self.kind([answer, answer * 0])


@pytest.mark.parametrize(("kind", "key"), [(tuple, 0), (list, 0), (dict, "out")])
def test_one_of_several_answers_is_judged(tmp_path, kind, key):
    summary = make_report(make_evaluator(Several(kind)), tmp_path, prediction=key).run()
    assert find(summary, metric="dice", family="group")["mean"] == 1


@pytest.mark.parametrize(("kind", "there"), [(tuple, "0, 1"), (dict, "'out', 'aux'")])
def test_a_network_with_several_answers_is_named_and_the_next_one_reported(tmp_path, capsys, kind, there):
    evaluators = {"several": make_evaluator(Several(kind)), "one": make_evaluator(Brightness())}
    summary = make_report(evaluators, tmp_path).run()
    assert {row["network"] for row in summary} == {"one"}
    sentence = f"returned a {kind.__name__} of 2: say which is judged with prediction, one of {there}."
    assert sentence in capsys.readouterr().out
    failures = json.loads((tmp_path / "rotation_report.json").read_text())["networks"]["several"]["failures"]
    assert set(failures) == {"case 0", "case 1"}
    with pytest.raises(ConfigurationError, match="no case could be evaluated; this run, case 0: the network returned"):
        make_report(evaluators["several"], tmp_path / "alone").run()


def test_nothing_is_saved_of_rotated_images(tmp_path):
    out = tmp_path / "saved"
    discrete = AsDiscreted(keys=["pred", "label"], argmax=[True, False], to_onehot=2)
    saving = Compose([discrete, SaveImaged(keys="pred", output_dir=out, print_log=False)])
    make_report(make_evaluator(Brightness(), postprocessing=saving), tmp_path / "report", worst_cases=1).run()
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_predictions_can_be_rotated_back_first(tmp_path):
    """In the upright frame the label is never resampled, and symmetries of the grid give the same scores."""
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    data = Dataset([{"image": torch.rand(1, 9, 11), "label": (torch.rand(1, 9, 11) > 0.5).float()}])
    for frame in ("rotated", "upright"):
        make_report(make_evaluator(network, dataset=data), tmp_path / frame, frame=frame, views="all").run()
    rotated, upright = (read(tmp_path / frame / "rotation_views.csv") for frame in ("rotated", "upright"))
    assert [row["dice"] for row in rotated] == pytest.approx([row["dice"] for row in upright])
    assert len({row["dice"] for row in rotated}) > 2


class Slope(torch.nn.Module):
    """A classifier that tests whether the image is brighter in the upper half."""

    def forward(self, x):
        upper, lower = (part.mean((1, 2, 3)) for part in (x[:, :, :4], x[:, :, 4:]))
        return torch.stack([lower - upper, upper - lower], 1)


def make_classifier(count=12):
    generator = torch.Generator().manual_seed(0)
    items = []
    for number in range(count):
        image = torch.rand(1, 8, 8, generator=generator)
        image[:, :4] += 2.0 * (number % 2)
        image[:, 4:] += 2.0 * (1 - number % 2)
        items.append({"image": image, "label": torch.tensor([number % 2])})
    post = AsDiscreted(keys="label", to_onehot=2)
    take = from_engine(["pred", "label"])
    metrics = {
        "key_val_metric": {
            "auc": IgniteMetricHandler(metric_fn=MacroAUCMetric(), output_transform=take, save_details=False)
        }
    }
    accuracy = Accuracy(
        output_transform=lambda out: (from_engine("pred")(out)[0].argmax()[None], out[0]["label"].argmax()[None])
    )
    evaluator = make_evaluator(
        Slope(), dataset=Dataset(items), postprocessing=post, additional_metrics={"accuracy": accuracy}, **metrics
    )
    return evaluator


def test_classifiers_are_scored_over_all_cases(tmp_path):
    """AUC is not a mean over cases; a rotation by 180 degrees reverses every answer."""
    summary = make_report(make_classifier(), tmp_path, num_resamples=200, worst_cases=2, views="4").run()
    assert find(summary, metric="auc", family="upright")["mean"] == 1
    group = find(summary, metric="auc", family="group")
    assert group["worst"] == 0
    assert 0 <= group["interval_low"] <= group["mean"] <= group["interval_high"] <= 1
    assert find(summary, metric="accuracy", family="group")["worst"] == 0
    cases = read(tmp_path / "rotation_cases.csv")
    assert "auc" not in cases[0]
    assert all(float(row["probability_of_true_class"]) > 0.8 for row in cases if row["view"] == "upright")
    assert (tmp_path / "worst_cases.png").is_file()


def test_a_network_may_be_named_by_a_setting_that_is_a_list(tmp_path):
    summary = make_report(make_evaluator(Brightness()), tmp_path, name=["gmr_harmonic", {"orders": [0, 1]}]).run()
    assert {row["network"] for row in summary} == {"['gmr_harmonic', {'orders': [0, 1]}]"}
    assert (tmp_path / "records" / "gmr_harmonic_orders_0_1.jsonl").is_file()


def test_names_that_would_share_a_file(tmp_path):
    evaluators = {"plain, 2": make_evaluator(Brightness()), "plain 2": make_evaluator(Brightness())}
    with pytest.raises(ConfigurationError, match="'plain, 2' and another network have the same letters"):
        make_report(evaluators, tmp_path)


def test_metrics_can_be_chosen(tmp_path):
    summary = make_report(make_classifier(), tmp_path, views="4", metrics=["accuracy"]).run()
    assert {row["metric"] for row in summary} == {"accuracy", "equivariance_error"}


def test_own_views_can_be_given(tmp_path):
    views = [View("a tilt", "random", 10.0, rotation_matrix(2, 10)), View("a flip", "group", None, point_group(2)[1])]
    report = make_report(make_evaluator(Brightness()), tmp_path, views=views)
    assert [view.name for view in report.views] == ["upright", "a tilt", "a flip"]
    with pytest.raises(ConfigurationError, match="two views are called 'a tilt'"):
        make_report(make_evaluator(Brightness()), tmp_path, views=[views[0], views[1]._replace(name="a tilt")])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"views": []}, r"views=\[\] is a set of size zero"),
        ({"views": "upright"}, "holds the upright image alone"),
        ({"views": "upright", "shifts": [0.5]}, "holds the upright image alone"),
        ({"shifts": [0]}, "the shift 0 moves nothing"),
        ({"views": {"angles": -1}}, "angles=-1 is impossible: give a number above 0"),
        ({"views": {"group": "all", "count": 0}}, "count=0 is impossible: give a whole number of at least 1"),
        ({"compare": {"x": "nowhere/rotation_views.csv"}}, "there is no rotation report in nowhere"),
        ({"metrics": ["auc"]}, "no metric 'auc': it has dice"),
        ({"frame": "back"}, "frame='back' is unknown"),
        ({"labels": "linear"}, "labels='linear' is unknown"),
        ({"num_resamples": -1}, "num_resamples=-1 is out of range"),
        ({"cases": 0}, "cases=0 is out of range"),
    ],
)
def test_settings_that_cannot_be_used(settings, match, tmp_path):
    with pytest.raises(ConfigurationError, match=match):
        make_report(make_evaluator(Brightness()), tmp_path, **settings).run()


def test_data_that_cannot_be_used(tmp_path):
    broken = Failing([{"image": half(), "label": half()}], 0)
    with pytest.raises(ConfigurationError, match="none of the 1 cases of this run can be used; the first, case 0: Run"):
        make_report(make_evaluator(Brightness(), dataset=broken), tmp_path)
    evaluator = make_evaluator(Brightness(), inferer=SimpleInferer())
    evaluator.data_loader = iter([{"image": half()}])
    with pytest.raises(ConfigurationError, match="without a dataset of known length"):
        make_report(evaluator, tmp_path)
