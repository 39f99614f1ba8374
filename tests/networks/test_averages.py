"""Averages of a network over training, including buffers, are networks with the same symmetry."""

import copy

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from monai_gmr.metrics import equivariance_error
from monai_gmr.networks import convert_to_gmr
from monai_gmr.networks.nets import GMRResNet, GMRUNet

CONVS = ["gmr", "gmr_harmonic", ("group", {"group": "4mm"}), ("partial", {}), "sre"]
AVERAGES = {
    "together": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    "one by one": {"avg_fn": get_ema_avg_fn(0.95)},
    "of equal weight": {},
}


def averaged(net, average, times=5):
    """A network that stays as it is, averaged."""
    average = AveragedModel(net, use_buffers=True, **AVERAGES[average])
    for _ in range(times):
        average.update_parameters(net)
    return average


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_an_average_of_equal_networks_is_that_network(conv, average):
    """Averages of integers are truncated, which would change tables of indices."""
    net, x = GMRUNet(2, 1, 2, features=(8, 16), conv=conv).eval(), torch.randn(1, 1, 17, 20)
    found = averaged(net, average)
    assert torch.allclose(found(x), net(x), atol=1e-5)
    found.update_parameters(net)
    assert torch.allclose(found.train().eval()(x), net(x), atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_averages_of_other_networks_are_exact(training):
    resnet = GMRResNet(2, 1, 3, layers=(1, 1), kernel_sizes=3, width=8, conv="gmr_harmonic")
    converted = convert_to_gmr(UNet(2, 1, 2, (8, 8), (2,)), conv="group", group="4mm")
    for net in (resnet, converted):
        net = averaged(net, "together").module.double().train(training)
        assert equivariance_error(net, torch.randn(2, 1, 17, 20, dtype=torch.float64)).worst < 1e-10


def test_tables_are_made_anew_once():
    net = GMRUNet(2, 1, 2, features=(8, 16), conv="gmr_harmonic").eval()
    x, layer = torch.randn(1, 1, 9, 9), next(each for each in net.modules() if hasattr(each, "table_names"))
    net(x)
    table = layer.shells
    equivariance_error(net, x)
    net(x)
    assert layer.shells is table
    with torch.no_grad():
        table.mul_(0)
    net(x)
    assert layer.shells is not table
    assert torch.equal(layer.shells, torch.as_tensor(layer._make_tables()["shells"]))


def test_tables_of_the_inference_mode_and_of_copies_are_kept():
    with torch.inference_mode():
        net = nn.Sequential(GMRUNet(2, 1, 2, features=(8, 16))).eval()
        x = torch.randn(1, 1, 9, 9)
        assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_a_pass_without_values_leaves_no_tables_without_values():
    net = averaged(nn.Sequential(GMRUNet(2, 1, 2, features=(8, 16))).eval(), "together").module
    converted = convert_to_gmr(net)
    assert {each.device.type for each in [*net.buffers(), *converted.buffers()]} == {"cpu"}
    with FakeTensorMode(allow_non_fake_inputs=True):
        net(torch.randn(1, 1, 9, 9))
    assert not any(isinstance(each, FakeTensor) for each in net.buffers())


def test_an_average_is_recorded_as_it_is_after_a_call():
    net, x = GMRUNet(2, 1, 2, features=(8, 16), conv="gmr_harmonic").eval(), torch.randn(1, 1, 17, 20)
    average = averaged(net, "together").module
    average(x)
    with torch.no_grad():
        for recorded in (
            torch.jit.trace(average, x),
            torch.jit.script(average),
            torch.export.export(average, (x,)).module(),
        ):
            assert torch.allclose(recorded(x), net(x), atol=1e-5)
