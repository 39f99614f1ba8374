"""Learned extents of partial layers: gradients, a loss that shrinks them, the penalty; and each bug found in the peer."""

import math

import pytest
import torch
from partial_chains import CONV, chain, shrink
from torch import nn

from monai_gmr.networks.layers import (
    PartialGroupElements,
    PartialGroupPool,
    draw_elements,
    extent_penalty,
    partial_extents,
    set_temperature,
)
from monai_gmr.utils import ConfigurationError


@pytest.mark.parametrize(
    ("dims", "group", "samples", "name"),
    [
        (2, "SE(2)", 5, "extent"),
        (3, "SO(3)", 8, "extent"),
        (2, "E(2)", 4, "keep"),
        (2, "4", None, "keep"),
        (3, "222", None, "keep"),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_extents_are_those_of_finite_differences(dims, group, samples, name, training):
    net = chain(dims, group, samples, layers=3, fields=1).train(training)
    shrink(net, 0.6)
    draw_elements(net)
    x = torch.randn(1, 1, *(4,) * dims, dtype=torch.float64)
    weights = torch.randn_like(net(x))
    learned = getattr(net[1].out_elements, name)

    def run(values):
        parameters = {"1.out_elements." + name: values, "2.in_elements." + name: values}
        return (torch.func.functional_call(net, parameters, (x,)) * weights).sum()

    assert torch.autograd.gradcheck(run, (learned,), eps=1e-6, atol=1e-5)


def test_the_gradient_of_a_loss_shrinks_an_extent():
    """Two classes that are rotated images of each other: the extents fall, and the net distinguishes what the whole group cannot."""
    torch.manual_seed(3)
    image = torch.randn(1, 1, 9, 9)
    x, labels = torch.cat([image, image.rot90(2, (2, 3))]), torch.tensor([0.0, 1.0])
    lift = CONV[2](1, 16, 5, padding=2, samples=4)
    middle = CONV[2](16, 16, 5, padding=2, in_elements=lift.out_elements)
    last = CONV[2](16, 16, 5, padding=2, in_elements=middle.out_elements)
    body = nn.Sequential(lift, nn.ReLU(), middle, nn.ReLU(), last, PartialGroupPool(last.out_elements))
    head = nn.Linear(4, 1)

    def answer():
        return head(body(x).mean((2, 3))).squeeze(1)

    body.eval()
    assert torch.allclose(answer()[0], answer()[1], atol=1e-5)
    body.train()
    optimiser = torch.optim.Adam([*body.parameters(), *head.parameters()], 1e-2)
    for _ in range(120):
        draw_elements(body)
        optimiser.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(answer(), labels).backward()
        optimiser.step()
    body.eval()
    assert ((answer() > 0).float() == labels).all()
    assert min(each.rotations for each in partial_extents(body)) < 0.9


def test_extents_penalty_and_temperature():
    net = chain(2, "E(2)", 4, layers=4)
    assert float(extent_penalty(net).detach()) == 0
    for layer, values in zip(net[1:], [(0.5, 1.0), (0.75, 0.5), (0.25, 0.75)]):
        layer.out_elements.extent.data.fill_(values[0])
        layer.out_elements.keep.data.fill_(values[1])
    found = partial_extents(net)
    assert [(each.layer, each.rotations, each.mirrors) for each in found] == [
        ("0", 1.0, 1.0),
        ("1", 0.5, 1.0),
        ("2", 0.75, 0.5),
        ("3", 0.25, 0.75),
    ]
    penalty = extent_penalty(net)
    assert float(penalty.detach()) == pytest.approx((0.25 + 0.25) / 2)
    penalty.backward()
    assert float(net[1].out_elements.extent.grad) < 0 < float(net[2].out_elements.extent.grad)
    assert net[3].out_elements.extent.grad.tolist() == [0.0]
    assert [set_temperature(net, each, 0.5, 0.005) for each in (0, 0.5, 1)] == pytest.approx([0.5, 0.05, 0.005])
    assert net[2].out_elements.temperature == pytest.approx(0.005)
    with pytest.raises(ConfigurationError, match="is not a schedule: give progress from 0 to 1"):
        set_temperature(net, 2)


# The bugs of Partial G-CNN's code (its paper is arXiv 2110.10211).


@pytest.mark.parametrize(("dims", "group"), [(2, "SE(2)"), (3, "SO(3)")])
def test_peer_the_gradient_of_the_extent_is_not_one_for_all_samples(dims, group):
    elements = PartialGroupElements(dims, group, samples=6).double()
    shrink(elements, 0.5)
    elements.draw(torch.Generator().manual_seed(0))
    gradients, step = [], 1e-6
    for index in range(6):
        jacobian = [
            torch.autograd.grad(each, elements.extent, retain_graph=True)[0] for each in elements()[0][index].flatten()
        ]
        gradients.append(torch.cat(jacobian))
    before = elements()[0].detach()
    shrink(elements, 0.5 + step)
    moved = (elements()[0].detach() - before).flatten(1) / step
    torch.testing.assert_close(torch.stack(gradients), moved, atol=1e-5, rtol=0)
    assert len({tuple(each.round(decimals=6).tolist()) for each in gradients}) == 6


def test_peer_a_keep_probability_reaches_every_number_from_0_to_1():
    """The peer's probability, a sigmoid of a sigmoid, lies between .5 and .73."""
    for group in ("E(2)", "4mm"):
        elements = PartialGroupElements(2, group).eval()
        for target in (0.0, 0.05, 0.5, 0.95, 1.0):
            optimiser = torch.optim.Adam([elements.keep], 0.02)
            for _ in range(150):
                optimiser.zero_grad()
                ((elements()[1][-elements.keep.numel() :] - target) ** 2).sum().backward()
                optimiser.step()
            assert float(elements()[1][-1].detach()) == pytest.approx(target, abs=0.02)


@pytest.mark.parametrize("kernel", ["harmonic", "siren"])
@pytest.mark.parametrize("extent", [1.0, 0.5, 0.0])
@pytest.mark.parametrize(("dims", "group", "samples"), [(2, "SE(2)", 8), (2, "E(2)", 8), (3, "SO(3)", 8)])
def test_peer_activations_do_not_grow_from_layer_to_layer(dims, group, samples, extent, kernel):
    """The peer's activations grow 25-fold per layer."""
    torch.manual_seed(0)
    net = chain(dims, group, samples, layers=5, fields=8 if dims == 2 else 4, kernel=kernel, dtype=torch.float32)
    shrink(net, extent)
    x, sizes = torch.randn(2, 1, *(12 if dims == 2 else 8,) * dims), []
    with torch.no_grad():
        for layer in net:
            x = layer(x)
            sizes.append(float(x.std()))
            x = x.relu()
    # a layer, in the mean of four
    assert 0.1 < (sizes[-1] / sizes[0]) ** 0.25 < 2


@pytest.mark.parametrize("kernel", ["harmonic", "siren"])
@pytest.mark.parametrize(("dims", "group"), [(2, "E(2)"), (3, "O(3)")])
def test_peer_a_kernel_has_the_period_of_the_rotation(dims, group, kernel):
    """The peer feeds the raw angle, so its kernels at -180 and at 180 degrees differ."""
    layer = chain(dims, group, 2, kernel=kernel)[1].eval()

    def at(angle):
        matrix = torch.eye(dims, dtype=torch.float64)
        c, s = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        matrix[:2, :2] = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
        identity = torch.eye(dims, dtype=torch.float64)
        return layer.kernel(identity[None], matrix[None, None]).detach()

    pi, near = torch.pi, 1e-7
    assert float((at(pi - near) - at(near - pi)).abs().max()) < 1e-5 * float(at(pi).abs().max())
    assert float((at(0.3) - at(0.3 + 2 * pi)).abs().max()) < 1e-12
    assert float((at(0.3) - at(0.3 + pi)).abs().max()) > 1e-3 * float(at(0.3).abs().max())


@pytest.mark.parametrize("extent", [1.0, 0.5])
def test_peer_mirror_images_do_not_change_the_spacing_of_the_rotations(extent):
    """The peer divides the jitter of a part of E(2) by the number of all elements, that of the whole group by the number of rotations."""
    plain, mirrored = PartialGroupElements(2, "SE(2)", samples=5), PartialGroupElements(2, "E(2)", samples=5)
    offsets = []
    for elements in (plain, mirrored):
        shrink(elements, extent)
        for seed in range(300):
            elements.draw(torch.Generator().manual_seed(seed))
            matrices = elements()[0][:5].detach()
            angles = torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]).sort().values
            gaps = angles.diff()
            torch.testing.assert_close(gaps, torch.full_like(gaps, 2 * torch.pi * extent / 5))
            offsets.append(float(angles[0]))
    # the jitter is uniform over one gap
    for values in (offsets[:300], offsets[300:]):
        start, gap = -torch.pi * extent, 2 * torch.pi * extent / 5
        places = (torch.tensor(values) - start) / gap
        assert -1e-6 < float(places.min()) < 0.05
        assert 0.95 < float(places.max()) < 1 + 1e-6
        assert abs(float(places.mean()) - 0.5) < 0.06
