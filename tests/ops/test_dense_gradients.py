"""Batched gradients, as in vectorised Jacobians, equal gradients computed one by one, on every backend."""

import pytest
import torch
from torch import nn

from monai_gmr.networks.layers import GMRConv2d, GMRConv3d, GMRHarmonicConv2d, GMRHarmonicConv3d, PointGroupConv2d
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.ops import dense_harmonic, made_conv, set_backend
from monai_gmr.ops.dense_gradients import dense_gradients

NETS = {
    "radial": lambda: GMRConv2d(8, 6, 5, padding=2),
    "radial, 3D": lambda: GMRConv3d(8, 6, 3, padding=1),
    "harmonic": lambda: GMRHarmonicConv2d(8, 6, 5, padding=2),
    "harmonic, 3D": lambda: GMRHarmonicConv3d(8, 6, 3, padding=1),
    "harmonic, keeps rotations": lambda: GMRHarmonicConv2d(8, 8, 5, padding=2, keeps="rotations"),
    "depthwise": lambda: PointGroupConv2d(16, 16, 5, padding=2, group="4mm", filter="gc"),
    "U-Net": lambda: GMRUNet(2, 8, 2, (8, 8), conv="gmr_harmonic"),
}


@pytest.mark.parametrize("backend", ["cpp", "dense"])
@pytest.mark.parametrize("name", NETS)
def test_a_batch_of_gradients_is_that_of_each(name, backend, monkeypatch):
    # slab by slab
    monkeypatch.setattr(dense_harmonic, "KEPT_BYTES", 0)
    torch.manual_seed(0)
    net = NETS[name]()
    size = (12, 13, 14) if "3D" in name else (24, 28)
    x = torch.randn(1, 16 if name == "depthwise" else 8, *size, requires_grad=True)
    inputs = [x, *net.parameters()]
    directions = torch.randn(3, 2)
    with set_backend(backend):
        summary = net(x).flatten(2).square().mean(2)[0, :2]
        batch = torch.autograd.grad(summary, inputs, directions, is_grads_batched=True, retain_graph=True)
        single = [torch.autograd.grad(summary, inputs, each, retain_graph=True) for each in directions]
    for found, wanted in zip(batch, zip(*single)):
        assert torch.allclose(found, torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_a_vectorised_jacobian_is_the_jacobian():
    net = nn.Sequential(GMRHarmonicConv2d(8, 4, 5, padding=2), nn.AdaptiveAvgPool2d(1))
    x = torch.randn(1, 8, 16, 16)
    jacobian = torch.autograd.functional.jacobian
    assert torch.allclose(jacobian(net, x, vectorize=True), jacobian(net, x), atol=1e-6)


@pytest.mark.parametrize("again", [False, True])
def test_gradients_of_inputs_that_come_from_each_other_are_partial(again):
    a = torch.tensor(2.0, requires_grad=True)
    b = a * 3
    with torch.set_grad_enabled(again):
        found = dense_gradients(torch.mul, (a, b), (True, True), torch.tensor(1.0))
    assert [float(each) for each in found] == [6.0, 2.0]
    if again:
        assert float(torch.autograd.grad(found[0], a)[0]) == 3.0


def test_inputs_without_a_part_have_no_gradient():
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    assert dense_gradients(lambda a, b: a * 2, (a, b), (True, True), torch.ones(2))[1] is None
    assert dense_gradients(lambda a, b: a * 2, (a, b), (False, False), torch.ones(2)) == [None, None]


@pytest.mark.parametrize("backend", ["cpp", "dense"])
@pytest.mark.parametrize("name", ["radial", "harmonic", "harmonic, keeps rotations", "depthwise"])
def test_a_layer_that_is_called_twice_has_one_gradient(name, backend, monkeypatch):
    """With and without ``create_graph``: the input of the second call is computed from the same weights."""
    monkeypatch.setattr(dense_harmonic, "KEPT_BYTES", 0)
    monkeypatch.setattr(made_conv, "KEPT_BYTES", 0)
    monkeypatch.setattr(made_conv, "KEPT_SHARE", 0)
    channels = 16 if name == "depthwise" else 8
    layer = GMRConv2d(8, 8, 5, padding=2) if name == "radial" else NETS[name]()
    head = nn.Conv2d(6, 8, 1) if name == "harmonic" else nn.Identity()
    layer, x = nn.Sequential(layer, head).double(), torch.randn(1, channels, 9, 8).double()
    if backend == "cpp":
        layer, x = layer.float(), x.float()
    parameters = list(layer.parameters())
    with set_backend(backend):
        found = [
            torch.autograd.grad(layer(layer(x)).square().sum(), parameters, create_graph=again)
            for again in (False, True)
        ]
    for one, other in zip(*found):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


@pytest.mark.parametrize("backend", ["cpp", "dense"])
@pytest.mark.parametrize("layer_class", [GMRConv2d, GMRHarmonicConv2d])
def test_a_bias_alone_is_differentiated_twice(layer_class, backend):
    layer, x = layer_class(4, 8, 3, padding=1).requires_grad_(False), torch.randn(1, 4, 8, 8)
    layer.bias.requires_grad_(True)
    with set_backend(backend):
        y = layer(x)
        (first,) = torch.autograd.grad(y.square().sum(), layer.bias, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), layer.bias)
    assert torch.allclose(first, 2 * y.sum((0, 2, 3)), rtol=1e-4)
    assert torch.allclose(second, torch.full((8,), 128.0))
