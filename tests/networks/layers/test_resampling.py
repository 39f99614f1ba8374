"""Resampling and pooling are exact on every size and do what their names say."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.layers import Conv, Pool
from torch import nn

import monai_gmr  # noqa: F401  (registers the layers)
from monai_gmr.networks.layers import GMRAvgPool, GMRConv3d, GMRDownsample, GMRMaxPool, GMRUpsample
from monai_gmr.symmetry import point_group, transform_grid
from monai_gmr.utils import ConfigurationError

LAYERS = [GMRDownsample, GMRUpsample, GMRMaxPool, GMRAvgPool]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LAYERS), st.integers(1, 3), st.integers(1, 4), st.data())
def test_turning_commutes_at_every_size_and_factor(layer_class, dims, factor, data):
    size = data.draw(st.lists(st.integers(1, 9), min_size=dims, max_size=dims))
    layer, x = layer_class(dims, factor), torch.randn(1, 2, *size, dtype=torch.float64)
    y = layer(x)
    assert all(torch.allclose(layer(transform_grid(x, g)), transform_grid(y, g)) for g in point_group(dims))
    if layer_class is not GMRUpsample:
        assert y.shape[2:] == tuple(-(-n // factor) for n in size)


@pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(3, 2, 1), (3, 2, 0), (3, 1, 1), (4, 2, 1), (2, 3, 0)])
@pytest.mark.parametrize("size", [(8, 9), (12, 12), (7, 10)])
@pytest.mark.parametrize("pool", [GMRMaxPool, GMRAvgPool])
def test_other_windows_are_exact_too(pool, size, kernel_size, stride, padding):
    layer, x = pool(2, kernel_size, stride, padding), torch.randn(1, 2, *size)
    assert all(
        torch.allclose(layer(transform_grid(x, g)), transform_grid(layer(x), g), atol=1e-6) for g in point_group(2)
    )


@pytest.mark.parametrize("size", [(8, 12), (6, 4)])
def test_pools_are_torchs_on_even_sizes(size):
    x = torch.randn(1, 2, *size)
    assert torch.equal(GMRMaxPool(2)(x), F.max_pool2d(x, 2))
    assert torch.allclose(GMRAvgPool(2)(x), F.avg_pool2d(x, 2), atol=1e-6)


def test_max_pool_never_returns_its_padding():
    assert (GMRMaxPool(3)(-torch.ones(1, 1, 5, 4, 3)) == -1).all()


def test_a_constant_stays_itself():
    x = torch.full((1, 1, 7, 10), 3.0)
    for layer in (GMRDownsample(2), GMRUpsample(2), GMRMaxPool(2), GMRAvgPool(2)):
        assert torch.allclose(layer(x), torch.tensor(3.0))


@pytest.mark.parametrize(("size", "target", "align"), [((4, 6), (8, 12), False), ((4, 6), (7, 11), True)])
def test_upsampling_is_torchs_linear_interpolation(size, target, align):
    x = torch.randn(1, 2, *size)
    expected = F.interpolate(x, target, mode="bilinear", align_corners=align)
    assert torch.allclose(GMRUpsample(2)(x, list(target)), expected, atol=1e-6)


def test_downsampling_removes_what_the_coarse_grid_cannot_hold():
    chessboard = (-1.0) ** (torch.arange(16)[:, None] + torch.arange(16)[None, :])
    assert GMRDownsample(2)(chessboard[None, None])[..., 2:-2, 2:-2].abs().max() < 0.02


@pytest.mark.parametrize("layer", [GMRDownsample(3), GMRUpsample(3), GMRMaxPool(3), GMRAvgPool(3)])
def test_half_precision_and_autocast_run(layer):
    x = torch.randn(1, 2, 5, 6, 7)
    assert torch.allclose(layer(x.bfloat16()).float(), layer(x), atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(layer(x).float(), layer(x.double()).float(), atol=0.05)


MATRICES = {
    GMRDownsample: "monai_gmr.ops.resample.lowpass_matrix",
    GMRUpsample: "monai_gmr.ops.resample.linear_matrix",
    GMRAvgPool: "monai_gmr.networks.layers.resampling.window_matrix",
}


@pytest.mark.parametrize(("size", "kinds"), [((8, 8, 8), 1), ((8, 8, 9), 2), ((9, 8, 9), 3)])
@pytest.mark.parametrize("layer_class", MATRICES)
def test_axes_of_one_length_share_their_matrix(layer_class, size, kinds, monkeypatch):
    *module, name = MATRICES[layer_class].split(".")
    own = getattr(importlib.import_module(".".join(module)), name)
    calls, x = [], torch.randn(1, 2, *size)
    monkeypatch.setattr(MATRICES[layer_class], lambda *args, **kwargs: calls.append(args) or own(*args, **kwargs))
    y = layer_class(3, 2)(x)
    assert len(calls) == kinds
    # axis by axis nothing is shared
    for axis in range(3):
        x = layer_class(3, tuple(2 if axis == other else 1 for other in range(3)))(x)
    assert torch.allclose(y, x, atol=1e-6)


def test_layers_are_in_monais_factories():
    assert Conv["GMR", 3] is GMRConv3d
    assert [Conv["GMRTRANS", d].__name__ for d in (1, 2, 3)] == [f"GMRConvTranspose{d}d" for d in (1, 2, 3)]
    assert [Conv["SRE", d].__name__ for d in (2, 3)] == ["SREConv2d", "SREConv3d"]
    assert isinstance(Pool["GMRMAX", 2](2), GMRMaxPool)
    with pytest.raises(ConfigurationError, match="use 2, 3"):
        Conv["SRE", 1]


@pytest.mark.parametrize("factor", [0, (2, 2, 2), 1.5])
def test_impossible_factors_end_in_one_sentence(factor):
    with pytest.raises(
        ConfigurationError, match=r"scale_factor=.* is impossible: give (2 whole numbers|a whole number or a list)"
    ):
        GMRDownsample(2, factor)


def test_no_parameters_and_nothing_saved():
    assert all(not nn.Sequential(layer(2)).state_dict() for layer in LAYERS)
