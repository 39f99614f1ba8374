"""The study runs what its CONFIG asks for, once, continues after failures, resumes after kills, and its intervals are Student's."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
from pathlib import Path

import filelock
import monai.bundle
import pytest
import torch
import yaml
from monai.utils import set_determinism

from monai_gmr.apps import study as app
from monai_gmr.apps.study import Progress, RunError, best_rate, main, put_row, read_rows
from monai_gmr.apps.study_plan import Job, check_bundles, load_study
from monai_gmr.apps.study_table import SCORES, deciding_score, draw_study, format_tables, interval, summarize
from monai_gmr.data import write_phantoms
from monai_gmr.files import LOCK_NAME

SEGMENTATION = Path(__file__).resolve().parents[2] / "bundles" / "volume_segmentation_gmr_unet"

# a bundle whose validation score is best at learning rate 0.01 and whose scores differ with seed, net and split
TRAIN = """
imports: [$import torch, $import pathlib]
seed: 0
ckpt_dir: models
output_dir: eval
epochs: 5
learning_rate: 0.1
conv: plain
augmentation: none
width: 3
network_def: {_target_: torch.nn.Linear, in_features: 2, out_features: '@width'}
run:
- $pathlib.Path(@ckpt_dir, 'started').open('a').write('x')
- $1 / (@conv != 'broken')
- "$torch.save({'best': {'best_metric': 0.9 - abs(@learning_rate - 0.01), 'best_metric_epoch': 1}}, @ckpt_dir + '/latest.pt')"
- "$torch.save({'model': {}}, @ckpt_dir + '/model.pt')"
"""
EVALUATE = """
imports: [$import pathlib]
seed: 0
ckpt_dir: models
output_dir: eval
conv: plain
split: test
angle_step: 30
scores: "$[@seed / 10, @seed / 20] if @split == 'test' else [0.7, 0.6]"
rows: "$['upright,dice,1,%s,%s' % (@scores[0], @scores[0])] + ['angles,dice,9,%s,%s' % tuple(@scores)] * (@angle_step > 0)"
run:
- $pathlib.Path(@output_dir).mkdir(parents=True, exist_ok=True)
- "$pathlib.Path(@output_dir, 'rotation_table.csv').write_text('\\\\n'.join(['family,metric,views,mean,worst', *@rows]))"
"""


@pytest.fixture
def bundle(tmp_path):
    configs = tmp_path / "stub" / "configs"
    configs.mkdir(parents=True)
    (configs / "train.yaml").write_text(TRAIN)
    (configs / "evaluate.yaml").write_text(EVALUATE)
    return configs.parent


@pytest.fixture
def config(bundle, tmp_path):
    return {
        "output_dir": str(tmp_path / "out"),
        "seeds": [3, 5],
        "data": {"cells": {"bundle": str(bundle), "metric": "dice"}},
        "nets": {"plain": {"conv": "plain"}, "radial": {"conv": "gmr"}},
        "augmentations": {"none": {"augmentation": "none"}, "rotations": {"augmentation": "rotation"}},
    }


@pytest.fixture
def processes(monkeypatch):
    """Bundles run in this process instead of their own, which takes seconds each; the list names the configs that ran."""
    ran = []

    def run(command, stdout, **_):
        options = dict(zip(command[4::2], command[5::2]))
        ran.append(Path(options["--config_file"]).stem)
        try:
            monai.bundle.run(config_file=options["--config_file"], args_file=options["--args_file"], logging_file=False)
        except Exception as error:
            stdout.write(f"50%|\rerror: {error.__cause__ or error}\n\n")
            return subprocess.CompletedProcess(command, 1)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(app.subprocess, "run", run)
    return ran


def write(path, config):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def start(tmp_path, config):
    """The command line on the CONFIG as it stands."""
    return lambda *options: main([str(write(tmp_path / "study.yaml", config)), *options])


def load(tmp_path, config):
    return load_study(write(tmp_path / "study.yaml", config))


def as_score_rows(scores, **names):
    row = {"data": "cells", "net": "plain", "augmentation": "none", "metric": "dice", "learning_rate": 0.1}
    row |= {"parameters": 1234, **dict.fromkeys(SCORES), **names}
    return [row | dict.fromkeys(scores, None) | {key: values[i] for key, values in scores.items()} for i in range(3)]


def test_interval_is_the_closed_form_of_three_values():
    # t of 0.975 with two degrees of freedom, in closed form: 0.95 * sqrt(2 / (1 - 0.95**2))
    quantile = 0.95 * math.sqrt(2 / (1 - 0.95**2))
    mean, half = interval([1.0, 2.0, 6.0])
    assert mean == pytest.approx(3)
    assert half == pytest.approx(quantile * math.sqrt(7) / math.sqrt(3), rel=1e-6)


def test_a_single_value_has_no_interval_and_equal_ones_one_of_width_zero():
    assert interval([0.5]) == (0.5, None)
    assert interval([0.5, 0.5]) == (0.5, 0.0)


def test_special_settings_override_general_ones(tmp_path, config):
    layers = ["epochs", "width", "conv", "split", "batch"]
    config["settings"] = dict.fromkeys(layers, 0)
    config["data"]["cells"] |= {
        "settings": dict.fromkeys(layers[1:], 1),
        "nets": {"plain": dict.fromkeys(layers[3:], 3)},
    }
    config["nets"] = {"plain": dict.fromkeys(layers[2:], 2)}
    config["augmentations"] = {"none": {"batch": 4}}
    study = load(tmp_path, config)
    assert study.training_settings(study.cells[0]) == {name: layer for layer, name in enumerate(layers)}


def test_order_is_seed_by_seed_with_tuning_before_the_first(tmp_path, config):
    config["tuning"] = {"learning_rates": [0.1, "1e-2"], "seed": 7, "settings": {"epochs": 1}}
    config["runs"] = [["radial", "none"], ["plain", "rotations"]]
    config["nets"]["plain"]["learning_rate"] = 0.3
    study = load(tmp_path, config)
    radial, plain = study.cells
    expected = [Job(radial, 7, 0.01), Job(radial, 7, 0.1), Job(radial, 3), Job(plain, 3), Job(radial, 5), Job(plain, 5)]
    assert study.jobs() == expected
    assert study.job_settings(expected[0]) == {
        "conv": "gmr",
        "augmentation": "none",
        "epochs": 1,
        "learning_rate": 0.01,
        "seed": 7,
    }
    assert study.job_settings(expected[2], 0.01)["learning_rate"] == 0.01
    config["data"]["cells"]["tuning"] = {"epochs": 2}
    assert load(tmp_path, config).job_settings(expected[0])["epochs"] == 2
    assert "epochs" not in load(tmp_path, config).job_settings(expected[2], 0.01)
    assert study.job_settings(expected[3])["learning_rate"] == 0.3


def test_fingerprint_follows_the_settings_and_not_the_place(tmp_path, config):
    def digest(**changes):
        study = load(tmp_path, config | changes)
        return study.row_fingerprint(study.jobs()[0], "cells")

    cells = config["data"]["cells"]
    assert digest() == digest(output_dir="elsewhere") == digest(seeds=[3])
    other = [digest(seeds=[4]), digest(settings={"epochs": 6}), digest(data={"cells": cells | {"metric": "auc"}})]
    other.append(digest(data={"cells": cells | {"evaluate": {"angle_step": 0}}}))
    assert len({digest(), *other}) == 5


def test_fingerprints_are_those_of_studies_that_are_done(tmp_path):
    """A study of an earlier version resumes: these digits stand in its runs.csv, tuning.csv and folders."""
    cells = {"bundle": "some/stub", "metric": "dice", "evaluate": {"angle_step": 0}}
    cells["tests"] = {"other split": {"split": "validation"}}
    config = {"output_dir": "out", "seeds": [3], "settings": {"epochs": 6}, "nets": {"radial": {"conv": "gmr"}}}
    config |= {"tuning": {"learning_rates": [0.01, 0.1], "settings": {"epochs": 1}}, "data": {"cells": cells}}
    study = load(tmp_path, config)
    short, other, job = study.jobs()
    assert [study.training_fingerprint(each) for each in (short, other)] == ["068cabd1e3fd", "8d3566ed59ca"]
    assert study.training_fingerprint(job, 0.1) == "508eccc8d7dd"
    names = study.evaluations("cells")
    assert [study.row_fingerprint(job, name, 0.1) for name in names] == ["08816de43d7a", "60a09cabeecb"]
    folders = ["tuning-lr0.01", "tuning-lr0.1", "seed3"]
    assert [study.folder(each) for each in study.jobs()] == [Path("out/runs/cells/radial-none") / f for f in folders]


def test_of_equal_rates_the_smallest_is_taken_and_one_without_a_score_never():
    assert best_rate({0.3: 0.5, 0.1: 0.5, 0.03: 0.4}) == 0.1
    assert best_rate({0.001: float("nan"), 0.1: 0.0}) == 0.1


def test_rows_of_equal_key_are_replaced(tmp_path):
    file = tmp_path / "rows.csv"
    for seed, score in ((0, 0.1), (1, 0.2), (0, 0.3)):
        put_row(file, {"net": "plain", "seed": seed, "upright": score}, ("net", "seed"))
    assert [(row["seed"], row["upright"]) for row in read_rows(file)] == [(1, 0.2), (0, 0.3)]


def test_study_from_config_to_table(start, config, processes, tmp_path):
    config["tuning"] = {"learning_rates": [0.001, 0.02, 0.1], "settings": {"epochs": 1}}
    config["runs"] = [["plain", "rotations"], ["radial", "none"]]
    config["data"]["cells"]["tests"] = {"other split": {"split": "validation", "angle_step": 0}}
    assert start() == 0
    out = tmp_path / "out"
    rows = read_rows(out / "runs.csv")
    assert [(row["seed"], row["net"], row["data"]) for row in rows] == [
        (seed, net, data) for seed in (3, 5) for net in ("plain", "radial") for data in ("cells", "cells: other split")
    ]
    # the middle rate has the best validation score; the seeds' scores are what the stub writes
    assert {row["learning_rate"] for row in rows} == {0.001}
    assert {row["validation"] for row in rows} == {0.891}
    assert {(row["parameters"], row["epochs"], row["group_mean"]) for row in rows} == {(9, 5, None)}
    assert [rows[0][key] for key in ("upright", "angles_mean", "angles_worst")] == [0.3, 0.3, 0.15]
    assert [rows[1][key] for key in ("upright", "angles_mean", "angles_worst")] == [0.7, None, None]
    assert [row["learning_rate"] for row in read_rows(out / "tuning.csv")] == [0.001, 0.02, 0.1] * 2
    assert not list(out.rglob("latest.pt"))
    assert len(list(out.rglob("model.pt"))) == 4
    assert processes.count("train") == 6 + 4
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
    # plain with seed 3 is evaluated only, the other three are trained
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
    # what failed is tried again in the same folder: the bundle resumes there
    assert start() == 1
    assert len(list((tmp_path / "out").rglob("radial-none/seed3/started"))) == 1
    assert (tmp_path / "out/runs/cells/radial-none/seed3/started").read_text() == "xx"
    # other settings start in an empty one
    config["nets"]["radial"]["conv"] = "gmr"
    assert start() == 0
    assert (tmp_path / "out/runs/cells/radial-none/seed3/started").read_text() == "x"


def test_a_failed_tuning_leaves_its_net_out(start, config, processes, tmp_path, capsys):
    config |= {"tuning": {"learning_rates": [0.1]}, "augmentations": {"none": {}}}
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
    content = yaml.safe_load(EVALUATE)
    written = f"$pathlib.Path(@output_dir, 'rotation_report.json').write_text({json.dumps(report)!r})"
    content["run"] += [written, "$1 / 0"]
    write(bundle / "configs" / "evaluate.yaml", content)
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
        app._best_validation(file)


def set_at(config, path, value):
    *parents, last = path.split("/")
    for name in parents:
        config = config.setdefault(name, {})
    config[last] = value


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("seed", [0], "seed is no key of .*: did you mean seeds?"),
        ("seeds", [], "seeds is \\[\\]: give a list of whole numbers"),
        ("seeds", [0.5], "0.5 in seeds is no seed"),
        ("output_dir", None, "has no output_dir"),
        ("data", {}, "has no data"),
        ("nets", {}, "has no nets"),
        ("data/cells/metrics", "dice", "metrics is no key of data, cells: did you mean metric?"),
        ("data/cells/metric", None, "data, cells has no metric"),
        ("data/cells/nets", {"radail": {}}, "unknown net radail: did you mean radial?"),
        ("data/cells/bundle", "nowhere", "there is no nowhere/configs/train.yaml"),
        ("runs", [["plane", "none"]], "runs names the unknown net plane: did you mean plain?"),
        ("runs", [["plain", "rotation"]], "runs names the unknown augmentation rotation: did you mean rotations?"),
        ("runs", ["plain"], "'plain' in runs is no pair"),
        ("settings/epohcs", 3, "cells, plain, none: --epohcs is no setting of this config: did you mean --epochs?"),
        ("settings/epochs", "three", "--epochs three cannot be used: give a whole number"),
        ("settings/ckpt_dir", "here", "ckpt_dir in settings is set by the study"),
        ("data/cells/evaluate/angle_stp", 3, "cells, evaluation: --angle_stp is no setting"),
        ("tuning/learning_rates", [], "learning_rates in tuning is \\[\\]"),
        ("tuning/learning_rates", ["fast"], "give a list of positive numbers"),
        ("tuning/learning_rate", [0.1], "learning_rate is no key of tuning: did you mean learning_rates?"),
        ("nets/Plain", {}, "would share the folder"),
        ("keep_checkpoints", "no way", "give true or false"),
    ],
)
def test_a_wrong_config_is_one_sentence(path, value, sentence, start, config, capsys, processes):
    set_at(config, path, value)
    assert start() == 2
    error = capsys.readouterr().err
    assert error.startswith("study: ")
    assert error.count("\n") == 1
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(error)
    assert processes == []


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "cannot be read"), ("a: [", "not readable as YAML"), ("3", "no settings")]
)
def test_a_config_that_is_none_is_one_sentence(content, sentence, tmp_path, capsys):
    file = tmp_path / "study.yaml"
    if content is not None:
        file.write_text(content)
    assert main([str(file)]) == 2
    assert sentence in capsys.readouterr().err


def test_environment_variables_and_home_are_expanded(tmp_path, config, monkeypatch):
    monkeypatch.setenv("STUDY_PLACE", str(tmp_path))
    config["output_dir"] = "$STUDY_PLACE/out"
    config["data"]["cells"]["bundle"] = "${STUDY_PLACE}/stub"
    study = load(tmp_path, config)
    assert study.output_dir == tmp_path / "out"
    check_bundles(study)


def test_the_best_score_is_bold():
    scores = {"upright": (0.9, 0.9, 0.9), "angles_mean": (0.5, 0.5, 0.5)}
    rows = as_score_rows(scores) + as_score_rows({**scores, "angles_mean": (0.6, 0.6, 0.6)}, net="radial")
    summary = summarize(
        rows, [("cells", net, "none") for net in ("radial", "absent", "plain")], {("cells", "plain"): 12.34}
    )
    assert [line["net"] for line in summary] == ["radial", "plain"]
    assert deciding_score(summary) == "angles_mean"
    table = format_tables(summary)
    assert table.count("**") == 2
    assert "**0.600 ± 0.000**" in table
    assert "| 1,234 | 12.3 |" in table


@pytest.mark.parametrize("panels", [1, 4])
def test_picture_holds_every_data_set(panels, tmp_path):
    scores = {"upright": (0.9, 0.8, 0.9), "angles_mean": (0.5, 0.6, 0.5), "angles_worst": (0.4, 0.4, 0.4)}
    names = [f"data {i}" for i in range(panels)]
    rows = [row for name in names for row in as_score_rows(scores, data=name)]
    draw_study(summarize(rows, [(name, "plain", "none") for name in names], {}), tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000


def test_repeats_below_one_are_refused(start, capsys):
    assert start("--time", "--repeats", "0") == 2
    assert "repeats=0" in capsys.readouterr().err


def test_a_parser_without_a_network_counts_nothing(bundle):
    config = bundle / "configs" / "train.yaml"
    assert app.count_parameters(config, {"width": 5}) == 15
    config.write_text(TRAIN.replace("network_def", "something"))
    assert app.count_parameters(config, {}) is None


def test_segmentation_bundle_on_phantoms(tmp_path, monkeypatch, capsys):
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
    file = str(write(tmp_path / "study.yaml", config))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
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

    monkeypatch.setattr(app.subprocess, "run", lambda *_, **__: pytest.fail("nothing is left to run"))
    assert main([file]) == 0
    for name in ("table.md", "table.csv", "study.png"):
        (out / name).unlink()
    write(tmp_path / "study.yaml", config | {"runs": [["plain", "none"], ["radial", "none"]]})
    assert main([file, "--time", "--repeats", "2"]) == 0
    steps = read_rows(out / "steps.csv")
    assert [(row["net"], row["milliseconds"] > 0) for row in steps] == [("plain", True), ("radial", True)]
    assert steps[0]["ratio"] == 1
    assert main([file, "--table"]) == 0
    assert f"| {row['parameters']:,} | {steps[1]['milliseconds']:.1f} |" in (out / "table.md").read_text(
        encoding="utf-8"
    )
    assert (out / "study.png").is_file()
    set_determinism(None)


def test_a_killed_training_resumes_in_its_folder(start, config, processes, tmp_path):
    config |= {"seeds": [3], "runs": [["plain", "none"]]}
    assert start() == 0
    study = load(tmp_path, config)
    folder = study.folder(study.jobs()[0])
    state = app._read_json(folder / "training.json")
    # as a kill leaves it: settings written, no score yet, no row
    app._write_json(folder / "training.json", {key: state[key] for key in ("fingerprint", "parameters")})
    shutil.rmtree(folder / "evaluate")
    (study.output_dir / "runs.csv").unlink()
    assert Progress(study).missing(study.jobs()[0]) == ["cells"]
    assert start() == 0
    assert (folder / "started").read_text() == "xx"
    assert len(read_rows(study.output_dir / "runs.csv")) == 1


def test_help_shows_the_config(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "learning_rates: [0.003, 0.01]" in capsys.readouterr().out
