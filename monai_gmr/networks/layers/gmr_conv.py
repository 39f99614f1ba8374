"""Radial convolutions with the interface of ``torch.nn.ConvNd``."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_gmr import symmetry
from monai_gmr.ops import dense_kernel, pad_nd, ring_conv
from monai_gmr.ops.ring_conv import conv_nd
from monai_gmr.symmetry.taps import SIGMA_FLOOR
from monai_gmr.utils import ConfigurationError, SymmetryWarning, check_choice

RINGS = ("gaussian", "indexed", "hard", "indexed_square", "hard_square")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
# in voxels: a tap as close to the support has no weight
SMALLEST_DISTANCE = 1e-6


def whole_numbers(name: str, value: Any, spatial_dims: int, least: int = 1) -> Any:
    """One whole number of at least ``least`` per axis, as a tuple, from one for all or one each."""
    numbers = tuple(value) if isinstance(value, Sequence) else (value,) * spatial_dims
    if len(numbers) != spatial_dims or any(int(n) != n or n < least for n in numbers):
        raise ConfigurationError(
            f"{name}={value} is impossible: give {spatial_dims} whole numbers of at least {least}, or one for all axes."
        )
    return tuple(int(n) for n in numbers)


def check_input(module: nn.Module, x: torch.Tensor, spatial_dims: int, in_channels: int, unbatched: bool) -> None:
    """Raise when the input of a layer or net is not ``(batch, in_channels, *spatial)``, or without batch if ``unbatched``."""
    if torch.jit.is_tracing():
        return
    if x.dim() - spatial_dims not in ((1, 2) if unbatched else (2,)) or x.shape[-spatial_dims - 1] != in_channels:
        raise ConfigurationError(
            f"{type(module).__name__} has spatial_dims={spatial_dims}, in_channels={in_channels} and was given an input of shape "
            f"{tuple(x.shape)}: give (batch, {in_channels}, {spatial_dims} spatial sizes)"
            f"{' or the same without batch' if unbatched else ', or change the number of channels'}."
        )


def convolution_like(kind: Any, module: Any, **changes: Any) -> Any:
    """A layer of class ``kind`` with the arguments, device and dtype of a convolution, but for changes."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    arguments = {name: getattr(module, name) for name in names} | {"bias": module.bias is not None}
    return kind(**arguments | {"device": module.weight.device, "dtype": module.weight.dtype} | changes)


def _place_tables(layer: "RingConvNd", *_: Any) -> None:
    """Bring a layer's tables to the device of its parameters; on the meta device they have no values, so that they are made anew."""
    device = next((each.device for each in layer.parameters()), layer.shells.device)
    remade = layer.shells.is_meta and device.type != "meta"
    tables = layer._tap_tables() if remade else {name: getattr(layer, name) for name in layer.table_names}
    layer._register_tables(tables, device)


class RingConvNd(nn.Module):
    """What all radial convolutions share: the arguments of ``torch.nn.ConvNd``, the taps and the basis.

    Subclasses set ``spatial_dims`` and ``transposed`` (the adjoint); the arguments are those of :class:`GMRConv2d`.
    """

    spatial_dims: int
    transposed: bool
    shells: torch.Tensor
    squared_radii: torch.Tensor
    counts: torch.Tensor
    masks: torch.Tensor
    sigma_floor: float
    support: float
    table_names: list[str]

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
        # not super(): a class may stand beside torch.nn.ConvNd, whose arguments are others
        nn.Module.__init__(self)
        dims = self.spatial_dims
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = whole_numbers("kernel_size", kernel_size, dims)
        self.stride, self.dilation = whole_numbers("stride", stride, dims), whole_numbers("dilation", dilation, dims)
        self.padding = padding if isinstance(padding, str) else whole_numbers("padding", padding, dims, least=0)
        self.output_padding: tuple[int, ...] = (0,) * dims
        self.padding_mode, self.rings = padding_mode, rings
        self.spacing = spacing if spacing is None else tuple(float(s) for s in spacing)
        self._check_arguments(dtype)

        self.steps = symmetry.tap_spacing(self.kernel_size, self.spacing, self.dilation)
        shells = symmetry.kernel_shells(self.kernel_size, self.steps)
        self.support = float(shells.support)
        square = rings.endswith("_square")
        self.num_rings = symmetry.default_num_rings(shells) + square if num_rings is None else num_rings
        if self.num_rings < 1 + square:
            corners = ", the last is the corners" if square else ""
            raise ConfigurationError(f"num_rings={num_rings} is impossible: use at least {1 + square}{corners}.")
        for axis, (k, step) in enumerate(zip(self.kernel_size, self.steps)):
            if k > 1 and (1.0 if k % 2 else 0.5) * step >= self.support:
                warnings.warn(
                    f"the taps along axis {axis} lie {step:g} voxels apart, beyond the kernel's reach of {self.support:g}: "
                    f"the layer does not mix along it; use a larger kernel_size on the finer axes.",
                    UserWarning,
                    stacklevel=2,
                )
        rows, columns = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        options = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(rows, columns // groups, self.num_rings, **options))
        self.bias = nn.Parameter(torch.empty(out_channels, **options)) if bias else None
        self.sigma_floor = SIGMA_FLOOR.get(rings.removesuffix("_square"), 0.0)
        self.initial_sigma = symmetry.initial_sigma(rings, shells, self.num_rings)
        self.log_sigma = None if rings.startswith("hard") else nn.Parameter(torch.empty(self.num_rings, **options))
        self._register_tables(self._tap_tables(), self.weight.device)
        self.register_load_state_dict_post_hook(_place_tables)
        self.reset_parameters()

    def _check_arguments(self, dtype) -> None:
        check_choice("rings", self.rings, RINGS)
        check_choice("padding_mode", self.padding_mode, ("zeros",) if self.transposed else PADDING_MODES)
        if self.groups < 1 or self.in_channels % self.groups or self.out_channels % self.groups:
            raise ConfigurationError(
                f"groups={self.groups} must divide in_channels={self.in_channels} and out_channels={self.out_channels}."
            )
        if dtype is not None and not dtype.is_floating_point:
            raise ConfigurationError(f"dtype={dtype} is not possible: use a real floating-point type.")
        if isinstance(self.padding, str):
            check_choice("padding", self.padding, ("symmetric",) if self.transposed else ("valid", "same", "symmetric"))
            if self.padding == "same" and max(self.stride) > 1:
                raise ConfigurationError(f"padding='same' takes no stride={self.stride}: use padding='symmetric'.")

    def _ring_masks(self, shells: symmetry.Shells) -> np.ndarray:
        masks = symmetry.square_ring_masks if self.rings.endswith("_square") else symmetry.ring_masks
        return masks(shells, self.num_rings)

    def _tap_tables(self) -> dict[str, Any]:
        """Constants of the taps, as whole numbers: no cast to half precision, and none in a state dict."""
        shells = symmetry.kernel_shells(self.kernel_size, self.steps)
        masks = self._ring_masks(shells)
        near = shells.radii < shells.support - SMALLEST_DISTANCE
        self.num_shells = int(np.flatnonzero(near if self.rings == "gaussian" else masks.any(axis=0)).max()) + 1
        tables = {"shells": shells.tap_shell, "squared_radii": shells.squared_radii}
        return tables | {"counts": shells.counts, "masks": masks}

    def _register_tables(self, tables: dict[str, Any], device: torch.device) -> None:
        self.table_names = list(tables)
        for name, table in tables.items():
            self.register_buffer(name, torch.as_tensor(table, device=device), persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "RingConvNd":
        # here, as in torch.nn.RNNBase: Module.to_empty() leaves nothing of a buffer, and no state dict brings it back
        tables = {name: getattr(self, name) for name in self.table_names}
        super()._apply(fn, recurse)
        self._register_tables(tables, tables["shells"].device)
        _place_tables(self)
        return self

    def reset_parameters(self) -> None:
        """Draw fresh weights; on white noise the output's variance is that of a fresh ``torch.nn.ConvNd``."""
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
        """The functions on shells of which a kernel is a weighted sum, shape ``(rings, shells)``, at least float32."""
        if self.rings == "gaussian":
            return symmetry.gaussian_basis(self.squared_radii, self.counts, self.sigma(), self.support)
        if self.rings.startswith("indexed"):
            return symmetry.indexed_basis(self.masks, self.sigma())
        dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        return self.masks.to(dtype)

    def dense_kernel(self) -> torch.Tensor:
        """The kernel over its taps, of the shape that ``torch.nn.ConvNd.weight`` has."""
        return dense_kernel(self.weight, self.basis(), self.shells)

    def _dense_copy(self, name: str, **changes: Any) -> nn.Module:
        """The equal module of torch, of class ``name``."""
        dense = convolution_like(getattr(nn, f"{name}{self.spatial_dims}d"), self, **changes)
        with torch.no_grad():
            dense.weight.copy_(self.dense_kernel())
            if self.bias is not None:
                dense.bias.copy_(self.bias)
        return dense.train(self.training)

    def extra_repr(self) -> str:
        spacing = "" if self.spacing is None else f", spacing={self.spacing}"
        return f"{nn.Conv2d.extra_repr(self)}{spacing}, rings={self.rings!r}, num_rings={self.num_rings}"  # type: ignore[arg-type]


class GMRConvNd(RingConvNd):
    """Radial convolution of any dimension; use :class:`GMRConv1d`, :class:`GMRConv2d` or :class:`GMRConv3d`."""

    transposed = False

    def _margins(self, spatial: list[int]) -> list[int]:
        """Voxels before and after each axis, first axis first."""
        margins: list[int] = []
        padding = self.padding
        for axis, size in enumerate(spatial):
            k, s, d = self.kernel_size[axis], self.stride[axis], self.dilation[axis]
            if isinstance(padding, str):
                before = after = 0
                if padding == "same":
                    before, after = d * (k - 1) // 2, (d * (k - 1) + 1) // 2
                elif padding == "symmetric":
                    before = after = symmetry.symmetric_padding(size, k, s, d)
                margins += [before, after]
            else:
                margins += [padding[axis], padding[axis]]
        return margins

    def _warn_if_inexact(self, spatial: list[int], margins: list[int]) -> None:
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return
        for axis, size in enumerate(spatial):
            before, after = margins[2 * axis], margins[2 * axis + 1]
            k, s, d = self.kernel_size[axis], self.stride[axis], self.dilation[axis]
            if before != after or not symmetry.stride_is_exact(size, k, s, before, d):
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
            check_input(self, input, dims, self.in_channels, unbatched=True)
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

    def to_conv(self) -> nn.Module:
        """The equal ``torch.nn.ConvNd``, for deployment; refused where ``padding="symmetric"`` depends on the input's size."""
        if self.padding != "symmetric":
            return self._dense_copy("Conv")
        if max(self.stride) > 1:
            raise ConfigurationError(
                f"padding='symmetric' with stride={self.stride} depends on the size, which torch.nn.Conv{self.spatial_dims}d "
                "cannot: give the padding in voxels."
            )
        return self._dense_copy(
            "Conv", padding=tuple(d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size))
        )


class GMRConv2d(GMRConvNd):
    r"""Convolution with radial kernels: rotating or mirroring the input rotates or mirrors the output.

    .. math::
        y_o = b_o + \sum_i K_{oi} \star x_i, \qquad K_{oi}(t) = \sum_r w_{oir}\, b_r(|t|)

    A :math:`k^d` kernel has :math:`R = k // 2 + 1` weights for a pair of channels. Everything ``torch.nn.Conv2d`` accepts works.

    Shape:
        - input: ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``
        - output: as ``torch.nn.Conv2d``'s
        - ``weight``: ``(out_channels, in_channels / groups, rings)``, ``bias``: ``(out_channels,)``, ``log_sigma``: ``(rings,)``

    Args:
        in_channels, out_channels: channels of the input and of the output.
        kernel_size: window length in voxels, odd or even, one number or one per axis.
        stride: step in voxels. A stride on a size on which it is not exact (:func:`monai_gmr.symmetry.stride_is_exact`) warns.
        padding: voxels at both ends of an axis, "valid", "same" (stride 1; exact for odd windows), or "symmetric": the padding nearest to
            half the window with which the layer is exact on the size at hand.
        dilation: distance of neighbouring taps in voxels.
        groups: blocks of channels that are convolved apart.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        bias, device, dtype: as in ``torch.nn.Conv2d``.
        rings: "gaussian" (Gaussians at the exact radii), "indexed" (GMR-Conv 1.0.3) or "hard" (SRE-Conv 1.0.2); "indexed_square" and
            "hard_square" are rings that reach into the corners of the window, as exact but farther off at angles other than the grid's:
            for the checkpoints of GMR-Conv's U-Net, whose default they are.
        num_rings: number of rings; default ``k // 2 + 1``, of square rings one more, the corners.
        spacing: voxel size in millimetres, one per axis; the kernel is then round in millimetres. Its reach is set by the axes of the
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
    """:class:`GMRConv2d` in one dimension: kernels that are their own mirror image."""

    spatial_dims = 1


class GMRConv3d(GMRConvNd):
    """:class:`GMRConv2d` in three dimensions."""

    spatial_dims = 3


class SREConv2d(GMRConv2d):
    """:class:`GMRConv2d` with ``rings="hard"``: kernels that are constant on rings, numerically equal to SRE-Conv 1.0.2.

    Source:
        SRE-Conv: Symmetric Rotation Equivariant Convolution for biomedical image classification, arXiv 2501.09753.
    """

    def __init__(self, *args, num_rings: int | None = None, spacing=None, **kwargs) -> None:
        super().__init__(*args, rings="hard", num_rings=num_rings, spacing=spacing, **kwargs)


class SREConv3d(GMRConv3d):
    """:class:`SREConv2d` in three dimensions."""

    def __init__(self, *args, num_rings: int | None = None, spacing=None, **kwargs) -> None:
        super().__init__(*args, rings="hard", num_rings=num_rings, spacing=spacing, **kwargs)
