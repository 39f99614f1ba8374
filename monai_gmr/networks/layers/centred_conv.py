"""Strided radial and harmonic convolutions that are exact on every size: their window is even or odd as the size asks for."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.utils import _ntuple

from monai_gmr.networks.layers.gmr_conv import GMRConv1d, GMRConv2d, GMRConv3d, GMRConvNd
from monai_gmr.networks.layers.gmr_harmonic_conv import (
    GMRHarmonicConv1d,
    GMRHarmonicConv2d,
    GMRHarmonicConv3d,
    GMRHarmonicConvNd,
)
from monai_gmr.networks.layers.size_trail import record_sizes
from monai_gmr.ops import pad_nd
from monai_gmr.ops.ring_conv import conv_nd, full_precision_kernel
from monai_gmr.symmetry import Shells, centred_window, kernel_shells, ring_masks, tap_harmonics
from monai_gmr.symmetry.harmonics import number_of_components
from monai_gmr.utils import ConfigurationError


def _no_autocast(device: torch.device) -> AbstractContextManager:
    """Full precision also under autocast, which the meta device does not have."""
    return nullcontext() if device.type == "meta" else torch.autocast(device_type=device.type, enabled=False)


class CentredConvNd(GMRConvNd):
    """Taps and forward pass of the centred layers; stands before :class:`GMRConv2d` or :class:`GMRHarmonicConv2d` and their siblings.

    Args:
        surplus: voxels of padding, one number an axis, beyond ``padding`` at both ends, wherever they were: a centred layer puts half of
            them at each end.
        args, kwargs: those of :class:`GMRConv2d`; ``padding`` in voxels or "same".
    """

    window_counts: torch.Tensor

    def __init__(self, *args: Any, surplus: int | Sequence[int] = 0, **kwargs: Any) -> None:
        self.surplus = list(_ntuple(self.spatial_dims)(surplus))
        self.levels: list[tuple[list[int], list[int]]] = []
        super().__init__(*args, **kwargs)
        if self.padding == "same":
            self.surplus = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size)]
            self.padding = (0,) * self.spatial_dims
        if isinstance(self.padding, str):
            raise ConfigurationError(
                f"padding={self.padding!r} is not for {type(self).__name__}: give voxels or 'same', it centres itself."
            )
        for s, d in zip(self.stride, self.dilation):
            if d % 2 == 0 and s > 1:
                raise ConfigurationError(
                    f"stride={s} with dilation={d} has no window about the centre of every size: use an odd dilation."
                )

    def _tap_tables(self, steps: Sequence[float]) -> dict[str, np.ndarray]:
        taps = super()._tap_tables(steps)
        nominal = kernel_shells(self.kernel_size, steps)
        # shells of all windows, one after the other; the norm of a profile counts the taps of the first, so all sample one function
        radii, masks, tables = [nominal.squared_radii], [taps["masks"]], {}
        for code in range(1, 2**self.spatial_dims):
            window = self._window(code)
            shells = kernel_shells(window, steps)
            first = sum(len(each) for each in radii)
            tables[code] = (window, shells, first)
            radii.append(shells.squared_radii)
            masks.append(ring_masks(Shells(shells.tap_shell, shells.squared_radii, nominal.support), self.num_rings))
        counts = np.zeros((2**self.spatial_dims, sum(len(each) for each in radii)), dtype=np.int64)
        counts[0, : len(nominal.counts)] = nominal.counts
        for code, (window, shells, first) in tables.items():
            counts[code, first : first + len(shells.counts)] = shells.counts
            taps[f"shells_{code}"] = shells.tap_shell + first
            for order in getattr(self, "orders", ()):
                harmonics = tap_harmonics(window, steps, order)
                assert len(harmonics) == number_of_components(self.spatial_dims, order)
                taps[f"harmonics_{code}_{order}"] = (harmonics * 10**12).round().astype(np.int64)
        whole = {"squared_radii": np.concatenate(radii), "masks": np.concatenate(masks, axis=1)}
        return taps | whole | {"window_counts": counts, "counts": counts[0]}

    def _window(self, code: int) -> tuple[int, ...]:
        """Window number ``code``: a tap longer along the axes whose bits are set."""
        return tuple(k + (code >> axis & 1) for axis, k in enumerate(self.kernel_size))

    def _kernel(self, code: int) -> torch.Tensor:
        """The kernel over window number ``code``; all have the same mean over their taps."""
        if code == 0:
            with _no_autocast(self.weight.device):
                return self.dense_kernel()
        shells = getattr(self, f"shells_{code}")
        if not isinstance(self, GMRHarmonicConvNd):
            return full_precision_kernel(self.weight, self._with_equal_sums(self.basis(), code), shells)
        with _no_autocast(self.weight.device):
            profiles = self._with_equal_sums(self.radial_profiles(), code)
            tables = [getattr(self, f"harmonics_{code}_{order}") for order in self.orders]
            harmonics = torch.cat(tables).to(profiles.dtype) / self.harmonic_unit
            radial = profiles.index_select(0, self.component_profile).index_select(2, shells.flatten())
            return self._responses_kernel(radial * harmonics.unsqueeze(1), list(shells.shape))

    def _with_equal_sums(self, functions: torch.Tensor, code: int) -> torch.Tensor:
        counts = self.window_counts.to(functions.dtype)
        wanted, sums = (functions * counts[0]).sum(-1), (functions * counts[code]).sum(-1)
        return functions * torch.where(sums == 0, sums, wanted / sums.clamp_min(1e-12)).unsqueeze(-1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``; sizes are those of ``torch.nn.ConvNd``."""
        self._check_input(input)
        dims = self.spatial_dims
        sizes = list(input.shape)[-dims:]
        code, margins = 0, []
        for axis, (n, k, s, d) in enumerate(zip(sizes, self.kernel_size, self.stride, self.dilation)):
            window, margin = centred_window(n, k, s, 2 * int(self.padding[axis]) + self.surplus[axis], d)
            code += (window - k) << axis
            margins.append(margin)
        padding = margins
        if self.padding_mode != "zeros" or min(margins) < 0:
            for axis, margin in enumerate(margins):
                cut = max(0, -margin)
                input = input.narrow(axis - dims, cut, sizes[axis] - 2 * cut)
            reverse = [max(0, m) for m in reversed(margins) for _ in range(2)]
            input, padding = pad_nd(input, reverse, self.padding_mode), [0] * dims
        bias = None if isinstance(self, GMRHarmonicConvNd) else self.bias
        output = conv_nd(input, self._kernel(code), bias, self.stride, padding, self.dilation, self.groups)
        record_sizes(self.levels, sizes, output.shape[-dims:])
        return self._with_bias(self._reduced(output)) if isinstance(self, GMRHarmonicConvNd) else output

    def to_conv(self) -> nn.Module:
        """Not possible: the window depends on the size.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(
            f"{type(self).__name__} takes another window on even sizes than on odd ones, which torch.nn.Conv{self.spatial_dims}d cannot: "
            "export the layer as it is."
        )


class GMRCentredConv2d(CentredConvNd, GMRConv2d):
    """:class:`GMRConv2d` that is exact for every stride, padding and size: its steps lie about the centre of the grid.

    Along each axis the window has ``kernel_size`` or ``kernel_size + 1`` taps, whichever has the parity that the size asks for
    (:func:`~monai_gmr.symmetry.centred_window`): one radial profile, sampled at whole or at half voxels. Sizes of the result are those of
    ``torch.nn.Conv2d``, padding included.

    Args:
        surplus: padding beyond ``padding`` at both ends, one number or one an axis: 1 for the asymmetric padding (0, 1).

    All other arguments are those of :class:`GMRConv2d`, without ``padding="symmetric"``.

    Raises:
        ConfigurationError: for a stride with an even dilation, which has no such windows on every size.

    Example:
        >>> layer, x = GMRCentredConv2d(3, 8, 3, stride=2, padding=1), torch.rand(1, 3, 12, 9)
        >>> layer(x).shape, torch.allclose(layer(x.rot90(1, (2, 3))), layer(x).rot90(1, (2, 3)), atol=1e-6)
        (torch.Size([1, 8, 6, 5]), True)

    Source:
        design, section 3.
    """


class GMRCentredConv1d(CentredConvNd, GMRConv1d):
    """:class:`GMRCentredConv2d` in one dimension.

    Example:
        >>> GMRCentredConv1d(2, 4, 3, stride=2, padding=1)(torch.rand(2, 8)).shape
        torch.Size([4, 4])
    """


class GMRCentredConv3d(CentredConvNd, GMRConv3d):
    """:class:`GMRCentredConv2d` in three dimensions.

    Example:
        >>> GMRCentredConv3d(1, 2, 2, stride=2)(torch.rand(1, 1, 6, 7, 8)).shape
        torch.Size([1, 2, 3, 3, 4])
    """


class GMRCentredHarmonicConv2d(CentredConvNd, GMRHarmonicConv2d):
    """:class:`GMRHarmonicConv2d` with the windows of :class:`GMRCentredConv2d`.

    Example:
        >>> layer, x = GMRCentredHarmonicConv2d(3, 8, 3, stride=2, padding=1), torch.rand(1, 3, 12, 9)
        >>> torch.allclose(layer(x.rot90(1, (2, 3))), layer(x).rot90(1, (2, 3)), atol=1e-6)
        True
    """


class GMRCentredHarmonicConv1d(CentredConvNd, GMRHarmonicConv1d):
    """:class:`GMRCentredHarmonicConv2d` in one dimension.

    Example:
        >>> GMRCentredHarmonicConv1d(2, 4, 3, stride=2, padding=1)(torch.rand(2, 8)).shape
        torch.Size([4, 4])
    """


class GMRCentredHarmonicConv3d(CentredConvNd, GMRHarmonicConv3d):
    """:class:`GMRCentredHarmonicConv2d` in three dimensions.

    Example:
        >>> GMRCentredHarmonicConv3d(1, 4, 3, stride=2, padding=1)(torch.rand(1, 1, 6, 7, 8)).shape
        torch.Size([1, 4, 3, 4, 4])
    """
