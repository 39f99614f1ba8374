"""Taps of a kernel window and the shells of equal radius that they form (design, section 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from monai_gmr.utils import ConfigurationError

UNITS_PER_SQUARED_VOXEL = 10**9


class Shells(NamedTuple):
    """The taps of a window sorted by their radius.

    Attributes:
        tap_shell: integer array of the window's shape, the shell of each tap; shell 0 is the innermost.
        squared_radii: integer array of shape ``(shells,)``: squared radius in units of 1e-9 squared voxels, so that equal radii
            are equal numbers; "voxel" is the finest step between taps.
        support: radius, in voxels, at which the first tap outside the window along a finest axis would lie (and at least one
            voxel beyond the innermost shell).
    """

    tap_shell: np.ndarray
    squared_radii: np.ndarray
    support: float

    @property
    def radii(self) -> np.ndarray:
        """Radius of each shell in voxels, float64, shape ``(shells,)``."""
        return np.sqrt(self.squared_radii / UNITS_PER_SQUARED_VOXEL)

    @property
    def counts(self) -> np.ndarray:
        """Number of taps on each shell, shape ``(shells,)``."""
        return np.bincount(self.tap_shell.ravel(), minlength=len(self.squared_radii))


def tap_spacing(
    kernel_size: Sequence[int], spacing: Sequence[float] | None = None, dilation: Sequence[int] | None = None
) -> tuple[float, ...]:
    """Distance of neighbouring taps along each axis, in units of the finest one along which there are any.

    Args:
        kernel_size: window length along each axis.
        spacing: voxel size in millimetres, one an axis; default 1.
        dilation: distance of neighbouring taps in voxels, one an axis; default 1.

    Raises:
        ConfigurationError: when a spacing is not positive or the lengths do not fit.

    Example:
        >>> tap_spacing((3, 3, 3), spacing=(0.5, 0.5, 1.5)), tap_spacing((3, 3), dilation=(1, 2))
        ((1.0, 1.0, 3.0), (1.0, 2.0))
    """
    dims = len(kernel_size)
    spacing = (1.0,) * dims if spacing is None else tuple(float(s) for s in spacing)
    dilation = (1,) * dims if dilation is None else tuple(dilation)
    if len(spacing) != dims or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ConfigurationError(f"spacing={spacing} does not fit: give {dims} positive voxel sizes in millimetres.")
    steps = [s * d for s, d in zip(spacing, dilation)]
    finest = min([step for step, k in zip(steps, kernel_size) if k > 1], default=min(steps))
    return tuple(round(step / finest, 6) for step in steps)


def tap_coordinates(kernel_size: Sequence[int], steps: Sequence[float] | None = None) -> np.ndarray:
    """Coordinates of the taps of a window relative to its centre ``(k - 1) / 2``.

    Args:
        kernel_size: window length along each axis, odd or even.
        steps: distance of neighbouring taps along each axis; default 1.

    Returns:
        float64 array of shape ``(*kernel_size, d)``.

    Example:
        >>> tap_coordinates((2,)).ravel().tolist(), tap_coordinates((3,)).ravel().tolist()
        ([-0.5, 0.5], [-1.0, 0.0, 1.0])
    """
    steps = (1.0,) * len(kernel_size) if steps is None else steps
    axes = [(np.arange(k) - (k - 1) / 2) * s for k, s in zip(kernel_size, steps)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


def kernel_shells(kernel_size: Sequence[int], steps: Sequence[float] | None = None) -> Shells:
    """Sort the taps of a window into shells of equal radius.

    Args:
        kernel_size: window length along each axis, odd or even, not necessarily equal.
        steps: distance of neighbouring taps along each axis (:func:`tap_spacing`); default 1.

    Returns:
        the :class:`Shells`.

    Example:
        >>> shells = kernel_shells((3, 3))
        >>> shells.radii.round(3).tolist(), shells.counts.tolist(), shells.support
        ([0.0, 1.0, 1.414], [1, 4, 4], 2.0)
        >>> kernel_shells((2, 2)).radii.round(3).tolist()
        [0.707]
    """
    steps = (1.0,) * len(kernel_size) if steps is None else tuple(steps)
    if any(k < 1 for k in kernel_size):
        raise ConfigurationError(f"kernel_size={tuple(kernel_size)} is impossible: every length must be at least 1.")
    squared = (tap_coordinates(kernel_size, steps) ** 2).sum(-1)
    keys, index = np.unique(np.round(squared * UNITS_PER_SQUARED_VOXEL).astype(np.int64), return_inverse=True)
    finest = min([s for s, k in zip(steps, kernel_size) if k > 1], default=min(steps))
    support = max((k + 1) / 2 * s for k, s in zip(kernel_size, steps) if s == finest)
    support = max(support, float(np.sqrt(keys[0] / UNITS_PER_SQUARED_VOXEL)) + 1)
    return Shells(index.reshape(tuple(kernel_size)), keys, support)
