"""Tests of studies with many data sets: one entry for all flags, several metrics, failing downloads, and one table of all."""

from pathlib import Path

import pytest

from monai_gmr.apps import study as study_command
from monai_gmr.apps.study_config import check_bundles, check_data_folders, load_study
from monai_gmr.apps.study_progress import read_rows
from monai_gmr.data import medmnist_flags
from monai_gmr.utils import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
# replaces the scores that the stub's evaluation writes
ROWS = ["upright,dice,1,0.9,0.9", "turns,dice,36,0.8,0.7", "flips,dice,4,0.7,0.6", "upright,auc,1,0.5,0.5"]


@pytest.fixture
def each_flag(config, bundle):
    """CONFIG of a study with two flags and two metrics."""
    config["data"] = {
        "{flag}, small": {
            "flags": ["blood", "breast"],
            "bundle": str(bundle),
            "metric": ["dice", "auc"],
            "settings": {"epochs": 2},
            "by_flag": {"breast": {"epochs": 3}},
            "evaluate": {"rows": ROWS},
        }
    }
    config |= {"seeds": [3], "runs": [["plain", "none"], ["radial", "none"]], "overview": True}
    return config


@pytest.mark.parametrize("dims", [2, 3])
def test_the_studies_of_medmnist_take_every_flag(dims, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("STUDY_DATA", str(tmp_path))
    study = load_study(f"bundles/medmnist{dims}d_classification_gmr_resnet/configs/study_medmnist.yaml")
    check_bundles(study)
    assert list(study.data) == medmnist_flags(dims)
    assert len(study.data) == {2: 12, 3: 6}[dims]
    for flag, data in study.data.items():
        assert (data.settings["flag"], data.settings["download"]) == (flag, True)
        assert list(study.evaluations(flag)) == [flag, f"{flag} (auc)"]
    runs = [str(run) for run in study.runs]
    assert runs == ["plain, none", "plain, rotation", "radial, none", "harmonic, none"]
    if dims == 2:
        assert study.data["pathmnist"].settings["epochs"] < study.data["bloodmnist"].settings["epochs"]


def test_one_entry_is_a_data_set_for_each_flag_and_metric(start, each_flag, processes, tmp_path, capsys):
    assert start() == 0
    rows = read_rows(tmp_path / "out" / "runs.csv")
    names = [f"{flag}, small{metric}" for flag in ("blood", "breast") for metric in ("", " (auc)")]
    assert [row["data"] for row in rows if row["net"] == "plain"] == names
    assert {row["metric"]: (row["upright"], row["turns_mean"], row["flips_mean"]) for row in rows} == {
        "dice": (0.9, 0.8, 0.7),
        "auc": (0.5, None, None),
    }
    assert {row["data"]: row["epochs"] for row in rows} == dict(zip(names, (2, 2, 3, 3)))
    # one evaluation gives both metrics
    assert (processes.count("train"), processes.count("evaluate")) == (4, 4)
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    lines = table.splitlines()
    assert lines[0] == "## All data sets"
    assert lines[2] == (
        "| data | net | augmentation | dice: upright | rotations | reflections | auc: upright | rotations | reflections |"
    )
    assert lines[4] == "| blood, small | plain | none | **0.900** | **0.800** | **0.700** | **0.500** | - | - |"
    assert lines[8].startswith("| mean of 2 | plain | none | **0.900** |")
    assert "## breast, small: auc" in table
    processes.clear()
    assert start() == 0
    assert processes == []
    capsys.readouterr()
    assert start("--list", "--only", "breast, small") == 0
    assert "blood" not in capsys.readouterr().out


def test_a_data_set_that_cannot_be_downloaded_is_one_sentence_and_the_others_continue(
    start, each_flag, processes, monkeypatch, capsys, tmp_path
):
    entry = each_flag["data"]["{flag}, small"]
    entry["settings"] |= {"download": True, "flag": "{flag}", "dataset_dir": str(tmp_path / "data")}
    for name in ("train", "evaluate"):
        with (tmp_path / "stub" / "configs" / f"{name}.yaml").open("a") as file:
            file.write("download: false\nflag: some\ndataset_dir: data\n")
    asked = []

    def download(folder, flag, size):
        asked.append((folder, flag, size))
        if flag == "blood":
            raise ConfigurationError("blood.npz could not be downloaded from URL: check the network.")
        Path(folder).mkdir()
        Path(folder, f"{flag}.npz").touch()

    monkeypatch.setattr(study_command, "download_medmnist", download)
    assert start() == 1
    errors = capsys.readouterr().err
    assert errors.count("failed: ") == 1
    assert "failed: blood, small: blood.npz could not be downloaded from URL: check the network." in errors
    assert asked == [(str(tmp_path / "data"), flag, 28) for flag in ("blood", "breast")]
    assert {row["data"] for row in read_rows(tmp_path / "out" / "runs.csv")} == {"breast, small", "breast, small (auc)"}
    # existing files are not downloaded again
    asked.clear()
    (tmp_path / "data" / "blood.npz").touch()
    processes.clear()
    assert start() == 0
    assert asked == []
    assert processes == ["train", "evaluate"] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"flags": "medmnist4d"},
            r"flags of data, \{flag\}, small is 'medmnist4d': give a list of names, or medmnist2d or",
        ),
        ({"flags": []}, r"is \[\]: give a list of names"),
        ({"by_flag": {"blod": {}}}, "settings for the unknown flag blod: did you mean blood"),
        ({"metric": []}, "has no metric: give the metric to use as text, or a list of several"),
        ({"metric": ["dice", "dice"]}, "has no metric"),
        ({"settings": {"dataset_dir": "$NOT_SET/data"}}, "dataset_dir of blood, small is .*: export NOT_SET=FOLDER"),
    ],
)
def test_wrong_entries(change, message, write, each_flag):
    each_flag["data"]["{flag}, small"] |= change
    with pytest.raises(ConfigurationError, match=message):
        check_data_folders(load_study(write(each_flag)))


def test_names_that_are_equal_for_all_flags_are_refused(write, each_flag):
    each_flag["data"] = {"all": each_flag["data"]["{flag}, small"]}
    with pytest.raises(ConfigurationError, match=r"put \{flag\} into the name"):
        load_study(write(each_flag))
    each_flag["data"] = {"all": {"by_flag": {}, "bundle": "stub", "metric": "dice"}}
    with pytest.raises(ConfigurationError, match="by_flag and no flags"):
        load_study(write(each_flag))
