"""What a metric does when the images are turned, in numbers: over views and over cases, of one network and of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from monai_gmr.symmetry import View, is_grid_symmetry
from monai_gmr.utils import ConfigurationError

FAMILIES = ("upright", "flips", "group", "angles", "turns", "icosahedral", "random")
# what stands in a README: flips are in the group, other angles among the turns
README_FAMILIES = ("upright", "group", "turns", "icosahedral", "random")
CONFIDENCE = 0.95


def axis_and_angle(view: View) -> tuple[int | str, float | str]:
    """Array axis and angle in degrees of a rotation about an axis; empty for every other view. In 2D the axis is 0.

    Example:
        >>> from monai_gmr.symmetry import angle_views
        >>> [axis_and_angle(view) for view in angle_views(3, 120)]
        [(0, 120.0), (0, 240.0), (1, 120.0), (1, 240.0), (2, 120.0), (2, 240.0)]
    """
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


def view_families(views: Sequence[View], spacing: Sequence[float] | None = None) -> dict[str, list[int]]:
    """Which views belong to which family; the upright one belongs to all.

    Args:
        views: the views, the upright one first.
        spacing: voxel size in millimetres, one an axis; default 1.

    Returns:
        family to the indices of its views, of families with a view beside the upright one: "flips" (an axis or several
        reversed), "group" (symmetries of the grid), "angles" (rotations about an array axis that the grid has not), "turns" (all
        rotations about an array axis, those of the grid too: a full circle), "icosahedral" and "random".

    Example:
        >>> from monai_gmr.symmetry import make_views
        >>> views = make_views(["all", {"angles": 30}, {"random": 5}], 2)
        >>> {family: len(members) for family, members in view_families(views).items()}
        {'upright': 1, 'flips': 4, 'group': 8, 'angles': 9, 'turns': 12, 'random': 6}
    """
    families: dict[str, list[int]] = {family: [0] for family in FAMILIES}
    for index, view in enumerate(views[1:], 1):
        on_grid = is_grid_symmetry(view.matrix, spacing)
        about_axis = axis_and_angle(view)[0] != ""
        belongs = {
            "flips": on_grid and np.count_nonzero(np.diag(view.matrix).round()) == len(view.matrix),
            "group": on_grid,
            "angles": view.family == "angles" and not on_grid,
            "turns": about_axis and view.family in ("group", "angles"),
            "icosahedral": view.family == "icosahedral",
            "random": view.family == "random",
        }
        for family, member in belongs.items():
            if member:
                families[family].append(index)
    return {family: members for family, members in families.items() if family == "upright" or len(members) > 1}


def percentile_interval(samples: np.ndarray) -> tuple[float, float]:
    """Interval that holds 95 % of the bootstrapped scores.

    Args:
        samples: one score a resample.

    Returns:
        its two ends; not a number where there are fewer than two scores.

    Example:
        >>> [round(end, 6) for end in percentile_interval(np.arange(1001.0))]
        [25.0, 975.0]

    Source:
        B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    samples = np.asarray(samples, float)
    if np.isfinite(samples).sum() < 2:
        return float("nan"), float("nan")
    low, high = np.nanpercentile(samples, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)


def paired_test(first: np.ndarray, second: np.ndarray, num_resamples: int, seed: int) -> float:
    """Two-sided p-value that the mean difference of two networks over the same cases is zero.

    Signs of the differences are exchanged at random, or all ways where they are few.

    Args:
        first: score of each case, shape ``(cases,)``.
        second: those of the other network.
        num_resamples: at most how many exchanges.
        seed: the same seed makes the same exchanges.

    Returns:
        the p-value, not a number with fewer than two cases.

    Example:
        >>> paired_test(np.arange(5.0), np.arange(5.0) - 1, 1000, seed=0)
        0.0625

    Source:
        ``scipy.stats.permutation_test`` with ``permutation_type="samples"``.
    """
    differences = np.asarray(first, float) - np.asarray(second, float)
    differences = differences[np.isfinite(differences)]
    if len(differences) < 2 or num_resamples < 2:
        return float("nan")
    if np.ptp(differences) == 0 and differences[0] == 0:
        return 1.0
    result = stats.permutation_test(
        (differences,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        random_state=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def family_scores(values: np.ndarray, members: Sequence[int]) -> np.ndarray:
    """Mean over a family's views of each case, shape ``(cases,)``; not a number where a case has none.

    Example:
        >>> family_scores(np.array([[1.0, 3.0, np.nan]]), [0, 1, 2])
        array([2.])
    """
    chosen = np.asarray(values, float)[:, list(members)]
    counts = np.isfinite(chosen).sum(1)
    sums = np.nansum(chosen, 1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def summarize_family(
    scores: Sequence[float], names: Sequence[str], members: Sequence[int], greater_is_better: bool = True
) -> dict[str, Any]:
    """Mean, worst and spread of a metric over the views of a family.

    Args:
        scores: the metric over all cases, one a view.
        names: names of the views.
        members: indices of the family's views.
        greater_is_better: whether the worst view is the one with the smallest value.

    Returns:
        ``views``, ``mean``, ``worst``, ``worst_view`` and ``spread``, the largest value less the smallest.

    Example:
        >>> summarize_family([0.9, 0.7], ["upright", "90 degrees"], [0, 1])["worst_view"]
        '90 degrees'
    """
    values = np.array([scores[i] for i in members], float)
    if not np.isfinite(values).any():
        empty = float("nan")
        return {"views": len(members), "mean": empty, "worst": empty, "worst_view": "", "spread": empty}
    index = int(np.nanargmin(values) if greater_is_better else np.nanargmax(values))
    return {
        "views": len(members),
        "mean": float(np.nanmean(values)),
        "worst": float(values[index]),
        "worst_view": names[members[index]],
        "spread": float(np.nanmax(values) - np.nanmin(values)),
    }


def format_table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary as text, aligned, one line a network, metric and family.

    Example:
        >>> row = {"network": "net", "family": "group", "metric": "dice", "views": 48, "mean": 0.9, "worst": 0.9, "worst_view": "-1",
        ...        "spread": 2e-8, "interval_low": 0.85, "interval_high": 0.94}
        >>> print(format_table([row]))
        network  metric  family  views    mean       interval   worst   spread  worst view
        net      dice    group      48  0.9000  0.850 - 0.940  0.9000  2.0e-08  -1
    """

    def small(value: float) -> str:
        return f"{value:.4f}" if not 0 < abs(value) < 5e-4 else f"{value:.1e}"

    lines = [("network", "metric", "family", "views", "mean", "interval", "worst", "spread", "worst view")]
    for row in summary:
        numbers = (str(row["views"]), small(row["mean"]), _between(row), small(row["worst"]), small(row["spread"]))
        lines.append((row["network"], row["metric"], row["family"], *numbers, row["worst_view"]))
    return align(lines, left=(0, 1, 2, 8))


def format_costs(costs: Mapping[str, Mapping[str, float]]) -> str:
    """Passes and seconds of each network as text.

    Example:
        >>> print(format_costs({"net, 48 views": {"passes_per_case": 48.0, "seconds_per_case": 1.5}}))
        network        passes a case  seconds a case
        net, 48 views             48             1.5
    """
    lines = [("network", "passes a case", "seconds a case")]
    lines += [
        (title, f"{cost['passes_per_case']:g}", f"{cost['seconds_per_case']:.3g}") for title, cost in costs.items()
    ]
    return align(lines)


def format_differences(rows: Sequence[Mapping[str, Any]]) -> str:
    """Paired differences of networks as text.

    Example:
        >>> row = {"first": "a", "second": "b", "metric": "dice", "family": "group", "cases": 9, "difference": 0.1,
        ...        "interval_low": 0.05, "interval_high": 0.15, "p": 0.004}
        >>> print(format_differences([row]))
        difference  metric  family  cases    mean       interval      p
        a less b    dice    group       9  0.1000  0.050 - 0.150  0.004
    """
    lines = [("difference", "metric", "family", "cases", "mean", "interval", "p")]
    for row in rows:
        names = (f"{row['first']} less {row['second']}", row["metric"], row["family"], str(row["cases"]))
        chance = f"{row['p']:.3g}" if np.isfinite(row["p"]) else ""
        lines.append((*names, f"{row['difference']:.4f}", _between(row), chance))
    return align(lines, left=(0, 1, 2))


def format_markdown(
    summary: Sequence[Mapping[str, Any]], costs: Mapping[str, Mapping[str, float]], metric: str, error: str
) -> str:
    """One metric of all networks as a table for a README: a row a network, mean / worst over the views of each family.

    Args:
        summary: rows of all networks, metrics and families.
        costs: name of a network to ``passes_per_case`` and ``seconds_per_case``.
        metric: the metric.
        error: name of the equivariance error, of which the worst view of each family is given.

    Example:
        >>> row = {"network": "net", "family": "upright", "metric": "dice", "mean": 0.9, "worst": 0.9, "views": 1, "cases": 3}
        >>> worst = {**row, "family": "group", "metric": "error", "worst": 2e-7}
        >>> print(format_markdown([row, worst], {"net": {"passes_per_case": 1.0, "seconds_per_case": 0.25}}, "dice", "error"))
        | network | passes a case | seconds a case | dice: upright | error: group |
        |---|---|---|---|---|
        | net | 1 | 0.25 | 0.900 | 2.0e-07 |
    """
    found = {(row["network"], row["metric"], row["family"]): row for row in summary}
    families = {name: {row["family"] for row in summary if row["metric"] == name} for name in (metric, error)}
    scores = [family for family in README_FAMILIES if family in families[metric]]
    errors = [family for family in README_FAMILIES if family in families[error]]
    head = ["network", "passes a case", "seconds a case"]
    head += [f"{metric.replace('_', ' ')}: {family}" for family in scores]
    head += [f"{error.replace('_', ' ')}: {family}" for family in errors]
    lines = [head, ["---"] * len(head)]
    for title, cost in costs.items():
        cells = [title, f"{cost['passes_per_case']:g}", f"{cost['seconds_per_case']:.2g}"]
        for family in scores:
            row = found.get((title, metric, family))
            numbers = "" if row is None else f"{row['mean']:.3f} / {row['worst']:.3f}"
            cells.append(numbers.partition(" /")[0] if family == "upright" else numbers)
        for family in errors:
            row = found.get((title, error, family))
            cells.append("" if row is None else f"{row['worst']:.1e}" if row["worst"] < 1e-3 else f"{row['worst']:.3f}")
        lines.append(cells)
    return "\n".join("|".join(["", *(f" {cell} " if cell != "---" else cell for cell in line), ""]) for line in lines)


def _between(row: Mapping[str, Any]) -> str:
    ends = (row["interval_low"], row["interval_high"])
    return " - ".join(f"{end:.3f}" for end in ends) if np.isfinite(ends).all() else ""


def align(lines: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Rows of texts as columns of equal width, those in ``left`` left-aligned.

    Example:
        >>> print(align([("a", "bb"), ("ccc", "d")]))
        a    bb
        ccc   d
    """
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def check_resamples(num_resamples: int) -> None:
    """Raise when a number of num_resamples cannot be used.

    Raises:
        ConfigurationError: when it is not a whole number of at least 0.

    Example:
        >>> check_resamples(0)
    """
    if isinstance(num_resamples, bool) or not isinstance(num_resamples, int) or num_resamples < 0:
        raise ConfigurationError(
            f"num_resamples={num_resamples!r} is out of range: give 0 (no intervals) or more, such as 1000."
        )
