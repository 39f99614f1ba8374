"""Networks: layers, blocks and nets, conversion of existing networks, and checkpoints."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_gmr.networks.annealing import drop_rests
    from monai_gmr.networks.checkpoints import load_gmr_conv_checkpoint
    from monai_gmr.networks.convert import convert_to_gmr

__all__ = ["convert_to_gmr", "drop_rests", "load_gmr_conv_checkpoint"]

# imported on first use, because they import all of MONAI's nets
_HOMES = {"convert_to_gmr": "convert", "drop_rests": "annealing", "load_gmr_conv_checkpoint": "checkpoints"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
