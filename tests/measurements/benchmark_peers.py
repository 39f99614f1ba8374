"""Radial and group convolutions of other packages, which ``benchmark_page.py`` compares with ours."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

# distribution: its package, and the module of its layers
PEERS = {
    "GMR-Conv": ("GMR_Conv", "gmr_conv"),
    "SRE-Conv": ("SRE_Conv", "sre_conv"),
    "e2cnn": ("e2cnn", "nn"),
    "escnn": ("escnn", "nn"),
}


# of e2cnn and escnn: the space on which a group acts, and its arguments
SPACES = {
    ("e2cnn", "4mm"): ("FlipRot2dOnR2", 4),
    ("e2cnn", "4"): ("Rot2dOnR2", 4),
    ("escnn", "4mm"): ("flipRot2dOnR2", 4),
    ("escnn", "4"): ("rot2dOnR2", 4),
    ("escnn", "m-3m"): ("fullOctaOnR3",),
}


class SteerableConvolution(nn.Module):
    """A convolution by e2cnn (2D only) or escnn: radial, from trivial fields to trivial fields of all rotations, or from regular fields to
    regular fields of a group.

    Args:
        package: "e2cnn" or "escnn".
        spatial_dims: 2 or 3.
        channels: of input and output.
        kernel_size: window length in voxels, odd.
        group: one that :data:`SPACES` has for the package; without one the convolution is radial.
    """

    def __init__(
        self, package: str, spatial_dims: int, channels: int, kernel_size: int, group: str | None = None
    ) -> None:
        super().__init__()
        layers, gspaces = (importlib.import_module(f"{package}.{name}") for name in ("nn", "gspaces"))
        if group is not None:
            name, *arguments = SPACES[package, group]
            space = getattr(gspaces, name)(*arguments)
        elif package == "e2cnn":
            space = gspaces.Rot2dOnR2(-1, maximum_frequency=1)
        elif spatial_dims == 2:
            space = gspaces.rot2dOnR2(-1, maximum_frequency=1)
        else:
            space = gspaces.rot3dOnR3(maximum_frequency=1)
        kinds = space.trivial_repr if group is None else space.regular_repr
        self.fields = layers.FieldType(space, channels // kinds.size * [kinds])
        self.wrap = layers.GeometricTensor
        kind = getattr(layers, f"R{spatial_dims}Conv")
        self.convolution = kind(self.fields, self.fields, kernel_size, padding=kernel_size // 2, bias=False)
        self.in_channels = self.out_channels = channels
        self.kernel_size = (kernel_size,) * spatial_dims

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, *spatial)`` to the same."""
        return self.convolution(self.wrap(x, self.fields)).tensor


def installed_peers() -> list[str]:
    """Those of :data:`PEERS` that can be imported here."""
    return [name for name, (package, _) in PEERS.items() if importlib.util.find_spec(package) is not None]


def _import_layers(package: str, module: str) -> Any:
    """A module of a package, without the package's ``__init__``, which may need more than the layers do."""
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or []) if found else []
    spec = importlib.util.spec_from_file_location(f"{package}.{module}", Path(folders[0]) / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    layers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layers)
    return layers


def make_peer(name: str, spatial_dims: int, channels: int, kernel_size: int, group: str | None = None) -> nn.Module:
    """A convolution of one of :data:`PEERS`, without a bias, whose output is as large as its input; with ``group`` a group convolution."""
    package, module = PEERS[name]
    if module == "nn":
        return SteerableConvolution(name, spatial_dims, channels, kernel_size, group)
    kind = getattr(_import_layers(package, module), f"{package}{spatial_dims}d")
    return kind(channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
