"""Inferers and views return copies: a network that works in place or a change of the result does not affect stored tensors."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer

from monai_gmr.inferers import GMRSlidingWindowInferer, SymmetryInferer, rotate_image
from monai_gmr.rotation_report.prepare_batch import PrepareBatchView
from monai_gmr.symmetry import View, point_group

INFERERS = {
    "one window": GMRSlidingWindowInferer((8, 10)),
    "one window at a time": GMRSlidingWindowInferer(6),
    "windows together": GMRSlidingWindowInferer(6, sw_batch_size=3),
    "padded": GMRSlidingWindowInferer(16),
    "upright view": SymmetryInferer(views=[np.eye(2)]),
    "views": SymmetryInferer(),
    "views together": SymmetryInferer(views_per_batch=4),
    "windows of views": SymmetryInferer(GMRSlidingWindowInferer(6)),
    "largest of views": SymmetryInferer(views=[np.eye(2)], reduce="max"),
    "median of views": SymmetryInferer(views=[np.eye(2)], reduce="median"),
}


def image(meta):
    data = torch.rand(2, 1, 8, 10, generator=torch.Generator().manual_seed(0))
    return MetaTensor(data, affine=torch.eye(4)) if meta else data


def in_place(x, condition=None):
    if condition is not None:
        condition.zero_()
    return x.mul_(2).add_(1)


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("name", INFERERS)
def test_a_network_that_works_in_place_gives_the_same_and_reaches_no_input(name, meta):
    x, condition = image(meta), image(meta) + 1
    answer = INFERERS[name](x, in_place, condition=condition)
    assert torch.allclose(torch.as_tensor(answer), image(False) * 2 + 1, atol=1e-6)
    assert torch.equal(torch.as_tensor(x), image(False))
    assert torch.equal(torch.as_tensor(condition), image(False) + 1)


@pytest.mark.parametrize("name", INFERERS)
def test_the_result_is_not_what_the_network_gave(name):
    kept = []

    def network(x):
        kept.append(x * 1)
        return kept[-1]

    answer = INFERERS[name](image(False), network)
    before = [each.clone() for each in kept]
    answer.add_(1)
    assert all(torch.equal(one, other) for one, other in zip(kept, before, strict=True))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_rotated_images_are_copies_for_every_element(dims):
    x = torch.rand(1, 1, *(4, 5, 6)[:dims])
    before = x.clone()
    for element in point_group(dims):
        rotate_image(x, element).zero_()
        assert torch.equal(x, before)


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("element", range(8))
def test_transformed_batches_are_copies_for_every_element(element, meta):
    prepare = PrepareBatchView()
    prepare.view = View("a", "group", None, point_group(2)[element])
    batch = {"image": image(meta), "label": (image(meta) > 0.5).float()}
    for part in prepare(batch):
        part.fill_(3)
    assert torch.equal(torch.as_tensor(batch["image"]), image(False))
    assert torch.equal(torch.as_tensor(batch["label"]), (image(False) > 0.5).float())


def test_monais_inferers_are_wrapped_with_copies():
    x = image(False)
    SymmetryInferer(SimpleInferer(), views=[np.eye(2)])(x, in_place)
    assert torch.equal(x, image(False))
