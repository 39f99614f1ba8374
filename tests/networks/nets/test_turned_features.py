"""At angles that the grid does not have, the features of an untrained net stay close."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_gmr.metrics import EquivarianceErrors, equivariance_error
from monai_gmr.networks.nets import gmr_resnet18

ANGLES = (15, 30, 45)


def smooth_images(sigma: float, seed: int = 0, size: int = 64) -> torch.Tensor:
    """White noise, smoothed over ``sigma`` voxels, of unit variance."""
    noise = np.random.default_rng(seed).standard_normal((2, 1, size, size))
    smooth = ndimage.gaussian_filter(noise, (0, 0, sigma, sigma))
    return torch.as_tensor(smooth / smooth.std(), dtype=torch.float32)


def moved(x: torch.Tensor, seed: int = 0, **arguments) -> EquivarianceErrors:
    """Relative change of the pooled features of an untrained net."""
    torch.manual_seed(seed)
    net = gmr_resnet18(2, n_input_channels=1, feed_forward=False, **arguments).eval()
    assert net(x[:1]).ndim == 2
    return equivariance_error(net, x, group=[], angles=ANGLES)


@pytest.mark.parametrize("sigma", [1.2, 2.0])
def test_pooled_features_of_resnet18_move_by_less_than_a_twentieth(sigma):
    errors = moved(smooth_images(sigma))
    assert [view.angle for view in errors.views] == [15, 30, 45]
    assert errors.worst < 0.05, str(errors)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_narrow_net_with_other_weights(seed):
    assert moved(smooth_images(2.0, seed), seed, width=16).worst < 0.05


def test_images_that_end_before_their_border_move_less():
    """What is left above is mostly the image's corners, which a rotation takes out and puts in."""
    x = smooth_images(2.0)
    axis = np.arange(64) - 31.5
    window = np.clip((30 - np.hypot(axis[:, None], axis[None])) / 6, 0, 1)
    inside = moved(x * torch.as_tensor(window, dtype=torch.float32), width=16)
    assert inside.worst < 0.01 < moved(x, width=16).worst


def test_plain_convolutions_move_more():
    x = smooth_images(2.0)
    assert moved(x, width=16, conv="plain").worst > 2 * moved(x, width=16).worst
