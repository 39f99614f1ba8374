"""Checks of a bundle against MONAI's bundle specification and model zoo: one sentence per problem."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import

from monai_gmr.bundle.checks import load_network
from monai_gmr.bundle.command_line import GMRWorkflow, quiet
from monai_gmr.bundle.shipped import METADATA, WEIGHTS, check_packages, find_config, read_config, read_metadata
from monai_gmr.checksums import SUMS_NAME, check_sum, read_sums
from monai_gmr.utils import ConfigurationError, reason

jsonschema, _ = optional_import("jsonschema")

SCHEMA = Path(__file__).with_name("metadata_schema.json")
# limit of the zoo for a file in its repository
LARGEST_FILE = 25_000_000
NECESSARY = {
    METADATA: "write one to MONAI's bundle specification",
    "LICENSE": "put the licence of the bundle there",
    "docs/README.md": "say there what the bundle is for, on which data it was trained and how it is run",
}
NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)+")
LICENCE_OF_DATA = re.compile(r"\bCC[ -](BY|0)|licen[cs]e", re.IGNORECASE)
PERSONAL_PATH = re.compile(r"/home/\w+|/Users/\w+|[A-Za-z]:\\+Users")
HASHES = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}
# ids that the zoo requires in an existing config; nested ids only if their part exists
KEYS = {
    "inference": ("bundle_root", "device", "network_def", "inferer"),
    "train": (
        "bundle_root",
        "device",
        "dataset_dir",
        *(f"train::{id_}" for id_ in ("trainer", "trainer::max_epochs", "dataset", "dataset::data", "handlers")),
        *(f"validate::{id_}" for id_ in ("evaluator", "handlers", "dataset", "dataset::data")),
    ),
}
LONGEST = 160


class BundleFolder:
    """A folder that should hold a bundle, read on demand."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Content of ``metadata.json``; empty if it cannot be read, which the metadata check reports."""
        try:
            return read_metadata(self.root)
        except ConfigurationError:
            return {}

    @cached_property
    def large_files(self) -> tuple[str, Any]:
        """Name and content of the list of large files; ``("", [])`` without one."""
        for name in ("large_files.yml", "large_files.yaml", "large_files.json"):
            if (self.root / name).is_file():
                content = read_config(self.root / name)
                return name, content.get("large_files") if isinstance(content, Mapping) else None
        return "", []

    @cached_property
    def downloads(self) -> set[str]:
        """Files of the list of large files, relative to the bundle."""
        entries = self.large_files[1]
        paths = (entry.get("path") for entry in entries or () if isinstance(entry, Mapping))
        return {os.path.normpath(path) for path in paths if isinstance(path, str)}

    def config(self, name: str) -> tuple[str, dict[str, Any]]:
        """Returns file name and content of a config; ``("", {})`` without one."""
        path = find_config(self.root, name)
        return ("", {}) if path is None else (path.name, read_config(path))


def _check_name(bundle: BundleFolder) -> Iterator[str]:
    name = bundle.root.resolve().name
    if not NAME.fullmatch(name):
        yield (
            f"the folder is called {name!r}: give it words of letters and digits joined by _, of data and task, such as "
            "hippocampus_segmentation_gmr_unet."
        )


def _check_files(bundle: BundleFolder) -> Iterator[str]:
    for name, hint in NECESSARY.items():
        path = bundle.root / name
        if not path.is_file() or not path.stat().st_size:
            yield f"{name} {'is empty' if path.is_file() else 'is missing'}: {hint}."
    if find_config(bundle.root, "inference") is None:
        yield "configs/inference.yaml (or .json) is missing: write one that predicts."
    if not (bundle.root / WEIGHTS).is_file() and WEIGHTS not in bundle.downloads:
        yield f"{WEIGHTS} is missing: train, or name in large_files.yml where it can be downloaded."
    source = str(bundle.metadata.get("data_source", ""))
    if LICENCE_OF_DATA.search(source) and not (bundle.root / "docs" / "data_license.txt").is_file():
        yield f"docs/data_license.txt is missing: data_source of {METADATA} names a licence, so put its conditions there."


def _check_metadata(bundle: BundleFolder) -> Iterator[str]:
    if not (bundle.root / METADATA).is_file():
        return
    metadata = read_metadata(bundle.root)
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for error in jsonschema.Draft7Validator(schema).iter_errors(metadata):
        place = "::".join(str(part) for part in error.absolute_path)
        message = error.message if len(error.message) <= LONGEST else f"{error.message[:LONGEST]} ..."
        yield f"{METADATA}{f', {place}' if place else ''}: {' '.join(message.split())}."
    version, changelog = metadata.get("version"), metadata.get("changelog")
    if isinstance(changelog, Mapping) and version not in changelog:
        yield f"{METADATA}: changelog has no entry for version {version}: say there what is new in it."
    layout = metadata.get("network_data_format")
    for kind, tensors in layout.items() if isinstance(layout, Mapping) else ():
        for name, tensor in tensors.items() if isinstance(tensors, Mapping) else ():
            if not isinstance(tensor, Mapping) or not isinstance(tensor.get("channel_def"), Mapping):
                continue
            channels, named = tensor.get("num_channels"), sorted(tensor["channel_def"])
            if isinstance(channels, int) and named != sorted(str(channel) for channel in range(channels)):
                yield (
                    f"{METADATA}, network_data_format::{kind}::{name}: channel_def names the channels {', '.join(named)} of "
                    f"{channels}: name each from 0 on."
                )


def _check_large_files(bundle: BundleFolder) -> Iterator[str]:
    name, entries = bundle.large_files
    if name and not (isinstance(entries, list) and entries):
        yield f"{name} has no list large_files: give each file its path and url there."
    for entry in entries or () if isinstance(entries, list) else ():
        path, url = (entry.get(key) if isinstance(entry, Mapping) else None for key in ("path", "url"))
        if not (isinstance(path, str) and isinstance(url, str) and re.match(r"https?://.+", url)):
            yield f"{name}: {entry} lacks a path in the bundle or the url of a download: give both."
            continue
        if os.path.isabs(path) or os.path.normpath(path).startswith(".."):
            yield f"{name}: the path {path} leads out of the bundle: give one relative to its folder."
        kind, value = entry.get("hash_type") or "md5", entry.get("hash_val")
        if kind not in HASHES:
            yield f"{name}: hash_type {kind} of {path} is unknown: use one of {', '.join(HASHES)}."
        elif value and not re.fullmatch(rf"[0-9a-fA-F]{{{HASHES[kind]}}}", str(value)):
            yield f"{name}: hash_val of {path} is not a {kind}: give its {HASHES[kind]} digits."
    for file in sorted(bundle.root.rglob("*")):
        relative = file.relative_to(bundle.root).as_posix()
        if file.is_file() and file.stat().st_size > LARGEST_FILE and relative not in bundle.downloads:
            size = file.stat().st_size / 1e6
            yield f"{relative} has {size:.0f} MB, above the zoo's 25: put it elsewhere and name it in large_files.yml."


def _has(config: Any, id_: str) -> bool:
    """Checks whether a config has an id; references and expressions count, because their content is unknown."""
    for key in id_.split("::"):
        if isinstance(config, str):
            return config[:1] in ("$", "@", "%")
        if not isinstance(config, Mapping) or key not in config:
            return False
        config = config[key]
    return True


def _check_configs(bundle: BundleFolder) -> Iterator[str]:
    for name, ids in KEYS.items():
        file, config = bundle.config(name)
        # configs of the zoo can write nested ids as one key
        config = {key: value for key, value in config.items() if "#" not in key}
        for id_ in ids if file else ():
            part = id_.split("::")[0]
            if not _has(config, id_) and (part not in ("train", "validate") or part in config):
                yield f"configs/{file} has no {id_}, by which MONAI's apps find it: add it."
    file, config = bundle.config("inference")
    if "SaveImage" in str(config) and file and "output_dir" not in config:
        yield f"configs/{file} writes files and has no output_dir: add it, and write there."
    file, config = bundle.config("train")
    if "ValidationHandler" in str(config) and "val_interval" not in config:
        yield f"configs/{file} has a ValidationHandler and no val_interval: add it, and use it as its interval."
    for path in sorted((bundle.root / "configs").glob("*")):
        found = PERSONAL_PATH.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
        if found:
            yield f"configs/{path.name} names the path {found[0]} of one person: make it relative to bundle_root."


def _check_weights(bundle: BundleFolder) -> Iterator[str]:
    for name in read_sums(bundle.root / "models"):
        if not (bundle.root / "models" / name).is_file():
            yield f"models/{SUMS_NAME} names {name}, which is missing: put it there, or write {SUMS_NAME} again."
            continue
        try:
            check_sum(bundle.root / "models" / name)
        except ConfigurationError as error:
            yield str(error)


def _check_network(bundle: BundleFolder) -> Iterator[str]:
    """Compares the network of the config with metadata and weights."""
    config, file = find_config(bundle.root, "inference"), bundle.root / METADATA
    with quiet():
        parser = GMRWorkflow(str(config), str(file), logging_file=False, workflow_type="infer").parser
        network = parser.get_parsed_content("network_def").cpu()
    if (bundle.root / WEIGHTS).is_file():
        load_network(network, bundle.root / WEIGHTS)
    layout = bundle.metadata["network_data_format"]
    image, pred = layout["inputs"].get("image"), layout["outputs"].get("pred")
    if image is None or pred is None or not all(isinstance(size, int) for size in image["spatial_shape"]):
        return
    x = torch.rand(1, image["num_channels"], *image["spatial_shape"], dtype=getattr(torch, image["dtype"]))
    with torch.no_grad():
        answer = network.eval()(x)
    expected = [pred["num_channels"], *(pred["spatial_shape"] if pred["type"] == "image" else ())]
    if list(answer.shape[1:]) != expected:
        yield (
            f"the network answers an image of {list(x.shape[1:])} with {list(answer.shape[1:])} and {METADATA} says {expected}: "
            "correct one of them."
        )
    elif answer.dtype != getattr(torch, pred["dtype"]):
        yield f"the network answers in {answer.dtype} and {METADATA} says {pred['dtype']}: correct it."


Check = Callable[[BundleFolder], Iterator[str]]
CHECKS: tuple[Check, ...] = (
    _check_name,
    _check_files,
    _check_metadata,
    _check_large_files,
    _check_configs,
    _check_weights,
)


def check_bundle(folder: str | os.PathLike[str], network: bool = True) -> list[str]:
    """Finds problems of a bundle by MONAI's specification and the rules of its model zoo, one sentence each; empty if there are none.

    Checks names, necessary files, metadata (by our own schema, because MONAI's must be downloaded), the list of large files, ids of the
    configs, the checksum of weights and, if all that is right and ``network`` is true, the network: that it can be made, that the weights
    fit and are finite, and that shape and dtype of its output match the metadata. Making a network runs code of the bundle.

    Raises:
        ConfigurationError: if there is no such folder, or a required package is not installed.

    Example:
        >>> folder = getfixture("tmp_path") / "spleen_segmentation"
        >>> folder.mkdir()
        >>> check_bundle(folder)[0]
        "configs/metadata.json is missing: write one to MONAI's bundle specification."
    """
    bundle = BundleFolder(Path(folder))
    if not bundle.root.is_dir():
        raise ConfigurationError(f"{folder} is not a folder: give that of a bundle.")
    check_packages("yaml", "jsonschema")
    problems: list[str] = []
    for check in CHECKS:
        problems += _sentences(check, bundle)
    return problems or (_sentences(_check_network, bundle) if network else [])


def _sentences(check: Check, bundle: BundleFolder) -> list[str]:
    try:
        return list(check(bundle))
    except Exception as error:
        return [f"{reason(error).rstrip('.')}."]
