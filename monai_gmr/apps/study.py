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
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.engines import default_prepare_batch
from monai.utils import set_determinism
from tqdm import tqdm

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
from monai_gmr.bundle.command_line import quiet
from monai_gmr.command_line import command
from monai_gmr.files import FolderLock, check_folder, write_rows, write_text
from monai_gmr.networks.weights import read_checkpoint
from monai_gmr.utils import ConfigurationError, can_draw, reason

NETWORK_IDS = ("network", "network_def", "net")
TEXT = ("data", "net", "augmentation", "metric", "left_out", "fingerprint")


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
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def open_training(config_file: Path, settings: Mapping[str, Any]) -> Any:
    """The parser of a bundle's ``configs/train.yaml`` with overrides; nothing is built yet."""
    settings = {"bundle_root": str(config_file.parent.parent.resolve()), **settings}
    with quiet():
        return ConfigWorkflow(str(config_file), workflow_type="train", logging_file=False, **settings).parser


def count_parameters(config_file: Path, settings: Mapping[str, Any]) -> int | None:
    """Number of trainable parameters of the network of a training config; ``None`` when it names no network."""
    parser = open_training(config_file, {**settings, "device": "cpu"})
    name = next((name for name in NETWORK_IDS if name in parser.config), None)
    if name is None:
        return None
    with quiet():
        network = parser.get_parsed_content(name)
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def make_step(config_file: Path, settings: Mapping[str, Any]) -> Callable[[], None]:
    """A training step on the first training batch of a config with ``network``, ``loss``, ``optimizer`` and ``train::dataloader``: forward,
    loss, backward and the optimizer's step."""
    lazy = {"cache_rate": 0.0, "num_workers": 0}
    parser = open_training(config_file, settings)
    parser.update({name: value for name, value in lazy.items() if name in parser.config})
    set_determinism(0)
    with quiet():
        network, loss, optimizer = (parser.get_parsed_content(name) for name in ("network", "loss", "optimizer"))
        batch = next(iter(parser.get_parsed_content("train::dataloader")))
    image, label = default_prepare_batch(batch, next(network.parameters()).device)[:2]
    set_determinism(None)
    network.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(network(image), label).backward()
        optimizer.step()

    return step


def run_config(config_file: Path, settings: Settings, settings_file: Path, log: Path) -> tuple[float, str | None]:
    """Run a bundle's config in a process of its own, with overrides written to ``settings_file``, and append its output to ``log``;
    returns its seconds and, if it failed, the last line of the log."""
    _write_json(settings_file, settings)
    arguments = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config_file)]
    arguments += ["--args_file", str(settings_file)]
    start = time.monotonic()
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False)
    error = f"{last_line(log)} (exit code {done.returncode}; {log})" if done.returncode else None
    return round(time.monotonic() - start, 1), error


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


def train(study: Study, job: Job, learning_rate: float | None = None) -> dict[str, Any]:
    """Train unless it is done; a training that was killed resumes. ``learning_rate`` is the tuned one. Returns ``fingerprint``,
    ``parameters``, ``validation`` and ``seconds``, the content of ``training.json``; raises :class:`RunError` when it fails."""
    folder, config_file = study.folder(job), study.data[job.cell.data].config_file("train")
    digest = study.training_fingerprint(job, learning_rate)
    state = _open_folder(folder, "training.json", digest)
    if "validation" in state and (folder / "model.pt").is_file():
        return state
    settings = expand(study.job_settings(job, learning_rate)) | {"ckpt_dir": str(folder), "output_dir": str(folder)}
    try:
        state = {"fingerprint": digest, "parameters": count_parameters(config_file, settings)}
    except Exception as error:
        raise RunError(reason(error)) from error
    _write_json(folder / "training.json", state)
    seconds, failure = run_config(config_file, settings, folder / "settings.json", folder / "train.log")
    if failure:
        raise RunError(failure)
    state |= {"validation": _best_validation(folder / "latest.pt"), "seconds": seconds}
    _write_json(folder / "training.json", state)
    if not study.keep_checkpoints:
        (folder / "latest.pt").unlink()
    return state


def evaluate(study: Study, job: Job, name: str, trained: Mapping[str, Any]) -> dict[str, Any]:
    """Make the evaluation ``name`` of a trained net unless it is done. Returns the columns of runs.csv that it fills: the scores except
    validation, ``None`` where no view was taken, the seconds, and ``left_out`` where cases could not be evaluated. Raises
    :class:`RunError` when the process failed or the table lacks the metric."""
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
        log = folder.with_name(f"{part}.log")
        seconds, failure = run_config(config_file, settings, folder / "settings.json", log)
        # a report that leaves cases out is complete but for these; its process ends with an error that names the first of them
        networks = _read_json(folder / "rotation_report.json").get("networks", {})
        left_out = sorted({case for network in networks.values() for case in network["failures"]})
        if failure and not left_out:
            raise RunError(failure)
        state = {"fingerprint": digest, "seconds": seconds, "left_out": left_out}
        _write_json(folder / "evaluation.json", state)
    table = read_rows(folder / "rotation_table.csv")
    rows = {row["family"]: row for row in table if row["metric"] == data.metric}
    if not rows:
        there = ", ".join(dict.fromkeys(row["metric"] for row in table)) or "none"
        raise RunError(f"the metric {data.metric} is not in {folder / 'rotation_table.csv'}: it has {there}")
    columns = {}
    for score in SCORES[1:]:
        family, _, value = score.partition("_")
        columns[score] = rows[family][value or "mean"] if family in rows else None
    columns["train_seconds"], columns["evaluate_seconds"] = trained["seconds"], state["seconds"]
    return columns | ({"left_out": "; ".join(state["left_out"])} if state.get("left_out") else {})


class Progress:
    """What is done of a study: the rows of its runs.csv and, for short trainings, of its tuning.csv."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.runs, self.tuning = study.output_dir / "runs.csv", study.output_dir / "tuning.csv"
        self.rows = {file: read_rows(file) for file in (self.runs, self.tuning)}

    def best_rate(self, cell: Cell) -> float | None:
        """The tuned learning rate of a cell; ``None`` when it is not tuned, or not yet."""
        jobs = self.study.tuning_jobs(cell)
        rates = {row["learning_rate"]: row["validation"] for job in jobs for row in self.done(job).values()}
        return best_rate(rates) if jobs and len(rates) == len(jobs) else None

    def keys(self, job: Job) -> dict[str, dict[str, Any]]:
        """What a job's rows are known by: names and fingerprint, by the names of its evaluations; a short training has one row, of its own
        name. A cell that is not tuned yet has no fingerprint, which no row has."""
        study, names = self.study, job.cell._asdict()
        if job.rate is not None:
            return {str(job): {**names, "learning_rate": job.rate, "fingerprint": study.training_fingerprint(job)}}
        rate, keys = self.best_rate(job.cell), {}
        waits = rate is None and study.tuning_jobs(job.cell)
        for name in study.evaluations(job.cell.data):
            digest = None if waits else study.row_fingerprint(job, name, rate)
            keys[name] = {**names, "data": name, "seed": job.seed, "fingerprint": digest}
        return keys

    def done(self, job: Job) -> dict[str, dict[str, Any]]:
        """The rows of a job that are there, by the names of its evaluations."""
        rows = self.rows[self.runs if job.rate is None else self.tuning]
        return {name: row for name, key in self.keys(job).items() for row in rows if key.items() <= row.items()}

    def missing(self, job: Job) -> list[str]:
        """The names of a job's evaluations that have no row."""
        done = self.done(job)
        return [name for name in self.keys(job) if name not in done]

    def put(self, job: Job, name: str, columns: dict[str, Any]) -> None:
        """Write a row of a job, in place of one of other settings."""
        file, key = self.runs if job.rate is None else self.tuning, self.keys(job)[name]
        digest = {"fingerprint": key.pop("fingerprint")}
        put_row(file, key | columns | digest, tuple(key))
        self.rows[file] = read_rows(file)


def best_rate(validations: Mapping[float, float]) -> float:
    """The learning rate of the best validation score, of equal ones the smallest; a score that is not a number is the worst."""
    return max(sorted(validations), key=lambda rate: (validations[rate] == validations[rate], validations[rate]))


def _run_job(progress: Progress, job: Job) -> None:
    study, data, rate = progress.study, job.cell.data, progress.best_rate(job.cell)
    missing = progress.missing(job)
    trained = train(study, job, rate)
    if job.rate is not None:
        progress.put(job, str(job), {key: trained[key] for key in ("validation", "seconds")})
        # short trainings are not evaluated
        (study.folder(job) / "model.pt").unlink(missing_ok=True)
        return
    config = ConfigParser.load_config_file(study.data[data].config_file("train"))
    settings = {**config, **study.job_settings(job, rate)}
    row = {key: settings.get(key) for key in ("learning_rate", "epochs")}
    row |= {key: trained[key] for key in ("parameters", "validation")} | {"metric": study.data[data].metric}
    for name in missing:
        progress.put(job, name, row | evaluate(study, job, name, trained))


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
                _run_job(progress, job)
            except RunError as error:
                failures.append(f"{job}: {error}")
                if job.rate is not None:
                    untuned.add(job.cell)
    return failures


def time_steps(study: Study, repeats: int) -> None:
    """Time a training step of every net, the nets of a data set in alternation, and write ``steps.csv``: ``data``, ``net``,
    ``milliseconds``, the median, and ``ratio``, that over the first net's; raises ``ConfigurationError`` when a step cannot be made."""
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
                raise ConfigurationError(f"a training step of {cell} cannot be made: {reason(error)}") from error
        seconds = median_seconds(steps, repeats)
        for net, each in seconds.items():
            ratio = round(each / next(iter(seconds.values())), 3)
            rows.append({"data": name, "net": net, "milliseconds": round(1000 * each, 3), "ratio": ratio})
    write_rows(rows, study.output_dir / "steps.csv")


def write_outcome(study: Study) -> str:
    """Make ``table.md``, ``table.csv`` and ``study.png`` from ``runs.csv`` and ``steps.csv``; returns the tables as Markdown, empty when
    no run is done."""
    progress = Progress(study)
    current = [row for job in study.jobs() if job.rate is None for row in progress.done(job).values()]
    others = len(progress.rows[progress.runs]) - len(current)
    if others:
        print(f"{others} rows of runs.csv are of other settings and left out of the table")
    for row in current:
        if row.get("left_out"):
            run = Cell(row["data"], row["net"], row["augmentation"])
            print(f"{run}, seed {row['seed']}: evaluated without {row['left_out']}", file=sys.stderr)
    names = {name: data for data in study.data for name in study.evaluations(data)}
    taken = {(row["data"], row["net"]): row["milliseconds"] for row in read_rows(study.output_dir / "steps.csv")}
    steps = {(name, net): taken.get((data, net)) for name, data in names.items() for net in study.nets}
    summary = summarize(current, [(name, *run) for name in names for run in study.runs], steps)
    if not summary:
        return ""
    lines = [{key: value for key, value in line.items() if not key.endswith("_values")} for line in summary]
    write_rows(lines, study.output_dir / "table.csv")
    tables = format_tables(summary)
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
