"""Group convolutions compared with peers: outputs of e2cnn, parameter counts of separable filters, and bugs of GroCo."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from group_nets import RESNET44, ROTATED_MNIST
from torch import nn

from monai_gmr.networks.layers import (
    PointGroupConv1d,
    PointGroupConv2d,
    PointGroupConv3d,
    PointGroupConvTranspose2d,
    PointGroupPool,
)
from monai_gmr.symmetry import PointGroup, transform_fields, transform_grid
from monai_gmr.utils import ConfigurationError

REFERENCE = Path(__file__).parents[2] / "reference" / "e2cnn_p4m.npz"


@pytest.fixture(scope="module")
def e2cnn():
    with np.load(REFERENCE) as file:
        return {name: torch.as_tensor(file[name], dtype=torch.float64) for name in file.files}


@pytest.fixture(scope="module")
def order(e2cnn):
    """The index of each element of our group in e2cnn's group, found from its action on an image."""
    group = PointGroup.from_name("4mm", 2)
    found = [transform_grid(e2cnn["image"][0, 0], element) for element in group.elements]
    places = [[i for i, moved in enumerate(e2cnn["moved"]) if torch.equal(moved, image)] for image in found]
    assert sorted(place for each in places for place in each) == list(range(8))
    return [place[0] for place in places]


@pytest.mark.parametrize(("name", "in_fields", "out_fields"), [("lift", 1, 2), ("regular", 2, 3)])
def test_filters_and_answers_are_those_of_e2cnn(e2cnn, order, name, in_fields, out_fields):
    """Our weights are the rows of its filter at the identity; all other rows and the outputs then agree."""
    lifts = name == "lift"
    in_order, out_order = torch.tensor([0] if lifts else order), torch.tensor(order)
    kernel = e2cnn[f"{name}_filter"].unflatten(0, (out_fields, 8)).unflatten(2, (in_fields, -1))
    kernel = kernel[:, out_order][:, :, :, in_order]  # in our order of the elements
    channels = in_fields * len(in_order)
    layer = PointGroupConv2d(channels, 8 * out_fields, 3, padding=1, group="4mm", in_group="1" if lifts else None)
    layer = layer.double()
    layer.weight.data.copy_(kernel[:, 0].flatten(2))
    layer.bias.data.copy_(e2cnn[f"{name}_bias"][::8])
    assert torch.allclose(layer.dense_kernel(), kernel.flatten(0, 1).flatten(1, 2), atol=1e-6)
    x = e2cnn[f"{name}_input"].unflatten(1, (in_fields, -1))[:, :, in_order].flatten(1, 2)
    expected = e2cnn[f"{name}_output"].unflatten(1, (out_fields, 8))[:, :, out_order].flatten(1, 2)
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize(("make", "printed"), ROTATED_MNIST.values(), ids=ROTATED_MNIST)
def test_parameters_of_the_rotated_mnist_nets(make, printed):
    """Knigge et al., arXiv 2106.04914, table 1."""
    net = make().eval()
    count = sum(parameter.numel() for parameter in net.parameters())
    # 25,255 is printed as 25.26
    assert printed == f"{count / 1000 + 1e-9:.2f}k"
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(("make", "printed"), RESNET44.values(), ids=RESNET44)
def test_parameters_of_the_resnets(make, printed):
    """Knigge et al., arXiv 2106.04914, table 2."""
    count = sum(parameter.numel() for parameter in make().parameters())
    assert f"{count / 1e6:.2f}M" == printed


def test_groco_layers_cannot_be_saved_but_these_can(tmp_path):
    net = nn.Sequential(PointGroupConv2d(1, 8, 3, group="4mm", in_group="1"), PointGroupPool(2, "4mm"))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    fresh = nn.Sequential(PointGroupConv2d(1, 8, 3, group="4mm", in_group="1"), PointGroupPool(2, "4mm"))
    fresh.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    x = torch.rand(1, 1, 9, 9)
    assert torch.equal(fresh(x), net(x))


def test_groco_pools_turn_negative_input_to_zero_but_these_do_not():
    assert float(PointGroupPool(3, "m-3m", "432")(-torch.ones(1, 48, 2, 2, 2)).max()) == -1


@pytest.mark.parametrize(("size", "output"), [(7, 13), (8, 15)])
def test_groco_transposed_windows_of_3_are_off_but_these_are_exact(size, output):
    layer = PointGroupConvTranspose2d(8, 8, 3, stride=2, padding=1, group="4mm").double()
    x = torch.randn(1, 8, size, size + 1, dtype=torch.float64)
    y = layer(x)
    assert y.shape[2:] == (output, output + 2)
    for element in layer.group.elements:
        moved = layer(transform_fields(x, element, layer.group))
        assert torch.allclose(moved, transform_fields(y, element, layer.group), atol=1e-12)


def test_groco_refuses_what_has_no_symmetric_padding_and_so_do_these():
    with pytest.raises(
        ConfigurationError, match="no padding makes kernel_size=3, stride=2, dilation=1 exact on an axis of 8"
    ):
        PointGroupConv2d(8, 8, 3, stride=2, padding="symmetric", group="4mm")(torch.rand(1, 8, 8, 8))


def test_the_groups_of_groco_have_names():
    """p4m, p4, p2mm, pmh, pmw, p2, p1 in 2D; Oh, O, D4h, D4 in 3D, named by their orders 48, 24, 16, 8 in the peer."""
    plane = {"p4m": 8, "p4": 4, "p2mm": 4, ("pm", 0): 2, ("pm", 1): 2, "p2": 2, "p1": 1}
    space = {"Oh": 48, "O": 24, "D4h": 16, "D4": 8}
    for names, kind, dims in ((plane, PointGroupConv2d, 2), (space, PointGroupConv3d, 3)):
        for name, number in names.items():
            layer = kind(1, number, 3, group=name, in_group="1")
            assert layer.group.order == number
            assert layer(torch.rand(1, 1, *(5,) * dims)).shape[1] == number
    assert PointGroupConv1d(2, 2, 3, group="m").group.order == 2


def test_a_large_group_is_built_at_once():
    """m-3m, window 3, 8 fields: peers take seconds to minutes."""
    start = time.process_time()
    PointGroupConv3d(384, 384, 3, group="m-3m")
    assert time.process_time() - start < 0.5
