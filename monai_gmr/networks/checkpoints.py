"""Import of checkpoints of GMR-Conv and SRE-Conv."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from torch import nn

from monai_gmr.annotations import checked_arguments
from monai_gmr.networks.nets import GMRResNet, GMRUNet
from monai_gmr.networks.weights import STATE_KEYS, read_checkpoint, state_of
from monai_gmr.symmetry import kernel_shells, ring_masks, square_ring_masks
from monai_gmr.symmetry.taps import SIGMA_FLOOR
from monai_gmr.utils import ConfigurationError, SymmetryWarning, warn

WRAPPERS = ("module.", "_orig_mod.")
MASKS = ("weight_index_mat", "default_weight_index_mat")
SMALLEST_SIGMA = 1e-2
POSSIBLE = "gmr_resnet18/34/50, gmr_r3d_9/18 and GMRUNet of GMR-Conv 1.0.3, sre_resnet18/34/50 and sre_r3d_18 of SRE-Conv 1.0.2"
RESNET_CHOICES: tuple[str, ...] = ("stem_stride", "stem_downsample", "downsample", "act", "dropout", "padding_mode")
UNET_CHOICES: tuple[str, ...] = ("downsample", "act", "norm", "dropout", "padding_mode")
STEM_POOL_WINDOW = {"kernel_size": 3, "stride": 2, "padding": 1}


Checkpoint = Annotated[str | os.PathLike | Mapping[str, Any], "a path or a state dict"]


@checked_arguments
def load_gmr_conv_checkpoint(checkpoint: Checkpoint, **kwargs: Any) -> GMRResNet | GMRUNet:
    """Builds a net of this library from a checkpoint of GMR-Conv 1.0.3 or SRE-Conv 1.0.2, with its weights.

    The kind of net, channels, classes, windows and depth are read from the state dict. The outputs equal those of the original at sizes
    that every halving divides. At other sizes the original is not equivariant; the returned net is, so its outputs differ. Layers that are
    not equivariant at any usual size are kept, with a :class:`SymmetryWarning`: the table in ``README.md`` of this folder lists them.

    Args:
        checkpoint: path of a file of ``torch.save`` (read with ``weights_only=True``), or its content: a state dict, or a dictionary that
            holds one under ``model``, ``network``, ``net`` or ``state_dict``. Prefixes of wrappers (``module.``) are removed.
        kwargs: arguments of the net that a state dict does not determine; the defaults are those of the original. For ResNets
            ``stem_stride`` (1 for ``skip_first_maxpool=True``), ``stem_downsample``, ``downsample``, ``act``, ``dropout``,
            ``padding_mode``; for U-Nets ``downsample`` ("avg" for ``pooling_type="AVG"``), ``act``, ``norm``, ``dropout``,
            ``padding_mode``.

    Returns:
        the net in eval mode, with the dtype of the weights in the checkpoint, on the CPU.

    Raises:
        ConfigurationError: if the file is missing or not a checkpoint, if the net is unknown or has unsupported options, or if the ring
            masks were trained, as by GMR-Conv up to 1.0.2, which destroys the symmetry.

    Example:
        >>> net = load_gmr_conv_checkpoint("gmr_resnet18.pt")  # doctest: +SKIP
        >>> load_gmr_conv_checkpoint({"fc.weight": torch.zeros(2, 8)})
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: the state dict has no ring masks (weight_index_mat), so it is not of a radial net: give one of \
gmr_resnet18/34/50, gmr_r3d_9/18 and GMRUNet of GMR-Conv 1.0.3, sre_resnet18/34/50 and sre_r3d_18 of SRE-Conv 1.0.2.

    Source:
        GMR-Conv, arXiv 2504.02819; SRE-Conv, arXiv 2501.09753.
    """
    source = _PeerState(checkpoint)
    build: Any
    if "final_conv.weight" in source.state:
        build, choices = _build_unet, UNET_CHOICES
    elif "conv1.weight" in source.state or "stem.0.weight" in source.state:
        build, choices = _build_resnet, RESNET_CHOICES
    else:
        raise ConfigurationError(
            f"{source.name} has radial layers such as {source.radial[0]!r} in a net that is not known: give one of {POSSIBLE}, "
            "or build the net yourself and copy layer by layer."
        )
    unknown = sorted(set(kwargs) - set(choices))
    if unknown:
        raise ConfigurationError(
            f"{', '.join(unknown)} cannot be given for {source.name}, whose state dict determines it or whose net has no such argument: "
            f"use {', '.join(choices)}."
        )
    return source.copy_to(*build(source, kwargs))


class _PeerState:
    """State dict of an original net, on the CPU and without prefixes of wrappers, and its keys that have been used."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.name, content = "the state dict", checkpoint
        if not isinstance(checkpoint, Mapping):
            self.name = str(checkpoint)
            content = read_checkpoint(checkpoint, hint="give a state dict saved by torch.save")
        hint = f"give a state dict, or a dictionary that holds one under {', '.join(STATE_KEYS)}"
        state: dict[str, Any] = state_of(content, self.name, hint)
        while wrapper := next((w for w in WRAPPERS if all(key.startswith(w) for key in state)), None):
            state = {key.removeprefix(wrapper): value for key, value in state.items()}
        self.state = {key: value.detach().cpu() if torch.is_tensor(value) else value for key, value in state.items()}
        self.radial = [key[: -len(MASKS[0]) - 1] for key in self.state if key.endswith("." + MASKS[0])]
        if not self.radial:
            ours = any(key.endswith(".log_sigma") for key in self.state)
            raise ConfigurationError(
                f"{self.name} is of a net of monai_gmr itself: build that net and call its load_state_dict."
                if ours
                else f"{self.name} has no ring masks (weight_index_mat), so it is not of a radial net: give one of {POSSIBLE}."
            )
        self.used: set[str] = set()

    def take(self, key: str) -> torch.Tensor:
        if key not in self.state:
            raise ConfigurationError(f"{self.name} lacks {key}: give the whole state dict of one of {POSSIBLE}.")
        self.used.add(key)
        return self.state[key]

    def begins(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self.state)

    def count(self, pattern: str, first: int = 1) -> int:
        """Counts how many of ``pattern.format(first)``, ``pattern.format(first + 1)``, ... begin a key."""
        number = 0
        while self.begins(pattern.format(first + number)):
            number += 1
        return number

    def rings(self, spatial_dims: int) -> str:
        """This library's name for the rings of the layers, which must be the same in all."""
        names = set()
        for layer in self.radial:
            kind = "indexed" if f"{layer}.log_sigmas" in self.state else "hard"
            names.add(kind + ("_square" if self.geometry(layer, spatial_dims)[1] else ""))
        if len(names) > 1:
            raise ConfigurationError(
                f"{self.name} mixes layers of rings {', '.join(sorted(names))}: give a net whose radial layers are all alike."
            )
        return names.pop()

    def geometry(self, layer: str, spatial_dims: int) -> tuple[int, bool]:
        """Window length of a radial layer, and whether its rings are square, after checking its masks."""
        tables = [self.take(f"{layer}.{end}") for end in MASKS if f"{layer}.{end}" in self.state]
        taps = tables[0].shape[-1]
        num_rings = tables[0].numel() // max(taps, 1)
        # (3, 7, 7), the only window of unequal lengths, holds the taps of 3 and zeros
        shape = (3, 7, 7) if spatial_dims == 3 and taps == 147 else (round(taps ** (1 / spatial_dims)),) * spatial_dims
        k = min(shape)
        if int(np.prod(shape)) != taps or k % 2 == 0:
            raise ConfigurationError(
                f"{layer} of {self.name} has ring masks over {taps} taps, which is not an odd window in {spatial_dims}D: "
                "even windows of GMR-Conv are off-centre, so train with an odd one."
            )
        for square in (False, True):
            expected = torch.from_numpy(_peer_masks(shape, k, num_rings, square)).double().flatten()
            if all(torch.equal(table.double().flatten(), expected) for table in tables):
                if num_rings != k // 2 + 1 + square:
                    raise ConfigurationError(
                        f"{layer} of {self.name} has num_rings={num_rings} on a window of {k}: only the default, "
                        f"{k // 2 + 1 + square}, can be loaded."
                    )
                return k, square
        raise ConfigurationError(
            f"the ring masks of {layer} in {self.name} are not the 0/1 masks of GMR-Conv 1.0.3 (versions up to 1.0.2 trained them, "
            "after which kernels are not radial and the net is not equivariant, not even in 1.0.3): train again with fixed masks."
        )

    def layer(self, *candidates: str, dims: int = 1) -> str:
        """First of some prefixes whose weight has at least (for 1: exactly) ``dims`` dimensions."""
        for prefix in candidates:
            weight = self.state.get(f"{prefix}.weight")
            if weight is not None and (weight.dim() == 1 if dims == 1 else weight.dim() >= dims):
                return prefix
        raise ConfigurationError(
            f"{self.name} lacks {candidates[0]}.weight: give the whole state dict of one of {POSSIBLE}."
        )

    def log_sigma(self, layer: str) -> torch.Tensor:
        """Width parameter of this library for the same Gaussians."""
        log_sigmas, means = self.take(f"{layer}.log_sigmas"), self.take(f"{layer}.mus")
        if not torch.equal(means.double(), torch.arange(len(log_sigmas), dtype=torch.float64)):
            raise ConfigurationError(
                f"{layer} of {self.name} has Gaussians at {means.tolist()}: only those at the rings' own indices can be loaded."
            )
        sigma = log_sigmas.double().exp().clamp(SMALLEST_SIGMA, 2.0 * len(log_sigmas))
        return (sigma - SIGMA_FLOOR["indexed"]).log().to(log_sigmas.dtype)

    def copy_to(self, net: Any, modules: dict[str, str]) -> Any:
        """Copies the weights into a net and returns it in eval mode; ``modules`` maps its modules with weights to the names of the
        original, or to "" for a 1x1 convolution that the original omits."""
        state = {}
        for key, ours in net.state_dict().items():
            module, leaf = key.rsplit(".", 1)
            outer = module if module in modules else next(name for name in modules if module.startswith(name + "."))
            theirs = modules[outer] + module[len(outer) :]
            if theirs == "":
                tensor = torch.zeros_like(ours)
                if leaf == "weight":
                    nn.init.dirac_(tensor)
            elif leaf == "log_sigma":
                tensor = self.log_sigma(theirs)
            else:
                tensor = self.take(f"{theirs}.{leaf}")
            if tensor.shape != ours.shape:
                raise ConfigurationError(
                    f"{theirs}.{leaf} of {self.name} has shape {tuple(tensor.shape)} where a {type(net).__name__} of these keys has "
                    f"{tuple(ours.shape)}: only the original arrangements of channels and groups can be loaded."
                )
            state[key] = tensor.detach().clone()
        left = sorted(set(self.state) - self.used)
        if left:
            raise ConfigurationError(
                f"{self.name} has {len(left)} keys that such a net does not have, the first of them {left[0]!r}: give one of {POSSIBLE}."
            )
        floating = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
        net.to(floating).load_state_dict(state)
        return net.eval()


def _peer_masks(shape: tuple[int, ...], kernel_size: int, num_rings: int, square: bool) -> np.ndarray:
    """Masks over taps, ``(rings, *shape)``, of the round or square rings of a window of ``kernel_size`` at the centre of ``shape``."""
    window = (kernel_size,) * len(shape)
    if square and num_rings < 2:
        return np.zeros((num_rings, *shape), dtype=bool)
    shells = kernel_shells(window)
    masks = square_ring_masks(shells, num_rings) if square else ring_masks(shells, num_rings)
    margins = [((n - kernel_size) // 2,) * 2 for n in shape]
    return np.pad(masks[:, shells.tap_shell], [(0, 0), *margins])


def _build_resnet(source: _PeerState, choices: dict[str, Any]) -> tuple[GMRResNet, dict[str, str]]:
    """Builds the ResNet, and maps its modules to the names of the original."""
    spatial_dims = 2 if "conv1.weight" in source.state else 3
    stem, stem_norm = ("conv1", "bn1") if spatial_dims == 2 else ("stem.0", "stem.1")
    layers, windows = [], []
    bottleneck = "layer1.0.bn3.weight" in source.state or source.begins("layer1.0.conv3.")
    modules = {"stem.conv": stem, "stem.adn.N": stem_norm, "fc": "fc"}
    for level in range(source.count("layer{}.0.")):
        window = 0
        layers.append(source.count(f"layer{level + 1}.{{}}.", first=0))
        for block in range(layers[-1]):
            theirs, ours = f"layer{level + 1}.{block}", f"stages.{level}.block{block + 1}"
            for i in range(1, 4 if bottleneck else 3):
                name = f"{theirs}.conv{i}"
                conv = source.layer(name, f"{name}.0", f"{name}.1", dims=3)
                modules[f"{ours}.convs.conv{i}.conv"] = conv
                modules[f"{ours}.convs.conv{i}.adn.N"] = source.layer(f"{theirs}.bn{i}", f"{name}.1", f"{name}.2")
                if conv in source.radial:
                    window = source.geometry(conv, spatial_dims)[0]
                    halves = level > 0 and block == 0 and i == (2 if bottleneck else 1)
                    # a convolution is the second of two modules after pooling in 2D, and everywhere in 3D
                    if spatial_dims == 2 and conv.endswith(".1") != halves:
                        raise ConfigurationError(
                            f"{conv} of {source.name} {'does not halve' if halves else 'halves'} the grid first: only "
                            "layer_stride=[1, 2, 2, 2] without replace_stride_with_dilation can be loaded."
                        )
            if f"{theirs}.downsample.1.weight" in source.state:
                modules[f"{ours}.shortcut.conv"] = f"{theirs}.downsample.1"
                modules[f"{ours}.shortcut.adn.N"] = f"{theirs}.downsample.2"
        windows.append(window)
    if not layers or not all(windows):
        raise ConfigurationError(f"{source.name} has stages without radial layers: give one of {POSSIBLE}.")
    averages = f"{stem}.default_weight_index_mat" in source.state
    stem_downsample: Any = "avg" if averages else ("plain_max", STEM_POOL_WINDOW)
    arguments: dict[str, Any] = {"stem_stride": 2 if spatial_dims == 2 else 1, "stem_downsample": stem_downsample}
    arguments |= {"downsample": "avg", "act": ("relu", {"inplace": True})} | choices
    if arguments["stem_stride"] == 2 and "plain_max" in (arguments["stem_downsample"] or ()):
        warn(
            "the max pooling after SRE-Conv's stem is not equivariant on axes of even length: give stem_downsample=('max', "
            "{'kernel_size': 3, 'padding': 1}) for a net that is, whose outputs differ there.",
            SymmetryWarning,
        )
    width, channels = source.take(f"{stem}.weight").shape[:2]
    arguments |= {"kernel_sizes": windows, "width": width, "rings": source.rings(spatial_dims)}
    arguments |= {"stem_kernel_size": source.geometry(stem, spatial_dims)[0], "downsample_inside": True}
    arguments["feed_forward"] = "fc.weight" in source.state
    classes = source.take("fc.weight").shape[0] if arguments["feed_forward"] else 1
    kind = "bottleneck" if bottleneck else "basic"
    return GMRResNet(spatial_dims, channels, classes, layers, kind, **arguments), modules


def _build_unet(source: _PeerState, choices: dict[str, Any]) -> tuple[GMRUNet, dict[str, str]]:
    """Builds the U-Net, and maps its modules to the names of the original."""
    spatial_dims = source.take("final_conv.weight").dim() - 2
    depth = source.count("down_{}.")
    kinds = {match.group(1) for key in source.state if (match := re.match(r"upcat_\d+\.upsample\.(\w+)\.", key))}
    if kinds - {"deconv", "preconv"}:
        raise ConfigurationError(
            f"{source.name} is a U-Net with upsample={sorted(kinds)[0]!r}, which is not equivariant and which GMRUNet does not have: "
            "train one with upsample='nontrainable'."
        )
    rings = source.rings(spatial_dims)
    modules = {"head": "final_conv"}
    features, windows, decoder_features, upsample_features = [], [], [], []
    for level in range(depth + 1):
        down = f"down_{level}.convs" if level else "conv_0"
        ours = f"encoders.{level - 1}.1" if level else "stem"
        modules |= {f"{ours}.{i}": f"{down}.conv_{i}" for i in (0, 1)}
        features.append(source.take(f"{down}.conv_1.conv.weight").shape[0])
        windows.append(source.geometry(source.layer(f"{down}.conv_0.conv", dims=3), spatial_dims)[0])
    for level in range(depth):
        up, position = f"upcat_{level + 1}", depth - 1 - level
        modules |= {f"decoders.{position}.{i}": f"{up}.convs.conv_{i}" for i in (0, 1)}
        decoder_features.append(source.take(f"{up}.convs.conv_1.conv.weight").shape[0])
        upsample_features.append(source.take(f"{up}.convs.conv_0.conv.weight").shape[1] - features[level])
        deeper = f"upcat_{level + 2}.convs.conv_1.conv.weight"
        below = features[level + 1] if level + 1 == depth else source.take(deeper).shape[0]
        if "deconv" in kinds:
            modules[f"reducers.{position}"] = f"{up}.upsample.deconv"
        else:
            # MONAI omits the 1x1 convolution if it would not change the number of channels
            left_out = below == upsample_features[-1] and f"{up}.upsample.preconv.weight" not in source.state
            modules[f"reducers.{position}"] = "" if left_out else f"{up}.upsample.preconv"
    first = "conv_0.conv_0"
    norm: Any = ("instance", {"affine": f"{first}.adn.N.weight" in source.state})
    norm = "batch" if f"{first}.adn.N.running_mean" in source.state else norm
    arguments: dict[str, Any] = {"downsample": "max", "norm": norm} | choices
    arguments |= {"kernel_sizes": windows, "rings": rings, "bias": f"{first}.conv.bias" in source.state}
    arguments |= {"upsample": "deconv" if "deconv" in kinds else "linear_corners"}
    arguments |= {"decoder_features": decoder_features, "upsample_features": upsample_features}
    channels = source.take(f"{first}.conv.weight").shape[1], source.take("final_conv.weight").shape[0]
    return GMRUNet(spatial_dims, *channels, features, **arguments), modules
