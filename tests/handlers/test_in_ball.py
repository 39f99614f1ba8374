"""Tests of scores inside the ball that all rotations of an image share."""

import pytest
import torch

from monai_gmr.handlers import from_engine_in_ball
from monai_gmr.symmetry import inscribed_ball


@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (5, 6, 7)])
def test_the_ball_masks_predictions_and_labels_alike(shape):
    take = from_engine_in_ball(["pred", "label"])
    pred, label = torch.rand(3, *shape), torch.rand(3, *shape)
    (masked,), (masked_label,) = take([{"pred": pred, "label": label}])
    ball = torch.as_tensor(inscribed_ball(shape))
    assert torch.equal(masked, torch.where(ball, pred, 0))
    assert torch.equal(masked_label, torch.where(ball, label, 0))
