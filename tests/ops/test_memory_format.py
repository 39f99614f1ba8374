"""Channels last is detected from strides, kept by resampling, and compatible with later operations."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from monai_gmr import set_backend
from monai_gmr.networks.layers import GMRConv2d, GMRConv3d
from monai_gmr.ops import symmetric_downsample, symmetric_upsample
from monai_gmr.ops.cpu import library as kernels
from monai_gmr.ops.memory_format import (
    follow_format,
    has_channels_last,
    image_of,
    make_channels_last,
    runs_channels_last,
)


@pytest.mark.parametrize("shape", [(2, 1, 5, 6), (1, 3, 5, 6), (2, 1, 3, 4, 5), (1, 4, 3, 4, 5)])
def test_the_framework_takes_what_is_made_for_channels_last(shape):
    x = torch.randn(shape)
    last = make_channels_last(x)
    memory_format = {4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)]
    assert torch.equal(last, x)
    assert not has_channels_last(x)
    assert has_channels_last(last)
    assert last.is_contiguous(memory_format=memory_format)
    assert make_channels_last(last) is last
    if len(shape) == 4:
        assert F.conv2d(last, torch.randn(5, shape[1], 3, 3)).is_contiguous(memory_format=memory_format)


@given(
    sizes=st.lists(st.integers(1, 3), min_size=3, max_size=5),
    order=st.permutations(range(5)),
    axis=st.integers(0, 2),
    gap=st.integers(1, 2),
)
def test_channels_are_last_where_the_tensor_with_them_last_is_contiguous(sizes, order, axis, gap):
    order = [each for each in order if each < len(sizes)]
    x = torch.zeros([gap * sizes[each] for each in order])[..., ::gap].permute(
        [order.index(n) for n in range(len(sizes))]
    )
    assert has_channels_last(x, axis) == (x.stride(axis) == 1 and x.movedim(axis, -1).is_contiguous())


def test_graphs_and_function_transforms_have_no_memory_format():
    x = torch.randn(2, 3, 4, 4)
    last = x.to(memory_format=torch.channels_last)
    assert runs_channels_last(last)
    inside = []
    torch.func.vmap(lambda each: (inside.append(make_channels_last(each[None]).stride()), each)[1])(x)
    torch.jit.trace(lambda each: (inside.append(runs_channels_last(each)), each * 2)[1], last, check_trace=False)
    assert inside[0][1] != 1
    assert not any(inside[1:])
    assert make_channels_last(torch.zeros(2, 3, 4)).stride() == (12, 4, 1)
    assert make_channels_last(x.to("meta")).stride() == x.stride()


def test_an_image_of_channels_last_is_no_view():
    rows = torch.arange(24.0).reshape(1, 2, 4, 3)
    image = image_of(rows)
    assert torch.equal(image, rows.movedim(-1, 1))
    assert image.data_ptr() == rows.data_ptr()
    assert not image._is_view()
    assert follow_format(image, torch.zeros(1, 2, 3, 3)).is_contiguous()
    assert follow_format(image, image) is image


@pytest.mark.parametrize("size", [(7, 8), (1, 4), (5, 6, 9), (4, 1, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resampling_keeps_channels_last(size, channels):
    factors = [2] * len(size)
    for resample in (
        lambda x: symmetric_downsample(x, factors, 0.8),
        lambda x: symmetric_upsample(x, [2 * n for n in size], factors),
    ):
        x = torch.randn(2, channels, *size, requires_grad=True)
        last = make_channels_last(x.detach()).requires_grad_()
        found, expected = resample(last), resample(x)
        assert torch.allclose(found, expected, atol=1e-6)
        assert found.movedim(1, -1).is_contiguous()
        seed = torch.randn_like(expected)
        (a,), (b,) = torch.autograd.grad(found, last, seed), torch.autograd.grad(expected, x, seed)
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.skipif(kernels.load_kernels() is None, reason="no kernels were built")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("make", "size"), [(GMRConv2d, (5, 6)), (GMRConv3d, (4, 3, 5))])
def test_what_follows_a_compiled_convolution_may_work_in_place(make, size, bias):
    net = nn.Sequential(make(3, 4, 3, padding=1, bias=bias), nn.LeakyReLU(inplace=True))
    x = make_channels_last(torch.randn(2, 3, *size))
    found = []
    for backend in ("cpp", "dense"):
        set_backend(backend)
        found.append(torch.autograd.grad(net(x).square().sum(), list(net.parameters())))
    set_backend("auto")
    for a, b in zip(*found):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
