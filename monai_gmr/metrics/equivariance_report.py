"""Results of a check of a network, as objects, rows for CSV and plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monai_gmr.metrics.equivariance import EquivarianceErrors
from monai_gmr.tables import format_aligned

NAMES = ("size", "path", "class", "input_size")
SPREADS = ("angles_mean", "angles_worst", "shifts_mean", "shifts_worst")
VALUES = ("error", "exact", "deepest", "calls", *SPREADS, "remark")


def size_text(size: Sequence[int]) -> str:
    """Formats a size as text, such as "64x65"."""
    return "x".join(str(n) for n in size)


@dataclass(frozen=True)
class ModuleCheck:
    """A module, checked separately with its input inside the network."""

    path: str  # dotted, "(network)" for the network itself
    class_name: str
    size: tuple[int, ...]  # of the input with the worst error
    error: float  # worst relative L2 error over its calls and the elements
    calls: int  # in one pass of the network
    broken: bool  # above the tolerance and more than rounding
    deepest: bool  # broken, but none of its children is
    remark: str  # why, if known
    moves: EquivarianceErrors = field(default_factory=lambda: EquivarianceErrors(()))  # under angles and shifts

    @property
    def spreads(self) -> list[float | None]:
        """Mean and worst error over angles, then over shifts; ``None`` if there are none."""
        return _spreads(self.moves)


@dataclass(frozen=True)
class SizeCheck:
    """A network at one input size: its ``errors``, its ``modules`` in the order of the network, and ``failure``, one
    sentence if the network cannot take this size (then there are no errors)."""

    size: tuple[int, ...]
    errors: EquivarianceErrors = field(default_factory=lambda: EquivarianceErrors(()))
    modules: tuple[ModuleCheck, ...] = ()
    failure: str = ""

    @property
    def error(self) -> float:
        """Worst error over the group; infinite if the network cannot take this size."""
        return math.inf if self.failure else self.errors.group.worst

    @property
    def spreads(self) -> list[float | None]:
        """Mean and worst error over angles, then over shifts; ``None`` if there are none."""
        return _spreads(self.errors)


def _spreads(errors: EquivarianceErrors) -> list[float | None]:
    families = (errors.angles, errors.shifts)
    return [value if family.views else None for family in families for value in (family.mean, family.worst)]


@dataclass(frozen=True)
class EquivarianceReport:
    """The result of :func:`~monai_gmr.metrics.check_equivariance`; ``str`` gives the tables."""

    network: str  # name of its class
    tolerance: float  # largest relative L2 error that counts as exact
    sizes: tuple[SizeCheck, ...]
    rests: int = 0  # convolutions that hold the rest of a trained kernel, to be annealed to zero

    @property
    def worst(self) -> float:
        """Worst error over the group and the sizes; infinite if the network cannot take a size."""
        return float(np.max([check.error for check in self.sizes]))

    @property
    def ok(self) -> bool:
        """Whether the network is exact at every size."""
        return bool(self.worst <= self.tolerance)

    @property
    def broken(self) -> tuple[ModuleCheck, ...]:
        """Deepest broken modules of all sizes."""
        return tuple(module for check in self.sizes for module in check.modules if module.deepest)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per network and module, with equal keys, for CSV."""
        rows: list[tuple] = []
        for check in self.sizes:
            size, exact = size_text(check.size), check.error <= self.tolerance
            rows.append((size, "", self.network, size, check.error, exact, False, 1, *check.spreads, check.failure))
            for m in check.modules:
                names = (size, m.path, m.class_name, size_text(m.size))
                rows.append((*names, m.error, not m.broken, m.deepest, m.calls, *m.spreads, m.remark))
        return [dict(zip(NAMES + VALUES, ("" if value is None else value for value in row))) for row in rows]

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, every_module: bool = False) -> str:
        """Formats the report as tables, with all modules or only those that break the symmetry."""
        shown = [i for i in range(len(SPREADS)) if any(check.spreads[i] is not None for check in self.sizes)]
        table = [["size", "error", *(SPREADS[i].replace("_", " ") for i in shown), "exact"]]
        for check in self.sizes:
            values = [None if check.failure else check.error, *(check.spreads[i] for i in shown)]
            table.append([size_text(check.size), *_cells(values), "yes" if check.error <= self.tolerance else "NO"])
        lines = [f"{self.network}: relative error over the grid's group, tolerance {self.tolerance:g}", ""]
        lines.append(format_aligned(table, left=len(table[0])))
        sentences = [check.failure for check in self.sizes if check.failure]
        if self.rests and not self.ok:
            sentences.append(f"Not equivariant yet: {self.rests} convolutions hold the rest of their trained kernels.")
        lines += ["", *sentences] if sentences else []
        measured = [module.spreads for check in self.sizes for module in check.modules]
        shown = [i for i in shown if any(spreads[i] is not None for spreads in measured)]
        modules = self._module_rows(every_module, shown)
        if modules:
            title = "Every module, checked alone:" if every_module else "Modules that break it, checked alone:"
            names = [SPREADS[i].replace("_", " ") for i in shown]
            header = ["size", "module", "class", "its input", "error", *names, "remark"]
            lines += ["", title, "", format_aligned([header, *modules], left=len(header))]
        return "\n".join(lines)

    def _module_rows(self, every_module: bool, shown: Sequence[int]) -> list[list[str]]:
        """Makes one row per module and remark, with its worst values, their sizes and the shown spreads."""
        groups: dict[tuple[str, bool, str], list[tuple[tuple[int, ...], ModuleCheck]]] = {}
        for check in self.sizes:
            for module in check.modules:
                if every_module or module.deepest:
                    groups.setdefault((module.path, module.broken, module.remark), []).append((check.size, module))
        rows = []
        for group in groups.values():
            worst = max((module for _, module in group), key=lambda module: module.error)
            everywhere = len(group) == len(self.sizes) > 1
            sizes = "all" if everywhere else ", ".join(size_text(size) for size, _ in group)
            remark = worst.remark or ("breaks it" if worst.deepest else "")
            spreads = [[s for _, module in group if (s := module.spreads[i]) is not None] for i in shown]
            cells = _cells([worst.error, *(max(values, default=None) for values in spreads)])
            rows.append([sizes, worst.path, worst.class_name, size_text(worst.size), *cells, remark])
        return rows


def _cells(values: Sequence[float | None]) -> list[str]:
    return ["-" if value is None else f"{value:.2e}" for value in values]
