"""Fingerprints of the settings of a study or a training, compared when it resumes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch


def fingerprint(*parts: Any) -> str:
    """Twelve digits that are equal for equal settings, in any order.

    Example:
        >>> fingerprint({"epochs": 8, "seed": 0}) == fingerprint({"seed": 0, "epochs": 8}) != fingerprint({"epochs": 9, "seed": 0})
        True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def describe_cases(cases: Iterable[Any]) -> dict[str, Any]:
    """Number of cases and a fingerprint of them, in their order, as plain data; independent of the location of the data folder.

    For a file of a case its size counts, and its path relative to the common folder of all files; for an array its values; anything else as
    it is. ``cases`` are the entries of a list, or of the list in a ``monai.data.Dataset``.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "a.nii").write_bytes(b"12"), (folder / "b.nii").write_bytes(b"3")
        >>> found = describe_cases([{"image": str(folder / name)} for name in ("a.nii", "b.nii")])
        >>> found["cases"], len(found["fingerprint"])
        (2, 12)
        >>> found == describe_cases([{"image": str(folder / name)} for name in ("b.nii", "a.nii")])
        False
    """
    while isinstance(cases, torch.utils.data.Dataset) and hasattr(cases, "data"):
        cases = cases.data
    entries = list(cases)
    files: list[str] = []
    parts = [_part(entry, files) for entry in entries]
    try:
        root = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    except ValueError:
        # on several drives
        root = ""
    names = [[os.path.relpath(file, root) if root else file, os.path.getsize(file)] for file in files]
    return {"cases": len(entries), "fingerprint": fingerprint(parts, names)}


def _part(value: Any, files: list[str]) -> Any:
    """Value of a case as JSON; adds paths of files to ``files``."""
    if isinstance(value, Mapping):
        return {str(key): _part(each, files) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_part(each, files) for each in value]
    if isinstance(value, (str, os.PathLike)):
        if not os.path.isfile(value):
            return str(value)
        files.append(os.path.abspath(value))
        return len(files)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, (np.ndarray, np.generic)):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes())
        return [list(value.shape), str(value.dtype), digest.hexdigest()]
    return value if isinstance(value, (bool, int, float, type(None))) else type(value).__name__
