"""The records of one network as numbers: over views, over cases, and beside those of another network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from monai_gmr.rotation_report.probe import score
from monai_gmr.rotation_report.records import TRUE_CLASS, ViewRecords
from monai_gmr.rotation_report.statistics import (
    axis_and_angle,
    family_scores,
    paired_test,
    percentile_interval,
    summarize_family,
    view_families,
)
from monai_gmr.symmetry import View

ERROR = "equivariance_error"
# how many cases tell whether a metric is a mean over cases
PROBED_CASES = 64


class WorstView(NamedTuple):
    """The view in which a case fared worst: ``case``, ``view``, ``metric`` and its ``value`` there and ``upright``."""

    case: str
    view: View
    metric: str
    value: float
    upright: float


class SweepResult:
    """What was measured of one network. Cases of which a view is missing do not count.

    Args:
        title: name of the network.
        records: what was measured.
        views: the views, the upright one first.
        handlers: name to metric handler, which make one score of the records of many cases.
        spacing: voxel size in millimetres, one an axis; default 1.
        greater_is_better: whether larger values of the metrics are better.
        num_resamples: of bootstrap and permutations; a tenth of it for metrics that are no means over cases.
        seed: of the num_resamples.
        cases: names of those that count; default all that were measured.

    Example:
        >>> from monai_gmr.symmetry import group_views
        >>> from monai_gmr.rotation_report.records import ViewRecord
        >>> records = ViewRecords(None, {})
        >>> for view, error in zip(group_views(2, group="2"), (0.0, 0.25)):
        ...     records.add(ViewRecord(view.name, ["case 1"], np.array([error]), 0.5, 1.0, {}))
        >>> result = SweepResult("net", records, group_views(2, group="2"), {})
        >>> [(row["family"], row["mean"]) for row in result.summary()], result.cost()["seconds_per_case"]
        ([('flips', 0.25), ('group', 0.25), ('turns', 0.25)], 0.5)
    """

    def __init__(
        self,
        title: str,
        records: ViewRecords,
        views: Sequence[View],
        handlers: Mapping[str, Any],
        spacing: Sequence[float] | None = None,
        greater_is_better: bool = True,
        num_resamples: int = 1000,
        seed: int = 0,
        cases: Sequence[str] | None = None,
    ) -> None:
        self.title, self.handlers, self.records = title, handlers, records
        self.greater_is_better, self.num_resamples, self.seed = greater_is_better, num_resamples, seed
        self.views = [view for view in views if view.name in records.views]
        asked = set(records.cases if cases is None else cases)
        self.cases = [
            case for case in records.cases if case in asked and all(records.has(case, view.name) for view in self.views)
        ]
        self.families = view_families(self.views, spacing) if self.views else {}
        self.metrics = [name for name in records.metrics if name in handlers]
        # error, seconds and passes of each case in each view
        columns = [records.columns(view.name, self.cases) for view in self.views]
        shape = (3, len(self.views), len(self.cases))
        self._errors, self._seconds, self._passes = (
            np.array(columns, float).swapaxes(0, 1).reshape(shape).swapaxes(1, 2)
        )
        self._tables: dict[str, np.ndarray | None] = {}
        self._samples: dict[str, np.ndarray] = {}
        self._values: dict[str, list[list[np.ndarray]]] = {}

    def cost(self) -> dict[str, float]:
        """``passes_per_case``, the mean, and ``seconds_per_case``, the median over all views of all cases: other work on the
        machine and the first call do not count."""
        if not self.cases:
            return {"passes_per_case": float("nan"), "seconds_per_case": float("nan")}
        return {"passes_per_case": float(self._passes.mean()), "seconds_per_case": float(np.median(self._seconds))}

    def table(self, metric: str) -> np.ndarray | None:
        """A metric of each case in each view, shape ``(cases, views)``; ``None`` for one that is no mean over cases, such as AUC."""
        if metric not in self._tables:
            self._tables[metric] = self._make_table(metric)
        return self._tables[metric]

    def _make_table(self, metric: str) -> np.ndarray | None:
        if metric == ERROR:
            return self._errors
        if metric == TRUE_CLASS:
            if metric not in self.records.metrics:
                return None
            return np.stack([self._of_view(metric, view)[0] for view in range(len(self.views))], 1)
        upright = [part[:PROBED_CASES] for part in self._of_view(metric, 0)]
        alone = self._singles(metric, upright)
        together = score(self.handlers[metric], upright)
        if not np.isfinite(alone).any() or not np.isclose(np.nanmean(alone), together, atol=1e-6):
            return None
        return np.stack([self._singles(metric, self._of_view(metric, view)) for view in range(len(self.views))], 1)

    def _of_view(self, metric: str, view: int) -> list[np.ndarray]:
        """What the metric keeps of all cases in a view."""
        if metric not in self._values:
            self._values[metric] = [self.records.values(metric, each.name, self.cases) for each in self.views]
        return self._values[metric][view]

    def _singles(self, metric: str, values: Sequence[np.ndarray]) -> np.ndarray:
        cases = [[part[i : i + 1] for part in values] for i in range(len(values[0]))]
        # of a case without any score, such as one whose label lacks the class, MONAI's mean is 0
        return np.array(
            [
                score(self.handlers[metric], case) if any(np.isfinite(part).any() for part in case) else np.nan
                for case in cases
            ]
        )

    def scores(self, metric: str, chosen: Sequence[int] | np.ndarray | None = None) -> list[float]:
        """The metric over cases, one a view.

        Args:
            metric: its name.
            chosen: indices of cases, with repetitions; default all.
        """
        rows = np.arange(len(self.cases)) if chosen is None else np.asarray(chosen)
        table = self.table(metric)
        if table is not None:
            return family_scores(table[rows].T, range(len(rows))).tolist()
        views = range(len(self.views))
        return [score(self.handlers[metric], [part[rows] for part in self._of_view(metric, view)]) for view in views]

    def _resampled(self, metric: str) -> np.ndarray:
        """The metric over cases drawn with replacement, shape ``(num_resamples, views)``; networks of equal cases draw the same ones."""
        if metric not in self._samples:
            table, cases = self.table(metric), len(self.cases)
            count = 0 if cases < 2 else self.num_resamples if table is not None else self.num_resamples // 10
            draws = np.random.default_rng(self.seed).integers(cases, size=(count, cases))
            samples = [
                np.nanmean(table[chosen], 0) if table is not None else self.scores(metric, chosen) for chosen in draws
            ]
            self._samples[metric] = np.array(samples, float).reshape(count, len(self.views))
        return self._samples[metric]

    def summary(self) -> list[dict[str, Any]]:
        """One row a metric and family, the equivariance error last: ``network``, ``metric``, ``family``, ``views``, ``cases``, ``mean``,
        ``interval_low``, ``interval_high``, ``worst``, ``worst_view``, ``spread``. The error of the upright view, zero, does not count."""
        rows = []
        names = [view.name for view in self.views]
        for metric in [*self.metrics, ERROR]:
            scores = self.scores(metric)
            for family, members in self.families.items():
                chosen = members[1:] if metric == ERROR else members
                if not chosen:
                    continue
                low, high = percentile_interval(self._resampled(metric)[:, chosen].mean(1))
                better = self.greater_is_better and metric != ERROR
                rows.append(
                    {
                        "network": self.title,
                        "metric": metric,
                        "family": family,
                        "cases": len(self.cases),
                        **summarize_family(scores, names, chosen, better),
                        "interval_low": low,
                        "interval_high": high,
                    }
                )
        return rows

    def view_rows(self) -> list[dict[str, Any]]:
        """One row a view: ``network``, ``view``, ``family``, ``axis``, ``angle``, ``cases``, the metrics, the equivariance error,
        ``seconds`` and ``passes`` a case."""
        columns = {metric: self.scores(metric) for metric in [*self.metrics, ERROR]}
        rows = []
        for index, view in enumerate(self.views):
            axis, angle = axis_and_angle(view)
            rows.append(
                {
                    "network": self.title,
                    "view": view.name,
                    "family": view.family,
                    "axis": axis,
                    "angle": angle,
                    "cases": len(self.cases),
                    **{metric: values[index] for metric, values in columns.items()},
                    "seconds": float(np.median(self._seconds[:, index])),
                    "passes": float(self._passes[:, index].mean()),
                }
            )
        return rows

    def case_rows(self) -> list[dict[str, Any]]:
        """One row a view of a case, with the metrics that a single case has."""
        single = {name: table for name in [*self.metrics, TRUE_CLASS] if (table := self._own_table(name)) is not None}
        return [
            {
                "network": self.title,
                "case": case,
                "view": view.name,
                "family": view.family,
                **{metric: float(table[i, k]) for metric, table in single.items()},
                ERROR: float(self._errors[i, k]),
                "seconds": float(self._seconds[i, k]),
                "passes": float(self._passes[i, k]),
            }
            for i, case in enumerate(self.cases)
            for k, view in enumerate(self.views)
        ]

    def _own_table(self, metric: str) -> np.ndarray | None:
        table = self.table(metric)
        return table if table is not None and np.isfinite(table).any() else None

    def against(self, other: SweepResult) -> list[dict[str, Any]]:
        """This network less another one, on the cases and views that both have: ``first``, ``second``, ``metric``, ``family``, ``cases``,
        ``difference`` of the means over the family, ``interval_low``, ``interval_high``, ``p``.

        ``p`` is that of :func:`~monai_gmr.rotation_report.statistics.paired_test` over cases; for metrics that are no means over
        cases it is twice the share of the num_resamples on the other side of zero."""
        rows = []
        names = {view.name: index for index, view in enumerate(other.views)}
        for metric in [name for name in self.metrics if name in other.metrics]:
            for family, members in self.families.items():
                pairs = [(i, names[self.views[i].name]) for i in members if self.views[i].name in names]
                if not pairs or (family != "upright" and len(pairs) < 2):
                    continue
                mine, theirs = (list(side) for side in zip(*pairs))
                found = self._difference(other, metric, mine, theirs)
                if found is not None:
                    rows.append(
                        {"first": self.title, "second": other.title, "metric": metric, "family": family, **found}
                    )
        return rows

    def _difference(
        self, other: SweepResult, metric: str, mine: list[int], theirs: list[int]
    ) -> dict[str, float] | None:
        own_table, other_table = self.table(metric), other.table(metric)
        common = [case for case in self.cases if case in set(other.cases)]
        if own_table is not None and other_table is not None and common:
            first = family_scores(own_table[[self.cases.index(case) for case in common]], mine)
            second = family_scores(other_table[[other.cases.index(case) for case in common]], theirs)
            chance = paired_test(first, second, self.num_resamples, self.seed)
            count = self.num_resamples if len(common) > 1 else 0
            draws = np.random.default_rng(self.seed).integers(len(common), size=(count, len(common)))
            samples = np.nanmean((first - second)[draws], axis=1) if count else np.empty(0)
            difference = float(np.nanmean(first - second))
        elif self.cases == other.cases and len(self._resampled(metric)) == len(other._resampled(metric)):
            samples = self._resampled(metric)[:, mine].mean(1) - other._resampled(metric)[:, theirs].mean(1)
            # as of a permutation test, the observed difference counts as one of the num_resamples
            sides = [(1 + np.sum(samples <= 0)) / (1 + len(samples)), (1 + np.sum(samples >= 0)) / (1 + len(samples))]
            chance = min(1.0, 2 * float(min(sides))) if len(samples) else float("nan")
            scores = np.array(self.scores(metric))[mine].mean(), np.array(other.scores(metric))[theirs].mean()
            difference = float(scores[0] - scores[1])
        else:
            return None
        low, high = percentile_interval(samples)
        return {"cases": len(common), "difference": difference, "interval_low": low, "interval_high": high, "p": chance}

    def worst(self, metric: str, count: int) -> list[WorstView]:
        """The cases that fared worst, each in its worst view.

        Args:
            metric: by which they are chosen; where a single case has none, by the probability of the true class; without labels by
                the equivariance error.
            count: how many cases.
        """
        candidates = [name for name in (metric, TRUE_CLASS, ERROR) if name in (*self.metrics, TRUE_CLASS, ERROR)]
        tables = {name: table for name in candidates if (table := self._own_table(name)) is not None}
        if not tables:
            return []
        name, table = next(iter(tables.items()))
        sign = 1.0 if (name == TRUE_CLASS or self.greater_is_better) and name != ERROR else -1.0
        ranked = np.where(np.isfinite(table), sign * table, np.inf)
        views = ranked.argmin(1)
        order = np.argsort(ranked.min(1), kind="stable")[:count]
        return [
            WorstView(self.cases[i], self.views[views[i]], name, float(table[i, views[i]]), float(table[i, 0]))
            for i in order
        ]
