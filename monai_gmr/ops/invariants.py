r"""Scalars that are unchanged by rotations, from responses whose components rotations mix.

The components of a response are the coefficients of the harmonics of one order: a rotation of the input mixes them orthogonally, so lengths
and inner products are unchanged.
"""

import math

import torch

NORM_SMOOTHING = 1e-2


def norm_variance(components: int) -> float:
    """Variance of the Euclidean norm of independent standard normal components."""
    return components - 2 * (math.gamma((components + 1) / 2) / math.gamma(components / 2)) ** 2


def inner_product_scale(components: int) -> float:
    r"""Factor that scales an inner product to the variance of a length, see :func:`invariants`.

    For two independent normal responses with :math:`c` components of variance :math:`s`, the inner product has the variance
    :math:`s c / (2 (c + 1))`, because :math:`|a|^2 / (|a|^2 + |b|^2)` is Beta distributed and independent of the sum; the length has
    :math:`s` times :func:`norm_variance`.
    """
    return math.sqrt(norm_variance(components) * 2 * (components + 1) / components)


def invariants(
    responses: torch.Tensor,
    norms: list[int],
    inner_products: list[int],
    components: list[int],
    smoothing: float = NORM_SMOOTHING,
) -> torch.Tensor:
    r"""Reduces the responses of several orders to scalars: the reference for :func:`~monai_gmr.ops.scalars.fused_scalars`.

    The scalars are lengths :math:`\sqrt{|a|^2 + \epsilon^2} - \epsilon`, and scaled inner products relative to the size of both responses,
    :math:`a \cdot b / \sqrt{|a|^2 + |b|^2 + \epsilon^2}`: they grow linearly, measure the angle between two responses, and have a sign.

    Args:
        responses: ``(batch, groups, sum of (norms + inner products) * components, voxels)``, by order, then channel, then component.
        norms: number of channels of each order that become lengths.
        inner_products: number of channels that become inner products with the first length channels; at most ``norms``, and 0 for
            order 0.
        components: components of each order, 0 for the order whose responses are unchanged.

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
