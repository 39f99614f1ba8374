"""What is known of the answers to many views after each of them, without keeping them."""

from __future__ import annotations

import torch

REDUCTIONS = ("mean", "median", "vote", "max")
UNCERTAINTIES = ("std", "entropy")


class ViewStream:
    """Reduces tensors that come one after the other.

    Mean and variance are updated by Welford's rule, maximum and votes as they come: memory is that of one or two
    tensors, however many come. Only the median keeps them all.

    Args:
        reduce: "mean", "median" (of an even number the mean of the middle two), "vote" (share of the tensors in which a
            channel is the largest, the first of equal ones; with a ``threshold`` the share that exceeds it) or "max".
        channel_axis: the axis of the classes, from the end.
        threshold: for "vote", what a voxel must exceed; default: the largest channel wins.
        std: whether :meth:`std` is wanted.
        mean: whether :meth:`mean` is wanted whatever ``reduce`` is.

    Example:
        >>> stream = ViewStream("mean", std=True)
        >>> for value in (1.0, 2.0, 6.0):
        ...     stream.add(torch.tensor([value]))
        >>> stream.result(), stream.std().round(decimals=3)
        (tensor([3.]), tensor([2.1600]))

    Source:
        B. P. Welford, Technometrics 4 (1962) 419.
    """

    def __init__(
        self,
        reduce: str,
        channel_axis: int = 1,
        threshold: float | None = None,
        std: bool = False,
        mean: bool = False,
    ) -> None:
        self.reduce, self.channel_axis, self.threshold = reduce, channel_axis, threshold
        self.wants_std, self.wants_mean = std, mean or std or reduce == "mean"
        self.count, self.shape = 0, torch.Size()
        self._kept: list[torch.Tensor] = []
        self._mean = self._squares = self._reduced = torch.empty(0)

    def add(self, value: torch.Tensor) -> None:
        """Take one more tensor, all of one shape; halves and whole numbers are reckoned in float32."""
        value = value if value.dtype in (torch.float32, torch.float64) else value.float()
        self.count, self.shape = self.count + 1, value.shape
        first = self.count == 1
        if self.reduce == "median":
            self._kept.append(value.clone())
        elif self.reduce == "max":
            self._reduced = value.clone() if first else torch.maximum(self._reduced, value)
        elif self.reduce == "vote":
            votes = self._votes(value)
            self._reduced = votes if first else self._reduced.add_(votes)
        if not self.wants_mean:
            return
        if first:
            # a copy: the network may hand out a buffer that it writes to again
            self._mean = value.clone()
            self._squares = torch.zeros_like(value) if self.wants_std else self._squares
            return
        change = value - self._mean
        self._mean.add_(change, alpha=1.0 / self.count)
        if self.wants_std:
            self._squares.addcmul_(change, value - self._mean)

    def _votes(self, value: torch.Tensor) -> torch.Tensor:
        if self.threshold is not None:
            return (value > self.threshold).to(value.dtype)
        winner = value.argmax(self.channel_axis, keepdim=True)
        return torch.zeros_like(value).scatter_(self.channel_axis, winner, 1.0)

    def result(self) -> torch.Tensor:
        """The reduced tensor."""
        if self.reduce == "mean":
            return self._mean
        if self.reduce == "max":
            return self._reduced
        if self.reduce == "vote":
            return self._reduced / self.count
        stack = torch.stack(self._kept)
        lower = stack.kthvalue((self.count + 1) // 2, 0).values
        return lower if self.count % 2 else (lower + stack.kthvalue(self.count // 2 + 1, 0).values) / 2

    def mean(self) -> torch.Tensor:
        """The mean."""
        return self._mean

    def std(self) -> torch.Tensor:
        """The standard deviation of all that came (divided by their number, not by one less)."""
        return (self._squares / self.count).clamp_min(0.0).sqrt()


def entropy(probabilities: torch.Tensor, channel_axis: int, exclusive: bool) -> torch.Tensor:
    """Entropy of a distribution over classes, in nats.

    Args:
        probabilities: between 0 and 1.
        channel_axis: the axis of the classes.
        exclusive: whether the channels are classes that sum to one; otherwise each is a yes or no of its own.

    Returns:
        one channel for exclusive classes, else as many as there are.

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
