"""Transforms that rotate and mirror images, and the loading of cases with its checks."""

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

__all__ = ["GridSymmetry", "GridSymmetryD", "GridSymmetryDict", "GridSymmetryd"]
__all__ += ["RandGridSymmetry", "RandGridSymmetryD", "RandGridSymmetryDict", "RandGridSymmetryd"]
__all__ += ["RotateAboutAxis", "RotateAboutAxisD", "RotateAboutAxisDict", "RotateAboutAxisd"]
__all__ += ["LoadCaseD", "LoadCaseDict", "LoadCased", "check_finite", "check_image", "check_label"]
__all__ += ["AUGMENTATIONS", "rotation_transforms"]
