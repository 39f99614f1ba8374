"""What serves nets of every kind."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for an optimiser, with weight decay on kernels only: not on the Gaussians' widths, biases and norms.

    Args:
        net: any network.
        weight_decay: for the parameters that decay.

    Returns:
        two parameter groups, as ``torch.optim`` optimisers take them.

    Example:
        >>> import torch
        >>> from monai_gmr.networks.layers import GMRConv2d
        >>> groups = parameter_groups(GMRConv2d(1, 1, 3), weight_decay=1e-3)
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(1, 0.001), (2, 0.0)]
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)
    """
    decaying: list[nn.Parameter] = []
    constant: list[nn.Parameter] = []
    for parameter in net.parameters():
        (decaying if parameter.dim() > 1 else constant).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": constant, "weight_decay": 0.0}]
