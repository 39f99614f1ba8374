"""What is done of a study, by the rows of its files, and what follows: the learning rates to try, the epochs, the jobs to run."""

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


def best_rate(validations: Mapping[float, float]) -> float:
    """The learning rate of the best validation score, of equal ones the smallest; a score that is not a number is the worst."""
    return max(sorted(validations), key=lambda rate: (validations[rate] == validations[rate], validations[rate]))


def beyond(rates: Collection[float], best: float) -> float | None:
    """The learning rate to try next when the best one is the smallest or largest of ``rates``: the next beyond it among 1 and 3 times the
    powers of ten; ``None`` when it lies within.

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
    """Whether a cell is of one of the rows, if rows are named, and of one of the data sets, if data sets are."""
    rows, data = ({name for name in only if isinstance(name, kind)} for kind in (Run, str))
    return (not rows or cell.run in rows) and (not data or cell.data in data)


def train_seconds(row: Mapping[str, Any]) -> float | None:
    """Seconds of a training, from its row: of the processor where there are any, which other work on the machine does not change."""
    processor = row.get("train_processor_seconds")
    return row.get("train_seconds") if processor is None else processor


class Progress:
    """What is done of a study: the rows of its runs.csv and, for short trainings, of its tuning.csv."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.runs, self.tuning = study.output_dir / "runs.csv", study.output_dir / "tuning.csv"
        self.rows = {file: read_rows(file) for file in (self.runs, self.tuning)}

    def tuning_jobs(self, cell: Cell) -> list[Job]:
        """The short trainings of a cell: those of CONFIG and, while the best rate is at an edge, as many more as CONFIG allows; the last
        may be missing."""
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
        """Validation scores of the short trainings that are done, by their rates; no score counts as the worst."""
        rows = [row for job in jobs for row in self.done(job).values()]
        return {row["learning_rate"]: math.nan if row["validation"] is None else row["validation"] for row in rows}

    def best_rate(self, cell: Cell) -> float | None:
        """The tuned learning rate of a cell; ``None`` when it is not tuned, or not yet."""
        jobs = self.tuning_jobs(self.study.rate_from(cell))
        rates = self._validations(jobs)
        return best_rate(rates) if jobs and len(rates) == len(jobs) else None

    def at_edge(self, cell: Cell) -> bool:
        """Whether the tuned learning rate is still the smallest or largest of those tried, so that a better one may lie beyond."""
        rates = self._validations(self.tuning_jobs(self.study.rate_from(cell)))
        rate = self.best_rate(cell)
        return rate is not None and beyond(rates, rate) is not None

    def epochs(self, cell: Cell) -> int | None:
        """Epochs of a cell's training; ``None`` while they follow from a run that is not done."""
        return self.study.epochs(cell, self._cost)

    def _cost(self, cell: Cell) -> tuple[float, int] | None:
        """Seconds and epochs of the first seed's training of a cell."""
        row = self.done(Job(cell, self.study.seeds_of(cell.data)[0])).get(cell.data)
        seconds = None if row is None else train_seconds(row)
        return None if row is None or seconds is None or not row["epochs"] else (seconds, row["epochs"])

    def waits_for(self, job: Job) -> str:
        """What must be done before a job can start, in words; empty when nothing is."""
        study = self.study
        tuned = study.rate_from(job.cell)
        if job.rate is None and study.tuning_jobs(tuned) and self.best_rate(job.cell) is None:
            return f"the tuning of {tuned}"
        if study.has_derived_epochs(job.cell) and self.epochs(job.cell) is None:
            return f"seed {study.seeds_of(job.cell.data)[0]} of the runs that its epochs follow from"
        return ""

    def settings(self, job: Job) -> dict[str, Any]:
        """Settings of a job that waits for nothing, as they stand in CONFIG, with the tuned learning rate and the epochs."""
        return self.study.job_settings(job, self.best_rate(job.cell), self.epochs(job.cell))

    def training_fingerprint(self, job: Job) -> str:
        """Fingerprint of the training of a job that waits for nothing."""
        return self.study.training_fingerprint(job, self.best_rate(job.cell), self.epochs(job.cell))

    def keys(self, job: Job) -> dict[str, dict[str, Any]]:
        """What a job's rows are known by: names and fingerprint, by the names of its evaluations; a short training has one row, of its own
        name. A job that waits for others has no fingerprint, which no row has."""
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

    def jobs(self, only: Collection[Run | str] = (), seeds: Collection[int] = ()) -> Iterator[Job]:
        """All trainings, or those of some rows, data sets and seeds: seed by seed, so that an interrupted study is balanced, the short ones
        before a cell's first. They are looked up one after another, for the outcome of one decides what follows."""
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
        """Epochs of a job; ``None`` while they follow from a run that is not done, and where neither CONFIG nor the bundle gives them."""
        epochs = self.epochs(job.cell)
        return self.study.job_settings(job, epochs=epochs).get("epochs", epochs)

    def seconds(self, job: Job) -> float | None:
        """What a job is expected to take: its epochs times the seconds of one, by what is done of its cell, or of its net on the same data;
        ``None`` when nothing is."""
        names = job.cell._asdict()
        epochs, net = self.job_epochs(job), {key: names[key] for key in ("data", "net")}
        pace = self._pace(names) or self._pace(net)
        return None if epochs is None or pace is None else epochs * pace

    def _pace(self, names: Mapping[str, str]) -> float | None:
        """Seconds of an epoch in the last row of these names that has both."""
        rows = [row for row in self.rows[self.tuning] + self.rows[self.runs] if names.items() <= row.items()]
        costs = [(row.get("train_seconds", row.get("seconds")), row.get("epochs")) for row in rows]
        paces = [seconds / epochs for seconds, epochs in costs if seconds is not None and epochs]
        return paces[-1] if paces else None
