"""Transforms that turn and mirror images."""

from monai_gmr.transforms.augmentation import AUGMENTATIONS, turning_transforms
from monai_gmr.transforms.grid_symmetry import GridSymmetry, GridSymmetryD, GridSymmetryd, GridSymmetryDict
from monai_gmr.transforms.rand_grid_symmetry import (
    RandGridSymmetry,
    RandGridSymmetryD,
    RandGridSymmetryd,
    RandGridSymmetryDict,
)
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
    "RandGridSymmetry",
    "RandGridSymmetryD",
    "RandGridSymmetryDict",
    "RandGridSymmetryd",
    "RotateAboutAxis",
    "RotateAboutAxisD",
    "RotateAboutAxisDict",
    "RotateAboutAxisd",
    "turning_transforms",
]
