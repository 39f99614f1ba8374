"""Tests of studies: they run their CONFIG once, continue after failures and resume after kills."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import filelock
import pytest
import torch
import yaml
from monai.utils import set_determinism

from monai_gmr.apps.study import main
from monai_gmr.apps.study_progress import Progress, best_rate, put_row, read_rows
from monai_gmr.apps.study_runs import RunError, count_parameters, read_best
from monai_gmr.apps.study_table import interval
from monai_gmr.data import write_phantoms
from monai_gmr.files import LOCK_NAME

SEGMENTATION = Path(__file__).resolve().parents[2] / "bundles" / "volume_segmentation_gmr_unet"


def test_of_equal_rates_the_smallest_is_taken_and_one_without_a_score_never():
    assert best_rate({0.3: 0.5, 0.1: 0.5, 0.03: 0.4}) == 0.1
    assert best_rate({0.001: float("nan"), 0.1: 0.0}) == 0.1


def test_rows_of_equal_key_are_replaced(tmp_path):
    file = tmp_path / "rows.csv"
    for seed, score in ((0, 0.1), (1, 0.2), (0, 0.3)):
        put_row(file, {"net": "plain", "seed": seed, "upright": score}, ("net", "seed"))
    assert [(row["seed"], row["upright"]) for row in read_rows(file)] == [(1, 0.2), (0, 0.3)]


def test_study_from_config_to_table(start, config, processes, tmp_path):
    config["tuning"] = {"learning_rates": [0.001, 0.02, 0.1], "settings": {"epochs": 3}}
    config["runs"] = [["plain", "rotations"], ["radial", "none"]]
    config["data"]["cells"]["tests"] = {"other split": {"split": "validation", "angle_step": 0}}
    assert start() == 0
    out = tmp_path / "out"
    rows = read_rows(out / "runs.csv")
    assert [(row["seed"], row["net"], row["data"]) for row in rows] == [
        (seed, net, data) for seed in (3, 5) for net in ("plain", "radial") for data in ("cells", "cells: other split")
    ]
    # the smallest rate has the best validation score, even after a smaller one was tried; the stub writes the scores
    assert {row["learning_rate"] for row in rows} == {0.001}
    assert {row["validation"] for row in rows} == {0.891}
    assert {(row["parameters"], row["epochs"], row["group_mean"]) for row in rows} == {(9, 5, None)}
    assert [rows[0][key] for key in ("upright", "angles_mean", "angles_worst")] == [0.3, 0.3, 0.15]
    assert [rows[1][key] for key in ("upright", "angles_mean", "angles_worst")] == [0.7, None, None]
    assert [row["learning_rate"] for row in read_rows(out / "tuning.csv")] == [0.001, 0.02, 0.1, 0.0003] * 2
    assert not list(out.rglob("latest.pt"))
    assert len(list(out.rglob("model.pt"))) == 4
    assert processes.count("train") == 8 + 4
    # only evaluations read the test split: one for each of two tests of each training, none for a short training
    assert processes.count("evaluate") == 4 * 2
    table = (out / "table.md").read_text(encoding="utf-8")
    mean, half = interval([0.3, 0.5])
    assert f"{mean:.3f} ± {half:.3f}" in table
    assert "## cells: other split: dice" in table
    assert (out / "study.png").stat().st_size > 10_000
    with open(out / "table.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["seeds"] for line in lines] == ["2"] * 4
    assert float(lines[0]["angles_mean_half_width"]) == half


def test_only_what_changed_runs_again(start, config, processes, tmp_path, capsys):
    config["runs"] = [["plain", "none"], ["radial", "none"]]
    config["seeds"] = [3]
    assert start() == 0
    processes.clear()
    assert start() == 0
    assert processes == []
    config["seeds"] = [3, 5]
    config["data"]["cells"]["evaluate"] = {"angle_step": 0}
    config["nets"]["radial"]["width"] = 4
    capsys.readouterr()
    assert start("--table") == 0
    assert "2 rows of runs.csv are of other settings" in capsys.readouterr().out
    assert start("--list") == 0
    assert capsys.readouterr().out.count("to do") == 4
    assert start() == 0
    # plain with seed 3 is only evaluated, the other three are trained
    assert processes == ["evaluate", *["train", "evaluate"] * 3]
    rows = read_rows(tmp_path / "out" / "runs.csv")
    assert len(rows) == 4
    assert {(row["net"], row["parameters"], row["angles_mean"]) for row in rows} == {
        ("plain", 9, None),
        ("radial", 12, None),
    }
    assert start("--list") == 0
    assert "to do" not in capsys.readouterr().out


def test_other_runs_continue_after_a_failed_one(start, config, processes, tmp_path, capsys):
    config["nets"]["radial"]["conv"] = "broken"
    config["augmentations"] = {"none": {}}
    assert start() == 1
    error = capsys.readouterr().err
    assert "failed: cells, radial, none, seed 3: error: " in error
    assert [row["net"] for row in read_rows(tmp_path / "out" / "runs.csv")] == ["plain", "plain"]
    assert (tmp_path / "out" / "table.md").is_file()
    # a failed run is tried again in the same folder, so the bundle resumes
    assert start() == 1
    assert len(list((tmp_path / "out").rglob("radial-none/seed3/started"))) == 1
    assert (tmp_path / "out/runs/cells/radial-none/seed3/started").read_text() == "xx"
    # other settings start in an empty folder
    config["nets"]["radial"]["conv"] = "gmr"
    assert start() == 0
    assert (tmp_path / "out/runs/cells/radial-none/seed3/started").read_text() == "x"


def test_a_failed_tuning_leaves_its_net_out(start, config, processes, tmp_path, capsys):
    config |= {"tuning": {"learning_rates": [0.1, 1.0]}, "augmentations": {"none": {}}}
    config["nets"]["radial"]["conv"] = "broken"
    assert start() == 1
    assert {row["net"] for row in read_rows(tmp_path / "out" / "runs.csv")} == {"plain"}
    assert "failed: cells, radial, none, trying learning rate 0.1: " in capsys.readouterr().err


def test_an_unknown_metric_is_an_error_and_needs_no_second_training(start, config, processes, capsys):
    config |= {"seeds": [3], "runs": [["plain", "none"]]}
    config["data"]["cells"]["metric"] = "auc"
    assert start() == 1
    assert "the metric auc is not in" in capsys.readouterr().err
    config["data"]["cells"]["metric"] = "dice"
    processes.clear()
    assert start() == 0
    assert processes == []


def test_cases_that_an_evaluation_leaves_out_are_named_in_its_row(start, config, processes, tmp_path, capsys, bundle):
    config |= {"seeds": [3], "runs": [["plain", "none"]]}
    report = {"networks": {"model": {"failures": {"b.nii": "it is empty.", "a.nii": "it is cut off."}}}}
    file = bundle / "configs" / "evaluate.yaml"
    content = yaml.safe_load(file.read_text())
    written = f"$pathlib.Path(@output_dir, 'rotation_report.json').write_text({json.dumps(report)!r})"
    content["run"] += [written, "$1 / 0"]
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert start() == 0
    (row,) = read_rows(tmp_path / "out" / "runs.csv")
    assert (row["left_out"], row["upright"]) == ("a.nii; b.nii", 0.3)
    processes.clear()
    assert start() == 0
    assert processes == []
    assert "cells, plain, none, seed 3: evaluated without a.nii; b.nii" in capsys.readouterr().err


def test_a_second_run_in_the_same_folder_is_refused(start, config, processes, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with filelock.FileLock(tmp_path / "out" / LOCK_NAME):
        assert start() == 2
        assert "out is in use by another run" in capsys.readouterr().err
        assert start("--table") == 0
    assert processes == []
    assert start() == 0


def test_checkpoints_stay_when_asked(start, config, processes, tmp_path):
    config |= {"seeds": [3], "runs": [["plain", "none"]], "keep_checkpoints": True}
    assert start() == 0
    assert len(list((tmp_path / "out").rglob("latest.pt"))) == 1


def test_training_without_a_score_is_a_failure(tmp_path):
    file = tmp_path / "latest.pt"
    torch.save({"best": {"best_metric": -1.0, "best_metric_epoch": -1}}, file)
    with pytest.raises(RunError, match="at least val_interval epochs"):
        read_best(file)


def test_repeats_below_one_are_refused(start, capsys):
    assert start("--time", "--repeats", "0") == 2
    assert "repeats=0" in capsys.readouterr().err


def test_a_parser_without_a_network_counts_nothing(bundle):
    config = bundle / "configs" / "train.yaml"
    assert count_parameters(config, {"width": 5}) == 15
    config.write_text(config.read_text().replace("network_def", "something"))
    assert count_parameters(config, {}) is None


def test_segmentation_bundle_on_phantoms(write, tmp_path, monkeypatch, capsys, forked_python):
    write_phantoms(tmp_path / "data", 4, 2, 2, (16, 17, 18), progress=False)
    network = {"features": [4, 6], "patch_size": [16, 16, 16], "samples_per_case": 1, "val_interval": 1, "epochs": 1}
    config = {
        "output_dir": str(tmp_path / "out"),
        "seeds": [0],
        "data": {
            "phantoms": {
                "bundle": str(SEGMENTATION),
                "metric": "mean_dice",
                "settings": network | {"dataset_dir": str(tmp_path / "data")},
                "evaluate": {"angle_step": 0, "num_group_elements": 2},
            }
        },
        "nets": {"plain": {"conv": "plain"}, "radial": {"conv": "gmr"}},
        "runs": [["radial", "none"]],
    }
    file = str(write(config))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # sys.executable starts the runs
    monkeypatch.setattr(sys, "executable", forked_python)
    assert main([file]) == 0
    out = tmp_path / "out"
    (row,) = read_rows(out / "runs.csv")
    assert row["parameters"] > 100
    assert row["epochs"] == 1
    assert row["group_worst"] == pytest.approx(row["group_mean"], abs=2e-3)
    assert row["angles_mean"] is None
    folder = out / "runs" / "phantoms" / "radial-none" / "seed0"
    assert (folder / "model.pt").is_file()
    assert "best network: " in (folder / "train.log").read_text(encoding="utf-8")

    assert main([file], launch=lambda *_: pytest.fail("nothing is left to run")) == 0
    for name in ("table.md", "table.csv", "study.png"):
        (out / name).unlink()
    write(config | {"runs": [["plain", "none"], ["radial", "none"]]})
    assert main([file, "--time", "--repeats", "2"]) == 0
    steps = read_rows(out / "steps.csv")
    assert [(row["net"], row["milliseconds"] > 0) for row in steps] == [("plain", True), ("radial", True)]
    assert steps[0]["ratio"] == 1
    assert all(1 < row["megabytes"] < 100 for row in steps)
    assert main([file, "--table"]) == 0
    cells = f"| {row['parameters']:,} | {steps[1]['milliseconds']:.1f} | {steps[1]['megabytes']:.1f} |"
    assert cells in (out / "table.md").read_text(encoding="utf-8")
    assert (out / "study.png").is_file()
    set_determinism(None)


def test_a_killed_training_resumes_in_its_folder(start, load, config):
    config |= {"seeds": [3], "runs": [["plain", "none"]]}
    assert start() == 0
    study = load()
    (job,) = Progress(study).jobs()
    folder = study.folder(job)
    state = json.loads((folder / "training.json").read_text())
    # state after a kill: settings written, no score yet, no row
    (folder / "training.json").write_text(json.dumps({key: state[key] for key in ("fingerprint", "parameters")}))
    shutil.rmtree(folder / "evaluate")
    (study.output_dir / "runs.csv").unlink()
    assert Progress(study).missing(job) == ["cells"]
    assert start() == 0
    assert (folder / "started").read_text() == "xx"
    assert len(read_rows(study.output_dir / "runs.csv")) == 1


def test_help_shows_the_config(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "learning_rates: [0.001, 0.003, 0.01]" in capsys.readouterr().out
