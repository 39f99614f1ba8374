"""Ways up to the size of a skip connection, other than :class:`GMRUpsample`."""

import torch
import torch.nn.functional as F
from torch import nn

from monai_gmr.ops.free_sizes import is_free
from monai_gmr.ops.resample import apply_along_axis, window_matrix


class GMRCornerUpsample(nn.Module):
    """Linear interpolation that puts the outermost voxels on the outermost voxels (``align_corners=True``), exact to every size.

    MONAI's ``UpSample(mode="nontrainable", align_corners=True)``, but for sizes of any parity.

    Args:
        spatial_dims: 1, 2 or 3.

    Example:
        >>> GMRCornerUpsample(2)(torch.rand(1, 3, 4, 4), [8, 7]).shape
        torch.Size([1, 3, 8, 7])
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.mode = ("linear", "bilinear", "trilinear")[spatial_dims - 1]

    def forward(self, x: torch.Tensor, size: list[int]) -> torch.Tensor:
        """``(batch, channels, *spatial)`` to ``(batch, channels, *size)``."""
        return F.interpolate(x, size=size, mode=self.mode, align_corners=True)

    def extra_repr(self) -> str:
        """Mode."""
        return f"mode={self.mode!r}"


class GMRTrim(nn.Module):
    """Means over windows of ``n - size + 1`` voxels: what makes an axis of ``n`` voxels one of ``size``, about the same centre.

    Example:
        >>> GMRTrim()(torch.arange(4.0)[None, None], [3])
        tensor([[[0.5000, 1.5000, 2.5000]]])
    """

    def forward(self, x: torch.Tensor, size: list[int]) -> torch.Tensor:
        """``(batch, channels, *spatial)`` to ``(batch, channels, *size)``, where no axis is longer than it was."""
        for i in range(len(size)):
            axis = i - len(size)
            # a window of one voxel leaves an axis as it is, where a graph is recorded for both cases
            surplus, recorded = x.shape[axis] - size[i], False
            if not torch.jit.is_scripting():
                recorded = is_free([surplus])
            if recorded or surplus != 0:
                matrix = window_matrix(x.shape[axis], size[i], surplus + 1, 1, 0, x)
                x = apply_along_axis(x, matrix, axis, 2)
        return x
