"""Harmonic layers on backend "cpp" equal dense kernels in float64, forward and backward, for all geometries."""

import copy
import itertools

import pytest
import torch

from monai_gmr import set_backend
from monai_gmr.metrics import equivariance_error
from monai_gmr.networks.layers import GMRHarmonicConv1d, GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.ops.memory_format import has_channels_last, make_channels_last

pytestmark = pytest.mark.usefixtures("processor")
LAYERS = {1: GMRHarmonicConv1d, 2: GMRHarmonicConv2d, 3: GMRHarmonicConv3d}


def run(layer, x, seed):
    y = layer(x)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], seed.to(y.dtype))]


@pytest.mark.parametrize(
    ("dims", "channels", "size", "arguments"),
    [
        (1, (4, 6), (150,), {"kernel_size": 5, "padding": 2}),
        (2, (3, 9), (9, 8), {"kernel_size": 3, "padding": 1}),
        (2, (16, 33), (33, 90), {"kernel_size": 9, "padding": 4, "bias": False}),
        (2, (2, 8), (9, 10), {"kernel_size": 4, "padding": 0}),
        (2, (5, 11), (20, 21), {"kernel_size": 5, "dilation": 2, "padding": 3}),
        (2, (4, 6), (7, 8), {"kernel_size": (5, 3), "padding": (4, 2)}),
        (2, (4, 8), (7, 8), {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"}),
        (2, (16, 24), (7, 8), {"kernel_size": 3, "padding": 1, "groups": 2}),
        (3, (3, 16), (5, 6, 7), {"kernel_size": 3, "padding": 1}),
        (3, (24, 33), (5, 6, 7), {"kernel_size": 3, "padding": 1, "groups": 3, "bias": False}),
        (3, (8, 10), (9, 12, 17), {"kernel_size": 5, "padding": 2}),
        (3, (5, 11), (7, 8, 9), {"kernel_size": 3, "orders": (2, 0, 3, 1)}),
        (3, (5, 11), (7, 8, 9), {"kernel_size": 3, "padding": 1, "inner_products": False}),
        (3, (5, 6), (7, 8, 9), {"kernel_size": 3, "padding": 1, "orders": (1, 2)}),
        (3, (5, 6), (7, 8, 9), {"kernel_size": 3, "padding": 1, "orders": (0,)}),
        (1, (4, 6), (150,), {"kernel_size": 5, "padding": 2, "keeps": "1"}),
        (2, (3, 9), (9, 8), {"kernel_size": 3, "padding": 1, "keeps": "rotations"}),
        (2, (16, 33), (33, 90), {"kernel_size": 9, "padding": 4, "keeps": "1"}),
        (2, (2, 8), (9, 10), {"kernel_size": 4, "padding": 0, "keeps": "m", "relax": "vector"}),
        (2, (5, 11), (20, 21), {"kernel_size": 5, "dilation": 2, "padding": 3, "keeps": "1", "orders": (2, 1)}),
        (2, (4, 6), (7, 8), {"kernel_size": (5, 3), "padding": (4, 2), "keeps": "2", "bias": False}),
        (2, (16, 64), (7, 8), {"kernel_size": 3, "padding": 1, "groups": 2, "keeps": "1", "relax": "vector"}),
        (3, (3, 16), (5, 6, 7), {"kernel_size": 3, "padding": 1, "keeps": "rotations"}),
        (3, (24, 51), (5, 6, 7), {"kernel_size": 3, "padding": 1, "groups": 3, "keeps": "1", "bias": False}),
        (3, (8, 33), (9, 12, 17), {"kernel_size": 5, "padding": 2, "keeps": "1"}),
        (3, (5, 34), (9, 8, 9), {"kernel_size": 3, "orders": (2, 0, 3, 1), "keeps": "1", "relax": "vector"}),
        (3, (5, 11), (7, 8, 9), {"kernel_size": 3, "padding": 1, "inner_products": False, "keeps": "mm2"}),
        (3, (5, 7), (7, 8, 9), {"kernel_size": (2, 3, 4), "padding": 1, "orders": (1,), "keeps": "1"}),
        (3, (2, 4), (7, 8, 9), {"kernel_size": (5, 5, 3), "spacing": (1.0, 1.0, 2.0), "rings": "hard", "padding": 1}),
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_forward_and_gradients(calls, break_symmetry, dims, channels, size, arguments, last):
    layer, x = break_symmetry(LAYERS[dims](*channels, **arguments)), torch.randn(2, channels[0], *size)
    x = (make_channels_last(x) if last else x).requires_grad_()
    with torch.no_grad():
        seed = torch.randn_like(layer(x))
    found = run(layer, x, seed)
    assert calls
    assert dims == 1 or has_channels_last(found[0]) == last
    # no batch; and a first layer, whose input needs no gradient
    single, first = layer(x[0]), torch.autograd.grad(layer(x.detach()), list(layer.parameters()), seed)
    set_backend("dense")
    expected = run(copy.deepcopy(layer).double(), x.detach().double().requires_grad_(), seed)
    pairs = itertools.chain(zip(found, expected), zip(first, expected[2:]), [(single, expected[0][0])])
    for a, b in pairs:
        assert a.shape == b.shape
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize(
    ("size", "arguments"),
    [
        ((6, 140, 61), {"kernel_size": 5, "padding": 2, "orders": (2,)}),
        ((6, 140, 61), {"kernel_size": 5, "padding": 2, "orders": (2,), "keeps": "1"}),
        ((17, 9, 10), {"kernel_size": 3, "padding": 2, "keeps": "1"}),
        ((24, 9, 10), {"kernel_size": 3, "keeps": "422", "orders": (0, 1)}),
    ],
)
def test_small_rings_of_planes_give_the_same(calls, break_symmetry, size, arguments):
    """Volumes so large that lines, and planes with three threads, are computed in blocks, which share voxels at their borders."""
    layer, x = break_symmetry(GMRHarmonicConv3d(2, 32, **arguments)), torch.randn(1, 2, *size)
    seed, threads = torch.randn_like(layer(x)), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        y = layer(x)
        found = torch.autograd.grad(y, list(layer.parameters()), seed)
    finally:
        torch.set_num_threads(threads)
    assert calls
    set_backend("dense")
    expected = torch.autograd.grad(layer(x), list(layer.parameters()), seed)
    assert torch.allclose(y, layer(x), atol=1e-4)
    for a, b in zip(found, expected):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("keeps", ["all", "rotations"])
def test_a_layer_is_equivariant(calls, break_symmetry, dims, size, keeps):
    layer = break_symmetry(LAYERS[dims](3, 12, 3, padding=1, keeps=keeps))
    errors = equivariance_error(layer.eval(), torch.randn(1, 3, *(size + i for i in range(dims))))
    assert calls
    assert errors.worst <= 1e-6


@pytest.mark.parametrize("keeps", ["all", "1"])
def test_the_same_call_gives_the_same_digits(calls, break_symmetry, keeps):
    layer = break_symmetry(GMRHarmonicConv3d(4, 16, 3, padding=1, keeps=keeps))
    x = torch.randn(2, 4, 9, 10, 11, requires_grad=True)
    found = [run(layer, x, torch.ones(2, 16, 9, 10, 11)) for _ in range(3)]
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again))


@pytest.mark.parametrize("keeps", ["all", "1"])
def test_the_gradient_at_zero_is_finite(calls, break_symmetry, keeps):
    layer = break_symmetry(GMRHarmonicConv2d(2, 8, 3, padding=1, keeps=keeps))
    x = torch.zeros(1, 2, 6, 7, requires_grad=True)
    assert all(each.isfinite().all() for each in run(layer, x, torch.ones(1, 8, 6, 7)))


@pytest.mark.parametrize("keeps", ["all", "1"])
def test_a_call_leaves_nothing_behind_for_the_next(calls, break_symmetry, keeps):
    layer = break_symmetry(GMRHarmonicConv2d(2, 8, 3, padding=1, keeps=keeps))
    for size, value in (((40, 64), float("inf")), ((7, 9), 1.0), ((3, 3), 1.0)):
        x = torch.full((2, 2, *size), value, requires_grad=True)
        found = run(layer, x, torch.ones(2, 8, *size))
        assert all(each.isfinite().all() for each in found) == (value == 1.0)
