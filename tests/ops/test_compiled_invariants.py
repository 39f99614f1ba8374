"""The generated loops of lengths and inner products give what their reference gives in float64, forward and backward."""

import pytest
import torch

from monai_gmr.ops import compiled_invariants, compiled_loops
from monai_gmr.ops.compiled_invariants import looped_invariants_of_order
from monai_gmr.ops.invariants import invariants_of_order

pytestmark = pytest.mark.skipif(compiled_loops.compiler_failure() is not None, reason="no C++ compiler")


@pytest.mark.parametrize(("channels", "norms", "components"), [(8, 4, 3), (7, 4, 5), (5, 5, 2), (1, 1, 1)])
def test_forward_and_gradient(monkeypatch, channels, norms, components):
    monkeypatch.setattr(compiled_loops, "USES_BEFORE_COMPILATION", 0)
    monkeypatch.setattr(compiled_invariants, "invariants_of_order", None)
    part = torch.randn(2, 1, 50, components, channels).transpose(-3, -1).requires_grad_()
    found = looped_invariants_of_order(part, norms)
    expected = invariants_of_order(part.double(), norms)
    seed = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, part, seed.to(y.dtype))[0] for y in (found, expected)]
    for a, b in ((found, expected), gradients):
        assert a.shape == b.shape
        assert (a - b).norm() <= 1e-6 * b.norm()
    assert found.transpose(-1, -2).is_contiguous()


def test_the_gradient_at_zero_is_zero(monkeypatch):
    monkeypatch.setattr(compiled_loops, "USES_BEFORE_COMPILATION", 0)
    part = torch.zeros(1, 1, 4, 3, 6).transpose(-3, -1).requires_grad_()
    assert torch.equal(torch.autograd.grad(looped_invariants_of_order(part, 3).sum(), part)[0], torch.zeros_like(part))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_layouts_and_precisions_take_the_reference(monkeypatch, dtype):
    monkeypatch.setattr(compiled_loops, "USES_BEFORE_COMPILATION", 0)
    monkeypatch.setattr(compiled_invariants, "compiled_invariants", None)
    part = torch.randn(1, 1, 6, 3, 4, dtype=dtype)
    part = part if dtype == torch.float32 else part.transpose(-3, -1).contiguous().transpose(-3, -1)
    assert torch.equal(looped_invariants_of_order(part, 3), invariants_of_order(part, 3))
