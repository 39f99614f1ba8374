"""GMR-Conv's stale caches, sigma without gradient and broken export do not occur here."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch

from monai_gmr.networks.layers import (
    GMRConv1d,
    GMRConv2d,
    GMRConv3d,
    GMRConvTranspose1d,
    GMRConvTranspose2d,
    GMRConvTranspose3d,
)

CONV = {1: GMRConv1d, 2: GMRConv2d, 3: GMRConv3d}
TRANSPOSED = {1: GMRConvTranspose1d, 2: GMRConvTranspose2d, 3: GMRConvTranspose3d}
RINGS = ("gaussian", "indexed", "hard")
SIZES = {1: (11,), 2: (9, 12), 3: (6, 7, 9)}


def random_input(spatial_dims, channels=2, dtype=torch.float32, batch=(2,)):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*batch, channels, *SIZES[spatial_dims], generator=generator, dtype=torch.float64).to(dtype)


# Caches.


def shift_parameters(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3)
    return layer


LAYERS = {
    **{f"{d}d {rings}": (d, rings, False) for d in (2, 3) for rings in RINGS},
    **{f"{d}d transposed": (d, "gaussian", True) for d in (1, 2, 3)},
}


def build(name):
    spatial_dims, rings, transposed = LAYERS[name]
    layer = TRANSPOSED[spatial_dims] if transposed else CONV[spatial_dims]
    return layer(2, 3, 4 if transposed else 5, 2 if transposed else 1, rings=rings), random_input(spatial_dims)


@pytest.mark.parametrize("name", LAYERS)
def test_weights_loaded_in_eval_mode_answer_at_once(name):
    layer, x = build(name)
    other = shift_parameters(copy.deepcopy(layer))
    layer.eval()
    before = layer(x)
    layer.load_state_dict(other.state_dict())
    assert (layer(x) - before).abs().max() > 1e-3
    torch.testing.assert_close(layer(x), other(x))


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_changed_in_eval_mode_answer_at_once(name):
    layer, x = build(name)
    layer.eval()
    before = layer(x)
    shift_parameters(layer)
    after = layer(x)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, layer.train()(x))


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_pickles_after_eval_work_and_are_independent(name):
    layer, x = build(name)
    y = layer.eval()(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(twin(x), y)
        shift_parameters(twin)
        assert (twin(x) - y).abs().max() > 1e-3
        torch.testing.assert_close(layer(x), y)


@pytest.mark.parametrize("name", LAYERS)
def test_eval_under_autocast_leaves_full_precision_behind(name):
    layer, x = build(name)
    expected = copy.deepcopy(layer)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        rounded = layer.eval()(x)
    assert rounded.dtype is torch.bfloat16
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_is_kept_on_the_module_by_a_forward_pass(name):
    layer, x = build(name)
    contents = [set(vars(layer)), set(layer._buffers), set(layer._parameters), len(pickle.dumps(layer))]
    layer(x).sum().backward()
    layer.zero_grad(set_to_none=True)
    with torch.no_grad():
        layer.eval()(x)
    layer.train()
    assert [
        set(vars(layer)),
        set(layer._buffers),
        set(layer._parameters),
        len(pickle.dumps(layer)),
    ] == contents


@pytest.mark.parametrize("name", LAYERS)
def test_only_weights_are_saved_and_trained(name):
    layer, _ = build(name)
    expected = {"weight", "bias"} | ({"log_sigma"} if layer.rings != "hard" else set())
    assert set(layer.state_dict()) == {key for key, _ in layer.named_parameters()} == expected
    assert sum(p.numel() for p in layer.parameters()) <= 2 * 3 * layer.num_rings + 3 + layer.num_rings


@pytest.mark.parametrize("masks_trained", [False, True])
def test_checkpoints_of_the_peer_are_not_taken_for_ours(masks_trained):
    layer = GMRConv2d(2, 3, 5, rings="indexed")
    masks = torch.rand(1, 1, 3, 25) if masks_trained else torch.ones(1, 1, 3, 25)
    checkpoint = {"weight": torch.zeros(3, 2, 3), "bias": torch.zeros(3), "log_sigmas": torch.zeros(3)}
    checkpoint |= {"weight_index_mat": masks, "default_weight_index_mat": masks, "mus": torch.arange(3.0)}
    with pytest.raises(RuntimeError, match="weight_index_mat"):
        layer.load_state_dict(checkpoint)


# Sigma.


@pytest.mark.parametrize("rings", ["gaussian", "indexed"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("sigma", [1e-2, 0.1, 0.3, 1.0, 6.0, 60.0, 600.0])
def test_sigma_keeps_a_gradient_beyond_the_peers_clamps(spatial_dims, sigma, rings):
    """The peer clamps sigma to 0.01 .. 2 R and stops learning there."""
    layer = CONV[spatial_dims](2, 3, 5, rings=rings)
    with torch.no_grad():
        layer.log_sigma.fill_(float(np.log(sigma)))
    layer(random_input(spatial_dims)[..., :6]).square().sum().backward()
    assert torch.isfinite(layer.log_sigma.grad).all()
    assert (layer.log_sigma.grad != 0).all()


@pytest.mark.parametrize("rings", ["gaussian", "indexed"])
def test_gradients_of_all_parameters_are_those_of_finite_differences(rings):
    layer = GMRConv2d(1, 1, 5, rings=rings, dtype=torch.float64)
    x = torch.randn(1, 1, 6, 7, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def forward(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (x,))

    assert torch.autograd.gradcheck(forward, (x, *layer.parameters()))


# Export.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_script_gives_the_same_numbers_at_other_sizes(name, training):
    layer, x = build(name)
    layer.train(training)
    scripted = torch.jit.script(layer)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    for image in (x, x[..., :-1], x[0]):
        torch.testing.assert_close(loaded(image), layer(image))


@pytest.mark.parametrize("name", LAYERS)
def test_trace_gives_the_same_numbers(name):
    layer, x = build(name)
    layer.eval()
    traced = torch.jit.trace(layer, x)
    torch.testing.assert_close(traced(x + 1), layer(x + 1))


@pytest.mark.parametrize("name", LAYERS)
def test_torch_export_gives_the_same_numbers(name):
    layer, x = build(name)
    layer.eval()
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x + 1), layer(x + 1))


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("name", ["2d gaussian", "2d indexed", "3d hard", "2d transposed"])
def test_onnx_gives_the_same_numbers(name, dynamo, tmp_path):
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    layer, x = build(name)
    layer.eval()
    path = tmp_path / "layer.onnx"
    torch.onnx.export(layer, (x,), str(path), dynamo=dynamo, input_names=["x"])
    session = reference.ReferenceEvaluator(onnx.load(path))
    result = session.run(None, {session.input_names[0]: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(np.asarray(result)), layer(x).detach(), rtol=1e-4, atol=1e-5)
