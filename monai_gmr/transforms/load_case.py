"""Loads a case, image and label, and checks it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, PILReader
from monai.transforms import LoadImage, MapLabelValue, MapTransform, ResampleToMatch

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import check_choice
from monai_gmr.transforms.case_checks import check_image, check_label, describe_offset
from monai_gmr.utils import ConfigurationError

LABEL_AFFINES = ("refuse", "resample", "ignore")
# header codes of complex64, complex128 and complex256; MONAI's LoadImage drops the imaginary part
NIFTI_COMPLEX = (32, 1792, 2048)
# first bytes of files that are not images, and what they are
OTHER_FILES = {
    b"\x00\x05\x16\x07": "the file that macOS keeps beside another one (AppleDouble)",
    b"<!DOCTYPE": "a web page",
}


def _plain_picture(picture: Any) -> Any:
    """Picture with colours as channels: looks up indices of a palette, and drops an opaque alpha channel."""
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA")
        bands = picture.split()
        if all(band.tobytes() == bands[0].tobytes() for band in bands[1:3]):
            picture = picture.convert("LA")
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode in ("RGBA", "LA") and picture.getchannel("A").getextrema() == (255, 255):
        return picture.convert(picture.mode[:-1])
    return picture


def _cause(path: Path, error: BaseException) -> str:
    """Why a file cannot be read, in a few words."""
    if not path.exists():
        return "it is not there"
    if path.is_dir():
        return "it is a folder"
    if path.is_file():
        with open(path, "rb") as file:
            start = file.read(16)
        if not start:
            return "it is empty"
        for beginning, what in OTHER_FILES.items():
            if start.startswith(beginning):
                return f"it is {what}"
    while error.__cause__ is not None:
        error = error.__cause__
    if "('R', 'u1')" in str(error):
        return "its voxels are RGB colours"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return "no reader knows its format" if "suitable reader" in lines[0] else lines[0].rstrip(".")


class LoadCased(MapTransform):
    """Reads an image, and its label if there is one, like ``monai.transforms.LoadImaged``, and checks both.

    An image must be readable, real, finite, not empty, and of the network's number of axes and channels. A label must also have the shape
    of the image, one channel, integer values that are classes of the network, and the position of the image: the corners of both grids
    differ by at most a tenth of a voxel. In pictures (PNG, JPEG, BMP) the colours of a palette are looked up and an opaque alpha channel is
    dropped.

    Files become float32 ``MetaTensor`` s of shape ``(C, *spatial)``.

    Args:
        keys: the image, then the label if there is one.
        spatial_dims, in_channels: as for :func:`~monai_gmr.transforms.check_image`.
        out_channels: classes of the network, the background included; needed for a label.
        label_values: values of the labels, one per class, such as ``(0, 1, 4)``, if they are not 0, 1, 2, ...: labels become indices of
            this list, by ``monai.transforms.MapLabelValue``.
        label_affine: for a label whose affine differs from the image's. "refuse": raise; "resample": resample a label of any shape to the
            image's grid, by nearest neighbour, with 0 outside the label; "ignore": use its voxels as they are.

    Raises:
        ConfigurationError: if a file does not pass, with its name, or a setting is unknown.

    Example:
        >>> import nibabel
        >>> file = getfixture("tmp_path") / "image.nii"
        >>> nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)), file)
        >>> LoadCased("image", spatial_dims=3, in_channels=1)({"image": file})["image"].shape
        torch.Size([1, 8, 8, 8])
    """

    @checked_arguments
    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int,
        in_channels: int | Sequence[int],
        out_channels: int | None = None,
        label_affine: str = "refuse",
        label_values: Sequence[int] | None = None,
    ) -> None:
        super().__init__(keys)
        check_choice("label_affine", label_affine, LABEL_AFFINES)
        if len(self.keys) > 2 or (len(self.keys) == 2 and out_channels is None):
            raise ConfigurationError(
                f"keys={self.keys} with out_channels={out_channels} cannot be loaded: give the key of the image, or those of "
                "image and label and the number of classes."
            )
        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels
        self.label_affine, self.label_values = label_affine, label_values
        self.map_values = None
        if label_values is not None:
            if len(set(label_values)) != out_channels or len(label_values) != out_channels:
                raise ConfigurationError(
                    f"label_values={list(label_values)} cannot be used with out_channels={out_channels}: give as many values as classes, "
                    "none of them twice."
                )
            self.map_values = MapLabelValue(label_values, range(len(label_values)))
        self.load = LoadImage(image_only=True, ensure_channel_first=True)
        # the last registered reader is tried first
        self.load.register(PILReader(converter=_plain_picture))
        self.match = ResampleToMatch(mode="nearest", padding_mode="zeros")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Loads and checks one case."""
        case = dict(data)
        image_key, *label_keys = self.keys
        name = f"the image {case[image_key]}"
        image = self._read(case[image_key])
        check_image(image, self.spatial_dims, self.in_channels, name)
        for key in label_keys:
            case[key] = self._read_label(case[key], image, name)
        case[image_key] = image
        return case

    def _read(self, path: Any) -> Any:
        try:
            image = self.load(path)
        except Exception as error:
            raise ConfigurationError(
                f"{path} cannot be read as an image ({_cause(Path(path), error)}): give NIfTI, or another format that MONAI's "
                "LoadImage reads, or take it out."
            ) from error
        if image.meta.get("datatype") in NIFTI_COMPLEX or (
            str(path).endswith(".npy") and np.load(path, mmap_mode="r").dtype.kind == "c"
        ):
            raise ConfigurationError(f"{path} holds complex numbers: give their magnitude, or another real part.")
        return image

    def _read_label(self, path: Any, image: torch.Tensor, image_name: str) -> torch.Tensor:
        """The label of an image, on its grid."""
        label, name = self._read(path), f"the label {path}"
        if label.shape[0] != 1:
            raise ConfigurationError(f"{name} has {label.shape[0]} channels: give one, of class indices from 0 on.")
        assert self.out_channels is not None
        # before it is resampled or cast
        check_label(label, self.out_channels, name=name, label_values=self.label_values)
        # later casts may truncate
        label = label.round()
        label = label if self.map_values is None else self.map_values(label)
        resample = self.label_affine == "resample"
        shapes = tuple(label.shape[1:]), tuple(image.shape[1:])
        if shapes[0] != shapes[1] and not (resample and len(shapes[0]) == len(shapes[1])):
            raise ConfigurationError(f"{name} has the shape {shapes[0]} and {image_name} {shapes[1]}: make them equal.")
        if self.label_affine == "ignore" or not (isinstance(label, MetaTensor) and isinstance(image, MetaTensor)):
            return label
        affine, reference = (np.asarray(part.affine, np.float64) for part in (label, image))
        try:
            offset = describe_offset(affine, reference, shapes[1]) or "of another shape" * (shapes[0] != shapes[1])
        except ConfigurationError as error:
            raise ConfigurationError(f"{name} cannot be compared with {image_name}: {error}") from error
        if offset and not resample:
            raise ConfigurationError(
                f"{name} does not lie where {image_name} does, it is {offset}: correct its affine, or give --label_affine resample "
                "to resample it to the grid of the image, or ignore to use its voxels as they are."
            )
        return self.match(label, image) if offset else label


LoadCaseD = LoadCaseDict = LoadCased
