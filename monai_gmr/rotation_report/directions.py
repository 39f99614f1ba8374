"""The direction of metrics: whether smaller or larger values are better, by their classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from monai import metrics
from monai.metrics.confusion_matrix import check_confusion_matrix_metric_name
from monai.utils import ensure_tuple, optional_import

from monai_gmr.utils import ConfigurationError

# whether larger values are better: for all metrics, for some by name, or by the class of each
Direction = bool | Mapping[str, bool] | None

DISTANCES_AND_ERRORS = (
    metrics.AbsoluteVolumeDifferenceMetric,
    metrics.CalibrationErrorMetric,
    metrics.HausdorffDistanceMetric,
    metrics.LossMetric,
    metrics.MAEMetric,
    metrics.MAPEMetric,
    metrics.MSEMetric,
    metrics.RMSEMetric,
    metrics.SurfaceDistanceMetric,
)
# metrics of a confusion matrix in MONAI's abbreviations: error rates, and the prevalence threshold
WRONG_SHARES = ("fnr", "fpr", "fdr", "for", "pt")
# ignite is optional, and newer versions have more of them
OF_IGNITE = {
    "ignite.metrics": (
        "CharacterErrorRate",
        "FID",
        "JSDivergence",
        "KLDivergence",
        "Loss",
        "MaximumMeanDiscrepancy",
        "MeanAbsoluteError",
        "MeanPairwiseDistance",
        "MeanSquaredError",
        "Perplexity",
        "RootMeanSquaredError",
    ),
    # only metrics without a sign: a mean error or bias is best at 0
    "ignite.metrics.regression": (
        "CanberraMetric",
        "FractionalAbsoluteError",
        "GeometricMeanAbsoluteError",
        "GeometricMeanRelativeAbsoluteError",
        "ManhattanDistance",
        "MaximumAbsoluteError",
        "MeanAbsoluteRelativeError",
        "MedianAbsoluteError",
        "MedianAbsolutePercentageError",
        "MedianRelativeAbsoluteError",
        "WaveHedgesDistance",
    ),
}


def _classes_of_ignite() -> tuple[type, ...]:
    modules = {name: optional_import(name) for name in OF_IGNITE}
    found = [
        getattr(modules[name][0], each, None)
        for name, all_of in OF_IGNITE.items()
        for each in all_of
        if modules[name][1]
    ]
    return tuple(each for each in found if isinstance(each, type))


def is_smaller_better(metric: Any) -> bool:
    """Whether smaller values of a metric of MONAI or ignite, or of a handler with one, are better; False for unknown classes.

    Example:
        >>> from monai.handlers import HausdorffDistance, MeanDice
        >>> is_smaller_better(HausdorffDistance(percentile=95)), is_smaller_better(MeanDice())
        (True, False)
    """
    # metrics of ignite return a function for every attribute
    held = getattr(metric, "metric_fn", None)
    metric = held if isinstance(held, metrics.Cumulative) else metric
    if isinstance(metric, metrics.ConfusionMatrixMetric):
        # with several names, the first one is reported
        return check_confusion_matrix_metric_name(ensure_tuple(metric.metric_name)[0]) in WRONG_SHARES
    return isinstance(metric, (*DISTANCES_AND_ERRORS, *_classes_of_ignite()))


def is_greater_better(name: str, metric: Any, direction: Direction) -> bool:
    """Whether larger values of a metric are better: by ``direction`` for all metrics or this name, else by the metric's class.

    Example:
        >>> named = {"dice": None, "hd95": metrics.HausdorffDistanceMetric()}
        >>> [is_greater_better(name, metric, None) for name, metric in named.items()]
        [True, False]
        >>> [is_greater_better(name, metric, {"dice": False}) for name, metric in named.items()]
        [False, False]
    """
    said = direction.get(name) if isinstance(direction, Mapping) else direction
    return not is_smaller_better(metric) if said is None else bool(said)


def check_direction(direction: Direction, names: Collection[str]) -> None:
    """Raises ``ConfigurationError`` if ``direction`` names a metric that none of the evaluators has."""
    unknown = [name for name in direction if name not in names] if isinstance(direction, Mapping) else []
    if unknown:
        there = ", ".join(dict.fromkeys(names)) or "none"
        raise ConfigurationError(
            f"greater_is_better names {unknown[0]!r}, which is not a metric of the evaluator: it has {there}."
        )
