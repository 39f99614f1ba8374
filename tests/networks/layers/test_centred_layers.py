"""Centred and resized layers are exact at every size, have the output sizes of torch's layers, and equal them where these are exact."""

import copy
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from monai_gmr.networks import layers
from monai_gmr.networks.convert.sized import sized_class
from monai_gmr.networks.layers import (
    GMRAvgPool,
    GMRCentredConv2d,
    GMRCentredHarmonicConv2d,
    GMRConv2d,
    GMRHarmonicConv2d,
    GMRInterpolate,
    GMRMaxPool,
    GMRResizedConv2d,
    GMRSubpixelMean,
)
from monai_gmr.networks.layers.size_trail import Levels, TrailStart, begin_trail, end_trail, record_sizes, sizes_above
from monai_gmr.symmetry import point_group, transform_grid
from monai_gmr.utils import ConfigurationError


@torch.no_grad()
def worst(layer, x, elements):
    y = layer(x)
    return max(float((layer(transform_grid(x, g)) - transform_grid(y, g)).norm() / y.norm()) for g in elements)


@given(
    st.tuples(st.integers(8, 15), st.integers(8, 15)),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from([1, 2]),
    st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    st.sampled_from([GMRCentredConv2d, GMRCentredHarmonicConv2d]),
)
@settings(deadline=None, max_examples=60)
def test_centred_convolutions(size, kernel_size, stride, padding, groups, padding_mode, make):
    # a harmonic has no value at a centre alone
    kernel_size = max(kernel_size, 2) if make is GMRCentredHarmonicConv2d else kernel_size
    layer = make(4, 8, kernel_size, stride, padding, 1, groups, padding_mode=padding_mode).double()
    plain = nn.Conv2d(4, 8, kernel_size, stride, padding, 1, groups, padding_mode=padding_mode).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    assert layer(x).shape == plain(x).shape
    assert worst(layer, x, point_group(2)) < 1e-9


@pytest.mark.parametrize("make", ["GMRCentredConv", "GMRCentredHarmonicConv"])
@pytest.mark.parametrize(("dims", "size"), [(1, (9,)), (1, (8,)), (3, (6, 7, 8)), (3, (7, 7, 7))])
def test_in_one_and_three_dimensions(make, dims, size):
    layer = getattr(layers, f"{make}{dims}d")(2, 6, 3, 2, 1).double()
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    assert worst(layer, x, point_group(dims)[::5]) < 1e-9


@pytest.mark.parametrize(
    ("centred", "ordinary"), [(GMRCentredConv2d, GMRConv2d), (GMRCentredHarmonicConv2d, GMRHarmonicConv2d)]
)
@pytest.mark.parametrize("rings", ["gaussian", "indexed", "hard"])
def test_where_the_ordinary_layer_is_exact_it_is_the_same(centred, ordinary, rings):
    one, two = centred(3, 8, 3, 2, 1, rings=rings), ordinary(3, 8, 3, 2, 1, rings=rings)
    two.load_state_dict(one.state_dict())
    x = torch.randn(1, 3, 9, 11)
    assert torch.allclose(one(x), two(x), atol=1e-6)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_both_windows_answer_a_constant_image_alike(kernel_size):
    layer = GMRCentredConv2d(2, 3, kernel_size, 2, bias=False)
    odd, even = layer(torch.ones(1, 2, 9, 9)), layer(torch.ones(1, 2, 10, 10))
    assert torch.allclose(odd[..., 1, 1], even[..., 1, 1], rtol=1e-5)


def test_one_sided_padding_becomes_two_sided():
    layer = GMRCentredConv2d(1, 2, 3, 2, surplus=1).double()
    x = torch.randn(1, 1, 12, 9, dtype=torch.float64)
    assert layer(x).shape == nn.Conv2d(1, 2, 3, 2).double()(nn.functional.pad(x, (0, 1, 0, 1))).shape
    assert worst(layer, x, point_group(2)) < 1e-9


def test_gradients_reach_widths_weights_and_bias_and_state_dicts_hold_no_tables():
    layer = GMRCentredHarmonicConv2d(2, 8, 3, 2, 1)
    layer(torch.randn(1, 2, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in layer.parameters())
    assert set(layer.state_dict()) == {"weight", "bias", "log_sigma"}


def test_what_cannot_be_centred_is_said():
    with pytest.raises(ConfigurationError, match="odd dilation"):
        GMRCentredConv2d(1, 1, 3, 2, 2, 2)
    with pytest.raises(ConfigurationError, match="centres itself"):
        GMRCentredConv2d(1, 1, 3, padding="symmetric")
    with pytest.raises(ConfigurationError, match="does not fit"):
        GMRCentredConv2d(1, 1, 5, 2)(torch.zeros(1, 1, 3, 3))
    with pytest.raises(ConfigurationError, match="export the layer"):
        GMRCentredConv2d(1, 1, 3, 2).to_conv()


POOLS = [(GMRMaxPool, nn.MaxPool2d), (GMRAvgPool, nn.AvgPool2d)]


@given(st.integers(5, 20), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.booleans(), st.sampled_from(POOLS))
@settings(deadline=None, max_examples=80)
def test_pools_have_torchs_sizes_and_are_torchs_where_that_is_exact(size, kernel, stride, padded, ceil_mode, pools):
    padding = kernel // 2 if padded else 0
    options = {"count_padding": True} if pools[0] is GMRAvgPool else {}
    ours = pools[0](2, kernel, stride, padding, rounding="ceil" if ceil_mode else "floor", **options)
    theirs = pools[1](kernel, stride, padding, ceil_mode=ceil_mode)
    x = torch.randn(1, 2, size, size, dtype=torch.float64)
    assert ours(x).shape == theirs(x).shape
    assert worst(ours, x, point_group(2)) < 1e-12
    if (size + 2 * padding - kernel) % stride == 0:
        assert torch.allclose(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("mode", "align_corners"), [("nearest", None), ("bilinear", False), ("bilinear", True), ("bicubic", False)]
)
def test_interpolation_is_torchs_on_multiples(mode, align_corners):
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    expected = nn.Upsample(scale_factor=2, mode=mode, align_corners=align_corners)(x)
    assert torch.allclose(GMRInterpolate((2, 2), mode, align_corners)(x), expected)


class _Net(nn.Module):
    """Halves, doubles and adds: the smallest network with a skip connection."""

    def __init__(self, up):
        super().__init__()
        self.down, self.up = GMRMaxPool(2, 2, rounding="floor"), up
        self.down.levels = Levels("net", [([8, 8], [4, 4])])
        for each in up.modules():
            if hasattr(each, "levels"):
                each.levels = Levels("net", [([4, 4], [8, 8])])
        self.trail_start = TrailStart("net", (8, 8), 2)

        self.__class__ = sized_class(_Net)

    def forward(self, x):
        return x + self.up(self.down(x))


UPS = [
    GMRInterpolate((2, 2), "nearest"),
    GMRInterpolate((2, 2), "bilinear", True),
    GMRResizedConv2d(2, 2, 3, padding=1, factors=(2, 2), extent=(2, 2)),
    nn.Sequential(nn.Conv2d(2, 8, 1), GMRSubpixelMean((2, 2))),
]


@pytest.mark.parametrize("up", range(len(UPS)))
@pytest.mark.parametrize("size", [(8, 8), (9, 9), (8, 11), (3, 2)])
def test_upsampling_meets_the_skip_connection(up, size):
    net = _Net(copy.deepcopy(UPS[up])).double()
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    assert net(x).shape == x.shape
    assert worst(net, x, point_group(2)) < 1e-9


def test_a_trail_ends_with_its_call_even_when_the_network_raises():
    net = _Net(UPS[0])
    with pytest.raises((RuntimeError, IndexError)):
        net(torch.zeros(8))
    assert sizes_above(Levels("net", [([4, 4], [8, 8])]), [4, 4], [8, 8], [2, 2]) == [8, 8]
    assert net.up(torch.zeros(1, 2, 4, 4)).shape[2:] == (8, 8)


def test_threads_have_trails_of_their_own():
    net, failures = _Net(UPS[1]), []

    def work(size):
        x = torch.randn(1, 2, size, size)
        for _ in range(50):
            if net(x).shape != x.shape:
                failures.append(size)

    threads = [threading.Thread(target=work, args=(size,)) for size in (8, 9, 10, 11)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures


def test_outside_a_network_nothing_is_recorded():
    record_sizes(Levels("net", [([8], [4])]), [9], [4])
    assert sizes_above(Levels("net", [([4], [8])]), [4], [8], [2]) == [8]


def test_a_layer_that_two_levels_share_knows_which_it_serves():
    trail = begin_trail(TrailStart("net", (16,), 1), (torch.zeros(1, 1, 19),))
    record_sizes(Levels("net", [([16], [8])]), [19], [10])
    record_sizes(Levels("net", [([8], [4])]), [10], [5])
    shared = Levels("net", [([8], [16]), ([4], [8])])
    assert sizes_above(shared, [5], [10], [2]) == [10]
    assert sizes_above(shared, [10], [20], [2]) == [19]
    end_trail(trail)
