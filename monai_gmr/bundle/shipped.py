"""Bundles that ship with the library: their folders, their shipped files, and working copies."""

from __future__ import annotations

import difflib
import importlib.resources
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.utils import optional_import

from monai_gmr.arguments import describe
from monai_gmr.files import read_json_object, replacing
from monai_gmr.utils import ConfigurationError, reason

# shipped files of a bundle, and exceptions from them; package-data of pyproject.toml repeats both for the wheel
SHIPPED = (
    "LICENSE",
    "configs/*",
    "docs/*",
    "docs/study/*",
    "docs/rotation/*/*",
    "models/model.pt",
    "models/SHA256SUMS",
)
LEFT_OUT = ("docs/rotation/*/*.png",)
METADATA = "configs/metadata.json"
PAGE = "docs/README.md"
WEIGHTS = "models/model.pt"
# lets a config that holds only the network refuse to run
NETWORK_ALONE = {
    "initialize": ["$monai_gmr.bundle.guard_command_line()"],
    "run": ["$monai_gmr.bundle.refuse('train.json holds the network alone, for monai.bundle.load: run train.yaml.')"],
}
SUFFIXES = (".yaml", ".yml", ".json")


def bundles_folder() -> Path:
    """Returns the folder of the bundles: in the installed package, or next to it in a checkout of the repository."""
    package = Path(str(importlib.resources.files("monai_gmr")))
    for folder in (package / "bundles", package.parent / "bundles"):
        if any(folder.glob(f"*/{METADATA}")):
            return folder
    raise ConfigurationError(f"{package} has no bundles: install monai-gmr again, from its wheel or its repository.")


def shipped_bundles() -> dict[str, Path]:
    """Returns the folders of the bundles that ship, by name.

    Example:
        >>> "volume_segmentation_gmr_unet" in shipped_bundles()
        True
    """
    return {path.parents[1].name: path.parents[1] for path in sorted(bundles_folder().glob(f"*/{METADATA}"))}


def find_bundle(bundle: str | os.PathLike[str], only_shipped: bool = False) -> Path:
    """Finds the folder of a bundle: the given folder, such as a copy in the working directory, or else the shipped bundle with this name.

    Raises:
        ConfigurationError: if there is none; with ``only_shipped`` also if it is a path.

    Example:
        >>> find_bundle("volume_segmentation")
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: there is no bundle volume_segmentation: did you mean volume_segmentation_gmr_unet?
    """
    shipped = shipped_bundles()
    if not isinstance(bundle, str | os.PathLike):
        raise ConfigurationError(
            f"a bundle is a name or a folder, not {describe(bundle)}: give one of {', '.join(shipped)}."
        )
    if not only_shipped and Path(bundle).is_dir():
        return Path(bundle).resolve()
    if str(bundle) in shipped:
        return shipped[str(bundle)]
    last = Path(bundle).name
    near = [last] if last in shipped else difflib.get_close_matches(last, shipped, n=1)
    other = "" if only_shipped else ", or the folder of another bundle"
    hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(shipped)}{other}."
    raise ConfigurationError(f"there is no bundle {bundle}: {hint}")


def check_packages(*names: str) -> None:
    """Raises :class:`ConfigurationError` if packages that bundles need, by module name, are not installed."""
    lacking = [name for name in names if not optional_import(name)[1]]
    if lacking:
        raise ConfigurationError(f"bundles need {' and '.join(lacking)}: pip install 'monai-gmr[bundle]'.")


def read_config(path: Path) -> Any:
    """Reads a config, JSON or YAML; raises :class:`ConfigurationError` if it is neither."""
    check_packages("yaml")
    try:
        return ConfigParser.load_config_file(str(path))
    except Exception as error:
        raise ConfigurationError(
            f"{path.name} cannot be read as JSON or YAML ({reason(error)}): correct it."
        ) from error


def find_config(root: Path, name: str) -> Path | None:
    """Finds ``configs/NAME`` of a bundle, with the first of :data:`SUFFIXES` that exists."""
    paths = [(root / "configs" / name).with_suffix(suffix) for suffix in SUFFIXES]
    return next((path for path in paths if path.is_file()), None)


def read_metadata(root: Path) -> dict[str, Any]:
    """Reads a bundle's ``metadata.json``; raises :class:`ConfigurationError` if there is none."""
    path = root / METADATA
    if not path.is_file():
        raise ConfigurationError(f"{root} is not a bundle, it has no {METADATA}: give a folder that has one.")
    return read_json_object(path)


def shipped_files(root: Path) -> list[str]:
    """Lists the shipped files of a bundle, relative to its folder; no data, results, or pictures that only its report needs.

    Example:
        >>> shipped_files(find_bundle("volume_segmentation_gmr_unet"))[0]
        'LICENSE'
    """
    left_out = {path for pattern in LEFT_OUT for path in root.glob(pattern)}
    found = {path for pattern in SHIPPED for path in root.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(root).as_posix() for path in found - left_out)


def _network_config(root: Path) -> dict[str, Any] | None:
    """Returns the network entry of a bundle's config, with the settings that it refers to."""
    path = find_config(root, "inference")
    config = {} if path is None else read_config(path)
    chosen, waiting = {name: config[name] for name in ("imports",) if name in config}, ["network_def"]
    while waiting:
        name = waiting.pop()
        if name in config and name not in chosen:
            chosen[name] = config[name]
            waiting += re.findall(r"@(\w+)", json.dumps(config[name], default=str))
    return chosen if "network_def" in chosen else None


def _unlink_what_is_not_there(root: Path) -> None:
    """Replaces links and pictures on a bundle's page by their text if their target is not in the bundle."""
    page = root / PAGE
    if not page.is_file():
        return

    def kept(link: re.Match) -> str:
        target = link["target"].partition("#")[0]
        path = (page.parent / target).resolve()
        inside = path.is_relative_to(root.resolve()) and path.exists()
        return link[0] if not target or "://" in target or inside else link["words"]

    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r"!?\[(?P<words>[^\]]*)\]\((?P<target>[^)\s]+)\)", kept, text), encoding="utf-8")


def copy_bundle(name: str, folder: str | os.PathLike[str]) -> Path:
    """Copies a shipped bundle to ``folder/name``, completely or not at all, and returns that path.

    The copy also has ``configs/train.json`` with only the network, because ``monai.bundle.load`` reads it from there. Its page
    has no links to other bundles.

    Raises:
        ConfigurationError: if no bundle with this name ships, the target exists, or the folder cannot be written.
    """
    root = find_bundle(name, only_shipped=True)
    target = Path(folder) / root.name
    if os.path.lexists(target):
        raise ConfigurationError(f"{target} is there already: give another folder, or move it away first.")
    with replacing(target) as temporary:
        try:
            for file in shipped_files(root):
                (temporary / file).parent.mkdir(parents=True, exist_ok=True)
                # without permissions, because a folder of packages can be read-only
                shutil.copyfile(root / file, temporary / file)
            _unlink_what_is_not_there(temporary)
            network = _network_config(root)
            if network is not None:
                text = json.dumps(network | NETWORK_ALONE, indent=4)
                (temporary / "configs" / "train.json").write_text(text + "\n", encoding="utf-8")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return target
