"""Transposed radial convolutions with the interface of ``torch.nn.ConvTransposeNd``."""

import torch

from monai_gmr.networks.layers.conv_nd import TransposedConvNd
from monai_gmr.networks.layers.gmr_conv import RingConvNd
from monai_gmr.ops import ring_conv_transpose
from monai_gmr.ops.ring_conv import conv_transpose_nd


class GMRConvTransposeNd(TransposedConvNd, RingConvNd):
    """Transposed radial convolution of any dimension; use :class:`GMRConvTranspose2d` or its variants in 1D and 3D."""

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """Convolves ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``, to the spatial sizes at the end of ``output_size``.
        An even surplus over the smallest size is taken from the padding at both ends, which is exact; other surpluses are added at the end.
        """
        padding, extra = self._paddings(input, output_size)
        if torch.jit.is_scripting():
            dense, groups, dilation = self.dense_kernel(), self.groups, self.dilation
            return conv_transpose_nd(
                input, dense, self.bias, self.stride, padding, extra, groups=groups, dilation=dilation
            )
        return ring_conv_transpose(
            input,
            self.weight,
            self.basis(),
            self.shells,
            self.bias,
            stride=self.stride,
            padding=padding,
            output_padding=extra,
            groups=self.groups,
            dilation=self.dilation,
            num_shells=self.num_shells,
        )


class GMRConvTranspose2d(GMRConvTransposeNd):
    """Transposed convolution with radial kernels: the adjoint of :class:`GMRConv2d`.

    Accepts everything that ``torch.nn.ConvTranspose2d`` accepts. It is exactly equivariant if and only if ``output_padding`` is 0; with
    ``padding="symmetric"`` (kernel size at least the stride, with the same parity) each axis becomes exactly ``stride`` times as long.

    Shape:
        - input: ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``
        - output: as ``torch.nn.ConvTranspose2d``'s
        - ``weight``: ``(in_channels, out_channels / groups, rings)``

    Args:
        stride: factor by which an axis grows.
        padding: voxels removed at both ends of an axis, or "symmetric".
        output_padding: voxels added at the end of an axis; values other than 0 break the symmetry and warn.

    All other arguments are those of :class:`GMRConv2d`, in the order of ``torch.nn.ConvTranspose2d``.

    Example:
        >>> GMRConvTranspose2d(4, 2, kernel_size=4, stride=2, padding="symmetric")(torch.rand(1, 4, 7, 8)).shape
        torch.Size([1, 2, 14, 16])
    """

    spatial_dims = 2


class GMRConvTranspose1d(GMRConvTransposeNd):
    """:class:`GMRConvTranspose2d` in one dimension."""

    spatial_dims = 1


class GMRConvTranspose3d(GMRConvTransposeNd):
    """:class:`GMRConvTranspose2d` in three dimensions."""

    spatial_dims = 3
