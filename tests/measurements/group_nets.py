"""Small nets of group convolutions from the literature, as configurations of layers: tests count them, and digits are read with them."""

from collections.abc import Sequence

from torch import nn

from monai_gmr.networks.blocks import GMRConvolution, GMRResNetBlock
from monai_gmr.networks.layers import PointGroupConv2d, PointGroupNorm, PointGroupPool
from monai_gmr.symmetry import PointGroup


def rotated_mnist_net(width: int, group: str = "4", filter: str = "full") -> nn.Sequential:
    """Seven layers of the networks of arXiv 1602.07576, section 8.1: convolution, norm, rectifier, the last one of window 4; pooled."""
    order = PointGroup.from_name(group, 2).order
    layers: list[nn.Module] = []
    for index in range(7):
        ends = {"group": group, "in_group": "1"} if index == 0 else {"group": group, "filter": filter}
        window = 4 if index == 6 else 3
        layers += [PointGroupConv2d(width * order if index else 1, width * order, window, **ends)]
        layers += [PointGroupNorm(2, width * order, group, "batch"), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * (index == 1)
    return nn.Sequential(*layers, PointGroupPool(2, group), nn.Flatten(), nn.Linear(width, 10))


def separable_plain_net(width: int) -> nn.Sequential:
    """The same with a product over channels, then one filter a channel, each with a bias."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
    for index in range(1, 7):
        window = 4 if index == 6 else 3
        layers += [PointGroupConv2d(width, width, 1, group="1")]
        layers += [PointGroupConv2d(width, width, window, filter="depthwise", group="1")]
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * (index == 1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 10))


# Knigge et al., arXiv 2106.04914, table 1: the nets, and the numbers of parameters that it prints
ROTATED_MNIST = {
    "Z2CNN": (lambda: rotated_mnist_net(20, "1"), "25.21k"),
    "c-Z2CNN": (lambda: separable_plain_net(57), "25.60k"),
    "P4CNN": (lambda: rotated_mnist_net(10), "24.81k"),
    "g-P4CNN small": (lambda: rotated_mnist_net(10, filter="g"), "8.91k"),
    "g-P4CNN": (lambda: rotated_mnist_net(17, filter="g"), "25.26k"),
    "gc-P4CNN small": (lambda: rotated_mnist_net(10, filter="gc"), "3.42k"),
    "gc-P4CNN": (lambda: rotated_mnist_net(30, filter="gc"), "24.64k"),
}


def resnet44(widths: Sequence[int], group: str = "4mm", filter: str = "full") -> nn.Sequential:
    """Three stages of seven blocks of two convolutions."""
    order = PointGroup.from_name(group, 2).order
    conv = ("group", {"group": group, "filter": filter})
    channels = [width * order for width in widths]
    lift = ("group", {"group": group, "in_group": "1"})
    blocks = [GMRConvolution(2, 3, channels[0], conv=lift, norm="batch", act="relu", bias=False)]
    for stage, (before, after) in enumerate(zip([channels[0], *channels], channels)):
        for index in range(7):
            stride = 2 if stage and not index else 1
            inputs = after if index else before
            blocks.append(GMRResNetBlock(2, inputs, after, 3, stride, conv=conv, act="relu"))
    return nn.Sequential(
        *blocks, PointGroupPool(2, group), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)
    )


# table 2
RESNET44 = {
    "ResNet44": (lambda: resnet44((32, 64, 128), "1"), "2.64M"),
    "p4m-ResNet44": (lambda: resnet44((11, 23, 45)), "2.62M"),
    "g-p4m-ResNet44": (lambda: resnet44((19, 38, 76), filter="g"), "1.78M"),
    "gc-p4m-ResNet44": (lambda: resnet44((28, 56, 112), filter="gc"), "1.88M"),
}


def upright_net(groups: Sequence[str], fields: Sequence[int]) -> nn.Sequential:
    """Three convolutions of window 3, each onto the fields of its group, a subgroup of the one before; halved twice, pooled at last."""
    layers: list[nn.Module] = []
    before, channels = "1", 1
    for index, (group, count) in enumerate(zip(groups, fields)):
        outputs = count * PointGroup.from_name(group, 2).order
        whole, ends = (before, {"out_group": group}) if index else (group, {"in_group": "1"})
        layers += [PointGroupConv2d(channels, outputs, 3, padding=1, group=whole, **ends)]
        layers += [PointGroupNorm(2, outputs, group, "batch"), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * (index < 2)
        before, channels = group, outputs
    return nn.Sequential(
        *layers, PointGroupPool(2, before), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fields[-1], 10)
    )


# after GroCo's notebook on digits: about as many parameters each
UPRIGHT = {
    "plain": lambda: upright_net(("1", "1", "1"), (32, 64, 128)),
    "p4m": lambda: upright_net(("4mm", "4mm", "4mm"), (8, 24, 48)),
    "p4m, then 2mm, then m": lambda: upright_net(("4mm", "2mm", "m"), (8, 24, 96)),
}
