"""A depthwise convolution in kernels equals torch's in float64, with its gradients, for all geometries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_gmr import set_backend
from monai_gmr.ops import depthwise_conv
from monai_gmr.ops.cpu.depthwise_conv import cpp_depthwise_conv
from monai_gmr.ops.memory_format import make_channels_last
from monai_gmr.ops.ring_conv import conv_nd

pytestmark = pytest.mark.usefixtures("processor")
NAME = "monai_gmr::cpp_depthwise_conv"


def reference(x, weight, bias, padding, dilation):
    bias = None if bias is None else bias.double()
    ones = [1] * len(padding)
    return conv_nd(x.double(), weight.double(), bias, ones, padding, dilation, groups=len(weight))


@st.composite
def geometries(draw):
    """Spatial sizes, windows, paddings and dilations that leave at least one voxel."""
    axes = []
    dims = draw(st.sampled_from([2, 3]))
    for _ in range(dims):
        window, dilation = draw(st.integers(1, 9 if dims == 2 else 5)), draw(st.integers(1, 2))
        padding = draw(st.integers(0, dilation * (window - 1)))
        least = max(1, dilation * (window - 1) + 1 - 2 * padding)
        axes.append((draw(st.integers(least, least + (12 if dims == 2 else 6))), window, padding, dilation))
    return [list(each) for each in zip(*axes)]


@settings(max_examples=40, deadline=None)
@given(geometry=geometries(), channels=st.integers(1, 34), batch=st.integers(1, 3), seed=st.integers(0, 2**16))
def test_forward_and_gradients(geometry, channels, batch, seed):
    sizes, window, padding, dilation = geometry
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, channels, *sizes), (channels, 1, *window), (channels,))
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    # positive inputs give the size of the terms of a sum, whose signs can cancel
    positive = [each.detach().abs().requires_grad_() for each in inputs]
    found, expected = (call(*inputs, padding, dilation) for call in (cpp_depthwise_conv, reference))
    terms = reference(*positive, padding, dilation)
    seed = torch.randn(found.shape, generator=generator)
    gradients = (torch.autograd.grad(y, inputs, seed.to(y.dtype)) for y in (found, expected))
    bounds = [terms, *torch.autograd.grad(terms, positive, seed.abs().double())]
    for a, b, bound in zip(*([y, *each] for y, each in zip((found, expected), gradients)), bounds):
        assert a.shape == b.shape
        assert (a - b).norm() <= 2e-6 * bound.norm()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("window", [1, 2, 5, 8, 9, 17])
def test_images_smaller_than_the_window(length, window):
    x, weight = torch.randn(1, 3, length, length), torch.randn(3, 1, window, window, requires_grad=True)
    padding = [window - 1, window - 1]
    found, expected = (call(x, weight, None, padding, [1, 1]) for call in (cpp_depthwise_conv, reference))
    seed = torch.randn_like(found)
    found, expected = (torch.autograd.grad(y, weight, seed.to(y.dtype))[0] for y in (found, expected))
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "to_format", [torch.Tensor.contiguous, make_channels_last], ids=["contiguous", "channels last"]
)
def test_results_keep_the_memory_format(dims, to_format):
    x = to_format(torch.randn(2, 5, *[6] * dims)).requires_grad_()
    y = cpp_depthwise_conv(x, torch.randn(5, 1, *[3] * dims), None, [1] * dims, [1] * dims)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.stride() == gradient.stride() == x.stride()


def test_gradients_can_be_differentiated():
    x, weight = torch.randn(1, 3, 5, 6, requires_grad=True), torch.randn(3, 1, 3, 3, requires_grad=True)
    results = []
    for call in (cpp_depthwise_conv, reference):
        first = torch.autograd.grad(call(x, weight, None, [1, 1], [1, 1]).pow(3).sum(), (x, weight), create_graph=True)
        results.append(torch.autograd.grad(sum(each.square().sum() for each in first), (x, weight)))
    for a, b in zip(*results):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_the_framework_agrees_on_shapes():
    x, weight = torch.randn(2, 3, 5, 6, requires_grad=True), torch.randn(3, 1, 3, 4, requires_grad=True)
    arguments = (x, weight, torch.randn(3, requires_grad=True), [1, 2], [1, 1])
    torch.library.opcheck(torch.ops.monai_gmr.cpp_depthwise_conv.default, arguments)


def runs_in_a_kernel(x, weight, stride=1, padding=1):
    """Whether a kernel runs, from the names of the operations that autograd records."""
    dims = x.dim() - 2
    y = depthwise_conv(x, weight, None, [stride] * dims, [padding] * dims, [1] * dims)
    return "cpp_depthwise_conv" in type(y.grad_fn).__name__


def test_what_runs_in_a_kernel_and_what_does_not():
    x, weight = torch.randn(2, 30, 30, 30), torch.randn(30, 1, 5, 5, requires_grad=True)
    assert runs_in_a_kernel(x, weight)
    assert not runs_in_a_kernel(x, weight, stride=2)
    # the gradient of the image would be cropped
    assert not runs_in_a_kernel(x, weight, padding=5)
    assert not runs_in_a_kernel(x[..., 0], weight[..., 0])
    assert not runs_in_a_kernel(x.double(), weight.double())
    # as fast in torch
    assert not runs_in_a_kernel(x, weight[..., 1:4, 1:4])
    assert not runs_in_a_kernel(x[:, :, :9, :9], weight)
    assert not runs_in_a_kernel(x.requires_grad_(), weight.detach())
    with torch.autocast("cpu"):
        assert not runs_in_a_kernel(x, weight)
    with set_backend("dense"):
        assert not runs_in_a_kernel(x, weight)
