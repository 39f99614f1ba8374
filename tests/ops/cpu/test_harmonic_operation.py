"""The operation of harmonic layers on backend "cpp": its gradients, its memory, and unsupported calls."""

import pytest
import torch

from monai_gmr import set_backend
from monai_gmr.apps.peak_memory import peak_memory
from monai_gmr.networks.layers import GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.ops.cpu import backend as cpu_backend
from monai_gmr.ops.cpu import library
from monai_gmr.ops.cpu.harmonic_conv import cpp_harmonic_conv
from monai_gmr.ops.memory_format import make_channels_last

pytestmark = pytest.mark.skipif(library.load_kernels() is None, reason="no kernels were built")
LAYERS = {2: GMRHarmonicConv2d, 3: GMRHarmonicConv3d}


@pytest.mark.parametrize(
    ("keeps", "terms"), [("all", []), ("rotations", ["chiral"]), ("m", ["linear"]), ("1", ["linear", "chiral"])]
)
def test_the_operation_says_of_itself_what_it_does(monkeypatch, calls, keeps, terms):
    arguments = {}
    monkeypatch.setattr(cpu_backend, "cpp_harmonic_conv", lambda **a: (arguments.update(a), a["x"])[1])
    GMRHarmonicConv2d(3, 8, 3, padding=1, keeps=keeps)(make_channels_last(torch.randn(2, 3, 6, 7)))
    assert [name for name in ("linear", "chiral") if arguments[name] is not None] == terms
    for name in ("x", "weight", "basis", "angular_weight", "bias", *terms):
        arguments[name] = arguments[name].detach().requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    found = torch.library.opcheck(cpp_harmonic_conv, (), arguments, test_utils=tests)
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("keeps", ["rotations", "1"])
def test_gradients_can_be_differentiated(calls, break_symmetry, dims, keeps):
    layer = break_symmetry(LAYERS[dims](3, 16, 3, padding=1, keeps=keeps))
    x = torch.randn(2, 3, *(7, 6, 5)[:dims], requires_grad=True)
    inputs = [x, *(p for name, p in layer.named_parameters() if name != "bias")]

    def penalty():
        own = torch.autograd.grad(layer(x).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in own), inputs)

    found = penalty()
    assert calls
    set_backend("dense")
    for a, b in zip(found, penalty()):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_autocast_takes_the_dense_kernel(calls, break_symmetry):
    layer, x = break_symmetry(GMRHarmonicConv2d(2, 16, 3, padding=1, keeps="1")), torch.randn(1, 2, 9, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)
    assert not calls
    assert (low.float() - layer(x)).norm() < 0.03 * layer(x).norm()
    assert calls


@pytest.mark.parametrize("keeps", ["all", "rotations", "1"])
def test_only_what_the_backward_pass_needs_is_saved(calls, break_symmetry, keeps):
    layer = break_symmetry(GMRHarmonicConv3d(8, 16, 3, padding=1, keeps=keeps))
    x = torch.randn(1, 8, 10, 11, 12, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        layer(x)
    factors = 0 if layer.relax_weight is None else 3 * layer.relax_weight.numel() + layer.kept_combinations.numel()
    assert sum(saved) <= x.numel() + 8 * layer.weight.numel() + factors + 1000


@pytest.mark.parametrize(("dims", "size"), [(2, (96, 96)), (3, (24, 24, 24))])
def test_a_step_takes_the_memory_of_a_layer_that_keeps_all(calls, dims, size):
    peaks = []
    for keeps in ("all", "rotations", "1"):
        layer = LAYERS[dims](16, 32, 3, padding=1, keeps=keeps)
        x = make_channels_last(torch.randn(1, 16, *size)).requires_grad_()
        peaks.append(peak_memory(lambda: layer(x).sum().backward(), x.device))  # noqa: B023
    assert max(peaks) <= 1.02 * peaks[0]
