"""Samples of parts of a group of rotations, as functions of uniform numbers and of the extent of the part, with gradients for the
extent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial

# closer to 0 or 1 than this, the gradient of a relaxed Bernoulli variable is that at this distance
CERTAINTY = 0.05


def _leads_out(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Mask of the values that a step moves further out of [0, 1]."""
    return ((x > 1) & (step > 0)) | ((x < 0) & (step < 0))


class _HeldInUnit(torch.autograd.Function):
    """A clamp to [0, 1] whose gradient vanishes only where a descent step would lead further out."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.clamp(0.0, 1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        # descent steps go against the gradient
        return gradients[0].masked_fill(_leads_out(x, -gradients[0]), 0.0)


class _HeldInUnitWithForwardGradient(_HeldInUnit):
    """The same with support for ``torch.func.jvp``."""

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return tangents[0].masked_fill(_leads_out(x, tangents[0]), 0.0)


def held_in_unit(x: torch.Tensor) -> torch.Tensor:
    """Clamp of a learned number to [0, 1], both ends included, whose gradient leads back inside.

    Example:
        >>> x = torch.tensor([1.5, 1.5], requires_grad=True)
        >>> (held_in_unit(x) * torch.tensor([1.0, -1.0])).sum().backward()  # descent makes the first smaller, the second larger
        >>> held_in_unit(x).tolist(), x.grad.tolist()
        ([1.0, 1.0], [1.0, 0.0])
    """
    # torch.compile cannot trace functions with a jvp
    function = _HeldInUnit if torch.compiler.is_compiling() else _HeldInUnitWithForwardGradient
    return function.apply(x)


def interval_angles(uniforms: torch.Tensor, extent: torch.Tensor) -> torch.Tensor:
    """Angles in radians, uniform on ``[-pi * extent, pi * extent)``, from uniform numbers in [0, 1).

    Example:
        >>> interval_angles(torch.tensor([0.0, 0.5, 0.75]), torch.tensor(0.5))
        tensor([-1.5708,  0.0000,  0.7854])
    """
    return math.pi * extent * (2 * uniforms - 1)


def _angle_measure(x: torch.Tensor) -> torch.Tensor:
    """``(x - sin x) / x^3``, accurate near 0; times ``x^3 / pi`` it is the share of all rotations below an angle."""
    square = x * x
    series = 1 / 6 - square * (1 / 120 - square * (1 / 5040 - square * (1 / 362880 - square / 39916800)))
    near = x.abs() < 0.3
    safe = x.masked_fill(near, 1.0)
    return torch.where(near, series, (safe - safe.sin()) / safe**3)


def _stretch_polynomial(degree: int) -> tuple[float, ...]:
    """Coefficients, the highest first, of ``x / s`` as a function of ``2 s^2 / LARGEST_SQUARE - 1``, with ``s^3 = 6 (x - sin x)``.

    ``s`` is an odd function of the angle ``x``, in radians, and smooth beyond ``pi``: degree 20 gives 1e-14.
    """
    angles = math.pi * np.sin(np.linspace(0.0, np.pi / 2, 400)) ** 2
    measure = _angle_measure(torch.as_tensor(angles, device="cpu")).numpy()
    stretch = (6 * measure) ** (-1 / 3)
    fitted = Chebyshev.fit((angles / stretch) ** 2, stretch, degree, domain=[0, LARGEST_SQUARE])
    return tuple(fitted.convert(kind=Polynomial, domain=fitted.domain, window=fitted.window).coef[::-1].tolist())


# s^2 of the angle pi
LARGEST_SQUARE = (6 * math.pi) ** (2 / 3)
STRETCH = _stretch_polynomial(20)


def cone_angles(uniforms: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    r"""Angles in radians of rotations drawn uniformly among those of at most ``largest``, from uniform numbers in [0, 1].

    .. math:: p(\omega) \propto \sin^2(\omega / 2), \qquad u = (\omega - \sin\omega) / (\Omega - \sin\Omega)

    Solved by a polynomial in ``s^2``, where ``s^3 = 6 (x - sin x)`` is known: 1e-14 in float64, with few operations. The gradient with
    respect to the largest angle is the exact one of the implicit function, for each sample.

    Args:
        uniforms: any shape.
        largest: one number, 0 to pi.

    Example:
        >>> cone_angles(torch.tensor([0.0, 0.5, 1.0]), torch.tensor(math.pi))
        tensor([0.0000, 2.3099, 3.1416])
    """
    # no_grad would not stop torch.func.jvp
    uniforms, fixed = uniforms.detach(), largest.detach()
    reach = 6 * _angle_measure(fixed)
    # s of the angle, and of the largest angle
    root = (uniforms * reach).pow(1 / 3)
    place = (root * fixed).square().mul(2 / LARGEST_SQUARE).sub(1.0)
    stretch = torch.full_like(place, STRETCH[0])
    for coefficient in STRETCH[1:]:
        stretch = stretch.mul_(place).add_(coefficient)
    share = (root * stretch).clamp_max(1.0)
    angle = share * fixed
    # u (1 - cos Omega) / (1 - cos omega), its limit for angles of 0
    still = angle == 0
    ratio = (0.5 * fixed).sin() / (0.5 * angle).sin().masked_fill(still, 1.0)
    change = torch.where(still, share, uniforms * ratio.square())
    # adds 0, but carries the first-order dependence on the largest angle
    return angle + change * (largest - fixed)


def share_below(angles: torch.Tensor) -> torch.Tensor:
    """Share of all rotations in 3D by less than these angles in radians; the inverse of :func:`cone_angles`.

    Example:
        >>> share_below(torch.tensor([0.0, math.pi / 2, math.pi]))
        tensor([0.0000, 0.1817, 1.0000])
    """
    return angles**3 * _angle_measure(angles) / math.pi


def plane_rotations(angles: torch.Tensor) -> torch.Tensor:
    """Rotation matrices ``(..., 2, 2)`` by angles in radians.

    Example:
        >>> plane_rotations(torch.tensor([math.pi / 2])).round()
        tensor([[[-0., -1.],
                 [ 1., -0.]]])
    """
    rows = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1)
    return rows.unflatten(-1, (2, 2))


def space_rotations(axes: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotation matrices ``(..., 3, 3)`` about unit vectors ``(..., 3)`` by angles ``(...)`` in radians (Rodrigues' formula).

    Example:
        >>> space_rotations(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(math.pi)).round() + 0.0
        tensor([[-1.,  0.,  0.],
                [ 0., -1.,  0.],
                [ 0.,  0.,  1.]])
    """
    x, y, z = axes.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    sine, versine = angles.sin()[..., None, None], 2 * (angles / 2).sin()[..., None, None] ** 2
    return torch.eye(3, dtype=axes.dtype, device=axes.device) + sine * cross + versine * cross @ cross


def quaternion_of(uniforms: torch.Tensor) -> torch.Tensor:
    """Unit quaternions ``(..., 4)``, scalar last, of uniformly distributed rotations, from three uniform numbers ``(..., 3)``.

    Three zeros give the identity.

    Example:
        >>> quaternion_of(torch.zeros(3))
        tensor([0., 0., 0., 1.])

    Source:
        Shoemake, Uniform random rotations, Graphics Gems III, 1992.
    """
    first, second, third = uniforms.unbind(-1)
    inner, outer = first.sqrt(), (1 - first).sqrt()
    second, third = 2 * math.pi * second, 2 * math.pi * third
    return torch.stack([inner * second.sin(), inner * second.cos(), outer * third.sin(), outer * third.cos()], -1)


def even_uniforms(count: int) -> torch.Tensor:
    """Numbers ``(count, 3)``, float64, that :func:`quaternion_of` maps to evenly spread rotations, the identity first.

    Example:
        >>> even_uniforms(1)
        tensor([[0., 0., 0.]], dtype=torch.float64)

    Source:
        Alexa, Super-Fibonacci spirals, CVPR 2022, without its shift by half a sample.
    """
    index = torch.arange(count, dtype=torch.float64)
    return torch.stack([index / count, (index / math.sqrt(2)) % 1, (index / 1.533751168755204288118041) % 1], -1)


def quaternion_product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Quaternion of the rotation by ``second``, then by ``first``, ``(..., 4)``, scalar last.

    Example:
        >>> quaternion_product(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0, 0.0]))
        tensor([0., 0., 1., 0.])
    """
    first, second = torch.broadcast_tensors(first, second)
    v, w = first[..., :3], second[..., :3]
    scalar = first[..., 3] * second[..., 3] - (v * w).sum(-1)
    vector = first[..., 3:] * w + second[..., 3:] * v + torch.linalg.cross(v, w)
    return torch.cat([vector, scalar.unsqueeze(-1)], -1)


def axis_and_angle(quaternions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors ``(..., 3)`` and angles ``(...)`` from 0 to pi of unit quaternions ``(..., 4)``; the identity gets the last axis.

    Example:
        >>> axis_and_angle(torch.tensor([0.0, 0.0, 0.0, -1.0]))
        (tensor([0., 0., 1.]), tensor(0.))
    """
    vector = quaternions[..., :3] * torch.where(quaternions[..., 3:] < 0, -1.0, 1.0)
    length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    # created on the device, because a GPU would wait for a copy
    last = torch.eye(3, dtype=vector.dtype, device=vector.device)[2]
    axis = torch.where(length > 0, vector / length.clamp_min(1e-30), last)
    return axis, 2 * torch.atan2(length.squeeze(-1), quaternions[..., 3].abs())


def relaxed_bernoulli(probability: torch.Tensor, uniforms: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""Numbers from 0 to 1 that tend to 1 with a probability, else to 0, as the temperature goes to 0.

    .. math:: z = \sigma\big((\operatorname{logit} p + \operatorname{logit} u) / T\big)

    A probability of 0 or 1 gives exactly 0 or 1. Gradients are those of the formula; below .05 and above .95 they are taken at these
    values, so that they never vanish.

    Args:
        probability: 0 to 1.
        uniforms: independent uniform numbers in (0, 1), of the result's shape.
        temperature: above 0.

    Example:
        >>> relaxed_bernoulli(torch.tensor([0.0, 0.5, 0.5, 1.0]), torch.tensor([0.9, 0.9, 0.2, 0.1]), 0.1).round(decimals=3)
        tensor([0., 1., 0., 1.])

    Source:
        Maddison et al., The concrete distribution, arXiv 1611.00712.
    """
    inside = probability + (probability.clamp(CERTAINTY, 1 - CERTAINTY) - probability).detach()
    soft = torch.sigmoid((torch.logit(inside) + torch.logit(uniforms)) / temperature)
    with torch.no_grad():
        exact = torch.sigmoid((torch.logit(probability.clamp(1e-12, 1 - 1e-12)) + torch.logit(uniforms)) / temperature)
        exact = torch.where(probability <= 0, 0.0, torch.where(probability >= 1, 1.0, exact))
    return soft + (exact - soft).detach()
