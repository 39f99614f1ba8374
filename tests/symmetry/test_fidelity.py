"""What a kernel does wrong at angles other than the grid's, in frequency space: the measurement behind the default basis.

``python tests/symmetry/test_fidelity.py`` prints the error of every basis and searches sigma, mean and taper (design, section 1).
"""

import itertools

import matplotlib.cbook
import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_gmr.networks.layers import GMRConv2d
from monai_gmr.symmetry import (
    default_num_rings,
    gaussian_basis,
    indexed_basis,
    initial_sigma,
    inscribed_ball,
    kernel_shells,
    ring_masks,
    rotation_matrix,
    tap_coordinates,
    transform_image,
)

WINDOWS = [(dims, k) for dims in (2, 3) for k in (3, 5, 7, 9)]
LARGEST_SHARE = {(2, k): 0.25 for k in (3, 5, 7, 9)} | {(3, 3): 0.6, (3, 5): 0.35, (3, 7): 0.12, (3, 9): 0.12}


class Frequencies:
    """Fourier transforms of the shells of a window at 40 radii and 60 random directions."""

    def __init__(self, dims, k):
        self.shells = kernel_shells((k,) * dims)
        taps = tap_coordinates((k,) * dims).reshape(-1, dims)
        radii = np.linspace(0, np.pi, 41)[1:]
        directions = np.random.default_rng(0).normal(size=(60, dims))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        waves = np.cos(np.einsum("w,nd,td->wnt", radii, directions, taps))
        members = self.shells.tap_shell.ravel() == np.arange(len(self.shells.radii))[:, None]
        self.transforms = np.einsum("wnt,st->swn", waves, members)
        self.weight = radii ** (dims - 1) * np.exp(-((1.2 * radii) ** 2))

    def error(self, basis):
        """``sqrt(E |K(w) - K(R w)|^2 / E |K|^2)`` for random weights on basis functions of unit norm."""
        basis = basis / np.sqrt((basis**2 * self.shells.counts).sum(1, keepdims=True))
        kernels = np.einsum("rs,swn->rwn", basis, self.transforms)
        change = 2 * kernels.var(axis=2, ddof=1).sum(0)
        return np.sqrt((change * self.weight).sum() / ((kernels**2).mean(2).sum(0) * self.weight).sum())

    def gaussian(self, width=None, **constants):
        rings = default_num_rings(self.shells)
        sigma = torch.full((rings,), width or initial_sigma("gaussian", self.shells, rings), dtype=torch.float64)
        arrays = torch.as_tensor(self.shells.squared_radii), torch.as_tensor(self.shells.counts)
        return gaussian_basis(*arrays, sigma, self.shells.support, **constants).numpy()

    def indexed(self):
        rings = default_num_rings(self.shells)
        sigma = torch.full((rings,), initial_sigma("indexed", self.shells, rings), dtype=torch.float64)
        return indexed_basis(torch.as_tensor(ring_masks(self.shells, rings)), sigma).numpy()

    def hard(self):
        return ring_masks(self.shells, default_num_rings(self.shells)).astype(float)


@pytest.mark.parametrize(("dims", "k"), WINDOWS)
def test_gaussian_rings_rotate_better_than_the_peers(dims, k):
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


if __name__ == "__main__":
    for dims, k in WINDOWS:
        frequencies = Frequencies(dims, k)
        found = sorted(
            (
                frequencies.error(frequencies.gaussian(width, mean_margin=margin, taper_width=taper)),
                width,
                margin,
                taper,
            )
            for width, margin, taper in itertools.product(
                (0.5, 0.55, 0.6, 0.65, 0.7), (1.25, 1.5, 1.75, 2), (0.01, 0.5, 0.75, 1, 1.5)
            )
        )
        best = "error {:.4f} at sigma {}, mean margin {}, taper {}".format(*found[0])
        values = [
            frequencies.error(basis) for basis in (frequencies.hard(), frequencies.indexed(), frequencies.gaussian())
        ]
        print(f"{dims}D k={k}: hard {values[0]:.4f}, indexed {values[1]:.4f}, gaussian {values[2]:.4f}; best {best}")
