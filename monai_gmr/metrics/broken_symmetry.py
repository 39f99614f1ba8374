"""Broken symmetry of each layer of a net, for each element of the group, as a table and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_gmr.annotations import Seed, checked_arguments
from monai_gmr.files import replacing, write_rows
from monai_gmr.metrics.equivariance import equivariance_error
from monai_gmr.symmetry import element_name, point_group
from monai_gmr.symmetry.group_structure import GroupOrElements, group_elements
from monai_gmr.tables import format_aligned
from monai_gmr.utils import ConfigurationError

# voxels of the noise beyond the reach of a layer's window, per axis
MARGIN = 6
# rounding of float32: a layer with a smaller error is symmetric
ROUNDING = 1e-5


@dataclass(frozen=True)
class BrokenSymmetry:
    """Table of how far the layers of a net are from symmetric, returned by :func:`broken_symmetry`.

    Attributes:
        layers: paths of the layers.
        elements: names of the elements, the identity left out.
        errors: ``(layers, elements)``, relative to the size of a layer's output.
        sizes: share of each layer's outputs that have a nonzero term.
    """

    layers: tuple[str, ...]
    elements: tuple[str, ...]
    errors: np.ndarray
    sizes: tuple[float, ...]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per layer: its path, the share of its outputs that break the symmetry, the error of each element."""
        return [
            {"layer": layer, "outputs": size} | dict(zip(self.elements, map(float, errors)))
            for layer, size, errors in zip(self.layers, self.sizes, self.errors)
        ]

    def __str__(self) -> str:
        rows = [["layer", "outputs", "mean", "largest", "at"]]
        for layer, size, errors in zip(self.layers, self.sizes, self.errors):
            if not len(errors):
                rows.append([layer, f"{size:.0%}", "-", "-", ""])
                continue
            largest = int(errors.argmax())
            at = self.elements[largest] if errors[largest] > ROUNDING else ""
            cells = [f"{size:.0%}", f"{errors.mean():.3f}", f"{errors[largest]:.3f}", at]
            rows.append([layer, *cells])
        return format_aligned(rows)

    def save(self, folder: str | Path) -> None:
        """Writes ``broken_symmetry.csv`` and ``broken_symmetry.png``."""
        write_rows(self.rows, Path(folder) / "broken_symmetry.csv")
        self.draw(Path(folder) / "broken_symmetry.png")

    def draw(self, path: str | Path) -> None:
        """Draws the errors as a picture, a row of cells per layer, a column per element."""
        from matplotlib.figure import Figure

        width, height = 2.6 + 0.24 * len(self.elements), 1.4 + 0.3 * len(self.layers)
        figure = Figure(figsize=(max(4.5, width), height), layout="constrained")
        panel = figure.subplots()
        image = panel.imshow(self.errors, cmap="viridis", vmin=0, vmax=max(0.1, self.errors.max()), aspect="auto")
        panel.set_yticks(range(len(self.layers)), self.layers, fontsize="small")
        panel.set_xticks(range(len(self.elements)), self.elements, rotation=90, fontsize="x-small")
        figure.colorbar(image, ax=panel).set_label("broken symmetry,\npart of a layer's output", fontsize="small")
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=150, format="png")


@checked_arguments
def broken_symmetry(net: nn.Module, seed: Seed = 0, group: GroupOrElements | None = None) -> BrokenSymmetry:
    """Measures, on white noise, how far each layer that keeps only a subgroup is from symmetric.

    Args:
        net: a net with layers such as ``GMRHarmonicConv2d(..., keeps="1")``.
        seed: seed of the noise.
        group: elements to compare, as in :func:`~monai_gmr.metrics.equivariance_error`; default: all of the grid.

    Raises:
        ConfigurationError: if the net has no such layer.

    Example:
        >>> from monai_gmr.networks.nets import GMRUNet
        >>> net = GMRUNet(2, 1, 2, features=(8, 8), conv=("gmr_harmonic", {"keeps": "m"}))
        >>> _ = nn.init.ones_(net.get_submodule("stem.1.conv").relax_weight)
        >>> table = broken_symmetry(net)
        >>> table.layers[:2], table.sizes[:2], table.elements
        (('stem.0.conv', 'stem.1.conv'), (0.0, 1.0), ('m [10]', 'm [1-1]', 'm [01]', '4-', '2', '4+', 'm [11]'))
        >>> (table.errors > 0.01).astype(int)[:2].tolist()  # the net keeps m [10]
        [[0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1]]
    """
    layers = {path: module for path, module in net.named_modules() if hasattr(module, "asymmetric_terms")}
    layers = {path: module for path, module in layers.items() if module.asymmetric_terms()}
    if not layers:
        raise ConfigurationError(
            f"{type(net).__name__} has no layer that keeps a subgroup alone: give conv=('gmr_harmonic', {{'keeps': '1'}})."
        )
    dims = next(iter(layers.values())).spatial_dims
    given = point_group(dims) if group is None else group_elements(group, dims)
    elements = [each for each in given if not np.array_equal(each, np.eye(dims))]
    errors = []
    for module in layers.values():
        reach = max(d * (k - 1) for d, k in zip(module.dilation, module.kernel_size))
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, module.in_channels, *[reach + MARGIN] * dims, generator=generator)
        with torch.no_grad():
            found = equivariance_error(module, noise.to(module.weight), elements)
        errors.append([view.error for view in found.group.views])
    names = tuple(element_name(each) for each in elements)
    sizes = tuple(_broken_outputs(module) for module in layers.values())
    return BrokenSymmetry(tuple(path or "(network)" for path in layers), names, np.array(errors), sizes)


def _broken_outputs(layer: Any) -> float:
    """Computes the share of nonzero groups of a layer's terms."""
    groups = torch.cat([(terms != 0).any(-1).flatten() for _, terms in layer.asymmetric_terms()])
    return float(groups.float().mean())
