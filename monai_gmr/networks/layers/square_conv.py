"""Radial kernels whose rings reach into the corners of the window, as those of GMR-Conv's U-Net do."""

from collections.abc import Sequence

import numpy as np
from torch.nn.modules.utils import _ntuple

from monai_gmr.networks.layers.gmr_conv import GMRConv2d, GMRConv3d
from monai_gmr.networks.layers.ring_conv import RingConvNd
from monai_gmr.symmetry import default_num_rings, kernel_shells, square_ring_masks
from monai_gmr.utils import ConfigurationError

SQUARE_RINGS = {"indexed_square": "indexed", "hard_square": "hard"}


def _default_square_rings(spatial_dims: int, kernel_size: int | Sequence[int], num_rings: int | None) -> int:
    if num_rings is None:
        return default_num_rings(kernel_shells(_ntuple(spatial_dims)(kernel_size))) + 1
    if num_rings < 2:
        raise ConfigurationError(f"num_rings={num_rings} is impossible: use at least 2, the last is the corners.")
    return num_rings


def _square_masks(layer: RingConvNd, steps: Sequence[float]) -> dict[str, np.ndarray]:
    """The masks of square rings, for the place of the round ones."""
    masks = square_ring_masks(layer.kernel_size, layer.num_rings, steps)
    layer.num_shells = masks.shape[1]
    return {"masks": masks}


class GMRSquareConv2d(GMRConv2d):
    """:class:`GMRConv2d` with "indexed" or "hard" rings that reach into the corners of the window.

    As exactly equivariant as round kernels, but farther off at angles other than the grid's; it is here for the checkpoints of
    GMR-Conv's U-Net, whose default it is (``force_circular=False``). The arguments are those of :class:`GMRConv2d`.

    Args:
        rings: "indexed" or "hard".
        num_rings: number of rings, the corners included; default ``k // 2 + 2``.

    Example:
        >>> import torch
        >>> GMRSquareConv2d(1, 4, 9, padding=4, rings="hard")(torch.rand(1, 1, 16, 17)).shape
        torch.Size([1, 4, 16, 17])
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, *args, rings="indexed", num_rings=None, **kwargs
    ) -> None:
        num_rings = _default_square_rings(2, kernel_size, num_rings)
        super().__init__(in_channels, out_channels, kernel_size, *args, rings=rings, num_rings=num_rings, **kwargs)

    def _tap_tables(self, steps: Sequence[float]) -> dict[str, np.ndarray]:
        return super()._tap_tables(steps) | _square_masks(self, steps)


class GMRSquareConv3d(GMRConv3d):
    """:class:`GMRSquareConv2d` in three dimensions.

    Example:
        >>> import torch
        >>> GMRSquareConv3d(1, 2, 3, padding=1)(torch.rand(1, 1, 6, 7, 8)).shape
        torch.Size([1, 2, 6, 7, 8])
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, *args, rings="indexed", num_rings=None, **kwargs
    ) -> None:
        num_rings = _default_square_rings(3, kernel_size, num_rings)
        super().__init__(in_channels, out_channels, kernel_size, *args, rings=rings, num_rings=num_rings, **kwargs)

    def _tap_tables(self, steps: Sequence[float]) -> dict[str, np.ndarray]:
        return super()._tap_tables(steps) | _square_masks(self, steps)
