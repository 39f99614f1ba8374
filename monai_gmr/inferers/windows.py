"""Positions of windows along an axis that mirror onto each other about its centre."""

from __future__ import annotations

from monai_gmr.utils import ConfigurationError


def symmetric_window_starts(size: int, window: int, interval: int) -> list[int]:
    """First voxels of windows that cover an axis and are their own mirror image: ``s`` is a start if and only if ``size - window - s`` is.

    As many windows as in MONAI, ``m = ceil(room / interval) + 1`` with ``room = size - window``; one more if ``m`` and ``room`` are both
    odd, because the middle window would start between two voxels. The first half start at ``i * room / (m - 1)``, rounded half up, the
    others are mirrored: neighbours are at most ``interval`` apart, so the axis is covered with at least the given overlap.

    Args:
        size: length of the axis in voxels.
        window: length of a window in voxels, at most ``size``.
        interval: largest distance of neighbouring starts in voxels, at most ``window`` to cover the axis.

    Raises:
        ConfigurationError: if the window is longer than the axis, or the interval is less than a voxel.

    Example:
        >>> symmetric_window_starts(50, 32, 24), symmetric_window_starts(65, 32, 24)
        ([0, 18], [0, 11, 22, 33])
        >>> symmetric_window_starts(66, 32, 24)
        [0, 17, 34]
    """
    if not 1 <= window <= size:
        raise ConfigurationError(f"A window of {window} voxels does not fit an axis of {size}: use 1 to {size}.")
    if interval < 1:
        raise ConfigurationError(f"interval={interval} is not a step: use 1 voxel or more.")
    room = size - window
    gaps = -(-room // interval)
    if room % 2 == 1 and gaps % 2 == 0:
        gaps += 1
    first = [(2 * i * room + gaps) // (2 * gaps) for i in range((gaps + 1) // 2)]
    # with an even number of gaps there is a middle window, whose start is an integer
    middle = [room // 2] if gaps % 2 == 0 else []
    return first + middle + [room - start for start in reversed(first)]


def window_placements(start: int, size: int, window: int, out_size: int, out_window: int) -> list[tuple[int, float]]:
    """Positions of the output of a window on an output axis of another resolution, about the common centre.

    Args:
        start: first voxel of the window in the image.
        size: length of the image's axis in voxels.
        window: length of the window in voxels.
        out_size: length of the output's axis in voxels of the output, ``size * out_window // window``.
        out_window: length of the window's output in voxels of the output.

    Returns:
        first voxel and weight; two of weight 0.5 for a position halfway between two voxels, because neither is its own mirror image.

    Example:
        >>> window_placements(4, 12, 8, 6, 4), window_placements(2, 12, 8, 6, 4), window_placements(3, 12, 8, 6, 4)
        ([(2, 1.0)], [(1, 1.0)], [(1, 0.5), (2, 0.5)])
    """
    # twice the position is an integer in units of 1 / window, so rounding errors cannot decide a tie
    numerator = (out_size - out_window) * window + (2 * start - (size - window)) * out_window
    place, rest = divmod(numerator, 2 * window)
    if rest == window:
        return [(place, 0.5), (place + 1, 0.5)]
    return [(place + (rest > window), 1.0)]
