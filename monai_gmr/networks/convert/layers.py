"""Layers of this library that are also instances of the torch classes that they replace, for code with ``isinstance`` checks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from monai_gmr.networks import layers
from monai_gmr.ops.split_axis import split_axis

REPLACED = dict.fromkeys(("GMRConv", "GMRHarmonicConv", "GMRCentredConv", "GMRCentredHarmonicConv"), "Conv")
REPLACED |= {"GMRResizedConv": "ConvTranspose", "PointGroupConv": "Conv"}


def swapped_class(name: str, dims: int) -> Any:
    """The class of a swapped layer, given the layer's name without its number of dimensions.

    Example:
        >>> issubclass(swapped_class("GMRConv", 2), nn.Conv2d)
        True
    """
    return globals()[f"Swapped{name}{dims}d"]


for _name, _replaced in REPLACED.items():
    for _dims in (1, 2, 3):
        _bases = getattr(layers, f"{_name}{_dims}d"), getattr(nn, f"{_replaced}{_dims}d")
        _text = f":class:`~monai_gmr.networks.layers.{_name}{_dims}d` in place of ``torch.nn.{_replaced}{_dims}d``."
        # defined in this module, so that pickle can import them
        _members = {"__doc__": _text, "__module__": __name__}
        globals()[f"Swapped{_name}{_dims}d"] = type(f"Swapped{_name}{_dims}d", _bases, _members)


class FieldLinear(nn.Linear):
    """``torch.nn.Linear`` on the mean of each field; takes its arguments and the order of the group.

    Shape:
        - input: ``(..., fields * order)``
        - ``weight``: ``(out_features, fields)``

    Example:
        >>> FieldLinear(16, 3, order=8)(torch.rand(2, 16)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device=None, dtype=None, *, order: int
    ) -> None:
        super().__init__(in_features // order, out_features, bias, device, dtype)
        self.order = order

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(..., fields * order)`` to ``(..., out_features)``."""
        return F.linear(split_axis(input, -1, self.order).mean(-1), self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, order={self.order}"
