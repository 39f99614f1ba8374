"""The error of a kernel at angles other than the grid's, in frequency space: the measurement behind the default basis.

``python tests/measurements/fidelity.py`` prints the error of every basis, searches sigma, mean and taper, and prints the errors of the
orders above 0.
"""

import itertools

import numpy as np
import torch

from monai_gmr.symmetry import (
    default_num_rings,
    gaussian_basis,
    gaussian_means,
    gaussian_tables,
    indexed_basis,
    initial_sigma,
    kernel_shells,
    real_harmonics,
    ring_masks,
    tap_coordinates,
)
from monai_gmr.symmetry.taps import GAUSSIAN_MEAN_MARGIN, GAUSSIAN_TAPER, TABLE_UNITS

WINDOWS = [(dims, k) for dims in (2, 3) for k in (3, 5, 7, 9)]


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

    def gaussian(self, width=None, mean_margin=GAUSSIAN_MEAN_MARGIN, taper_width=GAUSSIAN_TAPER):
        rings = default_num_rings(self.shells)
        sigma = torch.full((rings,), width or initial_sigma("gaussian", self.shells, rings), dtype=torch.float64)
        radii, counts, support = self.shells.radii, self.shells.counts, self.shells.support
        means = gaussian_means(rings, support, margin=mean_margin)[None]
        tables = gaussian_tables(radii, counts, support, means, (0,), taper_width)
        return gaussian_basis(torch.as_tensor(tables[0]), sigma, TABLE_UNITS).numpy()

    def indexed(self):
        rings = default_num_rings(self.shells)
        sigma = torch.full((rings,), initial_sigma("indexed", self.shells, rings), dtype=torch.float64)
        return indexed_basis(torch.as_tensor(ring_masks(self.shells, rings)), sigma).numpy()

    def hard(self):
        return ring_masks(self.shells, default_num_rings(self.shells)).astype(float)


def directions(dims, count=400):
    """Unit vectors spread evenly over the circle or, by a golden spiral, over the sphere."""
    angle = (np.arange(count) + 0.5) * 2 * np.pi / count
    if dims == 2:
        return np.stack([np.cos(angle), np.sin(angle)], -1)
    polar, azimuth = np.arccos(1 - angle / np.pi), np.pi * (1 + 5**0.5) * np.arange(count)
    return np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], -1)


def angular_error(functions, kernel_size, order, steps=None):
    """How far functions on taps ``(components, rings, taps)`` of an order are, with random weights, from responding alike.

    ``sqrt(E |K_m(w) - h(|w|) Y_m(w / |w|)|^2 / E |K_m(w)|^2)``, h the best, for images of spectrum ``exp(-(1.2 |w|)^2)``.
    """
    taps = tap_coordinates(kernel_size, steps).reshape(-1, len(kernel_size))
    ways = directions(len(kernel_size))
    harmonics = real_harmonics(ways, order)
    size = wrong = 0.0
    for radius in (np.arange(40) + 0.5) * np.pi / 40:
        transforms = np.einsum("mrt,ut->mru", functions, np.exp(-1j * radius * ways @ taps.T))
        alike = np.einsum("mru,mu->r", transforms, harmonics) / harmonics.size
        weight = radius ** (len(kernel_size) - 1) * np.exp(-((1.2 * radius) ** 2))
        size += weight * (abs(transforms) ** 2).sum()
        wrong += weight * (abs(transforms - alike[:, None] * harmonics[:, None]) ** 2).sum()
    return (wrong / size) ** 0.5


def order_functions(layer, order):
    """The functions on taps of one order of a harmonic layer."""
    return layer.tap_basis().detach().double().split(layer.components)[layer.orders.index(order)].numpy()


if __name__ == "__main__":
    from monai_gmr.networks.layers import GMRHarmonicConv2d, GMRHarmonicConv3d

    for dims, k, order in itertools.product((2, 3), (3, 4, 5, 6, 7, 9), (1, 2, 3)):
        layer = {2: GMRHarmonicConv2d, 3: GMRHarmonicConv3d}[dims](1, 4, k, orders=(0, order), dtype=torch.float64)
        error = angular_error(order_functions(layer, order), (k,) * dims, order)
        print(f"{dims}D k={k}: order {order} {error:.4f}")
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
