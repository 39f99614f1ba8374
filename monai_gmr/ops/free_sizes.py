"""Sizes of images in a recorded graph: they are symbols, and a branch on one would be valid only for the recorded size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# experimental: torch has no public function that compares symbols without binding them
from torch.fx.experimental.symbolic_shapes import statically_known_true


def _is_strict_export() -> bool:
    """Whether ``torch.export`` reads the code with ``strict=True``: symbols then look like numbers."""
    return torch.compiler.is_exporting() and torch.compiler.is_dynamo_compiling()


def is_free(sizes: Sequence[Any]) -> bool:
    """Whether any size is a symbol: a tensor under ``torch.jit.trace``, a ``torch.SymInt`` under ``torch.export`` with dynamic shapes."""
    return any(isinstance(n, torch.Tensor | torch.SymInt) for n in sizes) or _is_strict_export()


@torch.jit.unused
def has_symbols(x: torch.Tensor) -> bool:
    """Whether sizes of a tensor are symbols of ``torch.export``."""
    return any(isinstance(n, torch.SymInt) for n in x.shape) or _is_strict_export()


def same_size(one: Any, other: Any) -> bool:
    """Whether two sizes are equal; for symbols, whether they are the same symbol, or equal in the recorded graph.

    Example:
        >>> same_size(8, 8), same_size(torch.tensor(8), 9)
        (True, False)
    """
    if isinstance(one, torch.SymInt) or isinstance(other, torch.SymInt):
        # a comparison would bind the graph to this size
        return statically_known_true(one == other)
    return recorded_number(one) == recorded_number(other)


def recorded_number(size: Any) -> Any:
    """A size as a number: the size of the recorded image if ``torch.jit.trace`` made it a tensor.

    Example:
        >>> recorded_number(torch.tensor(8)), recorded_number(8)
        (8, 8)
    """
    return size.tolist() if isinstance(size, torch.Tensor) else size


def all_equal(sizes: Sequence[Any], others: Sequence[Any]) -> torch.Tensor:
    """Whether sizes are equal, as a tensor, for graphs in which they are symbols.

    Example:
        >>> all_equal([torch.tensor(8), 9], [8, 9]), all_equal([8], [9])
        (tensor(True), tensor(False))
    """
    one, other = (
        torch.stack([n if isinstance(n, torch.Tensor) else torch.scalar_tensor(n, dtype=torch.int64) for n in each])
        for each in (sizes, others)
    )
    return (one == other).all()


def voxels(count: int, like: torch.Tensor, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Indices of the voxels along an axis, ``(count,)``, on the device of an image.

    Also in a recorded graph, where ``torch.arange`` would keep the device of the recording.
    """
    if not torch.jit.is_scripting() and torch.jit.is_tracing():
        return (like.new_ones([count], dtype=torch.int64).cumsum(0) - 1).to(dtype)
    return torch.arange(count, dtype=dtype, device=like.device)
