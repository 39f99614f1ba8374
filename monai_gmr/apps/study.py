"""Compare nets, augmentations and data sets through MONAI bundles: train, evaluate, and write a CSV row per run, a table and a picture.

python -m monai_gmr.apps.study CONFIG            runs what is missing; an interrupted study resumes
python -m monai_gmr.apps.study CONFIG --list     lists what is done and what is missing, with its cost
python -m monai_gmr.apps.study CONFIG --time     measures time and memory of a training step of every net
python -m monai_gmr.apps.study CONFIG --table    makes table and picture from finished runs
python -m monai_gmr.apps.study CONFIG --only "plain, none" "harmonic, none" digits --seeds 0
                                                 runs (or lists) these rows, on these data sets, with these seeds

CONFIG is plain YAML; its relative paths are relative to the working directory, environment variables and ~ are expanded:

    output_dir: runs/study
    seeds: [0, 1, 2]
    tuning:                             # optional: otherwise the learning_rate of the settings is used
      learning_rates: [0.001, 0.003, 0.01]  # spanning a factor of 10 or more; takes the best on validation, the smallest if equal
      widenings: 2                      # more rates to try, one at a time, while the best is the smallest or largest (2)
      seed: 0
      settings: {val_interval: 1}       # differences of the short trainings; epochs: by default and at least half of the run's
    settings: {tensorboard: false}      # for all runs
    keep_checkpoints: false             # whether latest.pt is kept next to model.pt after a training
    data:
      blood cells:
        bundle: bundles/medmnist2d_classification_gmr_resnet  # folder, or name of a bundle that ships
        metric: balanced_accuracy       # metric of rotation_table.csv to report, or a list; larger is better
        settings: {dataset_dir: $DATA, flag: bloodmnist, epochs: 8}
        tuning: {epochs: 6}             # optional: differences of the short trainings on this data set
        evaluate: {angle_step: 30}      # further settings, only for evaluate.yaml
        nets: {harmonic: {width: 24}}   # optional: overrides for a net on this data set
        runs: [[harmonic, rotation]]    # optional: further rows on this data set
        seeds: [0, 1, 2, 3, 4]          # optional: instead of the study's
        tests:                          # optional: further evaluations of the same trained net
          rotated digits: {flag: rotated.npz, angle_step: 0, num_group_elements: 1}
      "{flag}":                         # one data set per flag, which replaces {flag} in every text
        flags: medmnist2d               # or medmnist3d: all flags of the installed medmnist; or a list
        bundle: bundles/medmnist2d_classification_gmr_resnet
        metric: [accuracy, auc]
        settings: {dataset_dir: $DATA, flag: "{flag}", download: true, epochs: 20}
        by_flag: {pathmnist: {epochs: 5}}  # optional: overrides the settings for some flags
    nets:
      plain: {conv: plain}
      harmonic: {conv: gmr_harmonic}
    augmentations:
      none: {augmentation: none}
      rotation: {augmentation: rotation}
      rotation, three times as long: {augmentation: rotation, epochs: {times: 3}}
      rotation, equal seconds:
        augmentation: rotation
        epochs: {seconds_of: [harmonic, none], pace_of: [plain, rotation]}
        learning_rate: {of: [plain, "rotation, three times as long"]}
    runs:                               # optional: by default all nets with all augmentations
    - [plain, none]
    - [plain, rotation]
    - [plain, "rotation, three times as long"]
    - [harmonic, none]
    - [plain, "rotation, equal seconds"]
    reference: [harmonic, none]         # optional: run from which all others are subtracted, on equal images and seeds
    overview: false                     # optional: whether table.md begins with one table of all data sets: every metric upright, over
                                        # rotations about the axes and over reflections

Settings, data's settings, nets, data's nets and augmentations apply in this order; later values override earlier ones. A net or
augmentation that gives learning_rate is not tuned; {of: RUN} takes the rate tuned for an earlier run. epochs: {times: 3} trains three
times the epochs of the data set; {seconds_of: A, pace_of: B} trains for the seconds of run A at the seconds per epoch of run B, rounded up
to whole epochs; both are taken from the first seed and used for all seeds.

Tuning uses only training and validation data. The best epoch on validation is evaluated once, on the test split. The seconds of a training
are the seconds of its epochs with validation, each counted once: start-up, pauses and a lost epoch do not count. On a CPU, processor
seconds are used for equal seconds and in the table, because other work on the machine does not change them. The seconds of an evaluation
include all its processes. An evaluation that leaves cases out counts; column left_out of runs.csv names them. Only one study at a time can
run in an output_dir, and its processes end with it.

With download: true in the settings of a data set, medmnist downloads its file before the first missing run. If that fails, the study skips
the runs of this data set with one sentence and continues with the others. The same command tries again.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.engines import default_prepare_batch
from monai.utils import set_determinism
from tqdm import tqdm

from monai_gmr.apps.peak_memory import peak_memory
from monai_gmr.apps.study_config import check_bundles, check_data_folders, load_study
from monai_gmr.apps.study_differences import find_differences, format_differences
from monai_gmr.apps.study_plan import Cell, Run, Study, expand, merge
from monai_gmr.apps.study_progress import Progress, read_rows
from monai_gmr.apps.study_runs import Launch, RunError, launch, open_training, run_job
from monai_gmr.apps.study_table import EXPLANATION, draw_study, format_overview, format_tables, summarize
from monai_gmr.apps.timing import median_seconds
from monai_gmr.bundle import keep_freed_memory
from monai_gmr.bundle.command_line import quiet
from monai_gmr.command_line import command
from monai_gmr.data import download_medmnist, medmnist_file
from monai_gmr.files import FolderLock, check_folder, write_rows, write_text
from monai_gmr.tables import format_markdown
from monai_gmr.utils import ConfigurationError, can_draw, reason


class Part(NamedTuple):
    """The part of a study that a command runs: rows or data sets, and seeds; empty means all."""

    only: Collection[Run | str] = ()
    seeds: Collection[int] = ()


WHOLE = Part()


def run_study(study: Study, part: Part = WHOLE, launch: Launch = launch) -> list[str]:
    """Runs what is missing, one process at a time, each by ``launch``; returns one sentence for each run that failed."""
    progress, failures = Progress(study), []
    untuned: set[Cell] = set()
    absent: set[str] = set()
    with tqdm(progress.jobs(*part), desc="Study", unit="run", total=len(list(progress.jobs(*part)))) as bar:
        for job in bar:
            data = job.cell.data
            bar.set_postfix_str(str(job))
            if job.cell in untuned or data in absent or not progress.missing(job):
                continue
            if needs_download(study, data):
                bar.set_postfix_str(f"{data}, downloading")
                try:
                    download_data(study, data)
                except ConfigurationError as error:
                    failures.append(f"{data}: {error}")
                    absent.add(data)
                    continue
                bar.set_postfix_str(str(job))
            try:
                waits = progress.waits_for(job)
                if waits:
                    raise RunError(f"it needs {waits} first")
                run_job(progress, job, launch)
            except RunError as error:
                failures.append(f"{job}: {error}")
                if job.rate is not None:
                    untuned.add(job.cell)
    return failures


def _data_settings(study: Study, name: str) -> dict[str, Any]:
    return expand(merge([study.settings, study.data[name].settings]))


def needs_download(study: Study, name: str) -> bool:
    """Checks whether the settings of a data set have ``download: true`` and its file is missing."""
    settings = _data_settings(study, name)
    if settings.get("download") is not True or not {"dataset_dir", "flag"} <= set(settings):
        return False
    return not medmnist_file(settings["dataset_dir"], settings["flag"], settings.get("size", 28)).is_file()


def download_data(study: Study, name: str) -> None:
    """Downloads the file of a data set through medmnist; raises ``ConfigurationError`` if that fails."""
    settings = _data_settings(study, name)
    download_medmnist(settings["dataset_dir"], settings["flag"], settings.get("size", 28))


def make_step(config_file: Path, settings: Mapping[str, Any]) -> tuple[Callable[[], None], torch.device]:
    """Makes a training step on the first training batch of a config with ``network``, ``loss``, ``optimizer`` and ``train::dataloader``:
    forward, loss, backward and the optimizer's step. Returns it and the device that it runs on."""
    lazy = {"cache_rate": 0.0, "num_workers": 0}
    parser = open_training(config_file, settings)
    parser.update({name: value for name, value in lazy.items() if name in parser.config})
    set_determinism(0)
    with quiet():
        network, loss, optimizer = (parser.get_parsed_content(name) for name in ("network", "loss", "optimizer"))
        batch = next(iter(parser.get_parsed_content("train::dataloader")))
    device = next(network.parameters()).device
    image, label = default_prepare_batch(batch, device)[:2]
    set_determinism(None)
    network.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(network(image), label).backward()
        optimizer.step()

    return step, device


def time_steps(study: Study, repeats: int) -> list[dict[str, Any]]:
    """Measures a training step of every net, the nets of a data set in alternation; writes and returns ``steps.csv``: ``data``, ``net``,
    ``milliseconds`` (median), ``ratio`` to the first net's, and ``megabytes``, the peak memory of a step beyond weights, their moments and
    the batch; raises ``ConfigurationError`` if a step cannot be made."""
    # like the bundle's training
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    places = {"ckpt_dir": str(study.output_dir), "output_dir": str(study.output_dir)}
    for name, data in tqdm(study.data.items(), desc="Timing", unit="data set"):
        steps: dict[str, tuple[Callable[[], None], torch.device]] = {}
        for cell in study.cells:
            if cell.data != name or cell.net in steps:
                continue
            try:
                settings = expand(study.training_settings(cell)) | places
                steps[cell.net] = make_step(data.config_file("train"), settings)
            except Exception as error:
                raise ConfigurationError(f"a training step of {cell} cannot be made: {reason(error)}") from error
        seconds = median_seconds({net: step for net, (step, _) in steps.items()}, repeats)
        for net, each in seconds.items():
            row = {"data": name, "net": net, "milliseconds": round(1000 * each, 3)}
            row["ratio"] = round(each / next(iter(seconds.values())), 3)
            rows.append(row | {"megabytes": round(peak_memory(*steps[net]) / 1e6, 1)})
    write_rows(rows, study.output_dir / "steps.csv")
    return rows


def format_steps(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats rows of ``steps.csv`` as Markdown.

    Example:
        >>> row = {"data": "cells", "net": "plain", "milliseconds": 23.557, "ratio": 1.0, "megabytes": 28.5}
        >>> print(format_steps([row]).splitlines()[-1])
        | cells | plain | 23.6 | 1.000 | 28.5 |
    """
    forms = {"milliseconds": "{:.1f}", "ratio": "{:.3f}", "megabytes": "{:.1f}"}
    cells = [[row["data"], row["net"], *(form.format(row[name]) for name, form in forms.items())] for row in rows]
    return format_markdown([["data", "net", "step, ms", "of the first", "step, MB"], *cells], right=2)


def write_outcome(study: Study) -> str:
    """Makes ``table.md``, ``table.csv`` and ``study.png`` from ``runs.csv`` and ``steps.csv``; returns the tables as Markdown, empty if
    no run is done."""
    progress = Progress(study)
    jobs = [job for job in progress.jobs() if job.rate is None]
    current = [row for job in jobs for row in progress.done(job).values()]
    others = len(progress.rows[progress.runs]) - len(current)
    if others:
        print(f"{others} rows of runs.csv are of other settings and left out of the table")
    for row in current:
        if row.get("left_out"):
            run = Cell(row["data"], row["net"], row["augmentation"])
            print(f"{run}, seed {row['seed']}: evaluated without {row['left_out']}", file=sys.stderr)
    names = {name: data for data in study.data for name in study.evaluations(data)}
    taken = {(row["data"], row["net"]): row for row in read_rows(study.output_dir / "steps.csv")}
    steps = {(name, net): taken.get((data, net), {}) for name, data in names.items() for net in study.nets}
    cells = {(name, *cell.run): cell for name, data in names.items() for cell in study.cells if cell.data == data}
    edges = {row for row, cell in cells.items() if progress.at_edge(cell)}
    summary = summarize(current, list(cells), steps, edges)
    if not summary:
        return ""
    lines = [{key: value for key, value in line.items() if not key.endswith("_values")} for line in summary]
    write_rows(lines, study.output_dir / "table.csv")
    differences = find_differences(progress, study.reference) if study.reference else []
    if study.reference and differences:
        write_rows(differences, study.output_dir / "differences.csv")
    tables = format_tables(summary, format_differences(differences, study.reference) if study.reference else None)
    if study.overview:
        tables = f"## All data sets\n\n{format_overview(summary)}\n\n{tables}"
    write_text(f"{tables}\n{EXPLANATION}", study.output_dir / "table.md")
    if can_draw():
        draw_study(summary, study.output_dir / "study.png")
    return tables


def _list_jobs(study: Study, part: Part) -> None:
    """Prints every job with its state, epochs and seconds, and the total time of all jobs to do."""
    progress = Progress(study)
    costs, total = [], 0
    for job in progress.jobs(*part):
        missing, waits, cost = progress.missing(job), progress.waits_for(job), progress.seconds(job)
        whole = job.rate is not None or len(missing) == len(study.evaluations(job.cell.data))
        state = "done" if not missing else "to do" if whole else f"to evaluate: {'; '.join(missing)}"
        epochs = progress.job_epochs(job)
        parts = [
            f"{epochs} epochs" if epochs else "",
            f"about {duration(cost)}" if cost else "",
            waits and f"after {waits}",
        ]
        details = ", ".join(filter(None, parts))
        print(f"{state:6} {job}" + (f" ({details})" if missing and details else ""))
        if missing and whole:
            costs.append(cost)
            total += epochs or 0
    if costs:
        known = [cost for cost in costs if cost is not None]
        unknown = f", and {len(costs) - len(known)} of unknown length" if len(known) < len(costs) else ""
        about = f"{len(costs)} trainings of {total} epochs remain: {duration(sum(known))}{unknown}"
        print(f"{about}; evaluations and further learning rates come on top")


def duration(seconds: float) -> str:
    """Formats seconds as hours and minutes.

    Example:
        >>> duration(45), duration(3900)
        ('1 min', '1 h 5 min')
    """
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _read_part(study: Study, only: Sequence[str], seeds: Sequence[int]) -> Part:
    rows: dict[str, Run | str] = {str(cell.run): cell.run for cell in study.cells}
    known = rows | {name: name for name in study.data}
    for name in only:
        if name not in known:
            raise ConfigurationError(
                f"--only names the unknown row or data set {name!r}: use some of {'; '.join(known)}."
            )
    all_seeds = dict.fromkeys(seed for name in study.data for seed in study.seeds_of(name))
    for seed in seeds:
        if seed not in all_seeds:
            raise ConfigurationError(
                f"--seeds {seed} is not a seed of the study: use some of {', '.join(map(str, all_seeds))}."
            )
    return Part({known[name] for name in only}, set(seeds))


@command("study", "the same command resumes it")
def main(arguments: Sequence[str] | None = None, launch: Launch = launch) -> int:
    """Runs the command line, each run of a bundle by ``launch``; returns the exit code: 1 if a run failed, 2 if CONFIG is wrong, 130
    if interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_gmr.apps.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the study")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="only list finished and missing runs, with their cost")
    action.add_argument("--time", action="store_true", help="only time a training step of every net")
    action.add_argument("--table", action="store_true", help="only make table and picture of the finished runs")
    text = "rows, such as 'plain, none', and data sets to run or list (all)"
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=text)
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help="seeds to run or list (all)")
    parser.add_argument("--repeats", type=int, default=10, help="with --time: steps for the median (10)")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        raise ConfigurationError(f"repeats={options.repeats} is out of range: give 1 or more.")
    study = load_study(options.config)
    part = _read_part(study, options.only, options.seeds)
    if not options.table:
        check_bundles(study)
    if options.list:
        _list_jobs(study, part)
        return 0
    if not options.table:
        check_data_folders(study)
    check_folder(study.output_dir, "output_dir")
    failures: list[str] = []
    with nullcontext() if options.table else FolderLock(study.output_dir, "output_dir"):
        try:
            if options.time:
                steps = format_steps(time_steps(study, options.repeats))
                print(f"\n{steps}\nsteps: {study.output_dir / 'steps.csv'}")
            elif not options.table:
                failures = run_study(study, part, launch)
        finally:
            tables = write_outcome(study)
    print(f"\n{tables}\ntable and picture: {study.output_dir}" if tables else "no run is done yet: there is no table")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    # a study that ends by a signal also ends the processes that it started
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
