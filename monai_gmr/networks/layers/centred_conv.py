"""Strided radial and harmonic convolutions that are exact on every size, with an even or odd window depending on the size."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import nn

from monai_gmr.annotations import checked_arguments
from monai_gmr.networks.layers.conv_nd import check_input, whole_numbers
from monai_gmr.networks.layers.gmr_conv import GMRConv1d, GMRConv2d, GMRConv3d, GMRConvNd
from monai_gmr.networks.layers.gmr_harmonic_conv import (
    GMRHarmonicConv1d,
    GMRHarmonicConv2d,
    GMRHarmonicConv3d,
    GMRHarmonicConvNd,
)
from monai_gmr.networks.layers.size_trail import Levels, SizedLayer, record_sizes
from monai_gmr.ops import dense_kernel, pad_nd
from monai_gmr.ops.autocast import without_autocast
from monai_gmr.ops.free_sizes import is_free, voxels
from monai_gmr.ops.harmonic_conv import harmonic_tap_basis
from monai_gmr.ops.made_conv import MadeKernel
from monai_gmr.symmetry import centred_steps, centred_window, kernel_shells, number_of_components, tap_harmonics
from monai_gmr.symmetry.taps import in_units
from monai_gmr.utils import ConfigurationError, on_plain_tensor


class CentredConvNd(SizedLayer, GMRConvNd):
    """Taps and forward pass of the centred layers; a mixin before :class:`GMRConv2d`, :class:`GMRHarmonicConv2d` or variants."""

    window_counts: torch.Tensor
    window_shells: torch.Tensor
    window_harmonics: torch.Tensor

    @checked_arguments
    def __init__(self, *args: Any, surplus: int | Sequence[int] = 0, **kwargs: Any) -> None:
        self.surplus = list(whole_numbers("surplus", surplus, self.spatial_dims, least=0))
        self.levels: Levels | None = None
        super().__init__(*args, **kwargs)
        if self.padding == "same":
            self.surplus = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size)]
            self.padding = (0,) * self.spatial_dims
        if isinstance(self.padding, str):
            raise ConfigurationError(
                f"padding={self.padding!r} is impossible for {type(self).__name__}, which centres itself: give voxels or 'same'."
            )
        # total padding of each axis, over both ends
        self.both_paddings = [2 * int(p) + s for p, s in zip(self.padding, self.surplus)]
        for s, d in zip(self.stride, self.dilation):
            if d % 2 == 0 and s > 1:
                raise ConfigurationError(
                    f"stride={s} with dilation={d} has no window about the centre of every size: use an odd dilation."
                )

    def _make_tables(self) -> dict[str, Any]:
        tables = super()._make_tables()
        # concatenated shells of all windows; masks and norms are those of the first, so all windows sample one function
        windows = [self._window(code) for code in range(2**self.spatial_dims)]
        shells = [kernel_shells(window, self.steps)._replace(support=self.support) for window in windows]
        starts = np.cumsum([0, *(len(each.squared_radii) for each in shells)])
        counts = np.zeros((len(windows), starts[-1]), dtype=np.int64)
        # a window fills the first taps of its row; the others are on a shell where every function is 0
        longest = tuple(k + 1 for k in self.kernel_size)
        window_shells = np.full((len(windows), *longest), starts[-1], dtype=np.int64)
        orders = getattr(self, "orders", ())
        components = sum(number_of_components(self.spatial_dims, order) for order in orders)
        harmonics = np.zeros((len(windows), components, *longest), dtype=np.int64)
        for code, (window, each, first) in enumerate(zip(windows, shells, starts)):
            taps: tuple[slice, ...] = tuple(slice(k) for k in window)
            counts[code, first : first + len(each.counts)] = each.counts
            window_shells[code][taps] = each.tap_shell + first
            if orders:
                values = np.concatenate([tap_harmonics(window, self.steps, order) for order in orders])
                scaled = in_units(values).reshape(components, *window)
                harmonics[code][(slice(None), *taps)] = scaled
        return tables | {
            **self._radial_tables(np.concatenate([each.radii for each in shells]), counts[0]),
            "masks": np.concatenate([self._ring_masks(each) for each in shells], axis=1),
            "window_counts": counts,
            "counts": counts[0],
            "window_shells": window_shells,
            "window_harmonics": harmonics,
        }

    def _window(self, code: int) -> tuple[int, ...]:
        """Window number ``code``: one tap longer along the axes whose bits are set."""
        return tuple(k + (code >> axis & 1) for axis, k in enumerate(self.kernel_size))

    def _kernel(self, code: int, window: Sequence[int], weight: torch.Tensor, functions: torch.Tensor) -> torch.Tensor:
        """The kernel over window number ``code``, zero on taps outside it; all windows have the same sum over their taps."""
        shells, harmonics = self.window_shells[code], self.window_harmonics[code]
        for axis, k in enumerate(window):
            shells, harmonics = shells.narrow(axis, 0, k), harmonics.narrow(axis + 1, 0, k)
        functions = self._with_equal_sums(functions, code)
        if not isinstance(self, GMRHarmonicConvNd):
            return dense_kernel(weight, functions, shells)
        angular = harmonics.flatten(1).to(functions.dtype) / self.table_units
        basis = harmonic_tap_basis(functions, shells, angular, self.component_profile)
        return self._responses_kernel(weight, basis, list(shells.shape))

    def _with_equal_sums(self, functions: torch.Tensor, code: int) -> torch.Tensor:
        counts = self.window_counts.to(functions.dtype)
        wanted, sums = (functions * counts[0]).sum(-1), (functions * counts[code]).sum(-1)
        functions = functions * torch.where(sums == 0, sums, wanted / sums.clamp_min(1e-12)).unsqueeze(-1)
        return F.pad(functions, [0, 1])

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolves ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``, with the output sizes of ``torch.nn.ConvNd``."""
        if isinstance(input, MetaTensor):
            return on_plain_tensor(partial(CentredConvNd.forward, self), input)
        dims = self.spatial_dims
        check_input(self, input, dims, self.in_channels, unbatched=True)
        self.mend_tables()
        sizes = list(input.shape)[-dims:]
        input, code, window, padding = (self._free_windows if is_free(sizes) else self._windows)(input, sizes)
        # full precision also under autocast
        with without_autocast(self.weight):
            functions = self.radial_profiles() if isinstance(self, GMRHarmonicConvNd) else self.basis()
        kernel = MadeKernel(partial(self._kernel, code, window), (self.weight, functions))
        output = self._conv_by_kernel(input, kernel, window, padding)
        record_sizes(self.levels, sizes, output.shape[-dims:])
        return output

    def _windows(self, input: torch.Tensor, sizes: list[int]) -> tuple[torch.Tensor, int, Sequence[int], list[int]]:
        """Image, window number, window and padding of the convolution, for an image of given sizes."""
        dims = self.spatial_dims
        code, margins = 0, []
        arguments = zip(sizes, self.kernel_size, self.stride, self.both_paddings, self.dilation)
        for axis, (n, k, s, p, d) in enumerate(arguments):
            window, margin = centred_window(n, k, s, p, d)
            code += (window - k) << axis
            margins.append(margin)
        padding = margins
        if self.padding_mode != "zeros" or min(margins) < 0:
            for axis, margin in enumerate(margins):
                cut = max(0, -margin)
                input = input.narrow(axis - dims, cut, sizes[axis] - 2 * cut)
            reverse = [max(0, m) for m in reversed(margins) for _ in range(2)]
            input, padding = pad_nd(input, reverse, self.padding_mode), [0] * dims
        return input, code, self._window(code), padding

    def _free_windows(
        self, input: torch.Tensor, sizes: list[Any]
    ) -> tuple[torch.Tensor, int, Sequence[int], list[int]]:
        """The same for symbolic sizes, with the longest window, whose first taps are those of the actual window."""
        dims = self.spatial_dims
        code, both = 0, self.both_paddings
        # enough for any size
        reserve = [p // 2 + d + 1 for p, d in zip(both, self.dilation)]
        input = pad_nd(input, [r for r in reversed(reserve) for _ in range(2)], self.padding_mode)
        for axis, (n, k, s, p, d) in enumerate(zip(sizes, self.kernel_size, self.stride, both, self.dilation)):
            steps, longer, margin = centred_steps(n, k, s, p, d)
            code = code + longer * 2**axis
            places = voxels((steps - 1) * s + d * k + 1, input) + (reserve[axis] - margin)
            input = input.index_select(axis - dims, places)
        return input, code, [k + 1 for k in self.kernel_size], [0] * dims

    def to_conv(self) -> nn.Module:
        raise ConfigurationError(
            f"{type(self).__name__} has different windows for even and odd sizes, which torch.nn.Conv{self.spatial_dims}d cannot: "
            "export the layer as it is."
        )


class GMRCentredConv2d(CentredConvNd, GMRConv2d):
    """:class:`GMRConv2d` that is exact for every stride, padding and size: its steps are centred on the grid.

    Along each axis the window has ``kernel_size`` or ``kernel_size + 1`` taps, whichever has the parity that the size needs
    (:func:`~monai_gmr.symmetry.centred_window`): one radial profile, sampled at whole or half voxels. Output sizes are those of
    ``torch.nn.Conv2d``, padding included.

    Args:
        surplus: total padding in addition to ``padding`` at both ends, one number or one per axis: 1 for the asymmetric padding (0, 1).

    All other arguments are those of :class:`GMRConv2d`, without ``padding="symmetric"``.

    Raises:
        ConfigurationError: for a stride with an even dilation, for which some sizes have no such window.

    Example:
        >>> layer, x = GMRCentredConv2d(3, 8, 3, stride=2, padding=1), torch.rand(1, 3, 12, 9)
        >>> layer(x).shape, torch.allclose(layer(x.rot90(1, (2, 3))), layer(x).rot90(1, (2, 3)), atol=1e-6)
        (torch.Size([1, 8, 6, 5]), True)
    """


class GMRCentredConv1d(CentredConvNd, GMRConv1d):
    """:class:`GMRCentredConv2d` in one dimension."""


class GMRCentredConv3d(CentredConvNd, GMRConv3d):
    """:class:`GMRCentredConv2d` in three dimensions."""


class GMRCentredHarmonicConv2d(CentredConvNd, GMRHarmonicConv2d):
    """:class:`GMRHarmonicConv2d` with the windows of :class:`GMRCentredConv2d`."""


class GMRCentredHarmonicConv1d(CentredConvNd, GMRHarmonicConv1d):
    """:class:`GMRCentredHarmonicConv2d` in one dimension."""


class GMRCentredHarmonicConv3d(CentredConvNd, GMRHarmonicConv3d):
    """:class:`GMRCentredHarmonicConv2d` in three dimensions."""
