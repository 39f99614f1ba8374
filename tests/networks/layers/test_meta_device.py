"""Layers, blocks and nets on the meta device use no memory, and once materialised and loaded they equal the original, as torch's do."""

import copy
import inspect
import io
import itertools
import pickle

import pytest
import torch
from monai.networks.layers import Conv
from torch import nn

from monai_gmr.networks import layers
from monai_gmr.networks.blocks import GMRConvolution, GMRResidualUnit
from monai_gmr.networks.convert import convert_to_gmr
from monai_gmr.networks.layers import GMRConv2d, GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.networks.nets import GMRResNet, GMRUNet

SIZES = (7, 8, 9)

# constructors of layers that take a device, and the shape of an input
LAYERS = {}
for name, dims in itertools.product(
    (
        "GMRConv",
        "GMRHarmonicConv",
        "GMRConvTranspose",
        "GMRCentredConv",
        "GMRCentredHarmonicConv",
        "SREConv",
    ),
    (1, 2, 3),
):
    layer_class = getattr(layers, f"{name}{dims}d", None)
    if layer_class is not None:
        LAYERS[f"{name}{dims}d"] = (lambda c=layer_class, **kwargs: c(2, 4, 3, **kwargs), (1, 2, *SIZES[:dims]))
OPTIONS = {
    "even, grouped, strided": {"kernel_size": 4, "groups": 2, "stride": 2, "padding": "symmetric"},
    "spacing": {"kernel_size": 5, "spacing": (1, 2)},
    "indexed": {"rings": "indexed"},
    "hard": {"rings": "hard"},
    "hard, square": {"rings": "hard_square"},
    "double, no bias": {"dtype": torch.float64, "bias": False},
}
for name, options in OPTIONS.items():
    for layer_class in (GMRConv2d, GMRHarmonicConv2d):
        LAYERS[f"{layer_class.__name__} {name}"] = (
            lambda c=layer_class, o=options, **kwargs: c(2, 4, **{"kernel_size": 3, **o, **kwargs}),
            (1, 2, 10, 10),
        )
LAYERS["GMRHarmonicConv3d order 3"] = (
    lambda **kwargs: GMRHarmonicConv3d(2, 4, 5, orders=(0, 1, 3), **kwargs),
    (1, 2, 7, 7, 7),
)
LAYERS["factory"] = (lambda **kwargs: Conv["GMR", 3](2, 4, 3, **kwargs), (1, 2, 7, 7, 7))

NETS = {
    "convolution": (lambda: GMRConvolution(2, 2, 4), (1, 2, 9, 9)),
    "residual unit": (lambda: GMRResidualUnit(2, 2, 4, strides=2), (1, 2, 9, 10)),
    "sequence": (
        lambda: nn.Sequential(GMRConv2d(2, 4, 3), nn.BatchNorm2d(4), GMRHarmonicConv2d(4, 4, 3)),
        (1, 2, 9, 9),
    ),
    "resized": (lambda: layers.GMRResizedConv2d(2, 4, 3, padding=1, factors=(2, 2), extent=(1, 1)), (1, 2, 9, 8)),
    "GMRResNet": (lambda: GMRResNet(2, 1, 3, width=4), (1, 1, 33, 34)),
    "GMRResNet harmonic": (lambda: GMRResNet(2, 1, 3, width=8, conv="gmr_harmonic"), (1, 1, 33, 34)),
    "GMRUNet": (lambda: GMRUNet(2, 1, 2, features=(4, 8, 8)), (1, 1, 17, 18)),
    "GMRUNet harmonic": (lambda: GMRUNet(3, 1, 2, features=(8, 8, 8), conv="gmr_harmonic"), (1, 1, 9, 10, 12)),
}


def save_and_load(net):
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def emptied(net, original):
    net = net.to_empty(device="cpu")
    # whatever the memory held before
    with torch.no_grad():
        for tensor in [*net.parameters(), *(each for _, each in net.named_buffers())]:
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
    net.load_state_dict(save_and_load(original))
    return net


def assigned(net, original):
    net.load_state_dict(save_and_load(original), assign=True)
    return net


def drawn_anew(net, original):
    net = net.to_empty(device="cpu")
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    net.load_state_dict(save_and_load(original))
    return net


WAYS = {
    "to_empty": emptied,
    "assign": assigned,
    "reset_parameters": drawn_anew,
    "deepcopy": lambda net, original: emptied(copy.deepcopy(net), original),
    "pickle": lambda net, original: emptied(pickle.loads(pickle.dumps(net)), original),
    "to meta and back": lambda net, original: emptied(copy.deepcopy(original).to("meta"), original),
    "emptied where it is": lambda net, original: emptied(copy.deepcopy(original), original),
    "another type between": lambda net, original: emptied(net.half(), original).to(next(original.parameters()).dtype),
}


def check(net, make, shape, way):
    torch.manual_seed(0)
    original = make().eval()
    x = torch.rand(shape, dtype=next(original.parameters()).dtype)
    assert all(each.is_meta for each in net.state_dict().values())
    assert net.eval()(x.to("meta")).shape == original(x).shape
    filled = WAYS[way](net, original).eval()
    assert filled.state_dict().keys() == original.state_dict().keys()
    assert not any(each.is_meta for each in [*filled.parameters(), *filled.buffers()])
    expected = original(x)
    if way == "another type between":
        assert torch.allclose(filled(x), expected, atol=5e-2, rtol=5e-2)
    else:
        assert torch.equal(filled(x), expected)
    assert torch.equal(copy.deepcopy(filled)(x), filled(x))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_made_on_the_meta_device_answers_as_the_original(name, way):
    make, shape = LAYERS[name]
    with torch.device("meta"):
        within = make()
    check(within, make, shape, way)
    check(make(device="meta"), make, shape, way)


@pytest.mark.parametrize("way", ["to_empty", "assign", "reset_parameters", "pickle"])
@pytest.mark.parametrize("name", NETS)
def test_a_net_made_on_the_meta_device_answers_as_the_original(name, way):
    make, shape = NETS[name]
    with torch.device("meta"):
        net = make()
    check(net, make, shape, way)


@pytest.mark.parametrize("name", ["GMRConv2d", "GMRHarmonicConv3d", "GMRConvTranspose2d", "SREConv3d"])
def test_a_filled_layer_is_scripted(name):
    make, shape = LAYERS[name]
    original, x = make(), torch.rand(shape)
    for filled in (emptied(make(device="meta"), original), assigned(make(device="meta"), original)):
        assert torch.allclose(torch.jit.script(filled)(x), original(x), atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["GMRConv2d", "GMRConvTranspose2d", "GMRHarmonicConv2d", "SREConv2d", "PointGroupConv2d", "PartialGroupConv2d"],
)
def test_torchs_own_ways_to_skip_initial_values(name):
    layer_class, more = getattr(layers, name), {"group": "4mm"} if name.startswith("PointGroup") else {}
    layer, other = nn.utils.skip_init(layer_class, 8, 8, 3, **more), layer_class(8, 8, 3, **more)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(torch.ones(1, 8, 7, 7)), other(torch.ones(1, 8, 7, 7)))


@pytest.mark.parametrize("name", ["GMRConv2d", "GMRHarmonicConv3d", "SREConv2d", "GMRResizedConv2d"])
def test_signatures_have_all_arguments_of_torchs_convolutions(name):
    own, torchs = (list(inspect.signature(each).parameters) for each in (getattr(layers, name), nn.Conv2d))
    assert own[: len(torchs)] == torchs
    assert "kwargs" not in own
    assert ("rings" in own) == ("SRE" not in name)


def test_tables_stay_whole_numbers_and_follow_the_weight():
    layer = GMRHarmonicConv2d(2, 4, 5)
    before = {name: table.clone() for name, table in layer.named_buffers()}
    moves = (
        lambda: layer.half(),
        lambda: layer.double(),
        lambda: layer.to(torch.bfloat16),
        lambda: layer.to("meta"),
        lambda: layer.to_empty(device="cpu"),
    )
    for move in moves:
        device = move().weight.device
        for _, table in layer.named_buffers():
            assert table.device == device
            assert not table.is_floating_point()
    for name, table in layer.named_buffers():
        assert torch.equal(table, before[name])


def test_a_layer_with_a_parametrised_weight_is_moved_with_it():
    layer = nn.utils.parametrizations.weight_norm(GMRConv2d(2, 4, 3, device="meta")).to_empty(device="cpu")
    other = nn.utils.parametrizations.weight_norm(GMRConv2d(2, 4, 3))
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(torch.ones(1, 2, 7, 7)), other(torch.ones(1, 2, 7, 7)))


def test_a_converted_net_is_filled_too():
    from monai.networks.nets import BasicUNet

    def make():
        return convert_to_gmr(BasicUNet(2, 1, 2, features=(4, 4, 8, 8, 8, 4)))

    torch.manual_seed(0)
    original = make().eval()
    x = torch.rand(1, 1, 32, 32)
    for fill in (emptied, assigned):
        filled = fill(copy.deepcopy(original).to("meta"), original).eval()
        assert torch.equal(filled(x), original(x))


@pytest.mark.parametrize("name", [*LAYERS, *NETS])
def test_buffers_share_no_memory(name):
    """Tensors that share memory make torch.export.save fail."""
    make, _ = (LAYERS | NETS)[name]
    buffers = [each for each in make().buffers() if each.numel()]
    assert len({each.untyped_storage().data_ptr() for each in buffers}) == len(buffers)
    assert all(each.untyped_storage().nbytes() == each.nbytes for each in buffers)
