"""Transforms that rotate and mirror images, and that load and check cases."""

from monai_gmr.transforms.augmentation import AUGMENTATIONS, rotation_transforms
from monai_gmr.transforms.case_checks import check_finite, check_image, check_label
from monai_gmr.transforms.grid_symmetry import (
    GridSymmetry,
    GridSymmetryD,
    GridSymmetryd,
    GridSymmetryDict,
    RandGridSymmetry,
    RandGridSymmetryD,
    RandGridSymmetryd,
    RandGridSymmetryDict,
)
from monai_gmr.transforms.load_case import LoadCaseD, LoadCased, LoadCaseDict
from monai_gmr.transforms.rotate_about_axis import (
    RotateAboutAxis,
    RotateAboutAxisD,
    RotateAboutAxisd,
    RotateAboutAxisDict,
)

__all__ = [
    "AUGMENTATIONS",
    "GridSymmetry",
    "GridSymmetryD",
    "GridSymmetryDict",
    "GridSymmetryd",
    "LoadCaseD",
    "LoadCaseDict",
    "LoadCased",
    "RandGridSymmetry",
    "RandGridSymmetryD",
    "RandGridSymmetryDict",
    "RandGridSymmetryd",
    "RotateAboutAxis",
    "RotateAboutAxisD",
    "RotateAboutAxisDict",
    "RotateAboutAxisd",
    "check_finite",
    "check_image",
    "check_label",
    "rotation_transforms",
]
