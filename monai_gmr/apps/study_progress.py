"""Progress of a study, read from its files, and what follows: the learning rates to try, the epochs, the jobs to run."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from monai_gmr.apps.study_plan import Cell, Job, Run, Study
from monai_gmr.files import write_rows

TEXT = ("data", "net", "augmentation", "metric", "left_out", "fingerprint", "score")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a CSV file of a study, numbers as numbers and empty cells as ``None``; no rows if there is no file.

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
    """Adds a row to a CSV file, replacing the row with equal ``key``; the file is complete at any moment."""
    write_rows([*(old for old in read_rows(path) if any(old[name] != row[name] for name in key)), row], path)


def best_rate(validations: Mapping[float, float]) -> float:
    """Returns the learning rate with the best validation score, the smallest if several are equal; NaN is the worst score."""
    return max(sorted(validations), key=lambda rate: (validations[rate] == validations[rate], validations[rate]))


def beyond(rates: Collection[float], best: float) -> float | None:
    """Returns the learning rate to try next if the best one is the smallest or largest of ``rates``: the next value beyond it among 1 and 3
    times the powers of ten; ``None`` if the best one is inside.

    Example:
        >>> beyond([0.001, 0.003, 0.01], 0.01), beyond([0.001, 0.003, 0.01], 0.001), beyond([0.001, 0.003, 0.01], 0.003)
        (0.03, 0.0003, None)
    """
    exponent = math.floor(math.log10(best))
    series = [float(f"{digit}e{power}") for power in range(exponent - 1, exponent + 2) for digit in (1, 3)]
    if best == max(rates):
        return min(rate for rate in series if rate > best)
    return max(rate for rate in series if rate < best) if best == min(rates) else None


def _is_among(cell: Cell, only: Collection[Run | str]) -> bool:
    """Checks whether a cell belongs to one of the named rows, if any, and to one of the named data sets, if any."""
    rows, data = ({name for name in only if isinstance(name, kind)} for kind in (Run, str))
    return (not rows or cell.run in rows) and (not data or cell.data in data)


def train_seconds(row: Mapping[str, Any]) -> float | None:
    """Returns the seconds of a training from its row: processor seconds if known, because they ignore other work on the machine."""
    processor = row.get("train_processor_seconds")
    return row.get("train_seconds") if processor is None else processor


class Progress:
    """Finished jobs of a study: the rows of its runs.csv and, for short trainings, of its tuning.csv."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.runs, self.tuning = study.output_dir / "runs.csv", study.output_dir / "tuning.csv"
        self.rows = {file: read_rows(file) for file in (self.runs, self.tuning)}

    def tuning_jobs(self, cell: Cell) -> list[Job]:
        """Returns the short trainings of a cell: those of CONFIG and, while the best rate is at an edge, further ones up to CONFIG's limit;
        the last one can be missing."""
        jobs = self.study.tuning_jobs(cell)
        if not jobs or self.study.tuning is None:
            return []
        for _ in range(self.study.tuning.widenings):
            scores = self._validations(jobs)
            further = beyond(scores, best_rate(scores)) if len(scores) == len(jobs) else None
            if further is None:
                break
            jobs.append(jobs[0]._replace(rate=further))
        return jobs

    def _validations(self, jobs: Sequence[Job]) -> dict[float, float]:
        """Returns the validation scores of finished short trainings by their rates; a missing score counts as the worst."""
        rows = [row for job in jobs for row in self.done(job).values()]
        return {row["learning_rate"]: math.nan if row["validation"] is None else row["validation"] for row in rows}

    def best_rate(self, cell: Cell) -> float | None:
        """Returns the tuned learning rate of a cell; ``None`` if it is not tuned, or not yet."""
        jobs = self.tuning_jobs(self.study.rate_from(cell))
        rates = self._validations(jobs)
        return best_rate(rates) if jobs and len(rates) == len(jobs) else None

    def at_edge(self, cell: Cell) -> bool:
        """Checks whether the tuned learning rate is the smallest or largest one tried, so that a better one can lie beyond."""
        rates = self._validations(self.tuning_jobs(self.study.rate_from(cell)))
        rate = self.best_rate(cell)
        return rate is not None and beyond(rates, rate) is not None

    def epochs(self, cell: Cell) -> int | None:
        """Returns the epochs of a cell's training; ``None`` while they depend on an unfinished run."""
        return self.study.epochs(cell, self._cost)

    def _cost(self, cell: Cell) -> tuple[float, int] | None:
        """Returns seconds and epochs of a cell's training with the first seed."""
        row = self.done(Job(cell, self.study.seeds_of(cell.data)[0])).get(cell.data)
        seconds = None if row is None else train_seconds(row)
        return None if row is None or seconds is None or not row["epochs"] else (seconds, row["epochs"])

    def waits_for(self, job: Job) -> str:
        """Describes what a job must wait for; empty if it can start."""
        study = self.study
        tuned = study.rate_from(job.cell)
        if job.rate is None and study.tuning_jobs(tuned) and self.best_rate(job.cell) is None:
            return f"the tuning of {tuned}"
        if study.has_derived_epochs(job.cell) and self.epochs(job.cell) is None:
            return f"seed {study.seeds_of(job.cell.data)[0]} of the runs that its epochs follow from"
        return ""

    def settings(self, job: Job) -> dict[str, Any]:
        """Returns the settings of a job that can start, as written in CONFIG, with the tuned learning rate and the epochs."""
        return self.study.job_settings(job, self.best_rate(job.cell), self.epochs(job.cell))

    def training_fingerprint(self, job: Job) -> str:
        """Returns the fingerprint of the training of a job that can start."""
        return self.study.training_fingerprint(job, self.best_rate(job.cell), self.epochs(job.cell))

    def keys(self, job: Job) -> dict[str, dict[str, Any]]:
        """Returns the columns that identify a job's rows, names and fingerprint, by the names of its evaluations; a short training has one
        row under its own name. A job that waits for others has ``None`` as fingerprint, which matches no row."""
        study, names, waits = self.study, job.cell._asdict(), self.waits_for(job)
        epochs = self.epochs(job.cell)
        if job.rate is not None:
            digest = None if waits else study.training_fingerprint(job, epochs=epochs)
            return {str(job): {**names, "learning_rate": job.rate, "fingerprint": digest}}
        rate, keys = self.best_rate(job.cell), {}
        for name in study.evaluations(job.cell.data):
            digest = None if waits else study.row_fingerprint(job, name, rate, epochs)
            keys[name] = {**names, "data": name, "seed": job.seed, "fingerprint": digest}
        return keys

    def done(self, job: Job) -> dict[str, dict[str, Any]]:
        """Returns the existing rows of a job, by the names of its evaluations."""
        rows = self.rows[self.runs if job.rate is None else self.tuning]
        return {name: row for name, key in self.keys(job).items() for row in rows if key.items() <= row.items()}

    def missing(self, job: Job) -> list[str]:
        """Returns the names of a job's evaluations that have no row."""
        done = self.done(job)
        return [name for name in self.keys(job) if name not in done]

    def put(self, job: Job, name: str, columns: dict[str, Any]) -> None:
        """Writes a row of a job, replacing a row with other settings."""
        file, key = self.runs if job.rate is None else self.tuning, self.keys(job)[name]
        digest = {"fingerprint": key.pop("fingerprint")}
        put_row(file, key | columns | digest, tuple(key))
        self.rows[file] = read_rows(file)

    def jobs(self, only: Collection[Run | str] = (), seeds: Collection[int] = ()) -> Iterator[Job]:
        """Yields all trainings, or those of some rows, data sets and seeds: seed by seed, so that an interrupted study is balanced, the
        short ones before a cell's first. Yields them lazily, because the outcome of one decides what follows."""
        listed = set()
        cells = [(cell, self.study.seeds_of(cell.data)) for cell in self.study.cells if _is_among(cell, only)]
        in_order = dict.fromkeys(seed for _, own in cells for seed in own if not seeds or seed in seeds)
        for seed in in_order:
            for cell in [cell for cell, own in cells if seed in own]:
                while (job := next((job for job in self.tuning_jobs(cell) if job not in listed), None)) is not None:
                    listed.add(job)
                    yield job
                yield Job(cell, seed)

    def job_epochs(self, job: Job) -> int | None:
        """Returns the epochs of a job; ``None`` while they depend on an unfinished run, or if neither CONFIG nor the bundle gives them."""
        epochs = self.epochs(job.cell)
        return self.study.job_settings(job, epochs=epochs).get("epochs", epochs)

    def seconds(self, job: Job) -> float | None:
        """Estimates the seconds of a job: its epochs times the seconds per epoch of finished jobs of its cell, or of its net on the same
        data; ``None`` if there are none."""
        names = job.cell._asdict()
        epochs, net = self.job_epochs(job), {key: names[key] for key in ("data", "net")}
        pace = self._pace(names) or self._pace(net)
        return None if epochs is None or pace is None else epochs * pace

    def _pace(self, names: Mapping[str, str]) -> float | None:
        """Returns the seconds per epoch of the last row with these names that has seconds and epochs."""
        rows = [row for row in self.rows[self.tuning] + self.rows[self.runs] if names.items() <= row.items()]
        costs = [(row.get("train_seconds", row.get("seconds")), row.get("epochs")) for row in rows]
        paces = [seconds / epochs for seconds, epochs in costs if seconds is not None and epochs]
        return paces[-1] if paces else None
