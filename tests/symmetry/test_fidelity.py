"""Between the angles of the grid, the default basis has a smaller error than the peers' bases."""

import matplotlib.cbook
import numpy as np
import pytest
import torch
from fidelity import WINDOWS, Frequencies, angular_error, order_functions
from scipy import ndimage

from monai_gmr.networks.layers import GMRConv2d, GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.symmetry import (
    gaussian_means,
    gaussian_tables,
    inscribed_ball,
    kernel_shells,
    rotation_matrix,
    tap_harmonics,
    transform_image,
)

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
    """The middle of a slice of a magnetic resonance image from matplotlib, 160 by 160."""
    with matplotlib.cbook.get_sample_data("s1045.ima.gz") as file:
        return np.frombuffer(file.read(), np.uint16).reshape(256, 256)[48:-48, 48:-48].astype(float)


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
    """With the blur whose spectrum weights the measure, and with the image as it is."""
    errors = {}
    for rings in ("gaussian", "indexed"):
        torch.manual_seed(0)
        layer = GMRConv2d(1, 8, k, padding=k // 2, bias=False, rings=rings, dtype=torch.float64)
        torch.nn.init.normal_(layer.weight)
        errors[rings] = rotation_error(layer, ndimage.gaussian_filter(real_image(), blur), degrees)
    assert errors["gaussian"] < largest_share * errors["indexed"]


LAYERS = {2: GMRHarmonicConv2d, 3: GMRHarmonicConv3d}
# former means of the orders above 0: from 1 to S - .75
EARLIER = (1.0, 0.75)


def use_earlier_means(layer):
    ranges = [EARLIER if order else (0.0, 1.75) for order in layer.orders]
    means = np.stack([gaussian_means(layer.num_rings, layer.support, *each) for each in ranges])
    shells = kernel_shells(layer.kernel_size)
    tables = gaussian_tables(shells.radii, shells.counts, layer.support, means, layer.orders)
    layer.order_gaussians.copy_(torch.as_tensor(tables))


def test_the_angular_measure_is_that_of_second_derivatives():
    """Small derivatives are steerable: with b on the faces and b / 2 on the corners the error is least, and falls with the frequency."""
    harmonics, radii = tap_harmonics((3, 3), None, 2), kernel_shells((3, 3)).tap_shell.ravel()
    errors = {
        share: angular_error(harmonics[:, None] * np.array([0, 1, share])[radii], (3, 3), 2)
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    }
    assert min(errors, key=errors.get) == 0.5
    assert errors[0.0] == pytest.approx(2**-0.5, rel=1e-5)  # only one component: half of the power is missing
    assert errors[0.5] < 0.1 < 0.25 < errors[1.0]


@pytest.mark.parametrize(("k", "largest"), [(3, 0.06), (5, 0.02), (7, 0.02)])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("order", [1, 2])
def test_components_of_an_order_respond_alike_with_random_weights(dims, k, largest, order):
    layer = LAYERS[dims](2, 8, k, dtype=torch.float64)
    assert angular_error(order_functions(layer, order), (k,) * dims, order) <= largest


@pytest.mark.parametrize(
    ("dims", "k", "order", "known"), [(2, 3, 2, 0.228), (3, 3, 2, 0.130), (2, 5, 2, 0.029), (2, 7, 2, 0.049)]
)
def test_the_earlier_profiles_have_their_known_errors(dims, k, order, known):
    layer = LAYERS[dims](2, 8, k, dtype=torch.float64)
    use_earlier_means(layer)
    assert angular_error(order_functions(layer, order), (k,) * dims, order) == pytest.approx(known, abs=0.002)


def smooth_volume(dims, size):
    noise = np.random.default_rng(0).normal(size=(size,) * dims)
    return ndimage.gaussian_filter(noise, 1.2)


@pytest.mark.parametrize(("dims", "size", "k"), [(2, 128, 3), (2, 128, 5), (2, 128, 7), (3, 28, 3)])
@pytest.mark.parametrize("orders", [(0, 1), (0, 2), (0, 1, 2)])
def test_a_layer_is_no_worse_at_other_angles_than_with_the_earlier_profiles(dims, size, k, orders):
    """Only norms, without denominators near 0, at 30 and 45 degrees. In 3D only windows of three taps differ."""
    image, errors = torch.as_tensor(smooth_volume(dims, size))[None, None], {}
    ball = torch.as_tensor(inscribed_ball((size - 16,) * dims))
    inner = (slice(None), slice(None), *[slice(8, -8)] * dims)
    for name in ("now", "earlier"):
        torch.manual_seed(0)
        options = {"padding": k // 2, "orders": orders, "inner_products": False, "dtype": torch.float64}
        layer = LAYERS[dims](1, 32, k, **options)
        if name == "earlier":
            use_earlier_means(layer)
        angular = slice(layer.channels[0], None)
        changes = []
        for degrees in (30, 45):
            matrix = rotation_matrix(dims, degrees)
            with torch.no_grad():
                first = layer(transform_image(image, matrix, order=5))[:, angular]
                last = transform_image(layer(image)[:, angular], matrix, order=5)
            changes.append(float(((first - last)[inner] * ball).norm() / (last[inner] * ball).norm()))
        errors[name] = np.array(changes)
    assert (errors["now"] <= errors["earlier"] * 1.001).all(), errors
