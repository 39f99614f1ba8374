"""MONAI networks that give the same answer however the patient, slide or specimen was turned or mirrored."""

from __future__ import annotations

from monai_gmr.networks.layers.factories import register_layers
from monai_gmr.ops.backend import get_backend, set_backend

__version__ = "0.1.0"
__all__ = ["get_backend", "register_layers", "set_backend"]

register_layers()
