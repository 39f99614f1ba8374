"""A report uses the records of an earlier one if the answers are the same: an interrupted report resumes."""

import math
from functools import partial

import pytest
import torch
from monai.data import Dataset
from monai.transforms import Compose, Lambdad
from small_reports import DISCRETE, Failing, UpperHalf, half, make_dice, make_evaluator, make_report

from monai_gmr.inferers import SymmetryInferer

LABEL = half()


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Disables pictures, which take most of a small report's time."""
    monkeypatch.setattr("monai_gmr.rotation_report.handler.can_draw", lambda: False)


make_report = partial(make_report, shifts=(0.5,))


def test_an_interrupted_report_resumes(tmp_path):
    class Killed(BaseException):
        pass

    evaluator = make_evaluator(UpperHalf())
    whole = make_report(evaluator, tmp_path / "whole").run()
    count = len(make_report(evaluator, tmp_path / "x").views)
    calls = []

    def counted(image, network):
        calls.append(1)
        if len(calls) == count + 3:
            raise Killed
        return network(image)

    killed = make_evaluator(UpperHalf(), inferer=counted)
    with pytest.raises(Killed):
        make_report(killed, tmp_path / "killed").run()
    assert isinstance(killed.inferer, type(counted))
    path = tmp_path / "killed" / "records" / "this_run.jsonl"
    # a line that was being written when the process died
    path.write_text(path.read_text()[:-20])
    assert len(path.read_text().splitlines()) == 1 + count + 2
    calls.clear()
    resumed = make_report(killed, tmp_path / "killed").run()
    # the finished first case is checked once; the second has one view, lacks the line that was cut off, and needs its
    # upright view again
    assert len(calls) == 1 + count - 1 + 1
    assert [{**row, "mean": round(row["mean"], 9)} for row in resumed] == [
        {**row, "mean": round(row["mean"], 9)} for row in whole
    ] or all(math.isclose(a["mean"], b["mean"]) and a["worst_view"] == b["worst_view"] for a, b in zip(resumed, whole))


@pytest.mark.parametrize("changed", ["inferer", "postprocessing", "image", "metric"])
def test_records_of_other_parts_of_a_config_are_not_used(tmp_path, capsys, changed):
    """Not only another network: any change of answers or scores makes the report start again."""
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    image = torch.rand(1, 16, 16)

    def make(scale=1.0, **settings):
        return make_evaluator(network, dataset=Dataset([{"image": scale * image, "label": LABEL}]), **settings)

    make_report(make(), tmp_path).run()
    capsys.readouterr()
    make_report(make(), tmp_path).run()
    assert "are there already" in capsys.readouterr().out
    other = {
        "inferer": {"inferer": SymmetryInferer()},
        "postprocessing": {"postprocessing": Compose([Lambdad("pred", torch.neg), DISCRETE])},
        "image": {"scale": 2.0},
        "metric": {"key_val_metric": make_dice()},
    }
    make_report(make(**other[changed]), tmp_path).run()
    assert "are replaced" in capsys.readouterr().out


def test_a_case_that_no_longer_loads_costs_no_records(tmp_path, capsys):
    data = [{"image": LABEL, "label": LABEL}] * 2
    make_report(make_evaluator(UpperHalf(), dataset=Dataset(data)), tmp_path).run()
    path = tmp_path / "records" / "this_run.jsonl"
    before = len(path.read_text().splitlines())
    summary = make_report(make_evaluator(UpperHalf(), dataset=Failing(data, 0)), tmp_path).run()
    assert "are there already" in capsys.readouterr().out
    assert len(path.read_text().splitlines()) == before
    assert {row["cases"] for row in summary} == {2}


def test_fewer_cases_than_an_earlier_report_measured(tmp_path):
    make_report(make_evaluator(UpperHalf()), tmp_path).run()
    summary = make_report(make_evaluator(UpperHalf()), tmp_path, cases=1).run()
    assert {row["cases"] for row in summary} == {1}


def test_records_of_another_network_are_not_used(tmp_path, capsys):
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    first = make_report(make_evaluator(network), tmp_path).run()
    with torch.no_grad():
        network.weight.add_(1)
    second = make_report(make_evaluator(network), tmp_path).run()
    assert "are replaced" in capsys.readouterr().out
    assert [row["mean"] for row in first] != [row["mean"] for row in second]
