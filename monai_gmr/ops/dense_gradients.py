"""Gradients by the dense operation that a kernel replaces, where its own cannot serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from monai_gmr.ops.autocast import without_autocast
from monai_gmr.ops.recorded import is_transformed


def takes_dense_gradients(gradient: torch.Tensor) -> bool:
    """Whether a backward pass is to compute :func:`dense_gradients`: those that are to be differentiated again, a batch of
    them, and those with a tangent."""
    return torch.is_grad_enabled() or is_transformed(gradient)


def dense_gradients(
    run: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor | None],
    needed: Sequence[bool],
    gradient: torch.Tensor,
) -> list[torch.Tensor | None]:
    """Gradients of a dense operation ``run(*inputs)``, ``None`` where not needed; in grad mode they can be differentiated again."""
    again = torch.is_grad_enabled()

    def alone(each: torch.Tensor | None, asked: bool) -> torch.Tensor | None:
        # inputs that come from each other have no gradient for each other
        if each is None or (again and not asked):
            return each
        return each.view_as(each) if again else each.detach().requires_grad_(asked)

    inputs = [alone(*pair) for pair in zip(inputs, needed)]
    wanted = [each for each, asked in zip(inputs, needed) if asked and each is not None]
    if not wanted:
        return [None] * len(inputs)
    # a backward pass within autocast is that of the forward pass all the same
    with torch.enable_grad(), without_autocast(gradient):
        y = run(*inputs)
        # an input may have no part in the result
        gradients = iter(torch.autograd.grad(y, wanted, gradient, create_graph=again, allow_unused=True))
    return [next(gradients) if asked else None for asked in needed]
