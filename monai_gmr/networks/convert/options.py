"""Common parts of the swaps of modules: the arguments of a conversion, the result for a module, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from monai_gmr.arguments import voxel_spacing
from monai_gmr.networks.convert.fields import Fields
from monai_gmr.networks.convert.trace import Trace
from monai_gmr.networks.utils import copy_hooks, move_hooks
from monai_gmr.symmetry import PointGroup

EXACT = "exact as it is"


class Swap(NamedTuple):
    """Replacement of a module (``None`` if it stays), a reason or remark, and the relative change of its weights if they were projected."""

    module: nn.Module | None
    reason: str = ""
    change: float | None = None
    # whether it keeps the network from being exact
    breaks: bool = False
    # rest of an annealed convolution, relative to the kernel
    rest: float | None = None


@dataclass(frozen=True)
class Options:
    """Arguments of a conversion and of its layers, results of the pass of a reference image, and modules of patch embeddings."""

    conv: str
    arguments: Mapping[str, Any]
    kernel_sizes: int | Mapping[int, int] | None
    weights: str
    trace: Trace
    spatial_dims: int
    patches: set[nn.Module] = field(default_factory=set)
    # for group convolutions: their arguments, and the modules that take fields
    group_arguments: Mapping[str, Any] = field(default_factory=dict)
    fields: Fields | None = None
    # whether a module is selected for conversion
    selected: Callable[[nn.Module], bool] = lambda module: True

    @cached_property
    def group(self) -> PointGroup:
        """Symmetries of the converted network: the group of group convolutions, else those of the grid that keep the spacing."""
        if self.group_arguments:
            return self.group_arguments["group"]  # type: ignore[no-any-return]
        spacing = voxel_spacing(self.arguments.get("spacing"), self.spatial_dims)
        return PointGroup.from_name("all", self.spatial_dims).keeping(spacing)

    @property
    def keeps_weights(self) -> bool:
        """Whether trained weights are taken over."""
        return self.weights != "init"

    @property
    def anneals(self) -> bool:
        """Whether convolutions keep the rest of their kernels next to their replacements."""
        return self.weights == "anneal"

    def window(self, kernel_size: Sequence[int]) -> tuple[int, ...]:
        """The window that replaces another."""
        if isinstance(self.kernel_sizes, int):
            return tuple(self.kernel_sizes if k > 1 else k for k in kernel_size)
        return tuple((self.kernel_sizes or {}).get(k, k) for k in kernel_size)


def stays_broken(reason: str) -> Swap:
    """A module that stays and keeps the network from being exact."""
    return Swap(None, reason, breaks=True)


def take_weights(layer: Any, module: Any, options: Options, project: Callable[..., float | None]) -> float | None:
    """Gives a layer projected or fresh weights, the old bias, frozen parameters and hooks; returns the relative change of the weights."""
    change = None
    if projects(module, options):
        with torch.no_grad():
            change = project(layer, module)
            if change is not None and layer.bias is not None:
                # all channels of a field share their bias
                layer.bias.copy_(module.bias.unflatten(0, (len(layer.bias), -1)).mean(1))
    keep_training(layer, module)
    return change


def projects(module: Any, options: Options) -> bool:
    """Whether to project the weights of a module: they have values, and the conversion keeps them."""
    return options.keeps_weights and not module.weight.is_meta


def with_hooks_of(block: nn.Sequential, part: nn.Module) -> nn.Sequential:
    """A sequence in place of a module, with the hooks of one of its parts moved to it."""
    move_hooks(part, block)
    return block


def keep_training(layer: nn.Module, module: nn.Module, parameters: nn.Module | None = None) -> None:
    """Gives a replacement the module's mode and hooks, and freezes its parameters, or those of a part, like the module's of the same name,
    and parameters that only the replacement has, such as widths of rings, like the weight."""
    given = dict(module.named_parameters())
    trains = any(each.requires_grad for each in given.values()) or not given
    for name, parameter in (layer if parameters is None else parameters).named_parameters():
        alike = given.get(name, given.get("weight"))
        parameter.requires_grad_(trains if alike is None else alike.requires_grad)
    copy_hooks(module, layer)
    layer.train(module.training)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Values of a tensor as float64."""
    return tensor.detach().cpu().double().numpy()
