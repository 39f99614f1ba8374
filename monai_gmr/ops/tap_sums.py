r"""Sums over taps, in a form that inductor makes one loop of: what backend "compiled" runs angular factors with.

.. math:: y_{mc}(v) = \sum_s \sum_{t \in s} f_m(t)\, x_{sc}(v + t)

Channels come last, so all taps of a vector lie at constant distances and a row of voxels meets the same cache lines again.
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
    # a product and the sum that it goes into are one instruction, rounded once
    "cpp.enable_floating_point_contract_flag": "fast",
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


def _view(padded: torch.Tensor, place: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    """The image seen through one tap."""
    return padded[(slice(None), *(slice(p, p + n) for p, n in zip(place, sizes)))]


def make_tap_sums(
    shells: Sequence[int],
    shape: Sequence[int],
    dilation: Sequence[int],
    factors: Sequence[Sequence[float]],
    gather: bool,
) -> Callable[..., tuple[torch.Tensor, ...]]:
    """A function of ``(padded, sizes)`` that adds up taps with a factor each, from shells to components or back.

    Args:
        shells: the shell of each tap; taps below 0 do not count.
        shape: the window's shape.
        dilation: distance of neighbouring taps in voxels, one an axis.
        factors: of each component, of each tap; those of 0 cost nothing.
        gather: from components to shells: the adjoint up to the sign of the factors at mirrored taps.

    Returns:
        function of ``padded``, ``(batch, *padded sizes, shells, channels)``, and the sizes of the result, to
        ``(batch, *sizes, components, channels)``; with ``gather`` from components to shells.

    Example:
        >>> sums = make_tap_sums([0, -1, 0], [3], [1], [[-1.0, 0.0, 1.0]], gather=False)
        >>> sums(torch.tensor([1.0, 2.0, 4.0])[None, :, None, None], (1,))[0].flatten()
        tensor([3.])
    """
    places = list(itertools.product(*(range(0, n * d, d) for n, d in zip(shape, dilation))))
    terms = [
        (shell, component, place, row[tap])
        for tap, (shell, place) in enumerate(zip(shells, places))
        for component, row in enumerate(factors)
        if shell >= 0 and row[tap] != 0
    ]
    outputs = max(shells) + 1 if gather else len(factors)

    def tap_sums(padded: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
        views = {place: _view(padded, place, sizes) for _, _, place, _ in terms}
        totals: list[torch.Tensor | None] = [None] * outputs
        for shell, component, place, factor in terms:
            target, source = (shell, component) if gather else (component, shell)
            value = views[place][..., source, :] * factor
            total = totals[target]
            totals[target] = value if total is None else total + value
        empty = torch.zeros_like(_view(padded, [0] * len(shape), sizes)[..., 0, :])
        return (torch.stack([empty if total is None else total for total in totals], dim=-2),)

    return tap_sums
