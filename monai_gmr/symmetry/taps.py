"""Functions on the taps of a kernel window: shells of equal radius, radial bases and angular harmonics.

A radial basis is an array of shape ``(rings, shells)``: the value of each ring's function on each shell.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from monai_gmr.arguments import voxel_spacing
from monai_gmr.utils import ConfigurationError

UNITS_PER_SQUARED_VOXEL = 10**9
# integer that stands for 1 in int64 tables, which casts of a module do not change
TABLE_UNITS = 10**12
# its exponential is 0 even in float64
LOG_OF_ZERO = -1e6
GAUSSIAN_SIGMA = 0.6
GAUSSIAN_MEAN_MARGIN = 1.75
GAUSSIAN_TAPER = 0.5
# orders above 0: the first mean; distance of the last mean from the support, in 2D per order; the smallest last mean
ANGULAR_FIRST_MEAN = 1.0
ANGULAR_MEAN_MARGIN = 0.75
ANGULAR_MEAN_MARGINS_2D = {1: 0.9, 2: 1.1}
ANGULAR_LAST_MEAN = 1.25
# windows of three taps hold one profile of order 2 whose components agree, per dimension
ORDER_2_MEANS = {2: 0.75, 3: 0.88}
SIGMA_FLOOR = {"gaussian": 0.1, "indexed": 1e-3}
LARGEST_ORDER = 3


def in_units(values: np.ndarray) -> np.ndarray:
    """Values of tables in units of 1e-12, int64, so that casting a module to half precision does not round them.

    Example:
        >>> in_units(np.array([0.25])).tolist()
        [250000000000]
    """
    return (np.asarray(values) * TABLE_UNITS).round().astype(np.int64)


class Shells(NamedTuple):
    """The taps of a window sorted by their radius, in voxels; a voxel is the finest step between taps.

    ``tap_shell``: the shell of each tap, of the window's shape, 0 the innermost; ``squared_radii``: one per shell, integers in units of
    1e-9 squared voxels, so that equal radii compare equal; ``support``: radius of the first tap outside the window along a finest axis, at
    least one voxel beyond the innermost shell.
    """

    tap_shell: np.ndarray
    squared_radii: np.ndarray
    support: float

    @property
    def radii(self) -> np.ndarray:
        """Radius of each shell, float64."""
        return np.sqrt(self.squared_radii / UNITS_PER_SQUARED_VOXEL)

    @property
    def counts(self) -> np.ndarray:
        """Number of taps on each shell."""
        return np.bincount(self.tap_shell.ravel(), minlength=len(self.squared_radii))


def _finest(kernel_size: Sequence[int], steps: Sequence[float]) -> float:
    """The smallest step along an axis that has more than one tap."""
    return min([step for step, k in zip(steps, kernel_size) if k > 1], default=min(steps))


def tap_spacing(
    kernel_size: Sequence[int], spacing: Sequence[float] | None = None, dilation: Sequence[int] | None = None
) -> tuple[float, ...]:
    """Distance of neighbouring taps along each axis, in units of the smallest one among axes with several taps.

    ``spacing`` is the voxel size in millimetres and ``dilation`` the distance of taps in voxels, one per axis, by default 1. Raises
    :class:`~monai_gmr.utils.ConfigurationError` if a spacing is not positive or the lengths do not match.

    Example:
        >>> tap_spacing((3, 3, 3), spacing=(0.5, 0.5, 1.5)), tap_spacing((3, 3), dilation=(1, 2))
        ((1.0, 1.0, 3.0), (1.0, 2.0))
    """
    dims = len(kernel_size)
    dilation = (1,) * dims if dilation is None else tuple(dilation)
    steps = [s * d for s, d in zip(voxel_spacing(spacing, dims), dilation)]
    finest = _finest(kernel_size, steps)
    return tuple(round(step / finest, 6) for step in steps)


def tap_coordinates(kernel_size: Sequence[int], steps: Sequence[float] | None = None) -> np.ndarray:
    """Coordinates of the taps of a window, ``steps`` apart, relative to its centre ``(k - 1) / 2``, shape ``(*kernel_size, d)``.

    Example:
        >>> tap_coordinates((2,)).ravel().tolist(), tap_coordinates((3,)).ravel().tolist()
        ([-0.5, 0.5], [-1.0, 0.0, 1.0])
    """
    steps = (1.0,) * len(kernel_size) if steps is None else steps
    axes = [(np.arange(k) - (k - 1) / 2) * s for k, s in zip(kernel_size, steps)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


def kernel_shells(kernel_size: Sequence[int], steps: Sequence[float] | None = None) -> Shells:
    """The taps of a window, of odd or even lengths and ``steps`` apart (:func:`tap_spacing`; default 1), sorted into :class:`Shells`.

    Example:
        >>> shells = kernel_shells((3, 3))
        >>> shells.radii.round(3).tolist(), shells.counts.tolist(), shells.support
        ([0.0, 1.0, 1.414], [1, 4, 4], 2.0)
    """
    steps = (1.0,) * len(kernel_size) if steps is None else tuple(steps)
    if any(k < 1 for k in kernel_size):
        raise ConfigurationError(f"kernel_size={tuple(kernel_size)} is impossible: every length must be at least 1.")
    squared = (tap_coordinates(kernel_size, steps) ** 2).sum(-1)
    keys, index = np.unique(np.round(squared * UNITS_PER_SQUARED_VOXEL).astype(np.int64), return_inverse=True)
    finest = _finest(kernel_size, steps)
    support = max((k + 1) / 2 * s for k, s in zip(kernel_size, steps) if s == finest)
    support = max(support, float(np.sqrt(keys[0] / UNITS_PER_SQUARED_VOXEL)) + 1)
    return Shells(index.reshape(tuple(kernel_size)), keys, support)


def default_num_rings(shells: Shells) -> int:
    """Number of rings of a window: ``k // 2 + 1`` for an odd window, at most its number of shells.

    Example:
        >>> [default_num_rings(kernel_shells((k, k))) for k in (1, 2, 3, 4, 5, 9)]
        [1, 1, 2, 3, 3, 5]
    """
    inside = int((shells.radii < shells.support).sum())
    return max(1, min(int(shells.support - 0.5) + 1, inside))


def initial_sigma(rings: str, shells: Shells, num_rings: int) -> float:
    """Initial width of a Gaussian: in voxels for "gaussian" (``tests/measurements/fidelity.py``), in ring indices for "indexed".

    The latter is that of GMR-Conv 1.0.3, ``k / (2 (rings - 1)) / 2.355``.

    Example:
        >>> initial_sigma("gaussian", kernel_shells((5, 5)), 3), round(initial_sigma("indexed", kernel_shells((5, 5)), 3), 3)
        (0.6, 0.531)
    """
    if rings == "gaussian":
        return GAUSSIAN_SIGMA
    return (2 * shells.support - 1) / (2 * max(num_rings - 1, 1)) / 2.355


def ring_masks(shells: Shells, num_rings: int) -> np.ndarray:
    """Masks of the shells in each ring of GMR-Conv and SRE-Conv, boolean ``(rings, shells)``.

    ``edges = linspace(0, k // 2 + 0.5, rings + 1)``; shells beyond the last edge are in no ring.

    Example:
        >>> ring_masks(kernel_shells((3, 3)), 2).astype(int).tolist()
        [[1, 0, 0], [0, 1, 1]]
    """
    edges = np.linspace(0, shells.support - 0.5, num_rings + 1)
    return (edges[:-1, None] <= shells.radii) & (shells.radii < edges[1:, None])


def square_ring_masks(shells: Shells, num_rings: int) -> np.ndarray:
    """:func:`ring_masks` with rings that reach into the corners, which are the last ring:
    ``edges = linspace(0, radius of the corners, rings)``.

    Example:
        >>> square_ring_masks(kernel_shells((5, 5)), 4).astype(int).argmax(axis=0).tolist()
        [0, 1, 1, 2, 2, 3]
    """
    edges = np.append(np.linspace(0, shells.radii[-1], num_rings), np.inf)
    return (edges[:-1, None] <= shells.radii) & (shells.radii < edges[1:, None])


def positive_sigma(log_sigma: torch.Tensor, floor: float) -> torch.Tensor:
    """Widths ``floor + exp(log_sigma)`` of the learned parameter, at least float32: positive, with a gradient that never vanishes.

    Example:
        >>> positive_sigma(torch.zeros(1), floor=0.1)
        tensor([1.1000])
    """
    if log_sigma.dtype != torch.float64:
        log_sigma = log_sigma.to(torch.float32)
    return floor + torch.exp(log_sigma)


def gaussian_means(
    num_rings: int, support: float, first: float = 0.0, margin: float = GAUSSIAN_MEAN_MARGIN
) -> np.ndarray:
    """Means of the Gaussians in voxels, evenly spaced from ``first`` to ``margin`` before the support, shape ``(rings,)``.

    Example:
        >>> gaussian_means(3, 3.0, 0.0, 1.0).tolist()
        [0.0, 1.0, 2.0]
    """
    return np.linspace(first, max(support - margin, first), num_rings)


def mean_range(order: int, kernel_size: Sequence[int], steps: Sequence[float], support: float) -> tuple[float, float]:
    """``first`` and ``margin`` of :func:`gaussian_means` for the Gaussians of an order, in voxels.

    Orders above 0 begin a voxel from the centre, where harmonics are 0, and end before taps are missing in some directions, so that the
    components of an order respond alike (``tests/measurements/fidelity.py``). In windows of three taps all Gaussians of order 2 have the
    same mean, chosen so that the value on the corners is half of that on the faces, as in second derivatives; they differ by their learned
    widths.

    Example:
        >>> [mean_range(order, (3, 3), (1.0, 1.0), 2.0) for order in (0, 1, 2)]
        [(0.0, 1.75), (1.0, 0.75), (0.75, 1.25)]
    """
    dims, isotropic = len(kernel_size), max(steps) == min(steps)
    if order == 0:
        return 0.0, GAUSSIAN_MEAN_MARGIN
    if order == 2 and isotropic and max(kernel_size) == min(kernel_size) == 3:
        return ORDER_2_MEANS[dims], support - ORDER_2_MEANS[dims]
    margin = ANGULAR_MEAN_MARGIN
    if dims == 2 and isotropic:
        margin = ANGULAR_MEAN_MARGINS_2D.get(order, margin)
    return ANGULAR_FIRST_MEAN, min(margin, support - ANGULAR_LAST_MEAN)


def order_means(
    orders: Sequence[int], kernel_size: Sequence[int], steps: Sequence[float], support: float, num_rings: int
) -> np.ndarray:
    """:func:`gaussian_means` of each order in its :func:`mean_range`, shape ``(orders, rings)``.

    Example:
        >>> order_means((0, 1), (5, 5), (1.0, 1.0), 3.0, 2).round(3).tolist()
        [[0.0, 1.25], [1.0, 2.1]]
    """
    ranges = [mean_range(order, kernel_size, steps, support) for order in orders]
    return np.stack([gaussian_means(num_rings, support, *each) for each in ranges])


def away_from_centre(radii: np.ndarray, orders: Sequence[int]) -> np.ndarray:
    """Mask of the shells on which functions of each order are not 0, boolean ``(orders, shells)``: harmonics above order 0 are 0 at the
    centre.

    Example:
        >>> away_from_centre(np.array([0.0, 1.0]), orders=(0, 1)).tolist()
        [[True, True], [False, True]]
    """
    return (np.asarray(orders)[:, None] == 0) | (radii > 0)


def gaussian_tables(
    radii: np.ndarray,
    counts: np.ndarray,
    support: float,
    means: np.ndarray,
    orders: Sequence[int],
    taper_width: float = GAUSSIAN_TAPER,
) -> np.ndarray:
    """Tables of a window for :func:`gaussian_basis`, as integers in units of 1e-12, which casts do not change.

    Args:
        radii: radii of the shells, in voxels.
        counts: number of taps of each shell.
        support: ``support`` of :class:`Shells`.
        means: means of the Gaussians of each order, in voxels, shape ``(orders, rings)``.
        orders: orders of the harmonics (:func:`away_from_centre`).
        taper_width: width of the taper in voxels.

    Returns:
        ``(orders, rings + 2, shells)``: squared distances of the shells from each mean, in squared voxels; then ``log(n t^2)`` of the
        number ``n`` of taps and the taper ``t``, -1e6 if ``n t^2`` is 0; then ``-log(n) / 2``.

    Example:
        >>> radii, counts = np.array([0.0, 1.75, 2.0]), np.array([1, 4, 4])
        >>> tables = gaussian_tables(radii, counts, 2.0, np.array([[0.0], [1.0]]), orders=(0, 1))
        >>> (tables[1] / TABLE_UNITS).round(3).tolist()
        [[0.0, 0.562, 0.0], [-1000000.0, 0.0, -1000000.0], [0.0, -0.693, -0.693]]
    """
    tapers = np.sin(np.pi / 2 * np.clip((support - radii) / taper_width, 0, 1)) ** 2 * away_from_centre(radii, orders)
    # shells without taps in this window have a value, too, but do not contribute to the norm
    taps = np.maximum(counts, 1 / TABLE_UNITS) * np.ones_like(tapers)
    inside = tapers >= 1 / TABLE_UNITS
    # far shells of coarse axes would overflow int64
    squares = np.where(inside[:, None], (radii - means[..., None]) ** 2, 0.0)
    weights = np.where(inside, np.log(taps * np.where(inside, tapers, 1.0) ** 2), LOG_OF_ZERO)
    return in_units(np.concatenate([squares, weights[:, None], -0.5 * np.log(taps)[:, None]], axis=1))


def gaussian_basis(tables: torch.Tensor, sigma: torch.Tensor, units: float) -> torch.Tensor:
    r"""Gaussians at the exact radii, tapered towards the end of the window, with unit norm over its taps, shape ``(..., rings, shells)``.

    .. math::
        b_{rs} \propto t_s \exp\left(-\frac{(\rho_s - \mu_r)^2}{2\sigma_r^2}\right), \qquad
        t_s = \sin^2\left(\frac{\pi}{2}\min\left(1, \frac{S - \rho_s}{0.5}\right)\right), \qquad \sum_s n_s b_{rs}^2 = 1

    Their squares times the numbers of taps are a softmax over the shells, which needs few operations and is never 0 / 0:

    .. math::
        n_s b_{rs}^2 = \mathrm{softmax}_s\left(\log(n_s t_s^2) - \frac{(\rho_s - \mu_r)^2}{\sigma_r^2}\right)

    Args:
        tables: tables of :func:`gaussian_tables`, for all orders or one.
        sigma: widths in voxels, shape ``(rings,)``.
        units: those of the tables, ``TABLE_UNITS``.

    Example:
        >>> shells = kernel_shells((3, 3))
        >>> means = gaussian_means(2, shells.support)[None]
        >>> tables = gaussian_tables(shells.radii, shells.counts, shells.support, means, orders=(0,))
        >>> basis = gaussian_basis(torch.as_tensor(tables[0]), torch.tensor([0.6, 0.6]), TABLE_UNITS)
        >>> (torch.as_tensor(shells.counts) * basis**2).sum(-1).allclose(torch.ones(2))
        True
    """
    rings = sigma.shape[0]
    values = tables.to(sigma.dtype) * (1.0 / units)
    squares, weights, roots = values.split([rings, 1, 1], dim=-2)
    exponent = torch.addcmul(weights, squares, sigma.pow(-2).unsqueeze(-1), value=-1.0)
    # the logarithm of a root is half the logarithm of its square
    return torch.add(roots, torch.log_softmax(exponent, dim=-1), alpha=0.5).exp()


def indexed_basis(masks: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    r"""Gaussians over the ring *index*, of widths ``sigma`` ``(rings,)``, times :func:`ring_masks`, as in GMR-Conv 1.0.3;
    ``(rings, shells)``.

    .. math:: b = P\,M, \qquad P_{ml} = \exp\left(-\frac{(l - m)^2}{2 \sigma_m^2}\right) / (2.5066\,\sigma_m)

    Example:
        >>> indexed_basis(torch.eye(2, dtype=torch.bool), torch.ones(2)).round(decimals=3)
        tensor([[0.3990, 0.2420],
                [0.2420, 0.3990]])
    """
    index = torch.arange(sigma.shape[0], dtype=sigma.dtype, device=sigma.device)
    mixture = torch.exp(-0.5 * ((index[None, :] - index[:, None]) / sigma[:, None]) ** 2) / (2.5066 * sigma[:, None])
    return (mixture[:, :, None] * masks.to(sigma.dtype)[None]).sum(dim=1)


def number_of_components(spatial_dims: int, order: int) -> int:
    """Number of real harmonics of an order: 1 for order 0, else 1 in 1D, 2 in 2D, ``2 * order + 1`` in 3D.

    Raises :class:`~monai_gmr.utils.ConfigurationError` unless the order is 0 to 3; in 1D 0 (even) or 1 (odd).

    Example:
        >>> [number_of_components(d, 1) for d in (1, 2, 3)], number_of_components(3, 2)
        ([1, 2, 3], 5)
    """
    largest = 1 if spatial_dims == 1 else LARGEST_ORDER
    if order not in range(largest + 1):
        raise ConfigurationError(f"order {order} is impossible in {spatial_dims}D: use 0 to {largest}.")
    return 1 if order == 0 else {1: 1, 2: 2, 3: 2 * order + 1}[spatial_dims]


def real_harmonics(coordinates: np.ndarray, order: int) -> np.ndarray:
    """Real harmonics ``(components, ...)`` in the directions of points ``(..., d)``, with mean square 1 over all directions, float64.

    An element of O(d) mixes the components of an order by an orthogonal matrix, so their Euclidean norm does not change. At the centre,
    which has no direction, they are 0 (order 0: 1). Source: spherical harmonics by ``scipy.special.sph_harm_y``.

    Example:
        >>> real_harmonics(np.array([[0.0, 2.0], [1.0, 0.0], [0.0, 0.0]]), 1).round(3) + 0.0
        array([[0.   , 1.414, 0.   ],
               [1.414, 0.   , 0.   ]])
    """
    from scipy.special import sph_harm_y

    dims, radius = coordinates.shape[-1], np.linalg.norm(coordinates, axis=-1)
    number_of_components(dims, order)  # raises for impossible orders
    if order == 0:
        return np.ones((1, *radius.shape))
    azimuth = np.arctan2(coordinates[..., 1 % dims], coordinates[..., 0])
    if dims == 1:
        values = np.sign(coordinates[..., 0])[None]
    elif dims == 2:
        values = np.sqrt(2) * np.stack([np.cos(order * azimuth), np.sin(order * azimuth)])
    else:
        polar = np.arccos(np.clip(coordinates[..., 2] / np.where(radius > 0, radius, 1), -1, 1))
        first, *waves = [sph_harm_y(order, m, polar, azimuth) for m in range(order + 1)]
        parts = [wave.real for wave in waves] + [wave.imag for wave in waves]
        values = np.stack([first.real, *(np.sqrt(2) * part for part in parts)]) * np.sqrt(4 * np.pi)
    return np.where(radius > 0, values, 0.0)


def tap_harmonics(kernel_size: Sequence[int], steps: Sequence[float] | None, order: int) -> np.ndarray:
    """:func:`real_harmonics` on the taps of a window (:func:`tap_coordinates`), shape ``(components, taps)``.

    Example:
        >>> tap_harmonics((3, 3), None, 2).shape
        (2, 9)
    """
    return real_harmonics(tap_coordinates(kernel_size, steps).reshape(-1, len(kernel_size)), order)
