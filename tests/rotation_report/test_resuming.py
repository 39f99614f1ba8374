"""A report uses the records that an earlier one left, where they are of the same answers: an interrupted one resumes."""

import math

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.transforms import AsDiscreted, Compose, Lambdad

from monai_gmr.inferers import SymmetryInferer
from monai_gmr.rotation_report import RotationReport

DISCRETE = AsDiscreted(keys=["pred", "label"], argmax=[True, False], to_onehot=2)
LABEL = torch.cat([torch.ones(1, 8, 16), torch.zeros(1, 8, 16)], 1)


class UpperHalf(torch.nn.Module):
    """Foreground in the upper half of the image, whatever it shows."""

    def forward(self, x):
        rows = torch.arange(x.shape[2])[:, None].expand(x.shape[2:]) < x.shape[2] // 2
        upper = rows.expand_as(x).float()
        return torch.cat([0.5 - upper, upper - 0.5], 1)


class Failing(Dataset):
    """A dataset of which one case cannot be loaded."""

    def __init__(self, data, index):
        super().__init__(data)
        self.index = index

    def __getitem__(self, index):
        if index == self.index:
            raise RuntimeError("no reader for this file\nsecond line")
        return super().__getitem__(index)


def make_dice(**settings):
    return {"dice": MeanDice(output_transform=from_engine(["pred", "label"]), **settings)}


def make_evaluator(network, dataset=None, **settings):
    arguments = {"key_val_metric": make_dice(include_background=False), "postprocessing": DISCRETE} | settings
    loader = DataLoader(dataset or Dataset([{"image": LABEL, "label": LABEL}] * 2), batch_size=1)
    return SupervisedEvaluator(torch.device("cpu"), loader, network, **arguments)


def make_report(evaluator, folder, **settings):
    few = {"views": ["all", {"angles": 60}], "worst_cases": 0, "num_resamples": 0, "order": 1}
    return RotationReport(evaluator, folder, **few | settings)


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
    # the first case was done, and is looked at once; of the second one view was, one was cut off, and the upright one is needed again
    assert len(calls) == 1 + count - 1 + 1
    assert [{**row, "mean": round(row["mean"], 9)} for row in resumed] == [
        {**row, "mean": round(row["mean"], 9)} for row in whole
    ] or all(math.isclose(a["mean"], b["mean"]) and a["worst_view"] == b["worst_view"] for a, b in zip(resumed, whole))


@pytest.mark.parametrize("changed", ["inferer", "postprocessing", "image", "metric"])
def test_records_of_other_parts_of_a_config_are_not_used(tmp_path, capsys, changed):
    """Not only the network: whatever changes the answers or the scores makes the report begin anew."""
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
