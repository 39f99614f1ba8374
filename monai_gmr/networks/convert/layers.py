"""Layers of this library that are also instances of the torch classes that they replace, for code that tests for these."""

from __future__ import annotations

from typing import Any

from torch import nn

from monai_gmr.networks import layers

REPLACED = dict.fromkeys(("GMRConv", "GMRHarmonicConv", "GMRCentredConv", "GMRCentredHarmonicConv"), "Conv")
REPLACED |= {"GMRResizedConv": "ConvTranspose", "PointGroupConv": "Conv"}


def swapped_class(name: str, dims: int) -> Any:
    """The class of a swapped layer, by the layer's name without its number of dimensions.

    Example:
        >>> issubclass(swapped_class("GMRConv", 2), nn.Conv2d)
        True
    """
    return globals()[f"Swapped{name}{dims}d"]


for _name, _replaced in REPLACED.items():
    for _dims in (1, 2, 3):
        _bases = getattr(layers, f"{_name}{_dims}d"), getattr(nn, f"{_replaced}{_dims}d")
        _text = f":class:`~monai_gmr.networks.layers.{_name}{_dims}d` in place of ``torch.nn.{_replaced}{_dims}d``."
        # members of this module, so that pickle can import them
        _members = {"__doc__": _text, "__module__": __name__}
        globals()[f"Swapped{_name}{_dims}d"] = type(f"Swapped{_name}{_dims}d", _bases, _members)
