"""Left- and right-handed phantoms: nets that keep mirror images cannot distinguish them, nets that keep rotations alone can."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from monai_gmr.metrics import equivariance_error
from monai_gmr.networks.nets import GMRResNet
from monai_gmr.symmetry import named_group, rotation_matrix

SIZES = {2: 24, 3: 16}


def curve(dims, rng):
    """Points ``(n, dims)`` of a right-handed spiral, or of a right-handed screw with its axis, about the origin, of radius 1."""
    angle = np.linspace(0, (2.0 + rng.uniform(0, 0.5)) * np.pi, 400)
    if dims == 2:
        radius = angle / angle[-1]
        return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    height = np.linspace(-0.8, 0.8, len(angle))
    return np.stack([0.55 * np.cos(angle), 0.55 * np.sin(angle), height], axis=1)


def phantoms(dims, count, seed):
    """Images ``(count, 1, *size)`` of curves in random poses, and whether each is mirrored, a coin for each."""
    rng, size = np.random.default_rng(seed), SIZES[dims]
    labels, images = rng.integers(2, size=count), np.zeros((count, 1, *[size] * dims), np.float32)
    for image, label in zip(images, labels):
        points = curve(dims, rng)
        if label:
            points[:, 0] *= -1
        axis = rng.standard_normal(3)
        rotation = rotation_matrix(dims, rng.uniform(0, 360), axis / np.linalg.norm(axis) if dims == 3 else None)
        places = points @ rotation.T * 0.4 * size + (size - 1) / 2 + rng.uniform(-1, 1, dims)
        np.add.at(image[0], tuple(np.round(places).astype(int).clip(0, size - 1).T), 1.0)
        image[0] = gaussian_filter(np.minimum(image[0], 1), 0.7) + 0.02 * rng.standard_normal(image[0].shape)
    return torch.from_numpy(images), torch.from_numpy(labels)


def accuracy_after_training(dims, keeps, steps):
    torch.manual_seed(0)
    conv = ("gmr_harmonic", {"keeps": keeps})
    net = GMRResNet(
        dims, 1, 2, layers=(1, 1), width=16, kernel_sizes=5 if dims == 2 else 3, stem_kernel_size=3, conv=conv
    )
    x, y = phantoms(dims, 400, seed=1)
    optimizer = torch.optim.AdamW(net.parameters(), 0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(x), (32,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    x, y = phantoms(dims, 200, seed=2)
    with torch.no_grad():
        return net.eval(), x, float((net(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize(("dims", "steps"), [(2, 120), (3, 120)])
def test_handedness_is_learned_by_nets_that_keep_rotations_alone(dims, steps):
    net, x, accuracy = accuracy_after_training(dims, "rotations", steps)
    assert accuracy > 0.95
    rotations = named_group({2: "4", 3: "432"}[dims], dims)
    assert equivariance_error(net, x[:4], rotations).worst < 1e-5
    mirrored = x.flip(2)
    with torch.no_grad():
        changed = (net(x).argmax(1) != net(mirrored).argmax(1)).float().mean()
    assert changed > 0.9


@pytest.mark.parametrize("dims", [2, 3])
def test_a_net_that_keeps_mirror_images_cannot_learn_it(dims):
    """It gives a phantom and its mirror image one answer, so it is at chance whatever it learns from the noise."""
    net, x, accuracy = accuracy_after_training(dims, "all", 30)
    assert abs(accuracy - 0.5) < 0.12
    with torch.no_grad():
        assert torch.allclose(net(x), net(x.flip(2)), atol=1e-4)
