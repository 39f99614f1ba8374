"""Radial convolutions with the interface of ``torch.nn.ConvNd``."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_gmr import symmetry
from monai_gmr.annotations import Device, checked_arguments
from monai_gmr.arguments import check_choice
from monai_gmr.networks.layers.conv_nd import DirectConvNd, SymmetricConvNd, passes_arguments_to
from monai_gmr.ops import dense_kernel, ring_conv
from monai_gmr.ops.ring_conv import conv_nd
from monai_gmr.symmetry.taps import SIGMA_FLOOR, TABLE_UNITS
from monai_gmr.utils import ConfigurationError, warn

RINGS = ("gaussian", "indexed", "hard", "indexed_square", "hard_square")
# in voxels: a tap this close to the support has no weight
SMALLEST_DISTANCE = 1e-6


class RingConvNd(SymmetricConvNd):
    """Base of all radial convolutions: the shells of the taps and the basis; takes the arguments of :class:`GMRConv2d`."""

    shells: torch.Tensor
    gaussians: torch.Tensor
    counts: torch.Tensor
    masks: torch.Tensor
    sigma_floor: float
    support: float

    @checked_arguments
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
        device: Device | None = None,
        dtype: torch.dtype | None = None,
        *,
        rings: str = "gaussian",
        num_rings: int | None = None,
        spacing: Sequence[float] | None = None,
    ) -> None:
        geometry = (kernel_size, stride, padding, dilation, groups, padding_mode)
        # not super(): a subclass can also inherit from torch.nn.ConvNd, whose arguments differ
        SymmetricConvNd.__init__(self, in_channels, out_channels, *geometry, dtype)
        check_choice("rings", rings, RINGS)
        self.rings, self.spacing = rings, spacing if spacing is None else tuple(float(s) for s in spacing)
        self.steps = symmetry.tap_spacing(self.kernel_size, self.spacing, self.dilation)
        shells = symmetry.kernel_shells(self.kernel_size, self.steps)
        self.support, self.table_units = float(shells.support), float(TABLE_UNITS)
        square = rings.endswith("_square")
        self.num_rings = symmetry.default_num_rings(shells) + square if num_rings is None else num_rings
        if self.num_rings < 1 + square:
            corners = ", the last is the corners" if square else ""
            raise ConfigurationError(f"num_rings={num_rings} is impossible: use at least {1 + square}{corners}.")
        for axis, (k, step) in enumerate(zip(self.kernel_size, self.steps)):
            if k > 1 and (1.0 if k % 2 else 0.5) * step >= self.support:
                warn(
                    f"the taps along axis {axis} lie {step:g} voxels apart, beyond the kernel's reach of {self.support:g}: "
                    f"the layer does not mix along it; use a larger kernel_size on the finer axes.",
                )
        rows, columns = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(rows, columns // groups, self.num_rings, **options))
        self.bias = nn.Parameter(torch.empty(out_channels, **options)) if bias else None
        self.sigma_floor = SIGMA_FLOOR.get(rings.removesuffix("_square"), 0.0)
        self.initial_sigma = symmetry.initial_sigma(rings, shells, self.num_rings)
        self.log_sigma = None if rings.startswith("hard") else nn.Parameter(torch.empty(self.num_rings, **options))
        self._finish()

    def _ring_masks(self, shells: symmetry.Shells) -> np.ndarray:
        masks = symmetry.square_ring_masks if self.rings.endswith("_square") else symmetry.ring_masks
        return masks(shells, self.num_rings)

    def _make_tables(self) -> dict[str, Any]:
        shells = symmetry.kernel_shells(self.kernel_size, self.steps)
        masks = self._ring_masks(shells)
        near = shells.radii < shells.support - SMALLEST_DISTANCE
        self.num_shells = int(np.flatnonzero(near if self.rings == "gaussian" else masks.any(axis=0)).max()) + 1
        tables = {"shells": shells.tap_shell, "counts": shells.counts, "masks": masks}
        return tables | self._radial_tables(shells.radii, shells.counts)

    def _radial_tables(self, radii: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
        """Tables of the Gaussians, for shells with given radii and numbers of taps."""
        means = symmetry.gaussian_means(self.num_rings, self.support)[None]
        return {"gaussians": symmetry.gaussian_tables(radii, counts, self.support, means, orders=(0,))[0]}

    def reset_parameters(self) -> None:
        """Draws fresh weights; for white noise the output has the variance of a fresh ``torch.nn.ConvNd``."""
        if self.weight.is_meta:
            return
        if self.log_sigma is not None:
            nn.init.constant_(self.log_sigma, math.log(self.initial_sigma - self.sigma_floor))
        with torch.no_grad():
            squared_norm = float((self.counts * self.basis() ** 2).sum())
        fan_in = self.weight.shape[1]
        nn.init.uniform_(self.weight, -1 / math.sqrt(fan_in * squared_norm), 1 / math.sqrt(fan_in * squared_norm))
        if self.bias is not None:
            bound = 1 / math.sqrt(fan_in * math.prod(self.kernel_size))
            nn.init.uniform_(self.bias, -bound, bound)

    def sigma(self) -> torch.Tensor:
        """Widths of the Gaussians, ``sigma_floor + exp(log_sigma)``, shape ``(rings,)``, at least float32."""
        log_sigma = self.log_sigma
        assert log_sigma is not None
        return symmetry.positive_sigma(log_sigma, self.sigma_floor)

    def basis(self) -> torch.Tensor:
        """Functions on shells whose weighted sum is a kernel, shape ``(rings, shells)``, at least float32."""
        if self.rings == "gaussian":
            return symmetry.gaussian_basis(self.gaussians, self.sigma(), self.table_units)
        if self.rings.startswith("indexed"):
            return symmetry.indexed_basis(self.masks, self.sigma())
        dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        return self.masks.to(dtype)

    def dense_kernel(self) -> torch.Tensor:
        """The kernel over its taps, in the shape of ``torch.nn.ConvNd.weight``."""
        return dense_kernel(self.weight, self.basis(), self.shells)

    def extra_repr(self) -> str:
        spacing = "" if self.spacing is None else f", spacing={self.spacing}"
        return f"{nn.Conv2d.extra_repr(self)}{spacing}, rings={self.rings!r}, num_rings={self.num_rings}"  # type: ignore[arg-type]


class GMRConvNd(DirectConvNd, RingConvNd):
    """Radial convolution of any dimension; use :class:`GMRConv1d`, :class:`GMRConv2d` or :class:`GMRConv3d`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolves ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``."""
        input, padding = self._padded(input)
        if torch.jit.is_scripting():
            dense = self.dense_kernel()
            return conv_nd(input, dense, self.bias, self.stride, padding, self.dilation, groups=self.groups)
        return ring_conv(
            input,
            self.weight,
            self.basis(),
            self.shells,
            self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            num_shells=self.num_shells,
        )


class GMRConv2d(GMRConvNd):
    r"""Convolution with radial kernels: rotating or mirroring the input rotates or mirrors the output.

    .. math::
        y_o = b_o + \sum_i K_{oi} \star x_i, \qquad K_{oi}(t) = \sum_r w_{oir}\, b_r(|t|)

    A :math:`k^d` kernel has :math:`R = k // 2 + 1` weights per pair of channels. Accepts everything that ``torch.nn.Conv2d`` accepts.

    Shape:
        - input: ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``
        - output: as ``torch.nn.Conv2d``'s
        - ``weight``: ``(out_channels, in_channels / groups, rings)``, ``bias``: ``(out_channels,)``, ``log_sigma``: ``(rings,)``

    Args:
        in_channels, out_channels: channels of the input and of the output.
        kernel_size: window length in voxels, odd or even, one number or one per axis.
        stride: step in voxels. Warns on sizes on which the stride is not exact (:func:`monai_gmr.symmetry.stride_is_exact`).
        padding: voxels at both ends of an axis, "valid", "same" (stride 1; exact for odd windows), or "symmetric": the padding nearest to
            half the window that makes the layer exact on the given size.
        dilation: distance of neighbouring taps in voxels.
        groups: blocks of channels that are convolved separately.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        bias, device, dtype: as in ``torch.nn.Conv2d``.
        rings: "gaussian" (Gaussians at the exact radii), "indexed" (GMR-Conv 1.0.3) or "hard" (SRE-Conv 1.0.2); "indexed_square" and
            "hard_square" are rings that reach into the corners of the window, as exact on the grid but less accurate at other angles, for
            checkpoints of GMR-Conv's U-Net, which has them by default.
        num_rings: number of rings; default ``k // 2 + 1``, plus one for the corners of square rings.
        spacing: voxel size in millimetres, one per axis; the kernel is then round in millimetres. Its reach is set by the axes of the
            finest spacing; taps beyond it are zero, so choose a shorter window on the coarse axes.

    Raises:
        ConfigurationError: if arguments or input do not fit; the message says what does.

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
    """:class:`GMRConv2d` in one dimension: mirror-symmetric kernels."""

    spatial_dims = 1


class GMRConv3d(GMRConvNd):
    """:class:`GMRConv2d` in three dimensions."""

    spatial_dims = 3


class SREConv2d(GMRConv2d):
    """:class:`GMRConv2d` with ``rings="hard"``: kernels that are constant on rings, numerically equal to SRE-Conv 1.0.2.

    Source:
        SRE-Conv: Symmetric Rotation Equivariant Convolution for biomedical image classification, arXiv 2501.09753.
    """

    @passes_arguments_to(GMRConvNd, without=["rings"])
    @checked_arguments
    def __init__(self, *args, num_rings: int | None = None, spacing=None, **kwargs) -> None:
        super().__init__(*args, rings="hard", num_rings=num_rings, spacing=spacing, **kwargs)


class SREConv3d(GMRConv3d):
    """:class:`SREConv2d` in three dimensions."""

    @passes_arguments_to(GMRConvNd, without=["rings"])
    @checked_arguments
    def __init__(self, *args, num_rings: int | None = None, spacing=None, **kwargs) -> None:
        super().__init__(*args, rings="hard", num_rings=num_rings, spacing=spacing, **kwargs)
