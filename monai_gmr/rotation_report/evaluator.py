"""Makes the evaluator of any bundle of MONAI's specification from its folder, without a change to its files."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointLoader
from monai.transforms import Invertd
from monai.utils import ensure_tuple, optional_import

from monai_gmr.bundle.checks import check_file
from monai_gmr.bundle.command_line import quiet
from monai_gmr.bundle.overrides import check_settings
from monai_gmr.networks.weights import check_finite, read_checkpoint
from monai_gmr.rotation_report.probe import transforms_in
from monai_gmr.utils import ConfigurationError, find_configuration_error, reason

Events, _ = optional_import("ignite.engine", name="Events")

EVALUATOR_IDS = ("evaluator", "validate::evaluator")
DATASET_IDS = ("dataset_dir", "data_dir", "data_root")
# evaluate.json of MONAI's model zoo holds no evaluator: it is merged over train.json
CHOICES = (("evaluate",), ("train", "evaluate"), ("inference",), ("train",))
WRITERS = re.compile(
    r"(Save|Write)(Image|Classification|FileMapping)\w*|\w*Saver|(Tensor[Bb]oard|MLFlow|ClearML)\w*|StatsHandler|LogfileHandler"
    r"|ProbMapProducer|ProgressBar|SmartCacheHandler"
)
DISK_CACHES = ("SmartCacheDataset", "PersistentDataset", "CacheNTransDataset", "LMDBDataset", "GDSDataset")
DATASET_KEYS = ("data", "transform", "_requires_", "_disabled_")
_opened: set[Path] = set()


class BundleEvaluator(NamedTuple):
    """What :func:`open_evaluator` makes: the ``evaluator``, the ``parser`` that holds the bundle's other parts, and whether the bundle
    ``inverts`` its preprocessing, which needs predictions in the pose that the images had before they were rotated."""

    evaluator: Any
    parser: ConfigParser
    inverts: bool


def open_evaluator(
    bundle: str | Path,
    settings: Mapping[str, Any] | None = None,
    config_file: str | Path | Sequence[str | Path] | None = None,
    dataset_dir: str | Path | None = None,
) -> BundleEvaluator:
    """Make the evaluator of a bundle, ready to run on images of the caller's choice.

    The config is ``configs/evaluate`` (.json, .yaml or .yml), over ``configs/train`` where it defines no evaluator of its own, as in
    MONAI's model zoo; else ``configs/inference``, else ``configs/train``. The evaluator is ``evaluator`` or ``validate::evaluator``. What
    writes files or logs (``SaveImaged``, ``MetricsSaver``, ``StatsHandler``, ...) is switched off, images are not cached, the bundle's
    ``initialize`` is run, and a ``CheckpointLoader`` loads now instead of in every run.

    ``settings`` are ids of the config to new values, as ``python -m monai.bundle run`` takes them. ``config_file`` is one or several files
    that are merged, instead of the choice above; relative to the bundle, its ``configs`` or the working directory. ``dataset_dir``, the
    folder of the images, is the setting ``dataset_dir``, ``data_dir`` or ``data_root``, whichever the config has. Raises
    ``ConfigurationError`` when there is no such bundle, config, setting or evaluator, or a part of it cannot be made.
    """
    root = Path(bundle)
    if not root.is_dir():
        raise ConfigurationError(f"the bundle {bundle} is no folder: give one with configs/evaluate.yaml or .json.")
    root = root.resolve()
    named = None if config_file is None else [_find_file(root, name) for name in ensure_tuple(config_file)]
    files = named or _choose_files(root)
    names = " and ".join(file.name for file in files)
    try:
        make_importable(root)
        with quiet():
            meta_file = str(root / "configs" / "metadata.json")
            workflow = ConfigWorkflow(
                [str(file) for file in files], meta_file, logging_file=False, workflow_type="infer"
            )
            parser = workflow.parser
            _change_settings(parser, root, dict(settings or {}), dataset_dir)
            evaluator_id = next((name for name in EVALUATOR_IDS if name in parser), None)
            if evaluator_id is None:
                ids = ", ".join(sorted(set(parser.get()) - {"_meta_"})) or "nothing"
                raise ConfigurationError(
                    f"{names} of {root} has no id {' or '.join(EVALUATOR_IDS)}: give evaluator=@ID as a setting or another config file; "
                    f"it has {ids}."
                )
            parser.resolve_macro_and_relative_ids()
            switch_off(parser)
            workflow.initialize()
            evaluator = parser.get_parsed_content(evaluator_id)
            if not isinstance(evaluator, SupervisedEvaluator):
                raise ConfigurationError(
                    f"{evaluator_id} is a {type(evaluator).__name__}: it must be a monai.engines.SupervisedEvaluator."
                )
            parts = list(parser.ref_resolver.resolved_content.values())
            for loader in [part for part in parts if isinstance(part, CheckpointLoader)]:
                _load_checkpoint(loader, evaluator)
            inverts = any(isinstance(each, Invertd) for part in parts for each in transforms_in(part))
            return BundleEvaluator(evaluator, parser, inverts)
    except Exception as error:
        known = find_configuration_error(error)
        if known is not None:
            raise ConfigurationError(f"{root.name}: {known}") from error
        raise ConfigurationError(
            f"the evaluator of {names} in {root} cannot be made ({reason(error)}): give what it lacks as a setting of the config."
        ) from error


def switch_off(parser: ConfigParser) -> None:
    """Disable, in a config that is not yet parsed, the parts that write files or logs, and its caches of images."""
    for component in _nodes(parser.get(), dict):
        target = component.get("_target_")
        name = target.rpartition(".")[-1] if isinstance(target, str) else ""
        if WRITERS.fullmatch(name):
            component["_disabled_"] = True
        elif name in DISK_CACHES:
            kept = {key: component[key] for key in DATASET_KEYS if key in component}
            component.clear()
            component.update({"_target_": "monai.data.Dataset", **kept})
        elif name.endswith("CacheDataset") or (name and {"cache_rate", "cache_num"} & component.keys()):
            component["cache_rate"] = 0.0
    # MONAI leaves a disabled part out of a list, but puts None for a reference to one
    for entries in _nodes(parser.get(), list):
        entries[:] = [entry for entry in entries if not _refers_to_disabled(entry, parser)]


def remove_disabled(parser: ConfigParser) -> None:
    """Take disabled parts out of lists, so that nothing is made of what they refer to."""
    for entries in _nodes(parser.get(), list):
        entries[:] = [entry for entry in entries if not (isinstance(entry, dict) and entry.get("_disabled_") is True)]


def _nodes(config: Any, kind: type) -> Iterator[Any]:
    """All dictionaries or all lists of a config."""
    if isinstance(config, kind):
        yield config
    if isinstance(config, (dict, list)):
        for value in list(config.values()) if isinstance(config, dict) else config:
            yield from _nodes(value, kind)


def _refers_to_disabled(entry: Any, parser: ConfigParser) -> bool:
    if not isinstance(entry, str) or not entry.startswith("@"):
        return False
    part = parser.get(entry[1:])
    return ConfigComponent.is_instantiable(part) and part.get("_disabled_") is True


def _choose_files(root: Path) -> list[Path]:
    names = ("evaluate", "inference", "train")
    candidates = [(name, root / "configs" / f"{name}.{end}") for name in names for end in ConfigParser.suffixes[::-1]]
    files = {name: file for name, file in candidates if file.is_file()}
    if not files:
        raise ConfigurationError(
            f"{root} is not a bundle: give a folder that holds configs/evaluate (or inference, train) .json or .yaml, or name its config "
            "file."
        )
    choices = [[files[name] for name in names] for names in CHOICES if set(names) <= set(files)]
    return next(filter(_defines_evaluator, choices), list(files.values())[:1])


def _defines_evaluator(files: list[Path]) -> bool:
    try:
        parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
    except (KeyError, ValueError):
        # an overlay alone: its nested ids lead nowhere
        return False
    except Exception as error:
        names = " and ".join(str(file) for file in files)
        raise ConfigurationError(f"{names} cannot be read as a MONAI config: {reason(error)}.") from error
    return any(name in parser for name in EVALUATOR_IDS)


def _find_file(root: Path, name: str | Path) -> Path:
    for place in (root / name, root / "configs" / name, Path(name)):
        if place.is_file():
            return place.resolve()
    raise ConfigurationError(
        f"there is no config file {name} in {root}, its configs or the working directory: give one of these."
    )


def _change_settings(
    parser: ConfigParser, root: Path, settings: dict[str, Any], dataset_dir: str | Path | None
) -> None:
    config: dict[str, Any] = parser.get()
    if dataset_dir is not None:
        name = next((name for name in DATASET_IDS if name in config), None)
        if name is None:
            raise ConfigurationError(
                f"the config has none of the ids {', '.join(DATASET_IDS)}: give the one that it reads its images from as a setting, one of "
                f"{', '.join(sorted(config.keys() - {'_meta_'}))}."
            )
        settings = {name: str(dataset_dir), **settings}
    check_settings(settings, config, EVALUATOR_IDS[:1], prefix="")
    if "bundle_root" in config:
        parser["bundle_root"] = str(root)
    for name, value in settings.items():
        parser[name] = value


def _load_checkpoint(loader: CheckpointLoader, evaluator: SupervisedEvaluator) -> None:
    """Load now instead of in every run, so that a checkpoint that is missing or of another network ends the command at once."""
    if evaluator.has_event_handler(loader, Events.STARTED):
        check_file(loader.load_path, "checkpoint", "put one there, or give its id as a setting.")
        hint = "give another one, by its id as a setting"
        read_checkpoint(loader.load_path, hint=hint)
        loader(evaluator)
        check_finite(evaluator.network, evaluator.network.state_dict(), loader.load_path, hint)
        evaluator.remove_event_handler(loader, Events.STARTED)


def make_importable(root: Path) -> None:
    """Let a bundle import the packages in its folder, as MONAI does, and no other bundle's of the same name."""
    foreign = tuple(f"{other}{os.sep}" for other in _opened - {root})
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(foreign):
            del sys.modules[name]
    _opened.add(root)
    if sys.path[:1] != [str(root)]:
        sys.path.insert(0, str(root))
