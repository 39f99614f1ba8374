"""Means and intervals of a study over its seeds, as Markdown and as a picture."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_gmr.apps.study_progress import train_seconds
from monai_gmr.files import replacing
from monai_gmr.tables import format_markdown

SCORES = ("validation", "upright", "group_mean", "group_worst", "angles_mean", "angles_worst")
# columns of the overview: means over full circles about the axes, and over reversed axes
CIRCLES = ("turns_mean", "flips_mean")
OVERVIEW = {"upright": "upright", "turns_mean": "rotations", "flips_mean": "reflections"}
COLUMNS = ("net", "augmentation", "seeds", "learning rate", "epochs", "train, s", "parameters", "step, ms", "step, MB")
# dark blue and orange are distinct for the colour-blind, and in grey
UPRIGHT, ANGLES = "#0b4f8a", "#e07b00"
PANELS_A_ROW = 3
EXPLANATION = (
    "Scores: mean ± half width of the 95 % interval of the mean (Student's t over the seeds). Validation: best score of the "
    "metric that the bundle chooses its checkpoint by, which may be another than the table's. "
    "Still improving: mean validation score of the last tenth of the validations minus that of the tenth before, mean over the seeds. "
    "Train: mean seconds of all epochs with validation, on a CPU of the processor, all threads together. "
    "Step: a training step, the nets in alternation, and the most memory that it has in use beyond weights, their moments and the batch. "
    "Learning rate, at edge: the best on validation is the smallest or largest tried, and a better one may lie beyond. "
    "Group: rotated and mirrored on the grid; angles: rotated by any angle; worst: mean over the seeds of each run's "
    "worst view. Bold: best angles mean, or upright where no angles were taken. "
    "Differences are of runs of equal seeds on equal images; in brackets the 95 % interval over the images, by a paired bootstrap of "
    "the mean over the seeds; ± half width of that over the seeds, Student's t.\n"
)


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Computes the mean of the seeds' values and the half width of its 95 % interval by Student's t, ``None`` for a single value.

    Source:
        Student, The probable error of a mean, Biometrika 6 (1908).
    """
    from scipy import stats

    mean = round(float(np.mean(values)), 12)
    if len(values) < 2:
        return mean, None
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


# rows of steps.csv, by data set and net
Steps = Mapping[tuple[str, str], Mapping[str, Any]]


def _mean(values: Iterable[float | None]) -> float | None:
    """Computes the mean of the values that are not ``None``."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def summarize(
    rows: Sequence[Mapping[str, Any]],
    order: Sequence[tuple[str, str, str]],
    steps: Steps,
    edges: Collection[tuple[str, str, str]] = (),
) -> list[dict[str, Any]]:
    """Makes one row for each data set, net and augmentation of ``order`` that has a run among ``rows`` (of runs.csv): ``seeds``,
    milliseconds and megabytes of a training step (``steps``), whether the learning rate is at an edge (``edges``), means of
    ``train_seconds`` and ``still_improving``, and each score's mean, ``SCORE_half_width`` and ``SCORE_values``."""
    summary = []
    for cell in order:
        chosen = [row for row in rows if (row["data"], row["net"], row["augmentation"]) == cell]
        if not chosen:
            continue
        first = chosen[0]
        line: dict[str, Any] = {key: first[key] for key in ("data", "net", "augmentation")} | {"seeds": len(chosen)}
        line |= {key: first.get(key) for key in ("metric", "learning_rate", "epochs", "parameters")}
        line |= {"learning_rate_at_edge": cell in edges}
        step = steps.get(cell[:2], {})
        line |= {f"step_{unit}": step.get(unit) for unit in ("milliseconds", "megabytes")}
        line |= {"train_seconds": _mean(map(train_seconds, chosen))}
        line |= {"still_improving": _mean(row.get("still_improving") for row in chosen)}
        measured = [score for score in CIRCLES if any(row.get(score) is not None for row in rows)]
        for score in sorted((*SCORES, *measured)):
            values = [row[score] for row in chosen if row.get(score) is not None]
            line[score], line[f"{score}_half_width"] = interval(values) if values else (None, None)
            line[f"{score}_values"] = values
        summary.append(line)
    return summary


def format_score(mean: float | None, half_width: float | None) -> str:
    """Formats a score with its interval.

    Example:
        >>> format_score(0.9123, 0.0213), format_score(0.9123, None), format_score(None, None)
        ('0.912 ± 0.021', '0.912', '-')
    """
    if mean is None:
        return "-"
    return f"{mean:.3f}" if half_width is None else f"{mean:.3f} ± {half_width:.3f}"


def deciding_score(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the score that decides which row of a data set is bold: over all angles, or upright if there are no angles."""
    return "angles_mean" if any(line["angles_mean"] is not None for line in lines) else "upright"


def by_data(summary: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Groups the rows by data set, in their order."""
    names = dict.fromkeys(line["data"] for line in summary)
    return {name: [line for line in summary if line["data"] == name] for name in names}


def title_of(line: Mapping[str, Any]) -> str:
    """Returns the data set or test of a row of :func:`summarize`, without its metric if there are several."""
    return line["data"].removesuffix(f" ({line['metric']})")


def format_overview(summary: Sequence[Mapping[str, Any]]) -> str:
    """Formats the result of :func:`summarize` as one Markdown table: a row for each data set, net and augmentation, each metric upright,
    over rotations about the axes and over reflections; then the means over the data sets that have every run. Bold: the best of a data set.

    Example:
        >>> row = {"data": "cells", "net": "plain", "augmentation": "none", "metric": "auc", "upright": 0.9, "turns_mean": 0.8}
        >>> print(format_overview(summarize([row], [("cells", "plain", "none")], {})))
        | data | net | augmentation | auc: upright | rotations | reflections |
        |---|---|---|---:|---:|---:|
        | cells | plain | none | **0.900** | **0.800** | - |
    """
    metrics = list(dict.fromkeys(line["metric"] for line in summary))
    columns = [(metric, score) for metric in metrics for score in OVERVIEW]
    header = [f"{metric.replace('_', ' ')}: " * (score == "upright") + OVERVIEW[score] for metric, score in columns]
    values: dict[str, dict[tuple[str, str], dict[tuple[str, str], Any]]] = {}
    for line in summary:
        own = values.setdefault(title_of(line), {}).setdefault((line["net"], line["augmentation"]), {})
        own |= {(line["metric"], score): (line.get(score), line.get(f"{score}_half_width")) for score in OVERVIEW}
    runs = list(dict.fromkeys(run for own in values.values() for run in own))
    whole = [own for own in values.values() if all(run in own for run in runs)]
    if len(whole) > 1:
        means = {run: {column: _column_mean([own[run] for own in whole], column) for column in columns} for run in runs}
        values[f"mean of {len(whole)}"] = means
    rows = [["data", "net", "augmentation", *header]]
    for title, own in values.items():
        best = {
            column: max(
                (each[column][0] for each in own.values() if column in each and each[column][0] is not None),
                default=None,
            )
            for column in columns
        }
        for (net, augmentation), each in own.items():
            texts = [
                (
                    format_score(*each.get(column, (None, None))),
                    each.get(column, (None,))[0] == best[column] is not None,
                )
                for column in columns
            ]
            rows.append([title, net, augmentation, *(f"**{text}**" if bold else text for text, bold in texts)])
    return format_markdown(rows, right=3)


def _column_mean(rows: Sequence[Mapping[tuple[str, str], Any]], column: tuple[str, str]) -> tuple[float | None, None]:
    """Computes the mean of a column over data sets, if all have it."""
    values = [row.get(column, (None,))[0] for row in rows]
    return (None if None in values else float(np.mean(values))), None


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, (int, float)) else str(value or "-")


def format_tables(summary: Sequence[Mapping[str, Any]], below: Mapping[str, str] | None = None) -> str:
    """Formats the result of :func:`summarize` as Markdown, a table for each data set; ``below`` are further tables, by data set.

    Example:
        >>> row = {"data": "cells", "net": "plain", "augmentation": "none", "metric": "auc", "learning_rate": 0.01, "epochs": 8}
        >>> row |= {"parameters": 9000, "train_seconds": 61.2, "upright": 0.9, "seed": 0}
        >>> print(format_tables(summarize([row], [("cells", "plain", "none")], {})).splitlines()[4])
        | plain | none | 1 | 0.01 | 8 | 61 | 9,000 | - | - | - | - | **0.900** | - | - | - | - |
    """
    blocks = []
    for data, lines in by_data(summary).items():
        deciding = deciding_score(lines)
        best = max((line[deciding] for line in lines if line[deciding] is not None), default=None)
        rows = [[*COLUMNS, SCORES[0], "still improving", *(score.replace("_", " ") for score in SCORES[1:])]]
        for line in lines:
            rate = _number(line["learning_rate"], "{:g}") + ", at edge" * line["learning_rate_at_edge"]
            cells = [line["net"], line["augmentation"], str(line["seeds"]), rate, _number(line["epochs"], "{:,}")]
            cells += [_number(line["train_seconds"], "{:,.0f}"), _number(line["parameters"], "{:,}")]
            cells += [_number(line["step_milliseconds"], "{:.1f}"), _number(line["step_megabytes"], "{:.1f}")]
            cells += [format_score(line[SCORES[0]], line[f"{SCORES[0]}_half_width"])]
            cells += [_number(line["still_improving"], "{:+.3f}")]
            for score in SCORES[1:]:
                text = format_score(line[score], line[f"{score}_half_width"])
                cells.append(f"**{text}**" if score == deciding and line[score] == best is not None else text)
            rows.append(cells)
        title = f"## {title_of(lines[0])}: {lines[0]['metric'].replace('_', ' ')}"
        blocks.append(f"{title}\n\n{format_markdown(rows, right=2)}\n")
        if below and data in below:
            blocks.append(f"{below[data]}\n")
    return "\n".join(blocks)


def _draw_panel(panel: Any, lines: Sequence[Mapping[str, Any]], places: Mapping[tuple[str, str], int]) -> None:
    points = []
    for line in lines:
        place = places[line["net"], line["augmentation"]]
        for score, shift, marker, colour in (("upright", -0.22, "o", UPRIGHT), ("angles_mean", 0.14, "s", ANGLES)):
            if line[score] is None:
                continue
            points += line[f"{score}_values"]
            if line["seeds"] > 1:
                # next to the bar, which would hide them
                heights = [place + shift + 0.13] * len(line[f"{score}_values"])
                panel.plot(line[f"{score}_values"], heights, "o", color=colour, alpha=0.45, ms=4, mew=0)
            style = {"fmt": marker, "color": colour, "ms": 6, "lw": 1.5, "capsize": 3}
            panel.errorbar(line[score], place + shift, xerr=line[f"{score}_half_width"], **style)
        if line["angles_worst"] is not None:
            points.append(line["angles_worst"])
            panel.plot(line["angles_worst"], place + 0.14, "<", color=ANGLES, mfc="white", ms=6)
    if points:
        # limits from the points: the intervals of two seeds can be wider than everything else
        margin = max(0.5 * (max(points) - min(points)), 0.05)
        low, high = min(points) - margin, max(points) + margin
        # scores that are shares end at 0 and 1
        if min(points) >= 0 and max(points) <= 1:
            low, high = max(low, -0.005), min(high, 1.005)
        panel.set_xlim(low, high)


def draw_study(summary: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draws the result of :func:`summarize` to a PNG file, a panel for each data set: upright and mean over the angles with intervals,
    seeds, and the worst angle."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = by_data(summary)
    pairs = list(dict.fromkeys((line["net"], line["augmentation"]) for line in summary))
    places = {pair: place for place, pair in enumerate(pairs)}
    rows = math.ceil(len(panels) / PANELS_A_ROW)
    columns = math.ceil(len(panels) / rows)
    size = (2.2 + 3.6 * columns, rows * (0.9 + 0.5 * len(pairs)) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel, lines in zip(grid.flat, panels.values()):
        _draw_panel(panel, lines, places)
        panel.set_title(title_of(lines[0]), fontsize=11)
        panel.set_xlabel(lines[0]["metric"].replace("_", " "))
        for place in range(1, len(pairs)):
            same = pairs[place][0] == pairs[place - 1][0]
            panel.axhline(place - 0.5, color="0.92" if same else "0.7", lw=0.8, zorder=0)
        panel.grid(axis="x", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
        panel.locator_params(axis="x", nbins=6)
    for panel in list(grid.flat)[len(panels) :]:
        panel.set_axis_off()
    several = len({augmentation for _, augmentation in pairs}) > 1
    labels = [f"{net}, {augmentation}" if several else net for net, augmentation in pairs]
    grid[0, 0].set(yticks=range(len(pairs)), yticklabels=labels, ylim=(len(pairs) - 0.5, -0.5))
    handles = [Line2D([], [], color=UPRIGHT, marker="o", lw=1.5)]
    names = ["upright"]
    if any(line["angles_mean"] is not None for line in summary):
        handles += [Line2D([], [], color=ANGLES, marker="s", lw=1.5)]
        handles += [Line2D([], [], color=ANGLES, marker="<", mfc="white", lw=0)]
        names += ["mean over all angles", "worst angle"]
    if any(line["seeds"] > 1 for line in summary):
        handles.append(Line2D([], [], color="0.4", marker="o", ms=4, mew=0, alpha=0.6, lw=0))
        names.append("single seeds (bars: 95 % interval of the mean)")
    figure.legend(handles, names, loc="outside lower center", frameon=False, fontsize=9, ncols=2 if columns < 3 else 4)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
