"""The curve of the report's page: the score of every network over a sweep, and the position of each step in the picture."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from monai_gmr.rotation_report.sweeps import Sweep
from monai_gmr.rotation_report.table_picture import MARKERS, shorten

# the colours of the other pictures, but darker: at least 4.5:1 on white
PAGE_COLOURS = ("#0b4f8a", "#a85400", "#00704f", "#a03a75", "#1a1a1a", "#1b6fa8")
# MARKERS as letters
SIGNS = "●■▲◆▼✚"
LINES = ("-", "--", "-.", ":")
# inches, small enough that its letters can be read on a phone
WIDTH, HEIGHT = 4.6, 2.7


class Curve(NamedTuple):
    """A curve: ``address`` of the picture; ``x`` of each step and ``y`` of each network by name at each step, in percent of the picture
    from its left and upper edge, ``None`` if there is no score."""

    address: str
    x: list[float]
    y: dict[str, list[float | None]]


def _number(value: float) -> float | None:
    return round(float(value), 2) if math.isfinite(value) else None


def draw_curve(
    sweep: Sweep,
    metric: str,
    means: Mapping[str, Sequence[float]],
    single: Mapping[str, Sequence[float]],
    limits: tuple[float, float],
) -> Curve:
    """Draws one score per step and network: the mean over all cases as a line and, if known, the score of a ``single`` case as thin points.
    The order of networks in ``means`` gives them their colours."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # text as text: half the size; a hash that is the same in every run
    with matplotlib.rc_context({"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasSVG(figure)
        panel = figure.add_subplot()
        x = [step.x for step in sweep.steps]
        for place, (name, values) in enumerate(means.items()):
            colour, line = PAGE_COLOURS[place % len(PAGE_COLOURS)], LINES[place % len(LINES)] if sweep.is_circle else ""
            known = np.asarray(values, float)
            # the circle is closed
            turn = [*x, 360.0] if sweep.is_circle and len(x) > 1 else x
            closed = [*known, known[0]] if len(turn) > len(x) else known
            marker = MARKERS[place % len(MARKERS)]
            size = 3.5 if len(x) <= 40 else 0
            panel.plot(turn, closed, color=colour, ls=line, lw=1.8, marker=marker, ms=size or (0 if line else 4), mew=0)
            if name in single:
                panel.plot(x, single[name], color=colour, ls="", marker=marker, ms=3, mfc="white", mew=0.8)
        panel.set_ylim(*limits)
        if sweep.is_circle:
            panel.set(xlim=(-6, 366), xticks=range(0, 361, 90), xlabel=f"angle in degrees, {sweep.title}")
            panel.set_xticks(range(0, 361, 45), minor=True)
        else:
            panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
            panel.set(xlim=(-0.5, len(x) - 0.5), xlabel="number of the view, 0 is upright")
        panel.set_ylabel(shorten(metric.replace("_", " "), 28))
        panel.yaxis.set_major_locator(MaxNLocator(nbins=5))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        figure.draw_without_rendering()
        width, height = figure.bbox.size

        def place_of(at: float, value: float) -> tuple[float | None, float | None]:
            across, up = panel.transData.transform((at, value))
            return _number(100 * across / width), _number(100 * (1 - up / height))

        points = {name: [place_of(*pair) for pair in zip(x, values)] for name, values in means.items()}
        places = [float(place_of(at, limits[0])[0] or 0) for at in x]
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    address = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Curve(address, places, {name: [point[1] for point in line] for name, line in points.items()})


def sign_of(place: int) -> str:
    """Returns the sign of a network in the page's text, the one of its curve, by its place."""
    return SIGNS[place % len(MARKERS)]
