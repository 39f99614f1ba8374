"""Radial profiles times harmonics, reduced to scalars that rotations and mirrors do not change."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import check_choice
from monai_gmr.networks.layers.conv_nd import passes_arguments_to, whole_numbers
from monai_gmr.networks.layers.gmr_conv import GMRConvNd
from monai_gmr.ops import Orders, ResponseTables, RingKernel, harmonic_conv
from monai_gmr.ops.call import Call
from monai_gmr.ops.dense_harmonic import Factors, dense_harmonic_conv
from monai_gmr.ops.harmonic_conv import harmonic_tap_basis, response_invariants, responses_kernel
from monai_gmr.ops.invariants import norm_variance
from monai_gmr.ops.kept_terms import num_chiral
from monai_gmr.ops.made_conv import MadeKernel
from monai_gmr.ops.recorded import is_recorded
from monai_gmr.ops.ring_conv import conv_nd
from monai_gmr.symmetry import (
    away_from_centre,
    gaussian_basis,
    gaussian_tables,
    has_mirrors,
    kept_group,
    kept_vectors,
    number_of_components,
    order_means,
    point_group,
    relaxation_tables,
    tap_harmonics,
)
from monai_gmr.symmetry.group_structure import GroupSpec
from monai_gmr.symmetry.taps import in_units
from monai_gmr.utils import ConfigurationError

RELAXATIONS = ("vector", "matrix")
# chirality is a small mean of widely varying terms: an optimiser step has to move it as far as other terms
CHIRAL_GAIN = 10.0


def channels_per_order(out_channels: int, order_split: Sequence[float]) -> list[int]:
    """Number of channels of each order by its share, rounded by largest remainder; shares need not add up to 1."""
    if not order_split or not min(order_split) >= 0 or not 0 < sum(order_split) < math.inf:
        raise ConfigurationError(f"order_split={tuple(order_split)} is impossible: give shares that are not all zero.")
    exact = [out_channels * share / sum(order_split) for share in order_split]
    channels = [int(e) for e in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (channels[i] - exact[i], i))
    for i in by_remainder[: out_channels - sum(channels)]:
        channels[i] += 1
    return channels


class GMRHarmonicConvNd(GMRConvNd):
    """Harmonic convolution of any dimension; use :class:`GMRHarmonicConv1d`, :class:`GMRHarmonicConv2d` or :class:`GMRHarmonicConv3d`."""

    order_gaussians: torch.Tensor
    away: torch.Tensor
    harmonics: torch.Tensor
    component_profile: torch.Tensor
    response_component: torch.Tensor
    response_channel: torch.Tensor
    kept_combinations: torch.Tensor
    combination_owners: torch.Tensor
    chiral_channels: torch.Tensor
    relax_weight: torch.Tensor | None
    chiral_weight: torch.Tensor | None

    @passes_arguments_to(GMRConvNd)
    @checked_arguments
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *args: Any,
        orders: Sequence[int] | None = None,
        order_split: Sequence[float] | None = None,
        inner_products: bool = True,
        keeps: GroupSpec = "all",
        relax: str = "matrix",
        **kwargs: Any,
    ) -> None:
        dims = self.spatial_dims
        check_choice("relax", relax, RELAXATIONS)
        kept = kept_group(keeps, dims)
        orders = tuple(range(min(3, dims + 1))) if orders is None else tuple(orders)
        if len(set(orders)) != len(orders) or not orders:
            raise ConfigurationError(f"orders={orders} is impossible: give each order once, and at least one.")
        components = [number_of_components(dims, order) for order in orders]
        if order_split is None:
            others = sum(order != 0 for order in orders)
            order_split = [0.5 if order == 0 else 0.5 / others for order in orders]
        if len(order_split) != len(orders):
            raise ConfigurationError(f"order_split={tuple(order_split)} needs one share for each of orders={orders}.")
        window = whole_numbers("kernel_size", kernel_size, dims)
        if max(window) == 1 and max(orders) > 0:
            raise ConfigurationError(
                f"kernel_size={kernel_size} has no directions for orders={orders}: use a window of at least 2, or orders=(0,)."
            )
        self.chiral_gain = CHIRAL_GAIN
        self.orders, self.components, self.order_split = orders, components, tuple(order_split)
        self.inner_products = inner_products
        whole, free = point_group(dims), any(kept_vectors(order, kept).size for order in orders if order)
        if has_mirrors(kept) and kept.order < len(whole) and not free:
            raise ConfigurationError(
                f"keeps={keeps!r} leaves no response of orders={orders} unchanged, so the layer would keep all: "
                "add an order, up to 3, or name another group."
            )
        # None for layers that keep all: what a net keeps then depends on its other layers
        self.keeps, self.relax = keeps, relax
        self.symmetry_group = kept if kept.order < len(whole) else None
        super().__init__(in_channels, out_channels, kernel_size, *args, **kwargs)

    def _make_tables(self) -> dict[str, Any]:
        tables = super()._make_tables()
        self.channels = channels_per_order(self.out_channels // self.groups, self.order_split)
        self.num_responses = self.groups * sum(n * count for n, count in zip(self.channels, self.components))
        halved = [self.inner_products and order != 0 for order in self.orders]
        self.norms = [(n + 1) // 2 if half else n for n, half in zip(self.channels, halved)]
        self.products = [n - norms for n, norms in zip(self.channels, self.norms)]
        self.reduced_components = [0 if order == 0 else count for order, count in zip(self.orders, self.components)]
        harmonics = np.concatenate([tap_harmonics(self.kernel_size, self.steps, order) for order in self.orders])
        # radial profile of each component; output channel and component of each response
        profile = [index for index, count in enumerate(self.components) for _ in range(count)]
        starts = np.cumsum([0, *self.components])
        component = [
            np.tile(np.arange(count), n) + starts[i] for i, (n, count) in enumerate(zip(self.channels, self.components))
        ]
        repeats = np.repeat(self.components, self.channels)
        kept = kept_group("all", self.spatial_dims) if self.symmetry_group is None else self.symmetry_group
        combinations, owners = relaxation_tables(self.orders, self.channels, kept)
        chiral = np.zeros((0, sum(self.channels)), np.int64)
        if not has_mirrors(kept):
            counts = [num_chiral(*sizes) for sizes in zip(self.norms, self.products, self.reduced_components)]
            ends = np.cumsum(self.channels)
            chiral = np.eye(sum(self.channels), dtype=np.int64)[
                np.concatenate([np.arange(end - count, end) for end, count in zip(ends, counts)])
            ]
        return tables | {
            "kept_combinations": in_units(combinations),
            "combination_owners": owners,
            "chiral_channels": chiral,
            "harmonics": in_units(harmonics),
            "component_profile": np.array(profile, np.int64),
            "response_component": np.concatenate(component).astype(np.int64),
            "response_channel": np.repeat(np.arange(len(repeats)), repeats).astype(np.int64),
        }

    def _radial_tables(self, radii: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
        means = order_means(self.orders, self.kernel_size, self.steps, self.support, self.num_rings)
        gaussians = gaussian_tables(radii, counts, self.support, means, self.orders)
        tables = {"order_gaussians": gaussians, "away": away_from_centre(radii, self.orders)}
        return super()._radial_tables(radii, counts) | tables

    def _finish(self) -> None:
        """Registers the tables, then the parameters whose sizes depend on them, and draws the weights."""
        self._finish_tables(self.weight.device)
        options: Any = {"device": self.weight.device, "dtype": self.weight.dtype}
        combinations, chiral = len(self.kept_combinations), len(self.chiral_channels)
        rows = self.out_channels if self.relax == "matrix" else self.groups
        relax = nn.Parameter(torch.zeros(rows, combinations, **options)) if combinations else None
        self.register_parameter("relax_weight", relax)
        self.register_parameter(
            "chiral_weight", nn.Parameter(torch.zeros(self.groups, chiral, **options)) if chiral else None
        )
        self.reset_parameters()

    def radial_profiles(self) -> torch.Tensor:
        """Radial profiles of each order on shells, shape ``(orders, rings, shells)``, at least float32."""
        if self.rings != "gaussian":
            return self.basis() * self.away.unsqueeze(1)
        return gaussian_basis(self.order_gaussians, self.sigma(), self.table_units)

    def tap_basis(self) -> torch.Tensor:
        """Functions on taps of all components of all orders, shape ``(components, rings, taps)``, at least float32."""
        profiles = self.radial_profiles()
        harmonics = self.harmonics.to(profiles.dtype) / self.table_units
        return harmonic_tap_basis(profiles, self.shells, harmonics, self.component_profile)

    def reset_parameters(self) -> None:
        """Draws fresh weights; for white noise the output has the variance of a fresh ``torch.nn.ConvNd``."""
        super().reset_parameters()
        if self.weight.is_meta:
            return
        fan_in = self.weight.shape[1]
        rows = self.weight.data.unflatten(0, (self.groups, -1)).split(self.channels, dim=1)
        with torch.no_grad():
            basis = self.tap_basis().split(self.components)
        for index, (row, count) in enumerate(zip(rows, self.components)):
            squared_norm = float((basis[index] ** 2).sum()) / count
            spread = 1.0 if self.orders[index] == 0 else norm_variance(count)
            bound = 1 / math.sqrt(fan_in * max(squared_norm, 1e-12) * spread)
            row.uniform_(-bound, bound)
        for parameter in (self.relax_weight, self.chiral_weight):
            if parameter is not None:
                nn.init.zeros_(parameter)

    def linear_matrix(self) -> torch.Tensor | None:
        """Weights of each output for the responses of orders above 0, ``(groups, out_channels / groups, responses)``; ``None`` if the kept
        group leaves no combination of them unchanged."""
        weight = self.relax_weight
        if weight is None:
            return None
        weight = weight if weight.dtype == torch.float64 else weight.float()
        rows = weight.unsqueeze(1) * self.combination_owners.to(weight.dtype)
        if self.relax == "matrix":
            rows = weight.unflatten(0, [self.groups, -1])
        return torch.matmul(rows, self.kept_combinations.to(weight.dtype) / self.table_units)

    def chiral_factors(self) -> torch.Tensor | None:
        """Factor of the term of each output that changes sign under mirror images, ``(groups, out_channels / groups)``; ``None`` if the
        kept group has mirror images, or the layer has too few channels of an order."""
        weight = self.chiral_weight
        if weight is None:
            return None
        return torch.matmul(weight * self.chiral_gain, self.chiral_channels.to(weight.dtype))

    @torch.jit.unused
    def asymmetric_terms(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Parameters that break the symmetry outside the kept group, each with a view ``(..., size)`` of all or part of it. A group of
        numbers along the last axis is the weights of one output (``relax_weight``), or one factor (``chiral_weight``)."""
        relax, chiral, views = self.relax_weight, self.chiral_weight, []
        if relax is not None and self.relax == "matrix":
            views.append((relax, relax))
        elif relax is not None:
            counts = self.combination_owners.sum(1).tolist()
            ends = np.cumsum([0, *self.channels]).tolist()
            sizes = [(end - start, counts[start]) for start, end in itertools.pairwise(ends) if end > start]
            parts = relax.split([n * size for n, size in sizes], dim=1)
            views += [(relax, part.unflatten(1, (n, size))) for part, (n, size) in zip(parts, sizes) if size]
        return views if chiral is None else [*views, (chiral, chiral.unsqueeze(-1))]

    def dense_kernel(self) -> torch.Tensor:
        """Kernels of all components of all orders, shape ``(responses, in_channels / groups, *kernel_size)``."""
        return self._responses_kernel(self.weight, self.tap_basis(), list(self.shells.shape))

    def _responses_kernel(self, weight: torch.Tensor, basis: torch.Tensor, window: list[int]) -> torch.Tensor:
        """Kernels of all responses, from functions on the taps of a window."""
        kernel = responses_kernel(weight, basis, self.response_channel, self.response_component, self.groups)
        return kernel.reshape(list(kernel.shape[:2]) + window)

    def _reduced(self, responses: torch.Tensor) -> torch.Tensor:
        """Norms and inner products over the components of each order (not order 0), plus bias and the terms that ``keeps`` allows."""
        sizes = (self.norms, self.products, self.reduced_components)
        terms = (self.linear_matrix(), self.chiral_factors())
        output = response_invariants(responses, *sizes, self.groups, self.shells.dim(), *terms)
        bias = self.bias
        if bias is not None:
            output = output + bias.to(output.dtype).reshape([-1] + [1] * self.shells.dim())
        return output

    def _run(self, call: Call, image: torch.Tensor, kernel: MadeKernel) -> torch.Tensor:
        factors, orders = Factors(self.linear_matrix(), self.chiral_factors(), self.bias), self._orders()
        call = call._replace(
            channels=(self.in_channels, self.groups * orders.num_responses()),
            orders=orders,
            kept=self.symmetry_group is not None,
            recorded=call.recorded or is_recorded(*factors),
        )
        return dense_harmonic_conv(image, kernel, factors, call)

    @torch.jit.unused
    def _orders(self) -> Orders:
        return Orders(tuple(self.norms), tuple(self.products), tuple(self.reduced_components))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(batch, in_channels, *spatial)``, or without batch, to ``out_channels`` scalar channels."""
        input, padding = self._padded(input)
        if torch.jit.is_scripting():
            geometry = (self.stride, padding, self.dilation, self.groups)
            return self._reduced(conv_nd(input, self.dense_kernel(), None, *geometry))
        profiles = self.radial_profiles()
        harmonics = self.harmonics.to(profiles.dtype) / self.table_units
        tables = ResponseTables(self.component_profile, self.response_channel, self.response_component)
        tensors = (self.weight, profiles, self.shells, self.bias, harmonics)
        kernel = RingKernel(*tensors, self.num_shells, tables, self.linear_matrix(), self.chiral_factors())
        return harmonic_conv(
            input,
            kernel,
            self._orders(),
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def to_conv(self) -> nn.Module:
        raise ConfigurationError(
            f"{type(self).__name__} takes norms, which torch.nn.Conv{self.spatial_dims}d cannot: export the layer as it is, "
            "or use GMRConv."
        )

    def extra_repr(self) -> str:
        split = ", ".join(f"{order}: {channels}" for order, channels in zip(self.orders, self.channels))
        keeps = "" if self.symmetry_group is None else f", keeps={self.keeps!r}, relax={self.relax!r}"
        return f"{super().extra_repr()}, orders={{{split}}}, num_responses={self.num_responses}{keeps}"


class GMRHarmonicConv2d(GMRHarmonicConvNd):
    r"""Convolution with radial profiles times circular harmonics, reduced to scalars that rotations and mirrors do not change.

    .. math::
        y_o = \sum_i \sum_r w_{oir}\, (b_r Y_l) \star x_i, \qquad
        z_o = b_o + |y_o| \quad\text{or}\quad b_o + \kappa\, \frac{y_p \cdot y_o}{\sqrt{|y_p|^2 + |y_o|^2}}

    :math:`y_o` has the components of order :math:`l` (1, 2 in 2D, :math:`2l + 1` in 3D), which share a weight. The first half of an order's
    channels are norms, the others inner products with a channel :math:`p` of the first half, which measure the angle between two features.
    Order 0 is :class:`GMRConv2d`. Unlike radial kernels, these distinguish directions, and the layer is still exactly equivariant, from
    scalars to scalars. It is not linear, so it has no ``to_conv`` and no transposed form.

    Shapes are those of :class:`GMRConv2d`; output channels are ordered by group, then order.

    Args:
        orders: any subset of 0 to 3 (1D: 0 and 1, even and odd); default ``(0, 1, 2)``.
        order_split: share of the output channels for each order; default half for order 0, the rest in equal parts.
        inner_products: whether half the channels of the orders above 0 are inner products; otherwise all are norms.
        keeps: the group to which the layer stays exactly equivariant: "all", "rotations" (without mirror images), a name of
            :func:`~monai_gmr.symmetry.named_group`, a pair of it and its axis such as ``("mm2", "x")``, a
            :class:`~monai_gmr.symmetry.PointGroup`, or "1" (no symmetry). Terms that break the other symmetries are learned and start at
            zero, so a fresh layer keeps all. Each output adds the combinations of responses of orders above 0 that the group leaves
            unchanged, times ``relax_weight``. If the group has no mirror images, inner products also get their cross products (in 3D only
            order 1, triple products with a third response), which change sign under mirror images, times 10 ``chiral_weight``.
        relax: "matrix": each output adds combinations of all responses; "vector": only of its own response, with fewer parameters.

    All other arguments are those of :class:`GMRConv2d`; with ``spacing`` the angles are physical. On the dense path one convolution
    computes all ``num_responses`` components as rows of one kernel: 1.5 (2D) or 2.5 (3D) per output channel with the default split.

    Example:
        >>> layer, x = GMRHarmonicConv2d(3, 8, kernel_size=5, padding=2), torch.rand(1, 3, 9, 12)
        >>> torch.allclose(layer(x.rot90(1, (2, 3))), layer(x).rot90(1, (2, 3)), atol=1e-6)
        True
        >>> layer = GMRHarmonicConv2d(3, 8, 5, padding=2, keeps=("m", 1))
        >>> _ = torch.nn.init.normal_(layer.relax_weight)
        >>> [torch.allclose(layer(x.flip(axis)), layer(x).flip(axis), atol=1e-5) for axis in (2, 3)]
        [False, True]

    Source:
        Worrall et al., Harmonic networks, arXiv 1612.04642 (norms of circular-harmonic responses).
    """

    spatial_dims = 2


class GMRHarmonicConv1d(GMRHarmonicConvNd):
    """:class:`GMRHarmonicConv2d` in one dimension: even kernels, and the absolute value of odd ones."""

    spatial_dims = 1


class GMRHarmonicConv3d(GMRHarmonicConvNd):
    """:class:`GMRHarmonicConv2d` in three dimensions, with spherical harmonics."""

    spatial_dims = 3
