"""Data of the classification bundles, with checks before a network is built, and their table of predictions."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CSVSaver, Dataset

from monai_gmr.bundle.checks import find_images
from monai_gmr.data.medmnist import MedMNISTCacheDataset
from monai_gmr.files import write_rows
from monai_gmr.transforms import LoadCased, check_image
from monai_gmr.utils import ConfigurationError, warn

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy")


def check_data(
    dataset: MedMNISTCacheDataset,
    spatial_dims: int,
    num_classes: int,
    in_channels: int,
    grey: bool = False,
    multi_label: bool = False,
) -> None:
    """Raises :class:`ConfigurationError` if a network of this shape cannot be trained or evaluated on this data.

    Dimensions, channels (one if ``grey`` averages the colours) and classes must fit, and ``multi_label`` must be true exactly if images
    have several labels. Warns about classes without a training image.
    """
    name = dataset.path.name
    if dataset.spatial_dims != spatial_dims:
        raise ConfigurationError(
            f"{name} holds {dataset.spatial_dims}D images and this is a {spatial_dims}D bundle: "
            f"use the {dataset.spatial_dims}D one."
        )
    if (dataset.labels.ndim > 1) != multi_label:
        labels = f"{dataset.num_classes} labels" if dataset.labels.ndim > 1 else "one label"
        raise ConfigurationError(
            f"{name} has {labels} an image and multi_label={multi_label}: leave --multi_label out."
        )
    if num_classes < dataset.num_classes:
        raise ConfigurationError(
            f"{name} has {dataset.num_classes} classes and num_classes={num_classes}: leave --num_classes out, or keep "
            "fewer with --classes."
        )
    channels = 1 if grey else dataset.num_channels
    if in_channels != channels:
        raise ConfigurationError(
            f"the {dataset.section} images of {name} have {channels} channel{'s' * (channels != 1)} and in_channels={in_channels}: "
            "leave --in_channels out."
        )
    absent = np.flatnonzero(dataset.class_counts == 0)
    if dataset.section == "training" and len(absent):
        names = ", ".join(str(dataset.class_names[index]) for index in absent)
        warn(
            f"no training image of {name} has the class {names}: the network cannot learn it; keep others by --classes."
        )


def class_weights(class_counts: Sequence[int] | np.ndarray) -> torch.Tensor:
    """Computes loss weights that give all classes with images equal influence: ``total / (classes * count)``; 0 for the others.

    Example:
        >>> class_weights([30, 10, 0])
        tensor([0.6667, 2.0000, 0.0000])
    """
    counts = torch.as_tensor(np.asarray(class_counts), dtype=torch.float32)
    present = counts > 0
    return torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), torch.zeros_like(counts))


def label_weights(class_counts: Sequence[int] | np.ndarray, images: int) -> torch.Tensor:
    """Computes the ``pos_weight`` of ``torch.nn.BCEWithLogitsLoss`` that gives images with and without a label equal influence; 1 for a
    label that all or no images have.

    Example:
        >>> label_weights([1, 3, 0], images=4)
        tensor([3.0000, 0.3333, 1.0000])
    """
    counts = torch.as_tensor(np.asarray(class_counts), dtype=torch.float32)
    some = (counts > 0) & (counts < images)
    return torch.where(some, (images - counts) / counts.clamp(min=1), torch.ones_like(counts))


def make_loss(dataset: MedMNISTCacheDataset, balanced: bool = True, multi_label: bool = False) -> torch.nn.Module:
    """Makes the loss for a data set: cross entropy of the classes, or of each label if images have several; ``balanced`` weights it by
    :func:`class_weights` or :func:`label_weights`."""
    if multi_label:
        weights = label_weights(dataset.class_counts, len(dataset)) if balanced else None
        return torch.nn.BCEWithLogitsLoss(pos_weight=weights)
    return torch.nn.CrossEntropyLoss(class_weights(dataset.class_counts) if balanced else None)


def network_shape(
    metadata: Mapping[str, Any],
    dataset_dir: str | Path,
    flag: str,
    section: str = "training",
    *,
    grey: bool = False,
    **settings: Any,
) -> dict[str, int]:
    """Returns channels and classes of a network for a data file, and whether images have several labels: ``{"in_channels": int,
    "num_classes": int, "multi_label": bool}``.

    Args:
        metadata: content of the bundle's ``metadata.json``, used if there is no data file, so that the bundle's network can be
            built and checked without data.
        dataset_dir, flag, section, settings: as for :class:`monai_gmr.data.MedMNISTCacheDataset`.
        grey: whether colours are averaged.
    """
    try:
        data = MedMNISTCacheDataset(dataset_dir, flag, section, **settings, check_md5=False, cache_rate=0.0)
    except ConfigurationError:
        layout = metadata["network_data_format"]
        return {
            "in_channels": layout["inputs"]["image"]["num_channels"],
            "num_classes": layout["outputs"]["pred"]["num_channels"],
            "multi_label": False,
        }
    channels = 1 if grey else data.num_channels
    return {"in_channels": channels, "num_classes": data.num_classes, "multi_label": data.labels.ndim > 1}


def open_images(
    path: str | Path | None, *, spatial_dims: int = 2, in_channels: int = 1, grey: bool = False, **settings: Any
) -> Dataset:
    """Makes a dataset of images to predict, ``{"image": MetaTensor (C, *spatial)}``: a file, a folder, or a section of an npz file.

    Args:
        path: file or folder as in :func:`~monai_gmr.bundle.checks.find_images`, read by :class:`~monai_gmr.transforms.LoadCased`;
            ``None``: the npz file instead.
        spatial_dims, in_channels: spatial axes and channels of the network.
        grey: whether colours are averaged, so that images of one or three channels can be read.
        settings: arguments for the npz file, as for :class:`monai_gmr.data.MedMNISTCacheDataset`.

    Raises:
        ConfigurationError: if there is no image; on reading an item, if it cannot be predicted.

    Example:
        >>> open_images("nowhere")
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: input=nowhere does not exist: give a file or folder of .nii, .nii.gz, ...
    """
    channels = (1, 3) if grey and in_channels == 1 else in_channels
    if path is None:
        data = MedMNISTCacheDataset(**settings, cache_rate=0.0)
        first = np.zeros((data.num_channels, *data.spatial_shape))
        check_image(first, spatial_dims, channels, f"an image of {data.path}")
        return data
    files = [{"image": str(file)} for file in find_images(path, IMAGE_SUFFIXES)]
    return Dataset(files, LoadCased("image", spatial_dims, channels))


def class_and_probabilities(classes: Sequence[int] | None = None, multi_label: bool = False) -> Callable:
    """Makes an ``output_transform`` for ``monai.handlers.ClassificationSaver``: the class of a case, then its ``pred``, the probabilities.

    ``classes`` are the label values of the network's outputs, by default ``0, 1, ...``. With ``multi_label``, a case has a 1 for each
    label whose probability is at least 0.5 and a 0 for each other one, instead of a class.

    Example:
        >>> class_and_probabilities(classes=(4, 7))([{"pred": torch.tensor([0.25, 0.75])}])
        [tensor([7.0000, 0.2500, 0.7500])]
        >>> class_and_probabilities(multi_label=True)([{"pred": torch.tensor([0.75, 0.75])}])
        [tensor([1.0000, 1.0000, 0.7500, 0.7500])]
    """

    def row(item: Mapping[str, torch.Tensor]) -> torch.Tensor:
        probabilities = torch.as_tensor(item["pred"]).cpu().float()
        if multi_label:
            return torch.cat([(probabilities >= 0.5).float(), probabilities])
        index = int(probabilities.argmax())
        return torch.cat([torch.tensor([float(index if classes is None else classes[index])]), probabilities])

    return lambda output: [row(item) for item in output]


class HeadedCSVSaver(CSVSaver):
    """``monai.data.CSVSaver`` that writes the names of the columns first, and the file completely or not at all.

    Args:
        output_dir, filename: directory and name of the file.
        columns: names of the values of a case, after the case's name.
        cases: names of all possible cases; an existing file with other cases is then not replaced.

    Raises:
        ConfigurationError: if the file exists and holds predictions of other cases.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> saver = HeadedCSVSaver(folder, "predictions.csv", ["class", "probability"])
        >>> saver.save(np.array([2, 0.75]), {"filename_or_obj": "cell 1"})
        >>> saver.finalize()
        >>> print((folder / "predictions.csv").read_text().strip())
        filename,class,probability
        cell 1,2,0.75
    """

    def __init__(
        self, output_dir: str | Path, filename: str, columns: Sequence[str], cases: Sequence[str] | None = None
    ) -> None:
        super().__init__(output_dir=output_dir, filename=filename, overwrite=False)
        self.path, self.columns = Path(output_dir) / filename, list(columns)
        if cases is not None and self.path.is_file():
            with open(self.path, newline="", encoding="utf-8", errors="replace") as file:
                others = sorted({row[0] for row in list(csv.reader(file))[1:] if row} - set(cases))
            if others:
                raise ConfigurationError(
                    f"{self.path} holds predictions of other images, such as {others[0]}, and would be replaced: give another "
                    "--output_dir."
                )

    def finalize(self) -> None:
        """Writes all saved cases; raises :class:`ConfigurationError` if a case does not have one value per column."""
        rows = []
        for case, values in self.get_cache().items():
            if values.size != len(self.columns):
                raise ConfigurationError(
                    f"{case} has {values.size} values for the {len(self.columns)} columns {self.columns}: give as many."
                )
            texts = [f"{value:.6g}" for value in values.flatten()]
            rows.append({"filename": case, **dict(zip(self.columns, texts))})
        write_rows(rows, self.path)
        self.reset_cache()
