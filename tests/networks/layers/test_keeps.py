"""Harmonic layers that keep a named subgroup, and learn terms that break the other symmetries, starting at zero."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from conversion_table import generators
from test_exactness import FRESH_2D
from torch import nn

from monai_gmr.metrics import check_equivariance, equivariance_error
from monai_gmr.networks.layers import (
    GMRCentredHarmonicConv2d,
    GMRHarmonicConv1d,
    GMRHarmonicConv2d,
    GMRHarmonicConv3d,
)
from monai_gmr.networks.layers.gmr_harmonic_conv import CHIRAL_GAIN
from monai_gmr.networks.nets import GMRResNet, GMRUNet
from monai_gmr.symmetry import PointGroup, kept_group, point_group, transform_grid
from monai_gmr.utils import ConfigurationError

LAYERS = {1: GMRHarmonicConv1d, 2: GMRHarmonicConv2d, 3: GMRHarmonicConv3d}
KEPT = [
    *((2, keeps) for keeps in ("all", "rotations", "2mm", "2", "m", ("m", "y"), "1")),
    *((3, keeps) for keeps in ("all", "rotations", "-43m", "23", "4/mmm", ("4/mmm", "x"), "422", "4mm")),
    *((3, keeps) for keeps in ("mmm", "mm2", ("m", "x"), "-1", "3m", "1")),
]


def orders_of(keeps):
    """Orders of a layer: tetrahedral groups leave xyz unchanged, which has order 3."""
    return {"orders": (0, 1, 3) if keeps in ("-43m", "23") else None}


def break_symmetry(net, scale=0.5):
    """Replaces the zero terms of a fresh net by random ones of the same shape."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in net.named_parameters():
        if name.endswith(("relax_weight", "chiral_weight")):
            with torch.no_grad():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return net


def errors_inside_and_outside(net, x, group, elements=None):
    """Largest relative error over the elements of a group, and smallest over those outside it; 0 and ``inf`` if there are none."""
    inside, outside = [0.0], [float("inf")]
    with torch.no_grad():
        y = net(x)
        for element in point_group(x.ndim - 2) if elements is None else elements:
            expected = transform_grid(y, element) if y.ndim == x.ndim else y
            error = float((net(transform_grid(x, element)) - expected).norm() / y.norm())
            (inside if element.tolist() in group.elements.tolist() else outside).append(error)
    return max(inside), min(outside)


@pytest.mark.parametrize("relax", ["vector", "matrix"])
@pytest.mark.parametrize(("dims", "keeps"), [(1, "1"), *KEPT])
def test_a_layer_keeps_the_named_group_and_no_more(dims, keeps, relax):
    size, group = (9, 12, 7)[:dims], kept_group(keeps, dims)
    layer = LAYERS[dims](4, 32, 3, padding=1, groups=2, keeps=keeps, relax=relax, **orders_of(keeps))
    x = torch.randn(2, 4, *size)
    assert errors_inside_and_outside(layer, x, kept_group("all", dims))[0] < 1e-6
    inside, outside = errors_inside_and_outside(break_symmetry(layer), x, group)
    assert inside < 1e-5
    assert outside > 1e-2
    doubled = copy.deepcopy(layer).double()
    assert errors_inside_and_outside(doubled, x.double(), group)[0] < 1e-11


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("kind", "dims", "keeps"), [(kind, *each) for each, kind in zip(KEPT, itertools.cycle(["unet", "resnet"]))]
)
def test_nets_keep_the_named_group_and_no_more(kind, dims, keeps):
    """Alternates the kinds of net, because the test of layers covers each group. Tests all elements at a small size; at others, generators
    of the kept group and one element outside it."""
    group, conv = kept_group(keeps, dims), ("gmr_harmonic", {"keeps": keeps, **orders_of(keeps)})
    # 16 channels, so that order 1 has enough for triple products
    if kind == "unet":
        net: nn.Module = GMRUNet(dims, 1, 2, features=(16, 16), conv=conv, kernel_sizes=3)
    else:
        net = GMRResNet(dims, 1, 3, layers=(1, 1), kernel_sizes=3, width=16, stem_kernel_size=3, conv=conv)
    for norm in net.modules():  # blocks of a fresh ResNet pass their input on
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.ones_(norm.weight)
    break_symmetry(net)
    outside_group = [g for g in generators(dims) if g.tolist() not in group.elements.tolist()]
    few = [*group.generators(), *outside_group[:1]]
    for number, size in enumerate([(11, 10), *FRESH_2D] if dims == 2 else [(10, 11, 9), (13, 14, 15), (16, 14, 12)]):
        net.train(number // 2 % 2 == 0)  # odd and even sizes in both modes
        # random signs: no element maps the image near itself
        x = torch.randn(2 if dims == 2 else 1, 1, *size)
        inside, outside = errors_inside_and_outside(net, x, group, few if number else point_group(dims))
        assert inside < 1e-5, (size, net.training)
        assert outside > 1e-2, (size, net.training)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_all_has_the_bits_and_the_state_of_the_layer_without(dims):
    torch.manual_seed(0)
    first = LAYERS[dims](2, 8, 3, padding=1)
    torch.manual_seed(0)
    second = LAYERS[dims](2, 8, 3, padding=1, keeps="all", relax="vector")
    relaxed = LAYERS[dims](2, 8, 3, padding=1, keeps="1")
    x = torch.randn(1, 2, *(9, 8, 7)[:dims])
    assert torch.equal(first(x), second(x))
    assert first.state_dict().keys() == second.state_dict().keys() == {"weight", "bias", "log_sigma"}
    # and a relaxed layer takes the weights of one that keeps all
    missing, unexpected = relaxed.load_state_dict(first.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) <= {"relax_weight", "chiral_weight"}
    assert torch.allclose(relaxed(x), first(x), atol=1e-6)


@pytest.mark.parametrize(("dims", "matrix", "vector"), [(2, 32 * 32, 32), (3, 32 * 64, 64)])
def test_parameters_are_those_of_a_matrix_or_a_vector_an_output(dims, matrix, vector):
    """Of 32 channels, a quarter has order 1 and a quarter order 2: 2 and 2 components in 2D, 3 and 5 in 3D."""
    for relax, count in (("matrix", matrix), ("vector", vector)):
        layer = LAYERS[dims](4, 32, 3, keeps="1", relax=relax)
        assert layer.relax_weight.numel() == count
    assert LAYERS[dims](4, 32, 3, keeps="rotations").relax_weight is None


def test_the_linear_terms_are_the_matrix_on_the_responses():
    """Compares with the dense kernel, whose last rows are the responses of orders above 0."""
    layer = break_symmetry(GMRHarmonicConv3d(3, 16, 3, padding=1, keeps="m")).double()
    fresh = copy.deepcopy(layer)
    nn.init.zeros_(fresh.relax_weight)
    x = torch.randn(1, 3, 5, 6, 7, dtype=torch.float64)
    responses = nn.functional.conv3d(x, layer.dense_kernel(), padding=1)[:, layer.channels[0] :]
    expected = torch.einsum("or,brxyz->boxyz", layer.linear_matrix()[0], responses)
    assert torch.allclose(layer(x) - fresh(x), expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_chiral_terms_change_their_sign_under_mirror_images(dims):
    layer = break_symmetry(LAYERS[dims](3, 16, 3, padding=1, keeps="rotations", bias=False)).double()
    fresh = copy.deepcopy(layer)
    nn.init.zeros_(fresh.chiral_weight)
    x = torch.randn(1, 3, *(9, 8, 7)[:dims], dtype=torch.float64)
    terms = layer(x) - fresh(x)
    mirrored = layer(x.flip(2)) - fresh(x.flip(2))
    assert terms.abs().max() > 0.1
    assert torch.allclose(mirrored, -terms.flip(2))


@pytest.mark.parametrize("dims", [2, 3])
def test_chiral_terms_vary_as_inner_products_do(dims):
    torch.manual_seed(0)
    layer = LAYERS[dims](32, 64, 3, bias=False, keeps="rotations")
    x = torch.randn(4, 32, *((32, 32) if dims == 2 else (12, 12, 12)))
    before = layer(x).detach()
    nn.init.constant_(layer.chiral_weight, 1 / CHIRAL_GAIN)
    term = (layer(x).detach() - before)[:, layer.chiral_channels.any(0)]
    assert float(term.var()) == pytest.approx(1 / 3, rel=0.3)


@pytest.mark.parametrize(("dims", "keeps"), [(2, "1"), (2, "rotations"), (3, "1"), (3, "mm2")])
def test_gradients_are_right(dims, keeps):
    layer = break_symmetry(LAYERS[dims](2, 16, 3, padding=1, keeps=keeps, dtype=torch.float64))
    x = torch.randn(1, 2, *(3, 4, 3)[:dims], dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]
    run = lambda x, *p: torch.func.functional_call(layer, dict(zip(names, p)), x)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize(("dims", "keeps"), [(1, "1"), (2, "rotations"), (2, ("m", "y")), (3, "1")])
def test_script_export_trace_copy_and_state_dict(dims, keeps):
    layer, x = break_symmetry(LAYERS[dims](2, 16, 3, padding=1, keeps=keeps)), torch.randn(1, 2, *(9, 12, 7)[:dims])
    expected = layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.allclose(torch.jit.script(layer)(x), expected, atol=1e-5)
        assert torch.allclose(torch.jit.trace(layer, x)(x), expected, atol=1e-5)
    assert torch.allclose(torch.export.export(layer, (x,)).module()(x), expected, atol=1e-5)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)
    other = LAYERS[dims](2, 16, 3, padding=1, keeps=keeps)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), expected)
    meta = LAYERS[dims](2, 16, 3, padding=1, keeps=keeps, device="meta")
    meta.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(meta(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near(dtype):
    layer = break_symmetry(GMRHarmonicConv2d(2, 16, 3, padding=1, keeps="1"))
    x = torch.randn(1, 2, 9, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x).float()
    assert (low - layer(x)).norm() < 0.03 * layer(x).norm()
    half = copy.deepcopy(layer).to(dtype)(x.to(dtype)).float()
    assert (half - layer(x)).norm() < 0.03 * layer(x).norm()


def test_centred_layers_keep_the_group_at_strides():
    layer = break_symmetry(GMRCentredHarmonicConv2d(2, 16, 3, stride=2, padding=1, keeps="m"))
    for size in ((9, 12), (8, 7)):
        inside, outside = errors_inside_and_outside(layer, torch.randn(1, 2, *size), kept_group("m", 2))
        assert inside < 1e-6
        assert outside > 1e-2


def test_spacing_and_keeps_go_together():
    """An anisotropic scan: round in millimetres, and free along its coarse axis."""
    layer = GMRHarmonicConv3d(1, 16, (3, 7, 7), padding="same", spacing=(2.4, 0.8, 0.8), keeps=("4mm", "x"))
    group = kept_group(("4mm", "x"), 3)
    inside, outside = errors_inside_and_outside(break_symmetry(layer), torch.randn(1, 1, 9, 12, 12), group)
    assert inside < 1e-5
    assert outside > 1e-2


def test_checks_ask_the_group_that_a_net_keeps():
    net = break_symmetry(GMRUNet(2, 1, 2, features=(8, 16), conv=("gmr_harmonic", {"keeps": "m"})))
    assert len(equivariance_error(net, torch.randn(1, 1, 9, 12)).group.views) == 2
    assert check_equivariance(net, (17, 20)).ok
    assert not check_equivariance(net, (17, 20), group=point_group(2)).ok


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keeps": "p31m"}, "keeps='p31m' is unknown in 2D"),
        ({"keeps": ("m", 5)}, r"keeps=\('m', 5\) is read as a name and its axis=5 is unknown in 2D"),
        ({"keeps": "m", "orders": (0,)}, "leaves no response of orders=\\(0,\\) unchanged"),
        ({"keeps": 3.5}, "keeps=3.5 is impossible"),
        ({"keeps": PointGroup.from_name("432", 3)}, "3 axes"),
        ({"keeps": "1", "relax": "tensor"}, "relax='tensor'"),
    ],
)
def test_what_is_impossible_says_so(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        GMRHarmonicConv2d(1, 8, 3, **arguments)
