"""The plan of a study: its rows, the settings and the folder of every run, and the fingerprints of finished runs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser

from monai_gmr.bundle.shipped import find_bundle
from monai_gmr.fingerprints import fingerprint
from monai_gmr.utils import ConfigurationError

Settings = dict[str, Any]

# settings that can follow from other runs, and the keys of such an entry; each key except "times" names a run
DERIVED: dict[str, tuple[tuple[str, ...], ...]] = {
    "epochs": (("times",), ("seconds_of", "pace_of")),
    "learning_rate": (("of",),),
}


class Run(NamedTuple):
    """A row of the table: a net with an augmentation."""

    net: str
    augmentation: str

    def __str__(self) -> str:
        return f"{self.net}, {self.augmentation}"


class Evaluation(NamedTuple):
    """An evaluation, a row of runs.csv per run: settings only for evaluate.yaml, the metric to report, a folder in the training's."""

    settings: Settings
    metric: str
    folder: str


class DataSet(NamedTuple):
    """A data set of a study; the fields are the keys of its entry in CONFIG."""

    bundle: str
    metric: tuple[str, ...]
    settings: Settings
    tuning: Settings
    evaluate: Settings
    nets: dict[str, Settings]
    tests: dict[str, Settings]
    runs: tuple[Run, ...]
    seeds: tuple[int, ...]

    def config_file(self, name: str) -> Path:
        """Returns the path of ``configs/NAME.yaml`` of the bundle, a folder or the name of a bundle that ships; raises if there is none."""
        return find_bundle(expand(self.bundle)) / "configs" / f"{name}.yaml"

    def default_epochs(self) -> int | None:
        """Returns ``epochs`` of the bundle's ``train.yaml``; ``None`` unless it is an integer."""
        epochs = load_config(self.config_file("train")).get("epochs")
        return epochs if isinstance(epochs, int) else None


class Tuning(NamedTuple):
    """Short trainings that choose the learning rate by the validation score: the rates, smallest first, the number of further rates to try
    while the best is at an edge, their seed and settings."""

    learning_rates: tuple[float, ...]
    widenings: int
    seed: int
    settings: Settings


class Cell(NamedTuple):
    """A unit of comparison: a net with an augmentation on a data set."""

    data: str
    net: str
    augmentation: str

    @property
    def run(self) -> Run:
        """The row of the table."""
        return Run(self.net, self.augmentation)

    def __str__(self) -> str:
        return f"{self.data}, {self.net}, {self.augmentation}"


class Job(NamedTuple):
    """A training with a seed, or, with a ``rate``, a short training that tries this learning rate."""

    cell: Cell
    seed: int
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.cell}, " + (f"seed {self.seed}" if self.rate is None else f"trying learning rate {self.rate:g}")


class Study(NamedTuple):
    """A study; the fields are the keys of its CONFIG."""

    output_dir: Path
    seeds: tuple[int, ...]
    tuning: Tuning | None
    settings: Settings
    data: dict[str, DataSet]
    nets: dict[str, Settings]
    augmentations: dict[str, Settings]
    runs: tuple[Run, ...]
    reference: Run | None
    keep_checkpoints: bool
    overview: bool

    @property
    def cells(self) -> list[Cell]:
        """Every data set with the rows of the study and its own rows."""
        return [Cell(name, *run) for name, data in self.data.items() for run in dict.fromkeys((*self.runs, *data.runs))]

    def seeds_of(self, data: str) -> tuple[int, ...]:
        """Returns the seeds of a data set: its own, or the study's."""
        return self.data[data].seeds or self.seeds

    def _layers(self, cell: Cell) -> list[Settings]:
        """Returns the settings of a cell from general to special: later ones override earlier ones."""
        data = self.data[cell.data]
        own = [self.nets[cell.net], data.nets.get(cell.net, {}), self.augmentations[cell.augmentation]]
        return [self.settings, data.settings, *own]

    def own_settings(self, cell: Cell) -> Settings:
        """Returns the settings that the net and the augmentation of a cell give."""
        return merge(self._layers(cell)[2:])

    def training_settings(self, cell: Cell) -> Settings:
        """Returns the settings of a training except seed, folders, and those derived from other runs; special override general ones."""
        settings = merge(self._layers(cell))
        return {name: value for name, value in settings.items() if not is_derived(name, value)}

    def tuning_jobs(self, cell: Cell) -> list[Job]:
        """Returns the short trainings with the learning rates of CONFIG; none if the cell's net or augmentation gives a rate."""
        if self.tuning is None or "learning_rate" in self.own_settings(cell):
            return []
        return [Job(cell, self.tuning.seed, rate) for rate in self.tuning.learning_rates]

    def rate_from(self, cell: Cell) -> Cell:
        """Returns the cell whose tuned learning rate a cell takes: itself, or the run of ``learning_rate: {of: RUN}``."""
        rate = self.own_settings(cell).get("learning_rate")
        return Cell(cell.data, *rate["of"]) if isinstance(rate, Mapping) else cell

    def has_derived_epochs(self, cell: Cell) -> bool:
        """Checks whether the epochs of a cell follow from other runs."""
        return isinstance(merge(self._layers(cell)).get("epochs"), Mapping)

    def epochs(self, cell: Cell, cost: Callable[[Cell], tuple[float, int] | None] | None = None) -> int | None:
        """Returns the epochs of a cell's training. ``cost`` gives seconds and epochs of the first seed of another cell, ``None`` until
        it is done; until then the epochs of a cell that trains for equal seconds are ``None``."""
        values = [layer["epochs"] for layer in self._layers(cell) if "epochs" in layer]
        given = bool(values) and not isinstance(values[0], Mapping)
        epochs: int | None = None if given else self.data[cell.data].default_epochs()
        for value in values:
            if not isinstance(value, Mapping):
                epochs = int(value)
            elif "times" in value:
                epochs = None if epochs is None else math.ceil(value["times"] * epochs)
            else:
                whole, pace = (
                    cost(Cell(cell.data, *value[key])) if cost else None for key in ("seconds_of", "pace_of")
                )
                # rounded up, in favour of the cell that gets equal seconds
                epochs = math.ceil(whole[0] / (pace[0] / pace[1])) if whole and pace else None
        return epochs

    def evaluations(self, data: str) -> dict[str, Evaluation]:
        """Returns the evaluations of a net trained on a data set, by their names in the table: one for each test and metric; the metrics of
        a test share a folder."""
        own = self.data[data]
        tests = {data: ("evaluate", own.evaluate)}
        tests |= {
            f"{data}: {test}": (f"evaluate-{slug(test)}", own.evaluate | more) for test, more in own.tests.items()
        }
        return {
            evaluation_name(title, metric, own.metric): Evaluation(settings, metric, folder)
            for title, (folder, settings) in tests.items()
            for metric in own.metric
        }

    def job_settings(self, job: Job, learning_rate: float | None = None, epochs: int | None = None) -> Settings:
        """Returns the settings of one training except its folders, as written in CONFIG; ``learning_rate`` is the tuned one, ``epochs`` are
        the cell's if they follow from other runs. A short training takes half of them unless CONFIG gives a number."""
        settings = self.training_settings(job.cell)
        if epochs is not None and self.has_derived_epochs(job.cell):
            settings["epochs"] = epochs
        if job.rate is not None and self.tuning is not None:
            half = {} if epochs is None else {"epochs": math.ceil(epochs / 2)}
            settings = settings | half | self.tuning.settings | self.data[job.cell.data].tuning
            learning_rate = job.rate
        return settings | ({} if learning_rate is None else {"learning_rate": learning_rate}) | {"seed": job.seed}

    def training_fingerprint(self, job: Job, learning_rate: float | None = None, epochs: int | None = None) -> str:
        """Returns the fingerprint of one training."""
        return fingerprint(Path(self.data[job.cell.data].bundle).name, self.job_settings(job, learning_rate, epochs))

    def row_fingerprint(
        self, job: Job, name: str, learning_rate: float | None = None, epochs: int | None = None
    ) -> str:
        """Returns the fingerprint of a row of runs.csv: a training, its evaluation and the reported metric."""
        evaluation = self.evaluations(job.cell.data)[name]
        training = self.training_fingerprint(job, learning_rate, epochs)
        return fingerprint(training, evaluation.settings, evaluation.metric)

    def folder(self, job: Job) -> Path:
        """Returns the folder of one training."""
        cell = job.cell
        name = f"seed{job.seed}" if job.rate is None else f"tuning-lr{job.rate:g}"
        return self.output_dir / "runs" / slug(cell.data) / slug(f"{cell.net}-{cell.augmentation}") / name


def evaluation_name(title: str, metric: str, metrics: Sequence[str]) -> str:
    """Names the evaluation of a data set or test by one of several metrics; for the first metric it is the title.

    Example:
        >>> [evaluation_name("cells", metric, ("accuracy", "auc")) for metric in ("accuracy", "auc")]
        ['cells', 'cells (auc)']
    """
    return title if metric == metrics[0] else f"{title} ({metric})"


def merge(layers: Iterable[Settings]) -> Settings:
    """Merges settings into one dictionary; later ones override earlier ones.

    Example:
        >>> merge([{"epochs": 8, "width": 4}, {"epochs": 9}])
        {'epochs': 9, 'width': 4}
    """
    return {name: value for layer in layers for name, value in layer.items()}


def is_derived(name: str, value: Any) -> bool:
    """Checks whether a setting follows from other runs."""
    return name in DERIVED and isinstance(value, Mapping)


def expand(value: Any) -> Any:
    """Expands environment variables and ``~`` in every string, also within lists and dictionaries.

    Example:
        >>> os.environ["SOMEWHERE"] = "/data"; expand({"dataset_dir": "$SOMEWHERE/cells", "layers": [1, 2]})
        {'dataset_dir': '/data/cells', 'layers': [1, 2]}
    """
    if isinstance(value, str):
        return os.path.expanduser(os.path.expandvars(value))
    if isinstance(value, Mapping):
        return {name: expand(item) for name, item in value.items()}
    return [expand(item) for item in value] if isinstance(value, (list, tuple)) else value


def slug(name: str) -> str:
    """Converts a name to the name of a folder.

    Example:
        >>> slug("Blood cells: rotated")
        'blood-cells-rotated'
    """
    return re.sub(r"[^a-z0-9_.]+", "-", name.lower()).strip("-.")


def restrict(settings: Mapping[str, Any], config: Mapping[str, Any]) -> Settings:
    """Keeps the settings that a config has, by the first part of their ids.

    Example:
        >>> restrict({"epochs": 8, "loss::weight": 2, "conv": "gmr"}, {"conv": "plain", "loss": {}})
        {'loss::weight': 2, 'conv': 'gmr'}
    """
    return {name: value for name, value in settings.items() if name.replace("#", "::").split("::")[0] in config}


@cache
def load_config(path: Path) -> dict[str, Any]:
    """Loads a config of a bundle; raises ``ConfigurationError`` if it is missing or cannot be read."""
    if not path.is_file():
        raise ConfigurationError(f"there is no {path}: give a bundle's folder.")
    try:
        return dict(ConfigParser.load_config_file(path))
    except Exception as error:
        text = " ".join(str(error).split())
        raise ConfigurationError(f"{path} is not a readable config ({text}): correct it.") from error
