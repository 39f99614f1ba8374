"""The error of a kernel at angles other than the grid's, in frequency space: the measurement behind the default basis.

``python tests/measurements/fidelity.py`` prints the error of every basis and searches sigma, mean and taper.
"""

import itertools

import numpy as np
import torch

from monai_gmr.symmetry import (
    default_num_rings,
    gaussian_basis,
    indexed_basis,
    initial_sigma,
    kernel_shells,
    ring_masks,
    tap_coordinates,
)

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
