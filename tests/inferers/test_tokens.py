"""Flattened maps are distinguished from features by how they change with the views."""

import warnings

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer

from monai_gmr.inferers import SymmetryInferer
from monai_gmr.utils import ConfigurationError, SymmetryWarning


def tokens_last(x):
    return x.flatten(2).transpose(1, 2)


def patches(x):
    pool = torch.nn.AvgPool2d if x.ndim == 4 else torch.nn.AvgPool3d
    return pool(2)(x).flatten(2)


KERNEL = torch.rand(3, 1, 3, 3, generator=torch.Generator().manual_seed(0))


def convolved(x):
    """Not equivariant, like a trained network, but its output follows the image."""
    return torch.nn.functional.conv2d(x, KERNEL, padding=1).flatten(2)


MAPS = {
    "flattened": (lambda x: x.flatten(2), (8, 8)),
    "flattened without channels": (lambda x: x.flatten(1), (8, 8)),
    "tokens": (tokens_last, (8, 8)),
    "tokens of one channel": (lambda x: tokens_last(x)[..., 0], (8, 8)),
    "oblong": (tokens_last, (8, 12)),
    "patches": (patches, (16, 16)),
    "volume": (lambda x: x.flatten(2), (4, 6, 5)),
    "patches of a volume": (patches, (8, 8, 12)),
    "convolution": (convolved, (12, 12)),
    "line": (lambda x: x.flatten(1), (16,)),
}


@pytest.mark.parametrize("name", list(MAPS))
@pytest.mark.parametrize("views_per_batch", [1, 2])
def test_a_flattened_map_is_warned_of_once(name, views_per_batch):
    network, size = MAPS[name]
    x = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1))
    inferer = SymmetryInferer(views_per_batch=views_per_batch)
    with pytest.warns(SymmetryWarning, match="changes with the views like a flattened map of .*: let the network"):
        inferer(x, network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inferer(x, network)
        SymmetryInferer(spatial=False)(x, network)


def test_one_of_several_outputs():
    x = torch.rand(1, 2, 8, 8)
    with pytest.warns(SymmetryWarning, match=r"output of shape \(1, 2, 64\) .* map of 8 x 8"):
        SymmetryInferer()(x, lambda image: {"map": image, "scores": image.mean((2, 3)), "tokens": image.flatten(2)})


def test_the_mean_is_unchanged():
    """Despite the warning, the result is the mean of the outputs as they are."""
    x = torch.rand(1, 1, 8, 8)
    with pytest.warns(SymmetryWarning):
        mean = SymmetryInferer(views="4")(x, lambda image: image.flatten(2))
    expected = sum(torch.rot90(x, k, (2, 3)).flatten(2) for k in range(4)) / 4
    torch.testing.assert_close(mean, expected)


class Noise:
    """A different output for each image, as with dropout."""

    def __init__(self, *shape):
        self.shape, self.generator = shape, torch.Generator().manual_seed(3)

    def __call__(self, x):
        return torch.randn(x.shape[0], *self.shape, generator=self.generator)


def features(seed, shape, scale=1.0, offset=0.0, nonlinear=True):
    """A network whose outputs of this shape do not depend on positions in the image."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(64, 128, generator=generator)
    second = torch.randn(128, int(np.prod(shape)), generator=generator)
    bias = offset * torch.randn(int(np.prod(shape)), generator=generator)

    def network(x):
        hidden = x.flatten(1)[:, :64] @ first
        hidden = hidden.relu() if nonlinear else hidden
        return (scale * (hidden @ second) + bias).reshape(len(x), *shape)

    return network


SHAPES = [(64,), (3, 64), (64, 3), (64, 64), (1, 64), (16,), (2, 16)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["plain", "linear", "biased", "softmax", "certain"])
def test_features_with_as_many_entries_as_voxels_are_none(shape, kind):
    scale = {"softmax": 0.1, "certain": 10.0}.get(kind, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(10):
            made = features(seed, shape, scale, offset=100.0 * (kind == "biased"), nonlinear=kind != "linear")
            network = (lambda x, made=made: made(x).softmax(-1)) if kind in ("softmax", "certain") else made
            x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
            for views in ("group", "m", "2", {"angles": 45}):
                SymmetryInferer(SimpleInferer(), views)(x, network)


@pytest.mark.parametrize(
    "network",
    [
        lambda x: torch.full((len(x), 64), 0.1),
        lambda x: x.mean((1, 2, 3))[:, None].expand(-1, 64) * torch.arange(64),
        lambda x: x.flatten(1).sort(1).values,
        lambda x: torch.histc(x, 64, 0, 1)[None],
        lambda x: torch.full((len(x), 64), torch.nan),
        # sums over the axes: as many numbers as the image has rows
        lambda x: x.sum(2),
        # class numbers
        lambda x: x.flatten(1).argmax(1),
        Noise(64),
        Noise(16),
        Noise(4, 16),
    ],
)
@pytest.mark.parametrize("views", ["group", "m"])
def test_other_features_and_answers_that_do_not_change(network, views):
    for seed in range(10):
        x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            SymmetryInferer(views=views)(x, network)


def test_an_image_that_is_symmetric_itself():
    x = torch.ones(1, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SymmetryInferer()(x, lambda image: image.flatten(2))


def test_an_output_that_follows_the_shape_is_refused_as_before():
    """Its length is that of a map of 4 x 8 patches only in the first view."""
    with pytest.raises(ConfigurationError, match="outputs for two views have shapes"):
        SymmetryInferer()(torch.rand(1, 1, 16, 32), lambda x: x.sum(2))
