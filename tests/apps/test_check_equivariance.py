"""Tests of the command line: exit status, table, CSV, and one sentence if a network cannot be checked."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from monai_gmr.apps.check_equivariance import load_network, main

EXACT = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
PLAIN = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 3}
POOLED = "$torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.MaxPool2d(2))"


def write(path, config):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    return str(path)


@pytest.fixture
def config(tmp_path):
    content = {"imports": ["$import torch"], "network_def": POOLED, "plain": PLAIN, "number": 3}
    return write(tmp_path / "train.json", content | {"exact": EXACT})


def test_exit_status_tells_exact_from_not(config, capsys):
    assert main([config, "--size", "8", "--size", "16,8"]) == 0
    assert main([config, "--size", "8", "--size", "9"]) == 1
    assert main([config, "--size", "9", "--network-id", "plain"]) == 1
    assert main([config, "--size", "9", "--network-id", "exact"]) == 0
    assert "MaxPool2d" in capsys.readouterr().out


def test_tolerance_angles_spacing_and_channels(config, capsys):
    assert main([config, "--size", "9", "--tolerance", "100", "--in-channels", "1"]) == 0
    arguments = ["--angles", "15", "30", "--spacing", "1", "3", "--per-module", "--train"]
    assert main([config, "--size", "17", "--network-id", "exact", *arguments]) == 0
    assert "angles worst" in capsys.readouterr().out


def test_a_setting_of_the_config_decides(config):
    arguments = [config, "--size", "9", "--network-id", "plain"]
    assert main(arguments) == 1
    assert main([*arguments, "--set", "plain::kernel_size=1"]) == 0
    assert main([*arguments, "--set", "plain::kernel_size=one"]) == 2


def test_shifts_are_listed_by_module(config, tmp_path, capsys):
    table = tmp_path / "table.csv"
    assert main([config, "--size", "8", "--shifts", "0.5", "--per-module", "--csv", str(table)]) == 0
    assert capsys.readouterr().out.count("shifts worst") == 2
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 2
    assert all(float(row["shifts_worst"]) >= float(row["shifts_mean"]) >= 0 for row in rows)
    assert {row["angles_worst"] for row in rows} == {""}


def test_bundle_folder_takes_the_first_config_that_has_the_network(tmp_path):
    write(tmp_path / "bundle" / "configs" / "metadata.json", {"version": "0"})
    write(tmp_path / "bundle" / "configs" / "inference.json", {"other": 1})
    write(tmp_path / "bundle" / "configs" / "evaluate.json", {"network_def": PLAIN})
    write(tmp_path / "bundle" / "configs" / "train.json", {"network_def": EXACT})
    assert load_network(tmp_path / "bundle").kernel_size == (3, 3)


def test_bundle_with_its_own_code(tmp_path):
    write(tmp_path / "configs" / "train.json", {"network_def": {"_target_": "own_code_of_bundle.net.Net"}})
    package = tmp_path / "own_code_of_bundle"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "net.py").write_text("import torch\nclass Net(torch.nn.ReLU):\n    pass\n")
    assert type(load_network(tmp_path)).__name__ == "Net"
    assert str(tmp_path) not in sys.path


def test_csv_holds_one_row_a_network_and_module(config, tmp_path):
    path = tmp_path / "new" / "report.csv"
    assert main([config, "--size", "8", "--size", "9", "--csv", str(path)]) == 1
    rows = list(csv.DictReader(path.open()))
    assert [row["path"] for row in rows] == ["", "(network)", "0", "1"] * 2
    assert [float(row["error"]) <= 1e-5 for row in rows[::4]] == [True, False]
    assert [p.name for p in path.parent.iterdir()] == ["report.csv"]


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_weights_are_loaded(tmp_path, key):
    config = write(tmp_path / "c.json", {"network_def": PLAIN})
    net = nn.Conv2d(1, 2, 3)
    nn.init.constant_(net.weight, 1.0)
    torch.save(net.state_dict() if key is None else {key: net.state_dict(), "epoch": 3}, tmp_path / "model.pt")
    assert main([config, "--size", "9"]) == 1
    assert main([config, "--size", "9", "--weights", str(tmp_path / "model.pt")]) == 0


def test_random_state_of_unloaded_weights_is_seeded(config, tmp_path):
    for name in "ab":
        main([config, "--size", "9", "--network-id", "plain", "--seed", "4", "--csv", str(tmp_path / name)])
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def one_sentence(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network-id", "nonsense"], "no 'nonsense'"),
        (["--network-id", "number"], "is a int"),
        (["--weights", "missing.pt"], "missing.pt does not exist"),
        (["--size", "8,8,8"], "2 numbers"),
        (["--spacing", "1"], "give 2 voxel sizes above 0 in millimetres"),
    ],
)
def test_wrong_argument_is_one_sentence(config, capsys, arguments, message):
    assert main([config, "--size", "8", *arguments]) == 2
    assert message in one_sentence(capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        (json.dumps({"network_def": {"_target_": "no.such.Class"}}), "cannot be built"),
        (json.dumps({"network_def": PLAIN | {"kernel": 3}}), "cannot be built"),
        (json.dumps({"network_def": {"_target_": "torch.nn.ReLU"}}), "no convolution"),
    ],
)
def test_wrong_config_is_one_sentence(tmp_path, capsys, content, message):
    (tmp_path / "c.json").write_text(content)
    assert main([str(tmp_path / "c.json"), "--size", "8"]) == 2
    assert message in one_sentence(capsys)


def test_missing_source_empty_folder_and_foreign_weights_are_one_sentence(config, tmp_path, capsys):
    assert main([str(tmp_path / "nothing"), "--size", "8"]) == 2
    assert "does not exist" in one_sentence(capsys)
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), "--size", "8"]) == 2
    assert "is not a bundle" in one_sentence(capsys)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    assert main([config, "--size", "8", "--weights", str(tmp_path / "linear.pt")]) == 2
    assert "does not fit" in one_sentence(capsys)
    (tmp_path / "text.pt").write_text("text")
    assert main([config, "--size", "8", "--weights", str(tmp_path / "text.pt")]) == 2
    assert "cannot be read as a checkpoint" in one_sentence(capsys)


def test_size_that_is_no_size_ends_with_status_2(config):
    with pytest.raises(SystemExit) as exit_:
        main([config, "--size", "large"])
    assert exit_.value.code == 2


def test_as_a_process(config):
    command = [sys.executable, "-m", "monai_gmr.apps.check_equivariance", config, "--size", "9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "MaxPool2d" in done.stdout
    assert "Traceback" not in done.stderr
