"""Harmonic convolutions: scalars to scalars, as equivariant as radial ones, and safe to train."""

import copy
import warnings

import pytest
import torch
from torch import nn

from monai_gmr import set_backend
from monai_gmr.networks.layers import GMRConv2d, GMRHarmonicConv1d, GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.networks.nets import GMRResNet, GMRUNet
from monai_gmr.symmetry import inscribed_ball, point_group, rotation_matrix, transform_grid, transform_image
from monai_gmr.utils import ConfigurationError

LAYERS = {1: GMRHarmonicConv1d, 2: GMRHarmonicConv2d, 3: GMRHarmonicConv3d}
SIZE = (9, 12, 7)


def largest_change(net, x, group):
    with torch.no_grad():
        y = net(x)
        rotated = lambda g: transform_grid(y, g) if y.ndim == x.ndim else y  # noqa: E731
        return float(max((net(transform_grid(x, g)) - rotated(g)).norm() for g in group) / y.norm())


@pytest.mark.parametrize("rings", ["gaussian", "indexed", "hard"])
@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("dims", "orders"), [(1, (0, 1)), (1, (1,)), (2, (0, 1, 2)), (2, (1, 3)), (3, (0, 1, 2)), (3, (0, 3))]
)
def test_turning_the_input_turns_the_output(dims, orders, kernel_size, rings, device):
    layer = LAYERS[dims](2, 8, kernel_size, padding=1, groups=2, orders=orders, rings=rings, device=device)
    x = torch.randn(2, 2, *SIZE[:dims], device=device)
    plain = getattr(nn, f"Conv{dims}d")(2, 8, kernel_size, padding=1, groups=2, device=device)
    assert layer(x).shape == plain(x).shape
    # cuDNN's ways of a convolution round more
    assert largest_change(layer, x, point_group(dims)) < (1e-6 if device.type == "cpu" else 1e-5)


@pytest.mark.parametrize(("dims", "rows"), [(1, 1.0), (2, 1.5), (3, 2.5)])
def test_all_orders_are_rows_of_one_kernel(dims, rows):
    layer = LAYERS[dims](4, 16, 3, groups=2)
    assert layer.num_responses == len(layer.dense_kernel()) == rows * 16
    assert f"num_responses={layer.num_responses}" in repr(layer)


def test_spacing_keeps_the_group_of_the_grid():
    layer = GMRHarmonicConv3d(1, 4, (3, 7, 7), padding="same", spacing=(2.4, 0.8, 0.8))
    assert largest_change(layer, torch.randn(1, 1, *SIZE), point_group(3, layer.spacing)) < 1e-6


def test_order_zero_alone_is_the_radial_layer():
    harmonic, radial = GMRHarmonicConv2d(2, 4, 5, orders=(0,)), GMRConv2d(2, 4, 5)
    radial.load_state_dict(harmonic.state_dict())
    x = torch.randn(1, 2, 9, 9)
    assert torch.allclose(harmonic(x), radial(x), atol=1e-6)


def test_an_edge_is_seen_whichever_way_it_runs():
    """Two images with equal content on every ring about the centre: order 0 cannot distinguish them, order 2 can."""
    line, corner = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    line[..., 1, 0] = line[..., 1, 2] = corner[..., 1, 0] = corner[..., 0, 1] = 1
    layer = GMRHarmonicConv2d(1, 2, 3, orders=(0, 2), order_split=(0.5, 0.5), bias=False)
    first, second = layer(line).detach().flatten(), layer(corner).detach().flatten()
    assert torch.isclose(first[0], second[0], rtol=1e-5)
    assert first[1] > 5 * second[1].abs()


def test_two_features_at_an_angle_are_told_by_their_inner_product():
    """A line and an edge, parallel or crossing: norms cannot distinguish them, an inner product of two orders-1 responses can."""
    layer = GMRHarmonicConv2d(2, 2, 3, orders=(1,), bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0] = layer.weight[1, 1] = 1.0
    ramp = torch.arange(3.0).expand(1, 1, 3, 3)
    parallel, crossing = torch.cat([ramp, ramp], 1), torch.cat([ramp, ramp.mT], 1)
    first, second = layer(parallel).detach().flatten(), layer(crossing).detach().flatten()
    assert torch.isclose(first[0], second[0], rtol=1e-5)
    assert first[1] > 1
    assert second[1].abs() < 1e-5
    assert GMRHarmonicConv2d(2, 2, 3, orders=(1,), inner_products=False).norms == [2]


@pytest.mark.parametrize(("dims", "kernel_size"), [(1, 3), (2, 3), (2, 5), (3, 3)])
def test_a_fresh_output_varies_as_that_of_a_fresh_convolution(dims, kernel_size):
    torch.manual_seed(0)
    x = torch.randn(4, 32, *{1: (512,), 2: (32, 32), 3: (12, 12, 12)}[dims])
    layer = LAYERS[dims](32, 64, kernel_size, bias=False)
    kinds = [n for norms, channels in zip(layer.norms, layer.channels) for n in (norms, channels - norms) if n]
    for part in layer(x).detach().split(kinds, dim=1):
        assert float(part.var()) == pytest.approx(1 / 3, rel=0.3)


def test_gradients_are_finite_at_zero_and_right_elsewhere(device):
    layer = GMRHarmonicConv2d(2, 4, 3, padding=1, dtype=torch.float64, device=device)
    zero = torch.zeros(1, 2, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    layer(zero).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in (zero, *layer.parameters()))
    names = [name for name, _ in layer.named_parameters()]
    run = lambda x, *p: torch.func.functional_call(layer, dict(zip(names, p)), x)  # noqa: E731
    assert torch.autograd.gradcheck(run, (torch.randn_like(zero, requires_grad=True), *layer.parameters()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_values_do_not_overflow_in_half_precision(dtype, device):
    layer = GMRHarmonicConv2d(1, 4, 3, padding=1, dtype=dtype, device=device)
    assert torch.isfinite(layer(torch.full((1, 1, 6, 6), 1e3, dtype=dtype, device=device))).all()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_script_export_copy_and_state_dict(dims):
    layer, x = LAYERS[dims](2, 8, 3, padding=1), torch.randn(1, 2, *SIZE[:dims])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.allclose(torch.jit.script(layer)(x), layer(x), atol=1e-6)
    assert torch.allclose(torch.export.export(layer, (x,)).module()(x), layer(x), atol=1e-6)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert set(layer.state_dict()) == {"weight", "bias", "log_sigma"}


@pytest.mark.parametrize("degrees", [15, 30, 45])
def test_other_angles_stay_close(degrees):
    torch.manual_seed(0)
    layer = GMRHarmonicConv2d(1, 16, 5, padding=2, bias=False)
    axis = torch.arange(64.0) - 31.5
    x = torch.exp(-((axis[:, None] - 4) ** 2 / 60 + (axis[None] + 6) ** 2 / 30))[None, None]
    matrix = rotation_matrix(2, degrees)
    with torch.no_grad():
        error = layer(transform_image(x, matrix, 5)) - transform_image(layer(x), matrix, 5)
    disc = torch.as_tensor(inscribed_ball((64, 64)))
    assert (error * disc).norm() < 0.01 * (layer(x) * disc).norm()


@pytest.mark.parametrize("dims", [2, 3])
def test_nets_are_exact_and_train(dims):
    size = (17, 20) if dims == 2 else (10, 11, 9)
    for net in (
        GMRUNet(dims, 1, 2, features=(4, 8), conv="gmr_harmonic"),
        GMRResNet(dims, 1, 2, layers=(1, 1), kernel_sizes=3, width=4, conv="gmr_harmonic"),
    ):
        x = torch.randn(4, 1, *size)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        assert largest_change(net.eval(), x, point_group(dims)) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"orders": (0, 4)}, "order 4 is impossible in 2D"),
        ({"orders": (1, 1)}, "give each order once"),
        ({"orders": ()}, "at least one"),
        ({"order_split": (1.0,)}, "needs one share for each"),
        ({"order_split": (0, 0, 0)}, "not all zero"),
        ({"order_split": (float("nan"), 1, 1)}, "not all zero"),
        ({"order_split": 3}, "order_split=3 is impossible: give a list of numbers"),
        ({"orders": 1}, "orders=1 is impossible: give a list of whole numbers"),
        ({"inner_products": "no"}, "inner_products='no' is impossible: give True or False"),
        ({"groups": 1.0}, r"groups=1.0 is impossible: give a whole number"),
    ],
)
def test_what_is_impossible_ends_in_one_sentence(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        GMRHarmonicConv2d(1, 4, 3, **arguments)


def test_there_is_no_equal_convolution():
    with pytest.raises(ConfigurationError, match="takes norms"):
        GMRHarmonicConv2d(1, 4, 3).to_conv()


@pytest.mark.parametrize("backend", ["auto", "cpp"])
@pytest.mark.parametrize("bias", [True, False])
def test_what_follows_may_work_in_place(backend, bias):
    """In-place activations and in-place shortcuts work, as after torch's convolutions."""
    layer, x = GMRHarmonicConv2d(2, 8, 3, padding=1, bias=bias), torch.randn(1, 2, 6, 7, requires_grad=True)
    set_backend(backend)
    try:
        for _ in range(3):
            expected = torch.autograd.grad((layer(x) - 0.1).relu().square().sum(), x)[0]
            output = layer(x)
            output -= 0.1
            output = torch.nn.functional.relu(output, inplace=True)
            assert torch.allclose(torch.autograd.grad(output.square().sum(), x)[0], expected, atol=1e-4)
    finally:
        set_backend("auto")
