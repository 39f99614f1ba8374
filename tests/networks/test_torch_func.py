"""Transforms of ``torch.func`` and forward-mode derivatives see parameters and images alike, for every backend."""

import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from monai_gmr import set_backend
from monai_gmr.networks.layers import GMRConvTranspose3d, GMRInstanceNorm3d, PointGroupConv2d, make_convolution
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.ops import dense_harmonic, made_conv

MODULES = {
    "gmr": lambda: make_convolution("gmr", 3, 8, 8, 5, padding=2),
    "gmr_harmonic": lambda: make_convolution("gmr_harmonic", 3, 8, 8, 3, padding=1),
    "keeps": lambda: make_convolution(("gmr_harmonic", {"keeps": "rotations"}), 3, 8, 8, 3, padding=1),
    "group": lambda: make_convolution(("group", {"group": "222"}), 3, 8, 8, 3, padding=1),
    "separable": lambda: PointGroupConv2d(8, 8, 5, padding=2, group="4mm", filter="gc"),
    "transposed": lambda: GMRConvTranspose3d(8, 8, 4, stride=2, padding="symmetric"),
    "norm": lambda: GMRInstanceNorm3d(8, affine=True),
    "unet": lambda: GMRUNet(spatial_dims=3, in_channels=8, out_channels=2, features=(8, 8), conv="gmr_harmonic"),
}


@pytest.fixture(params=["cpp", "dense"])
def backend(request, monkeypatch):
    # small images as large ones
    monkeypatch.setattr(dense_harmonic, "KEPT_BYTES", 0)
    monkeypatch.setattr(made_conv, "KEPT_BYTES", 0)
    monkeypatch.setattr(made_conv, "KEPT_SHARE", 0)
    monkeypatch.setattr(sys.modules["monai_gmr.ops.depthwise_conv"], "LEAST_PRODUCTS", 0)
    with set_backend(request.param):
        yield


def problem(name):
    torch.manual_seed(0)
    module = MODULES[name]()
    axes = 2 if name == "separable" else 3
    x = torch.randn(2, 8, *[6] * axes).to(memory_format=torch.channels_last if axes == 2 else torch.channels_last_3d)
    parameters = {key: torch.randn_like(each) * 0.2 for key, each in module.named_parameters()}

    def loss(parameters, x):
        return functional_call(module, parameters, (x,)).square().mean()

    return module, loss, parameters, x


def directional(loss, parameters, x, steps, step):
    """The directional derivative, from gradients."""
    parameters = {key: each.clone().requires_grad_() for key, each in parameters.items()}
    x = x.clone().requires_grad_()
    found = torch.autograd.grad(loss(parameters, x), [x, *parameters.values()])
    wanted = [torch.zeros_like(x) if step is None else step]
    wanted += [torch.zeros_like(each) if steps is None else steps[key] for key, each in parameters.items()]
    return float(sum((one * other).sum() for one, other in zip(found, wanted)))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", MODULES)
def test_derivatives_along_a_direction_are_those_of_gradients(name):
    _, loss, parameters, x = problem(name)
    steps, step = {key: torch.randn_like(each) for key, each in parameters.items()}, torch.randn_like(x)
    by_parameters, by_image = (
        directional(loss, parameters, x, steps, None),
        directional(loss, parameters, x, None, step),
    )
    found = jvp(lambda parameters: loss(parameters, x), (parameters,), (steps,))[1]
    assert float(found) == pytest.approx(by_parameters, rel=1e-3, abs=1e-4)
    found = jvp(lambda x: loss(parameters, x), (x,), (step,))[1]
    assert float(found) == pytest.approx(by_image, rel=1e-3, abs=1e-4)
    with forward_ad.dual_level():
        duals = {key: forward_ad.make_dual(each, steps[key]) for key, each in parameters.items()}
        found = forward_ad.unpack_dual(loss(duals, x)).tangent
        assert float(found) == pytest.approx(by_parameters, rel=1e-3, abs=1e-4)
        found = forward_ad.unpack_dual(loss(parameters, forward_ad.make_dual(x, step))).tangent
        assert float(found) == pytest.approx(by_image, rel=1e-3, abs=1e-4)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", MODULES)
def test_an_ensemble_is_one_batch(name):
    modules = [MODULES[name]() for _ in range(2)]
    x = problem(name)[3]
    parameters, buffers = stack_module_state(modules)
    found = vmap(lambda *tensors: functional_call(modules[0], tensors, (x,)))(parameters, buffers)
    for module, one in zip(modules, found):
        assert torch.allclose(one, module(x), atol=1e-5)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", MODULES)
def test_gradients_of_each_image(name):
    _, loss, parameters, x = problem(name)
    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x[:, None])
    for index in range(len(x)):
        leaves = {key: each.clone().requires_grad_() for key, each in parameters.items()}
        wanted = torch.autograd.grad(loss(leaves, x[index : index + 1]), list(leaves.values()))
        for one, other in zip(found.values(), wanted):
            assert torch.allclose(one[index], other, atol=1e-5)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", ["gmr", "gmr_harmonic", "separable", "norm"])
def test_gradients_have_tangents(name):
    """Forward over reverse: the graph consists of kernels, and its incoming gradient has a tangent."""
    module, _, _, x = problem(name)
    x = x.requires_grad_()
    y = module(x)
    seed, step = torch.randn_like(y), torch.randn_like(y)
    inputs = [x, *module.parameters()]
    wanted = torch.autograd.grad(y, inputs, step, retain_graph=True)
    with forward_ad.dual_level():
        found = torch.autograd.grad(y, inputs, forward_ad.make_dual(seed, step))
        for one, other in zip(found, wanted):
            # linear in the gradient that goes in
            assert torch.allclose(forward_ad.unpack_dual(one).tangent, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("conv", ["gmr", "gmr_harmonic"])
def test_kernels_of_a_gpu_leave_transforms_to_the_reference(conv):
    layer, x = make_convolution(conv, 2, 2, 4, 3, padding=1), torch.randn(1, 2, 5, 5)
    steps = {"weight": torch.randn_like(layer.weight)}
    found = []
    for backend in ("dense", "triton"):
        with set_backend(backend):
            run = lambda parameters: functional_call(layer, parameters, (x,))  # noqa: E731
            found += [jvp(run, ({"weight": layer.weight},), (steps,))[1]]
    assert torch.allclose(*found)
    assert found[0].abs().max() > 0
