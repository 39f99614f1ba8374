"""What a check of a network found, as objects, as rows for CSV and as plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monai_gmr.metrics.equivariance import EquivarianceErrors


def size_text(size: Sequence[int]) -> str:
    """A size as people write it.

    Example:
        >>> size_text((64, 65))
        '64x65'
    """
    return "x".join(str(n) for n in size)


@dataclass(frozen=True)
class ModuleCheck:
    """One module, asked alone with the input that it gets inside the network.

    Attributes:
        path: dotted path in the network, ``"(network)"`` for the network itself.
        class_name: name of its class.
        size: spatial size of the input at which it is worst.
        error: worst relative L2 error over its calls and the elements tried.
        calls: how often one pass of the network calls it.
        broken: whether the error is above the tolerance and more than rounding.
        deepest: broken while none of its children is.
        remark: why, where that is known.
    """

    path: str
    class_name: str
    size: tuple[int, ...]
    error: float
    calls: int
    broken: bool
    deepest: bool
    remark: str


@dataclass(frozen=True)
class SizeCheck:
    """A network at one input size: its ``errors``, its ``modules`` in the order of the network, and ``failure``, one
    sentence when the network cannot take this size (then there are no errors)."""

    size: tuple[int, ...]
    errors: EquivarianceErrors = field(default_factory=lambda: EquivarianceErrors(()))
    modules: tuple[ModuleCheck, ...] = ()
    failure: str = ""

    @property
    def error(self) -> float:
        """Worst error over the group; infinite when the network cannot take this size."""
        return math.inf if self.failure else self.errors.group.worst


@dataclass(frozen=True)
class EquivarianceReport:
    """What :func:`~monai_gmr.metrics.check_equivariance` found; ``str`` gives the tables.

    Attributes:
        network: class name of the network.
        tolerance: largest relative L2 error that counts as exact.
        sizes: one :class:`SizeCheck` an input size.
    """

    network: str
    tolerance: float
    sizes: tuple[SizeCheck, ...]

    @property
    def worst(self) -> float:
        """The worst error over the group and the sizes; infinite when a size cannot be taken."""
        return float(np.max([check.error for check in self.sizes]))

    @property
    def ok(self) -> bool:
        """Whether the network is exact at every size."""
        return bool(self.worst <= self.tolerance)

    @property
    def broken(self) -> tuple[ModuleCheck, ...]:
        """The deepest broken modules, of all sizes."""
        return tuple(module for check in self.sizes for module in check.modules if module.deepest)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a network and module, of equal keys, for CSV."""
        rows = []
        for check in self.sizes:
            size = size_text(check.size)
            whole = {
                "size": size,
                "path": "",
                "class": self.network,
                "input_size": size,
                "error": check.error,
                "exact": check.error <= self.tolerance,
                "deepest": False,
                "calls": 1,
                "angles_mean": check.errors.angles.mean if check.errors.angles.views else "",
                "angles_worst": check.errors.angles.worst if check.errors.angles.views else "",
                "remark": check.failure,
            }
            rows.append(whole)
            for module in check.modules:
                found = {
                    "path": module.path,
                    "class": module.class_name,
                    "input_size": size_text(module.size),
                    "error": module.error,
                    "exact": not module.broken,
                    "deepest": module.deepest,
                    "calls": module.calls,
                    "angles_mean": "",
                    "angles_worst": "",
                    "remark": module.remark,
                }
                rows.append(whole | found)
        return rows

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, every_module: bool = False) -> str:
        """The report as tables.

        Args:
            every_module: list all modules, not only those that break the symmetry.
        """
        angles = any(check.errors.angles.views for check in self.sizes)
        header = ["size", "error"] + (["angles mean", "angles worst"] if angles else []) + ["exact"]
        table = []
        for check in self.sizes:
            spread = check.errors.angles
            cells = [size_text(check.size), "-" if check.failure else f"{check.error:.2e}"]
            if angles:
                cells += [f"{spread.mean:.2e}", f"{spread.worst:.2e}"] if spread.views else ["-", "-"]
            table.append([*cells, "yes" if check.error <= self.tolerance else "NO"])
        lines = [f"{self.network}: relative error over the grid's group, tolerance {self.tolerance:g}", ""]
        lines += _columns(header, table)
        lines += [""] * any(c.failure for c in self.sizes) + [c.failure for c in self.sizes if c.failure]
        modules = self._module_lines(every_module)
        if modules:
            title = "Every module, asked alone:" if every_module else "Modules that break it, asked alone:"
            lines += ["", title, "", *_columns(["size", "module", "class", "its input", "error", "remark"], modules)]
        return "\n".join(lines)

    def _module_lines(self, every_module: bool) -> list[list[str]]:
        """One line a module and remark, at its worst, with the sizes at which it is so."""
        lines: dict[tuple[str, bool, str], list[tuple[tuple[int, ...], ModuleCheck]]] = {}
        for check in self.sizes:
            for module in check.modules:
                if every_module or module.deepest:
                    lines.setdefault((module.path, module.broken, module.remark), []).append((check.size, module))
        cells = []
        for found in lines.values():
            worst = max((module for _, module in found), key=lambda module: module.error)
            sizes = ", ".join(size_text(size) for size, _ in found)
            if len(found) == len(self.sizes) > 1:
                sizes = "all"
            remark = worst.remark or ("breaks it" if worst.deepest else "")
            seen = size_text(worst.size)
            cells.append([sizes, worst.path, worst.class_name, seen, f"{worst.error:.2e}", remark])
        return cells


def _columns(header: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in [header, *rows]]
