"""Changes to the parts of any bundle's config: parts that write files are switched off before they are made."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser
from monai.transforms import Compose

WRITERS = re.compile(
    r"(Save|Write)(Image|Classification|FileMapping)\w*|\w*Saver|(Tensor[Bb]oard|MLFlow|ClearML)\w*|StatsHandler|LogfileHandler"
    r"|ProbMapProducer|ProgressBar|SmartCacheHandler"
)
DISK_CACHES = ("SmartCacheDataset", "PersistentDataset", "CacheNTransDataset", "LMDBDataset", "GDSDataset")
DATASET_KEYS = ("data", "transform", "_requires_", "_disabled_")
_opened: set[Path] = set()


def switch_off(parser: ConfigParser) -> None:
    """Disables the parts of a config that write files or logs, and its caches of images, before it is parsed."""
    for component in nodes_of(parser.get(), dict):
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
    # MONAI leaves a disabled part out of a list, but replaces a reference to it by None
    for entries in nodes_of(parser.get(), list):
        entries[:] = [entry for entry in entries if not _refers_to_disabled(entry, parser)]


def remove_disabled(parser: ConfigParser) -> None:
    """Removes disabled parts from lists, so that nothing that they refer to is made."""
    for entries in nodes_of(parser.get(), list):
        entries[:] = [entry for entry in entries if not (isinstance(entry, dict) and entry.get("_disabled_") is True)]


def nodes_of(config: Any, kind: type) -> Iterator[Any]:
    """Yields all dictionaries or all lists of a config."""
    if isinstance(config, kind):
        yield config
    if isinstance(config, (dict, list)):
        for value in list(config.values()) if isinstance(config, dict) else config:
            yield from nodes_of(value, kind)


def _refers_to_disabled(entry: Any, parser: ConfigParser) -> bool:
    if not isinstance(entry, str) or not entry.startswith("@"):
        return False
    part = parser.get(entry[1:])
    return ConfigComponent.is_instantiable(part) and part.get("_disabled_") is True


def transforms_in(part: Any) -> Sequence[Any]:
    """Returns the transforms of a ``Compose``, including nested ones; anything else is returned as the only one."""
    return part.flatten().transforms if isinstance(part, Compose) else [part]


def make_importable(root: Path) -> None:
    """Makes the packages in a bundle's folder importable, like MONAI, and forgets other bundles' packages with the same name."""
    foreign = tuple(f"{other}{os.sep}" for other in _opened - {root})
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(foreign):
            del sys.modules[name]
    _opened.add(root)
    if sys.path[:1] != [str(root)]:
        sys.path.insert(0, str(root))
