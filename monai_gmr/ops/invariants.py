r"""Scalars that no rotation changes, from responses whose components rotations mix.

The components of a response are the coefficients of the harmonics of one order: a rotation of the input mixes them orthogonally, so lengths
and inner products stay.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch

from monai_gmr.ops.dense_gradients import dense_gradients, takes_dense_gradients
from monai_gmr.ops.memory_format import is_recorded

NORM_SMOOTHING = 1e-2


def norm_variance(components: int) -> float:
    """Variance of the Euclidean norm of independent standard normal components."""
    return components - 2 * (math.gamma((components + 1) / 2) / math.gamma(components / 2)) ** 2


def inner_product_scale(components: int) -> float:
    r"""What brings an inner product to the variance that a length has, see :func:`invariants`.

    For two independent normal responses of :math:`c` components of variance :math:`s` the former's is :math:`s c / (2 (c + 1))`, because
    :math:`|a|^2 / (|a|^2 + |b|^2)` is Beta distributed and independent of the sum; the latter's is :math:`s` times :func:`norm_variance`.
    """
    return math.sqrt(norm_variance(components) * 2 * (components + 1) / components)


def invariants(
    responses: torch.Tensor,
    norms: list[int],
    inner_products: list[int],
    components: list[int],
    smoothing: float = NORM_SMOOTHING,
) -> torch.Tensor:
    r"""Reduce the responses of several orders to scalars: the reference for :func:`fused_invariants`.

    Lengths :math:`\sqrt{|a|^2 + \epsilon^2} - \epsilon`, and scaled inner products relative to the size of both responses,
    :math:`a \cdot b / \sqrt{|a|^2 + |b|^2 + \epsilon^2}`: they grow linearly, measure the angle between two responses, and have a sign.

    Args:
        responses: ``(batch, groups, sum of (norms + inner products) * components, voxels)``, by order, then channel, then component.
        norms: how many channels of each order become lengths.
        inner_products: how many become inner products with those that become lengths, from the first on; at most ``norms``, and 0 for
            order 0.
        components: components of each order, 0 for the order that stays as it is.

    Returns ``(batch, groups, sum of norms and inner products, voxels)``.
    """
    rows = [(n + m) * max(count, 1) for n, m, count in zip(norms, inner_products, components)]
    parts: list[torch.Tensor] = []
    # not narrow(): its gradient is a tensor of zeros of the whole size for each part
    for index, part in enumerate(responses.split(rows, dim=2)):
        count = components[index]
        if count == 0:
            parts.append(part)
            continue
        if part.shape[2] == 0:
            continue
        part = part.unflatten(2, [-1, count])
        part = part if part.dtype == torch.float64 else part.float()
        left, right = part.split([norms[index], inner_products[index]], dim=2)
        squared = (part * part).sum(dim=3)
        first, second = squared.split([norms[index], inner_products[index]], dim=2)
        # smoothed: their gradients are finite, and 0 at 0
        parts.append(((first + smoothing**2).sqrt() - smoothing).to(responses.dtype))
        if inner_products[index] > 0:
            rest = inner_products[index]
            product = (left.narrow(2, 0, rest) * right).sum(dim=3)
            inner = product / (first.narrow(2, 0, rest) + second + smoothing**2).sqrt()
            parts.append((inner * inner_product_scale(count)).to(responses.dtype))
    return torch.cat(parts, dim=2)


def _reduce(part: torch.Tensor, norms: int, target: torch.Tensor) -> list[torch.Tensor]:
    """Write norms and inner products of an order ``(..., channels, components, voxels)`` to ``target`` ``(..., channels, voxels)``; returns
    what :func:`_reduce_backward` needs."""
    left, right = part[..., :norms, :, :], part[..., norms:, :, :]
    products, count = right.shape[-3], part.shape[-2]
    saved = []
    lengths = _add_products(part.new_tensor(NORM_SMOOTHING**2), left, left)
    if products:
        common = _add_products(lengths[..., :products, :], right, right).sqrt_().div_(inner_product_scale(count))
        target[..., norms:, :] = _add_products(None, left[..., :products, :, :], right).div_(common)
        saved.append(common)
    target[..., :norms, :] = lengths.sqrt_() - NORM_SMOOTHING
    return [*saved, lengths]


def _reduce_backward(
    part: torch.Tensor,
    norms: int,
    result: torch.Tensor,
    saved: list[torch.Tensor],
    gradient: torch.Tensor,
    target: torch.Tensor,
) -> None:
    """Write the gradient of :func:`_reduce` for ``part`` to ``target``; ``result`` is what it wrote, ``gradient`` that one's."""
    left, right = part[..., :norms, :, :], part[..., norms:, :, :]
    products, count = right.shape[-3], part.shape[-2]
    own = gradient[..., :norms, :] / saved[-1]
    if products == 0:
        target.copy_(own.unsqueeze(-2) * left)
        return
    common = saved[0]
    across = gradient[..., norms:, :] / common
    # what the common length takes away from both
    shrink = (across * result[..., norms:, :]).div_(common).div_(-(inner_product_scale(count) ** 2))
    own[..., :products, :] += shrink
    own, across, shrink = own.unsqueeze(-2), across.unsqueeze(-2), shrink.unsqueeze(-2)
    paired = left[..., :products, :, :]
    target[..., :products, :, :] = (own[..., :products, :, :] * paired).addcmul_(across, right)
    target[..., products:norms, :, :] = own[..., products:, :, :] * left[..., products:, :, :]
    target[..., norms:, :, :] = (across * paired).addcmul_(shrink, right)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class _Invariants(torch.autograd.Function):
    """:func:`invariants` with a gradient in few passes over memory, which is what they cost."""

    @staticmethod
    def forward(responses: torch.Tensor, norms: list[int], inner_products: list[int], components: list[int]) -> Any:
        wide = _wide(responses)
        out = torch.empty_like(responses[:, :, : sum(norms) + sum(inner_products)])
        saved: list[torch.Tensor] = []
        for rows, channels, n, m, count in _runs(norms, inner_products, components):
            if count == 0:
                out[:, :, channels] = wide[:, :, rows]
                continue
            part = wide[:, :, rows].unflatten(2, (-1, n + m, count))
            saved += _reduce(part, n, out[:, :, channels].unflatten(2, (-1, n + m)))
        return out, *saved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        responses, ctx.norms, ctx.inner_products, ctx.components = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(responses, *output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor | None, *_: Any) -> tuple:
        if gradient is None:
            return None, None, None, None
        responses, out, *saved = ctx.saved_tensors
        sizes = (ctx.norms, ctx.inner_products, ctx.components)
        if takes_dense_gradients(gradient):
            found = dense_gradients(lambda x: invariants(x, *sizes), (responses,), (True,), gradient)
            return *found, None, None, None
        result, wide, gradient = torch.empty_like(responses), _wide(responses), _wide(gradient)
        for rows, channels, n, m, count in _runs(*sizes):
            if count == 0:
                result[:, :, rows] = gradient[:, :, channels]
                continue
            own = [saved.pop(0) for _ in range(2 if m else 1)]
            got, wanted = (tensor[:, :, channels].unflatten(2, (-1, n + m)) for tensor in (out, gradient))
            part, target = (tensor[:, :, rows].unflatten(2, (-1, n + m, count)) for tensor in (wide, result))
            _reduce_backward(part, n, got, own, wanted, target)
        return result, None, None, None


def _runs(norms: list[int], inner_products: list[int], components: list[int]) -> Iterator[tuple]:
    """Rows of the responses and of the scalars, norms, inner products and components of orders; those of equal sizes in one."""
    row = channel = 0
    for (n, m, count), run in itertools.groupby(zip(norms, inner_products, components)):
        channels = (n + m) * len(list(run))
        rows = channels * max(count, 1)
        if rows:
            yield slice(row, row + rows), slice(channel, channel + channels), n, m, count
        row, channel = row + rows, channel + channels


def _add_products(start: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``start`` plus the products over the components, axis -2, one after the other: no temporary of the size of ``a``."""
    first = a[..., 0, :], b[..., 0, :]
    total = torch.mul(*first) if start is None else torch.addcmul(start, *first)
    for i in range(1, a.shape[-2]):
        total.addcmul_(a[..., i, :], b[..., i, :])
    return total


def fused_invariants(
    responses: torch.Tensor, norms: list[int], inner_products: list[int], components: list[int]
) -> torch.Tensor:
    """:func:`invariants`, faster where it runs as it is written: the compilers fuse the other one themselves."""
    if is_recorded(responses):
        return invariants(responses, norms, inner_products, components)
    return _Invariants.apply(responses, norms, inner_products, components)[0]
