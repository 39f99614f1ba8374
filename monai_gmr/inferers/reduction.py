"""Mean, median, votes, maximum and spread of the outputs for many views, computed incrementally."""

from __future__ import annotations

import torch

from monai_gmr.inferers.tokens import TokenCheck

REDUCTIONS = ("mean", "median", "vote", "max")
UNCERTAINTIES = ("std", "entropy")


class ViewReduction:
    """Reduces tensors one by one.

    Args:
        reduce: "mean", "median" (the mean of the middle two of an even number), "vote" (share of the tensors in which a channel is the
            largest, the first of equal ones; with a ``threshold``, share in which it exceeds that) or "max". Only the median keeps all
            tensors.
        channel_axis: the axis of the classes.
        threshold: threshold of a vote; default: the largest channel wins.
        std, mean: whether :meth:`std` and ``mean`` are needed in addition to :meth:`result`.

    Example:
        >>> reduction = ViewReduction("mean", std=True)
        >>> for value in (1.0, 2.0, 6.0):
        ...     reduction.add(torch.tensor([value]))
        >>> reduction.result(), reduction.std().round(decimals=3)
        (tensor([3.]), tensor([2.1600]))

    Source:
        B. P. Welford, Technometrics 4 (1962) 419.
    """

    def __init__(
        self,
        reduce: str,
        *,
        channel_axis: int = 1,
        threshold: float | None = None,
        std: bool = False,
        mean: bool = False,
    ) -> None:
        self.reduce, self.channel_axis, self.threshold = reduce, channel_axis, threshold
        self.needs_std, self.needs_mean = std, mean or std or reduce == "mean"
        self.count, self.shape = 0, torch.Size()
        self.mean = self._squares = self._reduced = torch.empty(0)
        self._values: list[torch.Tensor] = []
        # checks whether outputs that are reduced as features change like a map
        self.tokens: TokenCheck | None = None

    def add(self, value: torch.Tensor) -> None:
        """Adds a tensor of the same shape; half precision and integers become float32."""
        value = value if value.dtype in (torch.float32, torch.float64) else value.float()
        self.count, self.shape = self.count + 1, value.shape
        if self.reduce == "median":
            # a copy: the network may return a buffer and write to it again
            self._values.append(value.clone())
        elif self.reduce == "max":
            self._reduced = value.clone() if self.count == 1 else torch.maximum(self._reduced, value)
        elif self.reduce == "vote":
            if self.threshold is not None:
                votes = (value > self.threshold).to(value.dtype)
            else:
                winner = value.argmax(self.channel_axis, keepdim=True)
                votes = torch.zeros_like(value).scatter_(self.channel_axis, winner, 1.0)
            self._reduced = votes if self.count == 1 else self._reduced.add_(votes)
        if self.needs_mean and self.count == 1:
            self.mean = value.clone()
            self._squares = torch.zeros_like(value) if self.needs_std else self._squares
        elif self.needs_mean:
            change = value - self.mean
            self.mean.add_(change, alpha=1.0 / self.count)
            if self.needs_std:
                self._squares.addcmul_(change, value - self.mean)

    def result(self) -> torch.Tensor:
        """The reduced tensor."""
        if self.reduce == "mean":
            return self.mean
        if self.reduce == "max":
            return self._reduced
        if self.reduce == "vote":
            return self._reduced / self.count
        stack = torch.stack(self._values)
        lower = stack.kthvalue((self.count + 1) // 2, 0).values
        return lower if self.count % 2 else (lower + stack.kthvalue(self.count // 2 + 1, 0).values) / 2

    def std(self) -> torch.Tensor:
        """Standard deviation (divided by the number of tensors, not by one less)."""
        return (self._squares / self.count).clamp_min(0.0).sqrt()


def entropy(probabilities: torch.Tensor, channel_axis: int, exclusive: bool) -> torch.Tensor:
    """Entropy of a distribution over classes, in nats: one channel for ``exclusive`` classes that sum to one, else one for each class.

    Example:
        >>> entropy(torch.tensor([[0.5, 0.5]]), 1, True), entropy(torch.tensor([[0.5, 0.25]]), 1, False)
        (tensor([[0.6931]]), tensor([[0.6931, 0.5623]]))
    """
    # a mean of ones may exceed one by rounding
    probabilities = probabilities.clamp(0.0, 1.0)
    terms = -torch.xlogy(probabilities, probabilities)
    if exclusive:
        return terms.sum(channel_axis, keepdim=True)
    return terms - torch.xlogy(1 - probabilities, 1 - probabilities)
