"""Lengths and inner products of responses in one generated loop each way, for backend "compiled"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from monai_gmr.ops.compiled_loops import Loop, can_compile, run_loop, takes_loops
from monai_gmr.ops.invariants import NORM_SMOOTHING, inner_product_scale, invariants, invariants_of_order


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum of products over the components, axis -2, without a reduction: there are few."""
    total = a[..., 0, :] * b[..., 0, :]
    for i in range(1, a.shape[-2]):
        total = total + a[..., i, :] * b[..., i, :]
    return total


class Invariants(NamedTuple):
    """Norms and inner products of one order, or their gradient: :func:`~monai_gmr.ops.invariants.invariants_of_order`, channels last.

    Attributes:
        norms: how many channels become lengths; the others become inner products with the first ones.
        gradient: whether it is the gradient.
    """

    norms: int
    gradient: bool

    def function(self) -> Callable:
        """``(batch, voxels, components, channels)`` to ``(batch, voxels, channels)``; with the latter's gradient to the former's."""

        def reduce(part: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
            left, right, paired = _split(part, self.norms)
            squared = _dot(left, left) + NORM_SMOOTHING**2
            lengths = squared.sqrt() - NORM_SMOOTHING
            if right.shape[-1] == 0:
                return (lengths,)
            common = (squared[..., : right.shape[-1]] + _dot(right, right)).sqrt()
            products = _dot(paired, right) / common * inner_product_scale(part.shape[-2])
            return (torch.cat([lengths, products], dim=-1),)

        def reduce_backward(
            part: torch.Tensor, sizes: Sequence[int], gradient: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            left, right, paired = _split(part, self.norms)
            pairs = right.shape[-1]
            squared = _dot(left, left) + NORM_SMOOTHING**2
            own = (gradient[..., : self.norms] / squared.sqrt()).unsqueeze(-2)
            if pairs == 0:
                return (own * left,)
            common = squared[..., :pairs] + _dot(right, right)
            across = gradient[..., self.norms :] * inner_product_scale(part.shape[-2]) / common.sqrt()
            # what the common length takes away from both
            shrink = (across * _dot(paired, right) / common).unsqueeze(-2)
            across = across.unsqueeze(-2)
            first = (own[..., :pairs] - shrink) * paired + across * right
            rest = own[..., pairs:] * left[..., pairs:]
            return (torch.cat([first, rest, across * paired - shrink * right], dim=-1),)

        return reduce_backward if self.gradient else reduce

    def examples(self, batch: int, sizes: Sequence[int], channels: Sequence[int]) -> list[torch.Tensor]:
        """The gradient of the result, where it is for the gradient."""
        return [torch.zeros((batch, *sizes, channels[-1]))] if self.gradient else []


def _split(part: torch.Tensor, norms: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Channels that become lengths, channels that become inner products, and those of the former that these are paired with."""
    left, right = part[..., :norms], part[..., norms:]
    return left, right, left[..., : right.shape[-1]]


def _run(part: torch.Tensor, norms: int, *gradient: torch.Tensor) -> torch.Tensor:
    sizes = (part.shape[1],)
    loop = Loop(Invariants(norms, bool(gradient)), part.shape[0], sizes, sizes, tuple(part.shape[2:]))
    return run_loop(loop, part, *gradient)[0]


@torch.library.custom_op("monai_gmr::compiled_invariants", mutates_args=())
def compiled_invariants(part: torch.Tensor, norms: int) -> torch.Tensor:
    """Norms and inner products of one order above 0, with a gradient for ``part``; saved is ``part`` alone.

    Args:
        part: ``(batch, voxels, components, channels)``, float32, contiguous.
        norms: how many of its channels become lengths.

    Returns:
        ``(batch, voxels, channels)``.
    """
    return _run(part, norms)


@compiled_invariants.register_fake
def _(part, norms):
    return part.new_empty((*part.shape[:2], part.shape[3]))


@torch.library.custom_op("monai_gmr::compiled_invariants_backward", mutates_args=())
def _gradient(gradient: torch.Tensor, part: torch.Tensor, norms: int) -> torch.Tensor:
    return _run(part, norms, gradient.contiguous())


@_gradient.register_fake
def _(gradient, part, norms):
    return torch.empty_like(part)


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    part, ctx.norms = inputs
    ctx.save_for_backward(part)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple:
    if torch.is_grad_enabled():
        # a gradient that is to be differentiated itself
        (part,) = ctx.saved_tensors
        channels, components = part.shape[3], part.shape[2]
        responses = part.permute(0, 3, 2, 1).flatten(1, 2).unsqueeze(1)
        y = invariants(responses, [ctx.norms], [channels - ctx.norms], [components])[:, 0].transpose(1, 2)
        return *torch.autograd.grad(y, part, gradient, create_graph=True), None
    return _gradient(gradient, *ctx.saved_tensors, ctx.norms), None


compiled_invariants.register_autograd(_backward, setup_context=_setup_context)


def _has_loops(last: torch.Tensor, norms: int) -> bool:
    """Whether there are loops for ``(..., voxels, components, channels)``: float32 on a CPU, contiguous, a size that repeats."""
    return takes_loops(last) and last.is_contiguous() and can_compile((last.shape, norms))


def looped_invariants_of_order(part: torch.Tensor, norms: int) -> torch.Tensor:
    """:func:`~monai_gmr.ops.invariants.invariants_of_order`, by a generated loop where there is one.

    Args:
        part: ``(..., channels, components, voxels)``; there are loops where the channels are last in memory.
        norms: how many of its channels become lengths.

    Returns:
        ``(..., channels, voxels)``, with the memory format of ``part``.

    Example:
        >>> part = torch.tensor([[3.0, 4.0], [4.0, -3.0]]).reshape(1, 2, 2, 1)
        >>> looped_invariants_of_order(part, 1).flatten().round(decimals=2).tolist()
        [4.989999771118164, 0.0]
    """
    last = part.transpose(-3, -1)
    if not _has_loops(last, norms):
        return invariants_of_order(part, norms)
    found = compiled_invariants(last.reshape(-1, *last.shape[-3:]), norms)
    return found.reshape(*last.shape[:-2], last.shape[-1]).transpose(-1, -2)
