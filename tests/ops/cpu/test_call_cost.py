"""A step of a layer on small images takes few operations of torch besides the kernels."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from monai_gmr.networks.layers import GMRConv2d, GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.ops.cpu import harmonic_conv

pytestmark = pytest.mark.usefixtures("cpp")


def test_what_order_0_gets_no_gradient_from_is_not_summed(monkeypatch):
    layer = GMRHarmonicConv2d(16, 16, 3, padding=1, keeps="1").requires_grad_(False)
    layer.relax_weight.requires_grad_(True)
    y, called = layer(torch.randn(1, 16, 6, 6)), []
    monkeypatch.setattr(harmonic_conv, "product_gradients", lambda *_, **__: called.append(True))
    y.sum().backward()
    assert layer.relax_weight.grad.abs().sum() > 0
    assert not called


@pytest.mark.parametrize(
    ("make", "options", "most"),
    [
        (GMRConv2d, {}, 240),
        (GMRHarmonicConv2d, {}, 400),
        (GMRHarmonicConv3d, {}, 420),
        (GMRHarmonicConv2d, {"keeps": "1"}, 640),
    ],
)
def test_a_step_takes_few_operations(make, options, most):
    layer = make(16, 16, 3, padding=1, **options)
    x = torch.randn(1, 16, *[6] * layer.spatial_dims, requires_grad=True)
    # tables of windows are made once
    layer(x).sum().backward()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        layer(x).sum().backward()
    names = [event.name for event in profiled.events()]
    assert "monai_gmr::cpp_harmonic_conv" in names or "monai_gmr::cpp_ring_conv" in names
    assert sum(name.startswith("aten::") for name in names) <= most
