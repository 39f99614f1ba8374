"""Arguments of a conversion that do not fit are refused in a sentence; those left out are found from the network."""

import pytest
import torch
from monai.networks import nets
from torch import nn

from monai_gmr.metrics import equivariance_error
from monai_gmr.networks import convert_to_gmr
from monai_gmr.utils import ConfigurationError


def error(net, size):
    x = torch.randn(2, 1, *size, dtype=torch.float64)
    with torch.no_grad():
        return equivariance_error(net.double().eval(), x).worst


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conv": "radial"}, "conv='radial' is unknown"),
        ({"conv": "sre"}, "conv='sre' is unknown"),
        ({"weights": "zero"}, "weights='zero' is unknown"),
        ({"rings": "round"}, "rings='round' is unknown"),
        ({"kernel_sizes": 0}, "kernel_sizes=0 is impossible"),
        ({"kernel_sizes": "5"}, "kernel_sizes='5' is impossible"),
        ({"conv": ("gmr_harmonic", {"orders": (0, 0)})}, "give each order once"),
    ],
)
def test_wrong_arguments_end_in_a_sentence(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        convert_to_gmr(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), **arguments)


def test_wrong_networks_end_in_a_sentence():
    with pytest.raises(ConfigurationError, match=r"module='DynUNet' is impossible: give a torch\.nn\.Module"):
        convert_to_gmr("DynUNet")
    with pytest.raises(ConfigurationError, match="no convolution"):
        convert_to_gmr(nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="convert first"):
        convert_to_gmr(torch.compile(nn.Conv2d(1, 2, 3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 3}, "in_channels=3 does not fit UNet, which takes no such image .* or leave it out"),
        ({"spatial_dims": 3}, "spatial_dims=3 does not fit UNet, whose convolutions have 2 spatial axes: leave it out"),
        ({"spatial_size": (8, 8, 8)}, r"spatial_size=\(8, 8, 8\) has 3 sizes, UNet works on 2 axes: give one for each"),
        ({"example_inputs": (torch.rand(1, 3, 8, 8),)}, "example_inputs cannot be sent through UNet .*: give what its"),
        (
            {"example_inputs": torch.rand(1, 1, 8, 8)},
            "example_inputs=Tensor is impossible: give what forward takes as a list",
        ),
    ],
)
def test_channels_and_axes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        convert_to_gmr(nets.UNet(2, 1, 2, (4, 8), (2,)), **arguments)


def test_the_image_has_the_axes_of_a_convolution_that_it_passes():
    """A convolution of other axes, registered first, does not decide: here one that weighs channels, as in ECA-Net."""

    class Weighed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weigh, self.conv = nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)

        def forward(self, x):
            y = self.conv(x)
            return y * self.weigh(y.mean((2, 3))[:, None])[:, 0, :, None, None].sigmoid()

    converted = convert_to_gmr(Weighed().double(), exclude="weigh")
    assert error(converted, (9, 12)) < 1e-9
    assert not converted.conversion_report.limits


def test_lazily_built_norms_ask_for_a_pass_or_inplace():
    net = nn.Sequential(nn.LazyConv2d(4, 3, padding=1), nn.LazyBatchNorm2d())
    with pytest.raises(
        ConfigurationError, match=r"lazily built norms, which torch cannot copy: call it once .* inplace=True"
    ):
        convert_to_gmr(net, in_channels=1, spatial_dims=2)
    converted = convert_to_gmr(net, in_channels=1, spatial_dims=2, inplace=True)
    assert error(converted, (9, 12)) < 1e-9
