"""The product of an axis with a banded matrix equals a product in float64, with its gradients, for all geometries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_gmr.ops.cpu.resample import band_of, cpp_resample
from monai_gmr.ops.resample import linear_matrix, lowpass_matrix, window_matrix

pytestmark = pytest.mark.usefixtures("processor")


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 7), density=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_a_band_holds_all_of_a_matrix(rows, columns, density, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator)
    matrix *= torch.rand(rows, columns, generator=generator) < density
    first, weights = band_of(matrix)
    found = torch.zeros_like(matrix).scatter_(1, first[:, None] + torch.arange(weights.shape[1]), weights)
    assert torch.equal(found, matrix)


@pytest.mark.parametrize("before", [1, 3])
@pytest.mark.parametrize("after", [1, 5, 16, 77, 2100])
@pytest.mark.parametrize("kind", ["lowpass", "linear", "window", "dense"])
def test_forward_and_gradient(before, after, kind):
    like = torch.zeros(1)
    matrix = {
        "lowpass": lowpass_matrix(13, 2, 0.8, like),
        "linear": linear_matrix(13, 25, 2, like),
        "window": window_matrix(13, 7, 3, 2, 1, like),
        "dense": torch.randn(4, 13),
    }[kind]
    x = torch.randn(before, 13, after, requires_grad=True)
    found, expected = cpp_resample(x, matrix), torch.matmul(matrix.double(), x.double())
    seed = torch.randn_like(found)
    gradients = torch.autograd.grad(found, x, seed)[0], torch.matmul(matrix.T.double(), seed.double())
    for a, b in ((found, expected), gradients):
        assert (a - b).norm() <= 1e-6 * b.norm()


def test_gradients_can_be_differentiated():
    x, matrix = torch.randn(2, 5, 3, requires_grad=True), linear_matrix(5, 9, 2, torch.zeros(1))
    (own,) = torch.autograd.grad(cpp_resample(x, matrix).pow(3).sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(own.square().sum(), x)
    (own,) = torch.autograd.grad(torch.matmul(matrix, x).pow(3).sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(own.square().sum(), x)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
