"""Each variant of the harmonic layer is another function."""

import pytest
import torch
from harmonic_variants import VARIANTS, make_net
from monai.networks.layers import Conv

from monai_gmr.networks.layers.factories import register_layers


@pytest.fixture(autouse=True)
def factories_as_before():
    yield
    register_layers()
    assert Conv["GMRHARMONIC", 2].__module__.startswith("monai_gmr.")


def answer(name):
    torch.manual_seed(0)
    net = make_net(2, name)
    with torch.no_grad():
        return net(torch.rand(2, 1, 16, 16))


def test_variants_differ():
    answers = [answer(name) for name in VARIANTS]
    for index, one in enumerate(answers):
        assert all((one - other).norm() > 1e-3 * one.norm() for other in answers[:index])
