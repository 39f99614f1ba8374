"""What a study runs: its CONFIG, the settings of every run, their order, and the fingerprints of finished runs."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from monai.bundle import ConfigParser

from monai_gmr.bundle.overrides import check_settings
from monai_gmr.utils import ConfigurationError

Settings = dict[str, Any]

# the study sets these itself, for every run
OWN_SETTINGS = ("seed", "ckpt_dir", "output_dir")


class DataSet(NamedTuple):
    """A data set of a study; the fields are the keys of its entry in CONFIG."""

    bundle: str
    metric: str
    settings: Settings
    tuning: Settings
    evaluate: Settings
    nets: dict[str, Settings]
    tests: dict[str, Settings]

    def config_file(self, name: str) -> Path:
        """Path of ``configs/NAME.yaml`` of the bundle."""
        return Path(expand(self.bundle)) / "configs" / f"{name}.yaml"


class Tuning(NamedTuple):
    """Short trainings that choose the learning rate by the validation score: the rates, smallest first, their seed and settings."""

    learning_rates: tuple[float, ...]
    seed: int
    settings: Settings


class Cell(NamedTuple):
    """What is compared: a net with an augmentation on a data set."""

    data: str
    net: str
    augmentation: str

    def __str__(self) -> str:
        return f"{self.data}, {self.net}, {self.augmentation}"


class Job(NamedTuple):
    """One training: of a seed, or, with a ``rate``, a short one that tries that learning rate."""

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
    runs: tuple[tuple[str, str], ...]
    keep_checkpoints: bool

    @property
    def cells(self) -> list[Cell]:
        """Every net with every augmentation of ``runs``, on every data set."""
        return [Cell(data, net, augmentation) for data in self.data for net, augmentation in self.runs]

    def _own_settings(self, cell: Cell) -> Settings:
        return self.nets[cell.net] | self.data[cell.data].nets.get(cell.net, {}) | self.augmentations[cell.augmentation]

    def training_settings(self, cell: Cell) -> Settings:
        """Settings of a training except seed, folders and a tuned learning rate; special settings override general ones."""
        return self.settings | self.data[cell.data].settings | self._own_settings(cell)

    def tuning_jobs(self, cell: Cell) -> list[Job]:
        """The short trainings that choose a cell's learning rate; none where its net or augmentation gives one."""
        if self.tuning is None or "learning_rate" in self._own_settings(cell):
            return []
        return [Job(cell, self.tuning.seed, rate) for rate in self.tuning.learning_rates]

    def evaluations(self, data: str) -> dict[str, Settings]:
        """Evaluations of a net trained on a data set: name in the table to settings of evaluate.yaml alone."""
        own = self.data[data]
        return {data: own.evaluate} | {f"{data}: {test}": own.evaluate | more for test, more in own.tests.items()}

    def jobs(self) -> list[Job]:
        """All trainings: seed by seed, so that an interrupted study is balanced, the short ones before a cell's first seed."""
        jobs = []
        for index, seed in enumerate(self.seeds):
            for cell in self.cells:
                jobs += [*(self.tuning_jobs(cell) if index == 0 else ()), Job(cell, seed)]
        return jobs

    def job_settings(self, job: Job, learning_rate: float | None = None) -> Settings:
        """Settings of one training except its folders, as they stand in CONFIG; ``learning_rate`` is the tuned one."""
        settings = self.training_settings(job.cell)
        if job.rate is not None and self.tuning is not None:
            settings, learning_rate = settings | self.tuning.settings | self.data[job.cell.data].tuning, job.rate
        return settings | ({} if learning_rate is None else {"learning_rate": learning_rate}) | {"seed": job.seed}

    def training_fingerprint(self, job: Job, learning_rate: float | None = None) -> str:
        """Fingerprint of one training."""
        return fingerprint(Path(self.data[job.cell.data].bundle).name, self.job_settings(job, learning_rate))

    def row_fingerprint(self, job: Job, name: str, learning_rate: float | None = None) -> str:
        """Fingerprint of a row of runs.csv: a training, an evaluation of it and the reported metric."""
        settings, metric = self.evaluations(job.cell.data)[name], self.data[job.cell.data].metric
        return fingerprint(self.training_fingerprint(job, learning_rate), settings, metric)

    def folder(self, job: Job) -> Path:
        """Folder of one training."""
        cell = job.cell
        name = f"seed{job.seed}" if job.rate is None else f"tuning-lr{job.rate:g}"
        return self.output_dir / "runs" / slug(cell.data) / slug(f"{cell.net}-{cell.augmentation}") / name


def expand(value: Any) -> Any:
    """Environment variables and ``~`` in every string, within lists and dictionaries too.

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
    """A name as the name of a folder.

    Example:
        >>> slug("Blood cells: rotated")
        'blood-cells-rotated'
    """
    return re.sub(r"[^a-z0-9_.]+", "-", name.lower()).strip("-.")


def fingerprint(*parts: Any) -> str:
    """Twelve digits that are equal for equal settings, whatever their order.

    Example:
        >>> fingerprint({"epochs": 8, "seed": 0}) == fingerprint({"seed": 0, "epochs": 8}) != fingerprint({"epochs": 9, "seed": 0})
        True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _require(fits: bool, problem: str) -> None:
    if not fits:
        raise ConfigurationError(problem)


def _check_name(name: Any, known: Iterable[Any], problem: str) -> None:
    names = [str(each) for each in known]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(names)}."
    _require(name in names, f"{problem}: {hint}")


def _mapping(value: Any, where: str, keys: Sequence[str] | None = None) -> dict[str, Any]:
    """A dictionary with text as keys; ``None``, an empty entry of YAML, is an empty one."""
    if value is None:
        return {}
    _require(isinstance(value, dict), f"{where} is {value!r}: give names with values below it.")
    for name in value:
        _require(isinstance(name, str), f"the name {name!r} in {where} is no text: put it in quotes.")
        if keys is not None:
            _check_name(name, keys, f"{name} is no key of {where}")
    return value


def _settings(value: Any, where: str) -> Settings:
    settings = _mapping(value, where)
    for name in OWN_SETTINGS:
        _require(name not in settings, f"{name} in {where} is set by the study: take it out (seeds stand under seeds).")
    return settings


def _layers(value: Any, where: str) -> dict[str, Settings]:
    return {name: _settings(item, f"{where}, {name}") for name, item in _mapping(value, where).items()}


def _seed(value: Any, where: str) -> int:
    _require(type(value) is int, f"{value!r} in {where} is no seed: give whole numbers.")
    return value


def _read_tuning(value: Any) -> Tuning | None:
    if value is None:
        return None
    tuning = _mapping(value, "tuning", Tuning._fields)
    rates = tuning.get("learning_rates")
    try:
        # YAML reads 1e-3 as text
        numbers = sorted({float(rate) for rate in rates or []})
    except (TypeError, ValueError):
        numbers = []
    fits = bool(numbers) and numbers[0] > 0
    _require(fits, f"learning_rates in tuning is {rates!r}: give a list of positive numbers.")
    settings = _settings(tuning.get("settings"), "tuning, settings")
    return Tuning(tuple(numbers), _seed(tuning.get("seed", 0), "tuning"), settings)


def _read_data(name: str, value: Any, nets: Mapping[str, Settings]) -> DataSet:
    where = f"data, {name}"
    entry = _mapping(value, where, DataSet._fields)
    for key in ("bundle", "metric"):
        _require(isinstance(entry.get(key), str), f"{where} has no {key}: give the {key} to use as text.")
    settings = {key: _settings(entry.get(key), f"{where}, {key}") for key in ("settings", "tuning", "evaluate")}
    layers = {key: _layers(entry.get(key), f"{where}, {key}") for key in ("nets", "tests")}
    for net in layers["nets"]:
        _check_name(net, nets, f"{where} has settings for the unknown net {net}")
    return DataSet(entry["bundle"], entry["metric"], **settings, **layers)


def _read_runs(value: Any, nets: Iterable[str], augmentations: Iterable[str]) -> tuple[tuple[str, str], ...]:
    if value is None:
        return tuple((net, augmentation) for net in nets for augmentation in augmentations)
    is_list = isinstance(value, list) and bool(value)
    _require(is_list, f"runs is {value!r}: give a list of [net, augmentation], or leave it out.")
    for run in value:
        is_pair = isinstance(run, list) and len(run) == 2
        _require(is_pair, f"{run!r} in runs is no pair: give [net, augmentation].")
        for kind, name, known in (("net", run[0], nets), ("augmentation", run[1], augmentations)):
            _check_name(name, known, f"runs names the unknown {kind} {name}")
    return tuple(dict.fromkeys((net, augmentation) for net, augmentation in value))


def _check_folders(study: Study) -> None:
    """Raise where two names differ only in signs that a folder's name cannot hold."""
    folders: dict[Path, Cell] = {}
    for cell in study.cells:
        folder = study.folder(Job(cell, 0)).parent
        other = folders.setdefault(folder, cell)
        _require(other == cell, f"'{other}' and '{cell}' would share the folder {folder}: rename one.")
    names = [slug(name) for data in study.data for name in study.evaluations(data)]
    unlike = len(names) == len(set(names))
    _require(unlike, "two data sets or tests have names that are equal but for signs: rename one.")


def load_study(path: str | Path) -> Study:
    """Read the CONFIG of a study, a YAML file that :mod:`monai_gmr.apps.study` describes; raises ``ConfigurationError`` when it cannot be
    read, a key is unknown or missing, or a run names an unknown net or augmentation."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}): give the YAML file of a study.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = " ".join(str(error).split())
        raise ConfigurationError(f"{path} is not readable as YAML ({first}): correct it.") from error
    _require(isinstance(config, dict), f"{path} holds no settings: give {', '.join(Study._fields)}.")
    _mapping(config, str(path), Study._fields)
    folder, seeds, keep = config.get("output_dir"), config.get("seeds"), config.get("keep_checkpoints", False)
    _require(isinstance(folder, str), f"{path} has no output_dir: give the folder that runs and tables go to.")
    is_list = isinstance(seeds, list) and bool(seeds)
    _require(is_list, f"seeds is {seeds!r}: give a list of whole numbers, such as [0, 1, 2].")
    _require(isinstance(keep, bool), f"keep_checkpoints is {keep!r}: give true or false.")
    nets = _layers(config.get("nets"), "nets")
    augmentations = _layers(config.get("augmentations"), "augmentations") or {"none": {}}
    data = {name: _read_data(name, entry, nets) for name, entry in _mapping(config.get("data"), "data").items()}
    for kind, entries in {"data": data, "nets": nets}.items():
        _require(bool(entries), f"{path} has no {kind}: name at least one below {kind}.")
    study = Study(
        output_dir=Path(expand(folder)),
        seeds=tuple(dict.fromkeys(_seed(seed, "seeds") for seed in seeds)),
        tuning=_read_tuning(config.get("tuning")),
        settings=_settings(config.get("settings"), "settings"),
        data=data,
        nets=nets,
        augmentations=augmentations,
        runs=_read_runs(config.get("runs"), nets, augmentations),
        keep_checkpoints=keep,
    )
    _check_folders(study)
    return study


def restrict(settings: Mapping[str, Any], config: Mapping[str, Any]) -> Settings:
    """The settings that a config has, by the first part of their ids.

    Example:
        >>> restrict({"epochs": 8, "loss::weight": 2, "conv": "gmr"}, {"conv": "plain", "loss": {}})
        {'loss::weight': 2, 'conv': 'gmr'}
    """
    return {name: value for name, value in settings.items() if name.replace("#", "::").split("::")[0] in config}


def _load_config(path: Path, name: str) -> dict[str, Any]:
    _require(path.is_file(), f"data, {name}: there is no {path}: give a bundle's folder.")
    try:
        return dict(ConfigParser.load_config_file(path))
    except Exception as error:
        text = " ".join(str(error).split())
        raise ConfigurationError(f"{path} is no readable config ({text}): correct it.") from error


def _check(settings: Settings, config: Mapping[str, Any], where: str) -> None:
    try:
        check_settings(expand(settings) | {"ckpt_dir": "", "output_dir": ""}, config)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def check_bundles(study: Study) -> None:
    """Raise ``ConfigurationError`` unless every bundle has a readable ``configs/train.yaml`` and ``configs/evaluate.yaml``, and these have
    every setting and can take its value, before anything long starts."""
    for name, data in study.data.items():
        train, evaluate = (_load_config(data.config_file(kind), name) for kind in ("train", "evaluate"))
        for cell in [cell for cell in study.cells if cell.data == name]:
            for job in [*study.tuning_jobs(cell)[:1], Job(cell, study.seeds[0])]:
                _check(study.job_settings(job), train, str(cell))
            trained = restrict(study.training_settings(cell), evaluate)
            for title, settings in study.evaluations(name).items():
                _check(trained | settings, evaluate, f"{title}, evaluation")
