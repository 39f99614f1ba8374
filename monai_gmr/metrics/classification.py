"""Classification scores."""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics import ConfusionMatrixMetric, ROCAUCMetric
from scipy.stats import rankdata

from monai_gmr.metrics.checks import CheckedMetric
from monai_gmr.utils import ConfigurationError


class MeanRecallMetric(CheckedMetric, ConfusionMatrixMetric):
    """Balanced accuracy: the recall per class, averaged over the classes that occur; with ``multi_label`` that of yes and no for each
    label, averaged over the labels.

    This is ``sklearn.metrics.balanced_accuracy_score``, of the class or of each label. MONAI's ``"balanced accuracy"`` is the mean of
    sensitivity and specificity of each class against all others, which is high for any guess if there are many classes, and NaN for a
    label that all or no images have; here such a label counts with the one recall that it has.

    Raises:
        ConfigurationError: if ``y_pred`` and ``y`` are not both ``(B, C)``, or ``(B, C, *spatial)``, of zeros and ones, have several
            classes at once without ``multi_label``, or a score is computed without images.

    Example:
        >>> eye = torch.eye(3)
        >>> for multi_label in (False, True):
        ...     metric = MeanRecallMetric(multi_label)
        ...     _ = metric(y_pred=eye[[0, 0, 1, 1]], y=eye[[0, 0, 0, 1]])
        ...     print(round(metric.aggregate().item(), 4))
        0.8333
        0.8889
    """

    most_axes = 5
    shape_words = "(B, C), or (B, C, *spatial), one number for each class; class indices as by AsDiscrete(to_onehot=C)"

    def __init__(self, multi_label: bool = False) -> None:
        recalls = ("sensitivity", "specificity") if multi_label else "sensitivity"
        super().__init__(metric_name=recalls, reduction="mean_batch")
        self.multi_label = multi_label

    def _check_values(self, what: str, values: torch.Tensor) -> None:
        super()._check_values(what, values)
        # the recall of predictions with all classes is 1
        if not self.multi_label and bool((values.sum(1) > 1).any()):
            raise ConfigurationError(
                f"{type(self).__name__} was given a {what} with several classes at once: give one-hot vectors, as by "
                "AsDiscrete(argmax=True, to_onehot=C), or multi_label=True."
            )

    def aggregate(self, *args: object, **kwargs: object) -> torch.Tensor:  # type: ignore[override]
        """Returns the score, a scalar tensor; ignores the arguments, which are those of MONAI's metric."""
        self._gathered()
        recalls = torch.stack([torch.as_tensor(recall) for recall in super().aggregate()])
        return recalls.nanmean(0).nanmean()


class AccuracyMetric(CheckedMetric):
    """Share of images whose class is right, from one-hot vectors; with ``multi_label`` the share of right labels over images and labels.

    These are the accuracies of MedMNIST's tables.

    Raises:
        ConfigurationError: if ``y_pred`` and ``y`` are not both ``(B, C)`` of zeros and ones, or a score is computed without images.

    Example:
        >>> eye = torch.eye(3)
        >>> for multi_label in (False, True):
        ...     metric = AccuracyMetric(multi_label)
        ...     _ = metric(y_pred=eye[[0, 0, 1, 2]], y=eye[[0, 1, 1, 2]])
        ...     print(round(metric.aggregate().item(), 4))
        0.75
        0.8333
    """

    def __init__(self, multi_label: bool = False) -> None:
        super().__init__()
        self.multi_label = multi_label

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: object) -> torch.Tensor:
        assert y is not None
        right = (y_pred == y).float()
        return right.mean(1, keepdim=True) if self.multi_label else right.amin(1, keepdim=True)

    def aggregate(self, *args: object, **kwargs: object) -> torch.Tensor:  # type: ignore[override]
        """Returns the score, a scalar tensor; ignores the arguments, which are those of MONAI's metrics."""
        return torch.as_tensor(self._gathered()).mean()


class MacroAUCMetric(CheckedMetric, ROCAUCMetric):
    """Area under the ROC curve of each class against all others, averaged over the classes with a defined area.

    MONAI's average is NaN if any class does not occur, as in a small validation split.

    Raises:
        ConfigurationError: if scores and one-hot classes are not both ``(B, C)`` or, for one class, ``(B,)``, or there are no images.

    Example:
        >>> metric = MacroAUCMetric()
        >>> _ = metric(torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]), torch.eye(3)[[0, 1]])
        >>> float(metric.aggregate())
        1.0
    """

    # a single class can have no second axis; predictions are scores
    least_axes = 1
    one_hot = ("y",)

    def __init__(self) -> None:
        super().__init__(average="none")

    def aggregate(self, *args: object, **kwargs: object) -> float:  # type: ignore[override]
        """Returns the score; ignores the arguments, which are those of MONAI's metric."""
        scores, classes = (torch.as_tensor(part).double().cpu().numpy() for part in self._gathered())
        ones = classes.sum(0)
        pairs = ones * (len(classes) - ones)
        # Mann and Whitney's count of correctly ordered pairs, from ranks; MONAI loops over the cases in Python
        above = (rankdata(scores, axis=0) * classes).sum(0) - ones * (ones + 1) / 2
        areas = np.where(pairs > 0, above / np.maximum(pairs, 1), np.nan)
        return float(np.nanmean(areas)) if np.isfinite(areas).any() else float("nan")
