"""The inputs of a report: evaluators, and networks that are compared on the same images."""

import json

import pytest
import torch
from monai.data import Dataset
from monai.transforms import Lambdad
from small_reports import UpperHalf, find, half, make_evaluator, make_report, read

from monai_gmr.rotation_report import RotationReport
from monai_gmr.utils import ConfigurationError


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Disables pictures, which take most of a small report's time."""
    monkeypatch.setattr("monai_gmr.rotation_report.handler.can_draw", lambda: False)


def given(kind):
    one = make_evaluator(UpperHalf())
    return {
        "list": [one, one],
        "tuple": (one,),
        "nothing": None,
        "network": UpperHalf(),
        "loader": one.data_loader,
        "words": "evaluator",
        "nothing by name": {"a": one, "b": None},
        "network by name": {"a": UpperHalf()},
        "list by name": {"a": [one]},
    }[kind]


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        ("list", "evaluator is a list"),
        ("tuple", "evaluator is a tuple"),
        ("nothing", "evaluator is None"),
        ("network", "evaluator is a UpperHalf"),
        ("loader", "evaluator is a DataLoader"),
        ("words", "evaluator is 'evaluator'"),
        ("nothing by name", r"evaluator\['b'\] is None"),
        ("network by name", r"evaluator\['a'\] is a UpperHalf"),
        ("list by name", r"evaluator\['a'\] is a list"),
    ],
)
def test_what_is_no_evaluator_is_one_sentence(tmp_path, kind, start):
    with pytest.raises(
        ConfigurationError, match=f"^{start} and no evaluator: give a .*, or several in a dictionary by name"
    ):
        RotationReport(given(kind), tmp_path)


def test_names_of_networks_may_be_numbers(tmp_path):
    summary = make_report({8: make_evaluator(UpperHalf())}, tmp_path).run()
    assert {row["network"] for row in summary} == {"8"}


def images(count, seed=0, names=None):
    generator = torch.Generator().manual_seed(seed)
    items = [{"image": torch.rand(1, 16, 16, generator=generator), "label": half()} for _ in range(count)]
    return [item | {"name": name} for item, name in zip(items, names)] if names else items


def make(items, transform=None):
    return make_evaluator(UpperHalf(), dataset=Dataset(items, transform))


def paired(folder):
    return json.loads((folder / "rotation_report.json").read_text())["paired"]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_networks_of_other_images_are_not_compared(tmp_path, capsys, batch_size):
    evaluators = {"a": make(images(3)), "b": make_evaluator(UpperHalf(), dataset=Dataset(images(2, seed=1)))}
    for evaluator in evaluators.values():
        evaluator.data_loader = torch.utils.data.DataLoader(evaluator.data_loader.dataset, batch_size=batch_size)
    report = make_report(evaluators, tmp_path)
    summary = report.run()
    assert {row["network"] for row in summary} == {"a"}
    assert paired(tmp_path) == []
    assert "b: case 0 is left out: its image is not that of a: give all networks the same" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match="2 of 5 cases were left out, the first is b: case 0"):
        report.check_failures()


def test_cases_that_both_have_are_compared(tmp_path):
    """The two lists have the first two images in common."""
    evaluators = {"a": make(images(4)), "b": make(images(2) + images(2, seed=1))}
    report = make_report(evaluators, tmp_path)
    summary = report.run()
    assert set(report.failures) == {"b: case 2", "b: case 3"}
    assert find(summary, network="b", metric="dice", family="upright")["cases"] == 2
    assert {row["cases"] for row in paired(tmp_path)} == {2}


def test_it_is_seen_in_records_that_are_there_already(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        make_report({name: make(images(2, seed))}, tmp_path).run()
    report = make_report({"a": make(images(2)), "b": make(images(2, seed=1))}, tmp_path)
    assert {row["network"] for row in report.run()} == {"a"}
    assert set(report.failures) == {"b: case 0", "b: case 1"}
    assert paired(tmp_path) == []


@pytest.mark.parametrize("seed", [0, 1])
def test_earlier_reports_of_other_images_are_not_compared(tmp_path, capsys, seed):
    make_report(make(images(2, seed)), tmp_path / "a").run()
    make_report(make(images(2)), tmp_path / "b", compare={"earlier": tmp_path / "a"}).run()
    shown = {row["network"] for row in read(tmp_path / "b" / "rotation_table.csv")}
    assert shown == ({"this run"} if seed else {"this run", "earlier"})
    assert bool(paired(tmp_path / "b")) == (seed == 0)
    assert ("earlier: case 0 is left out: its image is not that of this run" in capsys.readouterr().out) == bool(seed)


@pytest.mark.parametrize("settings", [{"images_in_ball": True}, {"average": "4", "rotated_answers": True}])
def test_what_the_report_itself_changes_is_no_other_image(tmp_path, settings):
    make_report(make(images(2)), tmp_path / "a").run()
    report = make_report({"b": make(images(2)), "c": make(images(2))}, tmp_path / "b", compare={"a": tmp_path / "a"})
    report.run()
    assert not report.failures
    assert {row["cases"] for row in paired(tmp_path / "b")} == {2}
    changed = make_report(make(images(2)), tmp_path / "c", compare={"a": tmp_path / "a"}, **settings)
    changed.run()
    assert not changed.failures
    assert "a" in {row["network"] for row in read(tmp_path / "c" / "rotation_table.csv")}


def test_named_images_may_be_prepared_in_other_ways(tmp_path):
    """Bundles scale and resample the same file differently."""
    items = images(2, names=["first", "second"])
    evaluators = {"a": make(items), "b": make(items, Lambdad("image", lambda image: 2 * image - 1))}
    report = make_report(evaluators, tmp_path)
    report.run()
    assert not report.failures
    assert {row["cases"] for row in paired(tmp_path)} == {2}


def test_records_of_earlier_versions_are_still_compared(tmp_path, monkeypatch):
    """Such records hold no marks of their images."""
    with monkeypatch.context() as patch:
        patch.setattr("monai_gmr.rotation_report.handler.image_marks", lambda batch: None)
        make_report(make(images(2, seed=1)), tmp_path / "a").run()
    make_report(make(images(2)), tmp_path / "b", compare={"earlier": tmp_path / "a"}).run()
    assert paired(tmp_path / "b")
