"""Measurements of a report in one view: errors, the ball, classes, probabilities."""

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, SurfaceDistance
from monai.networks.nets import BasicUNet
from monai.networks.utils import one_hot

from monai_gmr.metrics import equivariance_error
from monai_gmr.rotation_report.probe import class_map, keep_ball, metric_handlers, relative_errors, true_class
from monai_gmr.symmetry import group_views, inscribed_ball, make_views, transform_grid, transform_image


def test_errors_on_the_grid_are_those_of_the_equivariance_error():
    torch.manual_seed(0)
    net = BasicUNet(2, 1, 2, features=(4, 4, 4, 4, 4, 4)).eval()
    x = torch.rand(1, 1, 32, 48)
    expected = equivariance_error(net, x).errors
    with torch.no_grad():
        upright = net(x)
        errors = [relative_errors(net(transform_grid(x, v.matrix)), upright, v, None, 2)[0] for v in group_views(2)[1:]]
    assert max(expected) > 0.01
    assert sorted(errors) == pytest.approx(sorted(expected)[-7:], rel=1e-4)


@pytest.mark.parametrize("view", make_views([{"angles": 40}, {"random": 2}], 3)[1:6], ids=lambda view: view.name)
def test_a_blur_is_equivariant_to_interpolation(view):
    coordinates = torch.meshgrid(*[torch.linspace(-2, 2, 21)] * 3, indexing="ij")
    squared = [(c - shift) ** 2 for c, shift in zip(coordinates, (0.5, -0.4, 0.3))]
    x = torch.exp(-4 * squared[0] - 2 * squared[1] - squared[2])[None, None]
    blur = torch.nn.AvgPool3d(3, 1, 1, count_include_pad=False)
    (error,) = relative_errors(blur(transform_image(x, view.matrix)), blur(x), view, None, 3)
    (wrong,) = relative_errors(blur(x), blur(x), view, None, 3)
    assert error < 0.05
    assert wrong > 2 * error


def test_answers_of_another_shape_have_no_error():
    assert np.isnan(relative_errors(torch.rand(1, 3), torch.rand(1, 4), group_views(2)[1], None, 2)[0])


@pytest.mark.parametrize("kind", ["class numbers", "one-hot", "several labels", "one channel"])
def test_outside_the_ball_predictions_and_labels_are_background(kind):
    torch.manual_seed(0)
    channels = 1 if kind == "one channel" else 3
    prediction = torch.randn(2, channels, 9, 12)
    if kind == "several labels":
        label = (torch.rand(2, 3, 9, 12) > 0.5).float()
    else:
        label = torch.randint(0, max(channels, 2), (2, 1, 9, 12)).float()
        label = one_hot(label, 3) if kind == "one-hot" else label
    masked, masked_label = keep_ball(prediction, label, None)
    ball = torch.as_tensor(inscribed_ball((9, 12)))
    assert torch.equal(masked[..., ball], prediction[..., ball])
    assert torch.equal(masked_label[..., ball], label[..., ball])
    outside, outside_label = masked[..., ~ball], masked_label[..., ~ball]
    if kind in ("class numbers", "one-hot"):
        assert (outside.argmax(1) == 0).all()
        expected = torch.tensor([1.0, 0.0, 0.0])[None, :, None] if kind == "one-hot" else torch.zeros(1, 1, 1)
        assert torch.equal(outside_label, expected.expand_as(outside_label))
    else:
        assert (outside.sigmoid() == 0).all()
        assert (outside_label == 0).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["fractions", "whole numbers"])
def test_outside_the_ball_a_regression_has_no_error(kind, channels):
    prediction, label = 100 * torch.randn(2, channels, 9, 12), 50 * torch.randn(2, channels, 9, 12)
    label = label.round() if kind == "whole numbers" else label
    masked, masked_label = keep_ball(prediction, label, None)
    ball = torch.as_tensor(inscribed_ball((9, 12)))
    assert torch.equal(masked, prediction * ball)
    assert torch.equal(masked_label, label * ball)


@pytest.mark.parametrize("channels", [1, 3])
def test_outside_the_ball_probabilities_stay_probabilities(channels):
    logits, label = torch.randn(2, channels, 9, 12), torch.randint(0, max(channels, 2), (2, 1, 9, 12))
    prediction = logits.softmax(1) if channels > 1 else logits.sigmoid()
    masked, masked_label = keep_ball(prediction, label, None)
    ball = torch.as_tensor(inscribed_ball((9, 12)))
    assert torch.equal(masked[..., ball], prediction[..., ball])
    background = torch.tensor([1.0, 0.0, 0.0] if channels > 1 else [0.0])[:, None]
    assert torch.equal(masked[..., ~ball], background.expand(2, -1, int((~ball).sum())))
    assert (masked_label[..., ~ball] == 0).all()


def test_the_ball_fits_half_precision():
    masked, _ = keep_ball(torch.randn(1, 2, 5, 5, dtype=torch.float16), None, None)
    assert torch.isfinite(masked).all()


def test_probabilities_of_the_true_class():
    scores = torch.randn(5, 3, dtype=torch.float64)
    classes = torch.tensor([0, 1, 2, 2, 1])
    expected = scores.softmax(1)[torch.arange(5), classes].tolist()
    for label in (classes, classes[:, None], one_hot(classes[:, None], 3), one_hot(classes[:, None], 3).bool()):
        assert true_class(scores, label) == pytest.approx(expected)
    single = torch.tensor([[2.0], [-1.0]])
    assert true_class(single, torch.tensor([1, 0])) == pytest.approx(
        [single[0].sigmoid().item(), (-single[1]).sigmoid().item()]
    )
    assert true_class(scores, torch.tensor([0, 1, 2, 3, 1])) is None
    assert true_class(scores, None) is None
    assert true_class(scores, torch.ones_like(scores)) is None


def test_classes_are_drawn_as_whole_numbers():
    logits = torch.randn(2, 3, 4, 4)
    assert np.array_equal(class_map(logits, logits=True), logits.argmax(1).numpy())
    assert np.array_equal(class_map(torch.tensor([[[[0.2, 0.8]]]]), logits=True), [[[0, 1]]])
    assert np.array_equal(class_map(torch.tensor([[[[-0.2, 0.8]]]]), logits=True), [[[0, 1]]])
    assert np.array_equal(class_map(torch.tensor([[[[2.0, 1.0]]]]), logits=False), [[[2, 1]]])
    # a probability stays valid when the outside of the ball becomes background
    assert np.array_equal(class_map(torch.tensor([[[[0.2, 0.8, -1e4]]]]), logits=True), [[[0, 1, 0]]])
    assert np.array_equal(
        class_map(torch.tensor([[[False, True]], [[True, False]]]).movedim(0, 1), logits=False), [[1, 0]]
    )
    regions = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])[None]
    assert np.array_equal(class_map(regions, logits=False, exclusive=False), [[0, 1, 2]])


def test_the_key_metric_comes_first():
    metrics = {"b": MeanDice(), "a": SurfaceDistance(), "c": MeanDice()}
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        [],
        torch.nn.Identity(),
        key_val_metric={"b": metrics["b"]},
        additional_metrics={"a": metrics["a"], "c": metrics["c"]},
    )
    assert metric_handlers(evaluator) == metrics
    assert next(iter(metric_handlers(evaluator))) == "b"
