"""Arguments of a conversion: their meaning, and errors about impossible ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer

from monai_gmr.arguments import check_choice
from monai_gmr.networks.annealing import annealed_layers
from monai_gmr.networks.convert.trace import Trace, convolutions_of
from monai_gmr.networks.layers.point_group_conv import FILTERS
from monai_gmr.symmetry import PointGroup
from monai_gmr.symmetry.group_structure import GroupSpec
from monai_gmr.utils import ConfigurationError, windowed_layers

# wrappers that exchange gradients of given parameters
EXCHANGING = ("DistributedDataParallel", "FullyShardedDataParallel")


def check_network(module: nn.Module, inplace: bool) -> None:
    """Raises if a network cannot be converted."""
    name = type(module).__name__
    if hasattr(module, "_orig_mod"):
        raise ConfigurationError(f"{name} is compiled already: convert first, then compile.")
    if isinstance(module, torch.jit.ScriptModule):
        raise ConfigurationError(f"{name} is scripted or traced already: convert first, then script or trace.")
    if any(kind.__name__ in EXCHANGING for each in module.modules() for kind in type(each).__mro__):
        raise ConfigurationError(f"{name} is already wrapped for distributed training: convert first, then wrap it.")
    if not inplace and any(_is_computed(value) for each in module.modules() for value in vars(each).values()):
        raise ConfigurationError(
            f"{name} has weights that are computed from others, as by weight_norm or prune of torch.nn.utils, which torch cannot copy: "
            "remove this first, as by remove_weight_norm or prune.remove."
        )
    if not inplace and any(isinstance(each, UninitializedBuffer) for each in module.buffers()):
        raise ConfigurationError(
            f"{name} has lazily built norms, which torch cannot copy: call it once with an image, or give inplace=True."
        )
    if annealed_layers(module):
        raise ConfigurationError(
            f"{name} holds rests of an earlier conversion: drop them first, by monai_gmr.networks.drop_rests."
        )


def _is_computed(value: Any) -> bool:
    """Whether an attribute is a tensor with a graph of its computation."""
    return isinstance(value, torch.Tensor) and not value.is_leaf


def check_windows(kernel_sizes: Any) -> None:
    """Raises if windows are neither a number nor a mapping of numbers."""
    mapped = isinstance(kernel_sizes, Mapping)
    numbers = [*kernel_sizes, *kernel_sizes.values()] if mapped else [1 if kernel_sizes is None else kernel_sizes]
    if any(not isinstance(k, int) or k < 1 for k in numbers):
        raise ConfigurationError(
            f"kernel_sizes={kernel_sizes!r} is impossible: give one window of at least 1 for all, or windows for windows as in {{3: 5}}."
        )


def check_no_rings(rings: str, num_rings: int | None) -> None:
    """Raises if rings are given for group convolutions, whose kernels have none."""
    for name, value, default in (("rings", rings, "gaussian"), ("num_rings", num_rings, None)):
        if value != default:
            raise ConfigurationError(f"{name}={value!r} is for radial kernels, not for conv='group': leave it out.")


def check_selectors(name: str, selectors: Sequence[Any], paths: Iterable[str], net: nn.Module) -> None:
    """Raises if an argument such as "include" contains a name that no module has."""
    known = list(paths)
    for selector in selectors:
        if isinstance(selector, str) and not any(selects(path, selector) for path in known):
            raise ConfigurationError(
                f"{name}={selector!r} matches no module of {type(net).__name__}: give names or patterns of named_modules(), such as "
                f"{known[-1] or '*'!r}."
            )


def selects(path: str, pattern: str) -> bool:
    """Whether a pattern matches the name of a module, or of a module that contains it."""
    return fnmatchcase(path, pattern) or path.startswith(f"{pattern}.")


def _given_channels(net: nn.Module) -> list[int]:
    """Possible channels of a network's images, from those of its layers, the likeliest first."""
    # the first registered layer is not always called first; the network itself may have this attribute
    given: list[Any] = [getattr(each, "in_channels", None) for each in (*windowed_layers(net), net)]
    found = [each for each in given if isinstance(each, int) and not isinstance(each, bool)]
    # a leading 0, of a lazily built layer, stays: the caller refuses it
    return list(dict.fromkeys([*found[:1], *(each for each in found[1:] if each > 0)]))


def check_trace(net: nn.Module, trace: Trace, in_channels: int | None, example_inputs: Any) -> None:
    """Raises if no image passed a network because of given channels that no layer has, or inputs that do not fit."""
    if trace.failure and example_inputs is not None:
        raise ConfigurationError(
            f"example_inputs cannot be sent through {type(net).__name__} ({trace.reason}): give what its forward takes."
        )
    if trace.failure and in_channels and in_channels not in _given_channels(net):
        raise ConfigurationError(
            f"in_channels={in_channels} does not fit {type(net).__name__}, which takes no such image ({trace.reason}): give the number of "
            "its image's channels, or leave it out."
        )


def check_built(net: nn.Module, in_channels: int) -> None:
    """Raises if the first convolution of a network has no channels yet, because it is built lazily."""
    if not in_channels:
        raise ConfigurationError(f"{type(net).__name__} begins with a lazily built layer: give in_channels.")


def input_of(net: nn.Module, in_channels: int | None, spatial_dims: int | None) -> tuple[list[int], list[int]]:
    """Possible channels and numbers of spatial axes of the image, the likeliest first."""
    convolutions = convolutions_of(net)
    if not spatial_dims and not convolutions:
        raise ConfigurationError(
            f"{type(net).__name__} has no convolution, so there is nothing to convert: if it takes images, "
            "give spatial_dims and in_channels."
        )
    axes = sorted({len(each.kernel_size) for each in convolutions})
    if spatial_dims and axes and spatial_dims not in axes:
        raise ConfigurationError(
            f"spatial_dims={spatial_dims} does not fit {type(net).__name__}, whose convolutions have {axes[0]} spatial axes: leave it out."
        )
    channels = [in_channels] if in_channels else _given_channels(net)
    check_built(net, channels[0] if channels else 0)
    # an image made of several arguments, or convolved by a function, can have channels that no layer has
    more = [] if in_channels else [1, 3]
    # the first registered layer does not always get the image
    dims = [spatial_dims] if spatial_dims else [len(each.kernel_size) for each in convolutions]
    return list(dict.fromkeys([*channels[:8], *more])), list(dict.fromkeys(dims))


def group_arguments(
    arguments: Mapping[str, Any], group: GroupSpec | None, dims: int, spacing: Sequence[float] | None
) -> dict[str, Any]:
    """The arguments of group convolutions, with the group as a value."""
    for key in arguments:
        check_choice("the key of conv='group'", key, ("group", "filter"))
    check_choice("filter", arguments.get("filter", "full"), FILTERS[:-1])
    own = arguments["group"]
    whole = group is None and own == "all"
    if group is not None and own != "all" and PointGroup.from_name(own, dims) != PointGroup.from_name(group, dims):
        raise ConfigurationError(f"group={group!r} and the {own!r} of conv='group' are two groups: leave one out.")
    value = PointGroup.from_name(own if group is None else group, dims)
    if spacing is not None and whole:
        value = value.keeping(tuple(spacing))
    elif spacing is not None:
        value.check_keeps("spacing", tuple(spacing))
    return {"filter": "full", **arguments, "group": value}
