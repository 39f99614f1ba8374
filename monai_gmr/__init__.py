"""Rotation and mirror equivariant networks for MONAI: exact for the symmetries of the voxel grid, close at other angles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monai_gmr.networks.layers.factories import register_layers
from monai_gmr.ops.backend import get_backend, set_backend

if TYPE_CHECKING:
    from monai_gmr.bundle.loaded import load_bundle

__version__ = "0.1.0"
__all__ = ["get_backend", "load_bundle", "register_layers", "set_backend"]

register_layers()


def __getattr__(name: str) -> Any:
    # imported on first use, because it imports MONAI's bundles and engines
    if name == "load_bundle":
        from monai_gmr.bundle.loaded import load_bundle

        return load_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
