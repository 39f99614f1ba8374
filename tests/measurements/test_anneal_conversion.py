"""The measurement of annealing runs, resumes and prints a table, on tiny blocks."""

import json

import anneal_conversion
import nibabel
import numpy as np
import pytest


@pytest.fixture
def data(tmp_path, monkeypatch):
    for name, value in {"STEPS": 2, "CURVE_POINTS": 1, "PATCH": 8, "SIZE": 16, "SMALL_SIZE": 8}.items():
        monkeypatch.setattr(anneal_conversion, name, value)
    monkeypatch.setattr(anneal_conversion, "ORIENTATIONS", anneal_conversion.ORIENTATIONS[:2])
    arms = {
        "original": anneal_conversion.Arm("plain", 1, ({"lr": 0.01},)),
        "annealed": anneal_conversion.Arm(
            "anneal", 1, tuple({"lr": lr, "until": 0.5, "strength": 0.3} for lr in (0.01, 0.02))
        ),
    }
    monkeypatch.setattr(anneal_conversion, "ARMS", arms)
    random, lists = np.random.default_rng(0), {}
    for key in ("training", "validation", "test"):
        case = {name: f"{key}_{name}.nii" for name in ("image", "label")}
        label = random.random((17, 17, 17)) < 0.2
        for name, array in (("image", label + random.normal(size=label.shape)), ("label", label)):
            nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), np.eye(4)), tmp_path / case[name])
        lists[key] = [case]
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    return tmp_path


def test_it_runs_resumes_and_prints_a_table(data, capsys):
    out = data / "out"
    arguments = [str(data), str(out), "--seeds", "0", "--arms", "original", "annealed"]
    assert anneal_conversion.main(arguments) == 0
    written = (out / "runs.csv").read_bytes()
    rows = anneal_conversion.read_rows(out / "runs.csv")
    assert [row["arm"] for row in rows] == ["original", "annealed", "annealed"]
    # the test block is read for the setting that validation chose
    tested = [row["upright"] not in (None, "") for row in rows]
    best = max(rows[1:], key=lambda row: row["val_end"])
    assert tested == [True, best is rows[1], best is rows[2]]
    assert best["error"] < 1e-5 < rows[0]["error"]
    # it begins as the original ended
    assert rows[1]["val_start"] == rows[0]["val_end"]
    assert rows[1]["parameters"] < rows[0]["parameters"]
    assert anneal_conversion.main(arguments) == 0
    assert (out / "runs.csv").read_bytes() == written
    capsys.readouterr()
    assert anneal_conversion.main([*arguments, "--table"]) == 0
    assert "| annealed, gmr_harmonic |" in capsys.readouterr().out
