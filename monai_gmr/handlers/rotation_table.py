"""The rotation table: what a metric does when the images are turned, as rows, as CSV and as a picture."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import is_scalar, optional_import

from monai_gmr.handlers.rotation_picture import draw_rotation_table
from monai_gmr.symmetry import View, angle_views, group_views
from monai_gmr.utils import ConfigurationError

FAMILIES = ("upright", "group", "angles")


def summarize_views(
    rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], greater_is_better: bool = True
) -> list[dict[str, Any]]:
    """Mean, worst and spread of each metric over each family of views.

    The families ``"group"`` and ``"angles"`` hold the upright image too: the identity, and 0 degrees.

    Args:
        rows: one a view, with ``view``, ``family`` and the metrics.
        metrics: names of the metrics.
        greater_is_better: whether the worst view is the one with the smallest value.

    Returns:
        one dictionary a family and metric: ``family``, ``metric``, ``views``, ``mean``, ``worst``, ``worst_view`` and
        ``spread``, the largest value less the smallest.

    Example:
        >>> rows = [{"view": "upright", "family": "upright", "dice": 0.9}, {"view": "element 1", "family": "group", "dice": 0.7}]
        >>> [(row["family"], round(row["mean"], 2), row["worst"]) for row in summarize_views(rows, ["dice"])]
        [('upright', 0.9, 0.9), ('group', 0.8, 0.7)]
    """
    summary = []
    for metric in metrics:
        for family in FAMILIES:
            members = ("upright", family)
            chosen = [row for row in rows if row["family"] in members]
            if not any(row["family"] == family for row in chosen):
                continue
            values = np.array([row[metric] for row in chosen], float)
            index = int(values.argmin() if greater_is_better else values.argmax())
            summary.append(
                {
                    "family": family,
                    "metric": metric,
                    "views": len(chosen),
                    "mean": float(values.mean()),
                    "worst": float(values[index]),
                    "worst_view": chosen[index]["view"],
                    "spread": float(values.max() - values.min()),
                }
            )
    return summary


def format_table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary as text, aligned, one line a family and metric.

    Example:
        >>> row = {"family": "group", "metric": "dice", "views": 48, "mean": 0.9, "worst": 0.9, "worst_view": "element 3", "spread": 2e-8}
        >>> print(format_table([row]))
        metric  family  views    mean   worst   spread  worst view
        dice    group      48  0.9000  0.9000  2.0e-08  element 3
    """

    def spread(value: float) -> str:
        return f"{value:.4f}" if value >= 5e-4 or value == 0 else f"{value:.1e}"

    lines = [("metric", "family", "views", "mean", "worst", "spread", "worst view")]
    for row in summary:
        numbers = (str(row["views"]), f"{row['mean']:.4f}", f"{row['worst']:.4f}", spread(row["spread"]))
        lines.append((row["metric"], row["family"], *numbers, row["worst_view"]))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    left = (0, 1, 6)
    return "\n".join(
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write dictionaries of equal keys as CSV, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def read_view_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows that :class:`RotationTable` wrote, one a view.

    Raises:
        ConfigurationError: when the file is not there or is no such table.
    """
    if not Path(path).is_file():
        raise ConfigurationError(f"there is no table at {path}: give the rotation_views.csv of another run.")
    with open(path, newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = [dict(row) for row in csv.DictReader(file)]
    if not rows or not {"view", "family", "axis", "angle"} <= set(rows[0]):
        raise ConfigurationError(f"{path} is no table of views: give the rotation_views.csv of another run.")
    for row in rows:
        for key in row:
            if key not in ("view", "family"):
                row[key] = float(row[key]) if row[key] != "" else None
    return rows


def _axis_and_angle(view: View) -> tuple[int | str, float | str]:
    """Array axis and angle in degrees of a rotation about an axis; empty for every other view. In 2D the axis is 0."""
    matrix = view.matrix
    if np.linalg.det(matrix) < 0:
        return "", ""
    if len(matrix) == 2:
        return 0, round(float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))) % 360, 6)
    for axis in range(3):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        if abs(matrix[axis, axis] - 1) < 1e-9:
            angle = np.degrees(np.arctan2(matrix[second, first], matrix[first, first]))
            return axis, round(float(angle) % 360, 6)
    return "", ""


class RotationTable:
    """Runs an evaluator once for each view of its images and tells how its metrics move.

    The evaluator is the bundle's own: its ``prepare_batch`` (:class:`monai_gmr.engines.PrepareBatchView`) turns image and label
    before the network sees them, all else is as upright. Handlers of that evaluator act in every view.

    Views are the upright image, the other elements of the grid's point group (no interpolation) and rotations every
    ``angle_step`` degrees, in 3D about each array axis (spline-interpolated). The spread of a metric over a family is its largest value
    less its smallest.

    Files, in ``output_dir``: ``rotation_table.csv`` (a row for each family and metric), ``rotation_views.csv`` (a row
    for each view), ``rotation_table.png``.

    Args:
        evaluator: ``monai.engines.SupervisedEvaluator``.
        prepare_batch: the evaluator's ``PrepareBatchView``.
        output_dir: directory of the files, made if need be.
        spatial_dims: 2 or 3.
        angle_step: degrees between views; 0 leaves the angles out.
        group_elements: how many elements of the group to take, the identity included; spread evenly over the group, default
            all.
        views: the views themselves, instead of the three settings above.
        spacing: voxel size in millimetres: axes of unlike spacing are not exchanged.
        metrics: names in ``evaluator.state.metrics``; default: every scalar there, the key metric first.
        greater_is_better: whether larger values of the metrics are better.
        name: name of this run in the picture.
        compare: other runs for the picture, name to path of their ``rotation_views.csv``.

    Raises:
        ConfigurationError: when a setting is out of its range, a metric is not there or there is nothing to compare with.
    """

    def __init__(
        self,
        evaluator: Any,
        prepare_batch: Any,
        output_dir: str | Path,
        spatial_dims: int = 3,
        angle_step: float = 30.0,
        group_elements: int | None = None,
        views: Sequence[View] | None = None,
        spacing: Sequence[float] | None = None,
        metrics: Sequence[str] | None = None,
        greater_is_better: bool = True,
        name: str = "this run",
        compare: Mapping[str, str] | None = None,
    ) -> None:
        if not 0 <= angle_step < 360:
            raise ConfigurationError(
                f"angle_step={angle_step} is out of range: give degrees from 0 (no angles) to 359."
            )
        if group_elements is not None and group_elements < 1:
            raise ConfigurationError(f"group_elements={group_elements} is out of range: give 1 (upright only) or more.")
        self.evaluator = evaluator
        self.prepare_batch = prepare_batch
        self.output_dir = Path(output_dir)
        self.metrics = metrics
        self.greater_is_better = greater_is_better
        self.name = name
        self.compared = {title: read_view_rows(path) for title, path in (compare or {}).items()}
        if views is None:
            group = group_views(spatial_dims, spacing)
            count = min(group_elements or len(group), len(group))
            group = [group[i * len(group) // count] for i in range(count)]
            views = [*group, *(angle_views(spatial_dims, angle_step, spacing) if angle_step else [])]
        self.views = list(views)

    def _run_view(self, view: View) -> dict[str, Any]:
        # a view without a matrix to apply must not touch the batch at all
        self.prepare_batch.view = None if view.family == "upright" else view
        self.evaluator.run()
        axis, angle = _axis_and_angle(view)
        row: dict[str, Any] = {"view": view.name, "family": view.family, "axis": axis, "angle": angle}
        state = self.evaluator.state
        scalars = {name: value for name, value in state.metrics.items() if is_scalar(value)}
        key = state.key_metric_name
        names: Iterable[str] = self.metrics or sorted(scalars, key=lambda metric: metric != key)
        for metric in names:
            if metric not in scalars:
                there = ", ".join(scalars) or "none"
                raise ConfigurationError(f"the evaluator has no metric {metric!r}: it has {there}.")
            row[metric] = float(scalars[metric])
        return row

    def run(self) -> list[dict[str, Any]]:
        """Evaluate all views, write the files and print the table.

        Returns:
            the rows of ``rotation_table.csv``, see :func:`summarize_views`.
        """
        from monai.engines import IterationEvents

        tqdm, has_tqdm = optional_import("tqdm", name="tqdm")
        batches = self.evaluator.state.epoch_length or 1
        bar = tqdm(total=batches * len(self.views), desc="Turning", unit="batch", mininterval=0.5) if has_tqdm else None
        tick = None
        if bar is not None:
            tick = self.evaluator.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda: bar.update(1))
        level = self.evaluator.logger.level
        # one line for each view and event would bury the progress bar
        self.evaluator.logger.setLevel(logging.WARNING)
        rows = []
        try:
            for view in self.views:
                if bar is not None:
                    bar.set_postfix_str(view.name, refresh=False)
                rows.append(self._run_view(view))
        finally:
            self.prepare_batch.view = None
            self.evaluator.logger.setLevel(level)
            if bar is not None and tick is not None:
                tick.remove()
                bar.close()
        return self._finish(rows)

    def _finish(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        metrics = [key for key in rows[0] if key not in ("view", "family", "axis", "angle")]
        if not metrics:
            raise ConfigurationError("the evaluator has no scalar metric: give it a key_val_metric.")
        summary = summarize_views(rows, metrics, self.greater_is_better)
        write_rows(rows, self.output_dir / "rotation_views.csv")
        write_rows(summary, self.output_dir / "rotation_table.csv")
        picture = self.output_dir / "rotation_table.png"
        draw_rotation_table({self.name: rows, **self.compared}, metrics[0], picture)
        print(f"\n{format_table(summary)}")
        for title, others in self.compared.items():
            shared = [metric for metric in metrics if metric in others[0]]
            print(f"\n{title}\n{format_table(summarize_views(others, shared, self.greater_is_better))}")
        print(f"\nspread: largest less smallest. Picture: {picture}")
        return summary
