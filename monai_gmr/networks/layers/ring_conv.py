"""What radial convolutions of every dimension and direction share."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.utils import _ntuple

from monai_gmr.ops import dense_kernel
from monai_gmr.symmetry import (
    default_num_rings,
    gaussian_basis,
    indexed_basis,
    initial_sigma,
    kernel_shells,
    positive_sigma,
    ring_masks,
    tap_spacing,
    transposed_padding,
)
from monai_gmr.symmetry.radial_bases import SIGMA_FLOOR
from monai_gmr.utils import ConfigurationError, check_choice

RINGS = ("gaussian", "indexed", "hard")
# in voxels: a tap as close to the support has no weight
SMALLEST_DISTANCE = 1e-6
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def _place_tables(layer: "RingConvNd", *_: Any) -> None:
    """Bring a layer's tables to where its parameters are; on the meta device they have no values, so that they are made anew."""
    device = next((each.device for each in layer.parameters()), layer.shells.device)
    if layer.shells.is_meta and device.type != "meta":
        layer._register_tables(device)
        return
    for name in layer.table_names:
        layer.register_buffer(name, getattr(layer, name).to(device), persistent=False)


class RingConvNd(nn.Module):
    """What all radial convolutions share: the arguments of ``torch.nn.ConvNd``, the taps and the basis.

    Subclasses set ``spatial_dims`` and ``transposed`` (the adjoint: its weight is ``(in_channels, out_channels / groups, rings)``);
    the arguments are those of :class:`GMRConv2d` and :class:`GMRConvTranspose2d`.
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
        stride: int | Sequence[int],
        padding: str | int | Sequence[int],
        dilation: int | Sequence[int],
        output_padding: int | Sequence[int],
        groups: int,
        bias: bool,
        padding_mode: str,
        rings: str,
        num_rings: int | None,
        spacing: Sequence[float] | None,
        device,
        dtype,
    ) -> None:
        # not super(): a class may stand beside torch.nn.ConvNd, whose arguments are others
        nn.Module.__init__(self)
        spatial_dims = self.spatial_dims
        per_axis = _ntuple(spatial_dims)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = per_axis(kernel_size), per_axis(stride)
        self.dilation, self.output_padding = per_axis(dilation), per_axis(output_padding)
        self.padding = padding if isinstance(padding, str) else per_axis(padding)
        self.padding_mode, self.rings = padding_mode, rings
        self.spacing = spacing if spacing is None else tuple(float(s) for s in spacing)
        self._check_arguments(dtype)

        steps = tap_spacing(self.kernel_size, self.spacing, self.dilation)
        shells = kernel_shells(self.kernel_size, steps)
        self.support = float(shells.support)
        self.num_rings = default_num_rings(shells) if num_rings is None else num_rings
        if self.num_rings < 1:
            raise ConfigurationError(f"num_rings={num_rings} is impossible: use at least 1.")
        for axis, (k, step) in enumerate(zip(self.kernel_size, steps)):
            if k > 1 and (1.0 if k % 2 else 0.5) * step >= self.support:
                warnings.warn(
                    f"the taps along axis {axis} lie {step:g} voxels apart, beyond the kernel's reach of {self.support:g}: "
                    f"the layer does not mix along it; use a larger kernel_size on the finer axes.",
                    UserWarning,
                    stacklevel=4,
                )
        rows, columns = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        options = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(rows, columns // groups, self.num_rings, **options))
        self.bias = nn.Parameter(torch.empty(out_channels, **options)) if bias else None
        self.sigma_floor = SIGMA_FLOOR.get(rings, 0.0)
        self.initial_sigma = initial_sigma(rings, shells, self.num_rings)
        self.log_sigma = nn.Parameter(torch.empty(self.num_rings, **options)) if rings != "hard" else None
        self._register_tables(self.weight.device)
        self.register_load_state_dict_post_hook(_place_tables)
        self.reset_parameters()

    def _register_tables(self, device: torch.device) -> None:
        tables = self._tap_tables(tap_spacing(self.kernel_size, self.spacing, self.dilation))
        self.table_names = list(tables)
        for name, array in tables.items():
            self.register_buffer(name, torch.as_tensor(array, device=device), persistent=False)

    def _tap_tables(self, steps: Sequence[float]) -> dict[str, np.ndarray]:
        """What the layer knows of its taps, as whole numbers: no cast to half precision, and none in a state dict."""
        shells = kernel_shells(self.kernel_size, steps)
        tables = {
            "shells": shells.tap_shell,
            "squared_radii": shells.squared_radii,
            "counts": shells.counts,
            "masks": ring_masks(shells, self.num_rings),
        }
        if self.rings == "gaussian":
            self.num_shells = int((shells.radii < shells.support - SMALLEST_DISTANCE).sum())
        else:
            self.num_shells = int(np.flatnonzero(tables["masks"].any(axis=0)).max()) + 1
        return tables

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "RingConvNd":
        # here, as in torch.nn.RNNBase: Module.to_empty() leaves nothing of a buffer, and no state dict brings it back
        tables = {name: getattr(self, name) for name in self.table_names}
        super()._apply(fn, recurse)
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        _place_tables(self)
        return self

    def _check_arguments(self, dtype) -> None:
        spatial_dims = self.spatial_dims
        check_choice("rings", self.rings, RINGS)
        check_choice("padding_mode", self.padding_mode, ("zeros",) if self.transposed else PADDING_MODES)
        if self.groups < 1 or self.in_channels % self.groups or self.out_channels % self.groups:
            raise ConfigurationError(
                f"groups={self.groups} must divide in_channels={self.in_channels} and out_channels={self.out_channels}."
            )
        if dtype is not None and not dtype.is_floating_point:
            raise ConfigurationError(f"dtype={dtype} is not possible: use a real floating-point type.")
        for name in ("kernel_size", "stride", "dilation"):
            value = getattr(self, name)
            if len(value) != spatial_dims or any(int(v) != v or v < 1 for v in value):
                raise ConfigurationError(
                    f"{name}={value} is impossible: give {spatial_dims} whole numbers of at least 1, or one for all axes."
                )
        for name in ("padding", "output_padding"):
            value = getattr(self, name)
            if not isinstance(value, str) and (len(value) != spatial_dims or any(int(v) != v or v < 0 for v in value)):
                raise ConfigurationError(
                    f"{name}={value} is impossible: give {spatial_dims} whole numbers of at least 0, or one for all axes."
                )
        if isinstance(self.padding, str):
            check_choice("padding", self.padding, ("symmetric",) if self.transposed else ("valid", "same", "symmetric"))
            if self.padding == "same" and any(s != 1 for s in self.stride):
                raise ConfigurationError(
                    f"padding='same' has no meaning with stride={self.stride}: use padding='symmetric'."
                )
            if self.transposed and self.padding == "symmetric":
                for k, s, d in zip(self.kernel_size, self.stride, self.dilation):
                    transposed_padding(k, s, d)

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
        return positive_sigma(log_sigma, self.sigma_floor)

    def basis(self) -> torch.Tensor:
        """The functions on shells that the weights add up, shape ``(rings, shells)``, at least float32."""
        if self.rings == "gaussian":
            return gaussian_basis(self.squared_radii, self.counts, self.sigma(), self.support)
        if self.rings == "indexed":
            return indexed_basis(self.masks, self.sigma())
        dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        return self.masks.to(dtype)

    def dense_kernel(self) -> torch.Tensor:
        """The kernel over its taps, of the shape that ``torch.nn.ConvNd.weight`` has."""
        return dense_kernel(self.weight, self.basis(), self.shells)

    def _dense_copy(self, convolution: Any) -> nn.Module:
        with torch.no_grad():
            convolution.weight.copy_(self.dense_kernel())
            if self.bias is not None:
                convolution.bias.copy_(self.bias)
        return convolution.train(self.training)

    def _check_input(self, input: torch.Tensor) -> None:
        if torch.jit.is_tracing():
            return
        dims = len(self.kernel_size)
        if input.dim() not in (dims + 1, dims + 2) or input.shape[-dims - 1] != self.in_channels:
            raise ConfigurationError(
                f"{type(self).__name__} has in_channels={self.in_channels} and was given an input of shape "
                f"{tuple(input.shape)}: give (batch, {self.in_channels}, {dims} spatial sizes) or the same without batch."
            )

    def extra_repr(self) -> str:
        """The arguments that differ from the defaults, as ``torch.nn.ConvNd`` prints them."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        defaults = {
            "padding": (0,) * len(self.kernel_size),
            "output_padding": (0,) * len(self.kernel_size),
            "dilation": (1,) * len(self.kernel_size),
            "groups": 1,
            "padding_mode": "zeros",
            "spacing": None,
        }
        parts += [f"{k}={getattr(self, k)!r}" for k, v in defaults.items() if getattr(self, k) != v]
        parts += ["bias=False"] if self.bias is None else []
        return ", ".join([*parts, f"rings={self.rings!r}", f"num_rings={self.num_rings}"])
