"""Checks of the arguments of all metrics of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric

from monai_gmr.utils import ConfigurationError

# softmax in half precision can exceed 0 and 1 by this
ROUNDING = 1e-3


class CheckedMetric(CumulativeIterationMetric):
    """Base class of the metrics of this folder, which checks predictions and labels before it gathers anything.

    Raises:
        ConfigurationError: if a batch is empty, predictions and labels are not tensors (or lists of tensors, one per case) of the same
            shape, their values are impossible, or a score is computed without images.
    """

    # numbers of axes that a batch can have, and in words
    least_axes, most_axes = 2, 2
    shape_words = "(B, C), one number for each class; class indices as by AsDiscrete(to_onehot=C)"
    # arguments that hold zeros and ones, and arguments that hold probabilities
    one_hot: tuple[str, ...] = ("y_pred", "y")
    probabilities: tuple[str, ...] = ()

    def __call__(self, y_pred: Any, y: Any = None, **kwargs: Any) -> Any:
        """Computes and gathers the metric of each case of a batch; the arguments are those of MONAI's metrics."""
        self._check(y_pred, y)
        return super().__call__(y_pred, y, **kwargs)

    def _check(self, y_pred: Any, y: Any) -> None:
        """Raises if a batch cannot be scored."""
        name = type(self).__name__
        for what, values in (("y_pred", y_pred), ("y", y)):
            listed = isinstance(values, (list, tuple)) and all(isinstance(each, torch.Tensor) for each in values)
            if not listed and not isinstance(values, torch.Tensor):
                raise ConfigurationError(
                    f"{name} was given a {what} that is {'None' if values is None else f'a {type(values).__name__}'}: give tensors of "
                    "shape (B, C), or lists of tensors, one a case, both for y_pred and y."
                )
        alike = isinstance(y_pred, torch.Tensor) and isinstance(y, torch.Tensor)
        if not alike and any(isinstance(each, torch.Tensor) and not each.ndim for each in (y_pred, y)):
            raise ConfigurationError(f"{name} was given a list and a single number: give one of them for each case.")
        if not alike and len(y_pred) != len(y):
            raise ConfigurationError(
                f"{name} was given {len(y_pred)} predictions and {len(y)} labels: give one of each for every case."
            )
        # each case of a list is a batch
        pairs = [(y_pred, y)] if alike else [(p[None], t[None]) for p, t in zip(y_pred, y)]
        if not pairs or not any(p.numel() or t.numel() for p, t in pairs):
            raise ConfigurationError(f"{name} was given an empty batch: give it one case or more.")
        for prediction, truth in pairs:
            if prediction.shape != truth.shape or not self.least_axes <= prediction.ndim <= self.most_axes:
                shapes = [tuple(each.shape) for each in (prediction, truth)]
                raise ConfigurationError(
                    f"{name} was given a y_pred of shape {shapes[0]} and a y of shape {shapes[1]}: give both as {self.shape_words}."
                )
            self._check_values("y_pred", prediction)
            self._check_values("y", truth)

    def _check_values(self, what: str, values: torch.Tensor) -> None:
        name = type(self).__name__
        if what in self.one_hot:
            if not bool(((values == 0) | (values == 1)).all()):
                raise ConfigurationError(
                    f"{name} was given a {what} with values other than 0 and 1: give one-hot vectors, as by "
                    "AsDiscrete(argmax=True, to_onehot=C)."
                )
        elif what in self.probabilities:
            # also false for NaN
            if not bool(((values >= -ROUNDING) & (values <= 1 + ROUNDING)).all()):
                raise ConfigurationError(
                    f"{name} was given a {what} with values other than 0 to 1: give probabilities, as by "
                    "Activations(softmax=True)."
                )
        elif bool(values.isnan().any()):
            raise ConfigurationError(
                f"{name} was given a {what} with values that are not numbers: find out where the network makes them."
            )

    def _gathered(self) -> torch.Tensor | Sequence[torch.Tensor]:
        """Returns the gathered values."""
        buffer = self.get_buffer()
        if buffer is None:
            raise ConfigurationError(f"{type(self).__name__} has no images yet: call it with predictions first.")
        return buffer
