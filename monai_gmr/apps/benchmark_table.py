"""The benchmark's outcome: ratios between rows, an aligned table and a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_gmr.apps.benchmark_cases import PLAIN, PLAIN_3
from monai_gmr.files import replacing

MEASURES = ("forward", "step", "memory")
REFERENCES = ("dense", "plain", "plain_3")
# title, key, factor and form of each column
COLUMNS: tuple[tuple[str, str, float, str], ...] = (
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
    ("Mop", "operations", 1e-6, ",.1f"),
    ("GFLOP/s", "flops_per_second", 1e-9, ".1f"),
    ("moved MB", "moved", 1e-6, ".1f"),
    ("limit %", "limit_share", 100, ".0f"),
)
EXPLANATION = (
    "forward: without gradients, in training mode; step: forward and backward, for nets with the optimizer; memory: the most that a\n"
    "step has in use at once beyond weights and input; times are medians.\n"
    "/dense: against the backend dense; /plain: against torch.nn.ConvNd of the same window; /k=3: against torch.nn.ConvNd of window 3.\n"
    "Mop: million multiply-adds of the forward pass by the method's own count; moved: input, output and weights once; limit: the least\n"
    "time that the machine's bandwidth and arithmetic, measured in the same run, allow, over the forward time; bound by: the nearer one."
)
# dark blue, sky blue, green and purple, orange and brown, grey: told apart by the colour-blind, and mostly in grey
OURS = ("#0b4f8a", "#56b4e9", "#009e73", "#cc79a7")
OTHERS, PLAIN_COLOUR = "#e07b00", "#8c8c8c"
ROOM_OF_TITLE = 1.6


def _reference(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """The row of the same case that another is compared with."""
    if name == "dense":
        dense = [other for other in rows if other["backend"] == "dense"]
        same = [other for other in dense if other["method"] == row["method"]]
        # what is no layer of ours has one counterpart only where there is one
        return same[0] if same else dense[0] if len(dense) == 1 else None
    wanted = [PLAIN_3, PLAIN] if name == "plain_3" else [PLAIN]
    found = {other["method"]: other for other in rows}
    return next((found[method] for method in wanted if method in found), None)


def add_ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give the rows of a case their ratios.

    Args:
        rows: all of one case, with ``method``, ``backend``, ``forward`` and ``step`` in seconds and ``memory`` in bytes, these ``None``
            where there is no measurement.

    Returns:
        the rows with ``MEASURE_over_dense``, ``MEASURE_over_plain`` and ``MEASURE_over_plain_3``, ``None`` where a side is missing; where
        the case's window is 3, "plain" is both.

    Example:
        >>> ours = {"method": "ring_conv", "backend": "dense", "forward": 2.0, "step": 6.0, "memory": 10}
        >>> plain = {"method": "plain", "backend": None, "forward": 1.0, "step": 4.0, "memory": 10}
        >>> first, second = add_ratios([ours, plain])
        >>> first["step_over_plain"], second["forward_over_dense"]
        (1.5, 0.5)
    """
    lines = []
    for row in rows:
        line = dict(row)
        for name in REFERENCES:
            other = _reference(row, rows, name)
            for measure in MEASURES:
                both = row[measure] is not None and other is not None and other[measure]
                line[f"{measure}_over_{name}"] = row[measure] / other[measure] if both and other else None
        lines.append(line)
    return lines


def by_case(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of each case, in the order in which they come."""
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        cases.setdefault(f"{row['group']}: {row['case']}, {row['precision']}", []).append(row)
    return cases


def _cell(row: Mapping[str, Any], key: str, factor: float, form: str) -> str:
    value = row.get(key)
    return "-" if value is None else format(value * factor, form)


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """An aligned table, the rows of each case under its name, and what its columns say.

    Args:
        rows: with the keys of :data:`COLUMNS`, ``group``, ``case``, ``precision``, ``label`` and ``bound_by``; ``None`` is shown as "-".

    Example:
        >>> row = {"group": "nets", "case": "UNet", "precision": "float32", "label": "plain", "bound_by": None, "forward": 0.5}
        >>> print(format_rows([row]).splitlines()[2][:19])
          plain      500.00
    """
    header = ["", *(column[0] for column in COLUMNS), "bound by"]
    table: list[list[str] | str] = [header]
    for title, lines in by_case(rows).items():
        table.append(title)
        for row in lines:
            cells = [_cell(row, *column[1:]) for column in COLUMNS]
            table.append([f"  {row['label']}", *cells, row["bound_by"] or "-"])
    cells_only = [line for line in table if not isinstance(line, str)]
    widths = [max(len(line[i]) for line in cells_only) for i in range(len(header))]
    text = []
    for line in table:
        if isinstance(line, str):
            text.append(line)
            continue
        numbers = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        text.append("  ".join([line[0].ljust(widths[0]), *numbers]).rstrip())
    return "\n".join([*text, "", EXPLANATION])


# title, key, factor and form of each column of the table for a README
SHORT_COLUMNS: tuple[tuple[str, str, float, str], ...] = (
    ("forward ms", "forward", 1e3, ".1f"),
    ("of dense", "forward_over_dense", 1, ".2f"),
    ("step ms", "step", 1e3, ".1f"),
    ("of dense", "step_over_dense", 1, ".2f"),
    ("of plain k=3", "step_over_plain_3", 1, ".2f"),
    ("memory MB", "memory", 1e-6, ".0f"),
    ("of plain", "memory_over_plain", 1, ".2f"),
    ("% of the limit", "limit_share", 100, ".0f"),
)


def format_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with the columns that matter most, without the rows that are not measured.

    Args:
        rows: as for :func:`format_rows`.

    Example:
        >>> row = {"group": "nets", "case": "UNet", "precision": "float32", "label": "plain", "forward": 0.5}
        >>> print(format_markdown([row]).splitlines()[2])
        | UNet | plain | 500.0 | - | - | - | - | - | - | - |
    """
    lines = [
        "| " + " | ".join(["case", "", *(column[0] for column in SHORT_COLUMNS)]) + " |",
        "|---|---|" + "---|" * len(SHORT_COLUMNS),
    ]
    for row in rows:
        if row["forward"] is not None:
            name = row["case"] if row["precision"] == "float32" else f"{row['case']}, {row['precision']}"
            cells = [name, row["label"], *(_cell(row, *column[1:]) for column in SHORT_COLUMNS)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_missing(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each reason why rows have no numbers; empty when all have.

    Example:
        >>> row = {"label": "GMRConv, triton", "backend": "triton", "reason": "it needs a GPU"}
        >>> print(format_missing([row, row, {**row, "reason": None}]))
        -  triton: it needs a GPU (2 of 3 rows)
    """
    names = [row["backend"] or row["label"] for row in rows]
    counts = Counter((name, row["reason"]) for name, row in zip(names, rows) if row["reason"])
    totals = Counter(names)
    return "\n".join(f"-  {name}: {reason} ({n} of {totals[name]} rows)" for (name, reason), n in counts.items())


def is_drawn(row: Mapping[str, Any]) -> bool:
    """Whether a row has a bar: it and its case's plain convolution are measured, and it is not that itself."""
    return row["method"] != PLAIN and row["step_over_plain"] is not None


def _colour(row: Mapping[str, Any], backends: Sequence[str]) -> str:
    """By backend for what is ours."""
    if row["backend"] is not None:
        return OURS[backends.index(row["backend"]) % len(OURS)]
    return PLAIN_COLOUR if row["method"] == PLAIN_3 else OTHERS


def _draw_bar(panel: Any, row: Mapping[str, Any], place: float, colour: str) -> None:
    step, forward = row["step_over_plain"], row["forward_over_plain"]
    panel.barh(place, step - 1, left=1, height=0.72, color=colour, zorder=2)
    panel.plot(forward, place, "o", ms=5, mfc="white", mec="black", mew=1, zorder=4)
    slower = step >= 1
    end, shift, side = (max(step, forward), 6, "left") if slower else (min(step, forward), -6, "right")
    where: dict[str, Any] = {"xytext": (shift, 0), "textcoords": "offset points", "ha": side, "va": "center"}
    panel.annotate(f"{step:.2f}", (end, place), fontsize=8, **where)


def _draw_panel(panel: Any, cases: Mapping[str, Sequence[Mapping[str, Any]]], backends: Sequence[str]) -> None:
    ticks: list[tuple[float, str]] = []
    titles: list[str] = []
    place = 0.0
    for title, lines in cases.items():
        ticks.append((place, title))
        titles.append(title)
        for row in lines:
            place += 1
            ticks.append((place, row["label"]))
            _draw_bar(panel, row, place, _colour(row, backends))
        place += ROOM_OF_TITLE
    panel.set_ylim(place - 0.7, -0.8)
    panel.set_yticks([tick[0] for tick in ticks], [tick[1] for tick in ticks], fontsize=9)
    for label in panel.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in titles else "normal")


def _style_axis(panel: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """One logarithmic scale for all panels, so that their bars can be compared."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    values = [1.0, *(row[key] for row in rows for key in ("step_over_plain", "forward_over_plain"))]
    low, high = min(values), max(values)
    margin = max(high / low, 2.0) ** 0.16
    low, high = low / (margin if low < 1 else margin**0.25), high * margin
    marks = [m * 10.0**e for e in range(-3, 5) for m in (1, 2, 5)]
    panel.set_xscale("log")
    panel.set_xlim(low, high)
    panel.xaxis.set_major_locator(FixedLocator([mark for mark in marks if low <= mark <= high]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    panel.axvline(1, color="black", lw=1.2, zorder=3)
    panel.grid(axis="x", alpha=0.3, zorder=0)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("time, plain = 1 (left is faster)", fontsize=9)


def _legend_handles(rows: Sequence[Mapping[str, Any]], backends: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = {OTHERS: "other packages", PLAIN_COLOUR: "plain, window 3"}
    names |= {OURS[i % len(OURS)]: f"backend {backend}" for i, backend in enumerate(backends)}
    colours = dict.fromkeys(_colour(row, backends) for row in rows)
    dot = Line2D([], [], marker="o", mfc="white", mec="black", lw=0, label="forward pass alone")
    return [*(Patch(color=colour, label=names[colour]) for colour in colours), dot]


def draw_rows(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str = "") -> None:
    """Draw the times relative to plain: a bar for a step and a dot for a forward pass, a panel for each group and dimension.

    Args:
        rows: what :func:`add_ratios` returned, at least one of which :func:`is_drawn`, with ``group``, ``case``, ``dims``, ``precision``
            and ``label``; the others are left out.
        path: file to write, a PNG; the name appears when it is complete.
        title: what stands above, such as the machine.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if is_drawn(row)]
    backends = list(dict.fromkeys(row["backend"] for row in shown if row["backend"]))
    dims = sorted({row["dims"] for row in shown})
    bands = list(dict.fromkeys((row["group"], row["precision"]) for row in shown))
    panels: dict[tuple, dict[str, list[Mapping[str, Any]]]] = {}
    for row in shown:
        cases = panels.setdefault((row["group"], row["precision"], row["dims"]), {})
        cases.setdefault(row["case"], []).append(row)
    lengths = {key: sum(len(lines) + ROOM_OF_TITLE for lines in cases.values()) for key, cases in panels.items()}
    heights = [0.2 * max(lengths.get((*band, d), 0) for d in dims) + 0.8 for band in bands]
    figure = Figure(figsize=(1.2 + 6.2 * len(dims), sum(heights) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(bands), len(dims), squeeze=False, height_ratios=heights)
    for (group, precision), line in zip(bands, grid):
        for d, panel in zip(dims, line):
            if (group, precision, d) not in panels:
                panel.set_axis_off()
                continue
            _draw_panel(panel, panels[group, precision, d], backends)
            _style_axis(panel, shown)
            panel.set_title(f"{group}, {d}D, {precision}", fontsize=11, loc="left")
    handles = _legend_handles(shown, backends)
    figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=9, ncols=3)
    figure.suptitle(
        f"Time of a training step (bar, number) against plain convolution of the same window\n{title}", fontsize=11
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
