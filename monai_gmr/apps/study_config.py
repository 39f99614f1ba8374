"""Reading and checks of the CONFIG of a study: every mistake raises one sentence before anything long starts."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from monai_gmr.apps.study_plan import (
    DERIVED,
    Cell,
    DataSet,
    Job,
    Run,
    Settings,
    Study,
    Tuning,
    expand,
    is_derived,
    load_config,
    merge,
    restrict,
    slug,
)
from monai_gmr.bundle.overrides import check_settings
from monai_gmr.data import medmnist_flags
from monai_gmr.utils import ConfigurationError

# the study sets these itself, for every run
OWN_SETTINGS = ("seed", "ckpt_dir", "output_dir")
# least ratio of the largest to the smallest learning rate tried
SPAN = 10
FLAG = "{flag}"
# flags that medmnist lists, by the number of axes of its images
MEDMNIST = {"medmnist2d": 2, "medmnist3d": 3}


def _require(fits: bool, problem: str) -> None:
    if not fits:
        raise ConfigurationError(problem)


def _check_name(name: Any, known: Iterable[Any], problem: str) -> None:
    names = [str(each) for each in known]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(names)}."
    _require(name in names, f"{problem}: {hint}")


def _mapping(value: Any, where: str, keys: Sequence[str] | None = None) -> dict[str, Any]:
    """Checks a dictionary with text as keys; ``None``, an empty entry of YAML, gives an empty one."""
    if value is None:
        return {}
    _require(isinstance(value, dict), f"{where} is {value!r}: give names with values below it.")
    for name in value:
        _require(isinstance(name, str), f"the name {name!r} in {where} is not a string: put it in quotes.")
        if keys is not None:
            _check_name(name, keys, f"{name} is not a key of {where}")
    return value


def _settings(value: Any, where: str) -> Settings:
    settings = _mapping(value, where)
    for name in OWN_SETTINGS:
        _require(name not in settings, f"{name} in {where} is set by the study: take it out (seeds stand under seeds).")
    return settings


def _layers(value: Any, where: str) -> dict[str, Settings]:
    return {name: _settings(item, f"{where}, {name}") for name, item in _mapping(value, where).items()}


def _seed(value: Any, where: str) -> int:
    _require(type(value) is int, f"{value!r} in {where} is not a seed: give whole numbers.")
    return value


def _read_seeds(value: Any, where: str) -> tuple[int, ...]:
    is_list = isinstance(value, list) and bool(value)
    _require(is_list, f"{where} is {value!r}: give a list of whole numbers, such as [0, 1, 2].")
    return tuple(dict.fromkeys(_seed(seed, where) for seed in value))


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
    # .01 / .001 is not quite 10
    span = round(numbers[-1] / numbers[0], 6)
    problem = f"learning_rates in tuning is {rates!r}, a span of {span:g}: give rates over a factor of {SPAN} or more."
    _require(span >= SPAN, problem)
    widenings = tuning.get("widenings", 2)
    fits = type(widenings) is int and widenings >= 0
    _require(fits, f"widenings in tuning is {widenings!r}: give a whole number from 0, such as 2.")
    settings = _settings(tuning.get("settings"), "tuning, settings")
    return Tuning(tuple(numbers), widenings, _seed(tuning.get("seed", 0), "tuning"), settings)


def _fill(value: Any, flag: str) -> Any:
    """Replaces ``{flag}`` by a flag in text, also within lists and dictionaries."""
    if isinstance(value, str):
        return value.replace(FLAG, flag)
    if isinstance(value, dict):
        return {_fill(name, flag): _fill(item, flag) for name, item in value.items()}
    return [_fill(item, flag) for item in value] if isinstance(value, list) else value


def _each_flag(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Expands the entries of data that have ``flags`` to one entry per flag."""
    data: dict[str, Any] = {}
    for name, entry in entries.items():
        where = f"data, {name}"
        if not isinstance(entry, dict) or "flags" not in entry:
            _require(
                not isinstance(entry, dict) or "by_flag" not in entry, f"{where} has by_flag and no flags: give both."
            )
            added = {name: entry}
        else:
            flags = entry["flags"]
            if isinstance(flags, str) and flags in MEDMNIST:
                flags = medmnist_flags(MEDMNIST[flags])
            is_list = isinstance(flags, list) and bool(flags) and all(isinstance(flag, str) for flag in flags)
            _require(is_list, f"flags of {where} is {flags!r}: give a list of names, or {' or '.join(MEDMNIST)}.")
            _require(FLAG in name, f"{where} has flags and one name for all: put {FLAG} into the name.")
            own = _layers(entry.get("by_flag"), f"{where}, by_flag")
            for flag in own:
                _check_name(flag, flags, f"{where} has settings for the unknown flag {flag}")
            rest = {key: value for key, value in entry.items() if key not in ("flags", "by_flag")}
            settings = _settings(entry.get("settings"), f"{where}, settings")
            added = {
                _fill(name, flag): _fill(rest | {"settings": settings | own.get(flag, {})}, flag) for flag in flags
            }
        for title, value in added.items():
            _require(title not in data, f"two data sets are named {title}: rename one.")
            data[title] = value
    return data


def _read_metric(value: Any, where: str) -> tuple[str, ...]:
    metrics = value if isinstance(value, list) else [value]
    fits = bool(metrics) and all(isinstance(metric, str) for metric in metrics) and len({*metrics}) == len(metrics)
    _require(fits, f"{where} has no metric: give the metric to use as text, or a list of several.")
    return tuple(metrics)


def _read_data(name: str, value: Any, nets: Mapping[str, Settings], augmentations: Mapping[str, Settings]) -> DataSet:
    where = f"data, {name}"
    entry = _mapping(value, where, (*DataSet._fields, "flags", "by_flag"))
    _require(isinstance(entry.get("bundle"), str), f"{where} has no bundle: give the bundle to use as text.")
    metric = _read_metric(entry.get("metric"), where)
    settings = {key: _settings(entry.get(key), f"{where}, {key}") for key in ("settings", "tuning", "evaluate")}
    layers = {key: _layers(entry.get(key), f"{where}, {key}") for key in ("nets", "tests")}
    for net in layers["nets"]:
        _check_name(net, nets, f"{where} has settings for the unknown net {net}")
    runs = _read_runs(entry["runs"], nets, augmentations, f"runs of {where}") if "runs" in entry else ()
    seeds = _read_seeds(entry["seeds"], f"seeds of {where}") if "seeds" in entry else ()
    return DataSet(entry["bundle"], metric, **settings, **layers, runs=runs, seeds=seeds)


def _read_run(value: Any, where: str, nets: Iterable[str], augmentations: Iterable[str]) -> Run:
    is_pair = isinstance(value, list) and len(value) == 2
    _require(is_pair, f"{value!r} in {where} is not a pair: give [net, augmentation].")
    for kind, name, known in (("net", value[0], nets), ("augmentation", value[1], augmentations)):
        _check_name(name, known, f"{where} names the unknown {kind} {name}")
    return Run(*value)


def _read_runs(value: Any, nets: Iterable[str], augmentations: Iterable[str], where: str = "runs") -> tuple[Run, ...]:
    if value is None:
        return tuple(Run(net, augmentation) for net in nets for augmentation in augmentations)
    is_list = isinstance(value, list) and bool(value)
    _require(is_list, f"{where} is {value!r}: give a list of [net, augmentation], or leave it out.")
    return tuple(dict.fromkeys(_read_run(run, where, nets, augmentations) for run in value))


def _check_derived(study: Study) -> None:
    """Raises unless each setting that follows from other runs has its keys, names earlier runs, and belongs to a net or an
    augmentation."""
    general = {"settings": study.settings}
    general |= {f"data, {name}": merge([data.settings, *data.nets.values()]) for name, data in study.data.items()}
    for place, entry in general.items():
        for name, value in entry.items():
            _require(not is_derived(name, value), f"{name} in {place} is {value!r}: give a number there.")
    for position, cell in enumerate(study.cells):
        run, before = cell.run, {other.run for other in study.cells[:position] if other.data == cell.data}
        for entry in (study.nets[run.net], study.augmentations[run.augmentation]):
            for name, value in ((name, value) for name, value in entry.items() if is_derived(name, value)):
                where, forms = f"{name} of {run}", DERIVED[name]
                shown = " or ".join("{" + ", ".join(f"{key}: ..." for key in form) + "}" for form in forms)
                _require(
                    set(value) in [set(form) for form in forms], f"{where} is {value!r}: give a number, or {shown}."
                )
                for key, other in value.items():
                    if key == "times":
                        _require(type(other) in (int, float) and other > 0, f"times in {where} is {other!r}: give 3.")
                        continue
                    other = _read_run(other, where, study.nets, study.augmentations)
                    _require(other in before, f"{where} needs [{other}]: put that run before it in runs.")
    for cell in study.cells:
        tuned = study.rate_from(cell)
        problem = (
            f"learning_rate of {cell} is that of {tuned}, which is not tuned: name a run that gives no learning_rate."
        )
        _require(tuned == cell or "learning_rate" not in study.own_settings(tuned), problem)


def _check_folders(study: Study) -> None:
    """Raises if two names differ only in characters that a folder's name cannot hold."""
    folders: dict[Path, Cell] = {}
    for cell in study.cells:
        folder = study.folder(Job(cell, 0)).parent
        other = folders.setdefault(folder, cell)
        _require(other == cell, f"'{other}' and '{cell}' would share the folder {folder}: rename one.")
    names = [slug(name) for data in study.data for name in study.evaluations(data)]
    unlike = len(names) == len(set(names))
    _require(unlike, "two data sets or tests have names that differ only in special characters: rename one.")


def load_study(path: str | Path) -> Study:
    """Reads the CONFIG of a study, a YAML file that :mod:`monai_gmr.apps.study` describes; raises ``ConfigurationError`` if it cannot be
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
    folder, keep = config.get("output_dir"), config.get("keep_checkpoints", False)
    _require(isinstance(folder, str), f"{path} has no output_dir: give the folder that runs and tables go to.")
    _require(isinstance(keep, bool), f"keep_checkpoints is {keep!r}: give true or false.")
    overview = config.get("overview", False)
    _require(isinstance(overview, bool), f"overview is {overview!r}: give true or false.")
    reference = config.get("reference")
    nets = _layers(config.get("nets"), "nets")
    augmentations = _layers(config.get("augmentations"), "augmentations") or {"none": {}}
    data = {
        name: _read_data(name, entry, nets, augmentations)
        for name, entry in _each_flag(_mapping(config.get("data"), "data")).items()
    }
    for kind, entries in {"data": data, "nets": nets}.items():
        _require(bool(entries), f"{path} has no {kind}: name at least one below {kind}.")
    study = Study(
        output_dir=Path(expand(folder)),
        seeds=_read_seeds(config.get("seeds"), "seeds"),
        tuning=_read_tuning(config.get("tuning")),
        settings=_settings(config.get("settings"), "settings"),
        data=data,
        nets=nets,
        augmentations=augmentations,
        runs=_read_runs(config.get("runs"), nets, augmentations),
        reference=reference and _read_run(reference, "reference", nets, augmentations),
        keep_checkpoints=keep,
        overview=overview,
    )
    listed = study.reference is None or study.reference in {cell.run for cell in study.cells}
    _require(listed, f"the reference [{study.reference}] is not among the runs: put it there, or take another.")
    _check_derived(study)
    _check_folders(study)
    return study


def _check(settings: Settings, config: Mapping[str, Any], where: str) -> None:
    try:
        check_settings(expand(settings) | {"ckpt_dir": "", "output_dir": ""}, config)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def check_bundles(study: Study) -> None:
    """Raises ``ConfigurationError``, before anything long starts, unless every bundle has a readable ``configs/train.yaml`` and
    ``configs/evaluate.yaml``, these accept every setting and value, and every short training has at least half of its cell's epochs."""
    for name, data in study.data.items():
        train, evaluate = (load_config(data.config_file(kind)) for kind in ("train", "evaluate"))
        for cell in [cell for cell in study.cells if cell.data == name]:
            for job in [*study.tuning_jobs(cell)[:1], Job(cell, study.seeds_of(name)[0])]:
                _check(study.job_settings(job), train, str(cell))
            _check_tuning(study, cell)
            trained = restrict(study.training_settings(cell), evaluate)
            for title, evaluation in study.evaluations(name).items():
                _check(trained | evaluation.settings, evaluate, f"{title}, evaluation")


def check_data_folders(study: Study) -> None:
    """Raises ``ConfigurationError`` if the folder of a data set is an environment variable that is not set."""
    for name, data in study.data.items():
        folder = str(expand(merge([study.settings, data.settings]).get("dataset_dir", "")))
        known = not folder.startswith("$") or folder.startswith("$@")
        _require(
            known, f"dataset_dir of {name} is {folder}, which is not set: export {folder[1:].split('/')[0]}=FOLDER."
        )


def _check_tuning(study: Study, cell: Cell) -> None:
    """Raises if a short training has less than half of its cell's epochs, if these are known."""
    whole = study.epochs(cell)
    if whole is None:
        return
    for job in study.tuning_jobs(cell)[:1]:
        epochs = study.job_settings(job, epochs=whole)["epochs"]
        problem = f"tuning of {cell} has {epochs} of its {whole} epochs: give {math.ceil(whole / 2)} or more, or leave it out."
        _require(2 * epochs >= whole, problem)
