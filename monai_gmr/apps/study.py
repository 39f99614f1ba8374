"""Compare nets, augmentations and data sets through MONAI bundles: train, evaluate, one CSV row a run, a table and a picture.

python -m monai_gmr.apps.study CONFIG            runs what is missing; an interrupted study resumes
python -m monai_gmr.apps.study CONFIG --list     lists what is done and what is missing
python -m monai_gmr.apps.study CONFIG --time     times a training step of every net
python -m monai_gmr.apps.study CONFIG --table    makes table and picture from finished runs

CONFIG is YAML, plain data; relative paths in it are relative to the working directory, environment variables and ~ are expanded:

    output_dir: runs/study
    seeds: [0, 1, 2]
    tuning:                             # optional: without it the settings' own learning_rate is used
      learning_rates: [0.003, 0.01]     # the one with the best validation score is taken, of equal ones the smallest
      seed: 0
      settings: {epochs: 3}             # in what the short trainings differ
    settings: {tensorboard: false}      # for all runs
    keep_checkpoints: false             # whether latest.pt stays beside model.pt when a training is done
    data:
      blood cells:
        bundle: bundles/medmnist2d_classification_gmr_resnet
        metric: balanced_accuracy       # the metric of rotation_table.csv to report; larger is better
        settings: {dataset_dir: $DATA, flag: bloodmnist, epochs: 8}
        tuning: {epochs: 2}             # optional: in what the short trainings differ on this data set
        evaluate: {angle_step: 30}      # further settings of evaluate.yaml alone
        nets: {radial: {width: 24}}     # optional: overrides for a net on this data set
        tests:                          # optional: further evaluations of the same trained net
          rotated digits: {flag: rotated.npz, angle_step: 0, num_group_elements: 1}
    nets:
      plain: {conv: plain}
      radial: {conv: gmr}
    augmentations:
      none: {augmentation: none}
      rotations: {augmentation: rotation}
    runs: [[plain, none], [plain, rotations], [radial, none]]  # optional: default all nets with all augmentations

Of settings, data's settings, nets, data's nets and augmentations, a later one overrides an earlier one. A net or augmentation that
gives learning_rate is not tuned. Tuning uses training and validation data only. Seconds are those of the process that ended a training.
An evaluation that leaves cases out counts, with their names in column left_out of runs.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser
from tqdm import tqdm

from monai_gmr.apps.study_bundle import count_parameters, make_step
from monai_gmr.apps.study_plan import (
    Cell,
    Job,
    Settings,
    Study,
    check_bundles,
    expand,
    fingerprint,
    load_study,
    restrict,
    slug,
)
from monai_gmr.apps.study_table import EXPLANATION, SCORES, draw_study, format_tables, summarize
from monai_gmr.apps.timing import median_seconds
from monai_gmr.bundle import keep_freed_memory
from monai_gmr.command_line import command
from monai_gmr.files import FolderLock, check_folder, write_rows, write_text
from monai_gmr.networks.weights import read_checkpoint
from monai_gmr.utils import ConfigurationError, can_draw, find_configuration_error

FAMILY_SCORES = {
    "upright": ("upright", "mean"),
    "group_mean": ("group", "mean"),
    "group_worst": ("group", "worst"),
    "angles_mean": ("angles", "mean"),
    "angles_worst": ("angles", "worst"),
}
TEXT = ("data", "net", "augmentation", "metric", "left_out", "fingerprint")
KEY = ("data", "net", "augmentation", "seed")
TUNING_KEY = ("data", "net", "augmentation", "learning_rate")


class RunError(RuntimeError):
    """A run failed; the message is the last line of its log."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file of a study, numbers as numbers and empty cells as ``None``; none when there is no file.

    Example:
        >>> file = getfixture("tmp_path") / "runs.csv"
        >>> _ = file.write_text("net,seed,upright,group_mean\\nplain,0,0.5,\\n")
        >>> read_rows(file)
        [{'net': 'plain', 'seed': 0, 'upright': 0.5, 'group_mean': None}]
    """

    def value_of(text: str) -> Any:
        for kind in (int, float):
            with suppress(ValueError):
                return kind(text)
        return text or None

    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{name: text if name in TEXT else value_of(text) for name, text in row.items()} for row in rows]


def put_row(path: Path, row: Mapping[str, Any], key: Sequence[str]) -> None:
    """Add a row to a CSV file in place of the one of equal ``key``; the file is complete at any moment."""
    write_rows([*(old for old in read_rows(path) if any(old[name] != row[name] for name in key)), row], path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(json.dumps(content, indent=1, default=str), path)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def last_line(log: Path) -> str:
    """The last line of a log that is not empty; each state of a progress bar is a line.

    Example:
        >>> log = getfixture("tmp_path") / "train.log"
        >>> _ = log.write_text("50%\\r100%\\nerror: no data.\\n\\n"); last_line(log)
        'error: no data.'
    """
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


class Outcome(NamedTuple):
    """What a process left: the seconds that it took, and, if it failed, the last line of its log."""

    seconds: float
    error: str | None


def run_config(config_file: Path, settings: Settings, settings_file: Path, log: Path) -> Outcome:
    """Run a bundle's config in a process of its own, with overrides written to ``settings_file``; its output is appended to ``log``."""
    _write_json(settings_file, settings)
    arguments = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config_file)]
    arguments += ["--args_file", str(settings_file)]
    start = time.monotonic()
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False)
    error = f"{last_line(log)} (exit code {done.returncode}; {log})" if done.returncode else None
    return Outcome(round(time.monotonic() - start, 1), error)


def _best_validation(path: Path) -> float:
    if not path.is_file():
        raise RunError(f"training left no {path}: the bundle's train.yaml needs LatestCheckpoint")
    content = read_checkpoint(path, hint="remove it, and the training starts anew")
    best = content.get("best", {}) if isinstance(content, Mapping) else {}
    if "best_metric" not in best or best.get("best_metric_epoch", 0) < 0:
        raise RunError(f"{path} holds no validation score: give at least val_interval epochs")
    return float(best["best_metric"])


def _open_folder(folder: Path, name: str, digest: str) -> dict[str, Any]:
    """The state of a run, in the file ``name`` of its folder; a folder of other settings is removed."""
    state = _read_json(folder / name)
    if state.get("fingerprint") == digest:
        return state
    if folder.exists():
        shutil.rmtree(folder)
    return {}


def _explain(error: Exception) -> str:
    """The sentence for the user, at whatever depth below MONAI's own it is."""
    return str(find_configuration_error(error) or " ".join(str(error).split()))


def train(study: Study, job: Job, learning_rate: float | None = None) -> dict[str, Any]:
    """Train unless it is done; a training that was killed resumes. ``learning_rate`` is the tuned one. Returns ``fingerprint``,
    ``parameters``, ``validation`` and ``seconds``, the content of ``training.json``; raises :class:`RunError` when it fails."""
    folder, config_file = study.folder(job), study.data[job.cell.data].config_file("train")
    digest = study.training_fingerprint(job, learning_rate)
    state = _open_folder(folder, "training.json", digest)
    if "validation" in state and (folder / "model.pt").is_file():
        return state
    places = {"ckpt_dir": str(folder), "output_dir": str(folder)}
    settings = expand(study.job_settings(job, learning_rate)) | places
    try:
        parameters = count_parameters(config_file, settings)
    except Exception as error:
        raise RunError(_explain(error)) from error
    state = {"fingerprint": digest, "parameters": parameters}
    _write_json(folder / "training.json", state)
    outcome = run_config(config_file, settings, folder / "settings.json", folder / "train.log")
    if outcome.error:
        raise RunError(outcome.error)
    state |= {"validation": _best_validation(folder / "latest.pt"), "seconds": outcome.seconds}
    _write_json(folder / "training.json", state)
    if not study.keep_checkpoints:
        (folder / "latest.pt").unlink()
    return state


def evaluate(study: Study, job: Job, name: str, trained: Mapping[str, Any]) -> dict[str, Any]:
    """Make the evaluation ``name`` of a trained net unless it is done.

    Returns:
        the columns of runs.csv that it fills: the scores except validation, ``None`` where no view was taken, the seconds, and
        ``left_out`` where cases could not be evaluated.

    Raises:
        RunError: when the process failed or the table lacks the metric.
    """
    data = study.data[job.cell.data]
    config_file, own = data.config_file("evaluate"), study.evaluations(job.cell.data)[name]
    part = "evaluate" if name == job.cell.data else f"evaluate-{slug(name.removeprefix(f'{job.cell.data}: '))}"
    folder = study.folder(job) / part
    digest = fingerprint(trained["fingerprint"], own)
    state = _open_folder(folder, "evaluation.json", digest)
    if not state:
        settings = _read_json(study.folder(job) / "settings.json")
        settings = restrict(settings, ConfigParser.load_config_file(config_file)) | expand(own)
        settings |= {"output_dir": str(folder)}
        outcome = run_config(config_file, settings, folder / "settings.json", folder.with_name(f"{part}.log"))
        # a report that leaves cases out is complete but for these; its process ends with an error that names the first of them
        networks = _read_json(folder / "rotation_report.json").get("networks", {})
        left_out = sorted({case for network in networks.values() for case in network["failures"]})
        if outcome.error and not left_out:
            raise RunError(outcome.error)
        state = {"fingerprint": digest, "seconds": outcome.seconds, "left_out": left_out}
        _write_json(folder / "evaluation.json", state)
    table = read_rows(folder / "rotation_table.csv")
    rows = {row["family"]: row for row in table if row["metric"] == data.metric}
    if not rows:
        there = ", ".join(dict.fromkeys(row["metric"] for row in table)) or "none"
        raise RunError(f"the metric {data.metric} is not in {folder / 'rotation_table.csv'}: it has {there}")
    columns = {key: rows[family][value] if family in rows else None for key, (family, value) in FAMILY_SCORES.items()}
    columns["train_seconds"], columns["evaluate_seconds"] = trained["seconds"], state["seconds"]
    return columns | ({"left_out": "; ".join(state["left_out"])} if state.get("left_out") else {})


class Progress:
    """What is done of a study, by its runs.csv and tuning.csv."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.runs, self.tuning = study.output_dir / "runs.csv", study.output_dir / "tuning.csv"

    def best_rate(self, cell: Cell) -> float | None:
        """The tuned learning rate of a cell; ``None`` when it is not tuned, or not yet."""
        tuning = self.study.tuning
        if tuning is None or not self.study.is_tuned(cell):
            return None
        rows = _by_key(read_rows(self.tuning), (*TUNING_KEY, "fingerprint"))
        keys = {
            rate: next(iter(self.row_keys(Job(cell, tuning.seed, rate)).values())) for rate in tuning.learning_rates
        }
        return (
            best_rate({rate: rows[key]["validation"] for rate, key in keys.items()})
            if rows.keys() >= set(keys.values())
            else None
        )

    def row_keys(self, job: Job) -> dict[str, tuple]:
        """Keys and fingerprints of the rows that a job makes, by the names of its evaluations; a short training has one row, of its own
        name. A cell that is not tuned yet has keys that no row has."""
        cell, study = job.cell, self.study
        if job.rate is not None:
            return {str(job): (*cell, job.rate, study.training_fingerprint(job))}
        rate = self.best_rate(cell)
        waiting = rate is None and study.is_tuned(cell)
        return {
            name: (name, *cell[1:], job.seed, None if waiting else study.row_fingerprint(job, name, rate))
            for name in study.evaluations(cell.data)
        }

    def missing(self, job: Job) -> list[str]:
        """Names of the evaluations of a job that have no row; of a short training its own name."""
        file, key = (self.runs, KEY) if job.rate is None else (self.tuning, TUNING_KEY)
        rows = _by_key(read_rows(file), (*key, "fingerprint"))
        return [name for name, row_key in self.row_keys(job).items() if row_key not in rows]

    def current(self) -> tuple[list[dict[str, Any]], int]:
        """The rows of runs.csv that are of the study's settings, in the order of its jobs, and the number of all rows."""
        rows = read_rows(self.runs)
        by_key = _by_key(rows, (*KEY, "fingerprint"))
        keys = [key for job in self.study.jobs() if job.rate is None for key in self.row_keys(job).values()]
        return [by_key[key] for key in keys if key in by_key], len(rows)


def _by_key(rows: Sequence[dict[str, Any]], key: Sequence[str]) -> dict[tuple, dict[str, Any]]:
    return {tuple(row[name] for name in key): row for row in rows}


def best_rate(validations: Mapping[float, float]) -> float:
    """The learning rate of the best validation score, of equal ones the smallest; a score that is not a number is the worst."""
    return max(sorted(validations), key=lambda rate: (validations[rate] == validations[rate], validations[rate]))


def _run_job(study: Study, progress: Progress, job: Job) -> None:
    cell = job.cell
    names: dict[str, Any] = cell._asdict()
    if job.rate is not None:
        trained = train(study, job)
        row = names | {"learning_rate": job.rate}
        row |= {key: trained[key] for key in ("validation", "seconds", "fingerprint")}
        put_row(progress.tuning, row, TUNING_KEY)
        # short trainings are not evaluated
        (study.folder(job) / "model.pt").unlink(missing_ok=True)
        return
    rate = progress.best_rate(cell)
    missing = progress.missing(job)
    trained = train(study, job, rate)
    config = ConfigParser.load_config_file(study.data[cell.data].config_file("train"))
    settings = {**config, **study.job_settings(job, rate)}
    for name in missing:
        columns = evaluate(study, job, name, trained)
        row = names | {"data": name, "seed": job.seed}
        row |= {key: settings.get(key) for key in ("learning_rate", "epochs")}
        row |= {key: trained[key] for key in ("parameters", "validation")}
        row |= {"metric": study.data[cell.data].metric, **columns}
        put_row(progress.runs, row | {"fingerprint": study.row_fingerprint(job, name, rate)}, KEY)


def run_study(study: Study) -> list[str]:
    """Run what is missing, one process at a time; returns one sentence for each run that failed."""
    progress, failures = Progress(study), []
    untuned = set()
    with tqdm(study.jobs(), desc="Study", unit="run") as bar:
        for job in bar:
            bar.set_postfix_str(str(job))
            if job.cell in untuned or not progress.missing(job):
                continue
            try:
                _run_job(study, progress, job)
            except RunError as error:
                failures.append(f"{job}: {error}")
                if job.rate is not None:
                    untuned.add(job.cell)
    return failures


def time_steps(study: Study, repeats: int) -> None:
    """Time a training step of every net, the nets of a data set in alternation, and write ``steps.csv``: ``data``, ``net``,
    ``milliseconds``, the median, and ``ratio``, that over the first net's.

    Raises:
        ConfigurationError: when a step cannot be made.
    """
    # as the bundle's own training does
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    places = {"ckpt_dir": str(study.output_dir), "output_dir": str(study.output_dir)}
    for name, data in tqdm(study.data.items(), desc="Timing", unit="data set"):
        steps: dict[str, Callable[[], None]] = {}
        for cell in study.cells:
            if cell.data != name or cell.net in steps:
                continue
            try:
                settings = expand(study.training_settings(cell)) | places
                steps[cell.net] = make_step(data.config_file("train"), settings)
            except Exception as error:
                raise ConfigurationError(f"a training step of {cell} cannot be made: {_explain(error)}") from error
        seconds = median_seconds(steps, repeats)
        for net, each in seconds.items():
            ratio = round(each / next(iter(seconds.values())), 3)
            rows.append({"data": name, "net": net, "milliseconds": round(1000 * each, 3), "ratio": ratio})
    write_rows(rows, study.output_dir / "steps.csv")


def write_outcome(study: Study) -> str:
    """Make ``table.md``, ``table.csv`` and ``study.png`` from ``runs.csv`` and ``steps.csv``; returns the tables as Markdown, empty when
    no run is done."""
    current, number = Progress(study).current()
    if len(current) < number:
        print(f"{number - len(current)} rows of runs.csv are of other settings and left out of the table")
    for row in current:
        if row.get("left_out"):
            run = ", ".join(str(row[name]) for name in KEY[:3])
            print(f"{run}, seed {row['seed']}: evaluated without {row['left_out']}", file=sys.stderr)
    names = {name: data for data in study.data for name in study.evaluations(data)}
    summary = summarize(current, [(name, net, augmentation) for name in names for net, augmentation in study.runs])
    if not summary:
        return ""
    taken = {(row["data"], row["net"]): row["milliseconds"] for row in read_rows(study.output_dir / "steps.csv")}
    steps = {(name, net): taken.get((data, net)) for name, data in names.items() for net in study.nets}
    numbers = sorted([*SCORES, *(f"{score}_half_width" for score in SCORES)])
    columns = ["data", "net", "augmentation", "seeds", "metric", "learning_rate", "parameters"]
    lines = []
    for line in summary:
        step = {"step_milliseconds": steps[line["data"], line["net"]]}
        lines.append({key: line[key] for key in columns} | step | {key: line[key] for key in numbers})
    write_rows(lines, study.output_dir / "table.csv")
    tables = format_tables(summary, steps)
    write_text(f"{tables}\n{EXPLANATION}", study.output_dir / "table.md")
    if can_draw():
        draw_study(summary, study.output_dir / "study.png")
    return tables


def _list_jobs(study: Study) -> None:
    progress = Progress(study)
    for job in study.jobs():
        missing = progress.missing(job)
        whole = job.rate is not None or len(missing) == len(study.evaluations(job.cell.data))
        state = "done" if not missing else "to do" if whole else f"to evaluate: {'; '.join(missing)}"
        print(f"{state:6} {job}")


@command("study", "the same command resumes it")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 1 when a run failed, 2 when CONFIG is wrong, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_gmr.apps.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the study")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="only list what is done and what would run")
    action.add_argument("--time", action="store_true", help="only time a training step of every net")
    action.add_argument("--table", action="store_true", help="only make table and picture of what is done")
    parser.add_argument("--repeats", type=int, default=10, help="with --time: steps the median is taken over (10)")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        raise ConfigurationError(f"repeats={options.repeats} is out of range: give 1 or more.")
    study = load_study(options.config)
    if not options.table:
        check_bundles(study)
    if options.list:
        _list_jobs(study)
        return 0
    check_folder(study.output_dir, "output_dir")
    failures: list[str] = []
    with nullcontext() if options.table else FolderLock(study.output_dir, "output_dir"):
        try:
            if options.time:
                time_steps(study, options.repeats)
            elif not options.table:
                failures = run_study(study)
        finally:
            tables = write_outcome(study)
    print(f"\n{tables}\ntable and picture: {study.output_dir}" if tables else "no run is done yet: there is no table")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    # a training must not outlive the study that started it
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
