"""Radial bases: the functions of the radius of which a radial kernel is a weighted sum (design, section 1).

A basis is an array of shape ``(rings, shells)``: the value of each ring's function on each shell of a window.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from monai_gmr.symmetry.shells import UNITS_PER_SQUARED_VOXEL, Shells, kernel_shells

GAUSSIAN_SIGMA = 0.6
GAUSSIAN_MEAN_MARGIN = 1.75
GAUSSIAN_TAPER = 0.5
SIGMA_FLOOR = {"gaussian": 0.1, "indexed": 1e-3}


def default_num_rings(shells: Shells) -> int:
    """Number of rings of a window: ``k // 2 + 1`` for an odd window, never more than it has shells.

    Example:
        >>> from monai_gmr.symmetry import kernel_shells
        >>> [default_num_rings(kernel_shells((k, k))) for k in (1, 2, 3, 4, 5, 9)]
        [1, 1, 2, 3, 3, 5]
    """
    inside = int((shells.radii < shells.support).sum())
    return max(1, min(int(shells.support - 0.5) + 1, inside))


def initial_sigma(rings: str, shells: Shells, num_rings: int) -> float:
    """Width of a fresh Gaussian: voxels for "gaussian", ring indices for "indexed".

    For "indexed" it is ``k / (2 (rings - 1)) / 2.355`` (GMR-Conv 1.0.3), for "gaussian" the measured best (design, section 1).

    Example:
        >>> from monai_gmr.symmetry import kernel_shells
        >>> initial_sigma("gaussian", kernel_shells((5, 5)), 3), round(initial_sigma("indexed", kernel_shells((5, 5)), 3), 3)
        (0.6, 0.531)
    """
    if rings == "gaussian":
        return GAUSSIAN_SIGMA
    kernel_size = 2 * shells.support - 1
    return kernel_size / (2 * max(num_rings - 1, 1)) / 2.355


def ring_masks(shells: Shells, num_rings: int) -> np.ndarray:
    """Which ring of the peers each shell lies in: ``edges = linspace(0, k // 2 + 0.5, rings + 1)``.

    Args:
        shells: the window's shells.
        num_rings: number of rings R.

    Returns:
        boolean array of shape ``(R, shells)``; shells beyond the last edge are in no ring.

    Example:
        >>> from monai_gmr.symmetry import kernel_shells
        >>> ring_masks(kernel_shells((3, 3)), 2).astype(int).tolist()
        [[1, 0, 0], [0, 1, 1]]
    """
    edges = np.linspace(0, shells.support - 0.5, num_rings + 1)
    return (edges[:-1, None] <= shells.radii) & (shells.radii < edges[1:, None])


def square_ring_masks(kernel_size: Sequence[int], num_rings: int, steps: Sequence[float] | None = None) -> np.ndarray:
    """Which ring each shell lies in when the rings reach into the corners: ``edges = linspace(0, radius of the corners, rings)``.

    Args:
        kernel_size: window length along each axis.
        num_rings: number of rings R; the last one is the corners alone.
        steps: distance of neighbouring taps along each axis; default 1.

    Returns:
        boolean array of shape ``(R, shells)``, with each shell in one ring.

    Example:
        >>> square_ring_masks((5, 5), 4).astype(int).argmax(axis=0).tolist()
        [0, 1, 1, 2, 2, 3]
    """
    radii = kernel_shells(kernel_size, steps).radii
    edges = np.append(np.linspace(0, radii[-1], num_rings), np.inf)
    return (edges[:-1, None] <= radii) & (radii < edges[1:, None])


def positive_sigma(log_sigma: torch.Tensor, floor: float) -> torch.Tensor:
    """Widths from the parameter that is learned, ``floor + exp(log_sigma)``: positive, with a gradient that never dies.

    Args:
        log_sigma: shape ``(rings,)``; half precision is raised to float32.
        floor: smallest width (``SIGMA_FLOOR``: a Gaussian much narrower than the distance of shells underflows).

    Example:
        >>> positive_sigma(torch.zeros(1), floor=0.1)
        tensor([1.1000])
    """
    if log_sigma.dtype != torch.float64:
        log_sigma = log_sigma.to(torch.float32)
    return floor + torch.exp(log_sigma)


def gaussian_means(sigma: torch.Tensor, support: float, first: float, margin: float) -> torch.Tensor:
    """Means of the Gaussians in voxels, evenly from ``first`` to ``margin`` before the support, shape and dtype of ``sigma``.

    Example:
        >>> gaussian_means(torch.ones(3), 3.0, 0.0, 1.0)
        tensor([0., 1., 2.])
    """
    # not torch.linspace: the legacy ONNX exporter divides by 0 where it has one value, and a trace keeps its device
    steps = torch.ones_like(sigma).cumsum(0) - 1
    return first + (max(support - margin, first) - first) * steps / steps[-1].clamp_min(1)


def gaussian_basis(
    squared_radii: torch.Tensor,
    counts: torch.Tensor,
    sigma: torch.Tensor,
    support: float,
    mean: torch.Tensor | None = None,
    mean_margin: float = GAUSSIAN_MEAN_MARGIN,
    taper_width: float = GAUSSIAN_TAPER,
    unit: float = float(UNITS_PER_SQUARED_VOXEL),
    pi: float = math.pi,
) -> torch.Tensor:
    r"""Gaussians at the exact radii, tapered before the window ends and of unit norm over its taps.

    .. math::
        b_{rs} \propto \exp\left(-\frac{(\rho_s - \mu_r)^2}{2\sigma_r^2}\right)
        \sin^2\left(\frac{\pi}{2}\min\left(1, \frac{S - \rho_s}{0.5}\right)\right), \qquad \sum_s n_s b_{rs}^2 = 1

    with means from 0 to :math:`S - 1.75`, ``S`` the support, if nothing else is asked for. Every tap of radius below ``S`` lies in the
    window, so nothing is cut off anisotropically; the constants are the best of the search in ``tests/symmetry/test_fidelity.py``.

    Args:
        squared_radii: :attr:`Shells.squared_radii`, shape ``(shells,)``.
        counts: taps of each shell that count in the norm, shape ``(..., shells)``.
        sigma: widths in voxels, shape ``(rings,)``.
        support: :attr:`Shells.support` in voxels.
        mean: means in voxels, shape ``(..., rings)``; default :func:`gaussian_means` from 0 to ``mean_margin`` before the support.
        mean_margin: see ``mean``.
        taper_width: width of the taper in voxels.
        unit, pi: constants (``torch.jit.script`` takes them as arguments only).

    Returns:
        shape ``(..., rings, shells)``, dtype of ``sigma``.

    Example:
        >>> from monai_gmr.symmetry import kernel_shells
        >>> shells = kernel_shells((3, 3))
        >>> arrays = torch.as_tensor(shells.squared_radii), torch.as_tensor(shells.counts)
        >>> basis = gaussian_basis(*arrays, torch.tensor([0.6, 0.6]), shells.support)
        >>> (arrays[1] * basis**2).sum(-1).allclose(torch.ones(2))
        True
    """
    radii = (squared_radii.to(sigma.dtype) / unit).sqrt()
    if mean is None:
        mean = gaussian_means(sigma, support, 0.0, mean_margin)
    taper = torch.sin(0.5 * pi * ((support - radii) / taper_width).clamp(0.0, 1.0)) ** 2
    exponent = -0.5 * ((radii - mean.unsqueeze(-1)) / sigma[:, None]) ** 2
    exponent = exponent - exponent.max(dim=-1, keepdim=True)[0]
    basis = torch.exp(exponent) * taper
    norm = (counts.to(sigma.dtype).unsqueeze(-2) * basis * basis).sum(dim=-1, keepdim=True).sqrt()
    return basis / norm


def indexed_basis(masks: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    r"""Gaussians over the ring *index*, times the ring masks: what GMR-Conv 1.0.3 computes.

    .. math:: b = P\,M, \qquad P_{ml} = \exp\left(-\frac{(l - m)^2}{2 \sigma_m^2}\right) / (2.5066\,\sigma_m)

    Args:
        masks: :func:`ring_masks`, shape ``(rings, shells)``.
        sigma: widths in ring indices, shape ``(rings,)``.

    Returns:
        shape ``(rings, shells)``, dtype of ``sigma``.

    Example:
        >>> indexed_basis(torch.eye(2, dtype=torch.bool), torch.ones(2)).round(decimals=3)
        tensor([[0.3990, 0.2420],
                [0.2420, 0.3990]])
    """
    index = torch.arange(sigma.shape[0], dtype=sigma.dtype, device=sigma.device)
    mixture = torch.exp(-0.5 * ((index[None, :] - index[:, None]) / sigma[:, None]) ** 2)
    mixture = mixture / (2.5066 * sigma[:, None])
    return (mixture[:, :, None] * masks.to(sigma.dtype)[None]).sum(dim=1)
