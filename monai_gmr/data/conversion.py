"""Published npz files turned into what bundles read: the Decathlon layout, or the MedMNIST layout with all three sections."""

from __future__ import annotations

import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.utils import optional_import

from monai_gmr.files import replacing
from monai_gmr.utils import ConfigurationError

NIFTI_TYPES = ("uint8", "int16", "uint16", "float32")
DECATHLON_CONTENT = {"imagesTr", "labelsTr", "dataset.json"}


class Case(NamedTuple):
    """An image and its label, both of the same shape in 2D or 3D, and the name of their files."""

    name: str
    image: np.ndarray
    label: np.ndarray


def read_arrays(path: PathLike) -> dict[str, np.ndarray]:
    """All arrays of an npz file.

    Raises:
        ConfigurationError: when the file is missing or is no npz file of plain arrays.

    Example:
        >>> file = getfixture("tmp_path") / "digits.npz"
        >>> np.savez(file, x=np.zeros((2, 8, 8)), y=np.arange(2))
        >>> {key: array.shape for key, array in read_arrays(file).items()}
        {'x': (2, 8, 8), 'y': (2,)}
    """
    if not Path(path).is_file():
        raise ConfigurationError(f"{path} is no file: give the path of an npz file.")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (zipfile.BadZipFile, zlib.error, AttributeError, EOFError, OSError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be read as an npz file of plain arrays ({error}): download or make it again."
        ) from error


def read_cases(arrays: Mapping[str, np.ndarray], source: str) -> list[Case]:
    """Image and label of each of the ``ids``, in their order.

    Args:
        arrays: ``ids``, and for each an image ``img_KEY`` and a label ``lab_KEY``; KEY is the id itself or its position, ``000``,
            ``001`` and so on.
        source: where the arrays come from, for messages.

    Raises:
        ConfigurationError: when one is missing, image and label are not of one shape in 2D or 3D, or an id cannot name a file.

    Example:
        >>> image, label = np.zeros((8, 9), np.uint8), np.ones((8, 9), np.uint16)
        >>> cases = read_cases({"ids": np.array(["liver"]), "img_000": image, "lab_000": label}, "cells.npz")
        >>> cases[0].name, cases[0].image.shape
        ('liver', (8, 9))
    """
    if "ids" not in arrays:
        raise ConfigurationError(
            f"{source} has no 'ids' among its keys {_some(arrays)}: give a file of ids, img_*, lab_*."
        )
    names = [str(name) for name in arrays["ids"].ravel().tolist()]
    if len(set(names)) != len(names):
        raise ConfigurationError(f"The ids of {source} name {len(set(names))} of {len(names)} cases: make them unique.")
    cases = []
    for position, name in enumerate(names):
        key = name if f"img_{name}" in arrays else f"{position:03d}"
        missing = [part for part in (f"img_{key}", f"lab_{key}") if part not in arrays]
        if missing:
            raise ConfigurationError(f"{source} has no {missing[0]!r} for the id {name!r}: add it or drop the id.")
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigurationError(
                f"The id {name!r} of {source} cannot name a file: use letters, digits, dots, - and _."
            )
        cases.append(_checked(Case(name, arrays[f"img_{key}"], arrays[f"lab_{key}"]), source))
    return cases


def read_volume(arrays: Mapping[str, np.ndarray], source: str) -> Case:
    """The one volume of a file with the keys ``image`` and ``label``.

    Raises:
        ConfigurationError: when one is missing, or they are not of one shape in 2D or 3D.

    Example:
        >>> read_volume({"image": np.zeros((4, 4, 4)), "label": np.ones((4, 4, 4), int)}, "medulla.npz").label.shape
        (4, 4, 4)
    """
    if not {"image", "label"} <= set(arrays):
        raise ConfigurationError(
            f"{source} lacks 'image' or 'label' among its keys {_some(arrays)}: give another file."
        )
    return _checked(Case("volume", arrays["image"], arrays["label"]), source)


def _some(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(list(arrays)[:6]) or "(none)"


def _checked(case: Case, source: str) -> Case:
    if case.image.shape != case.label.shape or case.image.ndim not in (2, 3) or case.image.size == 0:
        raise ConfigurationError(
            f"{source} has an image of shape {case.image.shape} with a label of shape {case.label.shape} ({case.name}): "
            "both must be of one shape in 2D or 3D."
        )
    if not np.issubdtype(case.label.dtype, np.integer) or case.label.min() < 0:
        raise ConfigurationError(
            f"{source} has labels that are not integers from 0 ({case.name}, {case.label.dtype}): number them."
        )
    return case


def foreground(instances: np.ndarray) -> np.ndarray:
    """1 inside any instance, 0 elsewhere, as uint8.

    Args:
        instances: number of the instance at each pixel or voxel, 0 for none.

    Example:
        >>> foreground(np.array([[0, 3, 3, 7]])).tolist()
        [[0, 1, 1, 1]]
    """
    return (instances > 0).astype(np.uint8)


def boundary(instances: np.ndarray) -> np.ndarray:
    """1 where a neighbour along an axis has another value, on both sides of the change, as uint8.

    Args:
        instances: number of the instance at each pixel or voxel, 0 for none, which counts as one more instance.

    Example:
        >>> boundary(np.array([[4, 4, 4, 7, 7]])).tolist()
        [[0, 0, 1, 1, 0]]
    """
    edge = np.zeros(instances.shape, bool)
    for axis in range(instances.ndim):
        values, marks = np.moveaxis(instances, axis, 0), np.moveaxis(edge, axis, 0)
        changes = values[1:] != values[:-1]
        marks[1:] |= changes
        marks[:-1] |= changes
    return edge.astype(np.uint8)


TARGETS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"foreground": foreground, "boundary": boundary}
"""What can be learnt from instances, by name."""


def cut_blocks(case: Case, blocks: int) -> list[Case]:
    """Cut a case into ``blocks`` equal parts along each axis, the last axis running fastest.

    Raises:
        ConfigurationError: when a side cannot be divided so.

    Example:
        >>> parts = cut_blocks(Case("volume", np.arange(16).reshape(4, 4), np.zeros((4, 4), np.uint8)), 2)
        >>> [(part.name, part.image[0, 0].item()) for part in parts]
        [('0', 0), ('1', 2), ('2', 8), ('3', 10)]
    """
    shape = case.image.shape
    if blocks < 2 or any(side % blocks for side in shape):
        raise ConfigurationError(
            f"A volume of shape {shape} cannot be cut into {blocks} equal blocks along each axis: "
            "give a number from 2 that divides its sides."
        )
    images, labels = [case.image], [case.label]
    for axis in range(len(shape)):
        images = [part for image in images for part in np.split(image, blocks, axis)]
        labels = [part for label in labels for part in np.split(label, blocks, axis)]
    return [Case(str(index), *pair) for index, pair in enumerate(zip(images, labels))]


def split_cases(cases: Sequence[Case], seed: int | None = None) -> dict[str, list[Case]]:
    """Training, validation and test section: 60, 20 and 20 % of the cases.

    Args:
        cases: at least 3.
        seed: which cases go to which section; ``None`` splits them in their order.

    Raises:
        ConfigurationError: when there are fewer than 3 cases, or the seed is negative.

    Example:
        >>> cases = [Case(name, np.zeros((2, 2)), np.zeros((2, 2), np.uint8)) for name in "abcdefghij"]
        >>> {section: "".join(case.name for case in part) for section, part in split_cases(cases).items()}
        {'training': 'abcdef', 'validation': 'gh', 'test': 'ij'}
    """
    number = len(cases)
    if number < 3:
        raise ConfigurationError(f"{number} cases cannot be split into training, validation and test: give at least 3.")
    order = np.arange(number) if seed is None else _generator(seed).permutation(number)
    rows = np.split(order, [number * 6 // 10, number * 8 // 10])
    return {
        section: [cases[i] for i in np.sort(part)] for section, part in zip(("training", "validation", "test"), rows)
    }


def _generator(seed: int) -> np.random.Generator:
    if seed < 0:
        raise ConfigurationError(f"seed={seed} is negative: give a number from 0.")
    return np.random.default_rng(seed)


def write_decathlon(
    output_dir: PathLike,
    sections: Mapping[str, Sequence[Case]],
    labels: Sequence[str],
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write cases as NIfTI in the layout of the Medical Segmentation Decathlon.

    Makes ``imagesTr/``, ``labelsTr/`` and ``dataset.json`` with a list of ``{"image", "label"}`` for each section, as
    :func:`monai.data.load_decathlon_datalist` reads them, under a temporary name that becomes ``output_dir`` when all is written.
    Files are called after the folder and the case; a pixel or voxel is 1 mm wide.

    Args:
        output_dir: folder to make.
        sections: the cases of each section, such as ``{"training": [...], "validation": [...]}``.
        labels: name of each label value, from 0.
        about: what else ``dataset.json`` should tell, such as where the data comes from.
        overwrite: whether to replace a data set of this layout that is already there.
        progress: whether to show a progress bar.

    Returns:
        path of ``dataset.json``.

    Raises:
        ConfigurationError: when a label has no name, there are more than 256, or ``output_dir`` exists and may not be replaced.

    Example:
        >>> cases = [Case(name, np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8)) for name in ("001", "002")]
        >>> sections = {"training": cases[:1], "test": cases[1:]}
        >>> file = write_decathlon(getfixture("tmp_path") / "cells", sections, ["background"], progress=False)
        >>> json.loads(file.read_text())["test"]
        [{'image': './imagesTr/cells_002.nii.gz', 'label': './labelsTr/cells_002.nii.gz'}]
    """
    folder = Path(os.path.abspath(output_dir))
    check_output_dir(folder, overwrite)
    if len(labels) > 256:
        raise ConfigurationError(
            f"{len(labels)} label values do not fit into 8 bits: number the classes from 0 to 255."
        )
    content: dict[str, Any] = {"name": folder.name, "labels": {str(v): name for v, name in enumerate(labels)}}
    content |= dict(about or {})
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}_") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        for part in ("imagesTr", "labelsTr"):
            (new / part).mkdir(parents=True)
        tqdm, has_tqdm = optional_import("tqdm", name="tqdm")
        bar = tqdm(total=sum(map(len, sections.values())), desc="Writing cases") if progress and has_tqdm else None
        for section, cases in sections.items():
            content[section] = []
            for case in cases:
                content[section].append(_write_case(new, folder.name, case, len(labels)))
                if bar is not None:
                    bar.update()
        if bar is not None:
            bar.close()
        (new / "dataset.json").write_text(json.dumps(content, indent=1))
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    return folder / "dataset.json"


def check_output_dir(folder: PathLike, overwrite: bool = False) -> None:
    """Raise :class:`ConfigurationError` when a data set cannot be written to a folder.

    Only what holds a data set of the Decathlon layout and nothing else is replaced, lest a wrong path cost other files.

    Example:
        >>> check_output_dir(getfixture("tmp_path") / "new")
    """
    folder = Path(folder)
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise ConfigurationError(f"{folder} exists: give another path, or overwrite it (--overwrite).")
    inside = (
        {path.name for path in folder.iterdir()} if folder.is_dir() and not folder.is_symlink() else {"(no folder)"}
    )
    if not inside <= DECATHLON_CONTENT:
        raise ConfigurationError(
            f"{folder} is not overwritten, since it is not just a data set of imagesTr, labelsTr and dataset.json "
            f"({min(inside - DECATHLON_CONTENT)}): give another path."
        )


def _write_case(folder: Path, prefix: str, case: Case, num_labels: int) -> dict[str, str]:
    if case.label.max() >= num_labels:
        raise ConfigurationError(
            f"The label of {case.name} holds {case.label.max()} and there are names for 0 to {num_labels - 1}: name all."
        )
    # NIfTI has no booleans or half floats, and nibabel refuses 64-bit integers.
    image = case.image if case.image.dtype.name in NIFTI_TYPES else case.image.astype(np.float32)
    file = f"{prefix}_{case.name}.nii.gz"
    nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "imagesTr" / file)
    nib.save(nib.Nifti1Image(case.label.astype(np.uint8), np.eye(4)), folder / "labelsTr" / file)
    return {"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"}


def draw_sections(
    arrays: Mapping[str, np.ndarray], num_training: int, num_validation: int, source: str, seed: int = 0
) -> dict[str, np.ndarray]:
    """Arrays of the MedMNIST layout from a file that has no validation section: it is drawn from the training section.

    Args:
        arrays: ``train_images``, ``train_labels``, ``test_images``, ``test_labels``.
        num_training: training images to draw.
        num_validation: validation images to draw, others than those.
        source: where the arrays come from, for messages.
        seed: the same seed draws the same images.

    Returns:
        ``{train,val,test}_images`` and ``{train,val,test}_labels``; the test section is the whole one.

    Raises:
        ConfigurationError: when a key is missing or the training section holds too few images.

    Example:
        >>> arrays = {"train_images": np.zeros((9, 4, 4), np.uint8), "train_labels": np.arange(9)}
        >>> arrays |= {"test_images": np.zeros((2, 4, 4), np.uint8), "test_labels": np.arange(2)}
        >>> {key: array.shape for key, array in draw_sections(arrays, 6, 2, "digits.npz").items() if "labels" in key}
        {'train_labels': (6, 1), 'val_labels': (2, 1), 'test_labels': (2, 1)}
    """
    images, labels = _section(arrays, "train_images", "train_labels", source)
    test = as_test_section(arrays, "test_images", "test_labels", source)
    if "val_images" in arrays:
        raise ConfigurationError(f"{source} has a validation section: use it as it is.")
    available = len(images)
    if num_training < 1 or num_validation < 1 or num_training + num_validation > available:
        raise ConfigurationError(
            f"{num_training} training and {num_validation} validation images cannot be drawn from the {available} of {source}: "
            "give numbers from 1 that add up to at most that."
        )
    order = _generator(seed).permutation(available)
    rows = {"train": order[:num_training], "val": order[num_training : num_training + num_validation]}
    drawn = {f"{section}_images": images[chosen] for section, chosen in rows.items()}
    return drawn | {f"{section}_labels": labels[chosen] for section, chosen in rows.items()} | test


def as_test_section(arrays: Mapping[str, np.ndarray], images: str, labels: str, source: str) -> dict[str, np.ndarray]:
    """Arrays of the MedMNIST layout that hold a test section only, from those under the given keys.

    Raises:
        ConfigurationError: when a key is missing, or there is not one label an image.

    Example:
        >>> arrays = {"x": np.zeros((2, 8, 8), np.uint8), "y": np.arange(2)}
        >>> {key: array.shape for key, array in as_test_section(arrays, "x", "y", "turned.npz").items()}
        {'test_images': (2, 8, 8), 'test_labels': (2, 1)}
    """
    return dict(zip(("test_images", "test_labels"), _section(arrays, images, labels, source)))


def _section(arrays: Mapping[str, np.ndarray], images: str, labels: str, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Images, and labels of shape ``(N, L)`` as MedMNIST has them."""
    if not {images, labels} <= set(arrays):
        raise ConfigurationError(
            f"{source} lacks {images!r} or {labels!r} among its keys {_some(arrays)}: give another file."
        )
    if arrays[images].ndim < 3 or arrays[labels].ndim not in (1, 2) or len(arrays[images]) != len(arrays[labels]):
        raise ConfigurationError(
            f"{source} has {images} of shape {arrays[images].shape} and {labels} of shape {arrays[labels].shape}: "
            "there must be one row of labels an image."
        )
    return arrays[images], arrays[labels].reshape(len(arrays[labels]), -1)


def write_medmnist(path: PathLike, arrays: Mapping[str, np.ndarray], overwrite: bool = False) -> Path:
    """Write an npz file of the MedMNIST layout, under a temporary name that is then renamed.

    Args:
        path: the file to make, ending in ``.npz``.
        arrays: ``{train,val,test}_images`` and ``{train,val,test}_labels``, or some of the sections.
        overwrite: whether to replace a file that is already there.

    Returns:
        ``path``.

    Raises:
        ConfigurationError: when the name ends otherwise, or the file exists and may not be replaced.

    Example:
        >>> arrays = {"test_images": np.zeros((2, 8, 8), np.uint8), "test_labels": np.array([[0], [1]])}
        >>> list(read_arrays(write_medmnist(getfixture("tmp_path") / "turned.npz", arrays)))
        ['test_images', 'test_labels']
    """
    file = Path(path)
    check_output_file(file, overwrite)
    with replacing(file) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)
    return file


def check_output_file(file: PathLike, overwrite: bool = False) -> None:
    """Raise :class:`ConfigurationError` when an npz file cannot be written under a name.

    Example:
        >>> check_output_file(getfixture("tmp_path") / "new.npz")
    """
    file = Path(file)
    if file.suffix != ".npz":
        raise ConfigurationError(f"{file} does not end in .npz: give the name of an npz file.")
    if file.is_dir():
        raise ConfigurationError(f"{file} is a folder: give the name of an npz file.")
    if file.exists() and not overwrite:
        raise ConfigurationError(f"{file} exists: give another path, or overwrite it (--overwrite).")
