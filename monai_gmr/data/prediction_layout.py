"""Where predictions are written: in the folders of the images, each in a file of its own."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from monai.config import PathLike
from monai.data import FolderLayoutBase

from monai_gmr.annotations import checked_arguments
from monai_gmr.data.nifti_writer import SameGridWriter
from monai_gmr.utils import ConfigurationError

RECORD = "predictions.csv"
COLUMNS = ["prediction", "image"]
# pictures: 2D, without a place in space
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


def _absolute(path: PathLike) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _read_record(output_dir: Path) -> dict[str, str]:
    """Prediction, relative to the folder, to its image, as earlier runs wrote them."""
    record = output_dir / RECORD
    if not record.is_file():
        return {}
    with open(record, newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.reader(file))
    # a classifier's results have the same name
    return {row[0]: row[1] for row in rows[1:] if len(row) == 2} if rows[:1] == [COLUMNS] else {}


def known_predictions(output_dir: PathLike) -> set[Path]:
    """The files that earlier runs wrote to a folder of predictions."""
    return {Path(output_dir, name).resolve() for name in _read_record(Path(output_dir))}


class PredictionLayout(FolderLayoutBase):
    """``folder_layout`` of ``monai.transforms.SaveImaged`` that is planned before the first image is predicted.

    The folders of the images below the last one that they share are kept under ``output_dir``. ``predictions.csv`` there says which
    image each prediction is of, so that a later run replaces those of the same images only. ``extension`` and ``writer`` are for
    ``output_ext`` and ``writer`` of ``SaveImaged``.

    Args:
        images: files that are to be predicted.
        output_dir: folder of the predictions, made with the first one.
        postfix: end of the name of a prediction, behind that of the image.
        extension: ending of the predictions; default: PNG, with the classes as grey values, where all images are pictures (PNG, JPEG,
            BMP), and NIfTI otherwise.

    Raises:
        ConfigurationError: when two predictions would have one name, when an image is listed twice, or when a file is there already
            that is an image of this run or is not known to be a prediction of the same image.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> layout = PredictionLayout(["a/t1.nii.gz", "b/t1.nii"], folder / "out")
        >>> [str(path.relative_to(folder)) for path in layout.files.values()]
        ['out/a/t1_seg.nii.gz', 'out/b/t1_seg.nii.gz']
    """

    @checked_arguments
    def __init__(
        self,
        images: Sequence[PathLike],
        output_dir: PathLike,
        postfix: str = "seg",
        extension: Annotated[str | None, "an ending such as '.nii.gz'"] = None,
    ) -> None:
        self.output_dir = _absolute(output_dir)
        are_pictures = bool(images) and all(str(image).lower().endswith(PICTURES) for image in images)
        self.extension = extension or (".png" if are_pictures else ".nii.gz")
        self.writer = SameGridWriter if self.extension in (".nii", ".nii.gz") else None
        self._written = _read_record(self.output_dir)
        self.files: dict[Path, Path] = {}
        paths = [_absolute(image) for image in images]
        root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
        taken: dict[str, Path] = {}
        for path in paths:
            if path in self.files:
                raise ConfigurationError(f"{path} is listed twice: take one out of the list.")
            # as MONAI's savers take it
            stem = Path(path.stem).stem if path.suffix == ".gz" else path.stem
            file = self.output_dir / path.parent.relative_to(root) / f"{stem}_{postfix}{self.extension}"
            # on some file systems capitals make no other name
            other = taken.setdefault(str(file).casefold(), path)
            if other is not path:
                raise ConfigurationError(f"{other} and {path} would both be predicted as {file}: rename one.")
            self.files[path] = file
        inputs = {os.path.realpath(path) for path in paths}
        for path, file in self.files.items():
            if os.path.realpath(file) in inputs:
                raise ConfigurationError(
                    f"the prediction of {path} would replace the image {file}: give another --output_dir."
                )
            known = self._written.get(self._name(file))
            if file.exists() and known != str(path):
                what = f"is the prediction of {known}" if known else "is no known prediction"
                raise ConfigurationError(
                    f"{file} is there, {what}, and would be replaced by that of {path}: give another --output_dir."
                )

    def _name(self, file: Path) -> str:
        return file.relative_to(self.output_dir).as_posix()

    def filename(self, subject: PathLike = "subject", idx: Any = None, **kwargs: Any) -> Path:
        """The file of the prediction of an image that was given; its folder is made. Further arguments are not used."""
        path = _absolute(subject)
        file = self.files[path]
        file.parent.mkdir(parents=True, exist_ok=True)
        if self._written.get(self._name(file)) != str(path):
            with open(self.output_dir / RECORD, "a", newline="", encoding="utf-8") as record:
                writer = csv.writer(record, lineterminator="\n")
                if not self._written:
                    writer.writerow(COLUMNS)
                writer.writerow([self._name(file), str(path)])
            self._written[self._name(file)] = str(path)
        return file
