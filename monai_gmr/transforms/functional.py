"""Functional forms of the spatial transforms, like ``monai.transforms.spatial.functional``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_obj import get_track_meta
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import to_affine_nd
from monai.networks.layers import AffineTransform
from monai.transforms import InvertibleTransform, LazyTransform, MapTransform
from monai.transforms.inverse import TraceableTransform
from monai.utils import LazyAttr, convert_to_tensor, ensure_tuple_rep

from monai_gmr.symmetry import element_name, is_grid_symmetry, transform_grid
from monai_gmr.utils import ConfigurationError


def image_shape(img: torch.Tensor) -> tuple[int, ...]:
    """Spatial shape in voxels of a channel-first image of 2 or 3 spatial axes, after its pending operations."""
    if not hasattr(img, "shape"):
        given = f"the path {str(img)!r}" if isinstance(img, (str, PathLike)) else f"a {type(img).__name__}"
        raise ConfigurationError(
            f"the image is given as {given}, which cannot be rotated: load it first, as with monai.transforms.LoadImaged, as a tensor "
            "(C, *spatial)."
        )
    shape = img.peek_pending_shape() if isinstance(img, MetaTensor) else img.shape[1:]
    if len(shape) not in (2, 3):
        raise ConfigurationError(
            f"an image of shape {tuple(img.shape)} cannot be rotated: give one of shape (C, *spatial) with 2 or 3 spatial axes."
        )
    return tuple(int(size) for size in shape)


def pending_modes(img: torch.Tensor) -> dict[str, Any]:
    """Interpolation and padding mode of an image's pending operations: MONAI only uses those of the last operation, so an operation without
    interpolation repeats them."""
    pending = img.pending_operations if isinstance(img, MetaTensor) else []
    keys = (LazyAttr.INTERP_MODE, LazyAttr.PADDING_MODE)
    # later operations replace the modes of earlier ones
    return {key: operation[key] for operation in pending for key in keys if operation.get(key) is not None}


def _apply(
    img: torch.Tensor,
    pull: np.ndarray,
    sizes: Sequence[int],
    function: Callable[[torch.Tensor, np.ndarray], torch.Tensor],
    *,
    extra_info: dict,
    lazy: bool,
    transform_info: dict,
) -> torch.Tensor:
    """Trace a map ``pull`` as in :func:`rotate_by_matrix`, and apply it by ``function(data, affine)`` unless ``lazy``."""
    shape = image_shape(img)
    affine = np.eye(len(shape) + 1)
    affine[:-1, :-1] = pull
    affine[:-1, -1] = (np.array(shape) - 1) / 2 - pull @ (np.array(sizes) - 1) / 2
    rank = int(img.peek_pending_rank()) if isinstance(img, MetaTensor) else 3
    meta_info = TraceableTransform.track_transform_meta(
        img,
        sp_size=sizes,
        affine=to_affine_nd(rank, affine),
        extra_info=extra_info,
        orig_size=shape,
        transform_info=transform_info,
        lazy=lazy,
    )
    data = img.as_tensor() if isinstance(img, MetaTensor) else img
    # a copy even if lazy: MONAI returns the tensor itself for operations that cancel each other
    data = data.clone() if lazy else function(data, affine)
    out = convert_to_tensor(data, track_meta=get_track_meta())
    return out.copy_meta_from(meta_info) if isinstance(out, MetaTensor) else out


def transform_by_element(img: torch.Tensor, element: np.ndarray, *, lazy: bool, transform_info: dict) -> torch.Tensor:
    """Functional form of :class:`~monai_gmr.transforms.GridSymmetry`, for a signed permutation matrix."""
    return _apply(
        img,
        element.T,
        (np.abs(element) @ image_shape(img)).tolist(),
        lambda data, _: transform_grid(data, element).contiguous(),
        extra_info={"element": element.tolist(), "name": element_name(element)},
        lazy=lazy,
        transform_info={**transform_info, **pending_modes(img)} if lazy else transform_info,
    )


def rotate_by_matrix(
    img: torch.Tensor,
    pull: np.ndarray,
    *,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    dtype: torch.dtype,
    lazy: bool,
    transform_info: dict,
) -> torch.Tensor:
    """Functional form of :class:`~monai_gmr.transforms.RotateAboutAxis`, for a matrix of shape ``(d, d)`` that sends a voxel of the result,
    relative to the centre, to its place in the image."""
    shape = image_shape(img)
    # NumPy inverts no matrices of half precision, and integers have no values between voxels
    dtype = dtype if dtype == torch.float64 else torch.float32
    exact = is_grid_symmetry(pull, shape)

    def rotate(data: torch.Tensor, affine: np.ndarray) -> torch.Tensor:
        if exact:
            return transform_grid(data, pull.T).to(torch.float32).contiguous()
        sampler = AffineTransform(
            normalized=False, mode=mode, padding_mode=padding_mode, align_corners=align_corners, reverse_indexing=True
        )
        theta = torch.as_tensor(affine, dtype=dtype, device=data.device)
        return sampler(data.to(dtype).unsqueeze(0), theta, spatial_size=shape).squeeze(0).to(torch.float32)

    if lazy:
        # without these modes, MONAI would resample every key, even labels, by its default
        own = {LazyAttr.INTERP_MODE: mode, LazyAttr.PADDING_MODE: padding_mode}
        transform_info = {**transform_info, **own, **(pending_modes(img) if exact else {})}
    settings = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    # "torch.float32" -> "float32"
    extra_info = {"pull": pull.tolist(), **settings, "dtype": str(dtype)[6:]}
    return _apply(img, pull, shape, rotate, extra_info=extra_info, lazy=lazy, transform_info=transform_info)


class DictionaryTransform(MapTransform, InvertibleTransform, LazyTransform):
    """Base of the dictionary forms: applies an array transform to each key, one for all or one per key."""

    def __init__(self, keys: KeysCollection, transform: Any, allow_missing_keys: bool, lazy: bool) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        LazyTransform.__init__(self, lazy=bool(lazy))
        self.transforms = ensure_tuple_rep(transform, len(self.keys))

    @LazyTransform.lazy.setter  # type: ignore[attr-defined]
    def lazy(self, val: bool) -> None:
        self._lazy = val
        for transform in self.transforms:
            transform.lazy = val

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """The dictionary with its images transformed; ``lazy`` overrides the setting of the transform for this call."""
        d = dict(data)
        for key, transform in self.key_iterator(d, self.transforms):
            d[key] = transform(d[key], lazy=self.lazy if lazy is None else lazy)
        return d

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """The dictionary with its images transformed back."""
        d = dict(data)
        for key, transform in self.key_iterator(d, self.transforms):
            d[key] = transform.inverse(d[key])
        return d
