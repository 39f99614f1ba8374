"""Classification data in the layout of MedMNIST: one npz file with images and labels of three sections."""

from __future__ import annotations

import ast
import copy
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.apps.utils import check_hash, get_logger
from monai.config import PathLike
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Compose, Transform

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import check_choice
from monai_gmr.data.conversion import open_npz
from monai_gmr.files import unwritable
from monai_gmr.transforms import check_finite
from monai_gmr.utils import ConfigurationError

SECTIONS = {"training": "train", "validation": "val", "test": "test"}
SIZES = (28, 64, 128, 224)


@cache
def _medmnist_table() -> dict[str, dict[str, Any]]:
    """Returns the table of data sets of the installed medmnist, flag to entry; empty if it is not installed.

    Only ``medmnist/info.py`` is read: importing the package would cost pandas and scikit-learn, and make a folder in the user's home.
    """
    spec = importlib.util.find_spec("medmnist")
    if spec is None or spec.origin is None:
        return {}
    source = Path(spec.origin).with_name("info.py")
    for node in ast.parse(source.read_text(encoding="utf-8")).body if source.is_file() else ():
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "INFO" for t in node.targets):
            return ast.literal_eval(node.value)
    return {}


def medmnist_info(flag: str) -> dict[str, Any] | None:
    """Returns the entry of a data set such as ``"breastmnist"`` in the table of the installed medmnist; ``None`` if there is none."""
    return _medmnist_table().get(flag)


@checked_arguments
def medmnist_flags(spatial_dims: int) -> list[str]:
    """Returns the flags of all medmnist data sets with 2 or 3 spatial axes; raises ``ConfigurationError`` if medmnist is not installed.

    Example:
        >>> len(medmnist_flags(2)), medmnist_flags(3)[0]
        (12, 'organmnist3d')
    """
    table = _medmnist_table()
    if not table:
        raise ConfigurationError("the data sets of medmnist are not known: pip install 'monai-gmr[medmnist]'.")
    return [flag for flag in table if flag.endswith("3d") == (spatial_dims == 3)]


@checked_arguments
def medmnist_file(dataset_dir: PathLike, flag: str, size: int = SIZES[0]) -> Path:
    """Returns the path of a medmnist flag, or of an npz file name, in a folder, whether it exists or not.

    Example:
        >>> str(medmnist_file("data", "breastmnist", 64)), str(medmnist_file("data", "cells.npz"))
        ('data/breastmnist_64.npz', 'data/cells.npz')
    """
    return _locate(Path(dataset_dir), str(flag), size)[0]


@checked_arguments
def download_medmnist(dataset_dir: PathLike, flag: str, size: int = SIZES[0]) -> Path:
    """Returns the file of a medmnist data set in a folder; medmnist downloads it if it is missing.

    Raises:
        ConfigurationError: if medmnist is not installed or has no such data set, or the download fails.
    """
    path, name, file_size = _locate(Path(dataset_dir), str(flag), size)
    if not path.is_file():
        _download(path, name, file_size, medmnist_info(name))
    return path


def _check_md5(path: Path, name: str, size: int, info: dict[str, Any] | None) -> None:
    expected = (info or {}).get("MD5" if size == SIZES[0] else f"MD5_{size}")
    if expected is None:
        get_logger(__name__).info(f"MD5 of {path.name} not checked: this medmnist publishes none for {name!r}.")
    elif not check_hash(path, expected, hash_type="md5"):
        raise ConfigurationError(
            f"The MD5 of {path} is not {expected}, which medmnist publishes: delete the file and download it again, or set "
            "check_md5=False if the change is intended."
        )


def _download(path: Path, name: str, size: int, info: dict[str, Any] | None) -> None:
    """Downloads through medmnist into a temporary folder next to ``path``, then renames."""
    if importlib.util.find_spec("medmnist") is None:
        raise ConfigurationError("download=True needs medmnist: pip install 'monai-gmr[medmnist]'.")
    if info is None:
        raise ConfigurationError(f"medmnist has no data set {name!r} to download: put the file {path} there yourself.")
    if f"url_{size}" not in info and size != SIZES[0]:
        raise ConfigurationError(f"medmnist does not publish {name!r} at size {size}: use another size.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path.parent, error) from error
    dataset_class = getattr(importlib.import_module("medmnist"), info["python_class"])
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download_") as folder:
        try:
            dataset_class(split="test", root=folder, size=size, download=True)
        except RuntimeError as error:
            url = info["url" if size == SIZES[0] else f"url_{size}"]
            raise ConfigurationError(
                f"{path.name} could not be downloaded from {url}: check the network, "
                f"or put the file into {path.parent}."
            ) from error
        os.replace(Path(folder) / path.name, path)


class _ReadImage(Transform):
    """Converts a row of the npz file to a :class:`MetaTensor` that MONAI's transforms and savers understand."""

    def __init__(self, channel_last: bool, path: Path) -> None:
        self.channel_last, self.path = channel_last, path

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        array = item["image"]
        array = np.moveaxis(array, -1, 0) if self.channel_last else array[None]
        meta = {"filename_or_obj": item["name"], "spatial_shape": np.array(array.shape[1:])}
        check_finite(array, f"the image {item['name']} of {self.path}")
        # a copy, so that in-place transforms do not change the file's array
        image = MetaTensor(torch.from_numpy(np.array(array, order="C")), meta=meta)
        return {"image": image, "label": copy.copy(item["label"]), "name": item["name"]}


class MedMNISTCacheDataset(CacheDataset):
    """MedMNIST, or any npz file in its layout, as a :class:`monai.data.CacheDataset`.

    The file holds ``{train,val,test}_images`` of shape ``(N, *spatial)`` or, for colour, ``(N, *spatial, 3)``, and
    ``{train,val,test}_labels`` of shape ``(N,)``, ``(N, 1)`` or, with several labels per image, ``(N, L)``. An item has an ``"image"`` of
    shape ``(C, *spatial)`` in the dtype of the file, a ``"label"``, an int or integer vector of length L, and a ``"name"`` such as
    ``"breastmnist_test_00012"``, which is also the meta entry ``filename_or_obj``.

    Args:
        dataset_dir: folder that holds the file.
        flag: a medmnist flag such as ``"breastmnist"``; or the name or path of an npz file (relative to ``dataset_dir``).
        section: ``"training"``, ``"validation"`` or ``"test"``.
        transform: transforms of these items; results before the first random transform are cached.
        size: pixels along each axis for a medmnist flag: 28, 64, 128 or 224 (``flag.npz``, ``flag_64.npz`` ...).
        download: whether to download a missing file, through medmnist.
        check_md5: whether to compare the file with the MD5 that the installed medmnist publishes, if it knows the file.
        classes: label values to keep, renumbered ``0, 1, ...`` in this order. Default: all.
        kwargs: further arguments of :class:`monai.data.CacheDataset`, such as ``cache_rate`` and ``progress``.

    Raises:
        ConfigurationError: if the folder or file is missing, the file has another layout or MD5, or a class is unknown.

    Example:
        >>> folder, labels = getfixture("tmp_path"), np.array([[0], [1], [2], [1]], np.uint8)
        >>> np.savez(folder / "cells.npz", test_images=np.zeros((4, 28, 28), np.uint8), test_labels=labels)
        >>> data = MedMNISTCacheDataset(folder, "cells.npz", "test", classes=(1, 2), check_md5=False, progress=False)
        >>> len(data), data.num_classes, data.spatial_dims, data.num_channels, data.labels.tolist()
        (3, 2, 2, 1, [0, 1, 0])
    """

    @checked_arguments
    def __init__(
        self,
        dataset_dir: PathLike,
        flag: str,
        section: str,
        transform: Sequence[Callable] | Callable = (),
        *,
        size: int = 28,
        download: bool = False,
        check_md5: bool = True,
        classes: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice("section", section, tuple(SECTIONS))
        check_choice("size", size, SIZES)
        self.section = section
        self.classes = None if classes is None else tuple(int(c) for c in classes)
        self.path, name, file_size = _locate(Path(dataset_dir), str(flag), size)
        info = medmnist_info(name)
        if download:
            download_medmnist(dataset_dir, flag, size)
        _check_exists(self.path, Path(dataset_dir), download)
        if check_md5:
            _check_md5(self.path, name, file_size, info)
        images, self.labels, all_labels = _read(self.path, SECTIONS[section])
        rows = np.arange(len(images))
        if self.classes is not None:
            rows, self.labels = _keep_classes(self.labels, all_labels, self.classes, self.path.name, section)
        several = self.labels.ndim == 2
        values = range(self.labels.shape[1] if several else int(all_labels.max()) + 1)
        names = (info or {}).get("label", {})
        self.class_names = tuple(names.get(str(value), str(value)) for value in self.classes or values)
        self.num_classes = len(self.class_names)
        channel_last = images.ndim == 5 or (images.ndim == 4 and images.shape[-1] in (1, 3))
        self.spatial_dims: int = images.ndim - 1 - channel_last
        self.num_channels: int = images.shape[-1] if channel_last else 1
        self.spatial_shape: tuple[int, ...] = images.shape[1 : 1 + self.spatial_dims]
        prefix = f"{self.path.stem}_{SECTIONS[section]}"
        data = [
            {"image": images[row], "label": label if several else int(label), "name": f"{prefix}_{row:05d}"}
            for row, label in zip(rows.tolist(), self.labels)
        ]
        compose = copy.copy(transform) if isinstance(transform, Compose) else Compose(transform)
        compose.transforms = (_ReadImage(channel_last, self.path), *compose.transforms)
        super().__init__(data, compose, **kwargs)

    @property
    def class_counts(self) -> np.ndarray:
        """Counts the images of each class; returns an integer array of length ``num_classes``."""
        return self.labels.sum(0) if self.labels.ndim == 2 else np.bincount(self.labels, minlength=self.num_classes)


def _locate(dataset_dir: Path, flag: str, size: int) -> tuple[Path, str, int]:
    """Returns the path of the file, and the flag and size in its name."""
    if not flag.endswith(".npz"):
        return dataset_dir / f"{flag}{'' if size == SIZES[0] else f'_{size}'}.npz", flag, size
    path = dataset_dir / flag
    name, _, suffix = path.stem.rpartition("_")
    return (path, name, int(suffix)) if name and suffix in map(str, SIZES[1:]) else (path, path.stem, SIZES[0])


def _check_exists(path: Path, dataset_dir: Path, download: bool) -> None:
    if path.is_file():
        return
    if not dataset_dir.is_dir():
        raise ConfigurationError(f"dataset_dir {dataset_dir} does not exist: give the folder that holds {path.name}.")
    names = sorted(p.name for p in path.parent.glob("*.npz"))
    content = f"holds {', '.join(names[:10])}" if names else "holds no npz file"
    hint = "" if download else ", or set download=True if it is a flag of medmnist"
    raise ConfigurationError(f"{path} does not exist and {path.parent} {content}: give another name{hint}.")


def _read(path: Path, section: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads the images and labels of a section, and the labels of all sections in the file."""
    keys = f"{section}_images", f"{section}_labels"
    with open_npz(path) as file:
        missing = " and ".join(key for key in keys if key not in file)
        if missing:
            raise ConfigurationError(
                f"{path} is not of MedMNIST's layout: it lacks {missing} among its keys {', '.join(file.files[:10]) or '(none)'}."
            )
        images = file[keys[0]]
        labels = {s: file[f"{s}_labels"] for s in SECTIONS.values() if f"{s}_labels" in file}
    labels = {s: v[:, 0] if v.ndim == 2 and v.shape[1] == 1 else v for s, v in labels.items()}
    own = labels[section]
    if images.ndim not in (3, 4, 5) or own.ndim not in (1, 2) or len(images) != len(own) or len(images) == 0:
        raise ConfigurationError(
            f"{path} has {keys[0]} of shape {images.shape} and {keys[1]} of shape {own.shape}: images must "
            "be (N, *spatial) or (N, *spatial, channels) in 2D or 3D, with one row of labels an image."
        )
    if 0 in images.shape or images.dtype.kind not in "biuf":
        raise ConfigurationError(
            f"{path} has {keys[0]} of shape {images.shape} and type {images.dtype}: give images of real numbers, none of them empty."
        )
    every = np.concatenate([v for v in labels.values() if v.ndim == own.ndim])
    if not np.issubdtype(every.dtype, np.integer) or every.min() < 0:
        raise ConfigurationError(f"{path} has labels that are not integers from 0 ({every.dtype}): number the classes.")
    return images, own.astype(np.int64), every


def _keep_classes(
    labels: np.ndarray, all_labels: np.ndarray, classes: tuple[int, ...], name: str, section: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows whose label is one of ``classes``, and their renumbered labels."""
    if labels.ndim == 2:
        raise ConfigurationError(f"classes={classes} cannot be kept of {name}: its images have several labels each.")
    present = np.unique(all_labels).tolist()
    unknown = [c for c in classes if c not in present]
    if unknown or not classes or len(set(classes)) != len(classes):
        wrong = f"holds unknown label values {unknown}" if unknown else "is empty or names a class twice"
        raise ConfigurationError(f"classes={classes} {wrong}: {name} has the label values {present}.")
    rows = np.flatnonzero(np.isin(labels, classes))
    if len(rows) == 0:
        raise ConfigurationError(f"The {section} section of {name} has no image of classes={classes}: keep others.")
    return rows, np.array([classes.index(label) for label in labels[rows]])
