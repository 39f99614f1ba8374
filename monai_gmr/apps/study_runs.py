"""A run of a study: a training or an evaluation of a bundle in its own process, with its settings, log and results."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_gmr.apps.study_plan import Job, Settings, Study, expand, restrict
from monai_gmr.apps.study_progress import Progress, read_rows
from monai_gmr.apps.study_table import CIRCLES, SCORES
from monai_gmr.bundle.command_line import quiet
from monai_gmr.files import write_text
from monai_gmr.fingerprints import fingerprint
from monai_gmr.handlers import SMALLER_RATE
from monai_gmr.networks.weights import read_checkpoint
from monai_gmr.utils import reason

NETWORK_IDS = ("network", "network_def", "net")
# runs a config with a file of overrides and a log file; returns the exit code
Launch = Callable[[Path, Path, Path], int]


class RunError(RuntimeError):
    """A run failed; the message is the last line of its log."""


def launch(config_file: Path, settings_file: Path, log: Path) -> int:
    """Runs a bundle's config with overrides in a new process, appends its output to ``log``, and returns its exit code. The new process
    ends when this one ends, for whatever reason."""
    arguments = [sys.executable, "-m", "monai_gmr.bundle.attached", "monai.bundle", "run"]
    arguments += ["--config_file", str(config_file), "--args_file", str(settings_file)]
    with (
        open(log, "a", encoding="utf-8") as file,
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT) as process,
    ):
        try:
            return process.wait()
        except BaseException:
            process.kill()
            raise


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(json.dumps(content, indent=1, default=str), path)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def last_line(log: Path) -> str:
    """Returns the last line of a log that is not empty; each state of a progress bar is a line.

    Example:
        >>> log = getfixture("tmp_path") / "train.log"
        >>> _ = log.write_text("50%\\r100%\\nerror: no data.\\n\\n"); last_line(log)
        'error: no data.'
    """
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def open_training(config_file: Path, settings: Mapping[str, Any]) -> Any:
    """Returns the parser of a bundle's ``configs/train.yaml`` with overrides, without building anything."""
    settings = {"bundle_root": str(config_file.parent.parent.resolve()), **settings}
    with quiet():
        return ConfigWorkflow(str(config_file), workflow_type="train", logging_file=False, **settings).parser


def count_parameters(config_file: Path, settings: Mapping[str, Any]) -> int | None:
    """Counts the trainable parameters of the network of a training config; ``None`` if it names no network."""
    parser = open_training(config_file, {**settings, "device": "cpu"})
    name = next((name for name in NETWORK_IDS if name in parser.config), None)
    if name is None:
        return None
    with quiet():
        network = parser.get_parsed_content(name)
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def still_improving(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Computes the mean validation score of the last tenth of the validations, at least one, minus the mean of the tenth before; ``None``
    if there are fewer.

    Example:
        >>> still_improving([{"score": score} for score in (0.2, 0.5, None, 0.75)])
        0.25
    """
    scores = [row["score"] for row in history if row["score"] is not None]
    tenth = max(1, round(len(scores) / 10))
    if len(scores) < 2 * tenth:
        return None
    return float(np.mean(scores[-tenth:]) - np.mean(scores[-2 * tenth : -tenth]))


class _Piece:
    """A process of a run; its seconds are added to ``pieces`` in the run's state file however it ends, unless the machine is lost."""

    def __init__(self, state: dict[str, Any], file: Path) -> None:
        self.state, self.file = state, file

    def run(self, launch: Launch, config_file: Path, settings: Settings, log: Path) -> str | None:
        """Runs a config with overrides, written next to the state file; returns the last line of the log if it failed."""
        settings_file, start = self.file.with_name("settings.json"), time.monotonic()
        _write_json(settings_file, settings)
        # so that a run whose process is lost together with this one also resumes
        _write_json(self.file, self.state)
        try:
            code = launch(config_file, settings_file, log)
        finally:
            self.state["pieces"] = [*self.state.get("pieces", []), round(time.monotonic() - start, 1)]
            _write_json(self.file, self.state)
        return f"{last_line(log)} (exit code {code}; {log})" if code else None


def read_best(path: Path) -> dict[str, Any]:
    """Reads the latest checkpoint of a training: ``validation`` and ``best_epoch`` of the best score, ``still_improving``, and, if its
    history has all epochs, ``seconds`` and ``processor_seconds``."""
    if not path.is_file():
        raise RunError(f"training left no {path}: the bundle's train.yaml needs LatestCheckpoint")
    content = read_checkpoint(path, hint="remove it, and the training starts anew")
    best = content.get("best", {}) if isinstance(content, Mapping) else {}
    if "best_metric" not in best or best.get("best_metric_epoch", 0) < 0:
        raise RunError(f"{path} holds no validation score: give at least val_interval epochs")
    found = {"validation": float(best["best_metric"]), "best_epoch": best.get("best_metric_epoch")}
    history = best.get("history", [])
    # a history that begins later, from a checkpoint of an earlier version, lacks seconds
    if history and history[0]["epoch"] == 1:
        for kind in ("seconds", "processor_seconds"):
            values = [row.get(kind) for row in history]
            found[kind] = None if None in values else round(sum(values), 1)
    return found | {"still_improving": still_improving(history)}


def evaluation_folder(study: Study, job: Job, name: str) -> Path:
    """Returns the folder of the evaluation ``name`` of a training."""
    return study.folder(job) / study.evaluations(job.cell.data)[name].folder


def _open_folder(folder: Path, name: str, digest: str) -> dict[str, Any]:
    """Reads the state of a run from the file ``name`` of its folder; removes a folder with other settings."""
    state = _read_json(folder / name)
    if state.get("fingerprint") == digest:
        return state
    if folder.exists():
        shutil.rmtree(folder)
    return {}


def train(progress: Progress, job: Job, launch: Launch) -> dict[str, Any]:
    """Trains unless it is done; a killed training resumes. Returns the content of ``training.json``: ``fingerprint``, ``parameters``,
    ``validation``, ``best_epoch``, ``still_improving``, ``seconds`` and, on a CPU, ``processor_seconds``; raises :class:`RunError` if it
    fails. Seconds count all epochs, each once, whichever process ran them; without a history in the checkpoint they count all
    processes."""
    study = progress.study
    folder, config_file = study.folder(job), study.data[job.cell.data].config_file("train")
    digest = progress.training_fingerprint(job)
    state = _open_folder(folder, "training.json", digest)
    if "validation" in state and (folder / "model.pt").is_file():
        return state
    settings = expand(progress.settings(job)) | {"ckpt_dir": str(folder), "output_dir": str(folder)}
    try:
        state |= {"fingerprint": digest, "parameters": count_parameters(config_file, settings)}
    except Exception as error:
        raise RunError(reason(error)) from error
    failure = _Piece(state, folder / "training.json").run(launch, config_file, settings, folder / "train.log")
    if failure and not (job.rate is not None and SMALLER_RATE in failure):
        raise RunError(failure)
    # a learning rate with which a short training becomes non-finite has no score, which counts as the worst
    best = {"validation": math.nan} if failure else read_best(folder / "latest.pt")
    state |= {"seconds": round(sum(state["pieces"]), 1)} | best
    _write_json(folder / "training.json", state)
    if not study.keep_checkpoints:
        (folder / "latest.pt").unlink(missing_ok=True)
    return state


def evaluate(progress: Progress, job: Job, name: str, trained: Mapping[str, Any], launch: Launch) -> dict[str, Any]:
    """Runs the evaluation ``name`` of a trained net, at its best epoch on validation, unless it is done. Returns its columns of runs.csv:
    the scores except validation, ``None`` for families without views, the seconds, and ``left_out`` if cases could not be evaluated.
    Raises :class:`RunError` if the process failed or the table lacks the metric."""
    study, data = progress.study, progress.study.data[job.cell.data]
    config_file, (own, metric, _) = data.config_file("evaluate"), study.evaluations(job.cell.data)[name]
    folder = evaluation_folder(study, job, name)
    digest = fingerprint(trained["fingerprint"], own)
    state = _open_folder(folder, "evaluation.json", digest)
    if "seconds" not in state:
        state["fingerprint"] = digest
        settings = _read_json(study.folder(job) / "settings.json")
        settings = restrict(settings, ConfigParser.load_config_file(config_file)) | expand(own)
        settings |= {"output_dir": str(folder)}
        piece = _Piece(state, folder / "evaluation.json")
        failure = piece.run(launch, config_file, settings, folder.with_name(f"{folder.name}.log"))
        # a report that leaves cases out is otherwise complete; its process ends with an error that names the first of them
        networks = _read_json(folder / "rotation_report.json").get("networks", {})
        left_out = sorted({case for network in networks.values() for case in network["failures"]})
        if failure and not left_out:
            raise RunError(failure)
        state |= {"seconds": round(sum(state["pieces"]), 1), "left_out": left_out}
        _write_json(folder / "evaluation.json", state)
    table = read_rows(folder / "rotation_table.csv")
    rows = {row["family"]: row for row in table if row["metric"] == metric}
    if not rows:
        there = ", ".join(dict.fromkeys(row["metric"] for row in table)) or "none"
        raise RunError(f"the metric {metric} is not in {folder / 'rotation_table.csv'}: it has {there}")
    columns = {}
    for score in (*SCORES[1:], *CIRCLES):
        family, _, value = score.partition("_")
        columns[score] = rows[family][value or "mean"] if family in rows else None
    columns |= {"train_seconds": trained["seconds"], "train_processor_seconds": trained.get("processor_seconds")}
    columns["evaluate_seconds"] = state["seconds"]
    return columns | ({"left_out": "; ".join(state["left_out"])} if state.get("left_out") else {})


def run_job(progress: Progress, job: Job, launch: Launch) -> None:
    """Runs the missing parts of a job and writes its rows; raises :class:`RunError` if it fails."""
    study, data = progress.study, job.cell.data
    missing = progress.missing(job)
    trained = train(progress, job, launch)
    config = ConfigParser.load_config_file(study.data[data].config_file("train"))
    settings = {**config, **progress.settings(job)}
    if job.rate is not None:
        row = {"epochs": settings.get("epochs")} | {key: trained[key] for key in ("validation", "seconds")}
        progress.put(job, str(job), row)
        # short trainings are not evaluated
        (study.folder(job) / "model.pt").unlink(missing_ok=True)
        return
    row = {key: settings.get(key) for key in ("learning_rate", "epochs")}
    row |= {key: trained.get(key) for key in ("parameters", "validation", "best_epoch", "still_improving")}
    for name in missing:
        row["metric"] = study.evaluations(data)[name].metric
        progress.put(job, name, row | evaluate(progress, job, name, trained, launch))
