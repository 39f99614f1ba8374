"""Shared chains of partial group convolutions, and a way to set what their layers keep."""

import torch
from torch import nn

from monai_gmr.networks.layers import PartialGroupConv2d, PartialGroupConv3d, PartialGroupElements

CONV = {2: PartialGroupConv2d, 3: PartialGroupConv3d}
SIZES = {2: [(9, 12), (8, 8), (11, 11)], 3: [(7, 6, 8), (7, 7, 7)]}


def chain(dims, group, samples=None, *, fields=2, kernel_size=3, layers=2, dtype=torch.float64, **settings):
    """A layer that lifts one channel, and further layers after it."""
    options = {"padding": kernel_size // 2, "dtype": dtype, **settings}
    order = PartialGroupElements(dims, group, samples=samples).order
    lift = CONV[dims](1, fields * order, kernel_size, group=group, samples=samples, **options)
    found = [lift]
    for _ in range(layers - 1):
        channels = fields * order
        found.append(CONV[dims](channels, channels, kernel_size, in_elements=found[-1].out_elements, **options))
    return nn.Sequential(*found)


def shrink(net, extent, keep=None):
    for module in net.modules():
        if isinstance(module, PartialGroupElements) and module.learned:
            if module.extent is not None:
                module.extent.data.fill_(extent)
            if module.keep is not None:
                module.keep.data.fill_(extent if keep is None else keep)
