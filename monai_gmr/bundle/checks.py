"""Checks of a user's data and files for a bundle, before anything long starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import

from monai_gmr.annotations import check_argument, checked_arguments
from monai_gmr.bundle.headers import check_header
from monai_gmr.data.prediction_layout import PICTURES, RECORD, known_predictions
from monai_gmr.files import read_json_object
from monai_gmr.networks.description import check_description
from monai_gmr.networks.weights import check_finite, read_checkpoint, state_of
from monai_gmr.utils import ConfigurationError

LAYOUT = "the layout of the Medical Segmentation Decathlon (dataset.json beside the folders of images and labels)"


def check_file(path: str | Path, what: str, hint: str) -> None:
    """Raises :class:`ConfigurationError` if a file that a run needs does not exist.

    Example:
        >>> check_file("models/none.pt", "checkpoint", "train first.")
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: there is no checkpoint at models/none.pt: train first.
    """
    check_argument(f"the path of the {what}", path, str | Path)
    if not Path(path).is_file():
        raise ConfigurationError(f"there is no {what} at {path}: {hint}")


def check_tensorrt() -> None:
    """Raises :class:`ConfigurationError` if ``monai.bundle.trt_export`` cannot run: without a CUDA GPU or ``torch_tensorrt``."""
    lacking = [] if torch.cuda.is_available() else ["a CUDA GPU"]
    lacking += [] if optional_import("torch_tensorrt")[1] else ["the package torch_tensorrt"]
    if lacking:
        raise ConfigurationError(
            f"trt_export needs {' and '.join(lacking)}, which this machine lacks: export with python -m monai.bundle onnx_export or "
            "ckpt_export, or do it on another machine."
        )


def _load_lists(root: Path) -> dict[str, Any]:
    """Reads ``dataset.json``."""
    if not root.exists():
        raise ConfigurationError(f"dataset_dir={root} does not exist: give a folder in {LAYOUT}.")
    if not root.is_dir():
        raise ConfigurationError(f"dataset_dir={root} is a file: give the folder that holds dataset.json.")
    if not any(root.iterdir()):
        raise ConfigurationError(f"dataset_dir={root} is empty: give a folder in {LAYOUT}.")
    path = root / "dataset.json"
    if not path.is_file():
        below = sorted(child.parent for child in root.glob("*/dataset.json"))
        hint = f"did you mean {below[0]}?" if below else f"give a folder in {LAYOUT}."
        raise ConfigurationError(f"dataset_dir={root} has no dataset.json: {hint}")
    return read_json_object(path, holds="with lists of cases")


@checked_arguments
def check_decathlon(
    dataset_dir: str | Path,
    keys: Sequence[str] = ("training", "validation"),
    labelled: bool = True,
    num_processes: int = 1,
    spatial_dims: int | None = None,
    in_channels: int = 1,
    levels: int | None = None,
    voxel_size: float | None = None,
) -> None:
    """Raises :class:`ConfigurationError` unless a folder has the layout of the Medical Segmentation Decathlon, with all listed files.

    With ``spatial_dims``, also checks that the network can take the images, according to their headers.

    Args:
        dataset_dir: folder with ``dataset.json``, whose lists hold ``{"image": path, "label": path}``, paths relative to it.
        keys: lists that the run reads.
        labelled: whether every case needs a label.
        num_processes: processes of a distributed run; each needs at least one case.
        spatial_dims, in_channels, levels, voxel_size: as for :func:`~monai_gmr.bundle.headers.check_header`.
    """
    root = Path(dataset_dir)
    lists = _load_lists(root)
    path = root / "dataset.json"
    parts = ["image", "label"] if labelled else ["image"]
    for key in keys:
        cases = lists.get(key)
        if not isinstance(cases, list):
            there = ", ".join(sorted(repr(name) for name, value in lists.items() if isinstance(value, list)))
            raise ConfigurationError(
                f"{path} has no list {key!r} (it has {there or 'no list'}): add one, such as by moving cases from another."
            )
        if not cases:
            raise ConfigurationError(f"the list {key!r} of {path} is empty: put at least one case in it.")
        if len(cases) < num_processes:
            raise ConfigurationError(
                f"the list {key!r} of {path} has {len(cases)} for {num_processes} processes: start at most {len(cases)}."
            )
        entries = [case if isinstance(case, dict) else {"image": case} for case in cases]
        lacking = [part for part in parts if any(not isinstance(entry.get(part), str) for entry in entries)]
        if lacking:
            needed = " and its ".join(parts)
            raise ConfigurationError(
                f"a case in the list {key!r} of {path} has no {lacking[0]!r}: each needs the path of its {needed}."
            )
        files = [entry[part] for entry in entries for part in parts]
        missing = [name for name in files if not (root / name).is_file()]
        if missing:
            raise ConfigurationError(
                f"{len(missing)} of the {len(files)} files in the list {key!r} of {path} are missing, the first is "
                f"{root / missing[0]}: put them there or correct the list."
            )
        if spatial_dims is not None:
            for entry in entries:
                check_header(root / entry["image"], spatial_dims, in_channels, levels, voxel_size)


def find_images(path: str | Path, suffixes: tuple[str, ...], output_dir: str | Path | None = None) -> list[Path]:
    """Finds a file, or the images in a folder and its subfolders, sorted by name; raises :class:`ConfigurationError` if there are none.

    Leaves out hidden files and folders, such as ._x.nii.gz, which macOS keeps next to x.nii.gz, and predictions of earlier runs in
    ``output_dir`` and in subfolders. ``suffixes`` are in lower case; those of files can be in capitals.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> for name in ("b.NII", "._b.nii", "a.txt"):
        ...     (folder / name).touch()
        >>> [file.name for file in find_images(folder, (".nii", ".nii.gz"))]
        ['b.NII']
    """
    root = Path(path)
    if root.is_file():
        return [root]
    if not root.exists():
        raise ConfigurationError(f"input={root} does not exist: give a file or folder of {', '.join(suffixes)} files.")
    folders = [record.parent for record in root.rglob(RECORD) if record.parent != root]
    folders += [] if output_dir is None else [Path(output_dir)]
    predictions = {file for folder in folders for file in known_predictions(folder)}
    files = [
        file
        for file in sorted(root.rglob("*"))
        if file.name.lower().endswith(suffixes)
        and not any(part.startswith(".") for part in file.relative_to(root).parts)
        and file.is_file()
        and file.resolve() not in predictions
    ]
    if not files:
        raise ConfigurationError(f"input={root} holds no image: give a file or folder of {', '.join(suffixes)} files.")
    return files


def list_images(
    folder: str | Path | None,
    dataset_dir: str | Path,
    key: str = "test",
    output_dir: str | Path | None = None,
    spatial_dims: int = 3,
) -> list[dict[str, str]]:
    """Lists the images to predict as ``{"image": path}``, sorted by name: a file, the NIfTI files in a folder, or a Decathlon list.

    Args:
        folder: file or folder as in :func:`find_images`; ``None``: the dataset instead.
        dataset_dir: folder in the layout of the Medical Segmentation Decathlon; its cases need no labels.
        key: list of ``dataset.json``.
        output_dir: folder of predictions, which are left out.
        spatial_dims: with 2, also lists pictures (PNG, JPEG, BMP) in a folder.

    Raises:
        ConfigurationError: if there is no image.
    """
    if folder is None:
        check_decathlon(dataset_dir, (key,), labelled=False)
        cases = _load_lists(Path(dataset_dir))[key]
        names = [case["image"] if isinstance(case, dict) else case for case in cases]
        return [{"image": str(Path(dataset_dir) / name)} for name in names]
    if (Path(folder) / "dataset.json").is_file():
        raise ConfigurationError(
            f"input={folder} holds a dataset.json and no NIfTI file of its own: give --dataset_dir {folder}, or one of its folders."
        )
    suffixes = (".nii", ".nii.gz", *(PICTURES if spatial_dims == 2 else ()))
    return [{"image": str(file)} for file in find_images(folder, suffixes, output_dir)]


def with_weights(network: torch.nn.Module, path: str | Path | None, convert_weights: str) -> torch.nn.Module:
    """Loads the weights of a file into a network that is to be converted; returns it unchanged without a path.

    Raises:
        ConfigurationError: if the weights do not fit, or there is no path but the conversion is to anneal a trained network.

    Example:
        >>> with_weights(torch.nn.Linear(1, 1), None, "anneal")
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: convert_weights='anneal' begins with a trained network: give --original_weights, ...
    """
    if path is not None:
        load_network(network, path)
    elif convert_weights == "anneal":
        raise ConfigurationError(
            "convert_weights='anneal' begins with a trained network: give --original_weights, the model.pt of a training with --conv plain."
        )
    return network


def load_network(network: torch.nn.Module, path: str | Path, device: str | torch.device = "cpu") -> None:
    """Loads a file with ``{"model": state_dict}`` or a ``state_dict`` into its network.

    Raises:
        ConfigurationError: if the file is not a checkpoint, has values that are not finite, or belongs to another network. If the file
            describes its network (:mod:`monai_gmr.networks.description`), this includes networks with the same names and shapes.
    """
    state = state_of(read_checkpoint(path, device), path)
    hint = "give the settings that it was trained with, such as --conv, --features and --kernel_sizes."
    check_description(state, network, path, hint)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).strip().splitlines()
        raise ConfigurationError(f"{path} is of another network ({first[-1].strip()}): {hint}") from error
    check_finite(network, state, path, "train again, with a smaller --learning_rate or other cases")
