"""Warnings of the library show the caller's line, however deep they arise."""

import warnings

import pytest
import torch
from monai.bundle import ConfigParser

import monai_gmr
from monai_gmr.networks import convert_to_gmr
from monai_gmr.networks.layers import GMRConv2d
from monai_gmr.networks.nets import GMRResNet, GMRUNet
from monai_gmr.transforms import check_image


def strided_layer():
    torch.nn.Sequential(GMRConv2d(1, 1, 3, stride=2, padding=1))(torch.rand(1, 1, 8, 8))


def expression_of_a_config():
    parser = ConfigParser(
        {"layer": "$monai_gmr.networks.layers.GMRConv2d(1, 1, 3, stride=2)", "y": "$@layer(torch.rand(1, 1, 8, 8))"}
    )
    parser.globals |= {"monai_gmr": monai_gmr, "torch": torch}
    parser.get_parsed_content("y")


def coarse_axis():
    GMRUNet(3, 1, 1, features=(4, 4), spacing=(1, 1, 9))


def few_scalars():
    GMRResNet(2, 1, 9, layers=(1, 1), width=8, conv=("group", {"group": "4mm"}))


def deconvolution():
    GMRUNet(2, 1, 1, features=(4, 4), upsample="deconv")


def inexact_conversion():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.PixelUnshuffle(2), torch.nn.PixelShuffle(2))
    convert_to_gmr(net, exclude="*")


def empty_image():
    check_image(torch.zeros(1, 8, 8), spatial_dims=2, in_channels=1)


@pytest.mark.parametrize(
    "call",
    [strided_layer, expression_of_a_config, coarse_axis, few_scalars, deconvolution, inexact_conversion, empty_image],
    ids=lambda f: f.__name__,
)
def test_warnings_show_the_callers_line(call):
    """The file and the line of a warning are those in which the caller made the layer, the net or the call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    first = call.__code__.co_firstlineno
    last = max(line for _, _, line in call.__code__.co_lines() if line)
    assert len({str(each.message) for each in caught}) == 1
    for each in caught:
        assert (each.filename, first < each.lineno <= last) == (__file__, True)
