"""The picture of a rotation table: the metric of every view, of one run or of several."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# dark blue, orange, green, purple: told apart by the colour-blind, and in grey
COLOURS = ("#0b4f8a", "#e07b00", "#3a8f4d", "#7b4fa0")
STYLES = ("-", "--", ":")
MARKERS = ("o", "s", "^")
SMALLEST_RANGE = 0.2


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits of the axis: never so narrow that a still network seems to move."""
    low, high = min(values), max(values)
    margin = max(SMALLEST_RANGE - (high - low), 0.1 * (high - low)) / 2
    low, high = low - margin, high + margin
    if max(values) <= 1 and high > 1.02:
        low, high = low - (high - 1.02), 1.02
    return low, high


def _spread(rows: Sequence[Mapping[str, Any]], metric: str, families: tuple[str, ...]) -> str:
    values = [row[metric] for row in rows if row["family"] in families]
    width = max(values, default=0.0) - min(values, default=0.0)
    return f"{width:.3f}" if width >= 5e-4 or width == 0 else f"{width:.0e}"


def _has_axis(row: Mapping[str, Any], axis: int) -> bool:
    if row["family"] == "upright":
        return True
    return row["axis"] not in ("", None) and int(row["axis"]) == axis


def draw_rotation_table(runs: Mapping[str, Sequence[Mapping[str, Any]]], metric: str, path: str | Path) -> None:
    """Draw the metric against the elements of the grid's group, and against the angle.

    Args:
        runs: name of a run to its rows, one a view, with ``family``, ``axis``, ``angle`` and the metric.
        metric: the metric to draw.
        path: file to write, a PNG; the name appears when it is complete.

    Example:
        >>> file = getfixture("tmp_path") / "table.png"
        >>> row = {"view": "upright", "family": "upright", "axis": 0, "angle": 0.0, "dice": 0.9}
        >>> draw_rotation_table({"this run": [row]}, "dice", file)
        >>> file.exists()
        True
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.25))
    runs = {name: [row for row in rows if row.get(metric) is not None] for name, rows in runs.items()}
    drawn_axes = set()
    for (name, rows), colour in zip(runs.items(), COLOURS * len(runs)):
        group = [row for row in rows if row["family"] in ("upright", "group")]
        label = f"{name}, spread {_spread(group, metric, ('upright', 'group'))}"
        left.plot(range(len(group)), [row[metric] for row in group], "o", color=colour, ms=4.5, label=label)
        for axis in range(3):
            line = sorted((row for row in rows if _has_axis(row, axis)), key=lambda row: row["angle"] or 0.0)
            if len({row["family"] for row in line}) < 2:
                continue
            drawn_axes.add(axis)
            degrees = [row["angle"] or 0.0 for row in line]
            values = [row[metric] for row in line]
            closed = [*degrees, 360.0], [*values, values[0]]
            right.plot(*closed, STYLES[axis], marker=MARKERS[axis], color=colour, ms=4, lw=1.4)
    left.set(xlabel="element of the grid's group (0 is upright)", ylabel=metric.replace("_", " "))
    left.set_title("turned and mirrored on the grid")
    right.set(xlabel="angle in degrees", xticks=range(0, 361, 45))
    right.set_title("turned by any angle")
    handles = [Line2D([], [], color=colour, lw=2) for _, colour in zip(runs, COLOURS * len(runs))]
    labels = [f"{name}, spread {_spread(rows, metric, ('upright', 'angles'))}" for name, rows in runs.items()]
    if len(drawn_axes) > 1:
        handles += [Line2D([], [], color="0.4", ls=STYLES[axis], marker=MARKERS[axis], ms=4) for axis in drawn_axes]
        labels += [f"about axis {axis}" for axis in drawn_axes]
    left.legend(loc="lower left", frameon=False, fontsize=9)
    right.legend(handles, labels, loc="lower left", frameon=False, fontsize=9, ncols=2)
    low, high = _limits([row[metric] for rows in runs.values() for row in rows])
    # room for the legends below the points
    left.set_ylim(low - 0.35 * (high - low), high)
    for panel in (left, right):
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    figure.savefig(temporary, dpi=130, format="png")
    os.replace(temporary, path)
