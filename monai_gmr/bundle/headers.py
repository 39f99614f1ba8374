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
# modes of pictures that are read with so many channels, whatever their values are
PICTURE_CHANNELS = {"1": 1, "L": 1, "RGB": 3}


def _read_header(path: Path) -> tuple[tuple[int, ...], np.ndarray | None] | None:
    """The shape ``(C, *spatial)`` with which ``LoadCased`` reads a file, and its affine if it has one; ``None`` where no header says it."""
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            image: Any = nib.load(path)
            *spatial, channels = image.shape if len(image.shape) > 3 else (*image.shape, 1)
            # an empty one is squeezed as it is read
            return ((channels, *spatial), image.affine) if np.prod(image.shape) else None
        if name.endswith(PICTURES):
            with Image.open(path) as picture:
                channels = PICTURE_CHANNELS.get(picture.mode, 0)
                return ((channels, *picture.size), None) if channels else None
    except Exception:
        # what is wrong with it is said when it is read
        return None
    return None


def check_header(
    path: str | Path,
    spatial_dims: int,
    in_channels: int,
    levels: int | None = None,
    voxel_size: float | None = None,
) -> None:
    """Raise :class:`ConfigurationError` when the header of a NIfTI file or picture says that a network cannot take the image.

    Other files, and what a header does not say, are left to :class:`~monai_gmr.transforms.LoadCased`.

    Args:
        path: of the image.
        spatial_dims, in_channels: as for :func:`~monai_gmr.transforms.check_image`.
        levels: of a U-Net that is given whole images; it halves them ``levels - 1`` times and must have more than one voxel left.
        voxel_size: in millimetres, that images are resampled to before; ``None`` leaves them as they are.

    Example:
        >>> file = getfixture("tmp_path") / "small.nii"
        >>> nib.save(nib.Nifti1Image(np.zeros((4, 4, 3), np.uint8), np.eye(4)), file)
        >>> check_header(file, spatial_dims=3, in_channels=1, levels=3)
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: the image ...small.nii has 4 x 4 x 3 voxels, of which 2 halvings leave one: give more than 4 ...
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
            f"the image {path} has {' x '.join(map(str, size))} voxels{resampled}, of which {levels - 1} halvings leave one: give more "
            f"than {2 ** (levels - 1)} along an axis, take it out, or train with fewer --features or with --roi_size."
        )
