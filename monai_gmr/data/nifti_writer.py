"""Writer of NIfTI files on the grid of another NIfTI file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.data import NibabelWriter
from monai.utils import convert_to_numpy


class SameGridWriter(NibabelWriter):
    """Writer for ``monai.transforms.SaveImaged`` that writes predictions on the grid of a NIfTI file, with both affines of its header,
    their codes and the units.

    MONAI's writer writes its reader's affine as both. If the sform has another voxel size than the header, as after an affine
    registration, that affine is the qform, and viewers show the prediction next to the image. Predictions for images that are not NIfTI
    files, or were resampled or rotated before, are written by MONAI's rules.

    Example:
        >>> from monai.transforms import LoadImage, SaveImage
        >>> folder = getfixture("tmp_path")
        >>> image = nib.Nifti1Image(np.zeros((8, 9, 7), np.uint8), np.eye(4))
        >>> image.set_sform(np.diag([3.0, 1, 1, 1]), code="mni")
        >>> nib.save(image, folder / "a.nii")
        >>> data = LoadImage(ensure_channel_first=True)(folder / "a.nii")
        >>> _ = SaveImage(folder, output_ext=".nii", separate_folder=False, resample=False, print_log=False, writer=SameGridWriter)(data)
        >>> np.diag(nib.load(folder / "a_trans.nii").affine).tolist(), np.diag(data.affine).tolist()
        ([3.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0])
    """

    source: Any = None

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        """Sets the affine like MONAI, and keeps the file of the image if the grid is still the same."""
        super().set_metadata(meta_dict, resample, **options)
        meta = meta_dict or {}
        path, affine = str(meta.get("filename_or_obj", "")), meta.get("original_affine")
        if affine is None or self.affine is None or not Path(path).is_file() or not path.endswith((".nii", ".nii.gz")):
            return
        affines = [convert_to_numpy(each, dtype=np.float64) for each in (affine, self.affine)]
        if affines[0].shape != affines[1].shape or not np.allclose(affines[0], affines[1]):
            return
        source: Any = nib.load(path)
        shape = np.shape(self.data_obj)
        if np.prod(shape) == np.prod(source.shape) and shape == source.shape[: len(shape)]:
            # MONAI drops trailing axes of one voxel
            self.data_obj, self.source = convert_to_numpy(self.data_obj).reshape(source.shape), source
        elif shape == source.shape[:3]:
            self.source = source

    def write(self, filename: PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Writes the file, then replaces its header."""
        super().write(filename, verbose=verbose, **obj_kwargs)
        if self.source is None:
            return
        image: Any = self.data_obj
        header = self.source.header
        # the qform sets the zooms
        image.set_sform(self.source.get_sform(), code=int(header["sform_code"]), update_affine=False)
        image.set_qform(self.source.get_qform(), code=int(header["qform_code"]), update_affine=False)
        image.header.set_zooms(header.get_zooms()[: image.ndim])
        image.header.set_xyzt_units(*header.get_xyzt_units())
        nib.save(type(image)(image.dataobj, None, image.header), filename)
