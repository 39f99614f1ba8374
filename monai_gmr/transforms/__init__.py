"""Transforms that turn and mirror images."""

from monai_gmr.transforms.augmentation import AUGMENTATIONS, turning_transforms

__all__ = ["AUGMENTATIONS", "turning_transforms"]
