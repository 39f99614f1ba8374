"""The default basis has a smaller error at angles other than the grid's than the peers' bases have."""

import matplotlib.cbook
import numpy as np
import pytest
import torch
from fidelity import WINDOWS, Frequencies
from scipy import ndimage

from monai_gmr.networks.layers import GMRConv2d
from monai_gmr.symmetry import inscribed_ball, rotation_matrix, transform_image

LARGEST_SHARE = {(2, k): 0.25 for k in (3, 5, 7, 9)} | {(3, 3): 0.6, (3, 5): 0.35, (3, 7): 0.12, (3, 9): 0.12}


@pytest.mark.parametrize(("dims", "k"), WINDOWS)
def test_gaussian_rings_have_a_smaller_error_than_the_peers(dims, k):
    frequencies = Frequencies(dims, k)
    assert frequencies.error(frequencies.gaussian()) <= LARGEST_SHARE[dims, k] * frequencies.error(
        frequencies.indexed()
    )


@pytest.mark.parametrize(
    ("dims", "k", "sre", "gmr"), [(2, 3, 0.0140, 0.0127), (2, 9, 0.0640, 0.0494), (3, 7, 0.0312, 0.0264)]
)
def test_the_measure_agrees_with_the_peers_known_errors(dims, k, sre, gmr):
    frequencies = Frequencies(dims, k)
    assert frequencies.error(frequencies.hard()) == pytest.approx(sre, rel=0.15)
    assert frequencies.error(frequencies.indexed()) == pytest.approx(gmr, rel=0.15)


def real_image():
    """A slice of a magnetic resonance image that matplotlib ships, 256 by 256."""
    with matplotlib.cbook.get_sample_data("s1045.ima.gz") as file:
        return np.frombuffer(file.read(), np.uint16).reshape(256, 256).astype(float)


def rotation_error(layer, image, degrees):
    """Relative change of a layer's output when a real image is rotated, inside the inscribed disc."""
    matrix = rotation_matrix(2, degrees)
    x = torch.as_tensor(image)[None, None]
    with torch.no_grad():
        rotated_first = layer(transform_image(x, matrix, order=5))
        rotated_last = transform_image(layer(x), matrix, order=5)
    disc = torch.as_tensor(inscribed_ball(tuple(n - 40 for n in x.shape[2:])))
    inner = (slice(None), slice(None), slice(20, -20), slice(20, -20))
    return float(((rotated_first - rotated_last)[inner] * disc).norm() / (rotated_last[inner] * disc).norm())


@pytest.mark.parametrize("k", [3, 5, 7, 9])
@pytest.mark.parametrize("degrees", [15, 30, 45])
@pytest.mark.parametrize(("blur", "largest_share"), [(1.2, 0.25), (0.0, 0.5)])
def test_a_real_image_confirms_it(k, degrees, blur, largest_share):
    """With the blur whose spectrum the measure is weighted by, and with the image as it is."""
    errors = {}
    for rings in ("gaussian", "indexed"):
        torch.manual_seed(0)
        layer = GMRConv2d(1, 8, k, padding=k // 2, bias=False, rings=rings, dtype=torch.float64)
        torch.nn.init.normal_(layer.weight)
        errors[rings] = rotation_error(layer, ndimage.gaussian_filter(real_image(), blur), degrees)
    assert errors["gaussian"] < largest_share * errors["indexed"]
