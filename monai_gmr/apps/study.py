"""Compare nets, augmentations and data sets through MONAI bundles: train, evaluate, one CSV row a run, a table and a picture.

python -m monai_gmr.apps.study CONFIG            runs what is not done yet; interrupted studies resume
python -m monai_gmr.apps.study CONFIG --list     lists what is done
python -m monai_gmr.apps.study CONFIG --time     times a training step of every net
python -m monai_gmr.apps.study CONFIG --table    makes table and picture anew

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
          turned digits: {flag: turned.npz, angle_step: 0, num_group_elements: 1}
    nets:
      plain: {conv: plain}
      radial: {conv: gmr}
    augmentations:
      none: {augmentation: none}
      rotations: {augmentation: rotation}
    runs: [[plain, none], [plain, rotations], [radial, none]]  # optional: default all nets with all augmentations

A later one of settings, data's settings, nets, data's nets and augmentations stands above an earlier one. A net or augmentation that
gives learning_rate is not tuned. Tuning sees training and validation data only. Seconds are those of the process that ended a training.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_gmr.apps.study_plan import Job, Settings, Study, check_bundles, expand, load_study, restrict, slug
from monai_gmr.apps.study_table import EXPLANATION, SCORES, draw_study, format_tables, summarize
from monai_gmr.files import write_text
from monai_gmr.utils import ConfigurationError, can_draw

FAMILY_SCORES = {
    "upright": ("upright", "mean"),
    "group_mean": ("group", "mean"),
    "group_worst": ("group", "worst"),
    "angles_mean": ("angles", "mean"),
    "angles_worst": ("angles", "worst"),
}
TEXT = ("data", "net", "augmentation", "metric", "fingerprint")
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

    def convert(name: str, text: str) -> Any:
        if name in TEXT:
            return text
        try:
            return int(text)
        except ValueError:
            pass
        try:
            return float(text)
        except ValueError:
            return text or None

    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: convert(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


def put_row(path: Path, row: Mapping[str, Any], key: Sequence[str]) -> None:
    """Add a row to a CSV file in place of the one of equal ``key``; the file is whole at any moment."""
    from monai_gmr.files import write_rows

    others = [other for other in read_rows(path) if any(other[name] != row[name] for name in key)]
    write_rows([*others, row], path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(json.dumps(content, indent=1, default=str), path)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def last_line(log: Path) -> str:
    """The last line of a log that is not empty; a progress bar's turns are lines.

    Example:
        >>> log = getfixture("tmp_path") / "train.log"
        >>> _ = log.write_text("50%\\r100%\\nerror: no data.\\n\\n"); last_line(log)
        'error: no data.'
    """
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def run_config(config_file: Path, settings: Settings, settings_file: Path, log: Path) -> float:
    """Run a bundle's config in a process of its own.

    Args:
        config_file: ``train.yaml`` or ``evaluate.yaml``.
        settings: overrides.
        settings_file: JSON file that they are handed over in.
        log: file that gets what the process says, behind what is there.

    Returns:
        seconds that it took.

    Raises:
        RunError: when it failed.
    """
    _write_json(settings_file, settings)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config_file)]
    command += ["--args_file", str(settings_file)]
    start = time.monotonic()
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise RunError(f"{last_line(log)} (exit code {done.returncode}; {log})")
    return time.monotonic() - start


def _best_validation(path: Path) -> float:
    from monai_gmr.networks.weights import read_checkpoint

    if not path.is_file():
        raise RunError(f"training left no {path}: the bundle's train.yaml needs LatestCheckpoint")
    content = read_checkpoint(path, hint="remove it, and the training starts anew")
    best = content.get("best", {}) if isinstance(content, Mapping) else {}
    if "best_metric" not in best or best.get("best_metric_epoch", 0) < 0:
        raise RunError(f"{path} holds no validation score: give at least val_interval epochs")
    return float(best["best_metric"])


def _explain(error: Exception) -> str:
    """The sentence for the user, from wherever below MONAI's own it is."""
    from monai_gmr.utils import find_configuration_error

    return str(find_configuration_error(error) or " ".join(str(error).split()))


def train(study: Study, job: Job, learning_rate: float | None = None) -> dict[str, Any]:
    """Train unless it is done; a training that was killed goes on.

    Args:
        study: the study.
        job: which of its trainings.
        learning_rate: the tuned one, if the cell is tuned.

    Returns:
        ``fingerprint``, ``parameters``, ``validation`` and ``seconds``, as they stand in ``training.json`` of its folder.

    Raises:
        RunError: when the process failed or left no validation score.
    """
    from monai_gmr.apps.study_bundle import count_parameters

    folder, config_file = study.folder(job), study.data[job.cell.data].config_file("train")
    digest = study.training_fingerprint(job, learning_rate)
    state = _read_json(folder / "training.json")
    if state.get("fingerprint") == digest and "validation" in state and (folder / "model.pt").is_file():
        return state
    if folder.exists() and state.get("fingerprint") != digest:
        shutil.rmtree(folder)
    places = {"ckpt_dir": str(folder), "output_dir": str(folder)}
    settings = expand(study.job_settings(job, learning_rate)) | places
    try:
        parameters = count_parameters(config_file, settings)
    except Exception as error:
        raise RunError(_explain(error)) from error
    state = {"fingerprint": digest, "parameters": parameters}
    _write_json(folder / "training.json", state)
    seconds = run_config(config_file, settings, folder / "settings.json", folder / "train.log")
    state |= {"validation": _best_validation(folder / "latest.pt"), "seconds": round(seconds, 1)}
    _write_json(folder / "training.json", state)
    if not study.keep_checkpoints:
        (folder / "latest.pt").unlink()
    return state


def evaluate(study: Study, job: Job, name: str, trained: Mapping[str, Any]) -> tuple[dict[str, float | None], float]:
    """Evaluate a trained net unless it is done.

    Args:
        study: the study.
        job: its training.
        name: which of the evaluations of the data set.
        trained: what :func:`train` returned.

    Returns:
        the scores but for validation, ``None`` where no view was taken, and the seconds.

    Raises:
        RunError: when the process failed or the table lacks the metric.
    """
    from monai.bundle import ConfigParser

    from monai_gmr.apps.study_plan import fingerprint

    data = study.data[job.cell.data]
    config_file, own = data.config_file("evaluate"), study.evaluations(job.cell.data)[name]
    part = "evaluate" if name == job.cell.data else f"evaluate-{slug(name.removeprefix(f'{job.cell.data}: '))}"
    folder = study.folder(job) / part
    digest = fingerprint(trained["fingerprint"], own)
    state = _read_json(folder / "evaluation.json")
    if state.get("fingerprint") != digest:
        if folder.exists():
            shutil.rmtree(folder)
        settings = _read_json(study.folder(job) / "settings.json")
        settings = restrict(settings, ConfigParser.load_config_file(config_file)) | expand(own)
        settings |= {"output_dir": str(folder)}
        log = folder.with_name(f"{part}.log")
        seconds = run_config(config_file, settings, folder / "settings.json", log)
        state = {"fingerprint": digest, "seconds": round(seconds, 1)}
        _write_json(folder / "evaluation.json", state)
    table = read_rows(folder / "rotation_table.csv")
    metrics = list(dict.fromkeys(row["metric"] for row in table))
    if data.metric not in metrics:
        there = ", ".join(metrics) or "none"
        raise RunError(f"the metric {data.metric} is not in {folder / 'rotation_table.csv'}: it has {there}")
    found = {row["family"]: row for row in table if row["metric"] == data.metric}
    scores = {key: found[family][value] if family in found else None for key, (family, value) in FAMILY_SCORES.items()}
    return scores, state["seconds"]


class Progress:
    """What is done of a study, by its runs.csv and tuning.csv.

    Args:
        study: the study.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.runs = study.output_dir / "runs.csv"
        self.tuning = study.output_dir / "tuning.csv"

    def tuning_row(self, job: Job) -> dict[str, Any] | None:
        """The row of a short training that is done with these settings."""
        digest = self.study.training_fingerprint(job)
        return next((row for row in read_rows(self.tuning) if row["fingerprint"] == digest and _is_of(row, job)), None)

    def best_rate(self, job: Job) -> float | None:
        """The tuned learning rate of a job's cell; ``None`` when it is not tuned, or not yet."""
        tuning = self.study.tuning
        if tuning is None or not self.study.is_tuned(job.cell):
            return None
        rows = [self.tuning_row(Job(job.cell, tuning.seed, rate)) for rate in tuning.learning_rates]
        return best_rate({row["learning_rate"]: row["validation"] for row in rows if row}) if all(rows) else None

    def current(self, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of the rows that the study's settings would make again."""
        made = {(row["data"], row["net"], row["augmentation"], row["seed"], row["fingerprint"]): row for row in rows}
        keys = []
        for job in self.study.jobs():
            if job.rate is None:
                rate = self.best_rate(job)
                for name in self.study.evaluations(job.cell.data):
                    digest = self.study.row_fingerprint(job, name, rate)
                    keys.append((name, job.cell.net, job.cell.augmentation, job.seed, digest))
        return [made[key] for key in keys if key in made]

    def missing(self, job: Job) -> list[str]:
        """Names of the evaluations of a job whose rows are not there; of a short training its own name."""
        if job.rate is not None:
            return [] if self.tuning_row(job) else [str(job)]
        rate = self.best_rate(job)
        names = list(self.study.evaluations(job.cell.data))
        if rate is None and self.study.is_tuned(job.cell):
            return names
        digests = {row["data"]: row["fingerprint"] for row in read_rows(self.runs) if _is_of(row, job, data=False)}
        return [name for name in names if digests.get(name) != self.study.row_fingerprint(job, name, rate)]


def _is_of(row: Mapping[str, Any], job: Job, data: bool = True) -> bool:
    cell = job.cell
    same = (row["net"], row["augmentation"]) == (cell.net, cell.augmentation) and (not data or row["data"] == cell.data)
    return same and (row["learning_rate"] == job.rate if job.rate is not None else row["seed"] == job.seed)


def best_rate(validations: Mapping[float, float]) -> float:
    """The learning rate of the best validation score, of equal ones the smallest.

    Args:
        validations: learning rate to score; a score that is no number is the worst.

    Example:
        >>> best_rate({0.01: 0.8, 0.003: 0.8, 0.03: 0.7, 0.1: float("nan")})
        0.003
    """
    return max(sorted(validations), key=lambda rate: (validations[rate] == validations[rate], validations[rate]))


def _run_job(study: Study, progress: Progress, job: Job) -> None:
    from monai.bundle import ConfigParser

    cell = job.cell
    names = {"data": cell.data, "net": cell.net, "augmentation": cell.augmentation}
    if job.rate is not None:
        trained = train(study, job)
        outcome = {"validation": trained["validation"], "seconds": trained["seconds"]}
        row = {**names, "learning_rate": job.rate, **outcome, "fingerprint": trained["fingerprint"]}
        put_row(progress.tuning, row, TUNING_KEY)
        # nobody evaluates a short training
        (study.folder(job) / "model.pt").unlink(missing_ok=True)
        return
    rate = progress.best_rate(job)
    missing = progress.missing(job)
    trained = train(study, job, rate)
    config = ConfigParser.load_config_file(study.data[cell.data].config_file("train"))
    settings = {**config, **study.job_settings(job, rate)}
    for name in missing:
        scores, seconds = evaluate(study, job, name, trained)
        row = {**names, "data": name, "seed": job.seed}
        row |= {key: settings.get(key) for key in ("learning_rate", "epochs")}
        row |= {"parameters": trained["parameters"], "validation": trained["validation"]}
        row |= {"metric": study.data[cell.data].metric, **scores}
        row |= {"train_seconds": trained["seconds"], "evaluate_seconds": seconds}
        put_row(progress.runs, row | {"fingerprint": study.row_fingerprint(job, name, rate)}, KEY)


def run_study(study: Study) -> list[str]:
    """Run what is not done yet, one process at a time.

    Args:
        study: the study; its bundles are checked.

    Returns:
        one sentence for each run that failed; the others have gone on.
    """
    from tqdm import tqdm

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


def time_steps(study: Study, repeats: int) -> list[dict[str, Any]]:
    """Time a training step of every net, the nets of a data set taking turns, and write ``steps.csv``.

    Args:
        study: the study; its bundles are checked.
        repeats: steps of each net over which the median is taken.

    Returns:
        rows of ``data``, ``net``, ``milliseconds`` and ``ratio``, the time against the first net's.

    Raises:
        ConfigurationError: when a step cannot be made.
    """
    from tqdm import tqdm

    from monai_gmr.apps.study_bundle import make_step, median_seconds
    from monai_gmr.bundle import keep_freed_memory
    from monai_gmr.files import write_rows

    # as the bundle's own training has it
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    for name, data in tqdm(study.data.items(), desc="Timing", unit="data set"):
        cells = {cell.net: cell for cell in reversed(study.cells) if cell.data == name}
        cells = dict(reversed(cells.items()))
        steps = []
        for cell in cells.values():
            places = {"ckpt_dir": str(study.output_dir), "output_dir": str(study.output_dir)}
            try:
                steps.append(make_step(data.config_file("train"), expand(study.training_settings(cell)) | places))
            except Exception as error:
                raise ConfigurationError(f"a training step of {cell} cannot be made: {_explain(error)}") from error
        seconds = median_seconds(steps, repeats)
        for net, time_taken in zip(cells, seconds):
            ratio = round(time_taken / seconds[0], 3)
            rows.append({"data": name, "net": net, "milliseconds": round(1000 * time_taken, 3), "ratio": ratio})
    write_rows(rows, study.output_dir / "steps.csv")
    return rows


def write_outcome(study: Study) -> str:
    """Make ``table.md``, ``table.csv`` and ``study.png`` from ``runs.csv`` and ``steps.csv``.

    Returns:
        the tables as Markdown; empty when no run is done.
    """
    from monai_gmr.files import write_rows

    rows = read_rows(study.output_dir / "runs.csv")
    current = Progress(study).current(rows)
    if len(current) < len(rows):
        print(f"{len(rows) - len(current)} rows of runs.csv are of other settings and left out of the table")
    names = {name: data for data in study.data for name in study.evaluations(data)}
    summary = summarize(current, [(name, net, augmentation) for name in names for net, augmentation in study.runs])
    if not summary:
        return ""
    taken = {(row["data"], row["net"]): row["milliseconds"] for row in read_rows(study.output_dir / "steps.csv")}
    steps = {
        (name, net): taken[data, net] for name, data in names.items() for net in study.nets if (data, net) in taken
    }
    numbers = [*SCORES, *(f"{score}_half_width" for score in SCORES)]
    columns = ["data", "net", "augmentation", "seeds", "metric", "learning_rate", "parameters"]
    lines = []
    for line in summary:
        step = {"step_milliseconds": steps.get((line["data"], line["net"]))}
        lines.append({key: line[key] for key in columns} | step | {key: line[key] for key in sorted(numbers)})
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


def _main(options: argparse.Namespace) -> int:
    study = load_study(options.config)
    failures: list[str] = []
    if not options.table:
        check_bundles(study)
    if options.list:
        _list_jobs(study)
        return 0
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 1 when a run failed, 2 when CONFIG is wrong, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_gmr.apps.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the study")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="only tell what is done and what would run")
    action.add_argument("--time", action="store_true", help="only time a training step of every net")
    action.add_argument("--table", action="store_true", help="only make table and picture of what is done")
    parser.add_argument("--repeats", type=int, default=10, help="with --time: steps the median is taken over (10)")
    options = parser.parse_args(arguments)
    try:
        if options.repeats < 1:
            raise ConfigurationError(f"repeats={options.repeats} is out of range: give 1 or more.")
        return _main(options)
    except (ConfigurationError, OSError) as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("study: interrupted; the same command goes on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    # a training must not outlive the study that started it
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
