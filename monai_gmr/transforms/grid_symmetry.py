"""Rotate and mirror images by a symmetry of the voxel grid: exact, invertible, lazy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_obj import get_track_meta
from monai.data.meta_tensor import MetaTensor
from monai.transforms import InvertibleTransform, LazyTransform, Rotate90
from monai.utils import TraceKeys, convert_to_tensor

from monai_gmr.symmetry import grid_element
from monai_gmr.transforms.functional import DictionaryTransform, image_shape, transform_by_element
from monai_gmr.utils import ConfigurationError

Element = int | str | Sequence[Sequence[int]] | np.ndarray


class GridSymmetry(InvertibleTransform, LazyTransform):
    """Rotate or mirror an image by one symmetry of the voxel grid: quarter turns, reflections and their products.

    2D images have 8 of them (D4), 3D images 48 (Oh). Voxels are moved, never interpolated; the result is a copy. The affine follows, so
    that every voxel keeps its place in the world, as with MONAI's ``Flip`` and ``Rotate90``. An element that exchanges two axes exchanges
    their sizes and spacings, too. In a lazy chain it keeps the interpolation and padding mode of the transform before it.

    Args:
        element: index into :func:`~monai_gmr.symmetry.point_group` (0 is the identity); name such as "4+ [001]", "m [100]" or "-y,x,z"
            (:func:`~monai_gmr.symmetry.element_name`); or signed permutation matrix of shape ``(d, d)``. Axes are array axes.
        lazy: whether to execute lazily (MONAI's lazy resampling), which gives float32 and, for 2D images, an affine of shape (3, 3).

    Raises:
        ConfigurationError: when the images have no such element.

    Example:
        >>> image = MetaTensor(torch.arange(6.0).reshape(1, 2, 3), affine=torch.eye(4))
        >>> rotated = GridSymmetry("4+")(image)
        >>> rotated[0].tolist()
        [[2.0, 5.0], [1.0, 4.0], [0.0, 3.0]]
        >>> bool((GridSymmetry("4+")(rotated) == GridSymmetry("2")(image)).all())
        True

    Source:
        the signatures and the tracing are those of ``monai.transforms.Rotate90``.
    """

    backend = Rotate90.backend

    def __init__(self, element: Element, lazy: bool = False) -> None:
        LazyTransform.__init__(self, lazy=lazy)
        try:
            grid_element(element, 2)
        except ConfigurationError:
            # the sentence about 3D says more, and a matrix of two axes is valid already
            grid_element(element, 3)
        self.element = element

    def __call__(self, img: torch.Tensor, lazy: bool | None = None) -> torch.Tensor:
        """The transformed image of the same dtype, its spatial sizes permuted with the axes.

        Args:
            img: tensor, MetaTensor or array of shape ``(C, *spatial)``, 2D or 3D.
            lazy: overrides the setting of the transform for this call.
        """
        img = convert_to_tensor(img, track_meta=get_track_meta())
        lazy_ = (self.lazy if lazy is None else lazy) and isinstance(img, MetaTensor)
        element = grid_element(self.element, len(image_shape(img)))
        return transform_by_element(img, element, lazy=lazy_, transform_info=self.get_transform_info())

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """The image transformed back, exactly."""
        return self.inverse_transform(data, self.pop_transform(data))

    def inverse_transform(self, data: torch.Tensor, transform: Mapping) -> torch.Tensor:
        """The image transformed back by the traced ``transform``."""
        inverse = GridSymmetry(np.array(transform[TraceKeys.EXTRA_INFO]["element"]).T)
        with inverse.trace_transform(False):
            return inverse(data)


class GridSymmetryd(DictionaryTransform):
    """Dictionary form of :class:`GridSymmetry`: all keys are transformed by the same element.

    Args:
        keys: items of shape ``(C, *spatial)``, such as image and label.
        element, lazy: as for :class:`GridSymmetry`.
        allow_missing_keys: whether items may lack keys.

    Example:
        >>> data = {"image": torch.rand(1, 4, 5, 6), "label": torch.ones(1, 4, 5, 6)}
        >>> {key: tuple(item.shape) for key, item in GridSymmetryd(["image", "label"], "4+ [001]")(data).items()}
        {'image': (1, 5, 4, 6), 'label': (1, 5, 4, 6)}
    """

    backend = GridSymmetry.backend

    def __init__(
        self, keys: KeysCollection, element: Element, allow_missing_keys: bool = False, lazy: bool = False
    ) -> None:
        super().__init__(keys, GridSymmetry(element, lazy=lazy), allow_missing_keys, lazy)


GridSymmetryD = GridSymmetryDict = GridSymmetryd
