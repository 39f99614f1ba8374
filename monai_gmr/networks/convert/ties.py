"""Parameters that several modules of a network share, as in weight tying, before and after its modules are replaced."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

Holders = list[tuple[str, str, nn.Module]]


def shared_parameters(net: nn.Module) -> list[Holders]:
    """For each parameter that several modules hold: the first name of each module, the parameter's name in it, and the module.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> net[1].weight = net[0].weight
        >>> [(path, name) for path, name, _ in shared_parameters(net)[0]]
        [('0', 'weight'), ('1', 'weight')]
    """
    holders: dict[int, Holders] = {}
    for path, module in net.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            holders.setdefault(id(parameter), []).append((path, name, module))
    return [each for each in holders.values() if len({module for _, _, module in each}) > 1]


def tie_again(net: nn.Module, shared: list[Holders]) -> list[str]:
    """Share the parameters of replacements whose modules shared theirs, if they are alike; returns a sentence for each that is not.

    A layer that replaces a convolution has other parameters in place of its weight: all except the bias, shared as a whole.
    """
    sentences = []
    for holders in shared:
        first, name, _ = holders[0]
        found = [_at(net, path) for path, _, _ in holders]
        if None in found or all(each is module for each, (_, _, module) in zip(found, holders)):
            continue
        source = _parameters_for(net.get_submodule(first), name)
        for path, own_name, _ in holders[1:]:
            target = net.get_submodule(path)
            own = _parameters_for(target, own_name)
            if {key: each.shape for key, each in own.items()} != {key: each.shape for key, each in source.items()}:
                sentences.append(
                    f"{first}.{name} and {path}.{own_name} were one parameter and are two now: they are trained apart"
                )
                continue
            for key, parameter in source.items():
                inner, _, last = key.rpartition(".")
                setattr(target.get_submodule(inner), last, parameter)
    return sentences


def _at(net: nn.Module, path: str) -> nn.Module | None:
    try:
        return net.get_submodule(path)
    except AttributeError:
        return None


def _parameters_for(module: nn.Module, name: str) -> Mapping[str, nn.Parameter]:
    """Parameters of a module, or of its replacement, that stand for the parameter of this name."""
    own = dict(module.named_parameters(remove_duplicate=False))
    is_bias = name.endswith("bias")
    return {key: each for key, each in own.items() if key.endswith("bias") == is_bias}
