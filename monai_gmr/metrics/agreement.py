"""Metrics of how much a prediction changes between two views of an image."""

from __future__ import annotations

from typing import Any

import torch

from monai_gmr.metrics.checks import CheckedMetric


class ChangedVoxels(CheckedMetric):
    """Share of voxels whose class differs, from one-hot or region maps of shape ``(B, C, *spatial)``.

    Example:
        >>> metric = ChangedVoxels()
        >>> _ = metric(torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]), torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]))
        >>> metric.aggregate()
        tensor(0.2500)
    """

    least_axes, most_axes = 3, 5
    shape_words = "(B, C, *spatial), one map for each class or region"

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        assert y is not None
        return torch.ne(y_pred, y).any(1).flatten(1).float().mean(1, keepdim=True)

    def aggregate(self, *args: object, **kwargs: object) -> torch.Tensor:
        """Returns the mean over cases."""
        return torch.as_tensor(self._gathered()).mean()


class ChangedProbability(ChangedVoxels):
    """Largest change of the probability of any class, from probabilities of shape ``(B, C)``.

    Example:
        >>> metric = ChangedProbability()
        >>> _ = metric(torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.5]]))
        >>> metric.aggregate()
        tensor(0.2500)
    """

    least_axes, most_axes = 2, 2
    shape_words = "(B, C), one probability for each class"
    one_hot, probabilities = (), ("y_pred", "y")

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        assert y is not None
        return (y_pred - y).abs().amax(1, keepdim=True)


class SameClass(ChangedProbability):
    """Share of cases whose most probable class is the same, from probabilities of shape ``(B, C)``."""

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        assert y is not None
        return (y_pred.argmax(1) == y.argmax(1)).float()[:, None]
