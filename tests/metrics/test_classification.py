"""Tests of classification scores against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.handlers import IgniteMetricHandler
from monai.metrics import ConfusionMatrixMetric

from monai_gmr.metrics import AccuracyMetric, MacroAUCMetric, MeanRecallMetric
from monai_gmr.rotation_report.probe import score
from monai_gmr.utils import ConfigurationError

EYE = torch.eye(3)
RIGHT = EYE[[0, 1]]
CASES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(CASES)
def test_mean_recall_is_balanced_accuracy_of_scikit_learn(cases):
    """scikit-learn: the diagonal of the confusion matrix over its row sums, averaged over nonempty rows."""
    labels, guesses = map(np.array, zip(*cases))
    matrix = np.zeros((4, 4))
    np.add.at(matrix, (labels, guesses), 1)
    expected = np.mean([matrix[c, c] / matrix[c].sum() for c in range(4) if matrix[c].sum()])
    metric, eye = MeanRecallMetric(), torch.eye(4)
    for half in (slice(0, len(cases) // 2), slice(len(cases) // 2, None)):
        if len(labels[half]):
            metric(y_pred=eye[guesses[half]], y=eye[labels[half]])
    assert metric.aggregate().item() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.booleans()] * 6), min_size=1, max_size=20))
def test_mean_recall_of_several_labels_is_balanced_accuracy_of_each(cases):
    """The share of right answers of the images with a label and of those without it, where there are any; by counting."""
    truth, guesses = np.array(cases)[:, :3], np.array(cases)[:, 3:]
    expected = []
    for label in range(3):
        shares = [
            np.mean([guess == value for guess, true in zip(guesses[:, label], truth[:, label]) if true == value])
            for value in (False, True)
            if value in truth[:, label]
        ]
        expected.append(np.mean(shares))
    whole, halves = (MeanRecallMetric(multi_label=True) for _ in range(2))
    y_pred, y = torch.tensor(guesses).float(), torch.tensor(truth).float()
    whole(y_pred=y_pred, y=y)
    for half in (slice(0, len(cases) // 2), slice(len(cases) // 2, None)):
        if len(y[half]):
            halves(y_pred=list(y_pred[half]), y=list(y[half]))
    for metric in (whole, halves):
        assert metric.aggregate().item() == pytest.approx(np.mean(expected), abs=1e-6)
    # the rotation report keeps the values of each case, and scores them again in another order
    kept = whole.get_buffer().numpy()
    assert len(kept) == len(cases)
    assert score(IgniteMetricHandler(metric_fn=whole), [kept[::-1].copy()]) == pytest.approx(
        np.mean(expected), abs=1e-6
    )


@pytest.mark.parametrize("answer", [torch.ones, torch.zeros])
@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 2, 2)])
def test_the_same_answer_for_every_label_is_a_guess(answer, shape):
    y = torch.eye(3)[[0, 1, 2, 0, 0, 1]].reshape(6, 3, *[1] * (len(shape) - 2)).expand(shape)
    metric = MeanRecallMetric(multi_label=True)
    metric(y_pred=answer(shape), y=y)
    assert metric.aggregate().item() == 0.5


@pytest.mark.parametrize("place", ["y_pred", "y"])
@pytest.mark.parametrize("several", [torch.ones(2, 3), [torch.eye(3)[0], torch.ones(3)]])
def test_several_labels_need_to_be_said(place, several):
    """Without ``multi_label``, all labels for every image would have the recall 1."""
    given = {"y_pred": RIGHT, "y": RIGHT, place: several}
    with pytest.raises(ConfigurationError, match=f"a {place} with several classes at once: .*, or multi_label=True"):
        MeanRecallMetric()(**given)
    MeanRecallMetric(multi_label=True)(**given)


def test_monai_balanced_accuracy_is_another_quantity():
    """A constant guess among ten classes has mean recall 1/10; MONAI's one-against-all average is much larger."""
    labels, eye = torch.arange(10), torch.eye(10)
    ours, theirs = MeanRecallMetric(), ConfusionMatrixMetric(metric_name="balanced accuracy")
    for metric in (ours, theirs):
        metric(y_pred=eye[torch.zeros(10, dtype=torch.long)], y=eye[labels])
    assert ours.aggregate().item() == pytest.approx(0.1)
    assert theirs.aggregate()[0].item() > 0.4


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), *[st.integers(0, 4)] * 4), min_size=2, max_size=25))
def test_macro_auc_is_the_share_of_pairs_in_order(cases):
    """Mann-Whitney: the share of correctly ranked pairs of a case of the class and a case of another; ties count half."""
    labels, scores = np.array([c[0] for c in cases]), np.array([c[1:] for c in cases], float)
    shares = []
    for c in range(4):
        inside, outside = scores[labels == c, c], scores[labels != c, c]
        if len(inside) and len(outside):
            difference = inside[:, None] - outside[None, :]
            shares.append((difference > 0).mean() + (difference == 0).mean() / 2)
    metric = MacroAUCMetric()
    metric(torch.tensor(scores), torch.eye(4)[labels])
    if shares:
        assert metric.aggregate() == pytest.approx(np.mean(shares), abs=1e-9)
    else:
        assert np.isnan(metric.aggregate())


@pytest.mark.parametrize("metric", [AccuracyMetric, MacroAUCMetric])
@pytest.mark.parametrize("y", [torch.tensor([[0], [1]]), RIGHT[:, :2], RIGHT[:1], torch.tensor([0, 1])])
def test_class_indices_and_other_shapes_are_one_sentence(metric, y):
    with pytest.raises(
        ConfigurationError, match=r"y_pred of shape \(2, 3\) and a y of shape .*: give both as \(B, C\)"
    ):
        metric()(y_pred=RIGHT, y=y)


@pytest.mark.parametrize("wrong", [RIGHT * 0.7, RIGHT * torch.nan, RIGHT * 2])
def test_what_is_not_one_hot_is_one_sentence(wrong):
    for arguments in ({"y_pred": wrong, "y": RIGHT}, {"y_pred": RIGHT, "y": wrong}):
        with pytest.raises(ConfigurationError, match="values other than 0 and 1: give one-hot vectors"):
            AccuracyMetric()(**arguments)
    with pytest.raises(ConfigurationError, match="a y with values other than 0 and 1"):
        MacroAUCMetric()(RIGHT, wrong)


@pytest.mark.parametrize("metric", [AccuracyMetric, MacroAUCMetric])
def test_the_score_of_no_images_is_one_sentence(metric):
    with pytest.raises(ConfigurationError, match="has no images yet"):
        metric().aggregate()


@pytest.mark.parametrize("metric", [AccuracyMetric, MacroAUCMetric])
def test_lists_of_images_are_batches(metric):
    scored = metric()
    scored(y_pred=list(RIGHT), y=list(RIGHT))
    assert float(scored.aggregate()) == 1


def test_scores_of_one_class_need_no_second_axis():
    scores, truth = torch.tensor([0.1, 0.8, 0.4, 0.9]), torch.tensor([0, 1, 1, 0])
    (one, other) = (MacroAUCMetric(), MacroAUCMetric())
    one(scores, truth)
    other(scores[:, None], truth[:, None])
    # two of four pairs are in order
    assert one.aggregate() == other.aggregate() == 0.5
