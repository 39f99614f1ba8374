r"""Sums over shells, mixed to rings, in one generated loop: what backend "compiled" is made of.

.. math:: a_{sc}(v) = \sum_{t \in s} x_c(v + t), \qquad u_{rc}(v) = \sum_s b_{rs}\, a_{sc}(v)

Shells are disjoint, so a voxel costs an addition a tap, whatever the number of rings, and R multiplications a shell; the sums stay in
registers. Channels come last, so all taps of a vector lie at constant distances and a row of voxels meets the same cache lines again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

# all sums of a voxel belong into one loop: without these inductor writes every shell's sum to memory
OPTIONS = {
    "realize_reads_threshold": 10**6,
    "realize_opcount_threshold": 10**6,
    "realize_acc_reads_threshold": 10**6,
    "realize_acc_reads_size_threshold": None,
    "cpp.dynamic_threads": True,
}

Taps = tuple[tuple[tuple[int, ...], ...], ...]


def taps_by_shell(shells: torch.Tensor, live: int, dilation: Sequence[int]) -> Taps:
    """Places of the taps of each shell, in voxels from the window's first.

    Args:
        shells: integers of the window's shape, the shell of each tap.
        live: number of shells that count.
        dilation: distance of neighbouring taps in voxels, one an axis.

    Example:
        >>> taps_by_shell(torch.tensor([2, 1, 0, 1, 2]), 2, [3])
        (((6,),), ((3,), (9,)))
    """
    places: list[list[tuple[int, ...]]] = [[] for _ in range(live)]
    numbers = shells.flatten().tolist()
    for shell, place in zip(numbers, itertools.product(*map(range, shells.shape))):
        if shell < live:
            places[shell].append(tuple(p * d for p, d in zip(place, dilation)))
    return tuple(map(tuple, places))


def make_ring_sums(taps: Taps, with_shells: bool) -> Callable[..., tuple[torch.Tensor, ...]]:
    """A function of ``(padded, basis, *sizes)`` that :func:`torch.compile` can turn into one loop.

    Args:
        taps: :func:`taps_by_shell`.
        with_shells: whether it returns the sums of the shells as well.

    Returns:
        function of ``padded``, ``(batch, *padded sizes, channels)``, ``basis``, ``(rings, shells)``, and the sizes of the result, to
        ``(batch, *sizes, rings, channels)`` and, if asked for, ``(batch, *sizes, shells, channels)``.

    Example:
        >>> sums = make_ring_sums(taps_by_shell(torch.tensor([1, 0, 1]), 2, [1]), with_shells=True)
        >>> rings, shells = sums(torch.tensor([0.0, 1.0, 2.0, 0.0])[None, :, None], torch.tensor([[1.0, 10.0]]), 2)
        >>> rings.flatten().tolist(), shells[..., 0].tolist()
        ([21.0, 12.0], [[[1.0, 2.0], [2.0, 1.0]]])
    """

    def ring_sums(padded: torch.Tensor, basis: torch.Tensor, *sizes: int) -> tuple[torch.Tensor, ...]:
        sums: list[torch.Tensor] = []
        for shell in taps:
            views = [padded[(slice(None), *(slice(p, p + n) for p, n in zip(place, sizes)))] for place in shell]
            total = views[0]
            for view in views[1:]:
                total = total + view
            sums.append(total)
        rings = []
        for row in basis.unbind(0):
            mixed = row[0] * sums[0]
            for factor, total in zip(row.unbind(0)[1:], sums[1:]):
                mixed = mixed + factor * total
            rings.append(mixed)
        mixed_and_pure = [torch.stack(rings, dim=-2)]
        if with_shells:
            mixed_and_pure.append(torch.stack(sums, dim=-2))
        return tuple(mixed_and_pure)

    return ring_sums
