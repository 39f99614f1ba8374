"""Harmonic layers on backend "cpp" give what dense kernels give in float64, forward and backward, whatever the geometry."""

import copy
import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from monai_gmr import set_backend
from monai_gmr.metrics import equivariance_error
from monai_gmr.networks.layers import GMRHarmonicConv1d, GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.ops.cpu import backend as cpu_backend
from monai_gmr.ops.cpu import harmonic_conv as cpu_harmonic_conv
from monai_gmr.ops.cpu.harmonic_kernels import AngularOrder, terms_of
from monai_gmr.ops.cpu.tiles import Window
from monai_gmr.ops.memory_format import has_channels_last, make_channels_last
from monai_gmr.symmetry import kernel_shells, tap_harmonics

pytestmark = pytest.mark.usefixtures("processor")
LAYERS = {1: GMRHarmonicConv1d, 2: GMRHarmonicConv2d, 3: GMRHarmonicConv3d}


@pytest.fixture
def calls(monkeypatch):
    """Shapes that the operation was called with."""
    made, original = [], cpu_backend.cpp_harmonic_conv
    monkeypatch.setattr(cpu_backend, "cpp_harmonic_conv", lambda **a: (made.append(a["x"].shape), original(**a))[1])
    set_backend("cpp")
    yield made
    set_backend("auto")


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
        (3, (2, 4), (7, 8, 9), {"kernel_size": (5, 5, 3), "spacing": (1.0, 1.0, 2.0), "rings": "hard", "padding": 1}),
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_forward_and_gradients(calls, dims, channels, size, arguments, last):
    layer, x = LAYERS[dims](*channels, **arguments), torch.randn(2, channels[0], *size)
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


geometries = st.tuples(
    st.integers(1, 3),  # batch
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 2), st.integers(0, 6)), min_size=1, max_size=3
    ),
    st.sampled_from([1, 3, 16, 20]),  # channels
    st.sampled_from([(1, 0), (1, 1), (3, 2), (4, 4), (17, 3)]),  # norms and inner products
    st.integers(1, 7),  # components
    st.integers(1, 4),  # shells
    st.sampled_from(["even", "odd", "neither"]),
    st.sampled_from([1, 2, 90]),  # how many times as long the last axis is
    st.integers(0, 2**16),
)


@settings(max_examples=60, deadline=None)
@given(geometry=geometries, threads=st.integers(1, 3))
def test_kernels_give_what_convolutions_in_float64_give(geometry, threads):
    batch, axes, channels, (norms, products), components, num_shells, parity, factor, seed = geometry
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    sizes, shape, dilation, wanted = ([axis[i] for axis in axes] for i in range(4))
    sizes[-1] *= factor
    reach = [d * (k - 1) for d, k in zip(dilation, shape)]
    padding = [min(p, r) for p, r in zip(wanted, reach)]
    assume(all(n + 2 * p > r for n, p, r in zip(sizes, padding, reach)))
    # shells and factors that are mirrored or not, and some that are zero
    count = torch.Size(shape).numel()
    numbers = torch.randint(0, num_shells + 1, (count,), generator=generator)
    factors = draw(components, count) * (torch.rand(components, count, generator=generator) < 0.7)
    if parity != "neither":
        numbers = torch.minimum(numbers, numbers.flip(0))
        factors = factors + (factors if parity == "even" else -factors).flip(1)
    window = Window(tuple(numbers.tolist()), tuple(shape), num_shells, tuple(dilation))
    x, weight, bias = (
        draw(batch, channels, *sizes),
        draw(norms + products, channels, num_shells),
        draw(norms + products),
    )
    gradient = None

    def dense(dtype):
        """Scalars and their gradients to image and weight by convolution, in a precision."""
        nonlocal gradient
        inputs = [each.to(dtype).requires_grad_() for each in (x, weight)]
        radial = (inputs[1][:0, :, :1], inputs[1].new_zeros(1, num_shells), inputs[1], numbers.reshape(shape))
        orders = ([norms], [products], [components])
        y = cpu_harmonic_conv._dense(inputs[0], *radial, factors.to(dtype), padding, dilation, *orders)
        gradient = draw(*y.shape) if gradient is None else gradient
        return y.detach(), *torch.autograd.grad(y, inputs, gradient.to(dtype))

    y, image_expected, weight_expected = dense(torch.float64)
    expected = y + bias.double().reshape(-1, *[1] * len(shape))
    _, image_rounded, weight_rounded = dense(torch.float32)
    rows = tuple(map(tuple, factors.tolist()))
    order = AngularOrder(window, rows, norms, products, padding)
    last = lambda each: each.movedim(1, -1).contiguous()  # noqa: E731
    before, channels_of_it = torch.get_num_threads(), slice(1, 1 + norms + products)
    torch.set_num_threads(threads)
    try:
        scalars = torch.zeros(batch, *y.shape[2:], norms + products + 3)
        order.write_scalars(last(x), weight, bias, scalars, channels_of_it)
        assert (scalars[..., channels_of_it].movedim(-1, 1) - expected).norm() <= 1e-5 * expected.norm() + 1e-6
        assert not scalars[..., 0].any()
        assert not scalars[..., -2:].any()
        scalars[..., channels_of_it] = last(gradient)
        image_found, weight_found = torch.ones_like(last(x)), torch.ones_like(weight)
        order.add_gradients(last(x), weight, scalars, channels_of_it, image_found, weight_found)
        # lengths are rounded off at .01: their gradients are large next to zero, and so is the rounding of convolutions in float32
        scale = 1e-5 * gradient.norm()
        image_error = (image_found.movedim(-1, 1) - 1 - image_expected).norm()
        weight_error = (weight_found - 1 - weight_expected).norm()
        dense_errors = [(image_rounded - image_expected).norm(), (weight_rounded - weight_expected).norm()]
        assert image_error <= max(1e-5 * image_expected.norm() + scale, 4 * dense_errors[0])
        assert weight_error <= max(1e-5 * weight_expected.norm() + scale * x.norm(), 4 * dense_errors[1])
        # what is not asked for is left alone
        again = torch.ones_like(weight)
        order.add_gradients(last(x), weight, scalars, channels_of_it, None, again)
        assert torch.equal(again, weight_found)
        order.add_gradients(last(x), weight, scalars, channels_of_it, None, None)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("window", [(3,), (3, 3), (4, 4), (5, 3), (3, 3, 3), (5, 5, 5)])
@pytest.mark.parametrize("order", [1, 2])
def test_mirrored_taps_of_harmonics_are_added_first(window, order):
    if len(window) == 1 and order == 2:
        return
    shells = kernel_shells(window).tap_shell
    # as layers keep them
    rows = tap_harmonics(window, None, order).round(12)
    num_shells = int(shells.max()) + 1
    terms = terms_of(
        Window(tuple(shells.flatten().tolist()), window, num_shells, (1,) * len(window)), tuple(map(tuple, rows))
    )
    counted = sum(bool(column.any()) for column in rows.T)
    assert terms.signs.tolist() == [(-1.0) ** order] * (counted // 2)
    # all taps, each once, with their factors
    spread = torch.zeros(len(rows), *([9] * 3))
    for (a, b), sign, factors in zip(terms.places, terms.signs, terms.angular):
        spread[(slice(None), *a)] += factors
        spread[(slice(None), *b)] += sign * factors
    assert (spread != 0).sum() == (rows != 0).sum()
    assert torch.allclose(spread.square().sum().double(), torch.as_tensor((rows**2).sum()).double())
    # entries are the factors that are not zero, by shell
    assert len(terms.entries) == (terms.angular != 0).sum()
    by_shell = [terms.shells[term] for term, _ in terms.entries]
    assert by_shell == sorted(by_shell)
    assert [by_shell.index(shell) for shell in range(len(terms.used))] == terms.first[:-1].tolist()


def test_small_rings_of_planes_give_the_same():
    """A volume so large that lines are computed in blocks, next to smaller ones of the same content."""
    layer, x = GMRHarmonicConv3d(2, 32, 5, padding=2, orders=(2,)), torch.randn(1, 2, 6, 140, 61)
    set_backend("cpp")
    try:
        whole = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
        y = layer(x)
    finally:
        set_backend("dense")
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    set_backend("auto")
    assert torch.allclose(y, layer(x), atol=1e-5)
    for a, b in zip(whole, expected):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_only_what_the_backward_pass_needs_is_saved(calls):
    layer, x = GMRHarmonicConv3d(8, 16, 3, padding=1), torch.randn(1, 8, 10, 11, 12, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        layer(x)
    assert sum(saved) <= x.numel() + 8 * layer.weight.numel() + 1000


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("size", [8, 9])
def test_a_layer_is_equivariant(calls, dims, size):
    layer = LAYERS[dims](3, 12, 3, padding=1)
    errors = equivariance_error(layer.eval(), torch.randn(1, 3, *(size + i for i in range(dims))))
    assert calls
    assert errors.worst <= 1e-6


def test_the_same_call_gives_the_same_digits(calls):
    layer, x = GMRHarmonicConv3d(4, 8, 3, padding=1), torch.randn(2, 4, 9, 10, 11, requires_grad=True)
    found = [run(layer, x, torch.ones(2, 8, 9, 10, 11)) for _ in range(3)]
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again))


def test_the_gradient_at_zero_is_finite(calls):
    layer, x = GMRHarmonicConv2d(2, 8, 3, padding=1), torch.zeros(1, 2, 6, 7, requires_grad=True)
    assert all(each.isfinite().all() for each in run(layer, x, torch.ones(1, 8, 6, 7)))


def test_a_call_leaves_nothing_behind_for_the_next(calls):
    layer = GMRHarmonicConv2d(2, 8, 3, padding=1)
    for size, value in (((40, 64), float("inf")), ((7, 9), 1.0), ((3, 3), 1.0)):
        x = torch.full((2, 2, *size), value, requires_grad=True)
        found = run(layer, x, torch.ones(2, 8, *size))
        assert all(each.isfinite().all() for each in found) == (value == 1.0)


@pytest.mark.parametrize(
    ("image", "scalars", "padding"),
    [
        (torch.zeros(1, 6, 3), torch.zeros(1, 5, 2), [0]),
        (torch.zeros(2, 6, 3), torch.zeros(1, 4, 2), [0]),
        (torch.zeros(1, 6, 3).double(), torch.zeros(1, 4, 2), [0]),
        (torch.zeros(1, 3, 6).transpose(1, 2), torch.zeros(1, 4, 2), [0]),
        (torch.zeros(1, 6, 3), torch.zeros(1, 10, 2), [3]),
    ],
)
def test_memory_that_does_not_fit_is_refused(image, scalars, padding):
    window = Window((1, 0, 1), (3,), 2, (1,))

    def run():
        order = AngularOrder(window, ((-1.0, 0.0, 1.0),), 1, 1, padding)
        order.write_scalars(image, torch.zeros(2, 3, 2), None, scalars, slice(0, 2))

    with pytest.raises(AssertionError, match=r"^(a tensor of shape|an image of shape|padding=\[3\])"):
        run()
