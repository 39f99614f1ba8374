"""The block gives what MONAI's gives with every order and activation, and calls the hooks of its submodules."""

import pytest
import torch
from monai.networks.blocks import ADN

from monai_gmr import set_backend
from monai_gmr.networks.blocks import GMRADN
from monai_gmr.ops.cpu import library as kernels
from monai_gmr.ops.cpu import norm as cpu_norm
from monai_gmr.ops.memory_format import has_channels_last, make_channels_last

needs_kernels = pytest.mark.skipif(kernels.load_kernels() is None, reason="no kernels were built")
NORM = ("GMRINSTANCE", {"affine": True})


@pytest.fixture
def calls(monkeypatch):
    """Slopes that the kernels were called with."""
    made, original = [], cpu_norm.cpp_instance_norm
    monkeypatch.setattr(cpu_norm, "cpp_instance_norm", lambda *a: (made.append(a[-1]), original(*a))[1])
    set_backend("cpp")
    yield made
    set_backend("auto")


@needs_kernels
@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)])
@pytest.mark.parametrize(
    ("ordering", "act", "dropout", "expected"),
    [
        ("NDA", ("LeakyReLU", {"negative_slope": 0.1, "inplace": True}), None, [0.1]),
        ("NA", "RELU", None, [0.0]),
        ("NDA", "RELU", 0.5, [1.0]),
        ("AN", "LEAKYRELU", None, [1.0]),
        ("NA", "PRELU", None, [1.0]),
        ("NA", None, None, [1.0]),
        ("A", "RELU", None, []),
    ],
)
def test_the_block_is_monai_s(calls, size, ordering, act, dropout, expected):
    ours, theirs = (
        make(ordering, 3, act, norm, len(size), dropout)
        for make, norm in ((GMRADN, NORM), (ADN, ("INSTANCE", {"affine": True})))
    )
    theirs.load_state_dict(ours.state_dict())
    x = make_channels_last(torch.randn(2, 3, *size))
    torch.manual_seed(1)
    found = ours(x.clone())
    torch.manual_seed(1)
    wanted = theirs(x.clone())
    assert calls == expected
    assert has_channels_last(found)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(torch.jit.script(ours.eval())(x.clone()), theirs.eval()(x.clone()), atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("which", ["N", "A"])
def test_hooks_see_what_lies_between(calls, which):
    block, seen = GMRADN("NA", 3, ("LEAKYRELU", {"negative_slope": 0.1}), NORM, 2), []
    x = make_channels_last(torch.randn(1, 3, 4, 4))
    together = block(x)
    block.get_submodule(which).register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert torch.allclose(block(x), together, atol=1e-6)
    assert calls == [0.1, 1.0]
    assert len(seen) == 1
