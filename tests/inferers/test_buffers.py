"""Outputs that are collected on one device before they go to another: the same numbers for any axis and steps."""

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from monai_gmr.inferers import GMRSlidingWindowInferer, SymmetryInferer

SHAPES = {1: (2, 3, 41), 2: (2, 1, 30, 41), 3: (1, 2, 13, 14, 19), 4: (1, 1, 7, 8, 9, 6)}


def noise(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def network(x):
    """Outputs that depend on the window, at several resolutions."""
    dims = x.dim() - 2
    mean = x.mean(tuple(range(2, x.dim())), keepdim=True)
    coarse = x[(slice(None), slice(None), *(slice(None, None, 2),) * dims)]
    return {"fine": x + mean, "coarse": [coarse * mean, x.sum(1, keepdim=True)]}


def tensors(answer):
    return [answer["fine"], *answer["coarse"]]


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("steps", [1, 2, 3, 100])
@pytest.mark.parametrize(("dims", "axis"), [(d, a) for d in SHAPES for a in range(-d, d)])
def test_buffers_change_nothing_but_the_order_of_sums(dims, axis, steps, mode):
    x = noise(*SHAPES[dims])
    options = {"roi_size": 6, "sw_batch_size": 3, "overlap": 0.4, "mode": mode}
    expected = tensors(GMRSlidingWindowInferer(**options)(x, network))
    answers = [GMRSlidingWindowInferer(**options, buffer_steps=steps, buffer_dim=axis)(x, network)]
    if steps == 2:
        # in the call, as MONAI's
        answers += [
            GMRSlidingWindowInferer(**options, **given)(x, network, buffer_steps=steps, buffer_dim=axis)
            for given in ({}, {"buffer_steps": 7})
        ]
    for answer in map(tensors, answers):
        for one, other in zip(answer, expected, strict=True):
            assert one.shape == other.shape
            assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("steps", [None, 0, -1])
def test_no_steps_are_no_buffer_and_no_error_about_its_axis(steps):
    x = noise(1, 1, 20, 20)
    expected = GMRSlidingWindowInferer(8)(x, lambda part: part * 2)
    assert torch.equal(GMRSlidingWindowInferer(8, buffer_steps=steps)(x, lambda part: part * 2), expected)
    assert torch.equal(GMRSlidingWindowInferer(8)(x, lambda part: part * 2, buffer_steps=steps), expected)


def test_the_settings_of_the_constructor_are_read_as_on_monais_and_never_reach_the_network():
    inferer = GMRSlidingWindowInferer(8, buffer_steps=2, buffer_dim=0)
    assert (inferer.buffer_steps, inferer.buffer_dim) == (2, 0)
    named = []

    def recorder(x, **kwargs):
        named.append(kwargs)
        return x

    inferer(noise(1, 1, 20, 20), recorder, buffer_steps=1, buffer_dim=1, device="cpu", other=3)
    assert named
    assert all(each == {"other": 3} for each in named)


@pytest.mark.parametrize(("steps", "axis"), [(1, 0), (1, 1), (2, -1), (3, 0)])
def test_windows_come_in_runs_of_steps_along_the_axis(steps, axis):
    x = noise(2, 1, 30, 41)
    starts = []

    def recorder(window, places):
        starts.extend((place[0].start, place[2:][axis].start) for place in places)
        return window

    inferer = GMRSlidingWindowInferer(8, 3, 0.25, with_coord=True, buffer_steps=steps, buffer_dim=axis)
    inferer(x, recorder)
    levels = sorted({level for _, level in starts})
    runs = [(image, levels.index(level) // steps) for image, level in starts]
    assert runs == sorted(runs)
    assert len(levels) > steps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_types_and_metadata_are_those_without_a_buffer(dtype):
    x = MetaTensor((noise(1, 1, 20, 21) * 10).abs().to(dtype), affine=2 * torch.eye(4))
    options = {"roi_size": 8, "overlap": 0.5, "mode": "gaussian"}
    plain = GMRSlidingWindowInferer(**options)(x, lambda part: part * 2)
    buffered = GMRSlidingWindowInferer(**options, buffer_steps=2)(x, lambda part: part * 2)
    assert buffered.dtype == plain.dtype
    assert torch.allclose(buffered.as_tensor().float(), plain.as_tensor().float(), rtol=1e-2)
    assert torch.equal(buffered.affine, x.affine)


def test_gradients_pass_through_a_buffer():
    x = noise(1, 1, 20, 20).requires_grad_()
    GMRSlidingWindowInferer(8, 2, 0.5, buffer_steps=2)(x, lambda part: part**2).sum().backward()
    assert torch.allclose(x.grad, 2 * x.detach(), atol=1e-5)


def test_a_mirror_image_stays_exact_with_buffers():
    x = noise(1, 1, 30, 41)
    inferer = GMRSlidingWindowInferer(16, 2, 0.3, mode="gaussian", buffer_steps=2, buffer_dim=0)
    net = torch.nn.AvgPool2d(3, 1, 1)
    for axis in (2, 3):
        assert torch.allclose(inferer(x.flip(axis), net), inferer(x, net).flip(axis), atol=1e-6)
    averaged = SymmetryInferer(inferer)(x, net)
    assert torch.allclose(
        averaged, SymmetryInferer(GMRSlidingWindowInferer(16, 2, 0.3, mode="gaussian"))(x, net), atol=1e-6
    )


@pytest.mark.parametrize("steps", [None, 1, 3])
def test_where_windows_lie_alike_the_answer_is_monais(steps):
    # 20 = 8 + 2 * 6: MONAI's windows are symmetric too
    x = noise(2, 1, 20, 20)
    options = {"roi_size": (8, 8), "overlap": 0.25, "mode": "gaussian", "buffer_steps": steps, "buffer_dim": 0}
    ours = GMRSlidingWindowInferer(**options)(x, lambda part: part + part.mean((2, 3), keepdim=True))
    monais = SlidingWindowInferer(**options)(x, lambda part: part + part.mean((2, 3), keepdim=True))
    assert torch.allclose(ours, monais, atol=1e-5)
