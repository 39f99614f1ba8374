"""The picture of a rotation table: the metric in every view, for one or several networks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_gmr.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.projections.polar import PolarAxes

# dark blue, orange, green, pink, black, sky blue: distinct for the colour-blind
COLOURS = ("#0b4f8a", "#e07b00", "#009e73", "#cc79a7", "#1a1a1a", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
SMALLEST_RANGE = 0.2
# in degrees
ARC_STEP = 2.0

Rows = Sequence[Mapping[str, Any]]


def find_limits(values: Sequence[float]) -> tuple[float, float]:
    """Computes the limits of the axis, wide enough that an invariant network does not seem to vary."""
    if not values:
        return 0.0, 1.02
    low, high = min(values), max(values)
    # a tenth is little for a metric in millimetres
    smallest = SMALLEST_RANGE * max(1.0, abs(low), abs(high))
    margin = max(smallest - (high - low), 0.1 * (high - low)) / 2
    low, high = low - margin, high + margin
    if max(values) <= 1 and high > 1.02:
        low, high = low - (high - 1.02), 1.02
    if min(values) >= 0 and low < 0:
        high = max(high, smallest)
        low = -0.02 * high
    return low, high


def _spread(values: Sequence[float]) -> str:
    width = max(values, default=0.0) - min(values, default=0.0)
    if width >= 10:
        return f"{width:.1f}"
    return f"{width:.3f}" if width >= 5e-4 or width == 0 else f"{width:.0e}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)


def _values(rows: Rows, metric: str, family: str | None = None) -> list[float]:
    """Returns the values of a family, by default of all families except shifts, which are not rotations."""
    families = {row["family"] for row in rows} - {"shifts"} if family is None else {family}
    return [float(row[metric]) for row in rows if row["family"] in families]


def _style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def _has_axis(row: Mapping[str, Any], axis: int) -> bool:
    known = row["family"] in ("group", "angles") and row.get("axis") not in ("", None)
    return row["family"] == "upright" or (known and int(row["axis"]) == axis)


def _circle(rows: Rows, metric: str, axis: int) -> tuple[list[float], list[float]]:
    """Returns the sorted angles in degrees and the values of the views about an axis; the first view is repeated at the end."""
    values = {
        round(float(row.get("angle") or 0.0) % 360, 6): float(row[metric])
        for row in rows
        if _has_axis(row, axis) and (row["family"] == "upright" or row.get("angle") not in ("", None))
    }
    angles = sorted(values)
    return [*angles, *(angle + 360 for angle in angles[:1])], [values[angle] for angle in [*angles, *angles[:1]]]


def _arcs(angles: Sequence[float], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Interpolates between angles, densely enough for round lines in a polar panel; also returns the indices of the given angles."""
    counts = [max(1, math.ceil((after - before) / ARC_STEP)) for before, after in pairwise(angles)]
    places = np.cumsum([0, *counts])
    every = np.arange(places[-1] + 1)
    return np.interp(every, places, angles), np.interp(every, places, values), places.tolist()


def shorten(text: str, length: int) -> str:
    """Shortens a text of more than ``length`` characters by leaving out its middle.

    Example:
        >>> shorten("a long name.png", 10)
        'a lon….png'
    """
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def _draw_group(panel: Axes, runs: Mapping[str, Rows], metric: str) -> None:
    from matplotlib.ticker import MaxNLocator

    groups = [[row for row in rows if row["family"] in ("upright", "group")] for rows in runs.values()]
    # an element has the same place for every network, even if a network lacks some elements
    longest = sorted(groups, key=len, reverse=True)
    place = {view: i for i, view in enumerate(dict.fromkeys(str(row["view"]) for rows in longest for row in rows))}
    for i, rows in enumerate(groups):
        places = [place[str(row["view"])] for row in rows]
        panel.plot(places, _values(rows, metric), ls="", ms=4.5, mew=0, **_style(i))
    panel.set_title("rotated and mirrored\non the grid")
    panel.set(xlabel="element of the group\n(0 is upright)", ylabel=metric.replace("_", " "))
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    if len(place) == 1:
        panel.set(xlim=(-1, 1), xticks=[0])


def _draw_circle(
    panel: PolarAxes, runs: Mapping[str, Rows], metric: str, axis: int, limits: tuple[float, float]
) -> None:
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

    for i, rows in enumerate(runs.values()):
        angles, values = _circle(rows, metric, axis)
        if not angles:
            continue
        line, heights, places = _arcs(angles, values)
        # the first line is the widest, so that it is visible below the next ones
        width = 1.2 + 1.4 * (len(runs) - 1 - i) / max(len(runs) - 1, 1)
        points: dict[str, Any] = {"ms": 3 if len(places) < 40 else 0, "markevery": places}
        panel.plot(np.deg2rad(line), heights, lw=width, **points, **_style(i))
    low, high = limits
    panel.set_theta_zero_location("N")
    panel.set_theta_direction(1)
    panel.set_ylim(low, high)
    # without a hole in the middle, small values would be indistinguishable
    panel.set_rorigin(low - 0.3 * (high - low))
    panel.set_thetagrids(range(0, 360, 45))
    panel.tick_params(axis="x", pad=5, colors="0.35")
    for count in (3, 4, 5, 6):
        ticks = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        # no tick on the inner circle, no number on the outer one
        ticks = [tick for tick in ticks if low + 0.05 * (high - low) < tick <= high]
        numbers = [tick for tick in ticks if tick < high - 0.09 * (high - low)]
        if len(numbers) > 1:
            break
    panel.set_yticks(ticks, [""] * len(ticks))
    for tick in numbers:
        halo = [withStroke(linewidth=2.5, foreground="white")]
        text = panel.text(math.radians(22.5), tick, f"{tick:g}", ha="center", va="center", path_effects=halo, zorder=5)
        text.set_in_layout(False)


def _draw_cloud(panel: Axes, runs: Mapping[str, Rows], metric: str, families: Sequence[str]) -> None:
    for i, rows in enumerate(runs.values()):
        style, half = _style(i), 0.32 / len(runs)
        for place, family in enumerate(families):
            values = _values(rows, metric, family)
            if not values:
                continue
            middle = place + (i - (len(runs) - 1) / 2) * 0.8 / len(runs)
            # any number of multiples of the golden ratio is evenly spread
            jitter = ((np.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.5 / len(runs)
            panel.plot(middle + jitter, values, ls="", ms=3.5, mew=0, alpha=0.6, **style)
            panel.plot([middle - half, middle + half], [np.mean(values)] * 2, color=style["color"], lw=2)
    panel.set_title(f"{' and '.join(families)}\nrotations")
    panel.set(xlabel="bar: mean", xlim=(-0.6, len(families) - 0.4))
    panel.set_xticks(range(len(families)), families if len(families) > 1 else [""])
    panel.tick_params(axis="x", length=0, labelsize="small")


def _draw_shifts(panel: Axes, runs: Mapping[str, Rows], metric: str) -> None:
    for i, rows in enumerate(runs.values()):
        values: dict[float, list[float]] = {}
        for row in rows:
            if row["family"] in ("upright", "shifts"):
                values.setdefault(float(row.get("shift") or 0.0), []).append(float(row[metric]))
        places = sorted(values)
        style = _style(i)
        panel.plot(places, [np.mean(values[place]) for place in places], color=style["color"], lw=2)
        points = [(place, value) for place in places for value in values[place]]
        panel.plot(*zip(*points), ls="", ms=4.5, mew=0, **style)
    distances = {float(row.get("shift") or 0.0) for rows in runs.values() for row in rows if row["family"] == "shifts"}
    panel.set_title("moved along the axes,\nnot rotated")
    panel.set(xlabel="voxels\n(line: mean over axes)", xticks=sorted({0.0, *distances}))
    panel.margins(x=0.25)


def _draw_costs(
    panel: Axes, runs: Mapping[str, Rows], metric: str, costs: Mapping[str, float], greater_is_better: bool
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for i, (name, rows) in enumerate(runs.items()):
        if name not in costs:
            continue
        values, seconds, style = _values(rows, metric), float(costs[name]), _style(i)
        mean, worst = float(np.mean(values)), min(values) if greater_is_better else max(values)
        panel.plot([seconds] * 2, [mean, worst], color=style["color"], lw=1.4)
        panel.plot([seconds], [worst], marker="_", color=style["color"], ms=9, mew=1.4)
        panel.plot([seconds], [mean], ms=7, mew=0, **style)
    ratio = max(costs.values()) / min(costs.values())
    panel.set_xscale("log")
    panel.margins(x=0.2)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 5 else (1, 3) if ratio <= 100 else (1.0,)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_title("quality and cost")
    panel.set(xlabel="seconds a case\n(whisker: worst view)", ylabel="mean over the views")


def _figure(
    runs: Mapping[str, Rows],
    metric: str,
    costs: Mapping[str, float] | None = None,
    greater_is_better: bool = True,
    title: str = "",
) -> Figure:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    runs = {name: [row for row in rows if _is_number(row.get(metric))] for name, rows in runs.items()}
    costs = {name: cost for name, cost in (costs or {}).items() if runs.get(name) and _is_number(cost) and cost > 0}
    all_rows = [row for rows in runs.values() for row in rows]
    families = {row["family"] for row in all_rows}
    clouds = [family for family in ("icosahedral", "random") if family in families]
    angled = [row for row in all_rows if row["family"] == "angles"]
    kinds = [f"circle {axis}" for axis in range(3) if any(_has_axis(row, axis) for row in angled)]
    kinds += ["cloud"] * bool(clouds) + ["shifts"] * ("shifts" in families) + ["costs"] * (len(costs) > 1)
    if "group" in families or not kinds or kinds == ["costs"]:
        kinds.insert(0, "group")
    is_3d = any(_has_axis(row, axis) for row in all_rows if row["family"] != "upright" for axis in (1, 2))
    limits = find_limits([value for family in families for value in _values(all_rows, metric, family)])
    # a picture with many panels is shown smaller, but its text must stay readable
    size = 10.0 if len(kinds) <= 4 else 12.0
    names = [f"{shorten(name, 40)}, spread {_spread(_values(rows, metric))}" for name, rows in runs.items()]
    width = max((2.9 if len(kinds) <= 4 else 2.5) * len(kinds) + 0.4, 4.4)
    columns = max(1, int(width / (0.0085 * size * max(map(len, names), default=1) + 0.6)))
    title = textwrap.fill(title, int(width / (0.0085 * size)))
    height = 3.6 + 0.022 * size * (math.ceil(len(names) / columns) + len(title.splitlines()))
    with matplotlib.rc_context({"font.size": size, "axes.titlesize": size, "axes.labelsize": size}):
        figure = Figure(figsize=(width, height), layout="compressed")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(1, len(kinds))
        for kind, cell in zip(kinds, grid):  # type: ignore[call-overload]
            panel: Any = figure.add_subplot(cell, projection="polar" if kind.startswith("circle") else None)
            if kind.startswith("circle"):
                axis = int(kind[-1])
                _draw_circle(panel, runs, metric, axis, limits)
                panel.set_title(f"about axis {axis}" if is_3d else "rotated by any angle")
            else:
                panel.set_box_aspect(1)
                if kind == "group":
                    _draw_group(panel, runs, metric)
                elif kind == "cloud":
                    _draw_cloud(panel, runs, metric, clouds)
                elif kind == "shifts":
                    _draw_shifts(panel, runs, metric)
                else:
                    _draw_costs(panel, runs, metric, costs, greater_is_better)
                panel.set_ylim(*limits)
                panel.yaxis.get_major_locator().set_params(nbins=6)
                panel.spines[["top", "right"]].set_visible(False)
            panel.grid(alpha=0.25)
        if names:
            handles = [Line2D([], [], lw=2, ms=5, **_style(i)) for i in range(len(names))]
            how: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "title": title or None}
            figure.legend(handles, names, ncols=min(columns, len(names)), **how)
            # the layout knows the sizes of legend and panels only after a first draw
            figure.draw_without_rendering()
    return figure


def write_picture(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG, first under a temporary name; makes missing directories."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png", bbox_inches="tight", pad_inches=0.08)


def draw_rotation_table(
    runs: Mapping[str, Rows],
    metric: str,
    path: str | Path,
    costs: Mapping[str, float] | None = None,
    greater_is_better: bool = True,
    title: str = "",
) -> None:
    """Draws the metric over the elements of the grid's group, the angle, other rotations, shifts, and the cost.

    Panels are in one row; panels without views are left out. All have the same range of the metric, wide enough that an invariant network
    looks invariant. The legend gives the spread of each network: its largest minus its smallest value, over all views except shifts.

    ``runs`` maps names of networks to the rows of :meth:`~monai_gmr.rotation_report.statistics.NetworkScores.view_rows`; rows whose metric
    is missing or not finite are left out. ``costs`` maps names of networks to seconds per case, drawn if at least two networks have one.
    ``title`` is the heading of the legend.
    """
    write_picture(_figure(runs, metric, costs, greater_is_better, title), path)
