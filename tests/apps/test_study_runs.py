"""Tests of runs: a run is one process that ends with its study, and its seconds sum all its pieces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from monai_gmr.apps.study_progress import read_rows

WAITS = """
imports: [$import os, $import pathlib, $import time]
ckpt_dir: models
output_dir: eval
seed: 0
run:
- $pathlib.Path(@ckpt_dir, 'pid').write_text(str(os.getpid()))
- $time.sleep(600)
"""


def wait_for(condition, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_killed_study_ends_its_process(number, write, config, bundle, tmp_path, forked_python):
    (bundle / "configs" / "train.yaml").write_text(WAITS)
    config |= {"seeds": [3], "nets": {"plain": {}}, "augmentations": {"none": {}}}
    command = [forked_python, "-m", "monai_gmr.apps.study", str(write(config))]
    study = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        file = tmp_path / "out" / "runs" / "cells" / "plain-none" / "seed3" / "pid"
        wait_for(lambda: file.is_file() and file.read_text())
        pid = int(file.read_text())
        assert is_running(pid)
        study.send_signal(number)
        assert study.wait(60) == (130 if number == signal.SIGTERM else -number)
        wait_for(lambda: not is_running(pid), 20)
    finally:
        study.kill()


def test_seconds_of_a_run_in_pieces_are_those_of_all_and_not_of_the_stop(start, config, bundle, tmp_path):
    """Without a history in the checkpoint, the seconds are those of the run's processes."""
    file = bundle / "configs" / "train.yaml"
    content = file.read_text().replace(", 'history': @history", "")
    # the first process is interrupted
    first = "- \"$time.sleep(0.3) or pathlib.Path(@ckpt_dir, 'again').exists() or pathlib.Path(@ckpt_dir, 'again').touch() or 1 / 0\"\n"
    file.write_text(
        content.replace("[$import torch", "[$import time, $import torch").replace("run:\n", f"run:\n{first}")
    )
    config |= {"seeds": [3], "runs": [["plain", "none"]]}
    assert start() == 1
    time.sleep(1)
    assert start() == 0
    state = json.loads((tmp_path / "out/runs/cells/plain-none/seed3/training.json").read_text())
    assert len(state["pieces"]) == 2
    (row,) = read_rows(tmp_path / "out" / "runs.csv")
    assert row["train_seconds"] == pytest.approx(sum(state["pieces"]), abs=0.1)
    assert row["train_seconds"] >= 0.6


def test_an_interrupted_evaluation_resumes_in_its_folder(start, config, bundle, tmp_path, processes):
    file = bundle / "configs" / "evaluate.yaml"
    content = file.read_text()
    file.write_text(content + "- \"$pathlib.Path(@output_dir, 'records').touch()\"\n- $1 / 0\n")
    config |= {"seeds": [3], "runs": [["plain", "none"]]}
    assert start() == 1
    file.write_text(
        content
        + "- \"$pathlib.Path(@output_dir, 'found').write_text(str(pathlib.Path(@output_dir, 'records').exists()))\"\n"
    )
    assert start() == 0
    assert processes == ["train", "evaluate", "evaluate"]
    folder = tmp_path / "out/runs/cells/plain-none/seed3/evaluate"
    assert (folder / "found").read_text() == "True"
    assert len(json.loads((folder / "evaluation.json").read_text())["pieces"]) == 2
