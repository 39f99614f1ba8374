"""What was measured in each view of each case, kept in a file that grows while a sweep runs and survives its end."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from monai_gmr.utils import ConfigurationError

# beside the metrics, of a classifier
TRUE_CLASS = "probability_of_true_class"


class ViewRecord(NamedTuple):
    """One view of one case: name of the ``case`` and of the ``view``; ``error``, the equivariance error (relative L2); ``seconds`` and
    ``passes`` of the network for this case; ``values``, name of a metric to what it keeps of the case."""

    case: str
    view: str
    error: float
    seconds: float
    passes: float
    values: dict[str, Any]


def record_file(output_dir: str | Path, network: str) -> Path:
    """The file of a network's records in the folder of a report.

    Example:
        >>> record_file("report", "plain, 48 views").as_posix()
        'report/records/plain_48_views.jsonl'
    """
    return Path(output_dir) / "records" / (re.sub(r"[^A-Za-z0-9.-]+", "_", network).strip("_") + ".jsonl")


class ViewRecords:
    """Records of one network, in memory and in a file of one JSON object a line.

    The first line says of what the records are. Records of anything else (another network, other views) are not used but
    replaced. A line that a kill cut off is left out.

    Args:
        path: the file; ``None`` keeps the records in memory alone.
        header: what the records are of, as JSON can hold it.
        resume: whether to go on with what the file holds.

    Example:
        >>> path = getfixture("tmp_path") / "net.jsonl"
        >>> records = ViewRecords(path, {"network": "a"})
        >>> records.add(ViewRecord("case 1", "upright", 0.0, 0.1, 1.0, {"dice": [0.5]}))
        >>> len(ViewRecords(path, {"network": "a"})), len(ViewRecords(path, {"network": "b"}))
        (1, 0)
    """

    def __init__(self, path: str | Path | None, header: Mapping[str, Any], resume: bool = True) -> None:
        self.path = None if path is None else Path(path)
        self.header = json.loads(json.dumps(header))
        self._records: dict[tuple[str, str], ViewRecord] = {}
        # why earlier records are not used, for a line on the screen
        self.replaced = False
        if self.path is None:
            return
        if resume and self.path.is_file():
            header, records = _read(self.path)
            self.replaced = header != self.header
            if not self.replaced:
                self._records = {(record.case, record.view): record for record in records}
        # written anew, so that what a kill cut off does not stay in the middle of the file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.part")
        lines = [json.dumps(self.header), *(json.dumps(record) for record in self._records.values())]
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        os.replace(temporary, self.path)

    def add(self, *records: ViewRecord) -> None:
        """Keep some more; they are in the file when this returns."""
        self._records.update({(record.case, record.view): record for record in records})
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(record)}\n" for record in records)

    def get(self, case: str, view: str) -> ViewRecord | None:
        """The record of a view of a case, if there is one."""
        return self._records.get((case, view))

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[ViewRecord]:
        return iter(self._records.values())


def _read(path: Path) -> tuple[dict[str, Any], list[ViewRecord]]:
    header: dict[str, Any] = {}
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            content = json.loads(line)
            if number == 0:
                header = content
            else:
                records.append(ViewRecord(*content))
        except (ValueError, TypeError):
            continue
    return header, records


def read_records(path: str | Path) -> ViewRecords:
    """Records that another sweep wrote, to compare with.

    Args:
        path: a file of :class:`ViewRecords`.

    Raises:
        ConfigurationError: when it holds none.
    """
    header, found = _read(Path(path))
    if not found:
        raise ConfigurationError(f"{path} holds no records: give the folder of another rotation report.")
    records = ViewRecords(None, header)
    for record in found:
        records.add(record)
    return records
