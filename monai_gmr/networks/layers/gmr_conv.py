"""Radial convolutions with the interface of ``torch.nn.ConvNd``."""

import warnings
from collections.abc import Sequence

import torch
from torch import nn

from monai_gmr.networks.layers.ring_conv import RingConvNd
from monai_gmr.ops import pad_nd, ring_conv
from monai_gmr.ops.ring_conv import dense_ring_conv
from monai_gmr.symmetry import stride_is_exact, symmetric_padding
from monai_gmr.utils import ConfigurationError, SymmetryWarning


class GMRConvNd(RingConvNd):
    """Radial convolution of any dimension; use :class:`GMRConv1d`, :class:`GMRConv2d` or :class:`GMRConv3d`."""

    transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        *,
        rings: str = "gaussian",
        num_rings: int | None = None,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            0,
            groups,
            bias,
            padding_mode,
            rings,
            num_rings,
            spacing,
            device,
            dtype,
        )

    def _margins(self, spatial: list[int]) -> list[int]:
        """Voxels before and after each axis, first axis first."""
        margins: list[int] = []
        padding = self.padding
        for axis in range(len(spatial)):
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1)
            before, after = 0, 0
            if isinstance(padding, str):
                if padding == "same":
                    before, after = reach // 2, reach - reach // 2
                elif padding == "symmetric":
                    before = symmetric_padding(
                        spatial[axis], self.kernel_size[axis], self.stride[axis], self.dilation[axis]
                    )
                    after = before
            else:
                before, after = padding[axis], padding[axis]
            margins += [before, after]
        return margins

    def _warn_if_inexact(self, spatial: list[int], margins: list[int]) -> None:
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return
        for axis, size in enumerate(spatial):
            before, after = margins[2 * axis], margins[2 * axis + 1]
            k, s, d = self.kernel_size[axis], self.stride[axis], self.dilation[axis]
            if before != after or not stride_is_exact(size, k, s, before, d):
                warnings.warn(
                    f"{type(self).__name__} with kernel_size={k}, stride={s}, padding={self.padding!r}, dilation={d} is not "
                    f"exactly equivariant on an axis of {size} voxels: use padding='symmetric', a kernel_size of the other "
                    "parity, or GMRDownsample.",
                    SymmetryWarning,
                    stacklevel=3,
                )

    def _padded(self, input: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """The input as the convolution takes it, and the voxels of zeros that it is to add at both ends of an axis."""
        dims = self.shells.dim()
        spatial = list(input.shape)[input.dim() - dims :]
        if not torch.jit.is_scripting():
            self._check_input(input)
        margins = self._margins(spatial)
        if not torch.jit.is_scripting():
            self._warn_if_inexact(spatial, margins)
        padding = margins[0::2]
        if self.padding_mode != "zeros" or padding != margins[1::2]:
            reverse: list[int] = []
            for axis in range(dims):
                reverse = margins[2 * axis : 2 * axis + 2] + reverse
            input = pad_nd(input, reverse, self.padding_mode)
            padding = [0] * dims
        return input, padding

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``."""
        input, padding = self._padded(input)
        basis = self.basis()
        if torch.jit.is_scripting():
            return dense_ring_conv(
                input,
                self.weight,
                basis,
                self.shells,
                self.bias,
                stride=self.stride,
                padding=padding,
                dilation=self.dilation,
                groups=self.groups,
            )
        return ring_conv(
            input,
            self.weight,
            basis,
            self.shells,
            self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            num_shells=self.num_shells,
        )

    def to_conv(self) -> nn.Module:
        """The equal ``torch.nn.ConvNd``, for deployment.

        Raises:
            ConfigurationError: when ``padding="symmetric"`` depends on the input's size.
        """
        padding = self.padding
        if padding == "symmetric":
            reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size)]
            if any(s != 1 for s in self.stride):
                raise ConfigurationError(
                    f"padding='symmetric' with stride={self.stride} depends on the size, which torch.nn.Conv{self.spatial_dims}d "
                    "cannot: give the padding in voxels."
                )
            padding = tuple(r // 2 for r in reach)
        convolution = getattr(nn, f"Conv{self.spatial_dims}d")(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            self.bias is not None,
            self.padding_mode,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        return self._dense_copy(convolution)


class GMRConv2d(GMRConvNd):
    r"""Convolution with radial kernels: turning or mirroring the input turns or mirrors the output.

    .. math::
        y_o = b_o + \sum_i K_{oi} \star x_i, \qquad K_{oi}(t) = \sum_r w_{oir}\, b_r(|t|)

    A :math:`k^d` kernel has :math:`R = k // 2 + 1` weights for a pair of channels. Everything ``torch.nn.Conv2d`` accepts works.

    Shape:
        - input: ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``
        - output: as ``torch.nn.Conv2d``'s
        - ``weight``: ``(out_channels, in_channels / groups, rings)``, ``bias``: ``(out_channels,)``, ``log_sigma``: ``(rings,)``

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: window length in voxels, odd or even, one number or one an axis.
        stride: step in voxels. A stride on a size on which it is not exact (:func:`monai_gmr.symmetry.stride_is_exact`) warns.
        padding: voxels at both ends of an axis, "valid", "same" (stride 1; exact for odd windows), or "symmetric": the padding nearest to
            half the window with which the layer is exact on the size at hand.
        dilation: distance of neighbouring taps in voxels.
        groups: blocks of channels that do not see each other.
        bias: whether a bias is learned.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device, dtype: as in ``torch.nn.Conv2d``.
        rings: "gaussian" (Gaussians at the exact radii), "indexed" (GMR-Conv 1.0.3) or "hard" (SRE-Conv 1.0.2).
        num_rings: number of rings; default ``k // 2 + 1``.
        spacing: voxel size in millimetres, one an axis; the kernel is then round in millimetres. Its reach is set by the axes of the
            finest spacing; taps beyond it are zero, so choose a window that is shorter, not longer, on the coarse axes.

    Raises:
        ConfigurationError: when arguments or input do not fit; one sentence that says what does.

    Example:
        >>> from monai_gmr.symmetry import point_group, transform_grid
        >>> layer, x = GMRConv2d(3, 8, kernel_size=5, padding=2), torch.rand(1, 3, 9, 12)
        >>> g = point_group(2)[5]
        >>> torch.allclose(layer(transform_grid(x, g)), transform_grid(layer(x), g), atol=1e-6)
        True
        >>> layer
        GMRConv2d(3, 8, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), rings='gaussian', num_rings=3)

    Source:
        GMR-Conv, arXiv 2504.02819; the Gaussians are sampled at the taps' exact radii and tapered before the window ends.
    """

    spatial_dims = 2


class GMRConv1d(GMRConvNd):
    """:class:`GMRConv2d` in one dimension: kernels that are their own mirror image.

    Example:
        >>> GMRConv1d(2, 4, 3, padding="same")(torch.rand(2, 7)).shape
        torch.Size([4, 7])
    """

    spatial_dims = 1


class GMRConv3d(GMRConvNd):
    """:class:`GMRConv2d` in three dimensions.

    Example:
        >>> GMRConv3d(1, 2, 3, padding=1, spacing=(0.8, 0.8, 1.0))(torch.rand(1, 1, 6, 7, 8)).shape
        torch.Size([1, 2, 6, 7, 8])
    """

    spatial_dims = 3
