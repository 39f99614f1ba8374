"""Turn and mirror images by a symmetry of the voxel grid: exact, invertible, lazy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_obj import get_track_meta
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import InvertibleTransform, LazyTransform, MapTransform, Rotate90
from monai.transforms.inverse import TraceableTransform
from monai.utils import LazyAttr, TraceKeys, convert_to_tensor

from monai_gmr.symmetry import element_name, grid_element, transform_grid
from monai_gmr.utils import ConfigurationError

Element = int | str | Sequence[Sequence[int]] | np.ndarray


def check_element(element: Element) -> None:
    """Raise :class:`~monai_gmr.utils.ConfigurationError` when neither 2D nor 3D images have such a symmetry.

    Example:
        >>> check_element("4+ [001]")
    """
    try:
        grid_element(element, 2)
    except ConfigurationError:
        # of two sentences that of 3D says more, and a matrix of two axes has passed already
        grid_element(element, 3)


def image_shape(img: torch.Tensor) -> tuple[int, ...]:
    """Spatial shape in voxels of a channel-first image, that after its pending operations.

    Args:
        img: shape ``(C, *spatial)``.

    Raises:
        ConfigurationError: when it has not 2 or 3 spatial axes.

    Example:
        >>> image_shape(torch.zeros(1, 4, 5))
        (4, 5)
    """
    shape = img.peek_pending_shape() if isinstance(img, MetaTensor) else img.shape[1:]
    if len(shape) not in (2, 3):
        raise ConfigurationError(
            f"an image of shape {tuple(img.shape)} cannot be turned: give one of shape (C, *spatial) with 2 or 3 spatial axes."
        )
    return tuple(int(size) for size in shape)


def fresh_tensor(img: torch.Tensor) -> torch.Tensor:
    """The data alone, as a MetaTensor without history when metadata are tracked: what MONAI's spatial transforms start from.

    Example:
        >>> fresh_tensor(torch.zeros(1, 4, 5)).shape
        torch.Size([1, 4, 5])
    """
    data = img.as_tensor() if isinstance(img, MetaTensor) else img
    return convert_to_tensor(data, track_meta=get_track_meta(), wrap_sequence=True)


def image_rank(img: torch.Tensor) -> int:
    """Number of axes of the image's affine, to which a transform's matrix is padded.

    Example:
        >>> image_rank(MetaTensor(torch.zeros(1, 4, 5)))
        2
    """
    return int(img.peek_pending_rank()) if isinstance(img, MetaTensor) else 3


def pending_settings(img: torch.Tensor) -> dict[str, Any]:
    """Interpolation and padding mode that an image's pending operations ask for: MONAI resamples by those of the last operation alone, so
    an operation that interpolates nothing hands on what those before it asked for.

    Returns:
        what to put into a pending operation; nothing where none of those before it has a mode.

    Example:
        >>> pending_settings(torch.zeros(1, 4, 5))
        {}
    """
    pending = img.pending_operations if isinstance(img, MetaTensor) else []
    keys = (LazyAttr.INTERP_MODE, LazyAttr.PADDING_MODE)
    # later operations replace what earlier ones asked for
    return {key: operation[key] for operation in pending for key in keys if operation.get(key) is not None}


def turn_grid(img: torch.Tensor, element: np.ndarray, lazy: bool, transform_info: dict) -> torch.Tensor:
    """Functional form of :class:`GridSymmetry`, in the way of ``monai.transforms.spatial.functional``.

    Args:
        img: shape ``(C, *spatial)``.
        element: signed permutation matrix of shape ``(d, d)``.
        lazy: whether to add a pending operation instead of moving voxels.
        transform_info: what the calling transform traces.

    Example:
        >>> turn_grid(torch.arange(3.0).reshape(1, 1, 3), np.diag([1, -1]), lazy=False, transform_info={}).flatten().tolist()
        [2.0, 1.0, 0.0]
    """
    shape = np.array(image_shape(img))
    sizes = np.abs(element) @ shape
    # maps a voxel of the result to the voxel of the image that it shows
    pull = np.eye(len(shape) + 1)
    pull[:-1, :-1] = element.T
    pull[:-1, -1] = (shape - 1) / 2 - element.T @ (sizes - 1) / 2
    if lazy:
        transform_info = {**transform_info, **pending_settings(img)}
    meta_info = TraceableTransform.track_transform_meta(
        img,
        sp_size=sizes,
        affine=to_affine_nd(image_rank(img), pull),
        extra_info={"element": element.tolist(), "name": element_name(element)},
        orig_size=tuple(shape.tolist()),
        transform_info=transform_info,
        lazy=lazy,
    )
    out = fresh_tensor(img)
    # MONAI applies operations that cancel each other by handing on the tensor: a copy lazily, too
    out = out.clone() if lazy else transform_grid(out, element).contiguous()
    return out.copy_meta_from(meta_info) if isinstance(out, MetaTensor) else out


class GridSymmetry(InvertibleTransform, LazyTransform):
    """Turn or mirror an image by one symmetry of the voxel grid: quarter turns, reflections and everything made of them.

    2D images have 8 of them (D4), 3D images 48 (Oh). Voxels are moved, never interpolated. The affine follows, so that every voxel keeps
    its place in the world, as with MONAI's ``Flip`` and ``Rotate90``. An element that exchanges two axes exchanges their sizes and
    spacings with them: where axes of unlike spacing must stay apart, take an element that does not exchange them. The result is a copy.

    Behind another lazy transform it keeps that one's interpolation and padding mode, drawn or not in the random form. MONAI's own
    ``Flip``, ``Rotate90``, crops and pads lose them (its issue 6850): put those before a lazy rotation, or give ``Compose`` the modes
    as ``overrides``.

    Args:
        element: index into :func:`~monai_gmr.symmetry.point_group` (0 is the identity); name such as "4+ [001]", "m [100]" or "-y,x,z"
            (:func:`~monai_gmr.symmetry.element_name`); or signed permutation matrix of shape ``(d, d)``. Axes are array axes.
        lazy: whether to execute lazily (MONAI's lazy resampling), which gives float32 and, for 2D images, an affine of
            shape (3, 3), as with all of MONAI's transforms.

    Raises:
        ConfigurationError: when the images have no such element.

    Example:
        >>> image = MetaTensor(torch.arange(6.0).reshape(1, 2, 3), affine=torch.eye(4))
        >>> turned = GridSymmetry("4+")(image)
        >>> turned[0].tolist()
        [[2.0, 5.0], [1.0, 4.0], [0.0, 3.0]]
        >>> bool((GridSymmetry("4+")(turned) == GridSymmetry("2")(image)).all())
        True

    Source:
        the signatures and the tracing are those of ``monai.transforms.Rotate90``.
    """

    backend = Rotate90.backend

    def __init__(self, element: Element, lazy: bool = False) -> None:
        LazyTransform.__init__(self, lazy=lazy)
        check_element(element)
        self.element = element

    def __call__(self, img: torch.Tensor, lazy: bool | None = None) -> torch.Tensor:
        """
        Args:
            img: image of shape ``(C, *spatial)``, 2D or 3D; tensor, MetaTensor or array.
            lazy: overrides the setting of the transform for this call.

        Returns:
            the turned image of the same dtype, its spatial sizes permuted with the axes.
        """
        img = convert_to_tensor(img, track_meta=get_track_meta())
        lazy_ = self.lazy if lazy is None else lazy
        element = grid_element(self.element, len(image_shape(img)))
        return turn_grid(img, element, lazy_ and isinstance(img, MetaTensor), self.get_transform_info())

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Turn an image back, exactly."""
        return self.inverse_transform(data, self.pop_transform(data))

    def inverse_transform(self, data: torch.Tensor, transform: Mapping) -> torch.Tensor:
        """Turn an image back by what ``transform`` traced of it."""
        turner = GridSymmetry(np.array(transform[TraceKeys.EXTRA_INFO]["element"]).T)
        with turner.trace_transform(False):
            return turner(data)


class GridSymmetryd(MapTransform, InvertibleTransform, LazyTransform):
    """Dictionary form of :class:`GridSymmetry`: all keys are turned by the same element.

    Args:
        keys: items of shape ``(C, *spatial)``, such as image and label.
        element: index, name or matrix, as for :class:`GridSymmetry`.
        allow_missing_keys: whether items may lack keys.
        lazy: whether to execute lazily.

    Raises:
        ConfigurationError: when the images have no such element.

    Example:
        >>> data = {"image": torch.rand(1, 4, 5, 6), "label": torch.ones(1, 4, 5, 6)}
        >>> {key: tuple(item.shape) for key, item in GridSymmetryd(["image", "label"], "4+ [001]")(data).items()}
        {'image': (1, 5, 4, 6), 'label': (1, 5, 4, 6)}
    """

    backend = GridSymmetry.backend

    def __init__(
        self, keys: KeysCollection, element: Element, allow_missing_keys: bool = False, lazy: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        LazyTransform.__init__(self, lazy=lazy)
        self.turner = GridSymmetry(element, lazy=lazy)

    @LazyTransform.lazy.setter  # type: ignore[attr-defined]
    def lazy(self, val: bool) -> None:
        self.turner.lazy = val
        self._lazy = val

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """
        Args:
            data: dictionary of images.
            lazy: overrides the setting of the transform for this call.

        Returns:
            the dictionary with the turned images.
        """
        d = dict(data)
        lazy_ = self.lazy if lazy is None else lazy
        for key in self.key_iterator(d):
            d[key] = self.turner(d[key], lazy=lazy_)
        return d

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Turn all keys back, exactly."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.turner.inverse(d[key])
        return d


GridSymmetryD = GridSymmetryDict = GridSymmetryd
