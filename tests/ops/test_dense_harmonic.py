"""The reference of a harmonic convolution equals one convolution, slab by slab, with all gradients, in a plain layer's memory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_gmr import set_backend
from monai_gmr.apps.peak_memory import peak_memory
from monai_gmr.networks.layers import GMRHarmonicConv2d, GMRHarmonicConv3d, make_convolution
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.ops import dense_harmonic
from monai_gmr.ops.call import Call, Orders
from monai_gmr.ops.dense_harmonic import Factors, dense_harmonic_conv, whole_harmonic_conv
from monai_gmr.ops.kept_terms import num_chiral
from monai_gmr.ops.made_conv import MadeKernel
from monai_gmr.ops.memory_format import has_channels_last, make_channels_last

COMPONENTS = {1: (0, 1), 2: (0, 2, 2), 3: (0, 3, 5)}


@pytest.fixture
def thin_slabs(monkeypatch):
    """Slabs of one row."""
    for name in ("SHARE", "KEPT_BYTES", "ROWS_PER_MARGIN"):
        monkeypatch.setattr(dense_harmonic, name, 0)


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 3))
    lengths = {
        name: tuple(draw(st.integers(*limits)) for _ in range(dims))
        for name, limits in {"window": (1, 3), "stride": (1, 2), "padding": (0, 3), "dilation": (1, 2)}.items()
    }
    reach = [d * (k - 1) + 1 for d, k in zip(lengths["dilation"], lengths["window"])]
    sizes = [max(r - 2 * p, 1) + draw(st.integers(0, 3)) for r, p in zip(reach, lengths["padding"])]
    norms = tuple(draw(st.integers(1, 2)) for _ in COMPONENTS[dims])
    products = tuple(0 if count == 0 else draw(st.integers(0, n)) for n, count in zip(norms, COMPONENTS[dims]))
    order = draw(st.permutations(range(len(norms))))
    orders = Orders(*(tuple(each[i] for i in order) for each in (norms, products, COMPONENTS[dims])))
    numbers = {"batch": draw(st.integers(1, 3)), "groups": draw(st.integers(1, 2)), "channels": draw(st.integers(1, 2))}
    return dims, lengths, sizes, orders, numbers, draw(st.sampled_from([(), ("linear",), ("linear", "chiral")]))


def problem(dims, lengths, sizes, orders, numbers, terms):
    groups, outputs, responses = numbers["groups"], sum(orders.channels()), orders.num_responses()
    zero = sum(n for n, count in zip(orders.norms, orders.components) if count == 0)
    shapes = {"linear": (groups, outputs, responses - zero), "chiral": (groups, outputs)}
    x = torch.randn(numbers["batch"], groups * numbers["channels"], *sizes, dtype=torch.float64)
    weight = torch.randn(groups * responses, numbers["channels"], 2, dtype=torch.float64)
    basis = torch.randn(2, math.prod(lengths["window"]), dtype=torch.float64)
    more = [torch.randn(shapes[name], dtype=torch.float64) if name in terms else None for name in ("linear", "chiral")]
    factors = Factors(*more, torch.randn(groups * outputs, dtype=torch.float64))
    call = Call.of_input(
        x,
        lengths["window"],
        (x.shape[1], len(weight)),
        stride=lengths["stride"],
        padding=lengths["padding"],
        dilation=lengths["dilation"],
        groups=groups,
        orders=orders,
        kept=bool(terms),
    )
    make = lambda weight, basis: (weight @ basis).unflatten(2, lengths["window"])  # noqa: E731
    return x, MadeKernel(make, (weight, basis)), factors, call


def with_gradients(function, x, rows, factors, call, seed):
    tensors = [each.detach().requires_grad_() for each in (x, *rows.parts, *factors) if each is not None]
    x, weight, basis, *rest = tensors
    rest = iter(rest)
    factors = Factors(*(None if each is None else next(rest) for each in factors))
    y = function(x, rows._replace(parts=(weight, basis)), factors, call)
    return [y, *torch.autograd.grad(y, tensors, seed, materialize_grads=True)]


@settings(max_examples=30, deadline=None)
@given(drawn=convolutions(), row_by_row=st.booleans())
def test_slabs_give_what_one_convolution_gives(drawn, row_by_row):
    x, rows, factors, call = problem(*drawn)
    seed = torch.randn(len(x), call.num_outputs(), *call.output_sizes(), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense_harmonic, "KEPT_BYTES", 0)
        if row_by_row:
            thin_slabs.__wrapped__(patch)
        found = with_gradients(dense_harmonic_conv, x, rows, factors, call, seed)
    wanted = with_gradients(whole_harmonic_conv, x, rows, factors, call, seed)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=1e-9)


def test_gradients_can_be_differentiated(thin_slabs):
    drawn = (2, dict.fromkeys(("stride", "padding", "dilation"), (1, 1)) | {"window": (3, 3)}, (2, 3))
    orders = Orders((1, 1), (0, 1), (0, 2))
    x, rows, factors, call = problem(*drawn, orders, {"batch": 1, "groups": 1, "channels": 1}, ("linear", "chiral"))
    assert num_chiral(1, 1, 2) == 1
    tensors = [each.requires_grad_() for each in (x, *rows.parts, *factors)]

    def run(x, weight, basis, *tensors):
        return dense_harmonic_conv(x, rows._replace(parts=(weight, basis)), Factors(*tensors), call)

    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


@pytest.mark.parametrize(("dtype", "inside"), [(torch.bfloat16, torch.float32), (torch.float16, torch.float16)])
@pytest.mark.parametrize("keeps", ["all", "rotations"])
def test_autocast_rounds_once_a_product(thin_slabs, dtype, inside, keeps):
    layer = GMRHarmonicConv2d(4, 8, 3, padding=1, keeps=keeps)
    x = torch.randn(2, 4, 7, 6).to(inside).requires_grad_()
    wide = x.detach().float().requires_grad_()
    wanted = [layer(wide), *torch.autograd.grad(layer(wide).sum(), [wide, *layer.parameters()])]
    with torch.autocast("cpu", dtype):
        y = layer(x)
    found = [y, *torch.autograd.grad(y.sum(), [x, *layer.parameters()])]
    assert y.dtype == dtype
    assert [each.dtype for each in found[1:]] == [inside] + [torch.float32] * (len(found) - 2)
    for one, other in zip(found, wanted):
        # of 36 taps and channels
        assert float((one.float() - other).detach().norm() / other.detach().norm()) < 4 * torch.finfo(dtype).eps


def test_a_backward_pass_within_autocast_is_that_without(thin_slabs):
    layer, x = GMRHarmonicConv2d(2, 8, 3, padding=1), torch.randn(1, 2, 6, 6, requires_grad=True)
    y = layer(x)
    (wanted,) = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kept", [0, 2**22])
def test_what_follows_may_overwrite_the_result(kept, monkeypatch):
    monkeypatch.setattr(dense_harmonic, "KEPT_BYTES", kept)
    layer, x = GMRHarmonicConv2d(2, 8, 3, bias=False), torch.randn(1, 2, 6, 6, requires_grad=True)
    found, wanted = (torch.autograd.grad(call(layer(x)).sum(), x)[0] for call in (torch.Tensor.relu_, torch.relu))
    assert torch.equal(found, wanted)


def test_channels_stay_last(thin_slabs):
    layer, x = GMRHarmonicConv3d(2, 8, 3, padding=1), make_channels_last(torch.randn(1, 2, 5, 6, 7))
    with set_backend("dense"):
        y = layer(x)
    assert has_channels_last(y)
    assert torch.allclose(y, layer(x.contiguous()), atol=1e-5)


def test_compiled_layers_have_the_same_gradients():
    layer, x = GMRHarmonicConv2d(2, 8, 3, padding=1), torch.randn(1, 2, 6, 6, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager")
    found, wanted = ([y, *torch.autograd.grad(y.sum(), [x, layer.weight])] for y in (compiled(x), layer(x)))
    for one, other in zip(found, wanted):
        assert torch.allclose(one, other, atol=1e-5)


def peaks(modules, x, step):
    def run(module):
        y = module(x)
        if step:
            y.sum().backward()
            module.zero_grad()

    with set_backend("dense"), torch.set_grad_enabled(step):
        for module in modules:
            run(module)
            yield peak_memory(lambda module=module: run(module), torch.device("cpu"))


@pytest.mark.parametrize(("kernel_size", "channels"), [(3, 16), (5, 8)])
def test_a_training_step_has_the_memory_of_a_plain_layer(kernel_size, channels, monkeypatch):
    monkeypatch.setattr(dense_harmonic, "KEPT_BYTES", 0)
    layers = [
        make_convolution(name, 3, channels, channels, kernel_size, padding=kernel_size // 2)
        for name in ("plain", "gmr_harmonic")
    ]
    plain, ours = peaks(layers, torch.randn(1, channels, 40, 40, 40, requires_grad=True), step=True)
    assert ours <= 1.6 * plain


@pytest.mark.parametrize(("step", "limit"), [(True, 1.2), (False, 1.3)])
def test_a_net_has_the_memory_of_the_plain_net(step, limit, monkeypatch):
    # the share decides, as with larger volumes and more channels
    monkeypatch.setattr(dense_harmonic, "KEPT_BYTES", 0)
    options = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "features": (4, 8)}
    nets = [GMRUNet(**options, conv=conv) for conv in ("plain", "gmr_harmonic")]
    plain, ours = peaks(nets, torch.randn(1, 1, 48, 48, 48), step)
    assert ours <= limit * plain
