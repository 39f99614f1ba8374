"""Remake ``peer_nets.npz``, what the tests of checkpoints compare with, where the peers are installed.

For each net: the keys and shapes of its state dict and the output in float64. Weights are not stored: they follow from the keys
(:func:`recipe_tensor`), but for the ring masks, which are stored once for each shape.

pip install --no-deps GMR-Conv==1.0.3 SRE-Conv==1.0.2 torchvision torchio && python tests/reference/make_reference_nets.py
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import torch

VERSIONS = {"GMR-Conv": "1.0.3", "SRE-Conv": "1.0.2"}
REFERENCE = Path(__file__).with_name("peer_nets.npz")
BOOKKEEPING = ("index_mat", "mus", "num_batches_tracked")
UNET = {"out_channels": 1, "features": (4, 6, 8, 10, 12, 5)}
# name: package, module, function, its arguments, channels of the input, its size
CASES = {
    "gmr_resnet18": ("GMR_Conv", "gmr_resnet", "gmr_resnet18", {"gmr_conv_size": [9, 9, 5, 5]}, 3, (32, 64)),
    "gmr_resnet18_skip": ("GMR_Conv", "gmr_resnet", "gmr_resnet18", {"skip_first_maxpool": True}, 3, (24, 32)),
    "gmr_resnet34": ("GMR_Conv", "gmr_resnet", "gmr_resnet34", {"gmr_conv_size": 3, "in_channels": 1}, 1, (32, 48)),
    "gmr_resnet50": ("GMR_Conv", "gmr_resnet", "gmr_resnet50", {"gmr_conv_size": [9, 7, 5, 3]}, 3, (64, 32)),
    "gmr_r3d_18": ("GMR_Conv", "gmr_resnet_3d", "gmr_r3d_18", {"in_channels": 1}, 1, (8, 8, 16)),
    "gmr_r3d_9": ("GMR_Conv", "gmr_resnet_3d", "gmr_r3d_9", {"gmr_conv_size": 5, "in_channels": 1}, 1, (8, 16, 8)),
    "sre_resnet18": ("SRE_Conv", "sre_resnet", "sre_resnet18", {"sre_conv_size": [9, 9, 5, 5]}, 3, (31, 47)),
    "sre_resnet18_even": ("SRE_Conv", "sre_resnet", "sre_resnet18", {}, 3, (32, 48)),
    "sre_resnet50": ("SRE_Conv", "sre_resnet", "sre_resnet50", {"skip_first_maxpool": True}, 3, (32, 24)),
    "sre_r3d_18": ("SRE_Conv", "sre_resnet_3d", "sre_r3d_18", {"in_channels": 1}, 1, (8, 8, 8)),
    "unet": ("GMR_Conv", "gmr_unet", "GMRUNet", {"upsample": "nontrainable"}, 1, (32, 48)),
    "unet_deconv": ("GMR_Conv", "gmr_unet", "GMRUNet", {"gaussian_smooth": True}, 1, (48, 32)),
    "unet_smooth": (
        "GMR_Conv",
        "gmr_unet",
        "GMRUNet",
        {"gaussian_smooth": True, "force_circular": True, "upsample": "nontrainable", "bias": False},
        1,
        (32, 48),
    ),
    "unet_batch": (
        "GMR_Conv",
        "gmr_unet",
        "GMRUNet",
        {"norm": "batch", "pooling_type": "AVG", "upsample": "nontrainable", "layers": 3, "kernels": (9, 7, 5, 3)},
        1,
        (24, 32),
    ),
    "unet_3d": (
        "GMR_Conv",
        "gmr_unet",
        "GMRUNet",
        {"gaussian_smooth": True, "upsample": "nontrainable", "layers": 2, "kernels": (5, 3, 3)},
        1,
        (8, 12, 16),
    ),
}


def recipe_tensor(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of a key: uniform numbers whose seed is the key, scaled to keep activations finite; some widths out of bounds."""
    uniform, leaf = np.random.default_rng(zlib.crc32(key.encode())).random(shape), key.rsplit(".", 1)[1]
    if leaf == "log_sigmas":
        sigma = np.where(uniform < 0.05, 1e-3, np.where(uniform > 0.95, 1e2, 0.3 + 1.2 * uniform))
        return np.log(sigma)
    if len(shape) == 1:
        return uniform + 0.5 if leaf in ("weight", "running_var") else uniform - 0.5
    rings = shape[2] if len(shape) == 3 else 0.5
    return (2 * uniform - 1) * np.sqrt(3 / np.prod(shape[1:]) / (2 * rings))


def recipe_input(channels: int, size: tuple[int, ...]) -> torch.Tensor:
    """The image of a case, in float64."""
    return torch.as_tensor(np.random.default_rng(0).random((1 if channels == 1 else 2, channels, *size)))


def mask_name(shape: tuple[int, ...], spatial_dims: int) -> str:
    """Masks are stored once for each shape; those of GMR-Conv and SRE-Conv are equal."""
    return f"masks/{spatial_dims}d_{shape[-2]}x{shape[-1]}"


def build(name: str) -> torch.nn.Module:
    """The peer's net of a case, with weights by the recipe, in float64."""
    package, module, function, arguments, channels, size = CASES[name]
    if package not in sys.modules:
        # not the package's __init__, which needs torchio
        parent = types.ModuleType(package)
        parent.__path__ = list(importlib.util.find_spec(package).submodule_search_locations)
        sys.modules[package] = parent
    make = getattr(importlib.import_module(f"{package}.{module}"), function)
    if function == "GMRUNet":
        arguments = UNET | {"spatial_dims": len(size), "in_channels": channels} | arguments
    else:
        arguments = {"num_classes": 4} | ({"inplanes": 4} if len(size) == 2 else {}) | arguments
    with contextlib.redirect_stdout(io.StringIO()):
        net = make(**arguments).double()
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if not key.endswith(BOOKKEEPING):
                value.copy_(torch.as_tensor(recipe_tensor(key, tuple(value.shape))))
    # last: the peers keep kernels of the weights that they have when eval() is called
    return net.eval()


def make_arrays() -> dict[str, np.ndarray]:
    """Keys and shapes, masks and outputs of all cases."""
    arrays = {}
    for name, (*_, channels, size) in CASES.items():
        net = build(name)
        with torch.no_grad():
            arrays[f"{name}/y"] = net(recipe_input(channels, size)).numpy()
        shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
        arrays[f"{name}/shapes"] = np.frombuffer(json.dumps(shapes).encode(), dtype=np.uint8)
        for key, value in net.state_dict().items():
            if key.endswith("index_mat"):
                kind = mask_name(tuple(value.shape), len(size))
                packed = np.packbits(value.numpy().astype(bool))
                assert np.array_equal(arrays.setdefault(kind, packed), packed)
    return arrays


if __name__ == "__main__":
    for distribution, version in VERSIONS.items():
        if importlib.metadata.version(distribution) != version:
            sys.exit(f"{distribution}=={importlib.metadata.version(distribution)} is installed: install {version}.")
    temporary = REFERENCE.with_suffix(".part.npz")
    np.savez_compressed(temporary, **make_arrays())
    os.replace(temporary, REFERENCE)
    print(REFERENCE, REFERENCE.stat().st_size, "bytes")
