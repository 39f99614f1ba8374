"""A convolution that makes its kernel again equals torch's, with all gradients, and saves no kernel."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from monai_gmr import set_backend
from monai_gmr.networks.layers import GMRConv2d, GMRConvTranspose2d, PartialGroupConv2d, make_convolution
from monai_gmr.networks.nets import gmr_resnet18
from monai_gmr.ops import made_conv
from monai_gmr.ops.call import Call
from monai_gmr.ops.made_conv import MadeKernel


@pytest.fixture
def nothing_kept(monkeypatch):
    monkeypatch.setattr(made_conv, "KEPT_BYTES", 0)
    monkeypatch.setattr(made_conv, "KEPT_SHARE", 0)


@st.composite
def convolutions(draw):
    dims, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    limits = {"kernel_size": (1, 3), "stride": (1, 2), "padding": (0, 1), "dilation": (1, 2)}
    lengths = {name: tuple(draw(st.integers(*each)) for _ in range(dims)) for name, each in limits.items()}
    lengths["output_padding"] = tuple(draw(st.integers(0, s - 1)) if transposed else 0 for s in lengths["stride"])
    sizes = [draw(st.integers(d * (k - 1) + 1, 6)) for d, k in zip(lengths["dilation"], lengths["kernel_size"])]
    numbers = [draw(st.integers(1, 3)) for _ in range(4)]
    return transposed, lengths, sizes, numbers, draw(st.booleans())


@settings(max_examples=60, deadline=None)
@given(drawn=convolutions())
def test_results_and_gradients_are_those_of_the_framework(drawn):
    transposed, lengths, sizes, (batch, groups, ins, outs), biased = drawn
    window, dims = lengths.pop("kernel_size"), len(sizes)
    ins, outs = ins * groups, outs * groups
    x = torch.randn(batch, ins, *sizes, dtype=torch.float64)
    call = Call.of_input(x, window, (ins, outs), groups=groups, transposed=transposed, **lengths)
    assume(min(call.output_sizes()) > 0)
    rows, columns = (ins, outs // groups) if transposed else (outs, ins // groups)
    parts = [torch.randn(rows, columns, 2), torch.randn(2, torch.Size(window).numel())]
    parts = [each.double() for each in parts]
    bias = torch.randn(outs, dtype=torch.float64) if biased else None
    make = lambda weight, basis: (weight @ basis).unflatten(2, window)  # noqa: E731
    leaves = [each.requires_grad_() for each in (x, *parts, *([] if bias is None else [bias]))]
    if not transposed:
        del lengths["output_padding"]
    wanted = getattr(F, f"conv{'_transpose' * transposed}{dims}d")(x, make(*parts), bias, groups=groups, **lengths)
    with pytest.MonkeyPatch.context() as patch:
        nothing_kept.__wrapped__(patch)
        found = made_conv.made_conv(x, MadeKernel(make, tuple(parts)), bias, call)
    assert torch.equal(found, wanted)
    seed = torch.randn_like(wanted)
    gradients = [torch.autograd.grad(y, leaves, seed) for y in (found, wanted)]
    for one, other in zip(*gradients):
        assert torch.allclose(one, other, atol=1e-10)


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("frozen", [(), ("x",), ("weight",), ("log_sigma",), ("weight", "log_sigma", "bias")])
def test_gradients_are_computed_where_they_are_asked_for(frozen):
    layer, x = GMRConv2d(3, 4, 5), torch.randn(2, 3, 7, 7, requires_grad="x" not in frozen)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name not in frozen)
    with set_backend("dense"):
        layer(x).square().sum().backward()
    tensors = {"x": x, **dict(layer.named_parameters())}
    assert {name for name, each in tensors.items() if each.grad is None} == set(frozen)


@pytest.mark.usefixtures("nothing_kept")
def test_gradients_can_be_differentiated():
    layer, x = GMRConv2d(1, 2, 3).double(), torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (x,))

    names, parameters = zip(*layer.named_parameters())
    with set_backend("dense"):
        assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)
        assert torch.autograd.gradgradcheck(run, (x, *parameters), fast_mode=True)


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("kind", ["gmr", "gmr_harmonic", "group", "partial"])
def test_weights_that_change_before_the_backward_pass_are_an_error(kind):
    layer, x = make_convolution(kind, 2, 8, 8, 3), torch.randn(1, 8, 5, 5, requires_grad=True)
    with set_backend("dense"):
        y = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("layer", [GMRConv2d(4, 8, 5), GMRConvTranspose2d(4, 8, 5)])
def test_autocast_is_that_of_the_framework(layer):
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    dense = layer.eval().to_conv()
    found = []
    for module in (layer, dense):
        with set_backend("dense"), torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        # within autocast too, the backward pass uses the precision of the forward pass
        with torch.autocast("cpu", torch.bfloat16):
            found.append([y, *torch.autograd.grad(y, [x, module.bias], torch.ones_like(y))])
    for one, other in zip(*found):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def kept(module, x):
    """Bytes that the graph of a module saves, without parameters and image; each tensor counts once."""
    known = {each.data_ptr() for each in (x, *module.parameters(), *module.buffers())}
    sizes = {}

    def note(tensor):
        if tensor.data_ptr() not in known:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with set_backend("dense"), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = module(x)
    assert y.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize(("conv", "limit"), [("gmr", 1.05), ("gmr_harmonic", 2.0), ("group", 1.2), ("partial", 1.6)])
def test_a_net_keeps_no_kernels(conv, limit):
    """The net's kernels are larger than its images."""
    x = torch.randn(2, 1, 32, 32)
    plain, ours = (kept(gmr_resnet18(2, 1, 10, conv=name, kernel_sizes=(9, 9, 5, 5)), x) for name in ("plain", conv))
    # a harmonic net's responses of small images, too
    assert ours <= limit * plain


@pytest.mark.usefixtures("nothing_kept")
def test_hooks_of_others_see_what_is_kept():
    """A checkpoint around a layer handles image and weights alike, and no tensor of the layer stays in memory."""
    layer, x = GMRConv2d(4, 8, 5), torch.randn(1, 4, 9, 9, requires_grad=True)
    seen = []
    with set_backend("dense"), torch.autograd.graph.saved_tensors_hooks(seen.append, lambda _: None):
        layer(x)
    assert any(each.data_ptr() == x.data_ptr() for each in seen)
    assert any(each.data_ptr() == layer.weight.data_ptr() for each in seen)
    assert max(each.numel() for each in seen) <= max(x.numel(), layer.weight.numel(), 25 * layer.num_rings)
    with set_backend("dense"):
        y = checkpoint(layer, x, use_reentrant=False)
        wanted = torch.autograd.grad(layer(x).sum(), [x, layer.weight])
        found = torch.autograd.grad(y.sum(), [x, layer.weight])
    for one, other in zip(found, wanted):
        assert torch.equal(one, other)


def partial_pair(**options):
    """Two layers with the same elements, whose kernels are larger than the images and than 1 MB."""
    first = PartialGroupConv2d(1, 256, 3, padding=1, **options)
    return torch.nn.Sequential(
        first, PartialGroupConv2d(256, 256, 3, padding=1, in_elements=first.out_elements, **options)
    )


@pytest.mark.parametrize("options", [{}, {"orders": (0,)}, {"frequencies": 0}, {"kernel": "siren"}])
def test_partial_layers_have_the_gradients_of_kept_kernels(options, monkeypatch):
    """Also if the kernel does not depend on an orientation or a relative rotation, and with ``create_graph``."""
    net, x, found = partial_pair(**options).eval(), torch.ones(1, 1, 4, 4), []
    parameters = list(net.parameters())
    for kept, again in ((2**20, False), (2**20, True), (2**40, False)):
        monkeypatch.setattr(made_conv, "KEPT_BYTES", kept)
        loss = net(x).square().sum()
        found.append(torch.autograd.grad(loss, parameters, create_graph=again, allow_unused=True))
    for one, again, wanted in zip(*found):
        for each in (one, again):
            assert (each is None) == (wanted is None)
            assert wanted is None or torch.allclose(
                each, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()) + 1e-6
            )


def test_partial_layers_run_in_several_threads():
    net, x = partial_pair().eval(), torch.randn(1, 1, 5, 5)

    def gradients(_=None):
        return torch.autograd.grad(net(x).square().sum(), list(net.parameters()))

    wanted = gradients()
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(gradients, range(9)):
            for one, other in zip(found, wanted):
                assert torch.allclose(one, other, rtol=1e-2, atol=1e-4 * float(other.abs().max()))


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("kind", ["gmr", "gmr_harmonic", "group"])
def test_gradients_within_autocast_are_those_without(kind):
    layer, x = make_convolution(kind, 2, 8, 8, 3), torch.randn(1, 8, 6, 6, requires_grad=True)
    with set_backend("dense"):
        y = layer(x).square().sum()
    inputs = [x, *layer.parameters()]
    wanted = torch.autograd.grad(y, inputs, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(y, inputs, create_graph=True)
    for one, other in zip(found, wanted):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
