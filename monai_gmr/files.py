"""Atomic writing of files, in folders that are checked before a run and locked by one run."""

from __future__ import annotations

import csv
import errno
import json
import logging
import math
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from monai_gmr.annotations import check_argument
from monai_gmr.utils import ConfigurationError, WriteError

logger = logging.getLogger(__name__)

LOCK_NAME = ".in_use.lock"
# a run that has just ended can hold its folder for a moment
LOCK_SECONDS = 0.5


def _system_error(error: BaseException | None) -> OSError | None:
    """The operating system's error among the causes of an error, which a writer in another language can have wrapped."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def unwritable(path: str | Path, error: OSError, setting: str = "") -> WriteError:
    """Error about a file or folder that cannot be written; ``setting`` is the bundle's setting for it, if there is one."""
    cause = error.strerror or str(error) or type(error).__name__
    hint = f"give another {f'--{setting}' if setting else 'folder'}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        hint = "free some space there"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        cause = "a file stands in the place of a folder"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint += ", or make this one writable"
    name = f"{setting}={path}" if setting else f"{path}"
    return WriteError(f"{name} cannot be written ({cause}): {hint}.")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path next to ``path`` that replaces it when the block ends, and is removed if the block fails.

    All files of this library are written this way. Each process has its own temporary file, whose name ends like ``path``. Creates the
    folder if needed. Raises ``ConfigurationError`` if the system cannot write the file (full disk, no permission, a file in place of a
    folder); the previous file remains.

    Example:
        >>> file = getfixture("tmp_path") / "new" / "table.csv"
        >>> with replacing(file) as temporary:
        ...     _ = temporary.write_text("view,dice")
        >>> file.read_text(), len(list(file.parent.iterdir()))
        ('view,dice', 1)
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}_{secrets.token_hex(4)}.part_{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except ConfigurationError:
        raise
    except Exception as error:
        cause = _system_error(error)
        if cause is None:
            raise
        raise unwritable(path, cause) from error
    finally:
        # without a folder there is nothing to remove
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Writes a text; creates its folder if needed."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes dictionaries as CSV, with a column for each key of any of them."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_json(content: Any, path: Path) -> None:
    """Writes JSON; numbers that are not finite become ``null``, which every reader accepts."""
    write_text(json.dumps(_finite(content), indent=1, allow_nan=False, default=str), path)


def read_json_object(path: Path, holds: str = "") -> dict[str, Any]:
    """Content of a JSON file that holds an object; ``holds``, such as "with lists of cases", is part of the error's sentence.

    Raises:
        ConfigurationError: if the file is not JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path} is not readable as JSON ({error}): write it again.") from error
    if not isinstance(content, dict):
        needed = f"an object {holds}".rstrip()
        raise ConfigurationError(f"{path} holds a {type(content).__name__}: it must be {needed}.")
    return content


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def remove_unfinished(path: str | Path) -> None:
    """Remove unfinished temporary files that killed processes left, for a file that no other process is writing."""
    path = Path(path)
    for unfinished in path.parent.glob(f".*.part_{path.name}"):
        unfinished.unlink(missing_ok=True)


def check_folder(folder: str | Path, setting: str = "", files: Iterable[str] = ()) -> None:
    """Create a folder, given by the bundle's ``setting``; raise ``ConfigurationError`` if it cannot be written, or ``files`` that the run
    writes there are folders."""
    check_argument(setting or "folder", folder, str | Path)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            # a full disk accepts names but not content
            file.write(b"0" * 4096)
    except OSError as error:
        raise unwritable(folder, error, setting) from error
    for path in (Path(folder) / name for name in files):
        if path.is_dir():
            raise WriteError(
                f"{path} is a folder and this run writes a file of that name: give another --{setting}, or rename it."
            )


class FolderLock:
    """Locks a folder, given by the bundle's ``setting``, for one process: in a second process it raises ``ConfigurationError``. A process
    that ends in any way releases it.

    The system holds the lock (``filelock.FileLock``) on a file ``.in_use.lock``, which can remain and has no meaning by itself. The same
    process can lock the folder several times. If a file system has no locks, a line in the log says so and the run continues.
    """

    def __init__(self, folder: str | Path, setting: str = "ckpt_dir") -> None:
        check_argument(setting, folder, str | Path)
        self.folder = Path(folder)
        # one object per file in a process, which counts the locks
        self._lock: Any = FileLock(
            self.folder.resolve() / LOCK_NAME, timeout=LOCK_SECONDS, thread_local=False, is_singleton=True
        )
        try:
            self._lock.acquire()
        except Timeout:
            raise ConfigurationError(
                f"{setting}={folder} is in use by another run that writes there: wait for its end, or give another "
                f"--{setting}."
            ) from None
        except NotImplementedError:
            logger.warning(f"The file system of {folder} has no locks: do not start a second run there.")
        except OSError as error:
            raise unwritable(folder, error, setting) from error

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Unlock the folder, even if this process locked it several times."""
        self._lock.release(force=True)
