"""Layers that GMR-Conv cannot build or call, or gets silently wrong, work here."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from monai_gmr.networks.layers import (
    GMRConv1d,
    GMRConv2d,
    GMRConv3d,
    GMRConvTranspose1d,
    GMRConvTranspose2d,
    GMRConvTranspose3d,
    GMRDownsample,
    GMRUpsample,
)
from monai_gmr.symmetry import point_group, transform_grid
from monai_gmr.utils import ConfigurationError, SymmetryWarning

CONV = {1: GMRConv1d, 2: GMRConv2d, 3: GMRConv3d}
TRANSPOSED = {1: GMRConvTranspose1d, 2: GMRConvTranspose2d, 3: GMRConvTranspose3d}
RINGS = ("gaussian", "indexed", "hard")
SIZES = {1: (11,), 2: (9, 12), 3: (6, 7, 9)}


def random_input(spatial_dims, channels=2, dtype=torch.float32, batch=(2,)):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*batch, channels, *SIZES[spatial_dims], generator=generator, dtype=torch.float64).to(dtype)


def symmetry_error(module, x, spatial_dims):
    """Largest deviation from ``f(g x) = g f(x)`` over the point group, relative to the largest output."""
    with torch.no_grad():
        y = module(x)
        errors = [(module(transform_grid(x, g)) - transform_grid(y, g)).abs().max() for g in point_group(spatial_dims)]
    return float(max(errors) / y.abs().max())


def scipy_convolution(layer, x):
    """Reference for stride 1 and full padding: scipy correlates each pair of channels in float64."""
    modes = {"zeros": "constant", "reflect": "mirror", "replicate": "nearest", "circular": "wrap"}
    kernel = layer.dense_kernel().detach().double().numpy()
    x, groups = x.double().numpy(), layer.groups
    y = np.zeros((x.shape[0], layer.out_channels, *x.shape[2:]))
    per_group = layer.out_channels // groups
    for image, o, i in np.ndindex(len(x), layer.out_channels, layer.in_channels // groups):
        source = x[image, (o // per_group) * (layer.in_channels // groups) + i]
        y[image, o] += ndimage.correlate(source, kernel[o, i], mode=modes[layer.padding_mode])
    if layer.bias is not None:
        y += layer.bias.detach().double().numpy().reshape(-1, *[1] * (x.ndim - 2))
    return torch.from_numpy(y)


def relative_error(actual, expected):
    return float((actual.detach().double() - expected).abs().max() / expected.abs().max())


# What the peer can neither build nor call.

BUILDS = {
    "1d": (1, {"kernel_size": 5}),
    "k=1 in 2d": (2, {"kernel_size": 1}),
    "k=1 in 3d": (3, {"kernel_size": 1}),
    "num_rings=1": (2, {"kernel_size": 5, "num_rings": 1}),
    "num_rings=6": (2, {"kernel_size": 5, "num_rings": 6}),
    "groups": (2, {"kernel_size": 3, "groups": 2}),
    "groups in 3d": (3, {"kernel_size": 3, "groups": 2}),
    "no bias": (2, {"kernel_size": 3, "bias": False}),
    "non-square": (2, {"kernel_size": (3, 7)}),
    "non-cubic": (3, {"kernel_size": (3, 5, 1)}),
}


@pytest.mark.parametrize("rings", RINGS)
@pytest.mark.parametrize("case", BUILDS)
def test_unusual_windows_build_and_equal_scipy(case, rings):
    spatial_dims, options = BUILDS[case]
    layer = CONV[spatial_dims](2, 4, padding="same", rings=rings, **options)
    x = random_input(spatial_dims)
    assert relative_error(layer(x), scipy_convolution(layer, x)) < 1e-5


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_unbatched_input_is_one_image_of_a_batch(spatial_dims):
    layer, transposed = CONV[spatial_dims](2, 3, 3), TRANSPOSED[spatial_dims](2, 3, 2, stride=2)
    x = random_input(spatial_dims)
    for module in (layer, transposed):
        torch.testing.assert_close(module(x[0]), module(x)[0])


@pytest.mark.parametrize("rings", RINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_dtype_of_the_constructor_is_that_of_parameters_and_output(spatial_dims, dtype, rings):
    layer = CONV[spatial_dims](2, 3, 3, padding=1, rings=rings, dtype=dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    x = random_input(spatial_dims, dtype=dtype)
    y = layer(x)
    assert y.dtype is dtype
    assert relative_error(y, scipy_convolution(layer, x)) < {torch.float64: 1e-12}.get(dtype, 3e-2)


@pytest.mark.parametrize("kernel_size", [2, 3, 4])
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_transposed_layer_is_the_adjoint_of_the_layer(spatial_dims, kernel_size):
    forward = CONV[spatial_dims](2, 3, kernel_size, stride=2, bias=False, dtype=torch.float64)
    backward = TRANSPOSED[spatial_dims](3, 2, kernel_size, stride=2, bias=False, dtype=torch.float64)
    backward.load_state_dict(forward.state_dict())
    generator = torch.Generator().manual_seed(1)
    sizes = [2 * 4 + kernel_size] * spatial_dims
    x = torch.randn(1, 2, *sizes, generator=generator, dtype=torch.float64)
    y = forward(x)
    z = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    back = backward(z)
    assert back.shape == x.shape
    torch.testing.assert_close((y * z).sum(), (x * back).sum())


def test_ordinary_layer_has_no_transposed_switch():
    with pytest.raises(TypeError):
        GMRConv2d(2, 2, 3, transposed=True)


def test_import_needs_neither_torchvision_nor_torchio_nor_the_peers():
    """Imports all modules except Triton kernels, in a new interpreter, as commands do."""
    code = """
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torchvision', 'torchio', 'GMR_Conv', 'SRE_Conv', 'medmnist', 'escnn', 'e2cnn'):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import torch, monai_gmr
from monai_gmr.networks.layers import GMRConv2d
for each in pkgutil.walk_packages(monai_gmr.__path__, "monai_gmr."):
    if not each.name.startswith("monai_gmr.ops.triton.") and "._" not in each.name:
        importlib.import_module(each.name)
print(tuple(GMRConv2d(1, 2, 3)(torch.ones(1, 1, 5, 5)).shape))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip().endswith("(1, 2, 3, 3)"), result.stderr


# What the peer gets silently wrong.


@pytest.mark.parametrize("rings", RINGS)
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(("spatial_dims", "kernel_size"), [(1, 3), (2, 5), (3, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_padding_mode_is_obeyed(spatial_dims, kernel_size, padding_mode, rings, training):
    layer = CONV[spatial_dims](2, 3, kernel_size, padding=kernel_size // 2, padding_mode=padding_mode, rings=rings)
    layer.train(training)
    x = random_input(spatial_dims)
    assert relative_error(layer(x), scipy_convolution(layer, x)) < 1e-5


@pytest.mark.parametrize("rings", RINGS)
@pytest.mark.parametrize(
    ("spatial_dims", "kernel_size"),
    [(d, k) for d in (1, 2, 3) for k in (2, 3, 4, 5, 6, 7, 8) if d < 3 or k <= 5],
)
def test_odd_and_even_windows_are_exact_over_the_point_group(spatial_dims, kernel_size, rings):
    layer = CONV[spatial_dims](2, 3, kernel_size, padding=kernel_size // 2, rings=rings)
    assert symmetry_error(layer, random_input(spatial_dims), spatial_dims) < 1e-5


@pytest.mark.parametrize("rings", RINGS)
@pytest.mark.parametrize("kernel_size", [2, 3, 4, 6, 9])
def test_kernel_depends_on_the_distance_to_the_window_centre_only(kernel_size, rings):
    kernel = GMRConv2d(1, 1, kernel_size, rings=rings).dense_kernel().detach()[0, 0].numpy()
    by_radius = {}
    for tap in np.ndindex(kernel.shape):
        radius = sum((2 * t - kernel_size + 1) ** 2 for t in tap)
        by_radius.setdefault(radius, []).append(kernel[tap])
    assert max(np.ptp(values) for values in by_radius.values()) == 0
    inside = [values for radius, values in by_radius.items() if radius < kernel_size**2]
    assert all(values[0] != 0 for values in inside)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_stride_2_on_an_even_size_is_not_silent(spatial_dims, kernel_size):
    x = torch.randn(1, 1, *[8] * spatial_dims)
    layer = CONV[spatial_dims](1, 1, kernel_size, stride=2, padding=kernel_size // 2)
    with pytest.warns(SymmetryWarning, match="8"):
        layer(x)
    with pytest.raises(ConfigurationError):
        CONV[spatial_dims](1, 1, kernel_size, stride=2, padding="symmetric")(x)


@pytest.mark.parametrize(
    ("size", "kernel_size"), [((8, 8), 4), ((9, 7), 3), ((8, 10), 2), ((9, 7, 9), 5), ((8, 6, 8), 4)]
)
def test_stride_2_is_exact_with_symmetric_padding(size, kernel_size):
    layer = CONV[len(size)](2, 3, kernel_size, stride=2, padding="symmetric")
    assert symmetry_error(layer, torch.randn(1, 2, *size), len(size)) < 1e-5


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (7, 9), (9, 8, 8), (7, 9, 8)])
@pytest.mark.parametrize("kernel_size", [3, 4])
def test_stride_2_is_exact_on_every_size_by_downsampling(size, kernel_size):
    layer = CONV[len(size)](2, 3, kernel_size, padding="symmetric")
    module = nn.Sequential(layer, GMRDownsample(len(size)))
    assert symmetry_error(module, torch.randn(1, 2, *size), len(size)) < 1e-5


def test_anisotropic_3d_window_uses_all_its_taps():
    """The peer's (3, 7, 7) stem is non-zero on 19 of 147 taps; ours on every tap within its reach of 4 voxels."""
    kernel = GMRConv3d(1, 1, (3, 7, 7)).dense_kernel().detach()[0, 0].numpy()
    z, y, x = np.meshgrid([-1, 0, 1], range(-3, 4), range(-3, 4), indexing="ij")
    within = z**2 + y**2 + x**2 < 4**2
    np.testing.assert_array_equal(kernel != 0, within)
    assert within.sum() == 135


@pytest.mark.parametrize("kernel_size", [2, 4])
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_transposed_upsampling_is_exact(spatial_dims, kernel_size):
    layer = TRANSPOSED[spatial_dims](2, 3, kernel_size, stride=2, padding="symmetric")
    x = random_input(spatial_dims)
    assert layer(x).shape[2:] == tuple(2 * n for n in x.shape[2:])
    assert symmetry_error(layer, x, spatial_dims) < 1e-5


def test_transposed_upsampling_that_cannot_be_exact_is_not_silent():
    with pytest.warns(SymmetryWarning):
        GMRConvTranspose2d(1, 1, 3, stride=2, padding=1, output_padding=1)(torch.randn(1, 1, 4, 4))
    with pytest.raises(ConfigurationError):
        GMRConvTranspose2d(1, 1, 3, stride=2, padding="symmetric")


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (7, 8), (7, 8, 9)])
def test_linear_upsampling_to_the_skip_is_exact(size):
    spatial_dims = len(size)
    down, up = GMRDownsample(spatial_dims), GMRUpsample(spatial_dims)
    x = torch.randn(1, 2, *size)

    def down_and_up(image):
        return up(down(image), list(image.shape[2:]))

    assert down_and_up(x).shape == x.shape
    assert symmetry_error(down_and_up, x, spatial_dims) < 1e-5


@pytest.mark.parametrize("rings", RINGS)
def test_training_does_not_destroy_the_symmetry(rings):
    torch.manual_seed(0)
    net = nn.Sequential(
        GMRConv2d(2, 4, 5, padding=2, rings=rings), nn.ReLU(), GMRConv2d(4, 1, 3, padding=1, rings=rings)
    )
    x = random_input(2)
    target = torch.randn(2, 1, *SIZES[2])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    first = None
    for _ in range(60):
        loss = (net(x) - target).square().mean()
        first = first if first is not None else loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first
    assert symmetry_error(net.eval(), x, 2) < 1e-5
