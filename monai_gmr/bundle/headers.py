"""Checks of images by their headers, before their voxels are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data.utils import compute_shape_offset, zoom_affine
from monai.transforms import Spacing, Spacingd
from monai.utils import optional_import

from monai_gmr.bundle.config_parts import transforms_in
from monai_gmr.data.prediction_layout import PICTURES
from monai_gmr.transforms.case_checks import check_shape
from monai_gmr.utils import ConfigurationError

Image, _ = optional_import("PIL.Image")
# channels of pictures by mode, for modes that are always read with as many
PICTURE_CHANNELS = {"1": 1, "L": 1, "RGB": 3}
# from 5 mm to 0.5 mm along every axis; beyond it, a wrong voxel size is likelier than such an image
MOST_GROWTH = 1000


def _read_header(path: Path) -> tuple[tuple[int, ...], np.ndarray | None] | None:
    """Reads the shape ``(C, *spatial)`` that ``LoadCased`` gives a file, and its affine if any; ``None`` if the header lacks it."""
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            image: Any = nib.load(path)
            *spatial, channels = image.shape if len(image.shape) > 3 else (*image.shape, 1)
            # an empty image loses axes when it is read
            return ((channels, *spatial), image.affine) if np.prod(image.shape) else None
        if name.endswith(PICTURES):
            with Image.open(path) as picture:
                channels = PICTURE_CHANNELS.get(picture.mode, 0)
                return ((channels, *picture.size), None) if channels else None
    except Exception:
        # LoadCased reports the fault
        return None
    return None


def _resampled_size(size: Sequence[int], affine: np.ndarray, voxel_size: Sequence[float]) -> tuple[int, ...]:
    """Returns the size that MONAI's ``Spacing`` gives an image of three axes."""
    target = zoom_affine(affine, voxel_size, diagonal=False)
    return tuple(int(length) for length in compute_shape_offset(size, affine, target)[0])


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def describe_resampling(path: str | Path, preprocessing: Any) -> str:
    """Describes how a preprocessing with MONAI's ``Spacing`` resamples a NIfTI file of three axes; empty if it does not, or is unknown.

    Raises :class:`ConfigurationError` if the result has more than ``MOST_GROWTH`` times as many voxels, which may not fit into memory.

    Example:
        >>> file = getfixture("tmp_path") / "scan.nii"
        >>> nib.save(nib.Nifti1Image(np.zeros((4, 4, 3), np.uint8), np.diag([2, 2, 1, 1])), file)
        >>> describe_resampling(file, Spacing(1.0))
        'its 4 x 4 x 3 voxels of 2 x 2 x 1 mm are resampled to 7 x 7 x 3'
    """
    spacings: list[Any] = [each for each in transforms_in(preprocessing) if isinstance(each, (Spacing, Spacingd))]
    header = _read_header(Path(path)) if spacings else None
    if header is None or header[1] is None or len(header[0]) != 4:
        return ""
    size, affine = header[0][1:], header[1]
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    given = getattr(spacings[0], "spacing_transform", spacings[0]).pixdim
    # like Spacing: the last one for the further axes, and the file's own for what is no size
    wanted = np.append(given, [given[-1]] * 3)[:3]
    wanted = np.where(np.isfinite(wanted) & (wanted > 0), wanted, steps)
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        # LoadCased reports the fault
        return ""
    result = _resampled_size(size, affine, wanted.tolist())
    text = f"its {_times(size)} voxels of {_times(steps)} mm are resampled to {_times(result)}"
    if np.prod(result, dtype=float) > MOST_GROWTH * np.prod(size, dtype=float):
        raise ConfigurationError(
            f"the image {path} grows too much, {text}: correct the voxel size in its header, or give a larger voxel_size."
        )
    return text


def check_header(
    path: str | Path,
    spatial_dims: int,
    in_channels: int,
    levels: int | None = None,
    voxel_size: float | None = None,
) -> None:
    """Raises :class:`ConfigurationError` if a network cannot take an image, according to the header of its NIfTI file or picture.

    Other formats, and properties outside the header, are checked by :class:`~monai_gmr.transforms.LoadCased`.

    Args:
        path: path of the image.
        spatial_dims, in_channels: as for :func:`~monai_gmr.transforms.check_image`.
        levels: levels of a U-Net on whole images, which halves them ``levels - 1`` times and needs more than one voxel at the end.
        voxel_size: voxel size in millimetres to which images are resampled first; ``None``: no resampling.

    Example:
        >>> file = getfixture("tmp_path") / "small.nii"
        >>> nib.save(nib.Nifti1Image(np.zeros((4, 4, 3), np.uint8), np.eye(4)), file)
        >>> check_header(file, spatial_dims=3, in_channels=1, levels=3)
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: the image ...small.nii has 4 x 4 x 3 voxels, and 2 halvings leave one: give more than 4 ...
    """
    header = _read_header(Path(path))
    if header is None:
        return
    shape, affine = header
    check_shape(shape, spatial_dims, in_channels, f"the image {path}")
    size, resampled = shape[1:], ""
    if voxel_size is not None and affine is not None:
        size = _resampled_size(size, affine, [voxel_size] * 3)
        resampled = f" at voxel_size={voxel_size:g}"
    if levels is not None and max(size) <= 2 ** (levels - 1):
        raise ConfigurationError(
            f"the image {path} has {' x '.join(map(str, size))} voxels{resampled}, and {levels - 1} halvings leave one: give more "
            f"than {2 ** (levels - 1)} along an axis, take it out, or train with fewer --features or with --roi_size."
        )
