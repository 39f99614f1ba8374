"""What judging a classifier takes beyond MONAI's handlers: scores that count every class alike, and a table with a heading."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import CSVSaver
from monai.handlers import IgniteMetricHandler
from monai.metrics import ConfusionMatrixMetric, ROCAUCMetric
from scipy.stats import rankdata

from monai_gmr.files import replacing
from monai_gmr.utils import ConfigurationError


class MeanRecallMetric(ConfusionMatrixMetric):
    """Balanced accuracy: the share of its cases that a class gets right, averaged over the classes that occur.

    This is ``sklearn.metrics.balanced_accuracy_score``. MONAI's ``"balanced accuracy"`` is another quantity, the mean of
    sensitivity and specificity of each class against all others, which with many classes is high for any guess.

    Example:
        >>> eye = torch.eye(3)
        >>> metric = MeanRecallMetric()
        >>> _ = metric(y_pred=eye[[0, 0, 1, 1]], y=eye[[0, 0, 0, 1]])
        >>> round(metric.aggregate().item(), 4)
        0.8333
    """

    def __init__(self) -> None:
        super().__init__(metric_name="sensitivity", reduction="mean_batch")

    def aggregate(self, *args: object, **kwargs: object) -> torch.Tensor:  # type: ignore[override]
        """The score, a scalar tensor; the arguments are those of MONAI's metric and are not used."""
        recalls = super().aggregate()[0]
        return torch.nanmean(torch.as_tensor(recalls))


class MacroAUCMetric(ROCAUCMetric):
    """Area under the ROC curve of each class against all others, averaged over the classes for which it is defined.

    MONAI's average is nan as soon as one class does not occur, which a validation split of few cases may well show.

    Example:
        >>> metric = MacroAUCMetric()
        >>> _ = metric(torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]), torch.eye(3)[[0, 1]])
        >>> float(metric.aggregate())
        1.0
    """

    def __init__(self) -> None:
        super().__init__(average="none")

    def aggregate(self, *args: object, **kwargs: object) -> float:  # type: ignore[override]
        """The score; the arguments are those of MONAI's metric and are not used."""
        scores, classes = (torch.as_tensor(part).double().cpu().numpy() for part in self.get_buffer())
        ones = classes.sum(0)
        pairs = ones * (len(classes) - ones)
        # Mann and Whitney's count of pairs in the right order, from ranks: MONAI walks through the cases in Python
        above = (rankdata(scores, axis=0) * classes).sum(0) - ones * (ones + 1) / 2
        areas = np.where(pairs > 0, above / np.maximum(pairs, 1), np.nan)
        return float(np.nanmean(areas)) if np.isfinite(areas).any() else float("nan")


class BalancedAccuracy(IgniteMetricHandler):
    """:class:`MeanRecallMetric` for an engine; ``output_transform`` returns one-hot predictions and labels.

    Example:
        >>> from monai.handlers import from_engine
        >>> handler = BalancedAccuracy(output_transform=from_engine(["pred", "label"]))
    """

    def __init__(self, output_transform: Callable = lambda x: x) -> None:
        super().__init__(metric_fn=MeanRecallMetric(), output_transform=output_transform, save_details=False)


class MacroAUC(IgniteMetricHandler):
    """:class:`MacroAUCMetric` for an engine; ``output_transform`` returns probabilities and one-hot labels.

    Example:
        >>> from monai.handlers import from_engine
        >>> handler = MacroAUC(output_transform=from_engine(["prob", "label"]))
    """

    def __init__(self, output_transform: Callable = lambda x: x) -> None:
        super().__init__(metric_fn=MacroAUCMetric(), output_transform=output_transform, save_details=False)


def class_and_probabilities(classes: Sequence[int] | None = None) -> Callable:
    """``output_transform`` for ``monai.handlers.ClassificationSaver``: the class of a case, then all probabilities.

    Args:
        classes: label values that the outputs of the network stand for; default ``0, 1, ...``.

    Returns:
        function from an engine's output, whose ``pred`` are probabilities, to one vector a case.

    Example:
        >>> class_and_probabilities(classes=(4, 7))([{"pred": torch.tensor([0.25, 0.75])}])
        [tensor([7.0000, 0.2500, 0.7500])]
    """

    def output_transform(output: Sequence[Mapping[str, torch.Tensor]]) -> list[torch.Tensor]:
        rows = []
        for item in output:
            probabilities = torch.as_tensor(item["pred"]).cpu()
            index = int(probabilities.argmax())
            label = index if classes is None else classes[index]
            rows.append(torch.cat([torch.tensor([float(label)]), probabilities.float()]))
        return rows

    return output_transform


class HeadedCSVSaver(CSVSaver):
    """``monai.data.CSVSaver`` whose file begins with the names of its columns and appears complete or not at all.

    Args:
        output_dir: directory of the file.
        filename: name of the file, ending in ``.csv``.
        columns: names of the values of a case, which follow the name of the case.
        cases: names of all cases that may come; a file that is there with others is then not replaced.

    Raises:
        ConfigurationError: when the file is there and holds predictions of other cases.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> saver = HeadedCSVSaver(folder, "predictions.csv", ["class", "probability"])
        >>> saver.save(np.array([2, 0.75]), {"filename_or_obj": "cell 1"})
        >>> saver.finalize()
        >>> print(Path(folder, "predictions.csv").read_text().strip())
        filename,class,probability
        cell 1,2,0.75
    """

    def __init__(
        self, output_dir: str | Path, filename: str, columns: Sequence[str], cases: Sequence[str] | None = None
    ) -> None:
        super().__init__(output_dir=output_dir, filename=filename, overwrite=False)
        self.columns = list(columns)
        if cases is not None and self._filepath.is_file():
            with open(self._filepath, newline="", encoding="utf-8", errors="replace") as file:
                there = [row[0] for row in csv.reader(file) if row][1:]
            others = sorted(set(there) - set(cases))
            if others:
                raise ConfigurationError(
                    f"{self._filepath} holds predictions of other images, such as {others[0]}, and would be replaced: give another "
                    "--output_dir."
                )

    def finalize(self) -> None:
        """Write every case that was saved, under a temporary name first.

        Raises:
            ConfigurationError: when a case does not have one value a column.
        """
        rows = [["filename", *self.columns]]
        for case, values in self.get_cache().items():
            if values.size != len(self.columns):
                raise ConfigurationError(
                    f"{case} has {values.size} values for the {len(self.columns)} columns {self.columns}: give as many."
                )
            rows.append([case, *(f"{value:.6g}" for value in values.flatten())])
        with replacing(self._filepath) as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file, delimiter=self.delimiter, lineterminator="\n").writerows(rows)
        self.reset_cache()
