"""Remake the arrays that the parity tests compare with, where the peers are installed.

pip install --no-deps GMR-Conv==1.0.3 SRE-Conv==1.0.2 && python tests/reference/make_reference_arrays.py
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import types
from pathlib import Path

import numpy as np
import torch

PEERS = {
    "gmr_conv": ("GMR-Conv", "1.0.3", "GMR_Conv", "GMR_Conv{}d"),
    "sre_conv": ("SRE-Conv", "1.0.2", "SRE_Conv", "SRE_Conv{}d"),
}
KERNEL_SIZES = {2: (3, 5, 7, 9, 11), 3: (3, 5, 7, 9)}
OPTIONS = {"": {}, "_stride2": {"stride": 2}, "_dilation2": {"dilation": 2}}


def import_layers(package: str, module: str) -> types.ModuleType:
    """Import one module of a peer without its package's ``__init__``, which needs torchvision and torchio."""
    spec = importlib.util.find_spec(package)
    parent = types.ModuleType(package)
    parent.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = parent
    return importlib.import_module(f"{package}.{module}")


def run_case(layer: torch.nn.Module, size: tuple[int, ...], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Forward and gradients of a layer with random parameters, in float64; ``sigma`` is the width, not its logarithm."""
    layer = layer.double().train()
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            parameter.copy_(torch.as_tensor(rng.normal(size=parameter.shape)))
    arrays = {}
    if hasattr(layer, "log_sigmas"):
        sigma = torch.as_tensor(rng.uniform(0.3, 1.5, layer.log_sigmas.shape))
        with torch.no_grad():
            layer.log_sigmas.copy_(sigma.log())
        arrays["sigma"] = sigma
    x = torch.as_tensor(rng.normal(size=(2, layer.in_channels, *size))).requires_grad_()
    y = layer(x)
    cotangent = torch.as_tensor(rng.normal(size=y.shape))
    (y * cotangent).sum().backward()
    arrays |= {"x": x, "weight": layer.weight, "bias": layer.bias, "y": y, "cotangent": cotangent}
    arrays |= {"grad_x": x.grad, "grad_weight": layer.weight.grad, "grad_bias": layer.bias.grad}
    if "sigma" in arrays:
        arrays["grad_sigma"] = layer.log_sigmas.grad / arrays["sigma"]
    return {name: array.detach().numpy().astype(np.float32) for name, array in arrays.items()}


def make_arrays(module: str) -> dict[str, np.ndarray]:
    """All cases of a peer: ``"2d_k5_stride2/grad_weight"`` and the like."""
    distribution, version, package, pattern = PEERS[module]
    if importlib.metadata.version(distribution) != version:
        sys.exit(f"{distribution}=={importlib.metadata.version(distribution)} is installed: install {version}.")
    layers = import_layers(package, module)
    rng = np.random.default_rng(0)
    arrays = {}
    for spatial_dims, kernel_sizes in KERNEL_SIZES.items():
        for kernel_size in kernel_sizes:
            for name, options in OPTIONS.items():
                if options and kernel_size != 5:
                    continue
                padding = options.get("dilation", 1) * (kernel_size // 2)
                layer = getattr(layers, pattern.format(spatial_dims))(2, 1, kernel_size, padding=padding, **options)
                size = tuple(kernel_size + 2 * (axis % 2) for axis in range(spatial_dims))
                case = run_case(layer, size, rng)
                arrays |= {f"{spatial_dims}d_k{kernel_size}{name}/{key}": value for key, value in case.items()}
    return arrays


if __name__ == "__main__":
    for module in PEERS:
        path = Path(__file__).with_name(f"{module}.npz")
        temporary = path.with_suffix(".part.npz")
        np.savez_compressed(temporary, **make_arrays(module))
        os.replace(temporary, path)
        print(path, path.stat().st_size, "bytes")
