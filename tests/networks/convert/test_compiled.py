"""Converted networks compile as a whole or in part, with the same sizes as without a compiler."""

import pytest
import torch
from conversion_table import make_pair
from monai.networks import nets
from torch import nn

from monai_gmr.networks import convert_to_gmr
from monai_gmr.utils import ConfigurationError, tensors_in


@pytest.mark.parametrize("name", ["UNet", "DynUNet, residual", "MedNeXt", "ResNet10"])
def test_networks_are_compiled(name):
    net, x = make_pair(name, 2, shallow=True, conv="gmr_harmonic")[1], torch.randn(1, 1, 33, 38)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.allclose(tensors_in(compiled(x))[0], tensors_in(net(x))[0], rtol=1e-4, atol=1e-4)


# UNet, layers and our nets, at every size: test_free_sizes.py
@pytest.mark.parametrize("name", ["DynUNet, residual", "MedNeXt"])
def test_networks_are_exported(name):
    net, x = make_pair(name, 2, shallow=True, conv="gmr_harmonic")[1], torch.randn(1, 1, 33, 38)
    exported = torch.export.export(net, (x,)).module()
    assert torch.allclose(tensors_in(exported(x))[0], tensors_in(net(x))[0], rtol=1e-4, atol=1e-4)


def test_networks_built_alike_share_a_graph():
    """As folds of a cross-validation do; torch compiles eight graphs of one function."""
    graphs, x = [], torch.randn(1, 1, 17, 22)

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for seed in range(3):
        torch.manual_seed(seed)
        net = convert_to_gmr(nets.UNet(2, 1, 2, (2, 4, 6), (2, 2)), weights="init").eval()
        compiled = torch.compile(net, backend=backend, fullgraph=True)
        assert torch.allclose(compiled(x), net(x), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1


class _Break(nn.Module):
    def forward(self, x):
        torch._dynamo.graph_break()
        return x


def test_sizes_are_right_where_a_graph_breaks_or_fails():
    down, up = nn.Conv2d(1, 2, 3, 2, 1), nn.ConvTranspose2d(2, 1, 3, 2, 1, 1)
    broken = convert_to_gmr(nn.Sequential(down, _Break(), up), in_channels=1, spatial_dims=2).eval()
    whole = convert_to_gmr(nets.UNet(2, 1, 1, (2, 4, 6), (2, 2)), weights="init").eval()
    torch._dynamo.reset()
    for net in (broken, whole):
        compiled = torch.compile(net, backend="eager", dynamic=False)
        with pytest.raises(ConfigurationError, match="in_channels=1"):
            compiled(torch.randn(1, 3, 17, 22))
        for size in ((17, 22), (16, 16), (19, 21)):
            x = torch.randn(1, 1, *size)
            expected = net(x)
            assert torch.allclose(compiled(x), expected, rtol=1e-4, atol=1e-4)
            assert torch.equal(net(x), expected)


def test_converted_networks_inside_another_module_are_compiled():
    first, second = (convert_to_gmr(nets.UNet(2, 1, 1, (2, 4, 6), (2, 2)), weights="init").eval() for _ in range(2))
    cascade = convert_to_gmr(nn.Sequential(first, nn.AvgPool2d(2), second)).eval()
    x = torch.randn(1, 1, 35, 22)
    torch._dynamo.reset()
    for module in (nn.Sequential(first, second), cascade):
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(x), module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(17, 22), (26, 19)])
def test_a_compiled_part_takes_sizes_from_the_call_of_the_whole_network(size):
    net, x = convert_to_gmr(nets.UNet(2, 1, 2, (2, 4, 6), (2, 2))).eval(), torch.randn(1, 1, *size)
    expected = net(x)
    torch._dynamo.reset()
    net.model = torch.compile(net.model, backend="eager")
    assert torch.allclose(net(x), expected, rtol=1e-4, atol=1e-4)
    rotated = net(x.rot90(1, (2, 3)))
    assert torch.allclose(rotated, net(x).rot90(1, (2, 3)), rtol=1e-4, atol=1e-4)
