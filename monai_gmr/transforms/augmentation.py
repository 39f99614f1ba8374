"""Rotations and reflections as training augmentation, made of MONAI's random transforms, for a fair comparison with plain nets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from monai.config import KeysCollection
from monai.transforms import RandFlipd, RandRotate90d, RandRotated, Transform
from monai.utils import ensure_tuple

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import check_choice, check_number
from monai_gmr.symmetry.group_names import check_dims
from monai_gmr.transforms.rotate_about_axis import MODES, PADDING_MODES
from monai_gmr.utils import ConfigurationError

AUGMENTATIONS = ("none", "grid", "rotation")


@checked_arguments
def rotation_transforms(
    augmentation: str,
    keys: KeysCollection,
    spatial_dims: int,
    mode: str | Sequence[str] = "bilinear",
    padding_mode: str = "border",
    prob: float = 0.5,
) -> list[Transform]:
    """MONAI's random dictionary transforms that rotate and mirror all ``keys``, ``(C, *spatial)``, alike.

    In a lazy ``Compose`` they lose ``mode`` and ``padding_mode`` (MONAI issue 6850): labels become fractional unless ``Compose`` gets both
    for each key as ``overrides``.

    Args:
        augmentation: "none"; "grid": reflections along each axis and quarter turns in each plane, which together reach every symmetry of
            the voxel grid without interpolation; "rotation": also rotations by any angle about every axis.
        keys: keys of the images; quarter turns exchange the sizes of two axes, so patches should be cubes.
        spatial_dims: 2 or 3.
        mode: interpolation of the rotations by any angle, one or one per key: "bilinear" for images, "nearest" for labels.
        padding_mode: values beyond the frame: "border", "reflection" or "zeros".
        prob: probability of each reflection and of the rotation by any angle; quarter turns are always drawn, one of four.

    Example:
        >>> [type(t).__name__ for t in rotation_transforms("rotation", "image", 2)]
        ['RandFlipd', 'RandFlipd', 'RandRotate90d', 'RandRotated']
    """
    check_choice("augmentation", augmentation, AUGMENTATIONS)
    check_dims(spatial_dims)
    check_number("prob", prob, 0, 1)
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    modes = ensure_tuple(mode)
    for each in modes:
        check_choice("mode", each, MODES)
    number = len(ensure_tuple(keys))
    if len(modes) not in (1, number):
        raise ConfigurationError(f"mode has {len(modes)} entries for {number} keys: give one, or one per key.")
    if augmentation == "none":
        return []
    transforms: list[Transform] = [RandFlipd(keys, prob, spatial_axis=axis) for axis in range(spatial_dims)]
    # one to three quarter turns with probability 3/4: none, one, two and three are equally likely
    transforms += [RandRotate90d(keys, 0.75, spatial_axes=plane) for plane in combinations(range(spatial_dims), 2)]
    if augmentation == "rotation":
        other = math.pi if spatial_dims == 3 else 0.0
        transforms.append(RandRotated(keys, math.pi, other, other, prob, mode=mode, padding_mode=padding_mode))
    return transforms
