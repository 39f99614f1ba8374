"""Augmentation reaches every symmetry of the grid, rotates image and label alike, and keeps the size."""

import pytest
import torch
from monai.transforms import Compose

from monai_gmr.symmetry import point_group, transform_grid
from monai_gmr.transforms import rotation_transforms
from monai_gmr.utils import ConfigurationError


@pytest.mark.parametrize("dims", [2, 3])
def test_grid_augmentation_reaches_all_elements_of_the_group_and_nothing_else(dims):
    image = torch.rand(1, *(3,) * dims)
    elements = {tuple(transform_grid(image, g).flatten().tolist()) for g in point_group(dims)}
    augment = Compose(rotation_transforms("grid", "image", dims)).set_random_state(0)
    results = {tuple(augment({"image": image})["image"].flatten().tolist()) for _ in range(15 * len(elements))}
    assert results == elements


@pytest.mark.parametrize("dims", [2, 3])
def test_image_and_label_are_rotated_alike(dims):
    axes = torch.meshgrid(*[torch.linspace(-1, 1, 17)] * dims, indexing="ij")
    label = (sum((axis - 0.3) ** 2 for axis in axes) < 0.3).float()[None]
    augment = Compose(rotation_transforms("rotation", ["image", "label"], dims, ["bilinear", "nearest"], "zeros", 1.0))
    augment.set_random_state(0)
    for _ in range(5):
        rotated = augment({"image": label, "label": label})
        assert rotated["image"].shape == label.shape
        assert set(rotated["label"].unique().tolist()) <= {0.0, 1.0}
        assert ((rotated["image"] > 0.5) != (rotated["label"] > 0.5)).float().mean() < 0.03


def test_rotations_by_any_angle_are_drawn():
    image = torch.zeros(1, 33, 33)
    image[0, 16, 26] = 1.0
    augment = Compose(rotation_transforms("rotation", "image", 2, prob=1.0)).set_random_state(0)
    angles = []
    for _ in range(200):
        row, column = divmod(int(augment({"image": image})["image"].argmax()), 33)
        angles.append(torch.atan2(torch.tensor(row - 16.0), torch.tensor(column - 16.0)))
    counts = torch.histc(torch.stack(angles), 8, -torch.pi, torch.pi)
    assert counts.min() >= 10


def test_an_unknown_augmentation_is_one_sentence():
    with pytest.raises(
        ConfigurationError, match="augmentation='flip' is unknown: use one of 'none', 'grid', 'rotation'"
    ):
        rotation_transforms("flip", "image", 2)
