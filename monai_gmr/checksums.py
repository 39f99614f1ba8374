"""The file ``SHA256SUMS`` next to shipped weights, in the format of ``sha256sum``: changed weights are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from monai_gmr.files import unwritable, write_text
from monai_gmr.utils import ConfigurationError

SUMS_NAME = "SHA256SUMS"


def _sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_sums(folder: str | Path) -> dict[str, str]:
    """Checksums of files by name, from ``SHA256SUMS`` in a folder; empty if there is no such file."""
    path = Path(folder) / SUMS_NAME
    if not path.is_file():
        return {}
    # "*" before a name: read as binary
    lines = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {name[-1].removeprefix("*"): checksum.lower() for checksum, *name in lines if name}


def _write(folder: Path, sums: Mapping[str, str]) -> None:
    write_text("".join(f"{checksum}  {name}\n" for name, checksum in sums.items()), folder / SUMS_NAME)


def write_sums(folder: str | Path, names: Iterable[str]) -> Path:
    """Writes ``SHA256SUMS`` of files in a folder, for ``sha256sum -c``; returns its path.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "model.pt").write_bytes(b"weights")
        >>> print(write_sums(folder, ["model.pt"]).read_text(), end="")
        9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c  model.pt
    """
    _write(Path(folder), {name: _sum_of(Path(folder) / name) for name in names})
    return Path(folder) / SUMS_NAME


def check_sum(path: str | Path) -> None:
    """Raises :class:`ConfigurationError` if ``SHA256SUMS`` next to a file lists it with another checksum."""
    path = Path(path)
    expected = read_sums(path.parent).get(path.name)
    if expected is not None and _sum_of(path) != expected:
        raise ConfigurationError(
            f"{path} is not the file that {SUMS_NAME} beside it names, so it was damaged or changed: copy the bundle again, or remove "
            f"{SUMS_NAME} to take the file as it is."
        )


def forget_sum(path: str | Path) -> None:
    """Remove a file that is about to be written from ``SHA256SUMS``: training replaces the shipped weights."""
    path = Path(path)
    sums = read_sums(path.parent)
    if sums.pop(path.name, None) is None:
        return
    if sums:
        _write(path.parent, sums)
        return
    try:
        (path.parent / SUMS_NAME).unlink()
    except OSError as error:
        raise unwritable(path.parent / SUMS_NAME, error) from error
