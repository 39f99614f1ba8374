"""Layout of prediction files: the folders of the images, one file per image."""

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
# pictures: 2D, without a position in space
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


def _absolute(path: PathLike) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _read_record(output_dir: Path) -> dict[str, str]:
    """Reads the images of earlier runs' predictions, keyed by prediction relative to the folder."""
    record = output_dir / RECORD
    if not record.is_file():
        return {}
    with open(record, newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.reader(file))
    # a classifier's results have the same file name
    return {row[0]: row[1] for row in rows[1:] if len(row) == 2} if rows[:1] == [COLUMNS] else {}


def known_predictions(output_dir: PathLike) -> set[Path]:
    """Returns the files that earlier runs wrote to a folder of predictions."""
    return {Path(output_dir, name).resolve() for name in _read_record(Path(output_dir))}


class PredictionLayout(FolderLayoutBase):
    """``folder_layout`` for ``monai.transforms.SaveImaged`` that is planned before the first prediction.

    Keeps the folders of the images, below the last folder that all share, under ``output_dir``. ``predictions.csv`` there lists the image
    of each prediction, so that a later run replaces only predictions of the same images. Pass ``extension`` and ``writer`` to
    ``SaveImaged`` as ``output_ext`` and ``writer``.

    Args:
        images: files to predict.
        output_dir: folder of the predictions, created with the first one.
        postfix: suffix of a prediction's name, after the name of the image.
        extension: extension of the predictions; default: PNG, with the classes as grey values, if all images are pictures (PNG, JPEG,
            BMP), otherwise NIfTI.

    Raises:
        ConfigurationError: if two predictions would have the same name, an image is listed twice, or a prediction would replace an
            image of this run or a file that is not a known prediction of the same image.

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
            # like MONAI's savers
            stem = Path(path.stem).stem if path.suffix == ".gz" else path.stem
            file = self.output_dir / path.parent.relative_to(root) / f"{stem}_{postfix}{self.extension}"
            # some file systems ignore case
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
        """Returns the prediction file of one of the ``images`` and creates its folder; ignores further arguments."""
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
