"""Phantoms: labelled volumes of tubes, ellipsoids and plates, to try segmentation without data."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike
from scipy import ndimage
from scipy.spatial.transform import Rotation

from monai_gmr.annotations import Seed, checked_arguments
from monai_gmr.arguments import check_choice, check_count, check_number, voxel_spacing
from monai_gmr.files import replacing, write_text
from monai_gmr.symmetry import rotation_matrix
from monai_gmr.utils import ConfigurationError, progress_bar

PHANTOM_LABELS = {"background": 0, "tube": 1, "ellipsoid": 2, "plate": 3}
"""Label values; 2D phantoms hold only the first three, because a plate would be a tube."""

POSES = ("upright", "random")
NOISES = ("rician", "gaussian")
UPRIGHT_SPREAD = 8.0
PLACEMENTS = 60
VERSION = 1


def _pose(spatial_dims: int, pose: str, rng: np.random.Generator) -> np.ndarray:
    """Draws a rotation matrix: uniform over all rotations, or a few degrees about the identity."""
    if spatial_dims == 2:
        return rotation_matrix(2, rng.uniform(0, 360) if pose == "random" else rng.normal(0, UPRIGHT_SPREAD))
    if pose == "random":
        return Rotation.from_quat(rng.normal(size=4)).as_matrix()
    return Rotation.from_rotvec(np.deg2rad(rng.normal(0, UPRIGHT_SPREAD, 3))).as_matrix()


def _inside(kind: str, offset: np.ndarray, extent: float, rng: np.random.Generator) -> np.ndarray:
    """Makes the mask of a tube along axis 0, an ellipsoid longest along axis 1 or a plate across axis 0, of random size.

    ``offset`` holds the positions relative to its centre, ``(d, *spatial)``; ``extent`` is the shortest side of the volume, in millimetres.
    """
    spatial_dims = len(offset)
    thickness = extent * rng.uniform(0.045, 0.065)
    if kind == "tube":
        along = np.maximum(np.abs(offset[0]) - extent * rng.uniform(0.16, 0.26), 0)
        return along**2 + (offset[1:] ** 2).sum(0) <= thickness**2
    if kind == "plate":
        width = extent * rng.uniform(0.13, 0.19)
        return (np.abs(offset[0]) <= thickness) & ((offset[1:] ** 2).sum(0) <= width**2)
    axes = extent * rng.uniform(0.13, 0.17) * np.array([0.65, 1.0, 0.65])[:spatial_dims]
    return ((offset.T / axes) ** 2).sum(-1).T <= 1


@checked_arguments
def make_phantom(
    spatial_shape: Sequence[int],
    num_objects: int = 4,
    *,
    spacing: Sequence[float] | None = None,
    pose: str = "upright",
    noise: str = "rician",
    noise_level: float = 0.08,
    bias_field: float = 0.3,
    blur: float = 0.6,
    seed: Seed | Sequence[Seed] = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Makes a volume of tubes, ellipsoids and plates that do not touch: a float32 image and a uint8 label (:data:`PHANTOM_LABELS`).

    All structures are equally bright, 1 plus or minus 5 % over a background of 0.3: only their shape differs. In the pose ``"upright"``
    tubes run along axis 0 and plates lie across it, within 8 degrees (one standard deviation), so a network can separate them by
    direction, which fails on rotated images.

    Args:
        spatial_shape: 2 or 3 sizes in voxels, each at least 16.
        num_objects: structures of each kind; fewer if there is no room.
        spacing: voxel size in millimetres, one per axis; default 1. Structures scale with the shortest side.
        pose: ``"upright"``, or ``"random"`` for a uniform random rotation of each structure.
        noise: ``"rician"`` as in magnitude MRI, or ``"gaussian"``.
        noise_level: standard deviation of the noise; for Rician noise of each of its two components.
        bias_field: half the range of the logarithm of the smooth field that multiplies the image.
        blur: standard deviation of the Gaussian point spread, in units of the smallest voxel side.
        seed: seed of all random numbers.

    Raises:
        ConfigurationError: if an argument is out of its range.

    Example:
        >>> image, label = make_phantom((24, 24, 24), seed=1)
        >>> image.shape, image.dtype, np.unique(label).tolist()
        ((24, 24, 24), dtype('float32'), [0, 1, 2, 3])
    """
    shape, step = _check(spatial_shape, num_objects, spacing, pose)
    check_choice("noise", noise, NOISES)
    for name, value in (("noise_level", noise_level), ("bias_field", bias_field), ("blur", blur)):
        check_number(name, value, 0)
    rng = np.random.default_rng(seed)
    spatial_dims = len(shape)
    sides = np.array(shape) * step
    axes = [(np.arange(n) + 0.5) * s for n, s in zip(shape, step)]
    position = np.stack(np.meshgrid(*axes, indexing="ij"))
    label, signal, touched = np.zeros(shape, np.uint8), np.full(shape, 0.3), np.zeros(shape, bool)
    kinds = list(PHANTOM_LABELS)[1 : 1 + spatial_dims]
    for kind in kinds * num_objects:
        for _ in range(PLACEMENTS):
            centre = sides * rng.uniform(0.12, 0.88, spatial_dims)
            rotation = _pose(spatial_dims, pose, rng)
            offset = np.tensordot(rotation.T, position - centre.reshape(-1, *[1] * spatial_dims), axes=1)
            mask = _inside(kind, offset, float(sides.min()), rng)
            if mask.any() and not (mask & touched).any():
                label[mask] = PHANTOM_LABELS[kind]
                signal[mask] = rng.normal(1.0, 0.05)
                touched |= ndimage.binary_dilation(mask, iterations=2)
                break

    image = ndimage.gaussian_filter(signal, blur * step.min() / step)
    coarse = ndimage.zoom(rng.uniform(-1, 1, (4,) * spatial_dims), np.array(shape) / 4, order=3, mode="nearest")
    image = image * np.exp(bias_field * coarse / np.abs(coarse).max())
    noisy = image + noise_level * rng.normal(size=shape)
    if noise == "rician":
        noisy = np.hypot(noisy, noise_level * rng.normal(size=shape))
    return noisy.astype(np.float32), label


def _check(
    spatial_shape: Sequence[int], num_objects: int, spacing: Sequence[float] | None, pose: str
) -> tuple[tuple[int, ...], np.ndarray]:
    shape = tuple(int(n) for n in spatial_shape)
    if len(shape) not in (2, 3) or min(shape) < 16:
        raise ConfigurationError(f"spatial_shape={shape} cannot hold a phantom: give 2 or 3 sizes, at least 16.")
    step = np.array(voxel_spacing(spacing, len(shape)))
    check_count("num_objects", num_objects)
    check_choice("pose", pose, POSES)
    return shape, step


def _origin(path: Path) -> str | None:
    """Reads the note of :func:`write_phantoms` in the header of a file; ``None`` if it cannot be read."""
    try:
        return nib.Nifti1Image.from_filename(path).header["descrip"].item().decode(errors="replace")
    except (nib.filebasedimages.ImageFileError, EOFError, OSError):
        return None


@checked_arguments
def write_phantoms(
    output_dir: PathLike,
    num_training: int = 16,
    num_validation: int = 4,
    num_test: int = 4,
    spatial_shape: Sequence[int] = (48, 48, 48),
    *,
    spacing: Sequence[float] | None = None,
    pose: str = "upright",
    num_objects: int = 4,
    seed: Seed = 0,
    progress: bool = True,
) -> Path:
    """Writes phantoms as NIfTI in the layout of the Medical Segmentation Decathlon; returns the path of ``dataset.json``, written last.

    Keeps an existing data set with the same arguments, and completes an interrupted one.

    Args:
        output_dir: folder to write to; created if missing.
        num_training, num_validation, num_test: volumes of the sections.
        spatial_shape, spacing, pose, num_objects: see :func:`make_phantom`.
        seed: seed of all volumes.
        progress: whether to show a progress bar.

    Raises:
        ConfigurationError: if an argument is out of its range, or the folder holds another data set.

    Example:
        >>> from monai.data import load_decathlon_datalist
        >>> file = write_phantoms(getfixture("tmp_path"), 2, 1, 1, (16, 16, 16), progress=False)
        >>> len(load_decathlon_datalist(file, data_list_key="training"))
        2
    """
    shape, step = _check(spatial_shape, num_objects, spacing, pose)
    counts = {"training": num_training, "validation": num_validation, "test": num_test}
    if min(counts.values()) < 0 or sum(counts.values()) == 0:
        raise ConfigurationError(f"The numbers of volumes {counts} make no data set: give numbers from 0, not all 0.")
    folder = Path(output_dir)
    listing = folder / "dataset.json"
    phantom = {"spatial_shape": list(shape), "spacing": step.tolist(), "pose": pose, "num_objects": num_objects}
    phantom |= {"seed": seed, "version": VERSION}
    cases = [f"phantom_{i:03d}.nii.gz" for i in range(sum(counts.values()))]
    entries = [{"image": f"./imagesTr/{case}", "label": f"./labelsTr/{case}"} for case in cases]
    labels = {str(value): kind for kind, value in list(PHANTOM_LABELS.items())[: 1 + len(shape)]}
    content: dict[str, Any] = {"name": "phantoms", "labels": labels, "phantom": phantom}
    remaining = iter(entries)
    content |= {section: list(itertools.islice(remaining, number)) for section, number in counts.items()}

    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"output_dir {folder} is a file: give a folder.")
    if listing.is_file():
        try:
            same = json.loads(listing.read_text()) == content
        except ValueError:
            same = False
        if not same:
            raise ConfigurationError(
                f"{folder} holds another data set ({listing.name} differs): give another output_dir, or delete it."
            )
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    affine = np.diag([*step, *np.ones(4 - len(step))])
    recipe = hashlib.sha256(json.dumps(phantom, sort_keys=True).encode()).hexdigest()[:16]
    for index, entry in progress_bar(list(enumerate(entries)), "Making phantoms", progress):
        # written to the header, so that a later run recognises these files
        origin = f"monai_gmr phantom {recipe} {index}"
        files = [folder / entry[key] for key in ("image", "label")]
        missing = [_origin(file) != origin for file in files]
        if not any(missing):
            continue
        volumes = make_phantom(shape, num_objects, spacing=step.tolist(), pose=pose, seed=(seed, index))
        for volume, file in itertools.compress(zip(volumes, files), missing):
            nifti = nib.Nifti1Image(volume, affine)
            nifti.header["descrip"] = origin
            with replacing(file) as temporary:
                nib.save(nifti, temporary)
    if not listing.is_file():
        write_text(json.dumps(content, indent=1), listing)
    return listing
