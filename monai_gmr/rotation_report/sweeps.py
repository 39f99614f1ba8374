"""The views of a report in the order of a slider: about each axis, then views about no axis."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from monai_gmr.rotation_report.statistics import axis_and_angle, view_families
from monai_gmr.symmetry import View

# most steps about one axis; more are thinned out evenly
MOST_STEPS = 72
OTHER_VIEWS = "mirrored, and the worst views"


class Step(NamedTuple):
    """A ``view`` and its position in the sweep: as a ``label``, such as "30°", in words, ``text``, and as a number, ``x``."""

    view: View
    label: str
    text: str
    x: float


class Sweep(NamedTuple):
    """The steps of a slider: its ``title``, the ``steps``, with the upright view first, and the array ``axis`` across which slices of
    volumes are shown, ``None`` if no axis is fixed. ``is_circle``: steps are angles."""

    title: str
    steps: list[Step]
    axis: int | None
    is_circle: bool


def say_view(view: View) -> str:
    """Describes a view in words.

    Example:
        >>> from monai_gmr.symmetry import group_views
        >>> [say_view(view) for view in group_views(2)][:4]
        ['upright', 'mirrored along axis 0', 'axes in the order 1, 0', 'mirrored along axis 1']
    """
    axis, angle = axis_and_angle(view)
    if view.family == "upright" or view.shift is not None:
        return "upright" if view.shift is None else f"moved by {view.name}"
    if angle != "":
        return f"rotated by {angle:g}°" + (f" about axis {axis}" if len(view.matrix) == 3 else "")
    matrix = np.round(view.matrix).astype(int)
    if not np.allclose(matrix, view.matrix, atol=1e-6):
        return view.name
    # a symmetry of the grid: source and direction of each axis
    source, sign = np.abs(matrix).argmax(1), matrix.sum(1)
    *first, last = [str(axis) for axis in np.flatnonzero(sign < 0)] or [""]
    reversed_axes = f"axes {', '.join(first)} and {last}" if first else f"axis {last}" if last else ""
    order = ", ".join(map(str, source))
    moved = "" if (source == np.arange(len(source))).all() else f"axes in the order {order}"
    if not moved:
        return f"mirrored along {reversed_axes}"
    return moved + (f", mirrored along {reversed_axes}" if reversed_axes else "")


def make_sweeps(
    views: Sequence[View], worst: Collection[str] = (), spacing: Sequence[float] | None = None
) -> list[Sweep]:
    """Makes a sweep about each axis that a view rotates about, and one of all mirror images along axes and of the ``worst`` views, given by
    name, that are about no axis.

    Example:
        >>> from monai_gmr.symmetry import make_views
        >>> sweeps = make_sweeps(make_views(["all", {"angles": 45}], 2), ["m [1-1]"])
        >>> [(sweep.title, [step.label for step in sweep.steps]) for sweep in sweeps][0]
        ('rotated', ['0°', '45°', '90°', '135°', '180°', '225°', '270°', '315°'])
        >>> [step.text for step in sweeps[1].steps]
        ['upright', 'mirrored along axis 0', 'axes in the order 1, 0', 'mirrored along axis 1']
    """
    upright, sweeps, covered = views[0], [], {views[0].name}
    is_3d = len(upright.matrix) == 3
    for axis in range(3 if is_3d else 1):
        circle: dict[float, View] = {}
        for view in views[1:]:
            about, angle = axis_and_angle(view)
            if about == axis and angle != "" and view.family in ("group", "angles"):
                circle.setdefault(float(angle), view)
        if not circle:
            continue
        angles = sorted(circle)
        stride = math.ceil((len(angles) + 1) / MOST_STEPS)
        kept = [angle for place, angle in enumerate(angles, 1) if place % stride == 0 or circle[angle].name in worst]
        steps = [Step(circle[angle], f"{angle:g}°", say_view(circle[angle]), angle) for angle in kept]
        covered |= {circle[angle].name for angle in angles}
        title = f"rotated about axis {axis}" if is_3d else "rotated"
        sweeps.append(Sweep(title, [Step(upright, "0°", "upright", 0.0), *steps], axis if is_3d else None, True))
    flips = view_families(views, spacing).get("flips", [])
    others = [view for i, view in enumerate(views) if view.name not in covered and (i in flips or view.name in worst)]
    if others or not sweeps:
        others = others or list(views[1:MOST_STEPS])
        numbered = [(view, say_view(view)) for view in (upright, *others)]
        steps = [Step(view, str(number), text, float(number)) for number, (view, text) in enumerate(numbered)]
        sweeps.append(Sweep(OTHER_VIEWS, steps, None, False))
    return sweeps
