"""Layers of this library that are also instances of the torch classes that they replace, for code that asks."""

from __future__ import annotations

from typing import Any

from torch import nn

from monai_gmr.networks import layers

REPLACED = {
    "Conv": ("GMRConv", "GMRHarmonicConv", "GMRCentredConv", "GMRCentredHarmonicConv"),
    "ConvTranspose": ("GMRResizedConv",),
}


def _make_classes() -> dict[str, Any]:
    classes = {}
    for replaced, names in REPLACED.items():
        for name in names:
            for dims in (1, 2, 3):
                layer, torch_class = getattr(layers, f"{name}{dims}d"), getattr(nn, f"{replaced}{dims}d")
                text = f":class:`~monai_gmr.networks.layers.{layer.__name__}` in place of ``torch.nn.{torch_class.__name__}``."
                # of the module's namespace, so that pickle finds it
                members = {"__doc__": text, "__module__": __name__}
                classes[f"Swapped{layer.__name__}"] = type(f"Swapped{layer.__name__}", (layer, torch_class), members)
    return classes


globals().update(_make_classes())


def swapped_class(name: str, dims: int) -> Any:
    """The class of a swapped layer.

    Args:
        name: of the layer, without the number of dimensions.
        dims: 1, 2 or 3.

    Example:
        >>> issubclass(swapped_class("GMRConv", 2), nn.Conv2d)
        True
    """
    return globals()[f"Swapped{name}{dims}d"]
