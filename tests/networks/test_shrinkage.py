"""The proximal step is the minimiser that defines it."""

import math

import pytest
import torch
from torch import nn

from monai_gmr.networks.shrinkage import shrink_groups


@pytest.mark.parametrize("dims", [(0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("amount", [0.0, 0.7, 2.0])
def test_it_minimises_the_penalty_beside_the_squared_distance(dims, amount):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
    found = start.clone()
    shrink_groups(found, amount, dims)

    def objective(x):
        return float(amount * torch.linalg.vector_norm(x, dim=dims).sum() + (x - start).square().sum() / 2)

    for _ in range(50):
        other = found + 0.1 * torch.randn(start.shape, generator=generator, dtype=torch.float64)
        assert objective(found) < objective(other)


def test_groups_that_are_short_become_exactly_zero_and_stay_the_same_parameter():
    parameter = nn.Parameter(torch.tensor([[3.0, -4.0], [0.3, -0.4], [0.0, 0.0]]))
    address = parameter.data_ptr()
    factors = shrink_groups(parameter, 1.0, dims=[1])
    assert parameter.data_ptr() == address
    assert torch.allclose(parameter[0], torch.tensor([2.4, -3.2]))
    assert not parameter[1:].any()
    assert not torch.signbit(parameter[1:]).any()
    assert factors.shape == (3, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision(dtype):
    # squares of these overflow in float16
    parameter = torch.full((2, 8), 300.0, dtype=dtype)
    shrink_groups(parameter, 300 * math.sqrt(8) / 2, dims=[1])
    assert torch.allclose(parameter.double(), torch.full((2, 8), 150.0).double(), rtol=1e-2)
    shrink_groups(parameter, math.inf, dims=[0, 1])
    assert not parameter.any()


def test_amounts_by_group():
    parameter = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    shrink_groups(parameter, torch.tensor([[0.25], [2.0]]), dims=[1])
    assert parameter.tolist() == [[0.75, 0.0], [0.0, 0.0]]
