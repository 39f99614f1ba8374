"""Learned extents of the partial group convolutions of a network: draws samples, reports extents per layer, and penalises their growth."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from monai_gmr.annotations import checked_arguments
from monai_gmr.networks.layers.partial_elements import DEFAULT_TEMPERATURE, PartialGroupElements
from monai_gmr.networks.layers.partial_group_conv import PartialGroupConvNd
from monai_gmr.symmetry import PointGroup, is_mirror
from monai_gmr.utils import ConfigurationError


class PartialExtent(NamedTuple):
    """How much of its group a layer keeps: layer name, group, extent of the rotations and probability of mirror images, both from 0 to 1,
    ``None`` if there are none. For groups of the grid, the extent is the mean probability to keep a rotation other than the identity."""

    layer: str
    group: str
    rotations: float | None
    mirrors: float | None


def _elements_of(net: nn.Module) -> Iterator[PartialGroupElements]:
    return (module for module in net.modules() if isinstance(module, PartialGroupElements))


def draw_elements(net: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draws new samples of the elements of all partial layers of a network, for train mode; eval mode does not use them.

    ``GMRResNet`` and ``GMRUNet`` call it at the start of each forward pass in train mode. For other networks, call it before each pass.

    Args:
        net: any network.
        generator: random number generator; default: the seed of each layer, else torch's global generator.

    Example:
        >>> elements = PartialGroupElements(2, "SE(2)")
        >>> draw_elements(elements, torch.Generator().manual_seed(0))
        >>> first = elements().matrices
        >>> draw_elements(elements, torch.Generator().manual_seed(0))
        >>> torch.equal(elements().matrices, first)
        True
    """
    for elements in _elements_of(net):
        elements.draw(generator)


@checked_arguments
def set_temperature(net: nn.Module, progress: float, first: float = DEFAULT_TEMPERATURE, last: float = 0.05) -> float:
    """Sets the temperature of the relaxed mirror images and elements of a network by a geometric schedule, and returns it.

    Args:
        net: any network.
        progress: from 0, the first step of training, to 1, the last one.
        first, last: temperatures at the first and last step. Below a few hundredths, gradients are 0 in most steps and large in the others.

    Example:
        >>> elements = PartialGroupElements(2, "E(2)")
        >>> round(set_temperature(elements, 0.5, 0.5, 0.05), 3), round(elements.temperature, 3)
        (0.158, 0.158)
    """
    if not 0 <= progress <= 1 or min(first, last) <= 0:
        raise ConfigurationError(
            f"progress={progress} from {first} to {last} is not a schedule: give progress from 0 to 1, and temperatures above 0."
        )
    temperature = first * (last / first) ** progress
    for elements in _elements_of(net):
        elements.temperature = temperature
    return temperature


def _extent(name: str, elements: PartialGroupElements) -> PartialExtent:
    """The extent of a layer; 1 for parts that are not learned."""
    learned, group = [float(each) for each in elements.extents().detach()], elements.group
    if isinstance(group, PointGroup):
        kinds = [is_mirror(element) for element in group.elements[1:]]
        kept = learned or [1.0] * len(kinds)
        means = []
        for wanted in (False, True):
            values = [each for each, mirror in zip(kept, kinds) if mirror == wanted]
            means.append(sum(values) / len(values) if values else None)
        return PartialExtent(name, repr(group), *means)
    rotations, *mirrors = learned or [1.0] * (1 + group.mirrors)
    return PartialExtent(name, group.name, rotations, mirrors[0] if mirrors else None)


def partial_extents(net: nn.Module) -> list[PartialExtent]:
    """How much of its group each partial layer of a network keeps, in the order of the layers. Layers that end on the same elements are
    listed once, under the name of the first.

    Example:
        >>> from monai_gmr.networks.layers import PartialGroupConv2d
        >>> lift = PartialGroupConv2d(1, 4, 3, samples=4)
        >>> net = nn.Sequential(lift, PartialGroupConv2d(4, 4, 3, in_elements=lift.out_elements))
        >>> partial_extents(net)[1]
        PartialExtent(layer='1', group='SE(2)', rotations=1.0, mirrors=None)
    """
    found: dict[int, PartialExtent] = {}
    for name, module in net.named_modules():
        if isinstance(module, PartialGroupConvNd):
            found.setdefault(id(module.out_elements), _extent(name, module.out_elements))
    return list(found.values())


def extent_penalty(net: nn.Module) -> torch.Tensor:
    r"""Loss term: the sum of the amounts by which extents of layers exceed those of the layers before them.

    .. math:: \sum_{l} \max(0,\; e_{l + 1} - e_l)

    Later layers cannot restore a symmetry that a layer has given up. For groups with several learned numbers, their mean is used.

    Example:
        >>> from monai_gmr.networks.layers import PartialGroupConv2d
        >>> lift = PartialGroupConv2d(1, 4, 3, samples=4)
        >>> first = PartialGroupConv2d(4, 4, 3, in_elements=lift.out_elements)
        >>> second = PartialGroupConv2d(4, 4, 3, in_elements=first.out_elements)
        >>> _ = first.out_elements.extent.data.fill_(0.25)
        >>> float(extent_penalty(nn.Sequential(lift, first, second)).detach())
        0.75

    Source:
        arXiv 2110.10211, section 4.3.
    """
    pairs, total = set(), torch.zeros(())
    for module in net.modules():
        if not isinstance(module, PartialGroupConvNd) or module.in_elements is None:
            continue
        before, after = module.in_elements, module.out_elements
        pair = (id(before), id(after))
        if before is after or not before.learned or not after.learned or pair in pairs:
            continue
        pairs.add(pair)
        first, second = before.extents(), after.extents()
        if before.group != after.group:
            first, second = first.mean(), second.mean()
        total = total.to(second.device) + torch.relu(second - first).mean().float()
    return total
