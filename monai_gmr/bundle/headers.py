"""Checks of images by their headers, before a training reads their voxels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data.utils import compute_shape_offset, zoom_affine
from monai.utils import optional_import

from monai_gmr.data.prediction_layout import PICTURES
from monai_gmr.transforms.case_checks import check_shape
from monai_gmr.utils import ConfigurationError

Image, _ = optional_import("PIL.Image")
# channels of pictures by mode, for modes that are always read with as many
PICTURE_CHANNELS = {"1": 1, "L": 1, "RGB": 3}


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
        target = zoom_affine(affine, [voxel_size] * 3, diagonal=False)
        size = tuple(int(length) for length in compute_shape_offset(size, affine, target)[0])
        resampled = f" at voxel_size={voxel_size:g}"
    if levels is not None and max(size) <= 2 ** (levels - 1):
        raise ConfigurationError(
            f"the image {path} has {' x '.join(map(str, size))} voxels{resampled}, and {levels - 1} halvings leave one: give more "
            f"than {2 ** (levels - 1)} along an axis, take it out, or train with fewer --features or with --roi_size."
        )
