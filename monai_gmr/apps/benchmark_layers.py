"""The operation :func:`monai_gmr.ops.ring_conv` alone as a module, which the benchmark compares beside layers and nets."""

from __future__ import annotations

import torch
from torch import nn

from monai_gmr.networks.layers import GMRConv2d, GMRConv3d
from monai_gmr.ops import ring_conv
from monai_gmr.ops.ring_conv import ring_conv_transpose


class RingConvolution(nn.Module):
    """The operation :func:`monai_gmr.ops.ring_conv` alone, with the initial basis of :class:`GMRConv2d`.

    Args:
        spatial_dims: 2 or 3.
        channels: of input and output.
        kernel_size: window length in voxels, odd.
        groups: blocks of channels that do not see each other.
        stride: in voxels: by this factor the output is smaller than the input along each axis.
        transposed: whether the convolution is transposed: the output is larger instead.

    Example:
        >>> RingConvolution(2, 4, 5)(torch.rand(1, 4, 6, 6)).shape
        torch.Size([1, 4, 6, 6])
        >>> RingConvolution(2, 4, 5, stride=2, transposed=True)(torch.rand(1, 4, 6, 6)).shape
        torch.Size([1, 4, 12, 12])
    """

    shells: torch.Tensor

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        kernel_size: int,
        groups: int = 1,
        stride: int = 1,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.transposed = stride, transposed
        layer = {2: GMRConv2d, 3: GMRConv3d}[spatial_dims](channels, channels, kernel_size, groups=groups)
        self.weight = nn.Parameter(layer.weight.detach())
        self.values = nn.Parameter(layer.basis().detach())
        self.padding, self.num_shells, self.groups = kernel_size // 2, layer.num_shells, groups
        self.register_buffer("shells", layer.shells)

    def basis(self) -> torch.Tensor:
        """The functions on shells, shape ``(rings, shells)``."""
        return self.values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, *spatial)`` to ``(batch, channels, *spatial_out)``."""
        arrays = (self.weight, self.basis(), self.shells)
        options = {name: getattr(self, name) for name in ("stride", "padding", "groups", "num_shells")}
        if self.transposed:
            return ring_conv_transpose(x, *arrays, output_padding=self.stride - 1, **options)
        return ring_conv(x, *arrays, **options)
