"""Gradients by the dense operation that a kernel replaces, for cases that the kernel's backward pass does not support."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from monai_gmr.ops.autocast import without_autocast
from monai_gmr.ops.recorded import is_transformed


def takes_dense_gradients(gradient: torch.Tensor) -> bool:
    """Whether a backward pass must use :func:`dense_gradients`: for gradients of gradients, batched gradients and gradients with a
    tangent."""
    return torch.is_grad_enabled() or is_transformed(gradient)


def dense_gradients(
    run: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor | None],
    needed: Sequence[bool],
    gradient: torch.Tensor,
) -> list[torch.Tensor | None]:
    """Gradients of a dense operation ``run(*inputs)``, ``None`` if not needed; in grad mode they are differentiable."""
    again = torch.is_grad_enabled()

    def alone(each: torch.Tensor | None, asked: bool) -> torch.Tensor | None:
        # a new tensor for each input: inputs computed from each other get no gradient through each other
        if each is None or (again and not asked):
            return each
        return each.view_as(each) if again else each.detach().requires_grad_(asked)

    inputs = [alone(*pair) for pair in zip(inputs, needed)]
    wanted = [each for each, asked in zip(inputs, needed) if asked and each is not None]
    if not wanted:
        return [None] * len(inputs)
    # within autocast too, the backward pass uses the precision of the forward pass
    with torch.enable_grad(), without_autocast(gradient):
        y = run(*inputs)
        # the result may not depend on an input
        gradients = iter(torch.autograd.grad(y, wanted, gradient, create_graph=again, allow_unused=True))
    return [next(gradients) if asked else None for asked in needed]
