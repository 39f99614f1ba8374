"""Settings of an optimizer that a checkpoint does not bring back if the user gives others: learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def read_settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns class, learning rates and weight decays of an optimizer as plain data, one number for each group of parameters; rates are
    those before any schedule.

    Example:
        >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.5, weight_decay=0.25)
        >>> _ = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.1)
        >>> read_settings(optimizer)
        {'class': 'AdamW', 'learning_rate': [0.5], 'weight_decay': [0.25]}
    """
    groups = optimizer.param_groups
    rates = [float(group.get("initial_lr", group["lr"])) for group in groups]
    decays = [float(group.get("weight_decay", 0.0)) for group in groups]
    return {"class": type(optimizer).__name__, "learning_rate": rates, "weight_decay": decays}


def change_settings(
    optimizer: torch.optim.Optimizer, schedules: Sequence[Any], before: Mapping[str, Any], now: Mapping[str, Any]
) -> list[str]:
    """Gives an optimizer, resumed with the settings ``before``, and its schedules those of ``now``; returns the names of the changed ones.

    The scheduled rates change by the ratio of the rates.
    """
    changed = [name for name in ("learning_rate", "weight_decay") if before.get(name, now[name]) != now[name]]
    for index, group in enumerate(optimizer.param_groups):
        if "weight_decay" in changed:
            group["weight_decay"] = now["weight_decay"][index]
        if "learning_rate" in changed:
            first, rate = before["learning_rate"][index], now["learning_rate"][index]
            group["lr"] = group["lr"] * rate / first if first else rate
            if "initial_lr" in group:
                group["initial_lr"] = rate
    for schedule in schedules if "learning_rate" in changed else ():
        if getattr(schedule, "optimizer", None) is optimizer and hasattr(schedule, "base_lrs"):
            schedule.base_lrs = list(now["learning_rate"])
    return changed
