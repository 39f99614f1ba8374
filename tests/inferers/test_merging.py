"""Labels that are reduced window by window equal those of the whole output, which is never held."""

import inspect
import itertools
import random

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from monai_gmr.apps.peak_memory import peak_memory
from monai_gmr.inferers import GMRSlidingWindowInferer, SymmetryInferer
from monai_gmr.inferers.merging import Windows, cell_edges, cells_of
from monai_gmr.utils import ConfigurationError


def noise(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def network(x):
    """Outputs that depend on the window and have many ties, at several resolutions and with axes before the channel axis."""
    mean = x.mean(tuple(range(2, x.dim())), keepdim=True)
    fine = (4 * torch.cat([x, x * x - mean, (mean - x).abs()], 1)).round() / 4
    coarse = fine[(slice(None), slice(None), *(slice(None, None, 2),) * (x.dim() - 2))]
    return {"fine": fine, "others": (coarse, [torch.stack([fine, fine.roll(1, 1)], 1)])}


def tensors(answer):
    return [(answer["fine"], 1), (answer["others"][0], 1), (answer["others"][1][0], 2)]


@pytest.mark.parametrize("dims", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_labels_are_the_argmax_of_the_whole_ties_too(dims, mode):
    draw, ties = random.Random(dims), 0
    dtypes = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int16]
    for overlap in (0, 0.25, 0.6, 0.9):
        size = [draw.randint(2, {1: 60, 2: 30, 3: 13, 4: 8}[dims]) for _ in range(dims)]
        options = {"roi_size": draw.randint(3, 12 if dims < 4 else 5), "sw_batch_size": draw.randint(1, 4)}
        options |= {
            "overlap": overlap if dims < 4 else min(overlap, 0.6),
            "mode": mode,
            "grow_roi": draw.random() < 0.5,
        }
        if draw.random() < 0.5:
            options |= {"buffer_steps": draw.randint(1, 3), "buffer_dim": draw.randrange(-dims, dims)}
        x = (3 * noise(2, 1, *size)).to(draw.choice(dtypes))
        net = network if x.is_floating_point() else lambda window: network(window.float())
        whole = GMRSlidingWindowInferer(**options)(x, net)
        reduced = GMRSlidingWindowInferer(**options, reduction="argmax")(x, net)
        for (output, axis), (labels, _) in zip(tensors(whole), tensors(reduced)):
            assert labels.dtype == torch.uint8
            assert torch.equal(labels.long(), output.argmax(axis, keepdim=True)), (options, size)
            top = output.topk(2, axis).values
            ties += int((top.select(axis, 0) == top.select(axis, 1)).sum())
    assert ties > 0


@pytest.mark.parametrize("steps", [None, 2])
def test_labels_are_monais_where_windows_are_the_same(steps):
    x = noise(2, 1, 20, 26)
    net = torch.nn.Conv2d(1, 4, 3, padding=1)
    options = {"roi_size": 8, "overlap": 0.25, "mode": "gaussian", "buffer_steps": steps}
    expected = SlidingWindowInferer(**options)(x, net)
    labels = GMRSlidingWindowInferer(**options, reduction="argmax")(x, net)
    top = expected.topk(2, 1).values
    clear = (top[:, :1] - top[:, 1:] > 1e-5).expand_as(labels)
    assert clear.float().mean() > 0.99
    assert torch.equal(labels[clear].long(), expected.argmax(1, keepdim=True)[clear])


@pytest.mark.parametrize(("channels", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int16)])
def test_the_type_is_the_smallest_that_fits(channels, dtype):
    def net(x):
        return torch.nn.functional.one_hot((x[:, 0] * (channels - 1)).long(), channels).movedim(-1, 1).float()

    x = MetaTensor(torch.arange(9.0).reshape(1, 1, 3, 3) / 8, affine=2 * torch.eye(4))
    labels = GMRSlidingWindowInferer(2, reduction="argmax")(x, net)
    assert (labels.dtype, labels.shape) == (dtype, (1, 1, 3, 3))
    assert torch.equal(labels.affine, x.affine)
    assert torch.equal(labels.as_tensor().long(), (x.as_tensor() * (channels - 1)).long())


def test_a_function_reduces_what_argmax_cannot():
    x = noise(2, 1, 19, 30).requires_grad_()
    options = {"roi_size": 8, "overlap": 0.5, "mode": "gaussian"}
    answer = GMRSlidingWindowInferer(**options, reduction=lambda y: torch.cat([y > 0, y > 1], 1))(
        x, torch.nn.Identity()
    )
    whole = GMRSlidingWindowInferer(**options)(x, torch.nn.Identity())
    assert torch.equal(answer, torch.cat([whole > 0, whole > 1], 1))


def test_labels_turn_with_the_image():
    """Where the two largest channels differ by more than rounding, which the order of windows changes."""
    x = noise(1, 1, 23, 38)
    net = torch.nn.Sequential(torch.nn.AvgPool2d(3, 1, 1), torch.nn.Conv2d(1, 4, 1))
    whole = GMRSlidingWindowInferer(16, 2, 0.5, "gaussian")
    reduced = GMRSlidingWindowInferer(16, 2, 0.5, "gaussian", reduction="argmax")
    top = whole(x, net).topk(2, 1).values
    clear = top[:, :1] - top[:, 1:] > 1e-5
    for turned in (lambda y: y.flip(2), lambda y: y.rot90(1, (2, 3)), lambda y: y.transpose(2, 3)):
        assert torch.equal(reduced(turned(x), net)[turned(clear)], turned(reduced(x, net))[turned(clear)])


def test_memory_is_a_quarter_of_monais_also_where_the_longest_axis_is_the_last():
    x, net = noise(1, 1, 16, 48, 112), torch.nn.Conv3d(1, 10, 1)
    options = {"roi_size": 16}
    inferers = [GMRSlidingWindowInferer(**options, reduction="argmax"), SlidingWindowInferer(**options)]
    with torch.no_grad():
        ours, monais = (peak_memory(lambda inferer=inferer: inferer(x, net), x.device) for inferer in inferers)
    assert ours <= 0.25 * monais


def test_windows_are_in_order_along_the_longest_axis():
    windows = Windows((2, 2, 2), [0, 0, 0], [[0, 1], [0, 4], [0, 2]])
    assert windows.corners[:3] == [(0, 0, 0), (1, 0, 0), (0, 0, 2)]
    assert sorted(windows.corners) == [(a, b, c) for a in (0, 1) for b in (0, 4) for c in (0, 2)]


def test_cells_cover_an_axis_and_are_not_too_short():
    draw = random.Random(0)
    for _ in range(100):
        size, shortest = draw.randint(1, 50), draw.randint(1, 8)
        pieces = [sorted(draw.sample(range(size + 1), 2)) for _ in range(draw.randint(1, 9))]
        edges = cell_edges(pieces, size, shortest)
        assert (edges[0], edges[-1]) == (0, size)
        assert all(b - a >= min(shortest, size) for a, b in itertools.pairwise(edges))
        for start, stop in pieces:
            touched = [i for i, (a, b) in enumerate(itertools.pairwise(edges)) if a < stop and b > start]
            assert list(cells_of(edges, start, stop)) == touched


def test_arguments_are_monais_in_its_order():
    ours, monais = (
        list(inspect.signature(kind).parameters.values()) for kind in (GMRSlidingWindowInferer, SlidingWindowInferer)
    )
    assert [(each.name, each.default) for each in ours[: len(monais)]] == [(each.name, each.default) for each in monais]
    assert [each.name for each in ours[len(monais) :]] == ["grow_roi", "reduction"]


ARGMAX = {"roi_size": 8, "reduction": "argmax"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: GMRSlidingWindowInferer(8, reduction="argmin"), "'argmin' is unknown: use one of None, 'argmax'"),
        (lambda x: GMRSlidingWindowInferer(**ARGMAX)(x, torch.nn.Identity()), "0 everywhere over the only channel"),
        (lambda x: GMRSlidingWindowInferer(8, reduction=torch.mean)(x, torch.nn.Identity()), "must keep the batch"),
        (lambda x: GMRSlidingWindowInferer(8, reduction=lambda y: 3)(x, torch.nn.Identity()), "of type int"),
        (
            lambda x: GMRSlidingWindowInferer(8)(x, torch.nn.Identity(), process_fn=print),
            "process_fn is an argument of",
        ),
        (lambda x: SymmetryInferer(GMRSlidingWindowInferer(**ARGMAX)), "labels have no mean"),
    ],
)
def test_what_cannot_be_reduced_is_one_sentence(make, message):
    with pytest.raises(ConfigurationError, match=rf"\A(?!.*\n).*{message}"):
        make(noise(1, 1, 20, 20))


def test_outputs_of_unlike_shapes_are_one_sentence():
    shapes = iter([2, 3])
    with pytest.raises(ConfigurationError, match="like the first output"):
        GMRSlidingWindowInferer(8)(noise(1, 1, 20, 20), lambda x: x.expand(-1, next(shapes), -1, -1))
