"""Radial convolutions: the interface of ``nn.ConvNd``, the symmetry, and the equal dense convolution as reference."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import monai_gmr
from monai_gmr.networks.layers import (
    GMRConv1d,
    GMRConv2d,
    GMRConv3d,
    GMRConvTranspose1d,
    GMRConvTranspose2d,
    GMRConvTranspose3d,
    SREConv2d,
)
from monai_gmr.symmetry import kernel_shells, point_group, stride_is_exact, transform_grid
from monai_gmr.utils import ConfigurationError, SymmetryWarning

CONVOLUTIONS = {1: GMRConv1d, 2: GMRConv2d, 3: GMRConv3d}
TRANSPOSED = {1: GMRConvTranspose1d, 2: GMRConvTranspose2d, 3: GMRConvTranspose3d}
RINGS = ("gaussian", "indexed", "hard")
SIZE = (9, 12, 7)
# cuDNN's ways of a convolution round more
ROUNDING = {"cpu": 1e-6, "other": 1e-6, "cuda": 1e-5}


def largest_change(layer, x, group):
    """Largest difference, over a group, between rotating before and after the layer, relative to its output."""
    with torch.no_grad():
        y = layer(x)
        changes = [(layer(transform_grid(x, g)) - transform_grid(y, g)).norm() for g in group]
    return float(max(changes) / y.norm())


@pytest.mark.filterwarnings("ignore:the taps along axis")
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_geometry_equals_its_dense_convolution(data):
    """``to_conv`` gives an ``nn.ConvNd`` with the same numbers, for every combination of arguments."""
    dims = data.draw(st.integers(1, 3))
    draw = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    groups = data.draw(st.sampled_from([1, 2]))
    kernel_size, dilation = draw(1, 4), draw(1, 2)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size)]
    mode = data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding = tuple(data.draw(st.integers(0, min(3, r // 2 + 1))) for r in reach)
    stride = draw(1, 3)
    if data.draw(st.booleans()):
        padding, stride = "same", (1,) * dims
    layer = CONVOLUTIONS[dims](
        4, 6, kernel_size, stride, padding, dilation, groups, data.draw(st.booleans()), mode, None, torch.float64,
        rings=data.draw(st.sampled_from(RINGS)),
    )  # fmt: skip
    x = torch.randn(2, 4, *SIZE[:dims], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dense = layer.to_conv()
        assert isinstance(dense, getattr(nn, f"Conv{dims}d"))
        assert torch.allclose(layer(x), dense(x), atol=1e-12)
        assert torch.allclose(layer(x[0]), dense(x[0]), atol=1e-12)


@pytest.mark.parametrize("rings", RINGS)
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_turning_the_input_turns_the_output(dims, kernel_size, rings, device):
    layer = CONVOLUTIONS[dims](2, 3, kernel_size, padding=1, rings=rings, device=device)
    x = torch.randn(1, 2, *SIZE[:dims], device=device)
    assert largest_change(layer, x, point_group(dims)) < ROUNDING[device.type]


@pytest.mark.parametrize("kernel_size", [(3, 7, 7), (1, 3, 3)])
def test_a_window_of_unlike_lengths_keeps_the_turns_that_keep_it(kernel_size):
    layer = GMRConv3d(1, 2, kernel_size, padding="same")
    group = point_group(3, axis_labels=kernel_size)
    assert len(group) == 16
    assert largest_change(layer, torch.randn(1, 1, *SIZE), group) < 1e-6


def test_spacing_makes_the_kernel_round_in_millimetres():
    layer = GMRConv3d(1, 1, (3, 7, 7), padding="same", spacing=(2.4, 0.8, 0.8))
    kernel = layer.dense_kernel()[0, 0]
    assert torch.allclose(kernel[0, 3, 3], kernel[1, 3, 0])
    assert kernel[0, 3, 3].abs() > 0
    assert largest_change(layer, torch.randn(1, 1, *SIZE), point_group(3, layer.spacing)) < 1e-6


def test_taps_that_the_kernel_cannot_reach_are_told():
    with pytest.warns(UserWarning, match="does not mix along it"):
        GMRConv3d(1, 1, 3, spacing=(3.0, 1.0, 1.0))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 2), (4, 2), (3, 3), (2, 2), (5, 4)])
def test_symmetric_padding_makes_strides_exact_or_refuses(dims, kernel_size, stride):
    layer = CONVOLUTIONS[dims](2, 3, kernel_size, stride, padding="symmetric")
    possible = all(any(stride_is_exact(n, kernel_size, stride, p) for p in range(8)) for n in SIZE[:dims])
    x = torch.randn(1, 2, *SIZE[:dims])
    if possible:
        assert largest_change(layer, x, point_group(dims)) < 1e-6
    else:
        with pytest.raises(ConfigurationError, match="no padding makes"):
            layer(x)


def test_an_inexact_stride_warns_and_names_the_size():
    layer = GMRConv2d(1, 1, 3, stride=2, padding=1)
    with pytest.warns(SymmetryWarning, match="an axis of 12 voxels"):
        layer(torch.rand(1, 1, 9, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(torch.rand(1, 1, 9, 13))


@pytest.mark.parametrize("rings", RINGS)
@pytest.mark.parametrize(("dims", "kernel_size"), [(1, 5), (2, 3), (2, 9), (3, 3), (3, 5)])
def test_a_fresh_output_varies_as_that_of_a_fresh_convolution(dims, kernel_size, rings):
    torch.manual_seed(0)
    x = torch.randn(4, 32, *{1: (512,), 2: (32, 32), 3: (12, 12, 12)}[dims])
    ratios = []
    for _ in range(4):
        ours = CONVOLUTIONS[dims](32, 32, kernel_size, bias=False, rings=rings)(x)
        theirs = getattr(nn, f"Conv{dims}d")(32, 32, kernel_size, bias=False)(x)
        ratios.append(float(ours.detach().var() / theirs.detach().var()))
    assert math.isclose(sum(ratios) / len(ratios), 1, abs_tol=0.12)


@pytest.mark.parametrize("rings", RINGS)
def test_gradients_of_input_weight_sigma_and_bias(rings, device):
    layer = GMRConv2d(2, 2, 5, padding=2, rings=rings, dtype=torch.float64, device=device)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), x)

    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_builds_its_basis_in_single(dtype):
    layer = GMRConv2d(4, 4, 5, padding=2)
    half = GMRConv2d(4, 4, 5, padding=2, dtype=dtype)
    half.load_state_dict(layer.state_dict())
    layer.load_state_dict(half.state_dict())
    assert half.basis().dtype == torch.float32
    assert torch.equal(half.dense_kernel(), layer.dense_kernel().to(dtype))


def test_autocast_keeps_the_kernel_in_single_and_the_symmetry(device):
    layer, x = GMRConv2d(2, 4, 5, padding=2, device=device), torch.randn(1, 2, 9, 12, device=device)
    with torch.autocast(device.type, torch.bfloat16), torch.no_grad():
        y = layer(x)
        rotated = layer(x.rot90(1, (2, 3)))
    assert y.dtype == torch.bfloat16
    expected = nn.functional.conv2d(x.bfloat16(), layer.dense_kernel().bfloat16(), layer.bias.bfloat16(), padding=2)
    assert torch.allclose(y, expected, atol=1e-2)
    assert (rotated - y.rot90(1, (2, 3))).norm() / y.norm() < 1e-2


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("rings", RINGS)
@pytest.mark.parametrize(("kernel_size", "stride"), [(2, 2), (4, 2), (3, 3), (3, 1)])
def test_transposed_layers_multiply_the_size_exactly(dims, kernel_size, stride, rings):
    layer = TRANSPOSED[dims](2, 3, kernel_size, stride, padding="symmetric", rings=rings)
    x = torch.randn(1, 2, *(4, 5, 3)[:dims])
    assert layer(x).shape[2:] == tuple(stride * n for n in x.shape[2:])
    assert largest_change(layer, x, point_group(dims)) < 1e-6
    assert torch.allclose(layer(x), layer.to_conv()(x), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.sampled_from([1, 2]))
def test_transposed_geometry_equals_the_dense_one(kernel_size, stride, dilation, padding, groups):
    layer = GMRConvTranspose2d(4, 2, kernel_size, stride, padding, 0, groups, True, dilation, dtype=torch.float64)
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    if (5 - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + 1 >= 1:
        assert torch.allclose(layer(x), layer.to_conv()(x), atol=1e-12)


def test_output_size_is_honoured_exactly_where_parity_allows():
    layer, x = GMRConvTranspose2d(1, 1, 5, stride=3, padding=2), torch.randn(1, 1, 4, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layer(x, [12, 15]).shape[2:] == (12, 15)
    centred = largest_change(lambda v: layer(v, [12, 15] if v.shape[2] == 4 else [15, 12]), x, point_group(2))
    assert centred < 1e-6
    with pytest.warns(SymmetryWarning, match="output_padding"):
        assert layer(x, [11, 14]).shape[2:] == (11, 14)
    with pytest.raises(ValueError, match="use 10 to 12"):
        layer(x, [14, 15])


def test_even_output_padding_of_a_layer_warns():
    with pytest.warns(SymmetryWarning, match="not equivariant"):
        GMRConvTranspose2d(1, 1, 3, 2, 1, output_padding=1)(torch.rand(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rings": "gausian"}, "rings='gausian' is unknown: use one of 'gaussian', 'indexed', 'hard'"),
        ({"groups": 3}, "groups=3 must divide"),
        ({"kernel_size": 0}, "whole numbers of at least 1"),
        ({"stride": (1, 2, 3)}, "give 2 whole numbers"),
        ({"padding": (1,)}, "padding=\\(1,\\) is impossible"),
        ({"padding": -1}, "whole numbers of at least 0"),
        ({"padding": "smae"}, "padding='smae' is unknown"),
        ({"padding": "same", "stride": 2}, "use padding='symmetric'"),
        ({"padding_mode": "zero"}, "padding_mode='zero' is unknown"),
        ({"spacing": (1, 1, 1)}, "give 2 voxel sizes above 0 in millimetres"),
        ({"num_rings": 0}, "use at least 1"),
        ({"dtype": torch.complex64}, "real floating-point"),
    ],
)
def test_what_is_impossible_ends_in_one_sentence(arguments, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        GMRConv2d(**({"in_channels": 4, "out_channels": 8, "kernel_size": 3} | arguments))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (4, 8), (1, 4, 8, 8, 8)])
def test_a_wrong_input_ends_in_one_sentence(shape):
    with pytest.raises(ConfigurationError, match="in_channels=4 and was given an input of shape"):
        GMRConv2d(4, 8, 3)(torch.rand(shape))


def test_backend_is_chosen_by_function_and_environment(monkeypatch):
    monkeypatch.setattr("monai_gmr.ops.backend._forced", [])
    monkeypatch.setenv("MONAI_GMR_BACKEND", "dense")
    assert monai_gmr.get_backend() == "dense"
    monkeypatch.setenv("MONAI_GMR_BACKEND", "fast")
    with pytest.raises(ConfigurationError, match="MONAI_GMR_BACKEND=fast is unknown"):
        GMRConv2d(1, 1, 3)(torch.rand(1, 1, 5, 5))
    with pytest.raises(ConfigurationError, match="backend='quick' is unknown"):
        monai_gmr.set_backend("quick")


def test_compiled_and_channels_last_layers_give_the_same():
    layer, x = GMRConv2d(2, 4, 5, padding=2), torch.randn(2, 2, 9, 12)
    y = layer(x)
    assert torch.allclose(torch.compile(layer, backend="eager", fullgraph=True)(x), y, atol=1e-6)
    last = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert torch.allclose(last, y, atol=1e-6)


def test_sre_layers_are_constant_on_rings():
    kernel = SREConv2d(1, 1, 7).dense_kernel()[0, 0].detach()
    radii = kernel_shells((7, 7)).radii[kernel_shells((7, 7)).tap_shell]
    for low, high in zip((0, 0.875, 1.75, 2.625), (0.875, 1.75, 2.625, 3.5)):
        values = kernel[torch.as_tensor((low <= radii) & (radii < high))]
        assert values.max() == values.min()
    assert (kernel[torch.as_tensor(radii >= 3.5)] == 0).all()


def test_a_layer_made_on_the_meta_device_is_filled_later():
    layer = GMRConv2d(2, 3, 5, device="meta")
    assert layer(torch.empty(1, 2, 9, 9, device="meta")).shape == (1, 3, 5, 5)
    layer.to_empty(device="cpu").reset_parameters()
    fresh = GMRConv2d(2, 3, 5)
    fresh.load_state_dict(layer.state_dict())
    x = torch.randn(1, 2, 9, 9)
    assert torch.equal(layer(x), fresh(x))
