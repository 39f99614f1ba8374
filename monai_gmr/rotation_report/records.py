"""Measurements of each view of each case, in a file that grows while a report runs and from which it resumes."""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monai_gmr.files import replacing, unwritable
from monai_gmr.utils import ConfigurationError

# recorded in addition to the metrics of a classifier
TRUE_CLASS = "probability_of_true_class"
# marks by which a resumed report checks that the answers are the same
ANSWER = "marks_of_answer"
# marks of upright images by which it checks whether cases of two networks are the same
IMAGE = "marks_of_image"


class ViewRecord(NamedTuple):
    """One view of the cases of a batch: name of the ``view``, names of the ``cases``, their equivariance ``errors`` (relative L2),
    ``seconds`` and ``passes`` of the network per case, and ``values`` by name of a metric: arrays with one entry per case."""

    view: str
    cases: list[str]
    errors: np.ndarray
    seconds: float
    passes: float
    values: dict[str, list[np.ndarray]]


def record_file(output_dir: str | Path, network: str) -> Path:
    """Returns the file of a network's records in the folder of a report, such as ``records/plain_48_views.jsonl`` for "plain, 48 views"."""
    return Path(output_dir) / "records" / (re.sub(r"[^A-Za-z0-9.-]+", "_", network).strip("_") + ".jsonl")


def _encode(record: ViewRecord) -> str:
    buffer = io.BytesIO()
    arrays = {f"{name}/{part}": array for name, parts in record.values.items() for part, array in enumerate(parts)}
    np.savez_compressed(buffer, errors=record.errors, **arrays)  # type: ignore[arg-type]
    content = {"view": record.view, "cases": record.cases, "seconds": record.seconds, "passes": record.passes}
    return json.dumps({**content, "arrays": base64.b64encode(buffer.getvalue()).decode("ascii")})


def _decode(line: str) -> ViewRecord:
    content = json.loads(line)
    values: dict[str, list[np.ndarray]] = {}
    with np.load(io.BytesIO(base64.b64decode(content.pop("arrays"), validate=True)), allow_pickle=False) as arrays:
        for key in arrays.files:
            values.setdefault(key.rpartition("/")[0], []).append(arrays[key])
    (errors,) = values.pop("")
    return ViewRecord(errors=errors, values=values, **content)


class ViewRecords:
    """Records of one network, in memory and in a file with one JSON object per line, with arrays as compressed numpy.

    The first line is the ``header``, JSON that says what was measured. A file with another header (another network, other settings) is
    replaced, and so is any file without ``resume``. A line that an interrupted run left incomplete is ignored. Without a ``path``, records
    are only in memory.
    """

    def __init__(self, path: str | Path | None, header: Mapping[str, Any], resume: bool = True) -> None:
        self.path = None if path is None else Path(path)
        self.header: dict[str, Any] = json.loads(json.dumps(header))
        # maps view and case to the record and the index in it
        self._places: dict[tuple[str, str], tuple[ViewRecord, int]] = {}
        # whether the file held records with another header
        self.replaced = False
        if self.path is None:
            return
        records: list[ViewRecord] = []
        if resume and self.path.is_file():
            stored_header, records = _read(self.path)
            self.replaced = stored_header != self.header
            records = [] if self.replaced else records
        for record in records:
            self._keep(record)
        # rewritten, so that no incomplete line stays in the middle of the file
        with replacing(self.path) as temporary:
            lines = [json.dumps(self.header), *map(_encode, records)]
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def _keep(self, record: ViewRecord) -> None:
        self._places |= {(record.view, case): (record, place) for place, case in enumerate(record.cases)}

    def add(self, record: ViewRecord) -> None:
        """Adds a record; it is in the file when this returns."""
        self._keep(record)
        if self.path is not None:
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(f"{_encode(record)}\n")
            except OSError as error:
                raise unwritable(self.path, error) from error

    def has(self, case: str, view: str) -> bool:
        """Whether a view of a case was measured."""
        return (view, case) in self._places

    @property
    def cases(self) -> list[str]:
        """Names of all cases with any measured view, in the order of measurement."""
        return list(dict.fromkeys(case for _, case in self._places))

    @property
    def views(self) -> list[str]:
        """Names of all views that were measured for any case."""
        return list(dict.fromkeys(view for view, _ in self._places))

    @property
    def metrics(self) -> list[str]:
        """Names of everything with values: the metrics, ``TRUE_CLASS``, ``ANSWER`` and ``IMAGE``."""
        return next((list(record.values) for record, _ in self._places.values()), [])

    def columns(self, view: str, cases: list[str]) -> np.ndarray:
        """Returns equivariance error, seconds and passes of each of these cases in a view, shape ``(3, cases)``."""
        places = [self._places[view, case] for case in cases]
        rows = [(record.errors[place], record.seconds, record.passes) for record, place in places]
        return np.array(rows, float).reshape(len(rows), 3).T

    def values(self, metric: str, view: str, cases: list[str]) -> list[np.ndarray]:
        """Returns the values of a metric for these cases in a view: arrays with one entry per case along the first axis."""
        places = [self._places[view, case] for case in cases]
        parts = zip(*([part[place] for part in record.values[metric]] for record, place in places))
        return [np.stack(part) for part in parts]

    def one(self, metric: str, view: str, case: str) -> np.ndarray | None:
        """Returns the first array of a metric for one case in a view; ``None`` if missing, as in records of earlier versions."""
        record, place = self._places.get((view, case), (None, 0))
        parts = [] if record is None else record.values.get(metric, [])
        return np.asarray(parts[0][place]) if parts else None

    def __len__(self) -> int:
        return len(self._places)


def _read(path: Path) -> tuple[dict[str, Any], list[ViewRecord]]:
    header: dict[str, Any] = {}
    records = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file):
            try:
                if number == 0:
                    header = json.loads(line)
                else:
                    records.append(_decode(line))
            except (ValueError, TypeError, KeyError, zipfile.BadZipFile):
                continue
    return header, records


def read_compared(compare: Mapping[str, str | Path], used_names: Collection[str]) -> dict[str, ViewRecords]:
    """Reads the records of other reports; ``compare`` maps names to the folder of a report or a file in it. If a report has several
    networks, its name is followed by theirs. Raises ``ConfigurationError`` if there is no report, or a name is in ``used_names``."""
    compared = {}
    for title, place in compare.items():
        folder = Path(place) if Path(place).is_dir() else Path(place).parent
        files = sorted((folder / "records").glob("*.jsonl"))
        if not files:
            raise ConfigurationError(f"there is no rotation report in {folder}: give the output_dir of another run.")
        for file in files:
            name = title if len(files) == 1 else f"{title}, {file.stem}"
            if name in used_names:
                raise ConfigurationError(f"two networks are called {name!r}: give another name or change compare.")
            header, records = _read(file)
            if not records:
                raise ConfigurationError(f"{file} holds no records: give the folder of another rotation report.")
            compared[name] = ViewRecords(None, header)
            for record in records:
                compared[name].add(record)
    return compared
