"""The run for a GPU works from end to end on a CPU, goes on after a step that fails, and keeps its time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import gpu
import pytest
import torch
from gpu import Step, run_steps
from gpu_training import NETS, SOURCES, Times, fit_epochs, write_config

from monai_gmr.apps.benchmark import chosen_cases, make_parser
from monai_gmr.apps.benchmark import main as benchmark
from monai_gmr.apps.study_config import check_bundles, load_study
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.ops.thresholds import THRESHOLDS, read_thresholds

SCRIPT = Path(gpu.__file__).with_name("gpu.sh")
MACHINE = {"processor": "Chip", "cores": 1, "threads": 1, "gpu": None, "torch": "2"}


def test_a_dry_run_does_every_step(tmp_path, forked_python):
    before, out, work = THRESHOLDS.read_bytes(), tmp_path / "out", tmp_path / "work"
    command = ["bash", str(SCRIPT), "1000", "--dry-run", "--work", str(work), "--data", str(tmp_path / "none")]
    environment = {**os.environ, "PYTHON": forked_python, "OUT": str(out), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/", check=False)
    results = json.loads((out / "gpu.json").read_text())
    steps = gpu.make_steps(work, tmp_path, dry=True)
    assert {each["step"]: each["status"] for each in results["steps"]} == {step.name: "done" for step in steps}
    assert process.returncode == 0, process.stderr
    assert {"processor", "torch", "cuda", "cudnn", "driver", "remark", "date"} <= set(results["machine"])
    # as many files, all without folders, as a machine gives back
    files = {file.name for file in out.iterdir()}
    assert files == {"gpu.json", "gpu.md", "gpu.tar.gz", "thresholds.csv", "hippocampus.png", "membranes.png"}
    text = (out / "gpu.md").read_text()
    assert "% of the limit" in text
    assert "plain, 48 views" in text
    assert "| plain, rotations |" in text
    assert "4 passed" in text
    with tarfile.open(out / "gpu.tar.gz") as archive:
        names = set(archive.getnames())
    assert {
        "nets/benchmark.json",
        "channels-last/benchmark.png",
        "tests/tests.xml",
        "training/membranes/runs.csv",
    } <= names
    assert not any(name.endswith((".pt", ".nii.gz", ".npz")) for name in names)
    # the table of this machine's own is no dry run's
    assert THRESHOLDS.read_bytes() == before
    assert {row.device for row in read_thresholds(out / "thresholds.csv")} == {"cpu"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is only read here would run")
def test_what_runs_on_a_gpu_alone_can_be_read(tmp_path, capsys):
    """Arguments, cases and settings that a dry run has smaller."""
    pytest.importorskip("triton")
    steps = {step.name: step for step in gpu.make_steps(tmp_path, tmp_path, dry=False)}
    numbers = {}
    for name in ("nets", "channels last", "channels first"):
        words = [word.replace("FOLDER", str(tmp_path)) for word in steps[name].arguments[2:]]
        cases = chosen_cases(make_parser().parse_args(words), torch.device("cuda"))
        numbers[name] = len(cases)
        assert cases[0].precision == "bfloat16"
    # four volumes, two windows of each kind of layer, four precisions
    assert numbers == {"nets": 2, "channels last": 64, "channels first": 64}
    assert benchmark(list(steps["thresholds"].arguments[2:])) == 2
    assert "device=cuda is not there" in capsys.readouterr().err
    for name in SOURCES:
        study = load_study(write_config(tmp_path / name, name, tmp_path, dict.fromkeys(NETS, 300), False))
        check_bundles(study)
        assert [cell.net for cell in study.cells] == list(NETS)
        for cell in study.cells:
            settings = study.training_settings(cell)
            conv, features = settings["conv"], settings["features"]
            assert settings["epochs"] == 300
            GMRUNet(3, 1, settings["out_channels"], features, conv=tuple(conv) if isinstance(conv, list) else conv)


def lives(process: int) -> bool:
    """Whether a process runs; one that has ended and that nobody waits for does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def python(code: str) -> tuple[str, ...]:
    return ("-IS", "-c", code)


def test_a_step_that_fails_or_takes_too_long_keeps_what_it_wrote_and_stops_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "this one")
    write = (
        "import pathlib, time, signal, subprocess, sys, os; pathlib.Path(r'FOLDER', 'table.md').write_text('| kept |')"
    )
    stubborn = f"{write}; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    stubborn += "child = subprocess.Popen(['sleep', '60']); pathlib.Path(r'FOLDER', 'child.csv').write_text(str(child.pid)); time.sleep(60)"
    steps = [
        Step("fails", python(f"{write}; print('the cause'); raise SystemExit(3)"), 1, ("table.md",)),
        Step("too long", python(stubborn), 1, ("table.md",), most=1.0),
        Step("writes nothing", python("import os; print([n for n in os.environ if 'PYTEST' in n])"), 1, ("table.md",)),
        Step("works", python(write), 1, ("table.md",)),
    ]
    start = time.monotonic()
    results = run_steps(steps, 60.0, tmp_path / "work", tmp_path / "out", MACHINE)
    assert time.monotonic() - start < 10
    assert [each["status"] for each in results] == [
        *("failed with exit status 3", "stopped at its limit"),
        *("failed: it wrote no table.md", "done"),
    ]
    assert 1.0 <= results[1]["seconds"] < 5
    # a process that a step started ends with it
    child = int((tmp_path / "work" / "too-long" / "child.csv").read_text())
    while lives(child) and time.monotonic() - start < 10:
        time.sleep(0.05)
    assert not lives(child)
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert text.count("| kept |") == 3
    assert (tmp_path / "work" / "fails" / "step.log").read_text() == "the cause\n"
    assert (tmp_path / "work" / "writes-nothing" / "step.log").read_text() == "[]\n"
    assert json.loads((tmp_path / "out" / "gpu.json").read_text())["steps"] == results


def test_the_whole_keeps_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    monkeypatch.setenv("PYTHON", sys.executable)
    steps = [Step(str(n), python("import time; time.sleep(60)"), 1, ()) for n in range(3)]
    start = time.monotonic()
    results = run_steps(steps, 2.0, tmp_path / "work", tmp_path / "out", MACHINE)
    assert time.monotonic() - start < 4
    assert {each["status"] for each in results} <= {"stopped at its limit", "not reached"}
    assert results[0]["limit"] == pytest.approx(0.5, abs=0.1)


def test_epochs_fit_into_the_time():
    times = Times(epochs=300, seconds=300.0)
    assert [fit_epochs(seconds, 0.5, times) for seconds in (-5.0, 100.0, 1e4)] == [1, 200, 300]
    assert fit_epochs(1e4, 4.0, times) == 75


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_and_with_an_unknown_step_it_says_so(tmp_path, capsys):
    places = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    assert gpu.main(["60", *places]) == 2
    assert capsys.readouterr().err == "gpu.sh: torch sees no GPU here: give --dry-run.\n"
    assert gpu.main(["60", *places, "--dry-run", "--only", "test"]) == 2
    assert "there is no step 'test': use some of ['tests', " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
