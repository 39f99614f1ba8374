"""Instance norm with channels last, and a rectifier after it, equal torch's in float64, and keep channels last."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_gmr import set_backend
from monai_gmr.networks.layers import GMRConv3d, GMRHarmonicConv3d, GMRInstanceNorm2d, GMRInstanceNorm3d
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.ops.cpu.norm import instance_norm
from monai_gmr.ops.memory_format import has_channels_last, make_channels_last

pytestmark = pytest.mark.usefixtures("processor")


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (1, 17, 4, 3, 5), (3, 2, 1, 7), (2, 16, 21, 19)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("slope", [1.0, 0.1, 0.0])
def test_forward_and_gradients(cpp, shape, offset, affine, slope):
    x = (torch.randn(shape, dtype=torch.float64) + offset).float().double().requires_grad_()
    numbers = [torch.randn(shape[1], dtype=torch.float64).float().double() for _ in range(2)] if affine else []
    inputs = [x, *(each.requires_grad_() for each in numbers)]
    expected = F.leaky_relu(F.instance_norm(x, None, None, *numbers, eps=1e-5), slope)
    seed = torch.randn_like(expected)
    single = [make_channels_last(x.detach().float()), *(each.detach().float() for each in numbers)]
    single = [each.requires_grad_() for each in single]
    found = instance_norm(*(single if affine else [*single, None, None]), 1e-5, slope)
    assert has_channels_last(found)
    gradients = torch.autograd.grad(found, single, seed.float())
    for a, b in zip((found, *gradients), (expected, *torch.autograd.grad(expected, inputs, seed))):
        assert a.shape == b.shape
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_statistics_of_many_voxels_are_exact_to_single_precision(cpp):
    x = make_channels_last(torch.randn(1, 2, 96, 96, 96) + 3)
    expected = F.instance_norm(x.double(), eps=1e-5)
    assert (instance_norm(x, None, None, 1e-5) - expected).abs().max() <= 2e-6


@pytest.mark.parametrize("slope", [1.0, 0.1])
def test_gradients_can_be_differentiated(cpp, slope):
    x = make_channels_last(torch.randn(2, 3, 4, 5)).requires_grad_()
    weight, bias = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)

    def penalty(norm):
        own = torch.autograd.grad(norm().pow(3).sum(), [x, weight], create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in own), [x, weight, bias])

    found = penalty(lambda: instance_norm(x, weight, bias, 1e-5, slope))
    for a, b in zip(found, penalty(lambda: F.leaky_relu(F.instance_norm(x, None, None, weight, bias), slope))):
        assert (a - b).norm() <= 1e-4 * b.norm()


@pytest.mark.parametrize("kind", ["channels first", "dense", "float64"])
def test_all_else_is_the_framework_s(cpp, kind):
    x = torch.randn(2, 3, 4, 5)
    if kind != "channels first":
        x = make_channels_last(x)
    if kind == "dense":
        set_backend("dense")
    if kind == "float64":
        x = x.double()
    assert torch.equal(instance_norm(x, None, None, 1e-5), F.instance_norm(x))
    assert torch.equal(instance_norm(x, None, None, 1e-5, 0.1), F.leaky_relu(F.instance_norm(x), 0.1))


@pytest.mark.parametrize(
    ("ours", "theirs", "size"),
    [(GMRInstanceNorm2d, nn.InstanceNorm2d, (4, 5)), (GMRInstanceNorm3d, nn.InstanceNorm3d, (4, 5, 3))],
)
@pytest.mark.parametrize("track", [True, False])
def test_the_layer_is_the_framework_s(ours, theirs, size, track):
    layer, other = (make(3, affine=True, track_running_stats=track) for make in (ours, theirs))
    nn.init.normal_(layer.weight)
    other.load_state_dict(layer.state_dict())
    for training in (True, False):
        x = torch.randn(2, 3, *size)
        layer.train(training), other.train(training)
        scripted = torch.jit.script(layer)
        expected = other(x)
        assert torch.equal(layer(x), expected)
        # a layer that tracks statistics has now seen the batch twice
        assert track or torch.allclose(scripted(x), expected, atol=1e-6)


def test_a_net_computes_channels_last_and_stays_equivariant(cpp):
    net, x = GMRUNet(3, 1, 2, features=(4, 4)), torch.randn(2, 1, 9, 8, 6)
    formats = []
    norms = [each for each in net.modules() if isinstance(each, GMRInstanceNorm2d | GMRInstanceNorm3d)]
    assert len(norms) == 6
    for norm in norms:
        norm.register_forward_hook(lambda module, inputs, output: formats.append(has_channels_last(output)))
    parameters = list(net.parameters())

    def run():
        y = net(x)
        return [y, *torch.autograd.grad(y.square().mean(), parameters)]

    found, turned = run(), net(x.rot90(1, (-2, -1))).rot90(-1, (-2, -1))
    assert formats == [True] * 2 * len(norms)
    assert found[0].is_contiguous()
    assert (found[0] - turned).abs().max() <= 1e-5
    set_backend("dense")
    expected = run()
    assert formats == [True] * 2 * len(norms) + [False] * len(norms)
    assert torch.allclose(found[0], expected[0], atol=1e-5)
    total = torch.cat([each.flatten() for each in expected[1:]]).norm()
    assert torch.cat([(a - b).flatten() for a, b in zip(found[1:], expected[1:])]).norm() <= 1e-4 * total


@pytest.mark.parametrize("make", [GMRConv3d, GMRHarmonicConv3d])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_dense_convolution_keeps_channels_last(make, channels):
    set_backend("dense")
    x = make_channels_last(torch.randn(2, channels, 5, 6, 4))
    layer = make(channels, 4, 3, padding=1)
    found = layer(x)
    assert has_channels_last(found)
    assert torch.allclose(found, layer(x.contiguous()), atol=1e-6)
    set_backend("auto")


@pytest.mark.parametrize("arguments", [{"conv": "plain"}, {"norm": "batch"}])
def test_nets_that_gain_nothing_or_would_be_inexact_stay_channels_first(cpp, arguments):
    net, formats = GMRUNet(2, 1, 2, features=(4, 6), **arguments), []
    net.stem.register_forward_hook(lambda module, inputs, output: formats.append(has_channels_last(output)))
    net(torch.randn(1, 1, 8, 8))
    assert formats == [False]
