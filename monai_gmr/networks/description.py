"""Description of a network, written into its state dict, so that weights of another network with the same names and shapes are refused.

Layers such as ``GMRConv2d`` and ``GMRHarmonicConv2d`` have equal parameters and compute different functions, so ``load_state_dict`` cannot
tell them apart. The description is stored in the metadata that torch keeps next to the tensors of a state dict, so it adds no key:
``load_state_dict``, ``torch.load(weights_only=True)`` and MONAI's ``CheckpointLoader`` read such a file like any other.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from monai.networks.layers import Conv
from torch import nn

from monai_gmr.networks.layers.annealed_conv import AnnealedConv
from monai_gmr.networks.layers.factories import CONVOLUTIONS
from monai_gmr.utils import ConfigurationError

KEY = "monai_gmr.network"
# arguments of constructors that leave the outputs of a trained network as they are
IGNORED = {"device", "dtype", "inplace", "momentum", "p", "recomputes"}
DROPS = re.compile("drop|^Identity$", re.IGNORECASE)
# one function under several names; a process uses the one for its devices
NORM = re.compile("BatchNorm|InstanceNorm")


@cache
def _arguments(kind: Any) -> tuple[str, ...]:
    """Names of the arguments of the constructors of a class and of its bases."""
    found: dict[str, None] = {}
    for each in kind.__mro__:
        if "__init__" in vars(each) and each not in (nn.Module, object):
            found |= dict.fromkeys(inspect.signature(vars(each)["__init__"]).parameters)
    return tuple(name for name in found if name not in IGNORED and not DROPS.search(name))


def _plain(value: Any) -> Any:
    """Converts a value to lists, numbers, strings or ``None``, and a group to its name; raises ``TypeError`` for anything else."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if type(value).__module__.startswith("monai_gmr.symmetry"):
        return repr(value)
    raise TypeError


def _title(module: nn.Module) -> str:
    """Name of a module's class, also for scripted modules."""
    return str(module.original_name) if isinstance(module, torch.jit.ScriptModule) else type(module).__name__


def _describe(module: nn.Module) -> dict[str, Any]:
    # called only without children: composed modules are described by their parts, and spell names of layers freely
    kind: Any = type(module)
    title = _title(module)
    norm = NORM.search(title)
    found: dict[str, Any] = {"class": norm[0] if norm else title.removeprefix("Swapped")}
    values = vars(module)
    for name in _arguments(kind):
        # compare the tap distances instead of the spacing: 2 mm everywhere equals 1 mm everywhere
        key = "steps" if name == "spacing" and "steps" in values else name
        if key in values:
            try:
                found[name] = _plain(values[key])
            except TypeError:
                continue
    return found


def describe_network(network: nn.Module) -> dict[str, dict[str, Any]]:
    """Describes what a network computes apart from its weights: class and constructor arguments of each module, by name, as plain data.

    Leaves out dropout and modules with children, which are described by their parts. An annealed layer counts as the equivariant layer that
    it becomes. Wrappers of distributed runs are removed.

    Example:
        >>> describe_network(nn.Sequential(nn.AvgPool2d(2), nn.Dropout()))
        {'0': {'class': 'AvgPool2d', 'kernel_size': 2, 'stride': 2, 'padding': 0, 'ceil_mode': False, ...}}
    """
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        network = network.module
    modules = dict(network.named_modules())
    annealed = [f"{name}." if name else "" for name, module in modules.items() if isinstance(module, AnnealedConv)]
    found = {}
    for name, module in modules.items():
        if any(True for _ in module.children()) or DROPS.search(_title(module)):
            continue
        for outer in annealed:
            if name.startswith(f"{outer}rest"):
                break
            if name.startswith(f"{outer}equivariant"):
                name = (outer.removesuffix(".") + name.removeprefix(f"{outer}equivariant")).removeprefix(".")
        else:
            found[name] = _describe(module)
    return found


def write_description(state: Any, network: nn.Module) -> Any:
    """Writes the description of a network into its state dict, in place, and returns the state dict.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU())
        >>> state = write_description(net.state_dict(), net)
        >>> list(state)
        ['0.weight', '0.bias']
        >>> check_description(state, nn.Sequential(nn.Conv2d(1, 1, 3), nn.Tanh()), "model.pt", "give another one.")
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: model.pt is of another network (its 1 is ReLU, here Tanh): give another one.
    """
    # torch writes and reads this attribute of state dicts; the only public access is by hooks of modules
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        metadata.setdefault("", {})[KEY] = describe_network(network)
    return state


def check_description(state: Any, network: nn.Module, name: str | os.PathLike, hint: str) -> None:
    """Raises :class:`ConfigurationError` if the description in a state dict is that of another network; ``name`` and ``hint`` begin and end
    the sentence. State dicts without a description pass, such as those of other programs and of earlier versions."""
    metadata = getattr(state, "_metadata", None)
    written = metadata.get("", {}).get(KEY) if isinstance(metadata, Mapping) else None
    if not isinstance(written, Mapping):
        return
    found = _difference(written, describe_network(network))
    if found:
        raise ConfigurationError(f"{name} is of another network ({found}): {hint}")


def _in_words(module: Mapping[str, Any]) -> str:
    kind = module.get("class")
    stem = str(kind)[:-2].replace("Centred", "")
    conv = next((conv for conv, key in CONVOLUTIONS.items() if Conv[key, 2].__name__[:-2] == stem), None)
    return f"{kind} of conv={conv!r}" if conv else str(kind)


def _difference(written: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """First difference of two descriptions, in words. Arguments that only one of two modules has are ignored, because versions can
    differ."""
    nothing: dict[str, Any] = {}
    for name in [*written, *(name for name in own if name not in written)]:
        theirs, ours = written.get(name, nothing), own.get(name, nothing)
        label = f"its {name}" if name else "it"
        if not theirs or not ours:
            there, here = (_in_words(each) if each else "not there" for each in (theirs, ours))
            return f"{label} is {there}, here {here}"
        if theirs.get("class") != ours.get("class"):
            return f"{label} is {_in_words(theirs)}, here {_in_words(ours)}"
        for key in theirs:
            if key in ours and theirs[key] != ours[key]:
                return f"{label} has {key}={theirs[key]!r}, here {ours[key]!r}"
    return ""
