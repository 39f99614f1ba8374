"""Checks of what nets are given, each of which ends in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from monai_gmr.ops.free_sizes import is_free
from monai_gmr.utils import ConfigurationError


def kernel_size_per_level(kernel_sizes: int | Sequence, levels: int, what: str) -> list:
    """One window a level.

    Args:
        kernel_sizes: one window for all levels, or one a level.
        levels: number of levels.
        what: name of the argument that sets the number of levels.

    Raises:
        ConfigurationError: when there is not one a level.

    Example:
        >>> kernel_size_per_level(5, 3, "features")
        [5, 5, 5]
    """
    if isinstance(kernel_sizes, int):
        return [kernel_sizes] * levels
    _check_levels("kernel_sizes", kernel_sizes, levels, what, "number")
    return list(kernel_sizes)


def convolution_per_level(conv: str | Sequence, levels: int, what: str) -> list:
    """One kind of convolution a level.

    Args:
        conv: a name, or a pair of a name and further arguments, for all levels; or a list of either, one a level.
        levels: number of levels.
        what: name of the argument that sets the number of levels.

    Raises:
        ConfigurationError: when there is not one a level.

    Example:
        >>> convolution_per_level(("gmr_harmonic", {"orders": (0, 1)}), 2, "features")
        [('gmr_harmonic', {'orders': (0, 1)}), ('gmr_harmonic', {'orders': (0, 1)})]
        >>> convolution_per_level(["gmr_harmonic", "gmr"], 2, "features")
        ['gmr_harmonic', 'gmr']
    """
    if isinstance(conv, str) or (len(conv) == 2 and isinstance(conv[1], Mapping)):
        return [conv] * levels
    _check_levels("conv", conv, levels, what, "kind")
    return list(conv)


def _check_levels(name: str, given: Sequence, levels: int, what: str, kind: str) -> None:
    if len(given) != levels:
        raise ConfigurationError(
            f"{name}={tuple(given)} has {len(given)} entries and {what} has {levels}: give one for each, "
            f"or one {kind} for all."
        )


def check_network_input(net: nn.Module, x: torch.Tensor, spatial_dims: int, in_channels: int) -> None:
    """Raise when an input is not ``(batch, in_channels, *spatial)``.

    Raises:
        ConfigurationError: one sentence that says what was given and what is possible.

    Example:
        >>> check_network_input(nn.Identity(), torch.rand(1, 3, 8, 8), 2, 3)
    """
    if torch.jit.is_tracing():
        return
    if x.dim() != spatial_dims + 2 or x.shape[1] != in_channels:
        raise ConfigurationError(
            f"{type(net).__name__} of spatial_dims={spatial_dims} with {in_channels} input channels was given an input of shape "
            f"{tuple(x.shape)}: give (batch, {in_channels}, {spatial_dims} spatial sizes), or change the number of channels."
        )


def check_smallest_grid(x: torch.Tensor, depth: int, per_instance: bool, training: bool) -> None:
    """Raise when halving the grid ``depth`` times leaves too few voxels to normalise.

    Args:
        x: ``(batch, channels, *spatial)``.
        depth: how often the grid is halved.
        per_instance: whether the norm takes its statistics from each sample alone.
        training: whether statistics are taken from the batch at all.

    Raises:
        ConfigurationError: one sentence that says which sizes are possible.

    Example:
        >>> check_smallest_grid(torch.rand(1, 1, 8, 9), 3, True, True)
    """
    if is_free(list(x.shape)):
        return
    voxels = 1 if per_instance else x.shape[0]
    for size in x.shape[2:]:
        voxels *= -(-size // 2**depth)
    if voxels == 1 and (per_instance or training):
        raise ConfigurationError(
            f"an input of size {tuple(x.shape[2:])} leaves one voxel after {depth} halvings, which cannot be normalised: "
            f"give more than {2**depth} voxels along an axis, use fewer levels, or norm='group'."
        )
