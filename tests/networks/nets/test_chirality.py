"""Left- and right-handed phantoms: nets that keep mirror images cannot distinguish them, nets that keep only rotations can."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from monai_gmr.metrics import equivariance_error
from monai_gmr.networks.nets import GMRResNet
from monai_gmr.symmetry import named_group, rotation_matrix

SIZE, NOISE = {2: 24, 3: 16}, 0.02
NETS = {2: {"layers": (1, 1), "width": 16}, 3: {"layers": (1,), "width": 12, "stem_stride": 1}}
STEPS, LEARNING_RATE = {2: 120, 3: 80}, {2: 0.02, 3: 0.05}


def spiral(points):
    """A right-handed spiral of one turn, from points ``(..., 2)`` in voxels."""
    radius, angle = np.hypot(*np.moveaxis(points, -1, 0)), np.arctan2(points[..., 1], points[..., 0])
    distance = np.abs((angle - 2 * np.pi * radius / 9 + np.pi) % (2 * np.pi) - np.pi) * radius
    return np.exp(-(distance**2) / 2) * (radius < 9)


def screw(points):
    """A right-handed screw, a core with a thread of one and a half turns, from points ``(..., 3)`` in voxels."""
    radius, angle = np.hypot(points[..., 0], points[..., 1]), np.arctan2(points[..., 1], points[..., 0])
    distance = np.abs((angle - np.pi * points[..., 2] / 4 + np.pi) % (2 * np.pi) - np.pi) * radius
    thread = np.exp(-((radius - 3.5) ** 2 + distance**2) / 2)
    return np.maximum(thread, 0.5 * (radius < 2)) * (np.abs(points[..., 2]) < 6)


def phantoms(dims, count, seed):
    """Images ``(count, 1, *size)`` in random poses, mirrored at random, and whether each is mirrored."""
    rng, size = np.random.default_rng(seed), SIZE[dims]
    labels, images = rng.integers(2, size=count), np.zeros((count, 1, *[size] * dims), np.float32)
    grid = np.stack(np.meshgrid(*[np.arange(size) - (size - 1) / 2] * dims, indexing="ij"), axis=-1)
    for image, label in zip(images, labels):
        axis = rng.standard_normal(3)
        rotation = rotation_matrix(dims, rng.uniform(0, 360), axis / np.linalg.norm(axis) if dims == 3 else 0)
        points = (grid - rng.uniform(-1, 1, dims)) @ rotation
        points[..., 0] *= -1 if label else 1
        image[0] = gaussian_filter((spiral if dims == 2 else screw)(points), 0.6)
        image[0] += NOISE * rng.standard_normal(image[0].shape)
    return torch.from_numpy(images), torch.from_numpy(labels)


def train(dims, keeps, steps):
    """A trained net, images that it has not seen, and its accuracy on them."""
    torch.manual_seed(0)
    conv = ("gmr_harmonic", {"keeps": keeps})
    net = GMRResNet(dims, 1, 2, kernel_sizes=5, stem_kernel_size=5, conv=conv, **NETS[dims])
    x, y = phantoms(dims, 300, seed=1)
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE[dims])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE[dims], steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(x), (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    x, y = phantoms(dims, 100, seed=2)
    with torch.no_grad():
        return net.eval(), x, float((net(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("dims", [2, 3])
def test_handedness_is_learned_by_nets_that_keep_rotations_alone(dims):
    net, x, accuracy = train(dims, "rotations", STEPS[dims])
    assert accuracy > 0.95
    assert equivariance_error(net, x[:2], named_group({2: "4", 3: "432"}[dims], dims)).worst < 1e-5
    with torch.no_grad():
        changed = (net(x).argmax(1) != net(x.flip(2)).argmax(1)).float().mean()
    assert changed > 0.9


@pytest.mark.parametrize("dims", [2, 3])
def test_a_net_that_keeps_mirror_images_is_at_chance(dims):
    """It gives the same answer for a phantom and its mirror image, whatever it learns from the noise."""
    net, x, accuracy = train(dims, "all", 20)
    assert 0.35 < accuracy < 0.65
    with torch.no_grad():
        assert torch.allclose(net(x), net(x.flip(2)), atol=1e-4)
