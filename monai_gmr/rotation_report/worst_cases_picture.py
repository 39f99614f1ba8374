"""The picture of the worst cases and views: image, label, prediction and their difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_gmr.rotation_report.statistics import WorstCase
from monai_gmr.rotation_report.table_picture import shorten, write_picture
from monai_gmr.utils import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# orange, green, pink, blue, yellow, sky blue, vermilion, white: distinct for the colour-blind, on grey and on tissue
CLASS_COLOURS = ("#e69f00", "#009e73", "#cc79a7", "#0072b2", "#f0e442", "#56b4e9", "#d55e00", "#ffffff")
ERRORS = ("missed", "added", "wrong class")
ERROR_COLOURS = ("#d55e00", "#56b4e9", "#f0e442")
OPACITY, ERROR_OPACITY = 0.75, 0.9
CHARACTERS = 30

# inches
TEXT_WIDTH, IMAGE_WIDTH, GAP, LINE = 2.35, 1.9, 0.08, 0.17


def _maps(case: WorstCase) -> dict[str, np.ndarray]:
    """Returns ``label`` and ``prediction`` if they are maps of classes."""
    values = {"label": case.label, "prediction": case.prediction}
    return {name: np.asarray(value).astype(np.int64) for name, value in values.items() if np.ndim(value) > 0}


def _check(case: WorstCase) -> None:
    shape = np.shape(case.image)
    if len(shape) not in (3, 4) or 0 in shape:
        raise ConfigurationError(f"the image of case {case.case!r} has shape {shape}: give (C, H, W) or (C, H, W, D).")
    for name, values in _maps(case).items():
        if values.shape != shape[1:]:
            raise ConfigurationError(f"the {name} of case {case.case!r} has shape {values.shape}: give {shape[1:]}.")


def find_errors(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Maps errors: 0 where both agree, 1 where foreground was missed, 2 where it was added, 3 where it has the wrong class."""
    differs = label != prediction
    return np.select([differs & (prediction == 0), differs & (label == 0), differs], [1, 2, 3], 0)


def _slice_number(case: WorstCase) -> int:
    """Finds the slice across the last axis with most wrong voxels; if none is wrong, with most foreground; else the middle one."""
    maps = list(_maps(case).values())
    counts = [np.count_nonzero(values, axis=(0, 1)) for values in maps]
    if len(maps) == 2:
        counts = [np.count_nonzero(maps[0] != maps[1], axis=(0, 1)), sum(counts)]
    return next((int(np.argmax(count)) for count in counts if count.any()), np.shape(case.image)[-1] // 2)


def find_window(image: np.ndarray) -> tuple[float, float]:
    """Finds the values shown as black and white in a picture of an image ``(C, ...)``: the smallest and the largest value of three
    channels, the 0.5 and 99.5 % percentiles of a grey image; equal if there is at most one finite value."""
    values = np.asarray(image if len(image) == 3 else image[0], np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 0.0
    outliers = 0.0 if len(image) == 3 else 0.5
    low, high = np.percentile(finite, [outliers, 100 - outliers])
    return (float(low), float(high)) if high > low else (float(finite.min()), float(finite.max()))


def in_colour(image: np.ndarray, window: tuple[float, float] | None = None) -> np.ndarray:
    """Converts an image of shape ``(C, H, W)`` to colours of shape ``(H, W, 3)``, in 0 to 1: from three channels, or grey from the first.
    ``window`` defaults to :func:`find_window`."""
    low, high = find_window(image) if window is None else window
    values = np.asarray(image if len(image) == 3 else image[:1], np.float64)
    if high > low:
        values = (np.nan_to_num(values, nan=low, posinf=high, neginf=low).clip(low, high) - low) / (high - low)
    else:
        values = np.zeros_like(values)
    return np.moveaxis(values if len(image) == 3 else values.repeat(3, 0), 0, -1)


def _overlay(background: np.ndarray, numbers: np.ndarray, colours: Sequence[str], opacity: float) -> np.ndarray:
    """Blends colours into a background of shape ``(H, W, 3)`` where numbers are not 0; 1 is the first colour."""
    from matplotlib.colors import to_rgb

    table = np.array([to_rgb(colour) for colour in colours])
    blended = (1 - opacity) * background + opacity * table[(numbers - 1) % len(table)]
    return np.where(numbers[..., None] != 0, blended, background)


def _pictures(case: WorstCase) -> dict[str, np.ndarray]:
    """Maps headings to pictures of shape ``(H, W, 3)``, in 0 to 1; ``label``, ``prediction`` and ``difference`` only if available."""
    image, maps = np.asarray(case.image), _maps(case)
    if image.ndim == 4:
        number = _slice_number(case)
        # three channels of a volume are three contrasts, not colours
        image = image[:1, ..., number]
        maps = {name: values[..., number] for name, values in maps.items()}
    picture = in_colour(image)
    pictures = {"image": picture}
    pictures.update({name: _overlay(picture, values, CLASS_COLOURS, OPACITY) for name, values in maps.items()})
    if len(maps) == 2:
        # pale and grey, so that the colours of errors are not mistaken for tissue
        background = np.repeat(0.15 + 0.5 * picture.mean(-1, keepdims=True), 3, axis=-1)
        errors = find_errors(maps["label"], maps["prediction"])
        pictures["difference"] = _overlay(background, errors, ERROR_COLOURS, ERROR_OPACITY)
    return pictures


def _description(case: WorstCase) -> list[str]:
    def number(value: float) -> str:
        return f"{value:.1f}" if abs(value) >= 100 and math.isfinite(value) else f"{value:.3f}"

    value = number(case.value)
    metric = shorten(case.metric.replace("_", " "), CHARACTERS - 1 - len(value))
    lines = [case.network, case.case, case.view, f"{metric} {value}"]
    if case.upright is not None:
        lines.append(f"upright {number(case.upright)}")
    if np.ndim(case.image) == 4:
        lines.append(f"axis 2, slice {_slice_number(case)} of 0 to {np.shape(case.image)[-1] - 1}")
    return [shorten(line, CHARACTERS) for line in lines]


def _classes(case: WorstCase) -> str:
    """Lists the classes of whole images."""
    answers = (("label", case.label), ("predicted", case.prediction))
    return ", ".join(f"{name} {int(value)}" for name, value in answers if value is not None and np.ndim(value) == 0)


def _figure(cases: Sequence[WorstCase]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    for case in cases:
        _check(case)
    rows = [(case, _pictures(case), _description(case), _classes(case)) for case in cases]
    headings = [name for name in ("image", "label", "prediction", "difference") if any(name in row[1] for row in rows)]
    heights = []
    for _, pictures, lines, classes in rows:
        height, width = pictures["image"].shape[:2]
        needed = max(IMAGE_WIDTH * min(height / width, 1.3), LINE * len(lines))
        heights.append(needed + (LINE + 0.04 if classes else 0.0) + GAP)
    top = LINE + 0.08 if len(headings) > 1 else GAP
    bottom = 0.32 if "difference" in headings else 0.0
    total_width = TEXT_WIDTH + len(headings) * (IMAGE_WIDTH + GAP)
    total_height = top + sum(heights) + bottom
    figure = Figure(figsize=(total_width, total_height))
    FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, **how: Any) -> None:
        # a dollar sign in a name would begin a formula
        figure.text(x / total_width, y / total_height, text, parse_math=False, fontsize=9, **how)

    def left(column: int) -> float:
        return TEXT_WIDTH + column * (IMAGE_WIDTH + GAP)

    if len(headings) > 1:
        for column, heading in enumerate(headings):
            write(left(column) + IMAGE_WIDTH / 2, total_height - top / 2, heading, ha="center", va="center")
    y = total_height - top
    for (_, pictures, lines, classes), row_height in zip(rows, heights):
        height = row_height - GAP
        if classes:
            write(left(0) + IMAGE_WIDTH / 2, y - LINE / 2, classes, ha="center", va="center")
            height -= LINE + 0.04
        bottom_edge = y - row_height + GAP
        for i, line in enumerate(lines):
            weight = "bold" if i == 0 else "normal"
            write(GAP, bottom_edge + height - i * LINE, line, va="top", weight=weight, color="0.1" if i < 4 else "0.4")
        for column, heading in enumerate(headings):
            if heading not in pictures:
                continue
            place = (left(column) / total_width, bottom_edge / total_height)
            panel = figure.add_axes((*place, IMAGE_WIDTH / total_width, height / total_height), anchor="N")
            panel.imshow(pictures[heading])
            panel.set(xticks=[], yticks=[], label=heading)
            panel.spines[:].set_visible(False)
        y -= row_height
    if "difference" in headings:
        style: dict[str, Any] = {"fontsize": 8, "frameon": False, "handlelength": 1, "handleheight": 1}
        style |= {"borderpad": 0.2, "columnspacing": 0.9, "handletextpad": 0.4, "borderaxespad": 0.0}
        patches = [Patch(facecolor=colour, label=name) for name, colour in zip(ERRORS, ERROR_COLOURS)]
        corner = (1 - GAP / total_width, 0.04 / total_height)
        figure.legend(handles=patches, loc="lower right", bbox_to_anchor=corner, ncols=3, **style)
        numbers = {int(number) for case in cases for each in _maps(case).values() for number in np.unique(each)}
        present = sorted(numbers - {0})[: 2 * len(CLASS_COLOURS)]
        if len(present) > 1:
            colours = [CLASS_COLOURS[(number - 1) % len(CLASS_COLOURS)] for number in present]
            names = [f"class {present[0]}", *map(str, present[1:])]
            patches = [Patch(facecolor=c, edgecolor="0.5", lw=0.5, label=name) for c, name in zip(colours, names)]
            corner = (GAP / total_width, 0.04 / total_height)
            figure.legend(handles=patches, loc="lower left", bbox_to_anchor=corner, ncols=len(patches), **style)
    return figure


def draw_worst_cases(cases: Sequence[WorstCase], path: str | Path) -> None:
    """Draws cases below each other: image, label, prediction and their difference.

    Maps of classes are drawn over the image in colours; the difference shows foreground that was missed, background that was taken for
    foreground (added), and foreground of the wrong class. Volumes are shown as the slice across the last array axis with most wrong voxels.
    Classes of whole images are written above them. 2D images with 3 channels are shown in colours, other images as their first channel in
    grey; values that are not finite count as the smallest. Without cases nothing is written. Raises ``ConfigurationError`` if an image is
    neither ``(C, H, W)`` nor ``(C, H, W, D)``, or a map has another spatial shape.
    """
    if cases:
        write_picture(_figure(cases), path)
