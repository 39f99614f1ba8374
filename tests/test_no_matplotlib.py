"""Without matplotlib, which is optional, tables are written, one sentence says what is left out, and the exit status is 0."""

import sys

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.transforms import AsDiscreted

from monai_gmr.apps.benchmark import main as benchmark
from monai_gmr.apps.make_phantoms import main as make_phantoms
from monai_gmr.rotation_report import RotationReport
from monai_gmr.utils import can_draw


@pytest.fixture(autouse=True)
def no_matplotlib(monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] == "matplotlib":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def make_report(folder):
    disc = torch.zeros(1, 8, 8)
    disc[:, 2:6, 2:6] = 1
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset([{"image": disc, "label": disc}])),
        torch.nn.Identity(),
        postprocessing=AsDiscreted(keys="pred", threshold=0.5),
        key_val_metric={"dice": MeanDice(output_transform=from_engine(["pred", "label"]))},
    )
    RotationReport(evaluator, folder, views="all").run()
    return 0


QUICK = ["--quick", "--repeats", "1", "--backends", "dense", "--cases", "3D B1 C4 6x6x6 k=3, float32"]
RUNS = {
    "evaluation": (make_report, {"rotation_table.csv", "rotation_report.md", "rotation_cases.csv"}),
    "phantoms": (lambda folder: make_phantoms([str(folder), "--number", "3", "--size", "16"]), {"dataset.json"}),
    "benchmark": (
        lambda folder: benchmark([*QUICK, "--output", str(folder)]),
        {"benchmark.md", "benchmark.json"},
    ),
}


@pytest.mark.parametrize("run", RUNS)
def test_tables_are_written_and_one_sentence_is_said(run, tmp_path, capsys):
    start, files = RUNS[run]
    assert start(tmp_path / "out") == 0
    there = {file.name for file in (tmp_path / "out").iterdir()}
    assert files <= there
    assert not any(name.endswith(".png") for name in there)
    assert capsys.readouterr().out.count("matplotlib cannot be imported, so no picture is drawn") == 1


def test_what_is_left_out_is_named(capsys):
    assert not can_draw("chart")
    assert "so no chart is drawn: pip install 'monai-gmr[bundle]'." in capsys.readouterr().out
