"""Conversion of published npz files to the layouts that bundles read: Decathlon, or MedMNIST with all three sections.

Functions raise :class:`~monai_gmr.utils.ConfigurationError`, one sentence, for files and arguments that do not fit. ``arrays`` is the
content of an npz file; ``source`` is its name, for the sentence.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.utils import optional_import

from monai_gmr.annotations import Seed, check_argument
from monai_gmr.files import replacing, unwritable
from monai_gmr.utils import ConfigurationError, progress_bar

Image, _ = optional_import("PIL.Image")

NIFTI_TYPES = ("uint8", "int16", "uint16", "float32")
PICTURE_TYPES = ("uint8", "uint16")
SECTIONS = ("training", "validation", "test")
DECATHLON_CONTENT = {"imagesTr", "labelsTr", "dataset.json"}


class Case(NamedTuple):
    """An image and its label with the same shape in 2D or 3D, and the name of their files."""

    name: str
    image: np.ndarray
    label: np.ndarray


@contextmanager
def open_npz(path: PathLike) -> Iterator[Any]:
    """Opens an npz file of plain arrays, which are read on access."""
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except ConfigurationError:
        raise
    except (zipfile.BadZipFile, zlib.error, AttributeError, EOFError, OSError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be read as an npz file of plain arrays ({error}): download or make it again."
        ) from error


def read_arrays(path: PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays of an npz file."""
    if not Path(path).is_file():
        raise ConfigurationError(f"{path} is not a file: give the path of an npz file.")
    with open_npz(path) as file:
        return dict(file)


def read_cases(arrays: Mapping[str, np.ndarray], source: str) -> list[Case]:
    """Reads image ``img_KEY`` and label ``lab_KEY`` for each of the ``ids``, in order; KEY is the id or its position: ``000``, ``001``."""
    if "ids" not in arrays:
        keys = ", ".join(list(arrays)[:6]) or "(none)"
        raise ConfigurationError(f"{source} has no 'ids' among its keys {keys}: give a file of ids, img_*, lab_*.")
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
            raise ConfigurationError(f"The id {name!r} of {source} cannot name a file: use letters, digits, . - _.")
        cases.append(_checked(Case(name, arrays[f"img_{key}"], arrays[f"lab_{key}"]), source))
    return cases


def read_folder(folder: PathLike) -> list[Case]:
    """Reads the pictures in folders ``images`` and ``labels``, PNG files with equal names and one channel; sorted by name."""
    root = Path(folder)
    files = {part: {file.stem: file for file in sorted((root / part).glob("*.png"))} for part in ("images", "labels")}
    names = list(files["images"])
    if not names or set(names) != set(files["labels"]):
        alone = sorted(set(names) ^ set(files["labels"]))[:1]
        found = f"{alone[0]}.png in only one of images and labels" if alone else "no PNG files in them"
        raise ConfigurationError(
            f"{folder} has {found}: give a folder of images and labels, PNG files of the same names."
        )
    cases = []
    for name in names:
        pair = [np.asarray(Image.open(files[part][name])) for part in ("images", "labels")]
        if pair[0].ndim != 2:
            raise ConfigurationError(f"{files['images'][name]} has {pair[0].shape[-1]} channels: give a grey picture.")
        cases.append(_checked(Case(name, *pair), str(folder)))
    return cases


def read_volume(arrays: Mapping[str, np.ndarray], source: str) -> Case:
    """Reads the single volume of a file with the keys ``image`` and ``label``."""
    return _checked(Case("volume", *_pair(arrays, "image", "label", source)), source)


def _pair(arrays: Mapping[str, np.ndarray], first: str, second: str, source: str) -> tuple[np.ndarray, np.ndarray]:
    if not {first, second} <= set(arrays):
        keys = ", ".join(list(arrays)[:6]) or "(none)"
        raise ConfigurationError(f"{source} lacks {first!r} or {second!r} among its keys {keys}: give another file.")
    return arrays[first], arrays[second]


def _checked(case: Case, source: str) -> Case:
    if case.image.shape != case.label.shape or case.image.ndim not in (2, 3) or case.image.size == 0:
        raise ConfigurationError(
            f"{source} has an image of shape {case.image.shape} with a label of shape {case.label.shape} ({case.name}): "
            "both must be of one shape in 2D or 3D."
        )
    if not np.issubdtype(case.label.dtype, np.integer) or case.label.min() < 0:
        raise ConfigurationError(f"{source} has labels that are not integers from 0 ({case.name}): number them.")
    if not _are_finite(case.image):
        raise ConfigurationError(
            f"{source} has an image of type {case.image.dtype} whose values are not all finite numbers ({case.name}): replace them, or "
            "leave it out."
        )
    return case


def _are_finite(array: np.ndarray) -> bool:
    return array.dtype.kind in "biuf" and bool(np.isfinite(array).all())


def foreground(instances: np.ndarray) -> np.ndarray:
    """Converts an image of instance numbers (0: none) to a uint8 mask: 1 inside any instance, 0 elsewhere."""
    return (instances > 0).astype(np.uint8)


def boundary(instances: np.ndarray) -> np.ndarray:
    """Marks voxels with a neighbour along an axis that has another instance number, 0 included, as uint8: both sides of each change."""
    edge = np.zeros(instances.shape, bool)
    for axis in range(instances.ndim):
        values, marks = np.moveaxis(instances, axis, 0), np.moveaxis(edge, axis, 0)
        changes = values[1:] != values[:-1]
        marks[1:] |= changes
        marks[:-1] |= changes
    return edge.astype(np.uint8)


TARGETS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"foreground": foreground, "boundary": boundary}
"""Segmentation targets made from instances, by name."""


def cut_blocks(case: Case, blocks: int) -> list[Case]:
    """Cuts a case into ``blocks`` equal parts along each axis, at least 2; the last axis runs fastest."""
    shape = case.image.shape
    if blocks < 2 or any(side % blocks for side in shape):
        raise ConfigurationError(
            f"A volume of shape {shape} cannot be cut into {blocks} equal blocks along each axis: "
            "give a number from 2 that divides its sides."
        )
    tiles = [(case.image, case.label)]
    for axis in range(len(shape)):
        tiles = [pair for tile in tiles for pair in zip(*(np.split(array, blocks, axis) for array in tile))]
    return [Case(str(index), *tile) for index, tile in enumerate(tiles)]


def cut_slices(case: Case, axis: int) -> list[Case]:
    """Cuts a volume into slices across an axis, 0 to 2: 2D cases whose names end in their number."""
    if case.image.ndim != 3 or axis not in range(3):
        raise ConfigurationError(
            f"{case.name} of shape {case.image.shape} cannot be cut across axis {axis}: give volumes, and an axis from 0 to 2."
        )
    number = case.image.shape[axis]
    width = len(str(number - 1))
    images, labels = (np.moveaxis(array, axis, 0) for array in (case.image, case.label))
    return [Case(f"{case.name}-{i:0{width}d}", images[i], labels[i]) for i in range(number)]


def read_split(path: PathLike) -> dict[str, list[str]]:
    """Reads the case names of each section from JSON such as ``{"training": ["a", "b"], "validation": ["c"], "test": ["d"]}``."""
    try:
        split = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} is not readable as JSON ({error}): give lists of names by section."
        ) from error
    fits = (
        isinstance(split, dict)
        and set(split) == set(SECTIONS)
        and all(isinstance(split[key], list) for key in SECTIONS)
    )
    if not fits or not all(split.values()):
        raise ConfigurationError(f"{path} does not give all of {', '.join(SECTIONS)}: give a list of names for each.")
    names = [str(name) for part in split.values() for name in part]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigurationError(f"{path} names {twice!r} twice: a case belongs to one section.")
    return {section: [str(name) for name in split[section]] for section in SECTIONS}


def take_split(cases: Sequence[Case], split: Mapping[str, Sequence[str]], source: str) -> dict[str, list[Case]]:
    """Selects the cases of each section of a split by name; leaves out cases that it does not name."""
    known = {case.name: case for case in cases}
    unknown = next((name for part in split.values() for name in part if name not in known), None)
    if unknown is not None:
        raise ConfigurationError(
            f"{source} has no case {unknown!r}, which the split names: it has {', '.join(list(known)[:6])} and so on."
        )
    return {section: [known[name] for name in names] for section, names in split.items()}


def split_cases(cases: Sequence[Case], seed: int | None = None) -> dict[str, list[Case]]:
    """Splits at least 3 cases into training, validation and test: 60, 20 and 20 %, randomly with a ``seed``, otherwise in order."""
    number = len(cases)
    if number < 3:
        raise ConfigurationError(f"{number} cases cannot be split into training, validation and test: give at least 3.")
    order = np.arange(number) if seed is None else _generator(seed).permutation(number)
    rows = np.split(order, [number * 6 // 10, number * 8 // 10])
    parts = [[cases[i] for i in np.sort(part)] for part in rows]
    return dict(zip(SECTIONS, parts))


def _generator(seed: int) -> np.random.Generator:
    check_argument("seed", seed, Seed)
    return np.random.default_rng(seed)


def write_decathlon(
    output_dir: PathLike,
    sections: Mapping[str, Sequence[Case]],
    labels: Sequence[str],
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    pictures: bool = False,
) -> Path:
    """Writes cases as NIfTI in the layout of the Medical Segmentation Decathlon, completely or not at all; returns ``dataset.json``'s path.

    Files are named after the folder and the case; a pixel or voxel is 1 mm wide. ``labels`` are the names of the label values, from 0;
    ``about`` holds further entries of ``dataset.json``, such as the source of the data. ``pictures`` writes PNG instead of NIfTI, for 2D
    images with 8 or 16 bits; rows of the array become rows of the picture.
    """
    folder = Path(os.path.abspath(output_dir))
    check_output_dir(folder, overwrite)
    if len(labels) > 256:
        raise ConfigurationError(f"{len(labels)} label values do not fit into 8 bits: number classes from 0 to 255.")
    for case in [case for cases in sections.values() for case in cases] if pictures else []:
        if case.image.ndim != 2 or case.image.dtype.name not in PICTURE_TYPES:
            raise ConfigurationError(
                f"{case.name} of shape {case.image.shape} and type {case.image.dtype} is not a picture: give images of two dimensions and "
                "8 or 16 bits, cut slices, or write NIfTI."
            )
    content: dict[str, Any] = {"name": folder.name, "labels": {str(v): name for v, name in enumerate(labels)}}
    content |= {**(about or {}), **{section: [] for section in sections}}
    with _replacing_folder(folder) as new:
        for part in ("imagesTr", "labelsTr"):
            (new / part).mkdir(parents=True)
        all_cases = [(section, case) for section, cases in sections.items() for case in cases]
        for section, case in progress_bar(all_cases, "Writing cases", progress):
            content[section].append(_write_case(new, folder.name, case, len(labels), pictures))
        (new / "dataset.json").write_text(json.dumps(content, indent=1))
    return folder / "dataset.json"


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields the path of a new folder next to ``folder``, which replaces it when the block ends and is removed if the block fails."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}_") as temporary:
            new, old = Path(temporary) / "new", Path(temporary) / "old"
            yield new
            if folder.exists():
                os.replace(folder, old)
            try:
                os.replace(new, folder)
            except OSError:
                if old.exists():
                    os.replace(old, folder)
                raise
    except OSError as error:
        raise unwritable(folder, error) from error


def check_output_dir(folder: PathLike, overwrite: bool = False) -> None:
    """Raises unless a folder is new, or ``overwrite`` is set and it holds only a Decathlon data set."""
    folder = Path(folder)
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise ConfigurationError(f"{folder} exists: give another path, or overwrite it (--overwrite).")
    is_folder = folder.is_dir() and not folder.is_symlink()
    other = ({path.name for path in folder.iterdir()} if is_folder else {"(no folder)"}) - DECATHLON_CONTENT
    if other:
        raise ConfigurationError(
            f"{folder} is not overwritten, since it is not just a data set of imagesTr, labelsTr and dataset.json "
            f"({min(other)}): give another path."
        )


def _write_case(folder: Path, prefix: str, case: Case, num_labels: int, pictures: bool) -> dict[str, str]:
    if case.label.max() >= num_labels:
        raise ConfigurationError(
            f"The label of {case.name} holds {case.label.max()} and there are names for 0 to {num_labels - 1}: name all."
        )
    # NIfTI has no booleans or half floats, and nibabel refuses 64-bit integers.
    image = case.image if case.image.dtype.name in NIFTI_TYPES else case.image.astype(np.float32)
    file = f"{prefix}_{case.name}{'.png' if pictures else '.nii.gz'}"
    for part, array in (("imagesTr", image), ("labelsTr", case.label.astype(np.uint8))):
        if pictures:
            Image.fromarray(array).save(folder / part / file)
        else:
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / part / file)
    return {"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"}


def draw_sections(
    arrays: Mapping[str, np.ndarray], num_training: int, num_validation: int, source: str, seed: int = 0
) -> dict[str, np.ndarray]:
    """Draws both training and validation images from the training section of a MedMNIST file without a validation section."""
    images, labels = as_test_section(arrays, "train_images", "train_labels", source).values()
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
    train, val = order[:num_training], order[num_training : num_training + num_validation]
    drawn = {"train_images": images[train], "train_labels": labels[train]}
    return drawn | {"val_images": images[val], "val_labels": labels[val]} | test


def as_test_section(arrays: Mapping[str, np.ndarray], images: str, labels: str, source: str) -> dict[str, np.ndarray]:
    """Makes arrays of the MedMNIST layout with only a test section, from the arrays under the given keys."""
    image, label = _pair(arrays, images, labels, source)
    if image.ndim < 3 or label.ndim not in (1, 2) or len(image) != len(label):
        raise ConfigurationError(
            f"{source} has {images} of shape {image.shape} and {labels} of shape {label.shape}: "
            "there must be one row of labels an image."
        )
    return {"test_images": image, "test_labels": label.reshape(len(label), -1)}


def write_medmnist(path: PathLike, arrays: Mapping[str, np.ndarray], overwrite: bool = False) -> Path:
    """Writes an npz file in the MedMNIST layout (``{train,val,test}_images``, ``{train,val,test}_labels``), completely or not at all."""
    file = Path(path)
    check_output_file(file, overwrite)
    for name, array in arrays.items():
        # numpy before 2.1 always pickles them
        if np.asarray(array).dtype.hasobject:
            raise ConfigurationError(f"{name} holds Python objects: give an array of numbers.")
        if not _are_finite(np.asarray(array)):
            raise ConfigurationError(f"{name} holds values that are not finite numbers: replace them.")
    with replacing(file) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    return file


def check_output_file(file: PathLike, overwrite: bool = False) -> None:
    """Raises if an npz file cannot be written there."""
    file = Path(file)
    if file.suffix != ".npz":
        raise ConfigurationError(f"{file} does not end in .npz: give the name of an npz file.")
    if file.is_dir():
        raise ConfigurationError(f"{file} is a folder: give the name of an npz file.")
    if file.exists() and not overwrite:
        raise ConfigurationError(f"{file} exists: give another path, or overwrite it (--overwrite).")
