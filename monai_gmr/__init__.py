"""Rotation and mirror equivariant networks for MONAI: exact for the symmetries of the voxel grid, close at other angles."""

from __future__ import annotations

from monai_gmr.networks.layers.factories import register_layers
from monai_gmr.ops.backend import get_backend, set_backend

__version__ = "0.1.0"
__all__ = ["get_backend", "register_layers", "set_backend"]

register_layers()
