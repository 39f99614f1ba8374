"""Blocks have the signatures and shapes of MONAI's blocks, and are exact where MONAI's strides are not."""

import inspect

import pytest
import torch
from monai.networks.blocks import Convolution, ResidualUnit
from torch import nn

from monai_gmr.networks.blocks import GMRConvolution, GMRResidualUnit, GMRResNetBlock
from monai_gmr.networks.layers import GMRConv2d, SREConv2d
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.symmetry import PointGroup, point_group, transform_fields, transform_grid
from monai_gmr.utils import ConfigurationError

PAIRS = [(GMRConvolution, Convolution), (GMRResidualUnit, ResidualUnit)]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_arguments_are_monais_in_their_order(ours, theirs):
    expected = list(inspect.signature(theirs.__init__).parameters.values())
    found = list(inspect.signature(ours.__init__).parameters.values())[: len(expected)]
    assert [(p.name, p.default) for p in found] == [(p.name, p.default) for p in expected]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"strides": 2}, {"kernel_size": 5, "act": "RELU", "norm": "BATCH"}, {"dilation": 2}, {"strides": (2, 1)}],
)
def test_shapes_are_monais(ours, theirs, arguments):
    x = torch.rand(2, 3, 8, 12)
    assert ours(2, 3, 6, **arguments)(x).shape == theirs(2, 3, 6, **arguments)(x).shape


@pytest.mark.parametrize("size", [(8, 12), (9, 12), (7, 7)])
@pytest.mark.parametrize(
    "block",
    [
        GMRConvolution(2, 2, 4, strides=2, kernel_size=5),
        GMRConvolution(2, 2, 4, strides=2, is_transposed=True),
        GMRConvolution(2, 2, 4, conv_only=True, rings="indexed"),
        GMRResidualUnit(2, 2, 4, strides=2),
        GMRResidualUnit(2, 2, 2, subunits=3, last_conv_only=True),
        GMRResNetBlock(2, 2, 4, 3, stride=2),
        GMRResNetBlock(2, 2, 4, 5, bottleneck=True, downsample="max", stride=2),
    ],
)
def test_turning_commutes(block, size):
    x = torch.randn(2, 2, *size)
    with torch.no_grad():
        y = block(x)
        for g in point_group(2):
            assert torch.allclose(block(transform_grid(x, g)), transform_grid(y, g), atol=1e-4)


@pytest.mark.parametrize(("conv", "layer"), [("gmr", GMRConv2d), ("sre", SREConv2d), ("plain", nn.Conv2d)])
def test_conv_chooses_the_layer(conv, layer):
    assert type(GMRConvolution(2, 1, 2, conv=conv).conv) is layer
    assert type(GMRResidualUnit(2, 1, 2, conv=conv).conv.unit1.conv) is layer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_padding": 1}, "output_padding=1 breaks the symmetry"),
        ({"kernel_size": 4}, "use an odd kernel_size"),
        (
            {"conv": "gmrr"},
            "conv='gmrr' is unknown: use one of 'gmr', 'gmr_harmonic', 'group', 'partial', 'sre', 'plain'",
        ),
    ],
)
def test_what_is_impossible_ends_in_one_sentence(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        GMRConvolution(2, 1, 2, **arguments)


@pytest.mark.parametrize("filter", ["full", "gc"])
def test_blocks_of_group_convolutions_are_exact_and_share_norms_and_dropout_by_field(filter):
    conv = ("group", {"group": "4mm", "filter": filter})
    group = PointGroup.from_name("4mm", 2)
    lift = GMRConvolution(2, 1, 16, conv=("group", {"group": "4mm", "in_group": "1"}), norm="batch", dropout=0.5)
    unit = GMRResidualUnit(2, 16, 32, strides=2, conv=conv, norm="batch", act="RELU")
    onto = GMRResidualUnit(2, 32, 32, conv=("group", {"group": "4mm", "out_group": "4"}), norm="instance")
    assert type(lift.get_submodule("adn.N")).__name__ == "PointGroupNorm"
    assert type(lift.get_submodule("adn.D")).__name__ == "PointGroupDropout"
    assert type(onto.residual).__name__ == "PointGroupConv2d"  # fields on another group cannot be added
    net = torch.nn.Sequential(lift, unit).double().eval()
    x = torch.randn(2, 1, 9, 12, dtype=torch.float64)
    for element in group.elements:
        expected = transform_fields(net(x), element, group)
        assert torch.allclose(net(transform_grid(x, element)), expected, atol=1e-12)
    smaller = PointGroup.from_name("4", 2)
    whole = torch.nn.Sequential(net, onto.double().eval())
    for element in smaller.elements:
        expected = transform_fields(whole(x), element, smaller)
        assert torch.allclose(whole(transform_grid(x, element)), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: GMRUNet(2, 1, 2, conv=[("group", {"group": "4"}), "gmr", "gmr"]),
            "mixes scalars with fields of a group",
        ),
        (lambda: GMRUNet(2, 1, 2, conv=[("group", {"group": g}) for g in ("4", "m", "1")]), "is not a subgroup of"),
        (
            lambda: GMRUNet(2, 1, 2, (8, 16), conv=("group", {"group": "4mm", "out_group": "4"})),
            "which a net chooses itself",
        ),
        (
            lambda: GMRUNet(2, 1, 2, (8, 16), conv=("group", {"groups": "4"})),
            "the key='groups' is unknown: use one of 'group', 'filter'",
        ),
        (lambda: GMRConvolution(2, 8, 8, strides=(1, 2), conv="group"), r"strides=\(1, 2\) is not symmetric under"),
        (lambda: GMRResidualUnit(2, 8, 8, strides=(1, 2), conv="group"), r"strides=\(1, 2\) is not symmetric under"),
        (
            lambda: GMRConvolution(2, 8, 8, conv="group", act=("prelu", {"num_parameters": 8})),
            "which a group exchanges",
        ),
        (
            lambda: GMRUNet(3, 1, 2, features=(12, 24, 48), conv="group"),
            "features=12 is not a multiple of the 48 elements",
        ),
        (
            lambda: GMRUNet(3, 1, 2, features=(48,), conv="group", spacing=(1, 1, 3)),
            r"is not symmetric under .*PointGroup\('4/mmm'\)",
        ),
        (lambda: GMRConvolution(2, 8, 8, conv=("group", {"group": "4mm"}), norm="layer"), "norm"),
        (
            lambda: GMRUNet(2, 1, 2, (8, 16), conv="group", dropout=("alphadropout", {"p": 0.1})),
            r"dropout=\('alphadropout', .* has no counterpart on fields of PointGroup\('4mm'\)",
        ),
    ],
)
def test_impossible_group_nets_are_refused_in_a_sentence(make, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        make()
