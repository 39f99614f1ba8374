"""Annealing of a converted network: shrinks the rests of its trained kernels to exact zeros, and removes them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import check_choice
from monai_gmr.networks.layers.annealed_conv import AnnealedConv
from monai_gmr.networks.shrinkage import ProximalStep, shrink_groups
from monai_gmr.networks.utils import move_hooks
from monai_gmr.utils import ConfigurationError

# exponent of the limit on rests: 1/8 of a kernel is left at half the schedule
LIMIT_POWER = 3


def annealed_layers(net: nn.Module) -> dict[str, AnnealedConv]:
    """Layers of a network that have or had a rest, by name."""
    return {path: each for path, each in net.named_modules() if isinstance(each, AnnealedConv)}


def rest_sizes(net: nn.Module) -> dict[str, float]:
    """Norm of the rest of each annealed layer, relative to the trained kernel; 0 for an equivariant layer.

    Example:
        >>> from monai_gmr.networks import convert_to_gmr
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU())
        >>> rest_sizes(convert_to_gmr(net, weights="anneal"))
        {'0': 1.0}
    """
    return {path: float(each.rest_size()) for path, each in annealed_layers(net).items()}


def pending_sentence(net: nn.Module) -> str:
    """Sentence on the rests that keep an annealed network from being equivariant; empty for a network without rests."""
    holding = sum(each.holds_rest for each in annealed_layers(net).values())
    return f"not equivariant yet: {holding} convolutions hold the rest of their trained kernels" if holding else ""


class RestPenalty(ProximalStep):
    r"""Rising group lasso on the rests of an annealed network, applied as a proximal step after each step of an optimiser.

    Each group is the rest of a layer, or of an output channel. The penalty is :math:`\lambda \sqrt{n}\, |R|` for a rest of :math:`n`
    weights, and each step of learning rate :math:`\eta` shortens it by :math:`\eta \lambda \sqrt{n}`. Adam moves a weight by about
    :math:`\eta`, so at :math:`\lambda = 1` no gradient preserves a rest; below it, the rests that the loss needs least vanish first. At a
    fraction :math:`f` of the schedule, :math:`\lambda` is ``strength * f ** power``, and no rest is longer than :math:`(1 - f)^3` of its
    kernel. So rests are short before the schedule ends, and the network adapts to their absence in its second half; the last tenth of a
    kernel matters most. A rest that reaches zero stays zero, and its bias shrinks with its kernel.

    Args:
        net: from ``convert_to_gmr(net, weights="anneal")``.
        optimizer: any optimiser of ``torch.optim``, created after the conversion.
        strength: :math:`\lambda` at the end of the schedule; with 0 only the limit acts.
        power: exponent of the rise of the penalty; 0 for a constant penalty.
        by: "layer" for one group per layer, or "channel" for one per output channel.

    Attributes:
        fraction: fraction of the schedule from 0 to 1, to be set before each training step; from 1 on every rest is exactly zero.

    Raises:
        ConfigurationError: if the network has no rests, the optimiser lacks trained rests, or a number is impossible.

    Example:
        >>> from monai_gmr.networks import convert_to_gmr
        >>> net = convert_to_gmr(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()), weights="anneal")
        >>> optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        >>> penalty = RestPenalty(net, optimizer)
        >>> for step in range(10):
        ...     penalty.fraction = (step + 1) / 10
        ...     optimizer.zero_grad()
        ...     net(torch.rand(1, 1, 8, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> rest_sizes(net), type(drop_rests(net)[0]).__name__
        ({'0': 0.0}, 'SwappedGMRConv2d')

    Source:
        Yuan and Lin 2006 (groups weighted by the root of their size); the step: :func:`~monai_gmr.networks.shrinkage.shrink_groups`.
    """

    @checked_arguments
    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        strength: float = 1.0,
        power: float = 2.0,
        by: str = "layer",
    ) -> None:
        check_choice("by", by, ("layer", "channel"))
        for name, value in (("strength", strength), ("power", power)):
            if not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise ConfigurationError(f"{name}={value!r} is impossible: give a number of at least 0.")
        self.net, self.strength, self.power, self.by = net, strength, power, by
        self.fraction = 0.0
        self.layers = list(annealed_layers(net).values())
        if not self.layers:
            raise ConfigurationError(
                f"{type(net).__name__} has no rests of trained kernels: convert it by convert_to_gmr(net, weights='anneal')."
            )
        weights: list[Any] = [layer.rest.weight for layer in self.layers]
        # rests of frozen layers are shrunk as well
        trained = [each for each in weights if each.requires_grad]
        super().__init__(optimizer, trained, f"the rests of {type(net).__name__}")

    def finish(self) -> None:
        """Sets all rests to zero now, without a step, and keeps them zero."""
        self.fraction = 1.0
        self.shrink()

    @torch.no_grad()
    def shrink(self) -> None:
        """Shorten all rests once."""
        rate = self.rates()
        for layer in self.layers:
            if layer.holds_rest:
                self._shrink_layer(layer, rate(layer.rest.get_parameter("weight")))
            else:
                # momentum may have moved it
                for each in layer.rest.parameters():
                    each.zero_()
        if not any(layer.holds_rest for layer in self.layers):
            _update_report(self.net)

    def _shrink_layer(self, layer: AnnealedConv, rate: float) -> None:
        weight, bias = layer.rest.weight, layer.rest.bias
        assert isinstance(weight, torch.Tensor)
        # output channels of a transposed convolution are on axis 1
        channels = int(getattr(layer.rest, "transposed", False))
        dims = [axis for axis in range(weight.dim()) if self.by == "layer" or axis != channels]
        size = math.prod(weight.shape[axis] for axis in dims)
        strength = self.strength * max(self.fraction, 0.0) ** self.power
        factors = shrink_groups(weight, rate * strength * math.sqrt(size), dims).flatten()
        limit = ((1 - self.fraction) ** LIMIT_POWER / layer.rest_size().clamp(min=1e-30)).clamp(0, 1)
        for each, factor in ((weight, limit), (bias, limit * factors)):
            if isinstance(each, torch.Tensor):
                each.mul_(factor.repeat(len(each) // factor.numel()) if factor.dim() else factor)
        if not layer.settle():
            for each in layer.rest.parameters():
                each.grad = None


@checked_arguments
def drop_rests(net: nn.Module) -> nn.Module:
    """Replaces annealed layers by their equivariant layers, in place, and returns the network.

    The result is an ordinary converted network with an ordinary state dict; earlier optimisers and state dicts still fit. If the network
    itself is an annealed layer, its equivariant layer is returned.

    Raises:
        ConfigurationError: if a rest is not zero.
    """
    layers = annealed_layers(net)
    left = {path: float(each.rest_size()) for path, each in layers.items() if each.settle()}
    if left:
        path = max(left, key=lambda each: left[each])
        raise ConfigurationError(
            f"{len(left)} of {len(layers)} rests are not zero, the largest that of {path or type(net).__name__}, {left[path]:.2g} of its "
            "kernel: train on until the schedule's end, or call RestPenalty.finish."
        )
    paths: dict[AnnealedConv, list[str]] = {}
    for path, each in net.named_modules(remove_duplicate=False):
        if isinstance(each, AnnealedConv):
            paths.setdefault(each, []).append(path)
    for layer, names in paths.items():
        move_hooks(layer, layer.equivariant)
        for path in names:
            if not path:
                return layer.equivariant
            net.set_submodule(path, layer.equivariant)
    _update_report(net)
    return net


def _update_report(net: nn.Module) -> None:
    """Marks the rests as removed in the conversion report."""
    report: Any = getattr(net, "conversion_report", None)
    if report is not None and report.pending:
        modules = tuple(replace(each, rest=None if each.rest is None else 0.0) for each in report.modules)
        net.conversion_report = replace(report, modules=modules, pending="")
