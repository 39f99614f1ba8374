"""Transposed radial convolutions with the interface of ``torch.nn.ConvTransposeNd``."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from monai_gmr.networks.layers.gmr_conv import RingConvNd, check_input, whole_numbers
from monai_gmr.ops import ring_conv_transpose
from monai_gmr.ops.ring_conv import conv_transpose_nd
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
        geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        more: dict[str, Any] = {"bias": bias, "padding_mode": padding_mode, "device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, **geometry, **more, **kwargs)
        self.output_padding = whole_numbers("output_padding", output_padding, self.spatial_dims, least=0)
        # refuses what "symmetric" cannot do
        self._margins()

    def _margins(self) -> list[int]:
        """Voxels that are removed at both ends of each axis."""
        margins: list[int] = []
        padding = self.padding
        for axis in range(self.shells.dim()):
            if isinstance(padding, str):
                margins.append(transposed_padding(self.kernel_size[axis], self.stride[axis], self.dilation[axis]))
            else:
                margins.append(padding[axis])
        return margins

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
        """Spread ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)`` over the windows, to the spatial sizes that end
        ``output_size``: what it asks for beyond the smallest size is taken from the padding at both ends where it is even, which is
        exact, else added at the end.
        """
        dims = self.shells.dim()
        if not torch.jit.is_scripting():
            check_input(self, input, dims, self.in_channels, unbatched=True)
        spatial = list(input.shape)[input.dim() - dims :]
        padding = self._margins()
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
        if torch.jit.is_scripting():
            dense, groups, dilation = self.dense_kernel(), self.groups, self.dilation
            return conv_transpose_nd(
                input, dense, self.bias, self.stride, padding, extra, groups=groups, dilation=dilation
            )
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

    def to_conv(self) -> nn.Module:
        """The equal ``torch.nn.ConvTransposeNd``, for deployment."""
        return self._dense_copy("ConvTranspose", padding=tuple(self._margins()), output_padding=self.output_padding)


class GMRConvTranspose2d(GMRConvTransposeNd):
    """Transposed convolution with radial kernels: the adjoint of :class:`GMRConv2d`.

    Everything ``torch.nn.ConvTranspose2d`` accepts works. It is exactly equivariant if and only if ``output_padding`` is 0; with
    ``padding="symmetric"`` (kernel size at least the stride and of its parity) each axis becomes exactly ``stride`` times as long.

    Shape:
        - input: ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``
        - output: as ``torch.nn.ConvTranspose2d``'s
        - ``weight``: ``(in_channels, out_channels / groups, rings)``

    Args:
        stride: factor by which an axis grows.
        padding: voxels removed at both ends of an axis, or "symmetric".
        output_padding: voxels added at its end; other than 0 it warns, for it breaks the symmetry.

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
