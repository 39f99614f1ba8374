"""Backend "cpp" equals the dense kernel in float64, forward and backward, or logs why it does not run."""

import logging
from functools import cache, partial

import pytest
import torch

# the path that torch's page on fake tensors gives
from torch._subclasses.fake_tensor import FakeTensorMode

from monai_gmr import set_backend
from monai_gmr.networks.layers import (
    GMRConv2d,
    GMRConv3d,
    GMRConvTranspose2d,
    GMRHarmonicConv2d,
    GMRHarmonicConv3d,
)
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.ops import backend as backends
from monai_gmr.ops import dense
from monai_gmr.ops.cpu import backend as cpu_backend
from monai_gmr.ops.cpu import library as kernels
from monai_gmr.ops.cpu import ring_kernels, tiles
from monai_gmr.ops.cpu.ring_conv import cpp_ring_conv
from monai_gmr.ops.ring_conv import dense_ring_conv, ring_conv, ring_conv_transpose
from monai_gmr.symmetry import kernel_shells

pytestmark = pytest.mark.skipif(kernels.load_kernels() is None, reason="no kernels were built")


def problem(window, channels, num_shells, size, batch, groups=1):
    shells = torch.as_tensor(kernel_shells(window).tap_shell)
    x = torch.randn(batch, channels[0], *size, dtype=torch.float64)
    weight = torch.randn(channels[1], channels[0] // groups, 2, dtype=torch.float64)
    basis = torch.randn(2, int(shells.max()) + 1, dtype=torch.float64)
    basis[:, num_shells:] = 0
    return [x, weight, basis, shells]


def with_wide_bias(layer):
    """The layer in float32, its bias in float64."""
    layer.to = lambda dtype: layer
    layer.bias = torch.nn.Parameter(layer.bias.double())
    return layer


CASES = [
    ((3,), (3, 5), 2, (9,), 2, 1, 1, 1),
    ((3, 3), (16, 5), 3, (6, 7), 3, 1, 1, 1),
    ((5, 3), (3, 17), 4, (9, 6), 1, 2, 2, 1),
    ((4, 4), (2, 2), 3, (8, 7), 2, 0, 1, 1),
    ((3, 3, 3), (4, 3), 4, (5, 4, 6), 2, 1, 1, 1),
    ((5, 5, 3), (2, 3), 4, (5, 6, 7), 1, 2, 1, 1),
    ((3, 5), (20, 33), 4, (6, 150), 2, 1, 1, 1),
    ((3, 3), (32, 66), 3, (6, 7), 2, 1, 1, 2),
    ((5, 3), (64, 64), 4, (9, 6), 1, 2, 1, 64),
    ((3, 3, 3), (6, 12), 4, (5, 4, 6), 2, 1, 1, 3),
    ((3, 3, 3), (40, 20), 4, (5, 4, 6), 2, 1, 2, 20),
]


@pytest.mark.parametrize(("window", "channels", "num_shells", "size", "batch", "padding", "dilation", "groups"), CASES)
@pytest.mark.parametrize(("tile", "memory_format"), [(2**23, "contiguous"), (1, "channels last")])
def test_forward_and_gradients(
    monkeypatch, window, channels, num_shells, size, batch, padding, dilation, groups, tile, memory_format
):
    monkeypatch.setattr(tiles, "BYTES_OF_A_TILE", tile * 300)
    x, weight, basis, shells = problem(window, channels, num_shells, size, batch, groups)
    dims = len(window)
    inputs = [t.requires_grad_() for t in (x, weight, basis)]
    geometry = ([padding] * dims, [dilation] * dims, groups)
    bias = torch.randn(len(weight), dtype=torch.float64)
    inputs.append(bias.requires_grad_())
    expected = dense_ring_conv(x, weight, basis, shells, bias, [1] * dims, *geometry)
    seed = torch.randn_like(expected)
    expected_gradients = list(torch.autograd.grad(expected, inputs, seed))
    expected_gradients[2] = expected_gradients[2][:, :num_shells]
    single = [t.detach().float() for t in (x, weight, basis[:, :num_shells], bias)]
    if memory_format == "channels last":
        single[0] = single[0].movedim(1, -1).contiguous().movedim(-1, 1)
    single = [t.requires_grad_() for t in single]
    found = cpp_ring_conv(*single[:3], shells, single[3], *geometry)
    gradients = torch.autograd.grad(found, single, seed.float())
    # if the input needs no gradient, as in a first layer, sums can be over the input
    first = torch.autograd.grad(
        cpp_ring_conv(single[0].detach(), *single[1:3], shells, None, *geometry), single[1:3], seed.float()
    )
    for a, b in zip((found, *gradients, *first), (expected, *expected_gradients, *expected_gradients[1:3])):
        assert a.shape == b.shape
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize(("groups", "memory_format"), [(1, torch.channels_last), (2, torch.contiguous_format)])
def test_the_operation_says_of_itself_what_it_does(groups, memory_format):
    x, weight, basis, shells = problem((3, 3), (4, 6), 3, (5, 6), 2, groups)
    floats = [x.to(memory_format=memory_format), weight, basis, torch.randn(6)]
    x, weight, basis, bias = (each.float().requires_grad_() for each in floats)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (x, weight, basis, shells, bias, [1, 1], [1, 1], groups)
    found = torch.library.opcheck(cpp_ring_conv, arguments, test_utils=tests)
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("make", [GMRConv2d, partial(GMRConv2d, groups=3), GMRHarmonicConv2d])
def test_gradients_can_be_differentiated(cpp, make):
    layer, x = make(3, 6, 3, padding=1), torch.randn(2, 3, 7, 6, requires_grad=True)

    def penalty():
        y = layer(x)
        own = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
        return torch.autograd.grad(own.square().sum(), [x, *(p for p in layer.parameters() if p is not layer.bias)])

    found = penalty()
    set_backend("dense")
    for a, b in zip(found, penalty()):
        assert (a - b).norm() <= 1e-4 * b.norm()


@pytest.mark.parametrize("make", [GMRConv3d, partial(GMRHarmonicConv3d, keeps="1")])
@pytest.mark.parametrize("of", ["image", "gradient"])
def test_the_stride_of_an_axis_of_one_voxel_says_nothing(cpp, make, of):
    """torch can mistake such an image for one with channels last: a slice as a volume, signals as images."""
    layer, slices = make(8, 8, 3, padding=1), torch.randn(2, 8, 12, 10).to(memory_format=torch.channels_last)
    odd, plain = slices.unsqueeze(-1).movedim(-1, 2), slices.unsqueeze(2).contiguous()
    assert odd.stride() != plain.stride()
    found = []
    for backend, volume in (("cpp", odd), ("dense", plain)):
        set_backend(backend)
        x = (volume if of == "image" else plain).clone(memory_format=torch.preserve_format).requires_grad_()
        y = layer(x)
        found.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], volume if of == "gradient" else plain)])
    for a, b in zip(*found):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("length", [1, 4, 12])
def test_a_bias_of_another_length_is_refused(cpp, length):
    shells = torch.as_tensor(kernel_shells((3, 3)).tap_shell)
    with pytest.raises(AssertionError, match=rf"a bias of shape \({length},\) is not for 8 channels"):
        ring_conv(torch.ones(1, 3, 6, 6), torch.ones(8, 3, 2), torch.ones(2, 3), shells, torch.ones(length), padding=1)


def test_tensors_that_only_say_where_they_are_meet_no_kernel(cpp):
    layer, net = GMRConv2d(2, 8, 5, padding=2), GMRUNet(2, 2, 2, (8, 16), conv="gmr_harmonic")
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(torch.ones(1, 2, 64, 64)).shape == (1, 8, 64, 64)
        assert net(torch.ones(1, 2, 64, 64)).shape == (1, 2, 64, 64)


def test_transforms_of_functions_take_the_dense_kernel(cpp):
    layer, x = GMRHarmonicConv2d(3, 6, 3, padding=1), torch.randn(4, 2, 3, 7, 6)
    assert torch.allclose(torch.func.vmap(layer)(x), torch.stack([layer(each) for each in x]), atol=1e-5)
    jacobian = torch.func.jacrev(lambda x: layer(x).sum((2, 3)))(x[0])
    assert jacobian.shape == (2, 6, 2, 3, 7, 6)


@pytest.mark.parametrize(
    ("kernel_size", "rings", "groups"),
    [(3, "gaussian", 1), (4, "gaussian", 1), (3, "indexed", 1), (3, "hard", 1), (3, "gaussian", 4), (5, "hard", 2)],
)
@pytest.mark.filterwarnings("ignore::monai_gmr.utils.SymmetryWarning")
def test_layers_give_what_dense_gives(cpp, monkeypatch, rings, kernel_size, groups):
    used = {"ring_products": 0, "ring_gradients": 0}
    for name in used:
        kernel = getattr(ring_kernels, name)
        monkeypatch.setattr(
            ring_kernels, name, lambda *a, n=name, k=kernel, **b: (used.update({n: used[n] + 1}), k(*a, **b))
        )
    layer = GMRConv3d(4, 8, kernel_size, padding="same", rings=rings, groups=groups)
    x = torch.randn(2, 4, 6, 7, 8)
    found = [*torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())), layer(x[0])]
    assert all(used.values())
    set_backend("dense")
    expected = [*torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())), layer(x[0])]
    for a, b in zip(found, expected):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_only_what_the_backward_pass_needs_is_saved(cpp):
    layer, x = GMRConv2d(8, 8, 5, padding=2, bias=False), torch.randn(1, 8, 20, 20, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        layer(x)
    assert sum(saved) <= x.numel() + 4 * layer.weight.numel()


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda: GMRConv2d(4, 4, 3), torch.float64),
        (lambda: GMRHarmonicConv2d(4, 4, 3, stride=2, padding=1), torch.float32),
        (lambda: GMRHarmonicConv2d(4, 4, 3, padding=3), torch.float32),
        (lambda: GMRHarmonicConv2d(4, 8, 3, groups=2), torch.float32),
        (lambda: GMRHarmonicConv2d(4, 4, 3), torch.float64),
        (lambda: with_wide_bias(GMRHarmonicConv2d(4, 4, 3)), torch.float32),
        (lambda: with_wide_bias(GMRHarmonicConv2d(4, 4, 3, keeps="1")), torch.float32),
    ],
)
@pytest.mark.filterwarnings("ignore::monai_gmr.utils.SymmetryWarning")
def test_what_has_no_kernel_is_left_to_dense(cpp, monkeypatch, make, dtype):
    monkeypatch.setattr(cpu_backend, "cpp_ring_conv", None)
    monkeypatch.setattr(cpu_backend, "cpp_harmonic_conv", None)
    layer = make().to(dtype)
    x = torch.randn(1, 4, 9, 9, dtype=dtype)
    found = layer(x)
    set_backend("dense")
    assert torch.equal(found, layer(x))


@pytest.mark.parametrize("stride", [(2, 2), (3, 1), (2, 1, 2)])
@pytest.mark.parametrize(("memory_format", "groups"), [("contiguous", 1), ("channels last", 1), ("contiguous", 2)])
def test_strides_keep_some_of_the_voxels(cpp, monkeypatch, stride, memory_format, groups):
    window = (5, 3, 3)[: len(stride)]
    x, weight, basis, shells = problem(window, (4, 6), 3, (9, 8, 7)[: len(stride)], 2, groups)
    inputs = [t.requires_grad_() for t in (x, weight, basis)]
    geometry = (None, list(stride), [1] * len(stride), [1] * len(stride), groups)
    expected = dense_ring_conv(*inputs, shells, *geometry)
    seed = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, inputs, seed)
    single = [t.detach().float() for t in inputs]
    if memory_format == "channels last":
        single[0] = single[0].movedim(1, -1).contiguous().movedim(-1, 1)
    single = [t.requires_grad_() for t in single]
    strides = dense_ring_conv(*single, shells, *geometry).stride()
    monkeypatch.setattr(dense, "dense_ring_conv", None)
    found = ring_conv(*single, shells, *geometry)
    assert found.stride() == strides
    # what is left out is given back
    assert found.untyped_storage().nbytes() == 4 * found.numel()
    for a, b in zip((found, *torch.autograd.grad(found, single, seed.float())), (expected, *expected_gradients)):
        assert a.shape == b.shape
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize(
    ("stride", "padding", "output_padding", "dilation"),
    [([1, 1], [0, 1], [0, 0], [1, 1]), ([2, 3], [1, 0], [1, 2], [1, 2]), ([2, 1, 2], [1, 1, 0], [1, 0, 0], [1, 1, 1])],
)
@pytest.mark.parametrize(("memory_format", "groups"), [("contiguous", 1), ("channels last", 1), ("contiguous", 2)])
def test_transposed_convolutions_are_those_of_zeros_in_between(
    cpp, monkeypatch, stride, padding, output_padding, dilation, memory_format, groups
):
    window = (5, 3, 3)[: len(stride)]
    x, _, basis, shells = problem(window, (4, 6), 3, (4, 5, 3)[: len(stride)], 2)
    weight = torch.randn(4, 6 // groups, 2, dtype=torch.float64)
    bias = torch.randn(6, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, weight, basis)]
    geometry = (stride, padding, output_padding, groups, dilation)
    set_backend("dense")
    expected = ring_conv_transpose(*inputs, shells, bias, *geometry)
    seed = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, inputs, seed)
    single = [t.detach().float() for t in inputs]
    if memory_format == "channels last":
        single[0] = single[0].movedim(1, -1).contiguous().movedim(-1, 1)
    single = [t.requires_grad_() for t in single]
    calls = []
    set_backend("cpp")
    function = cpu_backend.cpp_ring_conv
    monkeypatch.setattr(cpu_backend, "cpp_ring_conv", lambda *a, **use: calls.append(use) or function(*a, **use))
    found = ring_conv_transpose(*single, shells, bias.float(), *geometry)
    assert len(calls) == 1
    for a, b in zip((found, *torch.autograd.grad(found, single, seed.float())), (expected, *expected_gradients)):
        assert a.shape == b.shape
        assert (a - b).norm() <= 1e-5 * b.norm()
    without_batch = ring_conv_transpose(single[0][0], *single[1:], shells, bias.float(), *geometry)
    assert torch.allclose(without_batch, found[0], atol=1e-5)


def test_a_transposed_layer_is_left_to_dense_where_it_does_not_pay(cpp, monkeypatch):
    monkeypatch.setattr(cpu_backend, "cpp_ring_conv", None)
    layer, x = GMRConvTranspose2d(4, 4, 4, stride=2, padding=1), torch.randn(1, 4, 5, 6)
    with pytest.raises(TypeError, match="not callable"):
        layer(x)
    set_backend("auto")
    found = layer(x)
    set_backend("dense")
    assert torch.equal(found, layer(x))


@pytest.mark.parametrize("make", [GMRConv2d, GMRHarmonicConv2d])
def test_an_image_smaller_than_the_window_is_the_framework_s_error(cpp, make):
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        make(2, 3, 5)(torch.randn(1, 2, 4, 9))


@pytest.mark.parametrize("make", [GMRConv2d, GMRHarmonicConv2d])
def test_without_kernels_dense_runs_and_says_so_once(cpp, monkeypatch, caplog, make):
    monkeypatch.setattr(backends, "_logged", {})
    monkeypatch.setattr(kernels, "PROCESSORS", {"DEFAULT": "missing"})
    monkeypatch.setattr(kernels, "load_kernels", cache(kernels.load_kernels.__wrapped__))
    layer, x = make(2, 3, 3), torch.randn(1, 2, 9, 9)
    with caplog.at_level(logging.WARNING, "monai_gmr.ops.backend"):
        found = [layer(x), layer(x)]
    assert [record.message for record in caplog.records] == [
        "backend 'cpp' is not used: its kernels were not built (install monai_gmr where there is a C++ compiler); "
        "'dense' runs in its place."
    ]
    set_backend("dense")
    assert torch.equal(*found)
    assert torch.equal(found[1], layer(x))


def test_compiled_and_exported_networks_take_the_dense_kernel(cpp):
    layer, x = GMRConv2d(2, 3, 3), torch.randn(1, 2, 9, 9)
    program = torch.export.export(layer, (x,))
    assert not any("cpp" in str(node.target) for node in program.graph.nodes)
    assert torch.allclose(program.module()(x), layer(x), atol=1e-6)
