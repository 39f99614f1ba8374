"""Tests of the CONFIG of a study: the settings of every run, and one sentence for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_gmr.apps.study import main
from monai_gmr.apps.study_config import check_bundles, load_study
from monai_gmr.apps.study_plan import Job
from monai_gmr.apps.study_progress import Progress
from monai_gmr.utils import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]


def test_special_settings_override_general_ones(load, config):
    layers = ["epochs", "width", "conv", "split", "batch"]
    config["settings"] = dict.fromkeys(layers, 0)
    config["data"]["cells"] |= {
        "settings": dict.fromkeys(layers[1:], 1),
        "nets": {"plain": dict.fromkeys(layers[3:], 3)},
    }
    config["nets"] = {"plain": dict.fromkeys(layers[2:], 2)}
    config["augmentations"] = {"none": {"batch": 4}}
    study = load()
    assert study.training_settings(study.cells[0]) == {name: layer for layer, name in enumerate(layers)}


def test_order_is_seed_by_seed_with_tuning_before_the_first(load, config):
    config["tuning"] = {"learning_rates": [0.1, "1e-2"], "seed": 7, "settings": {"epochs": 1}}
    config["runs"] = [["radial", "none"], ["plain", "rotations"]]
    config["nets"]["plain"]["learning_rate"] = 0.3
    study = load()
    radial, plain = study.cells
    expected = [Job(radial, 7, 0.01), Job(radial, 7, 0.1), Job(radial, 3), Job(plain, 3), Job(radial, 5), Job(plain, 5)]
    assert list(Progress(study).jobs()) == expected
    assert study.job_settings(expected[0]) == {
        "conv": "gmr",
        "augmentation": "none",
        "epochs": 1,
        "learning_rate": 0.01,
        "seed": 7,
    }
    assert study.job_settings(expected[2], 0.01)["learning_rate"] == 0.01
    config["data"]["cells"]["tuning"] = {"epochs": 2}
    assert load().job_settings(expected[0])["epochs"] == 2
    assert "epochs" not in load().job_settings(expected[2], 0.01)
    assert study.job_settings(expected[3])["learning_rate"] == 0.3


def test_fingerprint_follows_the_settings_and_not_the_place(load, config):
    def digest(**changes):
        study = load(**changes)
        return study.row_fingerprint(next(Progress(study).jobs()), "cells")

    cells = config["data"]["cells"]
    assert digest() == digest(output_dir="elsewhere") == digest(seeds=[3])
    other = [digest(seeds=[4]), digest(settings={"epochs": 6}), digest(data={"cells": cells | {"metric": "auc"}})]
    other.append(digest(data={"cells": cells | {"evaluate": {"angle_step": 0}}}))
    assert len({digest(), *other}) == 5


def test_fingerprints_are_those_of_studies_that_are_done(write):
    """Studies of earlier versions resume: their runs.csv, tuning.csv and folders hold these digits."""
    cells = {"bundle": "some/stub", "metric": "dice", "evaluate": {"angle_step": 0}}
    cells["tests"] = {"other split": {"split": "validation"}}
    config = {"output_dir": "out", "seeds": [3], "settings": {"epochs": 6}, "nets": {"radial": {"conv": "gmr"}}}
    config |= {"tuning": {"learning_rates": [0.01, 0.1], "settings": {"epochs": 1}}, "data": {"cells": cells}}
    study = load_study(write(config))
    short, other, job = list(Progress(study).jobs())
    assert [study.training_fingerprint(each) for each in (short, other)] == ["068cabd1e3fd", "8d3566ed59ca"]
    assert study.training_fingerprint(job, 0.1) == "508eccc8d7dd"
    names = study.evaluations("cells")
    assert [study.row_fingerprint(job, name, 0.1) for name in names] == ["08816de43d7a", "60a09cabeecb"]
    folders = ["tuning-lr0.01", "tuning-lr0.1", "seed3"]
    assert [study.folder(each) for each in list(Progress(study).jobs())] == [
        Path("out/runs/cells/radial-none") / f for f in folders
    ]


@pytest.mark.parametrize("file", sorted(ROOT.glob("bundles/*/configs/study.yaml")), ids=lambda file: file.parts[-3])
def test_the_studies_of_the_bundles_follow_the_protocol(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = load_study(file)
    check_bundles(study)
    assert len(study.seeds) == 3
    for name in study.data:
        rows = [str(cell.run) for cell in study.cells if cell.data == name]
        kinds = ("none", "grid", "rotation", "rotation, three times as long", "rotation, equal seconds")
        assert {f"plain, {kind}" for kind in kinds} | {"harmonic, none", "harmonic, rotation"} <= set(rows)
        longer = next(cell for cell in study.cells if cell.data == name and "three times" in cell.augmentation)
        assert study.epochs(longer) == 3 * study.epochs(longer._replace(augmentation="rotation"))
        assert len(study.tuning_jobs(longer)) == 3
        for evaluation in study.evaluations(name).values():  # the report needs more than the upright image
            settings = evaluation.settings
            assert settings.get("angle_step", 1) or settings.get("num_group_elements", 2) > 1


def test_a_short_training_may_be_longer_than_half(load, config):
    config["tuning"] = {"learning_rates": [0.001, 0.01]}
    config["data"]["cells"]["tuning"] = {"epochs": 4}
    study = load()
    check_bundles(study)
    job = next(Progress(study).jobs())
    assert Progress(study).settings(job)["epochs"] == 4


def test_a_rate_of_a_row_that_is_not_tuned_is_refused(load, config):
    config["augmentations"] = {
        "none": {"learning_rate": 0.1},
        "rotations": {"learning_rate": {"of": ["plain", "none"]}},
    }
    with pytest.raises(ConfigurationError, match="that of cells, plain, none, which is not tuned"):
        load()


def set_at(config, path, value):
    *parents, last = path.split("/")
    for name in parents:
        config = config.setdefault(name, {})
    config[last] = value


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("seed", [0], "seed is not a key of .*: did you mean seeds?"),
        ("seeds", [], "seeds is \\[\\]: give a list of whole numbers"),
        ("seeds", [0.5], "0.5 in seeds is not a seed"),
        ("data/cells/seeds", [], "seeds of data, cells is \\[\\]: give a list of whole numbers"),
        ("output_dir", None, "has no output_dir"),
        ("data", {}, "has no data"),
        ("nets", {}, "has no nets"),
        ("data/cells/metrics", "dice", "metrics is not a key of data, cells: did you mean metric?"),
        ("data/cells/metric", None, "data, cells has no metric"),
        ("data/cells/nets", {"radail": {}}, "unknown net radail: did you mean radial?"),
        ("data/cells/bundle", "nowhere", "there is no bundle nowhere"),
        ("runs", [["plane", "none"]], "runs names the unknown net plane: did you mean plain?"),
        ("runs", [["plain", "rotation"]], "runs names the unknown augmentation rotation: did you mean rotations?"),
        ("runs", ["plain"], "'plain' in runs is not a pair"),
        ("settings/epohcs", 3, "cells, plain, none: --epohcs is not a setting of this config: did you mean --epochs?"),
        ("settings/epochs", "three", "--epochs three cannot be used: give a whole number"),
        ("settings/ckpt_dir", "here", "ckpt_dir in settings is set by the study"),
        ("data/cells/evaluate/angle_stp", 3, "cells, evaluation: --angle_stp is not a setting"),
        ("tuning/learning_rates", [], "learning_rates in tuning is \\[\\]"),
        ("tuning/learning_rates", ["fast"], "give a list of positive numbers"),
        ("tuning/learning_rate", [0.1], "learning_rate is not a key of tuning: did you mean learning_rates?"),
        ("tuning/learning_rates", [0.003, 0.01], "a span of 3.33333: give rates over a factor of 10 or more"),
        (
            "tuning",
            {"learning_rates": [0.1, 1], "widenings": -1},
            "widenings in tuning is -1: give a whole number from 0",
        ),
        (
            "tuning",
            {"learning_rates": [0.1, 1], "settings": {"epochs": 2}},
            "tuning of cells, plain, none has 2 of its 5 epochs: give 3 or more, or leave it out",
        ),
        ("augmentations/none/epochs", {"time": 3}, "epochs of plain, none is .*: give a number, or {times: ...} or "),
        ("augmentations/none/epochs", {"times": "3"}, "times in epochs of plain, none is '3'"),
        (
            "augmentations/none/epochs",
            {"seconds_of": ["plain", "none"], "pace_of": ["radial", "none"]},
            "put that run before it",
        ),
        ("settings/epochs", {"times": 3}, "epochs in settings is {'times': 3}: give a number there"),
        (
            "augmentations/none/learning_rate",
            {"of": ["radial", "none"]},
            r"needs \[radial, none\]: put that run before it in runs",
        ),
        ("reference", ["radial", "nonne"], "reference names the unknown augmentation nonne: did you mean none?"),
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


def test_environment_variables_and_home_are_expanded(load, tmp_path, config, monkeypatch):
    monkeypatch.setenv("STUDY_PLACE", str(tmp_path))
    config["output_dir"] = "$STUDY_PLACE/out"
    config["data"]["cells"]["bundle"] = "${STUDY_PLACE}/stub"
    study = load()
    assert study.output_dir == tmp_path / "out"
    check_bundles(study)
