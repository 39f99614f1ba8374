"""Scores of networks over views and cases: families of views, intervals, paired tests, worst cases, and tables as text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from monai_gmr.rotation_report.directions import Direction, is_greater_better
from monai_gmr.rotation_report.probe import score
from monai_gmr.rotation_report.records import TRUE_CLASS, ViewRecords
from monai_gmr.symmetry import View, is_grid_symmetry, is_mirror
from monai_gmr.tables import format_aligned, format_markdown

FAMILIES = ("upright", "flips", "group", "angles", "turns", "icosahedral", "random", "shifts")
# without flips, which are in the group, and angles, which are among the turns
FAMILY_WORDS = {
    "upright": "the image as it is",
    "flips": "the image as it is, and mirrored along an axis or several",
    "group": "symmetries of the grid: rotations by multiples of 90° and mirror images, which move whole voxels",
    "angles": "rotations about an array axis by other angles, which interpolate between voxels",
    "turns": "a full circle about each array axis, those of the grid among them",
    "icosahedral": "the 60 rotations of the icosahedron",
    "random": "random rotations",
    "shifts": "moved by part of a voxel and not rotated",
}
SHORT_FAMILIES = ("upright", "group", "turns", "icosahedral", "random", "shifts")
# the part of the images that networks see, in the records and in words
IMAGES = {"whole": "images to their corners", "ball": "the inscribed disc or ball of images"}
ERROR = "equivariance_error"
# differences from the upright answer: the share of voxels whose class changes, the largest change of a probability
CHANGED_VOXELS, CHANGED_PROBABILITY = "changed_voxels", "changed_probability"
SMALLER_IS_BETTER = (ERROR, CHANGED_VOXELS, CHANGED_PROBABILITY)
CONFIDENCE = 0.95
# number of cases that decide whether a metric is a mean over cases
PROBED_CASES = 64
NAN = float("nan")


def axis_and_angle(view: View) -> tuple[int | str, float | str]:
    """Returns the array axis and the angle in degrees of a rotation about an axis, or the axis of a shift; empty strings for other views.
    In 2D the axis of rotations is 0."""
    if view.shift is not None:
        return int(np.abs(view.shift).argmax()), ""
    matrix, in_plane = view.matrix, len(view.matrix) == 2
    axes = [0] if in_plane else [axis for axis in range(3) if abs(matrix[axis, axis] - 1) < 1e-9]
    if not axes or is_mirror(matrix):
        return "", ""
    first, second = (0, 1) if in_plane else ((axes[0] + 1) % 3, (axes[0] + 2) % 3)
    angle = np.degrees(np.arctan2(matrix[second, first], matrix[first, first]))
    return axes[0], round(float(angle) % 360, 6)


def view_families(views: Sequence[View], spacing: Sequence[float] | None = None) -> dict[str, list[int]]:
    """Maps each family to the indices of its views, if it has views besides the upright one, which belongs to all families.

    Families are "upright", "flips" (an axis or several reversed), "group" (symmetries of the grid), "angles" (rotations about an array
    axis that are not symmetries of the grid), "turns" (all rotations about an array axis: a full circle), "icosahedral", "random" and
    "shifts" (moved and not rotated).
    """
    families: dict[str, list[int]] = {family: [0] for family in FAMILIES}
    for index, view in enumerate(views[1:], 1):
        on_grid = view.shift is None and is_grid_symmetry(view.matrix, spacing)
        belongs = {
            "flips": on_grid and np.count_nonzero(np.diag(view.matrix).round()) == len(view.matrix),
            "group": on_grid,
            "angles": view.family == "angles" and not on_grid,
            "turns": axis_and_angle(view)[0] != "" and view.family in ("group", "angles"),
            "icosahedral": view.family == "icosahedral",
            "random": view.family == "random",
            "shifts": view.shift is not None,
        }
        for family in filter(belongs.get, belongs):
            families[family].append(index)
    return {family: members for family, members in families.items() if family == "upright" or len(members) > 1}


def percentile_interval(samples: np.ndarray) -> tuple[float, float]:
    """Computes the interval that holds 95 % of the bootstrapped scores; NaN if there are fewer than two.

    Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3. ``scipy.stats.bootstrap`` takes one statistic
    at a time and no NaN; here one draw of cases serves all views, families and pairs of networks.
    """
    if np.isfinite(samples).sum() < 2:
        return NAN, NAN
    # interpolation between infinite samples is invalid
    with np.errstate(invalid="ignore"):
        low, high = np.nanpercentile(samples, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)


def paired_test(first: np.ndarray, second: np.ndarray, num_resamples: int, seed: int) -> float:
    """Computes the two-sided p-value for a mean difference of zero between two networks on the same cases; NaN below two cases.

    The test flips the signs of the differences between the scores, each of shape ``(cases,)``, at random ``num_resamples`` times, or in all
    ways if these are fewer (``scipy.stats.permutation_test``).
    """
    differences = first - second
    differences = differences[np.isfinite(differences)]
    if len(differences) < 2 or num_resamples < 2:
        return NAN
    if not differences.any():
        return 1.0
    options: dict[str, Any] = {"permutation_type": "samples", "vectorized": True, "n_resamples": num_resamples}
    generator = np.random.default_rng(seed)
    return float(stats.permutation_test((differences,), np.mean, **options, random_state=generator).pvalue)


def family_scores(values: np.ndarray, members: Sequence[int]) -> np.ndarray:
    """Computes the mean of each case over a family's views, shape ``(cases,)``; NaN for a case without scores."""
    chosen = np.asarray(values, float)[:, list(members)]
    # a distance to an empty answer is infinite, not missing
    counts = (~np.isnan(chosen)).sum(1)
    return np.where(counts > 0, np.nansum(chosen, 1) / np.maximum(counts, 1), np.nan)


class WorstCase(NamedTuple):
    """A case in the view with its worst score.

    ``value`` is the metric in this view, ``upright`` the metric in the upright view or ``None``. ``image`` of shape ``(C, *spatial)``,
    2D or 3D, is in this view. ``label`` and ``prediction`` are integers of shape ``(*spatial)`` (segmentation, 0 is background), one
    integer (classification) or ``None``.
    """

    network: str
    case: str
    view: str
    metric: str
    value: float
    upright: float | None
    image: Any = None
    label: Any = None
    prediction: Any = None


class NetworkScores:
    """Scores of one network from its ``records``, for those of ``cases`` that have all views.

    ``views`` begin with the upright one; ``handlers``, metric handlers by name, compute one score from the records of many cases. The
    bootstrap draws ``num_resamples``, a tenth of it for metrics that are not means over cases.
    """

    def __init__(
        self,
        title: str,
        records: ViewRecords,
        cases: Collection[str],
        views: Sequence[View],
        handlers: Mapping[str, Any],
        *,
        spacing: Sequence[float] | None = None,
        greater_is_better: Direction = None,
        num_resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        self.title, self.handlers, self.records = title, handlers, records
        self.greater_is_better, self.num_resamples, self.seed = greater_is_better, num_resamples, seed
        measured, counted = set(records.views), set(cases)
        self.views = [view for view in views if view.name in measured]
        complete = [case for case in records.cases if all(records.has(case, view.name) for view in self.views)]
        self.cases = [case for case in complete if case in counted]
        self.families = view_families(self.views, spacing) if self.views else {}
        self.images = str(records.header.get("images", "whole"))
        self.metrics = [name for name in records.metrics if name in handlers]
        columns = [records.columns(view.name, self.cases) for view in self.views]
        # for each case in each view, shape (cases, views)
        self.errors, self.seconds, self.passes = (
            np.array(columns, float).reshape(len(self.views), 3, len(self.cases)).transpose(1, 2, 0)
        )
        self.table, self._kept, self._resampled = cache(self._make_table), cache(self._read), cache(self._resample)

    def cost(self) -> dict[str, float]:
        """Returns ``passes_per_case``, the mean, and ``seconds_per_case``, the median over all views of all cases, because the first call
        and other work on the machine hardly change it."""
        mean, median = (float(self.passes.mean()), float(np.median(self.seconds))) if self.cases else (NAN, NAN)
        return {"passes_per_case": mean, "seconds_per_case": median}

    def _make_table(self, metric: str) -> np.ndarray | None:
        """Computes a metric for each case in each view, shape ``(cases, views)``; ``None`` if it is not a mean over cases, such as AUC."""
        views = range(len(self.views))
        if metric == ERROR:
            return self.errors
        if metric == TRUE_CLASS:
            known = metric in self.records.metrics
            return np.stack([self._kept(metric, view)[0] for view in views], 1) if known else None
        kept = self._kept(metric, 0)
        scored = np.flatnonzero([any(not np.isnan(part[case]).all() for part in kept) for case in range(len(kept[0]))])
        upright = [part[scored[:PROBED_CASES]] for part in kept]
        alone = self._single_scores(metric, upright)
        together = score(self.handlers[metric], upright)
        if not len(scored) or not np.isclose(np.nanmean(alone), together, atol=1e-6):
            return None
        return np.stack([self._single_scores(metric, self._kept(metric, view)) for view in views], 1)

    def _read(self, metric: str, view: int) -> list[np.ndarray]:
        """Reads the values that the metric keeps for all cases in a view."""
        return self.records.values(metric, self.views[view].name, self.cases)

    def _single_scores(self, metric: str, values: Sequence[np.ndarray]) -> np.ndarray:
        cases = [[part[i : i + 1] for part in values] for i in range(len(values[0]))]
        return np.array([score(self.handlers[metric], case) for case in cases])

    def scores(self, metric: str, chosen: Sequence[int] | np.ndarray | None = None) -> list[float]:
        """Computes the metric over cases, one score per view; ``chosen`` are indices of cases, with repetitions, by default all."""
        rows = np.arange(len(self.cases)) if chosen is None else np.asarray(chosen)
        table = self.table(metric)
        if table is not None:
            return family_scores(table[rows].T, range(len(rows))).tolist()
        parts = [[part[rows] for part in self._kept(metric, view)] for view in range(len(self.views))]
        return [score(self.handlers[metric], values) for values in parts]

    def _draws(self, cases: int, count: int) -> np.ndarray:
        """Draws indices of cases with replacement, shape ``(count, cases)``; networks with equal cases draw the same ones."""
        return np.random.default_rng(self.seed).integers(max(cases, 1), size=(count if cases > 1 else 0, cases))

    def _resample(self, metric: str) -> np.ndarray:
        """Computes the metric over drawn cases, shape ``(num_resamples, views)``."""
        table = self.table(metric)
        draws = self._draws(len(self.cases), self.num_resamples // (10 if table is None else 1))
        samples = [self.scores(metric, rows) if table is None else np.nanmean(table[rows], 0) for rows in draws]
        return np.array(samples, float).reshape(len(draws), len(self.views))

    def summary(self) -> list[dict[str, Any]]:
        """Makes one row per metric and family, the equivariance error last: ``network``, ``metric``, ``family``, ``cases``, ``views``,
        ``mean``, ``worst``, ``worst_view``, ``spread`` (largest minus smallest), ``interval_low``, ``interval_high``, ``images`` (one of
        ``IMAGES``). The error of the upright view, zero, does not count."""
        rows = []
        for metric in [*self.metrics, ERROR]:
            scores = np.array(self.scores(metric), float)
            find_worst = np.nanargmin if self.is_greater_better(metric) else np.nanargmax
            for family, members in self.families.items():
                chosen = members[1:] if metric == ERROR else members
                if not chosen:
                    continue
                values = scores[chosen]
                row: dict[str, Any] = {"network": self.title, "metric": metric, "family": family}
                row |= {"cases": len(self.cases), "views": len(chosen)}
                row |= {"mean": NAN, "worst": NAN, "worst_view": "", "spread": NAN}
                if not np.isnan(values).all():
                    place = int(find_worst(values))
                    row |= {"mean": float(np.nanmean(values)), "worst": float(values[place])}
                    row["worst_view"] = self.views[chosen[place]].name
                    least, most = float(np.nanmin(values)), float(np.nanmax(values))
                    row["spread"] = NAN if np.isinf(least) else most - least
                low, high = percentile_interval(self._resampled(metric)[:, chosen].mean(1))
                rows.append({**row, "interval_low": low, "interval_high": high, "images": self.images})
        return rows

    def samples(self) -> dict[str, np.ndarray]:
        """Returns the bootstrapped means over a family's views, shape ``(num_resamples,)``, by ``METRIC/FAMILY``. Reports with equal cases,
        number of resamples and seed draw the same cases, so the differences between their samples are paired."""
        return {
            f"{metric}/{family}": self._resampled(metric)[:, members].mean(1)
            for metric in self.metrics
            for family, members in self.families.items()
        }

    def view_rows(self) -> list[dict[str, Any]]:
        """Makes one row per view: ``network``, ``view``, ``family``, ``axis``, ``angle``, ``shift`` in voxels, ``cases``, the metrics, the
        equivariance error, ``seconds`` and ``passes`` per case."""
        scores = {metric: self.scores(metric) for metric in [*self.metrics, ERROR]}
        rows = []
        for index, view in enumerate(self.views):
            axis, angle = axis_and_angle(view)
            row = {"network": self.title, "view": view.name, "family": view.family, "axis": axis, "angle": angle}
            row["shift"] = 0.0 if index == 0 else sum(view.shift or ()) or ""
            row |= {"cases": len(self.cases), **{metric: values[index] for metric, values in scores.items()}}
            row |= {"seconds": float(np.median(self.seconds[:, index])), "passes": float(self.passes[:, index].mean())}
            rows.append(row)
        return rows

    def case_rows(self) -> list[dict[str, Any]]:
        """Makes one row per case and view, with the metrics that a single case has."""
        tables = self._case_tables([*self.metrics, TRUE_CLASS])
        tables |= {ERROR: self.errors, "seconds": self.seconds, "passes": self.passes}
        return [
            {"network": self.title, "case": case, "view": view.name, "family": view.family}
            | {name: float(table[i, k]) for name, table in tables.items()}
            for i, case in enumerate(self.cases)
            for k, view in enumerate(self.views)
        ]

    def _case_tables(self, metrics: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the tables of those metrics that a single case has."""
        tables = {metric: self.table(metric) for metric in metrics}
        return {metric: table for metric, table in tables.items() if table is not None and not np.isnan(table).all()}

    def differences(self, other: NetworkScores) -> list[dict[str, Any]]:
        """Compares this network with another one, on the cases and views that both have: ``first``, ``second``, ``metric``, ``family``,
        ``cases``, ``difference`` of the means over the family (this minus other), ``interval_low``, ``interval_high``, ``p``.

        ``p`` comes from :func:`paired_test` over cases; for metrics that are not means over cases it is twice the share of the resamples
        on the other side of zero."""
        rows = []
        names = {view.name: index for index, view in enumerate(other.views)}
        for metric in [name for name in self.metrics if name in other.metrics]:
            for family, members in self.families.items():
                pairs = [(i, names[self.views[i].name]) for i in members if self.views[i].name in names]
                if len(pairs) < (1 if family == "upright" else 2):
                    continue
                difference = self._difference(other, metric, *map(list, zip(*pairs)))
                if difference:
                    row = {"first": self.title, "second": other.title, "metric": metric, "family": family}
                    rows.append(row | difference)
        return rows

    def _difference(self, other: NetworkScores, metric: str, own: list[int], others: list[int]) -> dict[str, float]:
        """Computes the difference in a metric over a family's views, given by their indices in both; empty if they cannot be compared."""
        table, other_table = self.table(metric), other.table(metric)
        common = [case for case in self.cases if case in set(other.cases)]
        if table is not None and other_table is not None and common:
            first = family_scores(table[[self.cases.index(case) for case in common]], own)
            second = family_scores(other_table[[other.cases.index(case) for case in common]], others)
            p = paired_test(first, second, self.num_resamples, self.seed)
            difference = float(np.nanmean(first - second))
            samples = np.nanmean((first - second)[self._draws(len(common), self.num_resamples)], axis=1)
        elif self.cases == other.cases and len(self._resampled(metric)) == len(other._resampled(metric)):
            samples = self._resampled(metric)[:, own].mean(1) - other._resampled(metric)[:, others].mean(1)
            # as in a permutation test, the observed difference counts as one of the resamples
            counts = 1 + min(np.sum(samples <= 0), np.sum(samples >= 0))
            p = min(1.0, 2 * float(counts / (1 + len(samples)))) if len(samples) else NAN
            scores, other_scores = np.array(self.scores(metric))[own], np.array(other.scores(metric))[others]
            difference = float(scores.mean() - other_scores.mean())
        else:
            return {}
        low, high = percentile_interval(samples)
        return {"cases": len(common), "difference": difference, "interval_low": low, "interval_high": high, "p": p}

    def case_scores(self, metric: str) -> tuple[str, np.ndarray]:
        """Returns name and values, of shape ``(cases, views)``, of the score that ranks single cases: the metric; the probability of the
        true class if a single case has no such metric; the equivariance error without labels. The name is empty if there is none."""
        names = [name for name in (metric, TRUE_CLASS, ERROR) if name in (*self.metrics, TRUE_CLASS, ERROR)]
        return next(iter(self._case_tables(names).items()), ("", np.empty((len(self.cases), len(self.views)))))

    def is_greater_better(self, metric: str) -> bool:
        """Checks whether larger values of a metric are better."""
        if metric == TRUE_CLASS or metric in SMALLER_IS_BETTER:
            return metric == TRUE_CLASS
        return is_greater_better(metric, self.handlers.get(metric), self.greater_is_better)

    def worst(self, metric: str, count: int) -> list[WorstCase]:
        """Returns the ``count`` cases with the worst :meth:`case_scores`, each in its worst view and without its image."""
        name, table = self.case_scores(metric)
        if not name:
            return []
        sign = 1.0 if self.is_greater_better(name) else -1.0
        ranked = np.where(np.isnan(table), np.inf, sign * table)
        order = np.argsort(ranked.min(1), kind="stable")[:count]
        return [
            WorstCase(self.title, self.cases[i], self.views[k].name, name, float(table[i, k]), float(table[i, 0]))
            for i, k in zip(order, ranked.argmin(1)[order])
        ]


def say_images(images: Mapping[str, str]) -> str:
    """Says which part of their images networks see; ``images`` maps names of networks to keys of ``IMAGES``.

    Example:
        >>> say_images({"a": "whole", "b": "whole"}), say_images({"a": "whole", "b": "ball"})
        ('networks see images to their corners', 'networks see images to their corners (a) or the inscribed disc or ball of images (b)')
    """
    titles = {kind: "; ".join(title for title, each in images.items() if each == kind) for kind in IMAGES}
    kinds = [kind for kind in IMAGES if titles[kind]]
    words = [IMAGES[kind] + (f" ({titles[kind]})" if len(kinds) > 1 else "") for kind in kinds]
    return f"networks see {' or '.join(words)}"


def format_cell(value: Any) -> str:
    """Formats a value of a table as text; NaN is empty.

    Example:
        >>> format_cell(0.91234), format_cell(2e-8), format_cell(12.0), format_cell(float("inf")), format_cell(NAN)
        ('0.9123', '2.0e-08', '12', 'inf', '')
    """
    if not isinstance(value, float):
        return str(value)
    if np.isnan(value) or (value >= 1 and value.is_integer()):
        return "" if np.isnan(value) else f"{value:g}"
    return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.4f}"


def format_columns(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Formats some columns of a table as aligned text.

    Example:
        >>> rows = [{"network": "net", "cases": 9, "mean": 0.9, "spread": 2e-8}, {"network": "other net", "cases": 10, "mean": 0.75}]
        >>> print(format_columns(rows, ["network", "cases", "mean", "spread"]))
        network    cases    mean   spread
        net            9  0.9000  2.0e-08
        other net     10  0.7500
    """

    cells = [[format_cell(row.get(name, "")) for name in columns] for row in rows]
    names = next(i for i, name in enumerate(columns) if not isinstance(rows[0].get(name), str))
    return format_aligned([[name.replace("_", " ") for name in columns], *cells], left=names)


def short_table(summary: Sequence[Mapping[str, Any]], costs: Mapping[str, Mapping[str, float]], metric: str) -> str:
    """Formats one metric of all networks as Markdown: one row per network, with mean / worst over the views of each family and the worst
    equivariance error.

    Example:
        >>> row = {"network": "net", "family": "upright", "metric": "dice", "mean": 0.9, "worst": 0.9, "views": 1, "cases": 3}
        >>> error = {**row, "family": "group", "metric": "equivariance_error", "worst": 2e-7}
        >>> print(short_table([row, error], {"net": {"passes_per_case": 1.0, "seconds_per_case": 0.25}}, "dice"))
        | network | passes a case | seconds a case | dice: upright | equivariance error: group |
        |---|---|---|---|---|
        | net | 1 | 0.25 | 0.900 | 2.0e-07 |
        <BLANKLINE>
        Mean / worst of the views, of errors the worst. group: symmetries of the grid: ...
    """

    def cell(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return ""
        if row["metric"] == ERROR:
            return f"{row['worst']:.1e}" if row["worst"] < 1e-3 else f"{row['worst']:.3f}"
        return f"{row['mean']:.3f}" + ("" if row["family"] == "upright" else f" / {row['worst']:.3f}")

    rows = {(row["network"], row["metric"], row["family"]): row for row in summary}
    measured = {(row["metric"], row["family"]) for row in summary}
    columns = [(name, each) for name in (metric, ERROR) for each in SHORT_FAMILIES if (name, each) in measured]
    names = [f"{name.replace('_', ' ')}: {family}" for name, family in columns]
    lines = [["network", "passes a case", "seconds a case", *names]]
    for title, cost in costs.items():
        cells = [title, f"{cost['passes_per_case']:g}", f"{cost['seconds_per_case']:.2g}"]
        lines.append([*cells, *(cell(rows.get((title, *column))) for column in columns)])
    families = dict.fromkeys(family for _, family in columns if family != "upright")
    legend = "; ".join(f"{family}: {FAMILY_WORDS[family]}" for family in families)
    return f"{format_markdown(lines)}\n\nMean / worst of the views, of errors the worst. {legend}."
