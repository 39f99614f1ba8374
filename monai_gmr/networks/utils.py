"""Helpers for any network."""

from __future__ import annotations

from typing import Any

from torch import nn

from monai_gmr.annotations import checked_arguments
from monai_gmr.networks.symmetry_penalty import symmetry_parameters


@checked_arguments
def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups for an optimiser of ``torch.optim``: weight decay on kernels, none on Gaussians' widths, biases, norms and terms
    that break the symmetry, which :class:`~monai_gmr.networks.symmetry_penalty.SymmetryThreshold` acts on.

    Args:
        net: any network.
        weight_decay: weight decay of the first group.

    Example:
        >>> import torch
        >>> from monai_gmr.networks.layers import GMRConv2d
        >>> groups = parameter_groups(GMRConv2d(1, 1, 3), weight_decay=1e-3)
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(1, 0.001), (2, 0.0)]
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)
    """
    undecayed = set(symmetry_parameters(net))
    kernels = [each for each in net.parameters() if each.dim() > 1 and each not in undecayed]
    others = [each for each in net.parameters() if each.dim() <= 1 or each in undecayed]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")


def copy_hooks(source: nn.Module, target: nn.Module) -> None:
    """Copies the hooks of a module to another one."""
    # torch has no public way to list the hooks of a module
    for name in HOOKS:
        getattr(target, name).update(getattr(source, name))


def move_hooks(source: nn.Module, target: nn.Module) -> None:
    """Moves the hooks of a module to another one."""
    copy_hooks(source, target)
    for name in HOOKS:
        getattr(source, name).clear()
