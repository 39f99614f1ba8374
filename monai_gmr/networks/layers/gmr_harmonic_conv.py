"""Radial profiles times harmonics, reduced to scalars that no turn changes (design, section 1, angular orders).

Measured by ``tests/networks/layers/measure_harmonic_variants.py``: balanced accuracy on red blood cells (2D, k = 5, three-stage ResNet,
5 epochs of 5,000 cells) and Dice on membranes (3D, k = 3, three-level U-Net, 240 steps), on validation data, seed 0:

=================================================  =====  =====
variant                                             2D     3D
=================================================  =====  =====
norms, split 1/2 1/4 1/4                           .636   .660
radial only                                        .509   .574
squared norms                                      .571   .593
**inner products for half the norms** (default)    .665   .672
one weight for all orders (a third of the weights) .620   .661
split 1/3 1/3 1/3                                  .628   .675
split 1/4 3/8 3/8                                  .630   .641
split 3/4 1/8 1/8                                  .643
orders 0 1                                         .609
orders 0 2                                         .646
orders 0 1 2 3                                     .631
orders 1 2 in the first two levels only            .645
orders 1 2 in the first level only                 .615
=================================================  =====  =====

One seed: a second one of "norms" in 2D gave .630, two of the default in 3D .672 and
.683, so a difference of .01 says nothing. In 2D the row in bold was measured before the inner products had their scale. Empty: not run.

Means of the profiles of the orders above 0 from 1 to S - .75 voxels, S the support, were compared in 3D, k = 3, with means from .75 to
S - 1, which halve the error at other angles: .672 and .683 against .658 and .645 (seeds 0, 1). On a window of 3 an order 2 that is
the same in every direction has one shape only; the freedom to deviate from it pays.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from monai_gmr.networks.layers.gmr_conv import GMRConvNd
from monai_gmr.ops import ring_conv
from monai_gmr.ops.backends import select_backend
from monai_gmr.ops.ring_conv import conv_nd, dense_ring_conv
from monai_gmr.symmetry import gaussian_basis, number_of_components, tap_harmonics
from monai_gmr.utils import ConfigurationError

UNITS_PER_HARMONIC = 10**12
NORM_SMOOTHING = 1e-2
HARMONIC_FIRST_MEAN = 1.0
HARMONIC_MEAN_MARGIN = 0.75


def channels_per_order(out_channels: int, order_split: Sequence[float]) -> list[int]:
    """Split channels over orders by the largest remainder.

    Args:
        out_channels: channels to split.
        order_split: share of each order; they need not add up to 1.

    Raises:
        ConfigurationError: when a share is negative or all are zero.

    Example:
        >>> channels_per_order(10, (0.5, 0.25, 0.25))
        [5, 3, 2]
    """
    if not order_split or min(order_split) < 0 or sum(order_split) <= 0:
        raise ConfigurationError(f"order_split={tuple(order_split)} is impossible: give shares that are not all zero.")
    exact = [out_channels * share / sum(order_split) for share in order_split]
    channels = [int(e) for e in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (channels[i] - exact[i], i))
    for i in by_remainder[: out_channels - sum(channels)]:
        channels[i] += 1
    return channels


def norm_variance(components: int) -> float:
    """Variance of the Euclidean norm of independent standard normal components.

    Example:
        >>> round(norm_variance(2), 4)
        0.4292
    """
    return components - 2 * (math.gamma((components + 1) / 2) / math.gamma(components / 2)) ** 2


def inner_product_scale(components: int) -> float:
    r"""What brings :func:`invariant_inner_product` to the variance that :func:`invariant_norm` has.

    For two independent normal responses of :math:`c` components of variance :math:`s` the former's is :math:`s c / (2 (c + 1))`, because
    :math:`|a|^2 / (|a|^2 + |b|^2)` is Beta distributed and independent of the sum; the latter's is :math:`s` times :func:`norm_variance`.

    Example:
        >>> round(inner_product_scale(2), 4)
        1.1347
    """
    return math.sqrt(norm_variance(components) * 2 * (components + 1) / components)


def invariant_norm(squared_length: torch.Tensor, smoothing: float = NORM_SMOOTHING) -> torch.Tensor:
    r"""Length of a response, :math:`\sqrt{|a|^2 + \epsilon^2} - \epsilon`: its gradient is finite, and 0 at 0.

    Args:
        squared_length: sum of squares over the components, any shape.
        smoothing: size below which the length is rounded off.

    Example:
        >>> invariant_norm(torch.tensor(25.0))
        tensor(4.9900)
    """
    return (squared_length + smoothing**2).sqrt() - smoothing


def invariant_inner_product(
    product: torch.Tensor, squared_lengths: torch.Tensor, smoothing: float = NORM_SMOOTHING
) -> torch.Tensor:
    r"""Inner product relative to the size of both responses, :math:`a \cdot b / \sqrt{|a|^2 + |b|^2 + \epsilon^2}`.

    It grows linearly, tells the angle between two responses, which no turn of both changes, and has a sign. Its gradient is finite, and
    0 at 0.

    Args:
        product: :math:`a \cdot b`, any shape.
        squared_lengths: :math:`|a|^2 + |b|^2`, of the same shape.
        smoothing: size below which it is rounded off.

    Example:
        >>> invariant_inner_product(torch.tensor(-25.0), torch.tensor(50.0)).round(decimals=3)
        tensor(-3.5360)
    """
    return product / (squared_lengths + smoothing**2).sqrt()


class GMRHarmonicConvNd(GMRConvNd):
    """Harmonic convolution of any dimension; use :class:`GMRHarmonicConv2d` and its siblings."""

    harmonics: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *args: Any,
        orders: Sequence[int] | None = None,
        order_split: Sequence[float] | None = None,
        inner_products: bool = True,
        **kwargs: Any,
    ) -> None:
        dims = self.spatial_dims
        orders = tuple(range(min(3, dims + 1))) if orders is None else tuple(orders)
        if len(set(orders)) != len(orders) or not orders:
            raise ConfigurationError(f"orders={orders} is impossible: give each order once, and at least one.")
        components = [number_of_components(dims, order) for order in orders]
        if order_split is None:
            others = sum(order != 0 for order in orders)
            order_split = [0.5 if order == 0 else 0.5 / others for order in orders]
        if len(order_split) != len(orders):
            raise ConfigurationError(f"order_split={tuple(order_split)} has not one share for each of orders={orders}.")
        self.first_mean, self.mean_margin = HARMONIC_FIRST_MEAN, HARMONIC_MEAN_MARGIN
        self.harmonic_unit = float(UNITS_PER_HARMONIC)
        self.orders, self.components, self.order_split = orders, components, tuple(order_split)
        self.inner_products = inner_products
        super().__init__(in_channels, out_channels, kernel_size, *args, **kwargs)

    def _register_taps(self, steps: Sequence[float]) -> None:
        super()._register_taps(steps)
        self.channels = channels_per_order(self.out_channels // self.groups, self.order_split)
        self.num_responses = self.groups * sum(n * count for n, count in zip(self.channels, self.components))
        self.norms = [
            (n + 1) // 2 if self.inner_products and order != 0 else n for n, order in zip(self.channels, self.orders)
        ]
        self.inner_product_scales = [inner_product_scale(count) for count in self.components]
        tables = [torch.as_tensor(tap_harmonics(self.kernel_size, steps, order)) for order in self.orders]
        # integers: no cast to half precision
        fixed_point = (torch.cat(tables) * UNITS_PER_HARMONIC).round().to(torch.int64)
        self.register_buffer("harmonics", fixed_point.to(self.weight.device), persistent=False)

    def radial_profiles(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Radial profiles on shells of order 0 and of all others, shape ``(rings, shells)`` each, at least float32."""
        centred = self.basis()
        if max(self.orders) == 0:
            return centred, centred
        away = (self.squared_radii > 0).to(self.counts.dtype)
        others = centred
        if self.rings == "gaussian":
            # a harmonic has no value at the centre: its profiles start one voxel out
            others = gaussian_basis(
                self.squared_radii, self.counts * away, self.sigma(), self.support, self.first_mean, self.mean_margin
            )
        return centred, others * away

    def angular_factors(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        """Harmonics of one order on taps, shape ``(components, taps)``."""
        start = sum(self.components[:index])
        return self.harmonics[start : start + self.components[index]].to(dtype) / self.harmonic_unit

    def order_basis(self, index: int) -> torch.Tensor:
        """Functions on taps of one order, shape ``(rings, components, taps)``, at least float32."""
        centred, others = self.radial_profiles()
        radial = centred if self.orders[index] == 0 else others
        angular = self.angular_factors(index, radial.dtype)
        return radial[:, self.shells.flatten()][:, None, :] * angular[None, :, :]

    def reset_parameters(self) -> None:
        """Draw fresh weights; on white noise the output's variance is that of a fresh ``torch.nn.ConvNd``."""
        super().reset_parameters()
        if self.weight.is_meta:
            return
        fan_in = self.weight.shape[1]
        rows = self.weight.data.unflatten(0, (self.groups, -1)).split(self.channels, dim=1)
        for index, (row, count) in enumerate(zip(rows, self.components)):
            with torch.no_grad():
                squared_norm = float((self.order_basis(index) ** 2).sum()) / count
            spread = 1.0 if self.orders[index] == 0 else norm_variance(count)
            bound = 1 / math.sqrt(fan_in * max(squared_norm, 1e-12) * spread)
            row.uniform_(-bound, bound)

    def dense_kernel(self) -> torch.Tensor:
        """Kernels of all components of all orders, shape ``(responses, in_channels / groups, *kernel_size)``."""
        kernels: list[torch.Tensor] = []
        centred, others = self.radial_profiles()
        taps = self.shells.flatten()
        rows = self.weight.reshape(self.groups, -1, self.weight.shape[1], self.num_rings).to(centred.dtype)
        start = 0
        for index in range(len(self.orders)):
            channels = self.channels[index]
            radial = centred if self.orders[index] == 0 else others
            per_shell = torch.matmul(rows.narrow(1, start, channels), radial)
            kernel = per_shell.index_select(3, taps).unsqueeze(2)
            if self.orders[index] != 0:
                kernel = kernel * self.angular_factors(index, radial.dtype).unsqueeze(1)
            kernels.append(kernel.flatten(1, 2))
            start += channels
        kernel = torch.cat(kernels, dim=1).flatten(0, 1)
        return kernel.reshape(list(kernel.shape[:2]) + list(self.shells.shape)).to(self.weight.dtype)

    @torch.jit.unused
    def _uses_dense(self, input: torch.Tensor) -> bool:
        channels = (self.in_channels, self.num_responses)
        return select_backend(input, tuple(self.kernel_size), channels) is dense_ring_conv

    @torch.jit.unused
    def _responses_by_order(self, input: torch.Tensor, padding: list[int]) -> torch.Tensor:
        """What the dense kernel's convolution gives, by a backend that knows radial profiles and angular factors apart."""
        axis = input.dim() - self.shells.dim() - 1
        rows = self.weight.unflatten(0, (self.groups, -1)).split(self.channels, dim=1)
        parts = []
        centred, others = self.radial_profiles()
        for index, row in enumerate(rows):
            if self.channels[index] == 0:
                continue
            radial = centred if self.orders[index] == 0 else others
            part = ring_conv(
                input,
                row.flatten(0, 1),
                radial,
                self.shells,
                None,
                self.stride,
                padding,
                self.dilation,
                self.groups,
                factors=self.angular_factors(index, radial.dtype),
            )
            parts.append(part.unflatten(axis, (self.groups, -1)).flatten(axis + 1, axis + 2))
        return torch.cat(parts, dim=axis + 1).flatten(axis, axis + 1)

    def _reduced(self, responses: torch.Tensor) -> torch.Tensor:
        """Norms and inner products over the components of each order; order 0 stays as it is."""
        dims = self.shells.dim()
        axis = responses.dim() - dims - 1
        lead, spatial = list(responses.shape[:axis]), list(responses.shape[axis + 1 :])
        grouped = responses.reshape(lead + [self.groups, -1] + spatial)
        parts: list[torch.Tensor] = []
        start = 0
        for index in range(len(self.orders)):
            channels, count = self.channels[index], self.components[index]
            part = grouped.narrow(axis + 1, start, channels * count)
            start += channels * count
            if self.orders[index] == 0:
                parts.append(part)
                continue
            part = part.reshape(lead + [self.groups, channels, count] + spatial)
            part = part if part.dtype == torch.float64 else part.float()
            squared = (part * part).sum(dim=axis + 2)
            norms = self.norms[index]
            parts.append(invariant_norm(squared.narrow(axis + 1, 0, norms)).to(responses.dtype))
            rest = channels - norms
            if rest > 0:
                product = part.narrow(axis + 1, 0, rest) * part.narrow(axis + 1, norms, rest)
                lengths = squared.narrow(axis + 1, 0, rest) + squared.narrow(axis + 1, norms, rest)
                inner = invariant_inner_product(product.sum(dim=axis + 2), lengths)
                parts.append((inner * self.inner_product_scales[index]).to(responses.dtype))
        return torch.cat(parts, dim=axis + 1).flatten(axis, axis + 1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(batch, in_channels, *spatial)`` or without the batch, to as many scalars as ``out_channels``."""
        input, padding = self._padded(input)
        if torch.jit.is_scripting() or self.weight.device.type == "meta":
            kernel = self.dense_kernel()
            responses = conv_nd(input, kernel, None, self.stride, padding, self.dilation, self.groups)
        elif self._uses_dense(input):
            with torch.autocast(device_type=self.weight.device.type, enabled=False):
                kernel = self.dense_kernel()
            responses = conv_nd(input, kernel, None, self.stride, padding, self.dilation, self.groups)
        else:
            responses = self._responses_by_order(input, padding)
        output = self._reduced(responses)
        bias = self.bias
        if bias is not None:
            output = output + bias.to(output.dtype).reshape([-1] + [1] * self.shells.dim())
        return output

    def to_conv(self) -> nn.Module:
        """Not possible: the layer is not linear.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(
            f"{type(self).__name__} takes norms, which torch.nn.Conv{self.spatial_dims}d cannot: export the layer as it is, "
            "or use GMRConv."
        )

    def extra_repr(self) -> str:
        """The arguments that differ from the defaults, and the channels of each order."""
        split = ", ".join(f"{order}: {channels}" for order, channels in zip(self.orders, self.channels))
        return f"{super().extra_repr()}, orders={{{split}}}, num_responses={self.num_responses}"


class GMRHarmonicConv2d(GMRHarmonicConvNd):
    r"""Convolution with radial profiles times circular harmonics, reduced to scalars that no turn changes.

    .. math::
        y_o = \sum_i \sum_r w_{oir}\, (b_r Y_l) \star x_i, \qquad
        z_o = b_o + |y_o| \quad\text{or}\quad b_o + \kappa\, \frac{y_p \cdot y_o}{\sqrt{|y_p|^2 + |y_o|^2}}

    :math:`y_o` has the components of order :math:`l` (1, 2 in 2D, :math:`2l + 1` in 3D), which share a weight. The first half of an order's
    channels are norms, the others inner products with a channel :math:`p` of the first half: how two features stand to each other; order
    0 is :class:`GMRConv2d` as it is. A purely radial kernel does not see which way an edge runs; these do, and the layer is exactly as
    equivariant, from scalars to scalars. It is not linear: no ``to_conv``, no transposed form.

    Shape:
        - input: ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``
        - output: as ``torch.nn.Conv2d``'s; channels are ordered by group, then order
        - ``weight``: ``(out_channels, in_channels / groups, rings)``

    Args:
        orders: any subset of 0 to 3 (1D: 0 and 1, even and odd); default ``(0, 1, 2)``.
        order_split: share of the output channels for each order; default half for order 0, the rest alike.
        inner_products: whether half the channels of the orders above 0 are inner products; otherwise all are norms.

    All other arguments are those of :class:`GMRConv2d`; with ``spacing`` the angles are physical. On the dense path all components
    are rows of one kernel and one convolution, ``num_responses`` of them: with the default split 1.5 (2D) or 2.5 (3D) an output channel.

    Raises:
        ConfigurationError: when arguments or input do not fit; one sentence that says what does.

    Example:
        >>> layer, x = GMRHarmonicConv2d(3, 8, kernel_size=5, padding=2), torch.rand(1, 3, 9, 12)
        >>> torch.allclose(layer(x.rot90(1, (2, 3))), layer(x).rot90(1, (2, 3)), atol=1e-6)
        True

    Source:
        design, section 1; Worrall et al., Harmonic networks, arXiv 1612.04642 (norms of circular-harmonic responses).
    """

    spatial_dims = 2


class GMRHarmonicConv1d(GMRHarmonicConvNd):
    """:class:`GMRHarmonicConv2d` in one dimension: even kernels, and the absolute value of odd ones.

    Example:
        >>> GMRHarmonicConv1d(2, 4, 3, padding="same")(torch.rand(2, 7)).shape
        torch.Size([4, 7])
    """

    spatial_dims = 1


class GMRHarmonicConv3d(GMRHarmonicConvNd):
    """:class:`GMRHarmonicConv2d` in three dimensions, with spherical harmonics.

    Example:
        >>> GMRHarmonicConv3d(1, 8, 3, padding=1)(torch.rand(1, 1, 6, 7, 8)).shape
        torch.Size([1, 8, 6, 7, 8])
    """

    spatial_dims = 3
