"""Gradients by the dense operation that a kernel replaces, where its own cannot serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

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
    if not again:
        # inputs that come from each other have no gradient for each other
        leaves = (None if each is None else each.detach() for each in inputs)
        inputs = [leaf if leaf is None else leaf.requires_grad_(asked) for leaf, asked in zip(leaves, needed)]
    with torch.enable_grad():
        y = run(*inputs)
    wanted = [each for each, asked in zip(inputs, needed) if asked and each is not None]
    gradients = iter(torch.autograd.grad(y, wanted, gradient, create_graph=again))
    return [next(gradients) if asked else None for asked in needed]
