"""Penalty and threshold on the terms by which harmonic layers that keep a subgroup break the other symmetries."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from monai_gmr.annotations import checked_arguments
from monai_gmr.networks.shrinkage import ProximalStep, shrink_groups
from monai_gmr.utils import ConfigurationError


def asymmetric_terms(net: nn.Module) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yields path, parameter and view ``(..., size)``, one group along the last axis, of the terms of layers that keep only a subgroup.

    A group is the weights of one output for the responses (``relax_weight``), or the factor of one term that changes sign under mirror
    images (``chiral_weight``).

    Example:
        >>> from monai_gmr.networks.layers import GMRHarmonicConv2d
        >>> net = nn.Sequential(GMRHarmonicConv2d(1, 8, 3, keeps="1"))
        >>> [(path, tuple(terms.shape)) for path, _, terms in asymmetric_terms(net)]
        [('0', (8, 8)), ('0', (1, 2, 1))]
    """
    for path, module in net.named_modules():
        terms = getattr(module, "asymmetric_terms", None)
        if terms is not None:
            for parameter, each in terms():
                yield path, parameter, each


def symmetry_penalty(net: nn.Module) -> torch.Tensor:
    r"""Group lasso on the terms that break the symmetry of a net, a scalar: add it, times a strength, to a loss.

    .. math:: \sum_{\text{groups } e} \sqrt{\dim e}\; |e|

    A penalty in the loss makes terms small, not zero; :class:`SymmetryThreshold` makes them zero.

    Example:
        >>> from monai_gmr.networks.layers import GMRHarmonicConv2d
        >>> layer = GMRHarmonicConv2d(1, 8, 3, keeps="rotations")
        >>> _ = nn.init.ones_(layer.chiral_weight)
        >>> symmetry_penalty(layer).item()
        2.0
    """
    norms = [
        math.sqrt(terms.shape[-1]) * torch.linalg.vector_norm(terms, dim=-1).sum()
        for _, _, terms in asymmetric_terms(net)
    ]
    return torch.stack(norms).sum() if norms else torch.zeros(())


class SymmetryThreshold(ProximalStep):
    r"""Soft threshold on the terms that break the symmetry of a net, applied after each step of an optimiser; it makes exact zeros.

    .. math:: e \leftarrow e\,\max\left(0,\, 1 - \lambda\, \eta \sqrt{\dim e} / |e|\right)

    with the optimiser's learning rate :math:`\eta`: the proximal step of :func:`symmetry_penalty`. Terms that a layer does not need stay
    exactly zero, so that the layer is exactly symmetric. The threshold acts until it is removed.

    Args:
        net: a net with layers that keep a subgroup, such as ``GMRHarmonicConv2d(..., keeps="1")``.
        optimizer: optimiser of ``torch.optim`` that holds their parameters.
        strength: :math:`\lambda`, at least 0. Under Adam, whose steps have the size of the learning rate, .25 suppresses pure noise; at 1
            no term survives.

    Raises:
        ConfigurationError: if the net has no such layer, or the optimiser does not hold its parameters.

    Example:
        >>> from monai_gmr.networks.layers import GMRHarmonicConv2d
        >>> layer = GMRHarmonicConv2d(1, 8, 3, keeps="1")
        >>> optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01)
        >>> threshold = SymmetryThreshold(layer, optimizer, strength=2.0)
        >>> layer(torch.rand(1, 1, 8, 8)).sum().backward()
        >>> optimizer.step()
        >>> layer.relax_weight.abs().max().item()
        0.0

    Source:
        N. Parikh, S. Boyd, "Proximal algorithms", 2014, section 6.5.4.
    """

    @checked_arguments
    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer, strength: float) -> None:
        if not strength >= 0:
            raise ConfigurationError(f"strength={strength} is impossible: give a number of at least 0.")
        parameters = symmetry_parameters(net)
        if not parameters:
            raise ConfigurationError(
                f"{type(net).__name__} has no layer that keeps a subgroup alone: give conv=('gmr_harmonic', {{'keeps': '1'}})."
            )
        super().__init__(optimizer, parameters, f"the terms of {type(net).__name__} beyond the group that it keeps")
        self.net, self.strength = net, float(strength)

    def shrink(self) -> None:
        """Shortens each term once, by strength times learning rate."""
        for terms, unit in self._terms():
            shrink_groups(terms, self.strength * unit, [-1])

    def _terms(self) -> Iterator[tuple[torch.Tensor, float]]:
        """Yields each view of terms, and roughly how far a step of Adam moves one of its groups."""
        rate = self.rates()
        for _, parameter, terms in asymmetric_terms(self.net):
            yield terms, rate(parameter) * math.sqrt(terms.shape[-1])

    @torch.no_grad()
    def settle(self) -> None:
        """Sets terms no longer than one step of the optimiser to zero: they are noise of the optimiser."""
        for terms, unit in self._terms():
            terms.mul_(torch.linalg.vector_norm(terms, dim=-1, keepdim=True) > unit)


def symmetry_parameters(net: nn.Module) -> list[nn.Parameter]:
    """Parameters that are zero in a net that keeps the whole group; they take no weight decay.

    Example:
        >>> from monai_gmr.networks.layers import GMRHarmonicConv2d
        >>> [tuple(each.shape) for each in symmetry_parameters(GMRHarmonicConv2d(1, 8, 3, keeps="1"))]
        [(8, 8), (1, 2)]
    """
    parameters = dict.fromkeys(parameter for _, parameter, _ in asymmetric_terms(net))
    return [each for each in parameters if isinstance(each, nn.Parameter)]
