"""Circular and spherical harmonics on the taps of a window: the angular factors of a kernel (design, section 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monai_gmr.symmetry.shells import tap_coordinates
from monai_gmr.utils import ConfigurationError

LARGEST_ORDER = 3


def number_of_components(spatial_dims: int, order: int) -> int:
    """How many real harmonics of an order there are: 1, then 1 in 1D, 2 in 2D, ``2 * order + 1`` in 3D.

    Args:
        spatial_dims: 1, 2 or 3.
        order: 0 to 3; in 1D 0 (even) or 1 (odd).

    Raises:
        ConfigurationError: when there is no such order.

    Example:
        >>> [number_of_components(d, 1) for d in (1, 2, 3)], number_of_components(3, 2)
        ([1, 2, 3], 5)
    """
    largest = 1 if spatial_dims == 1 else LARGEST_ORDER
    if order not in range(largest + 1):
        raise ConfigurationError(f"order {order} is impossible in {spatial_dims}D: use 0 to {largest}.")
    return 1 if order == 0 else {1: 1, 2: 2, 3: 2 * order + 1}[spatial_dims]


def real_harmonics(coordinates: np.ndarray, order: int) -> np.ndarray:
    """Real harmonics of an order in the directions of some points, of mean square 1 over all directions.

    An element of O(d) mixes the components of an order among themselves by an orthogonal matrix, so the Euclidean norm over
    them does not change. At the centre, which has no direction, they are 0 (order 0: 1).

    Args:
        coordinates: points relative to the centre, shape ``(..., d)``.
        order: order of the harmonics.

    Returns:
        float64 array of shape ``(components, ...)``; the squares add up to the number of components away from the centre.

    Example:
        >>> real_harmonics(np.array([[0.0, 2.0], [1.0, 0.0], [0.0, 0.0]]), 1).round(3) + 0.0
        array([[0.   , 1.414, 0.   ],
               [1.414, 0.   , 0.   ]])

    Source:
        spherical harmonics by ``scipy.special.sph_harm_y``.
    """
    from scipy.special import sph_harm_y

    dims = coordinates.shape[-1]
    components = number_of_components(dims, order)
    radius = np.linalg.norm(coordinates, axis=-1)
    if order == 0:
        return np.ones((1, *radius.shape))
    if dims == 1:
        values = np.sign(coordinates[..., 0])[None]
    elif dims == 2:
        angle = np.arctan2(coordinates[..., 1], coordinates[..., 0])
        values = np.sqrt(2) * np.stack([np.cos(order * angle), np.sin(order * angle)])
    else:
        polar = np.arccos(np.clip(coordinates[..., 2] / np.where(radius > 0, radius, 1), -1, 1))
        azimuth = np.arctan2(coordinates[..., 1], coordinates[..., 0])
        waves = [sph_harm_y(order, m, polar, azimuth) for m in range(order + 1)]
        values = np.stack(
            [waves[0].real]
            + [np.sqrt(2) * wave.real for wave in waves[1:]]
            + [np.sqrt(2) * wave.imag for wave in waves[1:]]
        ) * np.sqrt(4 * np.pi)
    assert len(values) == components
    return np.where(radius > 0, values, 0.0)


def tap_harmonics(kernel_size: Sequence[int], steps: Sequence[float] | None, order: int) -> np.ndarray:
    """:func:`real_harmonics` on the taps of a window.

    Args:
        kernel_size: window length along each axis.
        steps: distance of neighbouring taps along each axis (:func:`~monai_gmr.symmetry.tap_spacing`), for the physical angles.
        order: order of the harmonics.

    Returns:
        float64 array of shape ``(components, taps)``.

    Example:
        >>> tap_harmonics((3, 3), None, 2).shape
        (2, 9)
    """
    coordinates = tap_coordinates(kernel_size, steps)
    return real_harmonics(coordinates.reshape(-1, len(kernel_size)), order)
