"""Tests that all metrics check their arguments alike, with one sentence, and gather nothing from a refused batch."""

import numpy as np
import pytest
import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric

from monai_gmr.metrics import AccuracyMetric, MacroAUCMetric, MeanRecallMetric, agreement, classification
from monai_gmr.metrics.agreement import ChangedProbability, ChangedVoxels, SameClass
from monai_gmr.utils import ConfigurationError

ONE_HOT = torch.eye(3)[[0, 1, 2, 0]]
MAPS = ONE_HOT[:, :, None, None].repeat(1, 1, 4, 4)
SOFT = ONE_HOT * 0.7 + 0.1
# predictions and labels that each metric takes
TAKEN = {
    AccuracyMetric: (ONE_HOT, ONE_HOT),
    MeanRecallMetric: (ONE_HOT, ONE_HOT),
    MacroAUCMetric: (SOFT, ONE_HOT),
    ChangedVoxels: (MAPS, MAPS),
    ChangedProbability: (SOFT, SOFT),
    SameClass: (SOFT, SOFT),
}
EVERY = pytest.mark.parametrize("kind", list(TAKEN), ids=lambda kind: kind.__name__)


def refused(kind, match, y_pred, y):
    """Checks that the batch is refused and the score of the batch before stays."""
    metric = kind()
    metric(*TAKEN[kind])
    before = float(metric.aggregate())
    with pytest.raises(ConfigurationError, match=rf"^{kind.__name__} was given {match}[^.]*\.?[^.]*\.$"):
        metric(y_pred, y)
    assert float(metric.aggregate()) == before
    assert len(metric) == len(TAKEN[kind][0])


def test_no_metric_is_forgotten():
    ours = {
        each
        for module in (agreement, classification)
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, CumulativeIterationMetric) and each.__module__ == module.__name__
    }
    assert ours == set(TAKEN)


@EVERY
def test_right_answers_are_scored(kind):
    metric = kind()
    for y_pred, y in (TAKEN[kind], map(list, TAKEN[kind])):
        metric(y_pred, y)
    assert float(metric.aggregate()) == (0 if kind in (ChangedVoxels, ChangedProbability) else 1)


@EVERY
@pytest.mark.parametrize("place", [0, 1])
def test_values_that_are_not_numbers(kind, place):
    given = list(TAKEN[kind])
    given[place] = given[place].clone()
    given[place][1] = torch.nan
    refused(kind, f"a {['y_pred', 'y'][place]} with values ", *given)


@pytest.mark.parametrize("kind", [AccuracyMetric, MeanRecallMetric])
@pytest.mark.parametrize("place", [0, 1])
def test_probabilities_are_no_classes(kind, place):
    given = [ONE_HOT, ONE_HOT]
    given[place] = ONE_HOT * 0.9 + 0.05
    refused(kind, "a .* with values other than 0 and 1: give one-hot vectors", *given)


@pytest.mark.parametrize("kind", [ChangedProbability, SameClass])
def test_logits_are_no_probabilities(kind):
    refused(kind, "a y_pred with values other than 0 to 1: give probabilities", 3 * SOFT - 1, SOFT)


@pytest.mark.parametrize("values", [SOFT.half(), SOFT.bfloat16(), SOFT.log()])
def test_what_is_near_a_probability_or_a_score_is_taken(values):
    if values.dtype == torch.float32:
        MacroAUCMetric()(values, ONE_HOT)
    else:
        ChangedProbability()(values, values)


@EVERY
def test_empty_batches(kind):
    y_pred, y = TAKEN[kind]
    refused(kind, "an empty batch: give it one case or more", y_pred[:0], y[:0])
    refused(kind, "an empty batch: give it one case or more", [], [])


@EVERY
@pytest.mark.parametrize("shape", ["classes", "cases", "spatial", "index", "number"])
def test_other_shapes(kind, shape):
    y_pred, y = TAKEN[kind]
    other = {
        "classes": y[:, :2],
        "cases": y[:3],
        "spatial": y[..., None],
        "index": y.flatten(1).argmax(1),
        "number": torch.tensor(1.0),
    }[shape]
    refused(kind, r"a y_pred of shape \(4, 3.*\) and a y of shape .*: give both as \(B, C", y_pred, other)


@EVERY
def test_lists_of_other_lengths(kind):
    """MONAI would silently score only the shorter length."""
    y_pred, y = TAKEN[kind]
    refused(kind, "4 predictions and 3 labels: give one of each", list(y_pred), list(y)[:3])
    refused(kind, "4 predictions and 3 labels: give one of each", list(y_pred), y[:3])


@EVERY
@pytest.mark.parametrize("what", ["nothing", "array", "array as truth", "numbers", "number and list"])
def test_what_is_no_tensor(kind, what):
    y_pred, y = TAKEN[kind]
    given = {
        "nothing": (y_pred, None),
        "array": (y_pred.numpy(), y),
        "array as truth": (y_pred, y.numpy()),
        "numbers": ([0, 1, 2, 0], [0, 1, 2, 0]),
        "number and list": (list(y_pred), torch.tensor(1)),
    }[what]
    refused(kind, "a .*: give", *given)


@EVERY
def test_the_score_of_no_images(kind):
    with pytest.raises(ConfigurationError, match=f"^{kind.__name__} has no images yet: call it with predictions first"):
        kind().aggregate()
    metric = kind()
    metric(*TAKEN[kind])
    metric.reset()
    with pytest.raises(ConfigurationError, match="has no images yet"):
        metric.aggregate()


@EVERY
def test_handlers_use_them(kind):
    handler = IgniteMetricHandler(metric_fn=kind(), save_details=False)
    handler.update(TAKEN[kind])
    assert np.isfinite(float(handler.compute()))
    with pytest.raises(ConfigurationError, match="was given an empty batch"):
        handler.update(tuple(part[:0] for part in TAKEN[kind]))
