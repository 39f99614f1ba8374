"""Kernels of partial group convolutions: functions of position and relative rotation, evaluated at any orientation."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_gmr.networks.layers.table_module import TableModule
from monai_gmr.symmetry import (
    default_num_rings,
    gaussian_basis,
    gaussian_tables,
    initial_sigma,
    kernel_shells,
    number_of_components,
    order_means,
    positive_sigma,
    tap_coordinates,
    tap_harmonics,
)
from monai_gmr.symmetry.taps import GAUSSIAN_TAPER, SIGMA_FLOOR, TABLE_UNITS, in_units
from monai_gmr.symmetry.wigner import group_functions, harmonic_matrices, harmonic_rows, number_of_functions
from monai_gmr.utils import ConfigurationError

DEFAULT_FREQUENCIES = {2: 2, 3: 1}
SIREN_FREQUENCY = 10.0


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Converts a tensor to float32, unless it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class PartialKernel(TableModule):
    """Base of the kernels: pairs of fields ``(out_fields, in_fields)``, taps, and functions of the relative rotation.

    A call takes the orientations of the output, ``(G, d, d)``, and the relative rotations ``g^-1 h``, ``(G, H, d, d)``, or ``None`` to lift
    scalars. It returns the kernel, ``(out_fields, G, in_fields, H, taps)``.
    """

    weight: nn.Parameter
    rows: torch.Tensor
    orders: tuple[int, ...] = ()  # orders of the harmonics of position

    def __init__(
        self, kernel_size: Sequence[int], steps: Sequence[float], frequencies: int | None, mirrors: bool, lifts: bool
    ) -> None:
        super().__init__()
        dims = len(kernel_size)
        self.kernel_size, self.steps, self.lifts = tuple(kernel_size), tuple(steps), lifts
        self.mirrors = mirrors and not lifts
        self.frequencies = DEFAULT_FREQUENCIES[dims] if frequencies is None else frequencies
        number_of_components(dims, self.frequencies)  # raises if there is none
        self.frequencies = 0 if lifts else self.frequencies
        self.num_functions = number_of_functions(dims, self.frequencies, self.mirrors)

    def _row_shapes(self) -> list[tuple[int, int]]:
        """Shapes of :func:`~monai_gmr.symmetry.harmonic_rows`, for each order from 0."""
        dims, highest = len(self.kernel_size), max(self.frequencies, *self.orders, 0)
        return [(number_of_components(dims, order), dims**order) for order in range(highest + 1)]

    def _make_tables(self) -> dict[str, Any]:
        dims = len(self.kernel_size)
        rows = [harmonic_rows(dims, order).ravel() for order in range(len(self._row_shapes()))]
        return {"rows": in_units(np.concatenate(rows))}

    def _harmonic_rows(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """:func:`~monai_gmr.symmetry.harmonic_rows` of each order from 0."""
        shapes = self._row_shapes()
        parts = (self.rows.to(dtype) / TABLE_UNITS).split([math.prod(shape) for shape in shapes])
        return [part.reshape(shape) for part, shape in zip(parts, shapes)]

    def _relative(
        self, orientations: torch.Tensor, relative: torch.Tensor | None, rows: list[torch.Tensor]
    ) -> torch.Tensor:
        """Functions of the relative rotation, ``(G, H, functions)``."""
        if relative is None:
            return orientations.new_ones(orientations.shape[0], 1, 1)
        return group_functions(relative, self.frequencies, self.mirrors, rows)

    def reset_parameters(self, in_order: int) -> None:
        """Draws fresh weights for input fields on ``in_order`` elements, over which the convolution averages."""
        raise NotImplementedError


class HarmonicKernel(PartialKernel):
    r"""Gaussians of the radius, times harmonics of the direction, times functions of the relative rotation.

    .. math::
        w(t, r) = \sum_{l, n, c, f} a_{lncf}\; b_{ln}(|t|)\; Y_{lc}(t / |t|)\; F_f(r), \qquad
        w(g^{-1} t, g^{-1} h) = \sum a_{lncf}\; b_{ln}(|t|)\; (D_l(g)^\top Y_l(t))_c\; F_f(g^{-1} h)

    It is rotated by the matrices that mix harmonics (phases in 2D), not by resampling.

    Args:
        kernel_size, steps: window, and distances of its taps (:func:`~monai_gmr.symmetry.tap_spacing`).
        out_fields, in_fields: numbers of fields.
        orders: orders of the harmonics of position, 0 to 3.
        frequencies: highest frequency (2D) or order (3D) of the functions of relative rotations.
        mirrors: whether relative elements can be mirror images.
        lifts: whether the input consists of scalars.
    """

    shells: torch.Tensor
    gaussians: torch.Tensor
    harmonics: torch.Tensor

    def __init__(
        self,
        kernel_size: Sequence[int],
        steps: Sequence[float],
        out_fields: int,
        in_fields: int,
        *,
        orders: Sequence[int] | None,
        frequencies: int | None,
        mirrors: bool,
        lifts: bool,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(kernel_size, steps, frequencies, mirrors, lifts)
        dims = len(self.kernel_size)
        if orders is None:
            orders = (0,) if max(self.kernel_size) == 1 else (0, 1, 2)
        self.orders = tuple(orders)
        if len(set(self.orders)) != len(self.orders) or not self.orders:
            raise ConfigurationError(f"orders={self.orders} is impossible: give each order once, and at least one.")
        self.components = [number_of_components(dims, order) for order in self.orders]
        if max(self.kernel_size) == 1 and max(self.orders) > 0:
            raise ConfigurationError(
                f"kernel_size={self.kernel_size} has no directions for orders={self.orders}: use a window of at least 2, or orders=(0,)."
            )
        shells = kernel_shells(self.kernel_size, self.steps)
        self.support, self.num_rings = float(shells.support), default_num_rings(shells)
        self.num_taps = self.num_rings * sum(self.components)
        shape = (out_fields, in_fields, self.num_taps * self.num_functions)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        sigma = initial_sigma("gaussian", shells, self.num_rings) - SIGMA_FLOOR["gaussian"]
        widths = torch.full((self.num_rings,), math.log(sigma), device=device, dtype=dtype)
        # a function of unit norm on a single shell has no width
        self.log_sigma = nn.Parameter(widths) if len(shells.squared_radii) > 1 else None
        self._finish_tables(device)

    def _make_tables(self) -> dict[str, Any]:
        shells = kernel_shells(self.kernel_size, self.steps)
        harmonics = np.concatenate([tap_harmonics(self.kernel_size, self.steps, order) for order in self.orders])
        means = order_means(self.orders, self.kernel_size, self.steps, self.support, self.num_rings)
        return super()._make_tables() | {
            "shells": shells.tap_shell.ravel().astype(np.int64),
            "gaussians": gaussian_tables(shells.radii, shells.counts, self.support, means, self.orders),
            "harmonics": in_units(harmonics),
        }

    def tap_functions(self, orientations: torch.Tensor, rows: list[torch.Tensor]) -> torch.Tensor:
        """Functions of position at orientations ``(G, d, d)``, ``(G, functions, taps)``, by order, component and ring; ``rows`` are
        :func:`~monai_gmr.symmetry.harmonic_rows` of each order from 0."""
        log_sigma = self.weight.new_zeros(self.num_rings) if self.log_sigma is None else self.log_sigma
        sigma = positive_sigma(log_sigma, SIGMA_FLOOR["gaussian"])
        profiles = gaussian_basis(self.gaussians, sigma, TABLE_UNITS)
        profiles = profiles.to(orientations.dtype).index_select(2, self.shells)
        harmonics = (self.harmonics.to(orientations.dtype) / TABLE_UNITS).split(self.components)
        functions = []
        for order, profile, upright in zip(self.orders, profiles.unbind(), harmonics):
            rotated = harmonic_matrices(orientations, order, rows[order]).transpose(1, 2) @ upright
            functions.append((rotated.unsqueeze(2) * profile).flatten(1, 2))
        return torch.cat(functions, 1)

    def forward(self, orientations: torch.Tensor, relative: torch.Tensor | None) -> torch.Tensor:
        """The kernel at the given orientations and relative rotations."""
        self.mend_tables()
        rows = self._harmonic_rows(orientations.dtype)
        taps, group = self.tap_functions(orientations, rows), self._relative(orientations, relative, rows)
        weight = at_least_float32(self.weight).unflatten(2, (self.num_taps, self.num_functions))
        rows, columns = weight.shape[:2]
        # (out, in, functions of taps, G, H), then one product per orientation
        mixed = (weight @ group.flatten(0, 1).t()).unflatten(3, group.shape[:2])
        mixed = mixed.permute(3, 0, 1, 4, 2).flatten(1, 3)
        return (mixed @ taps).unflatten(1, (rows, columns, -1)).transpose(0, 1)

    def reset_parameters(self, in_order: int) -> None:
        """Draws fresh weights; for white noise the output has the variance of a fresh ``torch.nn.ConvNd``."""
        if self.weight.is_meta:
            return
        with torch.no_grad():
            identity = torch.eye(len(self.kernel_size), dtype=torch.float64, device=self.weight.device)
            functions = self.tap_functions(identity.unsqueeze(0), self._harmonic_rows(identity.dtype))
            squared = float((functions**2).sum())
        # the mean over the elements divides the variance by the number of elements
        variance = in_order / (3 * self.weight.shape[1])
        # the squared functions of the relative rotation sum to their number at every element
        bound = math.sqrt(3 * variance / (squared * self.num_functions))
        nn.init.uniform_(self.weight, -bound, bound)

    def extra_repr(self) -> str:
        return f"orders={self.orders}, frequencies={self.frequencies}, rings={self.num_rings}"


class SirenKernel(PartialKernel):
    """Small network with sines (SIREN) of the position in the filter's frame and the relative rotation, tapered at the window's border.

    Rotations enter by their sines and cosines (2D) or matrices (3D), so that the kernel has the right period.

    Args:
        hidden: width of the two hidden layers.

    All other arguments are those of :class:`HarmonicKernel`.

    Source:
        Sitzmann et al., arXiv 2006.09661; as a kernel of group convolutions: arXiv 2110.10211, section 4.2.
    """

    coordinates: torch.Tensor

    def __init__(
        self,
        kernel_size: Sequence[int],
        steps: Sequence[float],
        out_fields: int,
        in_fields: int,
        *,
        frequencies: int | None,
        mirrors: bool,
        lifts: bool,
        hidden: int = 32,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(kernel_size, steps, frequencies, mirrors, lifts)
        self.support, options = (
            float(kernel_shells(self.kernel_size, self.steps).support),
            {"device": device, "dtype": dtype},
        )
        self.first = nn.Linear(len(self.kernel_size) + self.num_functions - 1, hidden, **options)
        self.second = nn.Linear(hidden, hidden, **options)
        self.weight = nn.Parameter(torch.empty((out_fields, in_fields, hidden), **options))
        self._finish_tables(device)

    def _make_tables(self) -> dict[str, Any]:
        # twice the coordinates in voxels would be integers, but not with different steps
        coordinates = tap_coordinates(self.kernel_size, self.steps).reshape(-1, len(self.kernel_size))
        return super()._make_tables() | {"coordinates": in_units(coordinates)}

    def _taper(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Taper: 1 inside, 0 from the radius of the first tap outside the window."""
        radius = torch.linalg.vector_norm(coordinates, dim=-1)
        return torch.sin(0.5 * math.pi * ((self.support - radius) / GAUSSIAN_TAPER).clamp(0.0, 1.0)) ** 2

    def _features(self, positions: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        """Values of the last hidden layer."""
        x = torch.cat([positions / self.support, group], -1)
        first, second = self.first, self.second
        x = torch.sin(
            SIREN_FREQUENCY
            * torch.nn.functional.linear(x, at_least_float32(first.weight), at_least_float32(first.bias))
        )
        return torch.sin(torch.nn.functional.linear(x, at_least_float32(second.weight), at_least_float32(second.bias)))

    def forward(self, orientations: torch.Tensor, relative: torch.Tensor | None) -> torch.Tensor:
        """The kernel at the given orientations and relative rotations."""
        self.mend_tables()
        coordinates = self.coordinates.to(orientations.dtype) / TABLE_UNITS
        # drop the first function, which is 1
        group = self._relative(orientations, relative, self._harmonic_rows(orientations.dtype))[..., 1:]
        # rows times a matrix are g^-1 t, the transposed matrix times columns
        positions = (coordinates @ orientations).unsqueeze(1)
        shape = (*group.shape[:2], coordinates.shape[0])
        features = self._features(positions.expand(*shape, -1), group.unsqueeze(2).expand(*shape, -1))
        values = (features @ at_least_float32(self.weight).flatten(0, 1).t()) * self._taper(coordinates).unsqueeze(1)
        # (G, H, taps, out * in)
        return values.unflatten(3, self.weight.shape[:2]).permute(3, 0, 4, 1, 2)

    def reset_parameters(self, in_order: int) -> None:
        """Draws fresh weights; for noise that is equal on all elements the output has the variance of a fresh ``torch.nn.ConvNd``.
        Otherwise smooth kernels would make it grow from layer to layer."""
        if self.weight.is_meta:
            return
        inputs, hidden = self.first.in_features, self.first.out_features
        nn.init.uniform_(self.first.weight, -1 / inputs, 1 / inputs)
        nn.init.uniform_(self.second.weight, -math.sqrt(6 / hidden), math.sqrt(6 / hidden))
        for bias in (self.first.bias, self.second.bias):
            nn.init.uniform_(bias, -math.pi, math.pi)
        coordinates = self.coordinates.double() / TABLE_UNITS
        variance = 1 / (3 * self.weight.shape[1])
        # squared sines have mean 1/2
        bound = math.sqrt(3 * variance / (float((self._taper(coordinates) ** 2).sum()) * 0.5 * hidden))
        nn.init.uniform_(self.weight, -bound, bound)

    def extra_repr(self) -> str:
        return f"hidden={self.first.out_features}, frequencies={self.frequencies}"
