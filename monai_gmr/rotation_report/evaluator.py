"""The evaluator of any MONAI bundle, made from its folder without changing its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointLoader
from monai.transforms import Invertd
from monai.utils import ensure_tuple, optional_import
from torch.nn import Module

from monai_gmr.bundle.checks import check_file, find_images
from monai_gmr.bundle.command_line import quiet
from monai_gmr.bundle.config_parts import make_importable, nodes_of, switch_off, transforms_in
from monai_gmr.bundle.overrides import check_settings
from monai_gmr.bundle.shipped import find_bundle
from monai_gmr.networks.description import check_description
from monai_gmr.networks.weights import check_finite, read_checkpoint
from monai_gmr.utils import ConfigurationError, find_configuration_error, reason

Events, _ = optional_import("ignite.engine", name="Events")

EVALUATOR_IDS = ("evaluator", "validate::evaluator")
DATASET_IDS = ("dataset_dir", "data_dir", "data_root")
# evaluate.json in MONAI's model zoo has no evaluator: it is merged over train.json
CHOICES = (("evaluate",), ("train", "evaluate"), ("inference",), ("train",))
# for scans without labels
SCAN_CHOICES = (("inference",), ("evaluate",), ("train", "evaluate"), ("train",))
SCAN_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy")


class BundleEvaluator(NamedTuple):
    """Result of :func:`open_evaluator`: the ``evaluator``, the ``parser`` with the bundle's other parts, and whether the bundle ``inverts``
    its preprocessing, which needs predictions in the pose of the images before they were rotated."""

    evaluator: Any
    parser: ConfigParser
    inverts: bool


def open_evaluator(
    bundle: str | Path,
    settings: Mapping[str, Any] | None = None,
    config_file: str | Path | Sequence[str | Path] | None = None,
    dataset_dir: str | Path | None = None,
    scan: str | Path | None = None,
    output_dir: str | Path | None = None,
) -> BundleEvaluator:
    """Makes the evaluator of a bundle, ready to run on images of the caller's choice.

    The config is ``configs/evaluate`` (.json, .yaml or .yml), merged over ``configs/train`` if it defines no evaluator, as in MONAI's model
    zoo; else ``configs/inference``, else ``configs/train``. The evaluator is ``evaluator`` or ``validate::evaluator``. Parts that write
    files or logs (``SaveImaged``, ``MetricsSaver``, ``StatsHandler``, ...) are disabled, images are not cached, the bundle's ``initialize``
    is run, and a ``CheckpointLoader`` loads now instead of in every run.

    ``settings`` maps ids of the config to new values, as in ``python -m monai.bundle run``. ``config_file`` replaces the choice above by
    one file or several, which are merged; relative to the bundle, its ``configs`` or the working directory. ``dataset_dir``, the folder of
    the images, becomes the setting ``dataset_dir``, ``data_dir`` or ``data_root``, whichever the config has. ``scan``, a file or a folder
    of files, replaces the dataset and needs no label: the config is then ``configs/inference`` if the bundle has one, and ``output_dir``
    becomes the setting of this name. Raises ``ConfigurationError`` if the bundle, config, setting or evaluator does not exist, or a part of
    it cannot be made.
    """
    root = find_bundle(bundle)
    named = None if config_file is None else [_find_file(root, name) for name in ensure_tuple(config_file)]
    files = named or _choose_files(root, CHOICES if scan is None else SCAN_CHOICES)
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
            if scan is not None:
                _read_scan(parser, evaluator_id, Path(scan), output_dir)
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


def _read_scan(parser: ConfigParser, evaluator_id: str, scan: Path, output_dir: str | Path | None) -> None:
    """Makes a config that is not parsed yet read one scan, or the scans of a folder, instead of its dataset."""
    if not scan.exists():
        raise ConfigurationError(f"there is no scan at {scan}: give a file, such as scan.nii.gz, or a folder of them.")
    config: dict[str, Any] = parser.get()
    if output_dir is not None and "output_dir" in config:
        parser["output_dir"] = str(Path(output_dir).resolve())
    # the id in bundles of this library
    if "input" in config:
        parser["input"] = str(scan.resolve())
        return
    dataset: Any = parser.get(evaluator_id)
    for key in ("val_data_loader", "dataset"):
        dataset = _follow(parser, dataset).get(key) if isinstance(_follow(parser, dataset), dict) else None
    dataset = _follow(parser, dataset)
    if not isinstance(dataset, dict) or "data" not in dataset:
        raise ConfigurationError(
            f"the loader of {evaluator_id} reads no dataset with 'data' that a scan could take the place of: give another --config_file."
        )
    dataset["data"] = [{"image": str(file.resolve())} for file in find_images(scan, SCAN_SUFFIXES)]
    # MONAI's transforms need this to skip a missing label
    for component in nodes_of(_follow(parser, dataset.get("transform")), dict):
        target = str(component.get("_target_", ""))
        if "keys" in component and ("." not in target or target.startswith("monai.")):
            component["allow_missing_keys"] = True


def _follow(parser: ConfigParser, value: Any) -> Any:
    """Follows references to other parts of a config; returns anything else unchanged."""
    while isinstance(value, str) and value.startswith("@"):
        value = parser.get(value[1:])
    return value


def _choose_files(root: Path, order: Sequence[tuple[str, ...]] = CHOICES) -> list[Path]:
    names = ("evaluate", "inference", "train")
    candidates = [(name, root / "configs" / f"{name}.{end}") for name in names for end in ConfigParser.suffixes[::-1]]
    files = {name: file for name, file in candidates if file.is_file()}
    if not files:
        raise ConfigurationError(
            f"{root} is not a bundle: give a folder that holds configs/evaluate (or inference, train) .json or .yaml, or name its config "
            "file."
        )
    choices = [[files[name] for name in names] for names in order if set(names) <= set(files)]
    return next(filter(_defines_evaluator, choices), list(files.values())[:1])


def _defines_evaluator(files: list[Path]) -> bool:
    try:
        parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
    except (KeyError, ValueError):
        # an overlay without its base: its nested ids do not exist
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
    parser.update(settings)


def _load_checkpoint(loader: CheckpointLoader, evaluator: SupervisedEvaluator) -> None:
    """Loads now instead of in every run, so that the command fails at once if the checkpoint is missing or of another network."""
    if evaluator.has_event_handler(loader, Events.STARTED):
        check_file(loader.load_path, "checkpoint", "put one there, or give its id as a setting.")
        hint = "give another one, by its id as a setting"
        content = read_checkpoint(loader.load_path, hint=hint)
        for name, loaded in loader.load_dict.items():
            if isinstance(loaded, Module) and isinstance(content, Mapping):
                check_description(content.get(name, content), loaded, loader.load_path, f"{hint}.")
        loader(evaluator)
        check_finite(evaluator.network, evaluator.network.state_dict(), loader.load_path, hint)
        evaluator.remove_event_handler(loader, Events.STARTED)
