"""Scalars of harmonic responses: the fused operation equals the plain one, with all gradients, with and without kept terms."""

import pytest
import torch

from monai_gmr.ops.invariants import NORM_SMOOTHING, inner_product_scale, invariants
from monai_gmr.ops.kept_terms import add_kept_terms
from monai_gmr.ops.scalars import fused_scalars

# norms, inner products and components of each order
SIZES = [
    ([5, 3, 3], [0, 3, 3], [0, 2, 2]),
    ([5, 3, 2], [0, 2, 2], [0, 3, 5]),
    ([2, 4], [0, 1], [0, 1]),
    ([3, 1], [2, 0], [3, 7]),
    ([4], [0], [0]),
    ([0, 1, 0], [0, 1, 0], [0, 3, 5]),
    # order 0 between others, and not there
    ([2, 3, 2], [2, 0, 1], [3, 0, 5]),
    ([2, 3], [2, 1], [2, 2]),
]


def fused_invariants(responses, *sizes):
    return fused_scalars(responses, None, None, *sizes)


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
    # only two voxels of two groups: all voxels are computed alike, and the check's time grows with the square of their number
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


def terms_of(sizes, linear, chiral, dtype=torch.float64):
    """Random factors of two groups, ``None`` if not requested."""
    generator = torch.Generator().manual_seed(1)
    outputs = [n + m for n, m in zip(*sizes[:2])]
    columns = sum(n * count for n, count in zip(outputs, sizes[2]))
    shapes = (2, sum(outputs), columns), (2, sum(outputs))
    return [
        torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() if asked else None
        for shape, asked in zip(shapes, (linear and columns > 0, chiral))
    ]


def reference(x, linear, chiral, *sizes):
    return add_kept_terms(invariants(x, *sizes), x, *sizes, linear=linear, chiral=chiral)


@pytest.mark.parametrize(("linear", "chiral"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("sizes", SIZES)
def test_kept_terms_and_their_gradients_are_those_of_the_reference(sizes, linear, chiral):
    x, terms = responses_of(*sizes).requires_grad_(), terms_of(sizes, linear, chiral)
    weights, found = torch.rand_like(invariants(x, *sizes)), []
    inputs = [x, *(each for each in terms if each is not None)]
    for function in (fused_scalars, reference):
        y = function(x, *terms, *sizes)
        found.append((y, *torch.autograd.grad((y * weights).sum(), inputs, materialize_grads=True)))
    for one, two in zip(*found):
        assert torch.allclose(one, two, atol=1e-12)


@pytest.mark.parametrize("sizes", [SIZES[0], SIZES[1], SIZES[6]])
def test_kept_terms_have_gradients_to_the_second_order(sizes):
    inputs = [responses_of(*sizes)[:1, :, :, :2].clone().requires_grad_(), *terms_of(sizes, True, True)]
    run = lambda *inputs: fused_scalars(*inputs, *sizes)  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [SIZES[0], SIZES[1]])
def test_kept_terms_in_half_precision(sizes, dtype):
    x, terms = responses_of(*sizes, dtype=dtype).requires_grad_(), terms_of(sizes, True, True, dtype)
    exact = [each.detach().double().requires_grad_() for each in (x, *terms)]
    y, expected = fused_scalars(x, *terms, *sizes), reference(*exact, *sizes)
    assert y.dtype == dtype
    y.sum().backward()
    expected.sum().backward()
    resolution = torch.finfo(dtype).eps
    pairs = [(y, expected), *((one.grad, two.grad) for one, two in zip((x, *terms), exact))]
    for one, two in pairs:
        assert one.dtype == dtype
        assert (one - two).abs().max() <= 8 * resolution * two.abs().max()


def test_function_transforms_of_kept_terms():
    sizes = SIZES[1]
    x, (linear, chiral) = responses_of(*sizes), terms_of(sizes, True, True)
    batches = torch.stack([linear, 2 * linear]).detach(), torch.stack([chiral, -chiral]).detach()
    for batch, number in zip(batches, range(2)):
        factors = [linear.detach(), chiral.detach()]

        def loss(each, factors=factors, number=number):
            own = [each if index == number else factor for index, factor in enumerate(factors)]
            return fused_scalars(x, *own, *sizes).square().sum()

        expected = torch.stack([torch.func.grad(loss)(each) for each in batch])
        assert torch.allclose(torch.func.vmap(torch.func.grad(loss))(batch), expected)
