"""Strides, windows and paddings that keep the centre of the grid in place, along one axis.

``size`` is the length of the axis, ``stride`` the step and ``padding`` the added voxels; ``kernel_size`` is the number of taps of a window,
``dilation`` voxels apart.
"""

from __future__ import annotations

from monai_gmr.utils import ConfigurationError


def stride_is_exact(size: int, kernel_size: int, stride: int, padding: int = 0, dilation: int = 1) -> bool:
    """Whether a strided convolution or pooling, with ``padding`` at each end, commutes with mirroring this axis.

    This holds if and only if the last window ends where the padded axis ends.

    Example:
        >>> stride_is_exact(64, 3, 2, 1), stride_is_exact(65, 3, 2, 1), stride_is_exact(64, 2, 2)
        (False, True, True)
    """
    return (size + 2 * padding - dilation * (kernel_size - 1) - 1) % stride == 0


def symmetric_padding(size: int, kernel_size: int, stride: int = 1, dilation: int = 1) -> int:
    """Padding at each end, nearest to half the window's reach, that keeps a strided layer exact on an axis.

    Raises:
        ConfigurationError: if there is none, as for an odd window, stride 2 and an even size.

    Example:
        >>> symmetric_padding(65, 3, 2), symmetric_padding(64, 4, 2), symmetric_padding(64, 3, 3)
        (1, 1, 1)
    """
    reach = dilation * (kernel_size - 1)
    for step in range(2 * stride):
        padding = reach // 2 + ((step + 1) // 2 if step % 2 else -(step // 2))
        fits = padding >= 0 and size + 2 * padding > reach
        if fits and stride_is_exact(size, kernel_size, stride, padding, dilation):
            return padding
    raise ConfigurationError(
        f"no padding makes kernel_size={kernel_size}, stride={stride}, dilation={dilation} exact on an axis of {size}: "
        "change the parity of kernel_size, or put GMRDownsample behind a layer of stride 1."
    )


def centred_steps(size: int, kernel_size: int, stride: int, padding: int, dilation: int) -> tuple[int, int, int]:
    """:func:`centred_window` for an odd dilation, without branches, so that ``size`` can be symbolic in a graph.

    Returns the number of steps, the taps of the window beyond ``kernel_size`` (0 or 1), and the voxels to add at *each* end.
    """
    reach = dilation * (kernel_size - 1) + 1
    steps = (size + padding - reach) // stride + 1
    missing = (steps - 1) * stride + reach - size
    longer = missing % 2
    return steps, longer, (missing + longer * dilation) // 2


def centred_window(
    size: int, kernel_size: int, stride: int = 1, padding: int = 0, dilation: int = 1
) -> tuple[int, int]:
    """Window of ``kernel_size`` taps, or one more, whose strided steps are centred on an axis.

    It takes as many steps as a window of ``kernel_size`` with ``padding`` at *both ends together*. Returns its length in taps, and the
    voxels to add at *each* end (below 0: to crop).

    Raises:
        ConfigurationError: if the window is too long for the axis, or the dilation is even and the steps need another parity.

    Example:
        >>> centred_window(65, 3, 2, 2), centred_window(64, 3, 2, 2), centred_window(5, 2, 2)
        ((3, 1), (4, 1), (3, 0))
    """
    steps, longer, margin = centred_steps(size, kernel_size, stride, padding, dilation)
    if steps < 1:
        raise ConfigurationError(
            f"a window of {kernel_size} taps, dilation={dilation}, does not fit into {size} voxels and {padding} of padding: "
            "give a larger image."
        )
    if longer and dilation % 2 == 0:
        raise ConfigurationError(
            f"stride={stride} with dilation={dilation} has no window about the centre of {size} voxels: use an odd dilation."
        )
    return kernel_size + longer, margin


def transposed_padding(kernel_size: int, stride: int, dilation: int = 1) -> int:
    """Voxels to remove at each end so that a transposed layer makes an axis exactly ``stride`` times as long.

    Raises:
        ConfigurationError: if ``kernel_size`` and ``stride`` do not allow it.

    Example:
        >>> transposed_padding(2, 2), transposed_padding(4, 2), transposed_padding(3, 3)
        (0, 1, 0)
    """
    surplus = dilation * (kernel_size - 1) + 1 - stride
    if surplus < 0 or surplus % 2:
        raise ConfigurationError(
            f"a transposed layer with kernel_size={kernel_size}, stride={stride}, dilation={dilation} cannot make an "
            "axis exactly stride times as long: use a kernel_size of at least the stride and of its parity."
        )
    return surplus // 2
