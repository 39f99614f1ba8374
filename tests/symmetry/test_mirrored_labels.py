"""Labels exchanged in mirror images: in test-time averages, in random transforms, and back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from torch import nn

from monai_gmr.inferers import SymmetryInferer
from monai_gmr.symmetry import element_name, is_mirror, point_group, transform_grid
from monai_gmr.symmetry.mirrored_labels import check_label_pairs, exchange_channels, exchange_labels, mirror_labels
from monai_gmr.transforms import GridSymmetry, GridSymmetryd, RandGridSymmetryd
from monai_gmr.utils import ConfigurationError

PAIRS = [(1, 2), (3, 5)]


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_an_exchange_is_its_own_inverse_and_that_of_one_hot_channels(labels):
    x = torch.tensor(labels)
    exchanged = exchange_labels(x, PAIRS)
    assert torch.equal(exchange_labels(exchanged, PAIRS), x)
    one_hot = nn.functional.one_hot(x, 7)
    assert torch.equal(exchange_channels(one_hot, PAIRS, axis=1).argmax(1), exchanged)


def test_labels_of_every_form():
    classes = torch.tensor([0, 1, 2])
    assert mirror_labels(classes, [(1, 2)], axis=1).tolist() == [0, 2, 1]
    assert mirror_labels(classes[:, None], [(1, 2)], axis=1).tolist() == [[0], [2], [1]]
    one_hot = torch.eye(3)[:, :, None, None].expand(-1, -1, 2, 2)
    assert torch.equal(mirror_labels(one_hot, [(1, 2)], axis=1), one_hot[:, [0, 2, 1]])


@pytest.mark.parametrize("dims", [2, 3])
def test_half_of_the_group_are_mirrors(dims):
    mirrors = [is_mirror(g) for g in point_group(dims)]
    assert sum(mirrors) * 2 == len(mirrors)
    assert not is_mirror(np.eye(dims))


def two_sided(size=(12, 16)):
    """Two equal bodies, labelled 1 at the start of the first axis and 2 at its end."""
    image, label = torch.zeros(1, 1, *size), torch.zeros(1, 1, *size, dtype=torch.long)
    for value, rows in ((1, slice(1, 4)), (2, slice(8, 11))):
        image[..., rows, 3:9], label[..., rows, 3:9] = 1, value
    return image, label


class LeftAndRight(nn.Module):
    """A net without symmetry that labels the two-sided picture correctly: 1 in the first half of axis 0, else 2."""

    def forward(self, x):
        half = torch.arange(x.shape[2])[:, None] < x.shape[2] / 2
        return torch.cat([1 - x, x * half, x * ~half], 1)


def test_the_average_over_a_mirror_keeps_left_and_right_apart_with_pairs_alone():
    image, label = two_sided()
    views = [np.eye(2), np.diag([-1, 1])]
    net = LeftAndRight()
    assert torch.equal(net(image).argmax(1, keepdim=True), label)
    blind = SymmetryInferer(views=views)(image, net)
    assert torch.equal(blind[:, 1], blind[:, 2])
    assert not torch.equal(blind.argmax(1, keepdim=True), label)
    seeing = SymmetryInferer(views=views, mirrored_labels=[(1, 2)])(image, net)
    assert torch.equal(seeing.argmax(1, keepdim=True), label)
    assert torch.equal(seeing, net(image))


@pytest.mark.parametrize("reduce", ["mean", "median", "vote", "max"])
def test_answers_to_mirror_images_are_mirrored_with_their_labels(reduce):
    torch.manual_seed(0)
    net, x = nn.Conv3d(1, 3, 3, padding=1), torch.randn(1, 1, 5, 6, 7)
    inferer = SymmetryInferer(activation="softmax", reduce=reduce, mirrored_labels=[(1, 2)], views_per_batch=4)
    with torch.no_grad():
        upright = inferer(x, net)
        for g in point_group(3)[::5]:
            expected = transform_grid(upright, g)
            expected = exchange_channels(expected, [(1, 2)], 1) if is_mirror(g) else expected
            assert torch.allclose(inferer(transform_grid(x, g), net), expected, atol=1e-5)


def test_class_scores_are_exchanged_too():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    inferer = SymmetryInferer(views="group", mirrored_labels=[(0, 2)])
    x = torch.randn(2, 1, 3, 4)
    with torch.no_grad():
        net = nn.Sequential(nn.AdaptiveAvgPool2d((3, 4)), net)
        assert torch.allclose(inferer(x.flip(2), net), inferer(x, net)[:, [2, 1, 0]], atol=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("lazy", [False, True])
def test_label_maps_are_exchanged_under_mirrors_and_back(dims, lazy):
    shape = (1, 4, 5, 6)[: dims + 1]
    label = MetaTensor(torch.randint(0, 6, shape).float(), affine=torch.eye(4, dtype=torch.float64))
    for index, element in enumerate(point_group(dims)):
        transform = GridSymmetry(index, lazy=lazy, mirrored_labels=PAIRS)
        one_hot = nn.functional.one_hot(label.as_tensor().long()[0], 6).movedim(-1, 0).float()
        with_channels = Compose([transform], lazy=lazy)(MetaTensor(one_hot, affine=label.affine))
        moved = Compose([transform], lazy=lazy)(label)
        assert torch.equal(with_channels.argmax(0), moved.as_tensor()[0])
        if not lazy:
            expected = transform_grid(label.as_tensor(), element)
            assert torch.equal(moved.as_tensor(), exchange_labels(expected, PAIRS) if is_mirror(element) else expected)
            assert torch.equal(transform.inverse(moved).as_tensor(), label.as_tensor())


@pytest.mark.parametrize("lazy", [False, True])
def test_random_symmetries_of_a_dictionary(lazy):
    image, label = (each[0].float() for each in two_sided((12, 12)))
    data = {
        name: MetaTensor(each, affine=torch.eye(4, dtype=torch.float64))
        for name, each in (("image", image), ("label", label))
    }
    image[0, 0, 0] = 0.5  # which a mirror moves
    draw = RandGridSymmetryd(["image", "label"], prob=1.0, group="m", axis=0, mirrored_labels={"label": [(1, 2)]})
    chain = Compose([draw], lazy=lazy).set_random_state(3)
    mirrored = 0
    for _ in range(12):
        out = chain(data)
        # the bodies are their own mirror image along the first axis, so correct labels stay in place
        mirrored += not torch.equal(out["image"].as_tensor(), image)
        rows = torch.nonzero(out["label"].as_tensor()[0] == 1)[:, 0]
        assert int(rows.max()) < 6
        back = Invertd(["image", "label"], chain)(out)
        assert torch.equal(back["label"].as_tensor(), label)
        assert torch.equal(back["image"].as_tensor(), image)
    assert mirrored


def test_without_pairs_nothing_changes():
    label = torch.randint(0, 4, (1, 5, 6))
    pair = GridSymmetryd(["a", "b"], element_name(np.diag([-1, 1])), mirrored_labels={"b": [(1, 2)]})(
        {"a": label, "b": label}
    )
    assert torch.equal(pair["a"], label.flip(1))
    assert torch.equal(pair["b"], exchange_labels(label.flip(1), [(1, 2)]))


@pytest.mark.parametrize("pairs", [[(1, 1)], [(1, 2), (2, 3)], [(1,)], [(-1, 2)], [(1.5, 2)], 3, "ab", [[1, 2, 3]]])
def test_bad_pairs_are_one_sentence(pairs):
    for make in (
        check_label_pairs,
        lambda given: SymmetryInferer(mirrored_labels=given),
        lambda given: GridSymmetry(1, mirrored_labels=given),
    ):
        with pytest.raises(ConfigurationError, match="give pairs of whole numbers") as found:
            make(pairs)
        assert "\n" not in str(found.value)


def test_pairs_of_other_keys_or_channels_are_one_sentence():
    with pytest.raises(ConfigurationError, match="give the pairs of each key"):
        RandGridSymmetryd(["image"], mirrored_labels={"label": [(1, 2)]})
    with pytest.raises(ConfigurationError, match="give labels below 2"):
        SymmetryInferer(mirrored_labels=[(1, 2)])(torch.rand(1, 1, 4, 4), nn.Conv2d(1, 2, 1))


def test_one_hot_labels_without_such_a_channel_are_one_sentence():
    mirror = GridSymmetry(np.diag([-1, 1]), mirrored_labels=PAIRS)
    with pytest.raises(ConfigurationError, match=r"\(3, 5\).* has 4 channels: give labels below 4"):
        mirror(torch.zeros(4, 5, 6))
