"""Parameters that several modules share stay shared after conversion, or the report names them."""

import copy

import pytest
import torch
from torch import nn

from monai_gmr.networks import convert_to_gmr


class Tied(nn.Module):
    """Two convolutions with one weight, and a third with their bias."""

    def __init__(self, stride=1):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride, 1)
        self.third = nn.Conv2d(4, 4, 5, padding=2)
        self.second.weight, self.third.bias = self.first.weight, self.first.bias

    def forward(self, x):
        return torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x))))))


@pytest.mark.parametrize("conv", ["gmr", "gmr_harmonic"])
@pytest.mark.parametrize("weights", ["project", "init", "anneal"])
def test_parameters_that_were_one_stay_one(conv, weights):
    net = convert_to_gmr(Tied(), conv=conv, weights=weights)
    first, second = (dict(each.named_parameters()) for each in (net.first, net.second))
    assert all((first[key] is second[key]) is not key.endswith("bias") for key in first)
    biases = [key for key in first if key.endswith("bias") and key in dict(net.third.named_parameters())]
    assert biases
    assert all(first[key] is dict(net.third.named_parameters())[key] for key in biases)
    assert net.conversion_report.remarks == ()
    copied = copy.deepcopy(net)
    assert dict(copied.second.named_parameters()).keys() == second.keys()
    assert len(list(copied.parameters())) == len(list(net.parameters()))


def test_parameters_that_can_be_one_no_longer_are_named():
    net = convert_to_gmr(Tied(), exclude="second")
    (sentence,) = net.conversion_report.remarks
    assert sentence == "first.weight and second.weight were one parameter and are two now: they are trained apart"
    assert sentence in str(net.conversion_report)
    assert not any("parameter" in limit for limit in net.conversion_report.limits)
