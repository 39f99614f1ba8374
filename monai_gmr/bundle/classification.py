"""What the classification bundles ask of their data before a network is built for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset

from monai_gmr.bundle.checks import find_images
from monai_gmr.data.medmnist import MedMNISTCacheDataset
from monai_gmr.transforms import LoadCased, check_image
from monai_gmr.utils import ConfigurationError

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy")


def check_data(
    dataset: MedMNISTCacheDataset, spatial_dims: int, num_classes: int, in_channels: int, grey: bool = False
) -> None:
    """Raise when a network of this shape cannot be trained or judged on this data.

    Args:
        dataset: a section of a file of MedMNIST's layout.
        spatial_dims: number of spatial dimensions of the network, 2 or 3.
        num_classes: number of outputs of the network.
        in_channels: number of input channels of the network.
        grey: whether the colours are averaged first.

    Raises:
        ConfigurationError: when dimensions, channels or classes do not fit, or an image has several labels.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> np.savez(folder / "cells.npz", test_images=np.zeros((4, 9, 9), np.uint8), test_labels=np.arange(4))
        >>> dataset = MedMNISTCacheDataset(folder, "cells.npz", "test", check_md5=False)
        >>> check_data(dataset, spatial_dims=3, num_classes=4, in_channels=1)
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: cells.npz holds 2D images and this is a 3D bundle: use the 2D one.
    """
    name = dataset.path.name
    if dataset.spatial_dims != spatial_dims:
        raise ConfigurationError(
            f"{name} holds {dataset.spatial_dims}D images and this is a {spatial_dims}D bundle: "
            f"use the {dataset.spatial_dims}D one."
        )
    if dataset.labels.ndim != 1:
        raise ConfigurationError(
            f"{name} has {dataset.num_classes} labels an image and this bundle predicts one class: give another --flag."
        )
    if num_classes < dataset.num_classes:
        raise ConfigurationError(
            f"{name} has {dataset.num_classes} classes and num_classes={num_classes}: leave --num_classes out, or keep "
            "fewer with --classes."
        )
    channels = 1 if grey else dataset.num_channels
    if in_channels != channels:
        raise ConfigurationError(
            f"the images of {name} have {channels} channel{'s' * (channels != 1)} and in_channels={in_channels}: "
            "leave --in_channels out."
        )


def class_weights(class_counts: Sequence[int] | np.ndarray) -> torch.Tensor:
    """Weights of a loss under which every class that occurs counts alike: ``total / (classes * count)``.

    Args:
        class_counts: number of training images of each class; a class without images gets weight 0.

    Returns:
        float32 tensor, one weight a class; averaged over the images it is 1.

    Example:
        >>> class_weights([30, 10, 0])
        tensor([0.6667, 2.0000, 0.0000])
    """
    counts = torch.as_tensor(np.asarray(class_counts), dtype=torch.float32)
    present = counts > 0
    return torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), torch.zeros_like(counts))


def network_shape(
    metadata: Mapping[str, Any],
    dataset_dir: str | Path,
    flag: str,
    section: str = "training",
    size: int = 28,
    classes: Sequence[int] | None = None,
    grey: bool = False,
) -> dict[str, int]:
    """Channels and classes of the network that fits a data file.

    Args:
        metadata: content of the bundle's ``metadata.json``, which counts where there is no such file: a bundle's network
            can then be built and checked before its data are there.
        dataset_dir: as for :class:`monai_gmr.data.MedMNISTCacheDataset`, like the settings that follow.
        flag: a flag of medmnist or the name of a file.
        section: the section that the run reads.
        size: pixels along an axis of a medmnist flag.
        classes: label values to keep.
        grey: whether colours are averaged.

    Returns:
        ``{"in_channels": int, "num_classes": int}``.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> np.savez(folder / "cells.npz", train_images=np.zeros((4, 9, 9), np.uint8), train_labels=np.arange(4))
        >>> network_shape({}, folder, "cells.npz")
        {'in_channels': 1, 'num_classes': 4}
    """
    try:
        data = MedMNISTCacheDataset(
            dataset_dir, flag, section, size=size, classes=classes, check_md5=False, cache_rate=0.0
        )
    except ConfigurationError:
        layout = metadata["network_data_format"]
        return {
            "in_channels": layout["inputs"]["image"]["num_channels"],
            "num_classes": layout["outputs"]["pred"]["num_channels"],
        }
    return {"in_channels": 1 if grey else data.num_channels, "num_classes": data.num_classes}


def open_images(
    path: str | Path | None,
    dataset_dir: str | Path,
    flag: str,
    section: str = "test",
    size: int = 28,
    classes: Sequence[int] | None = None,
    download: bool = False,
    spatial_dims: int = 2,
    in_channels: int = 1,
    grey: bool = False,
) -> Dataset:
    """The images to predict: one file, those in a folder, or a section of a file of MedMNIST's layout.

    Args:
        path: image file, or folder as in :func:`~monai_gmr.bundle.checks.find_images`; ``None`` takes the npz file instead.
        dataset_dir: as for :class:`monai_gmr.data.MedMNISTCacheDataset`, like the settings that follow.
        flag: a flag of medmnist or the name of a file.
        section: ``"training"``, ``"validation"`` or ``"test"``.
        size: pixels along an axis of a medmnist flag.
        classes: label values to keep.
        download: whether to download a missing file.
        spatial_dims: spatial axes that the network works on.
        in_channels: channels that the network reads.
        grey: whether colours are averaged, so that images of one channel and of three can be read.

    Returns:
        dataset of dictionaries with ``image``, a ``MetaTensor`` of shape ``(C, *spatial)``. Files are read by
        :class:`~monai_gmr.transforms.LoadCased`.

    Raises:
        ConfigurationError: when there is no image; as an item is read, when that one cannot be predicted.

    Example:
        >>> open_images("nowhere", dataset_dir=".", flag="breastmnist")
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: input=nowhere holds no image: give a file or a folder of .nii, .nii.gz, ...
    """
    channels = (1, 3) if grey and in_channels == 1 else in_channels
    if path is None:
        data = MedMNISTCacheDataset(
            dataset_dir, flag, section, size=size, classes=classes, download=download, cache_rate=0.0
        )
        check_image(
            np.zeros((data.num_channels, *data.spatial_shape)), spatial_dims, channels, f"an image of {data.path}"
        )
        return data
    files = find_images(path, IMAGE_SUFFIXES)
    return Dataset([{"image": str(file)} for file in files], LoadCased("image", spatial_dims, channels))


def row_names(dataset: Dataset) -> list[str]:
    """What the rows of :func:`open_images` are called in a table of predictions.

    Args:
        dataset: what :func:`open_images` returned.

    Example:
        >>> row_names(Dataset([{"image": "/data/a.png"}]))
        ['/data/a.png']
    """
    return [str(entry.get("name", entry["image"])) for entry in dataset.data]
