"""Transposed radial convolutions with the interface of ``torch.nn.ConvTransposeNd``."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from monai_gmr.networks.layers.gmr_conv import RingConvNd, check_input, whole_numbers
from monai_gmr.ops import ring_conv_transpose
from monai_gmr.ops.ring_conv import dense_ring_conv_transpose
from monai_gmr.symmetry import transposed_padding
from monai_gmr.utils import SymmetryWarning


class GMRConvTransposeNd(RingConvNd):
    """Transposed radial convolution of any dimension; use :class:`GMRConvTranspose2d` or its variants in 1D and 3D."""

    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
            **kwargs,
        )
        self.output_padding = whole_numbers("output_padding", output_padding, self.spatial_dims, least=0)

    def _margin(self, axis: int) -> int:
        padding = self.padding
        if isinstance(padding, str):
            return transposed_padding(self.kernel_size[axis], self.stride[axis], self.dilation[axis])
        return padding[axis]

    def _warn_if_inexact(self, output_padding: list[int]) -> None:
        if torch.jit.is_tracing() or torch.compiler.is_compiling() or max(output_padding) == 0:
            return
        warnings.warn(
            f"{type(self).__name__} with kernel_size={self.kernel_size}, stride={self.stride} reaches the size "
            f"of output_size only with output_padding={tuple(output_padding)}, which is not equivariant: use a "
            "kernel_size of the stride's parity and padding='symmetric'.",
            SymmetryWarning,
            stacklevel=3,
        )

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """Spread ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)`` over the windows.

        Args:
            input: the coarse tensor.
            output_size: wanted spatial sizes (leading axes may be given too). What it asks for beyond the smallest size is
                taken from the padding at both ends where it is even, which is exact, else added at the end.
        """
        dims = self.shells.dim()
        if not torch.jit.is_scripting():
            check_input(self, input, dims, self.in_channels, unbatched=True)
        spatial = list(input.shape)[input.dim() - dims :]
        padding = [self._margin(axis) for axis in range(dims)]
        extra = list(self.output_padding)
        if output_size is not None:
            target = output_size[len(output_size) - dims :]
            for axis in range(dims):
                k, s, d = self.kernel_size[axis], self.stride[axis], self.dilation[axis]
                surplus = target[axis] - ((spatial[axis] - 1) * s - 2 * padding[axis] + d * (k - 1) + 1)
                if surplus < 0 or surplus >= max(s, d):
                    smallest = target[axis] - surplus
                    raise ValueError(
                        f"output_size {target[axis]} is out of reach on axis {axis}: use {smallest} to {smallest + max(s, d) - 1}."
                    )
                even = surplus % 2 == 0 and surplus // 2 <= padding[axis]
                padding[axis] -= surplus // 2 if even else 0
                extra[axis] = 0 if even else surplus
        if not torch.jit.is_scripting():
            self._warn_if_inexact(extra)
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
        return dense_ring_conv_transpose(
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
        )

    def to_conv(self) -> nn.Module:
        """The equal ``torch.nn.ConvTransposeNd``, for deployment."""
        padding = tuple(self._margin(axis) for axis in range(self.spatial_dims))
        return self._dense_copy("ConvTranspose", padding, output_padding=self.output_padding)


class GMRConvTranspose2d(GMRConvTransposeNd):
    """Transposed convolution with radial kernels: the adjoint of :class:`GMRConv2d`.

    Everything ``torch.nn.ConvTranspose2d`` accepts works. It is exactly equivariant if and only if ``output_padding`` is 0; with
    ``padding="symmetric"`` (kernel size at least the stride and of its parity) each axis becomes exactly ``stride`` times as long.

    Shape:
        - input: ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``
        - output: as ``torch.nn.ConvTranspose2d``'s
        - ``weight``: ``(in_channels, out_channels / groups, rings)``

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: window length in voxels, odd or even.
        stride: factor by which an axis grows.
        padding: voxels removed at both ends of an axis, or "symmetric".
        output_padding: voxels added at its end; other than 0 it warns, for it breaks the symmetry.
        groups, bias, dilation, padding_mode, device, dtype: as in ``torch.nn.ConvTranspose2d``.
        rings, num_rings, spacing: as in :class:`GMRConv2d`.

    Raises:
        ConfigurationError: when arguments or input do not fit; one sentence that says what does.

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
