"""What a conversion did to each module, as a table."""

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
        after: those of its replacement; ``None`` when it stayed.
        reason: why it stayed, or a remark.
        change: of the weights, relative; ``None`` where there are none or they were drawn anew.
        breaks: whether it keeps the network from being exact.
        rest: of a convolution that is annealed the norm of its rest, relative to the trained kernel.
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
    """What a conversion did, module by module; print it for a table.

    Attributes:
        name: class of the network.
        modules: those that conversion knows, in the order of the network.
        notes: what else keeps the network from being exact: weights and operations outside of these modules.
        remarks: what else changed: parameters that several modules shared and share no more.
        pending: a sentence about rests of trained kernels that annealing has yet to drive to zero, empty where there are none.
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
        """Relative change of the weights of each module that has been projected."""
        return {module.path: module.change for module in self.modules if module.change is not None}

    @property
    def limits(self) -> tuple[str, ...]:
        """What keeps the network from being exact, a sentence each; empty for one that is exact at every size that it takes."""
        return (*self._lasting_limits, *((self.pending,) if self.pending else ()))

    @property
    def _lasting_limits(self) -> tuple[str, ...]:
        return (*(f"{module.path}: {module.reason}" for module in self.modules if module.breaks), *self.notes)

    @property
    def evaluation_limits(self) -> tuple[str, ...]:
        """The limits without those of training alone, whose reason begins with "in training", and without rests that are annealed."""
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
