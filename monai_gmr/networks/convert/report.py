"""Report of a conversion: its result for each module, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from monai_gmr.tables import format_aligned


@dataclass(frozen=True)
class ConvertedModule:
    """Result for one module.

    Attributes:
        path: its name in the network.
        before: class, window and stride.
        after: the same of its replacement; ``None`` if it stayed.
        reason: why it stayed, or a remark.
        change: relative change of the weights; ``None`` if there are none or they are fresh.
        breaks: whether it prevents an exact network.
        rest: norm of the rest of an annealed convolution, relative to the trained kernel.
    """

    path: str
    before: str
    after: str | None
    reason: str = ""
    change: float | None = None
    breaks: bool = False
    rest: float | None = None


@dataclass(frozen=True)
class ConversionReport:
    """Results of a conversion, module by module; prints as a table.

    Attributes:
        name: class of the network.
        modules: modules of a convertible kind, in the order of the network.
        notes: other limits of exactness: weights and operations outside of these modules.
        remarks: other changes: parameters that several modules no longer share.
        pending: a sentence about rests of trained kernels that annealing has yet to drive to zero; empty if there are none.
    """

    name: str
    modules: tuple[ConvertedModule, ...]
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    pending: str = ""

    @property
    def converted(self) -> tuple[ConvertedModule, ...]:
        """Modules that were replaced."""
        return tuple(module for module in self.modules if module.after is not None)

    @property
    def kept(self) -> tuple[ConvertedModule, ...]:
        """Modules that stayed, each with its reason."""
        return tuple(module for module in self.modules if module.after is None)

    @property
    def changes(self) -> dict[str, float]:
        """Relative change of the weights of each projected module."""
        return {module.path: module.change for module in self.modules if module.change is not None}

    @property
    def limits(self) -> tuple[str, ...]:
        """Sentences on what prevents an exact network; empty if it is exact at every size that it takes."""
        return (*self._lasting_limits, *((self.pending,) if self.pending else ()))

    @property
    def _lasting_limits(self) -> tuple[str, ...]:
        return (*(f"{module.path}: {module.reason}" for module in self.modules if module.breaks), *self.notes)

    @property
    def evaluation_limits(self) -> tuple[str, ...]:
        """The limits without those of training only, whose reason begins with "in training", and without annealed rests."""
        return tuple(limit for limit in self._lasting_limits if ": in training " not in limit)

    def __iter__(self) -> Iterator[ConvertedModule]:
        return iter(self.modules)

    def __str__(self) -> str:
        header = ["module", "was", "is now", "weights changed by", "rest of kernel", "remark"]
        rows = [header]
        for each in self.modules:
            numbers = ["" if value is None else f"{value:.2f}" for value in (each.change, each.rest)]
            rows.append([each.path, each.before, each.after or "the same", *numbers, each.reason])
        if all(each.rest is None for each in self.modules):
            rows = [[*row[:4], row[5]] for row in rows]
        lines = format_aligned(rows, left=len(rows[0]))
        head = f"{self.name}: {len(self.converted)} modules converted, {len(self.kept)} kept"
        return "\n".join([head, lines, *self.remarks, *self.notes, *([self.pending] if self.pending else [])])
