"""Ratios between the rows of the benchmark, its tables and its picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_gmr.apps.benchmark_cases import PLAIN, PLAIN_3
from monai_gmr.files import replacing
from monai_gmr.tables import format_aligned, format_markdown

MEASURES = ("forward", "step", "memory")
REFERENCES = ("dense", "plain", "plain_3")
# title, key, factor and form of a column
Column = tuple[str, str, float, str]
COLUMNS: tuple[Column, ...] = (
    ("forward ms", "forward", 1e3, ".2f"),
    ("/dense", "forward_over_dense", 1, ".2f"),
    ("/plain", "forward_over_plain", 1, ".2f"),
    ("/k=3", "forward_over_plain_3", 1, ".2f"),
    ("step ms", "step", 1e3, ".2f"),
    ("/dense", "step_over_dense", 1, ".2f"),
    ("/plain", "step_over_plain", 1, ".2f"),
    ("/k=3", "step_over_plain_3", 1, ".2f"),
    ("memory MB", "memory", 1e-6, ".1f"),
    ("/plain", "memory_over_plain", 1, ".2f"),
)
SHORT_COLUMNS: tuple[Column, ...] = (
    ("forward ms", "forward", 1e3, ".1f"),
    ("of dense", "forward_over_dense", 1, ".2f"),
    ("step ms", "step", 1e3, ".1f"),
    ("of dense", "step_over_dense", 1, ".2f"),
    ("of plain k=3", "step_over_plain_3", 1, ".2f"),
    ("memory MB", "memory", 1e-6, ".0f"),
    ("of plain", "memory_over_plain", 1, ".2f"),
)
EXPLANATION = (
    "forward: without gradients, in training mode (test_time: in evaluation mode, and no step); step: forward and backward, for nets\n"
    "with the optimizer; memory: the most that a step (test_time: a forward pass) has in use at once beyond weights and input; times\n"
    "are medians.\n"
    "/dense: against the backend dense; /plain: against torch.nn.ConvNd of the same window; /k=3: against torch.nn.ConvNd of window 3."
)
# dark blue, sky blue, green and purple, grey: distinct for the colour-blind, and mostly in grey
OURS = ("#0b4f8a", "#56b4e9", "#009e73", "#cc79a7")
PLAIN_COLOUR = "#8c8c8c"
ROOM_OF_TITLE = 1.6


def _reference(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """Returns the row of the same case that a row is compared with."""
    if name == "dense":
        dense = [each for each in rows if each["backend"] == "dense"]
        same = [each for each in dense if each["method"] == row["method"]]
        # a row that is not one of our layers is compared only with an unambiguous counterpart
        return same[0] if same else dense[0] if len(dense) == 1 else None
    methods = {each["method"]: each for each in rows}
    return methods.get(PLAIN_3, methods.get(PLAIN)) if name == "plain_3" else methods.get(PLAIN)


def add_ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Adds ``MEASURE_over_dense``, ``MEASURE_over_plain`` and ``MEASURE_over_plain_3`` for ``forward``, ``step`` and ``memory`` to the rows
    of a case, ``None`` if a side is missing; if the case's window is 3, "plain" is both."""
    lines = []
    for row in rows:
        line = dict(row)
        for name in REFERENCES:
            reference = _reference(row, rows, name)
            for measure in MEASURES:
                own, base = row[measure], reference and reference[measure]
                line[f"{measure}_over_{name}"] = own / base if own is not None and base else None
        lines.append(line)
    return lines


def _cells(row: Mapping[str, Any], columns: Sequence[Column]) -> list[str]:
    values = [(row.get(key), factor, form) for _, key, factor, form in columns]
    return ["-" if value is None else format(value * factor, form) for value, factor, form in values]


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats an aligned table, the rows of each case under its name, and an explanation of its columns; shows ``None`` as "-"."""
    table = [["", *(title for title, *_ in COLUMNS)]]
    for row in rows:
        title = [f"{row['group']}: {row['case']}, {row['precision']}"]
        if title not in table:
            table.append(title)
        table.append([f"  {row['label']}", *_cells(row, COLUMNS)])
    return f"{format_aligned(table)}\n\n{EXPLANATION}"


def format_short_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column] = SHORT_COLUMNS) -> str:
    """Formats a Markdown table of the main columns, without the rows that were not measured.

    Example:
        >>> row = {"group": "nets", "case": "UNet", "precision": "float32", "label": "plain", "forward": 0.5}
        >>> print(format_short_rows([row]).splitlines()[2])
        | UNet | plain | 500.0 | - | - | - | - | - | - |
    """
    table = [["case", "", *(title for title, *_ in columns)]]
    for row in rows:
        if row["forward"] is not None:
            name = row["case"] if row["precision"] == "float32" else f"{row['case']}, {row['precision']}"
            table.append([name, row["label"], *_cells(row, columns)])
    return format_markdown(table)


def format_missing(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns one line for each reason why rows have no numbers; empty if all have numbers."""
    names = [row["backend"] or row["label"] for row in rows]
    counts = Counter((name, row["reason"]) for name, row in zip(names, rows) if row["reason"])
    totals = Counter(names)
    return "\n".join(f"-  {name}: {reason} ({n} of {totals[name]} rows)" for (name, reason), n in counts.items())


def is_drawn(row: Mapping[str, Any]) -> bool:
    """Checks whether a row has a bar: it is not the plain convolution of its case, and both were measured."""
    return row["method"] != PLAIN and row["step_over_plain"] is not None


def _colour(row: Mapping[str, Any], backends: Sequence[str]) -> str:
    return OURS[backends.index(row["backend"]) % len(OURS)] if row["backend"] is not None else PLAIN_COLOUR


def _draw_panel(panel: Any, rows: Sequence[Mapping[str, Any]], backends: Sequence[str]) -> None:
    place, case = -ROOM_OF_TITLE, None
    labels = []
    for row in rows:
        if row["case"] != case:
            place, case = place + ROOM_OF_TITLE, row["case"]
            labels.append((place, case, "bold"))
        place += 1
        labels.append((place, row["label"], "normal"))
        step, forward = row["step_over_plain"], row["forward_over_plain"]
        panel.barh(place, step - 1, left=1, height=0.72, color=_colour(row, backends), zorder=2)
        panel.plot(forward, place, "o", ms=5, mfc="white", mec="black", mew=1, zorder=4)
        end, shift, side = (max(step, forward), 6, "left") if step >= 1 else (min(step, forward), -6, "right")
        where: dict[str, Any] = {"xytext": (shift, 0), "textcoords": "offset points", "ha": side, "va": "center"}
        panel.annotate(f"{step:.2f}", (end, place), fontsize=8, **where)
    panel.set_ylim(place + ROOM_OF_TITLE - 0.7, -0.8)
    panel.set_yticks([each[0] for each in labels], [each[1] for each in labels], fontsize=9)
    for tick, (_, _, weight) in zip(panel.get_yticklabels(), labels):
        tick.set_fontweight(weight)
    panel.axvline(1, color="black", lw=1.2, zorder=3)
    panel.grid(axis="x", alpha=0.3, zorder=0)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelbottom=True)
    panel.set_xlabel("time, plain = 1 (left is faster)", fontsize=9)


def draw_rows(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str = "") -> None:
    """Draws the rows for which :func:`is_drawn` is true, at least one, to a PNG file: times relative to plain, a bar for a step and a dot
    for a forward pass, a panel for each group and dimension."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    drawn = [row for row in rows if is_drawn(row)]
    backends = list(dict.fromkeys(row["backend"] for row in drawn if row["backend"]))
    dims = sorted({row["dims"] for row in drawn})
    panels: dict[tuple[str, str], dict[int, list[Mapping[str, Any]]]] = {}
    for row in drawn:
        panels.setdefault((row["group"], row["precision"]), {}).setdefault(row["dims"], []).append(row)
    heights = []
    for band in panels.values():
        longest = max(len(each) + ROOM_OF_TITLE * len({row["case"] for row in each}) for each in band.values())
        heights.append(0.2 * longest + 0.8)
    figure = Figure(figsize=(1.2 + 6.2 * len(dims), sum(heights) + 0.9), layout="constrained")
    # one scale, so that bars of different panels can be compared
    grid = figure.subplots(len(panels), len(dims), squeeze=False, height_ratios=heights, sharex=True)
    for ((group, precision), band), line in zip(panels.items(), grid):
        for d, panel in zip(dims, line):
            if d not in band:
                panel.set_axis_off()
                continue
            _draw_panel(panel, band[d], backends)
            panel.set_title(f"{group}, {d}D, {precision}", fontsize=11, loc="left")
            panel.set_xscale("log")
            panel.margins(x=0.16)
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    names = {PLAIN_COLOUR: "plain, window 3"}
    names |= {OURS[i % len(OURS)]: f"backend {backend}" for i, backend in enumerate(backends)}
    colours = dict.fromkeys(_colour(row, backends) for row in drawn)
    dot = Line2D([], [], marker="o", mfc="white", mec="black", lw=0, label="forward pass alone")
    handles = [*(Patch(color=colour, label=names[colour]) for colour in colours), dot]
    figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=9, ncols=3)
    text = f"Time of a training step (bar, number) against plain convolution of the same window\n{title}"
    figure.suptitle(text, fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
