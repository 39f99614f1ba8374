r"""Terms that a harmonic layer that keeps a subgroup adds to its scalars: linear terms, and terms whose sign mirroring changes.

Responses are ``(batch, groups, sum of channels * components, voxels)``, by order, then channel, then component, as in
:func:`~monai_gmr.ops.invariants.invariants`.
"""

import math

import torch

from monai_gmr.ops.invariants import NORM_SMOOTHING, inner_product_scale, norm_variance


def linear_terms(
    responses: torch.Tensor, channels: list[int], components: list[int], linear: torch.Tensor
) -> torch.Tensor:
    """``linear`` times the responses of the orders above 0, ``(batch, groups, outputs, voxels)``.

    Args:
        responses: of all orders.
        channels: channels of each order.
        components: components of each order, 0 for order 0.
        linear: ``(groups, outputs, responses of the orders above 0)``.

    Example:
        >>> linear_terms(torch.ones(1, 1, 4, 5), [2, 1], [0, 2], torch.tensor([[[0.5, 2.0]]])).flatten()
        tensor([2.5000, 2.5000, 2.5000, 2.5000, 2.5000])
    """
    rows = [n * max(count, 1) for n, count in zip(channels, components)]
    columns = [n * count for n, count in zip(channels, components)]
    parts, factors = responses.split(rows, dim=2), linear.to(responses.dtype).split(columns, dim=2)
    total = torch.jit.annotate(list[torch.Tensor], [])
    for index, part in enumerate(parts):
        if columns[index] > 0:
            product = torch.matmul(factors[index], part)
            total = [product] if len(total) == 0 else [total[0] + product]
    return total[0]


def triple_product_scale() -> float:
    r"""Factor that scales a normalised triple product to the variance of a length in 3D, see :func:`chiral_terms`.

    For three independent normal vectors :math:`\det` has the variance 6, the normaliser :math:`T` is chi-squared with 9 degrees of freedom,
    and :math:`\det / T` is homogeneous of degree 1, so its variance is :math:`9 \cdot 6 / (9 \cdot 11 \cdot 13)`.

    Example:
        >>> round(triple_product_scale(), 4)
        3.2877
    """
    return math.sqrt(norm_variance(3) * 11 * 13 / 6)


def num_chiral(norms: int, products: int, components: int) -> int:
    """Number of channels of an order with a term whose sign mirroring changes.

    In 2D (two components) this term of an inner-product channel is the cross product; in 3D for order 1 (three components) it is the triple
    product with a third response, which requires two length channels.

    Example:
        >>> num_chiral(2, 2, 2), num_chiral(2, 2, 3), num_chiral(1, 1, 3), num_chiral(2, 2, 5)
        (2, 2, 0, 0)
    """
    return products if components == 2 or (components == 3 and norms > 1) else 0


def chiral_terms(
    responses: torch.Tensor,
    norms: list[int],
    inner_products: list[int],
    components: list[int],
    factors: torch.Tensor,
    smoothing: float = NORM_SMOOTHING,
) -> torch.Tensor:
    r"""Scalars that rotations keep and whose sign mirroring changes, times ``factors``, ``(batch, groups, outputs, voxels)``.

    .. math::
        \kappa_2\, \frac{a_1 b_2 - a_2 b_1}{\sqrt{|a|^2 + |b|^2 + \epsilon^2}} \quad\text{in 2D}, \qquad
        \kappa_3\, \frac{\det(a, b, c)}{|a|^2 + |b|^2 + |c|^2 + \epsilon^2} \quad\text{of order 1 in 3D}

    For inner-product channel :math:`p`, :math:`a` is the response of length channel :math:`p`, :math:`b` is its own response, and :math:`c`
    is the response of length channel :math:`p + 1` (the first after the last). All other channels are 0.

    Args:
        norms, inner_products, components: as in :func:`~monai_gmr.ops.invariants.invariants`.
        factors: ``(groups, outputs)``.

    Example:
        >>> pair, mirrored = torch.tensor([[1.0, 0, 0, 1], [-1, 0, 0, 1]]).reshape(2, 1, 1, 4, 1)
        >>> both = [chiral_terms(y, [1], [1], [2], torch.ones(1, 2)).flatten() for y in (pair, mirrored)]
        >>> both[0][0], both[0][1] == -both[1][1]
        (tensor(0.), tensor(True))
    """
    rows = [(n + m) * max(count, 1) for n, m, count in zip(norms, inner_products, components)]
    outputs = [n + m for n, m in zip(norms, inner_products)]
    scales = factors.split(outputs, dim=1)
    parts: list[torch.Tensor] = []
    for index, part in enumerate(responses.split(rows, dim=2)):
        n, m, count = norms[index], inner_products[index], components[index]
        chiral = num_chiral(n, m, count)
        if chiral == 0:
            parts.append(part.new_zeros([part.shape[0], part.shape[1], outputs[index], part.shape[3]]))
            continue
        wide = part if part.dtype == torch.float64 else part.float()
        left, b = wide.unflatten(2, [-1, count]).split([n, m], dim=2)
        a = left.narrow(2, 0, m)
        squared = (a * a).sum(dim=3) + (b * b).sum(dim=3) + smoothing**2
        if count == 2:
            value = a.select(3, 0) * b.select(3, 1) - a.select(3, 1) * b.select(3, 0)
            value = value / squared.sqrt() * inner_product_scale(2)
        else:
            c = left.roll(-1, dims=2).narrow(2, 0, m)
            value = (a * torch.linalg.cross(b, c, dim=3)).sum(dim=3)
            value = value / (squared + (c * c).sum(dim=3)) * triple_product_scale()
        value = value * scales[index].narrow(1, n, m).to(value.dtype).unsqueeze(-1)
        zeros = value.new_zeros([value.shape[0], value.shape[1], n, value.shape[3]])
        parts.append(torch.cat([zeros, value], dim=2).to(responses.dtype))
    return torch.cat(parts, dim=2)


def add_kept_terms(
    scalars: torch.Tensor,
    responses: torch.Tensor,
    norms: list[int],
    inner_products: list[int],
    components: list[int],
    linear: torch.Tensor | None,
    chiral: torch.Tensor | None,
) -> torch.Tensor:
    """``scalars`` ``(batch, groups, outputs, voxels)`` plus :func:`linear_terms` and :func:`chiral_terms` if their factors are given."""
    if linear is not None:
        channels = [n + m for n, m in zip(norms, inner_products)]
        scalars = scalars + linear_terms(responses, channels, components, linear)
    if chiral is not None:
        scalars = scalars + chiral_terms(responses, norms, inner_products, components, chiral)
    return scalars
