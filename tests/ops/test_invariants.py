"""Invariants of harmonic responses: the fused operation is the plain one, with all its gradients."""

import pytest
import torch

from monai_gmr.ops.invariants import (
    NORM_SMOOTHING,
    fused_invariants,
    inner_product_scale,
    invariants,
)

# norms, inner products and components of each order
SIZES = [
    ([5, 3, 3], [0, 3, 3], [0, 2, 2]),
    ([5, 3, 2], [0, 2, 2], [0, 3, 5]),
    ([2, 4], [0, 1], [0, 1]),
    ([3, 1], [2, 0], [3, 7]),
    ([4], [0], [0]),
    ([0, 1, 0], [0, 1, 0], [0, 3, 5]),
]


def responses_of(norms, inner_products, components, dtype=torch.float64, seed=0):
    rows = sum((n + m) * max(count, 1) for n, m, count in zip(norms, inner_products, components))
    return torch.randn(2, 2, rows, 6, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sizes", SIZES)
def test_invariants_are_the_closed_form(sizes):
    x = responses_of(*sizes)
    expected, row = [], 0
    for n, m, count in zip(*sizes):
        part = x[:, :, row : row + (n + m) * max(count, 1)]
        row += part.shape[2]
        if count == 0:
            expected += list(part.unbind(2))
            continue
        vectors = part.unflatten(2, (n + m, count)).unbind(2)
        dot = lambda a, b: (a * b).sum(2)  # noqa: E731
        expected += [(dot(v, v) + NORM_SMOOTHING**2).sqrt() - NORM_SMOOTHING for v in vectors[:n]]
        pairs = zip(vectors, vectors[n:])
        scale = inner_product_scale(count)
        expected += [scale * dot(a, b) / (dot(a, a) + dot(b, b) + NORM_SMOOTHING**2).sqrt() for a, b in pairs]
    for function in (invariants, fused_invariants):
        assert torch.allclose(function(x, *sizes), torch.stack(expected, 2), atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_to_the_second_order(sizes):
    # two voxels of two groups: every voxel is computed alike, and the check takes the square of their number
    x = responses_of(*sizes)[:1, :, :, :2].clone().requires_grad_()
    for function in (invariants, fused_invariants):
        assert torch.autograd.gradcheck(lambda x: function(x, *sizes), x)  # noqa: B023
        assert torch.autograd.gradgradcheck(lambda x: function(x, *sizes), x)  # noqa: B023


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    sizes = SIZES[1]
    x = responses_of(*sizes, dtype=dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    out, expected = fused_invariants(x, *sizes), invariants(exact, *sizes)
    assert out.dtype == dtype
    resolution = torch.finfo(dtype).eps
    assert (out - expected).abs().max() <= 4 * resolution * expected.abs().max()
    out.sum().backward()
    expected.sum().backward()
    assert (x.grad - exact.grad).abs().max() <= 8 * resolution * exact.grad.abs().max()


def test_gradients_at_zero_are_zero():
    x = torch.zeros_like(responses_of(*SIZES[1])).requires_grad_()
    fused_invariants(x, *SIZES[1])[:, :, SIZES[1][0][0] :].sum().backward()
    assert not x.grad.any()


def test_function_transforms():
    sizes = SIZES[0]
    x = torch.stack([responses_of(*sizes, seed=seed) for seed in range(3)])
    loss = lambda x: (fused_invariants(x, *sizes) ** 2).sum()  # noqa: E731
    expected = torch.stack([torch.func.grad(loss)(each) for each in x])
    assert torch.allclose(torch.func.vmap(torch.func.grad(loss), in_dims=1)(x.movedim(0, 1)), expected)


def test_strides_of_the_input_are_kept():
    sizes = SIZES[0]
    x = responses_of(*sizes).permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    out = fused_invariants(x, *sizes)
    assert out.stride(2) == 1
    assert torch.allclose(out, invariants(x, *sizes))
