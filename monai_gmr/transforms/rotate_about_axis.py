"""Turn images by any angle about any axis, in millimetres: invertible to interpolation accuracy, lazy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from monai.config.type_definitions import DtypeLike
from monai.data.meta_obj import get_track_meta
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import to_affine_nd
from monai.networks.layers import AffineTransform
from monai.transforms import InvertibleTransform, LazyTransform, MapTransform, Rotate
from monai.transforms.inverse import TraceableTransform
from monai.utils import (
    LazyAttr,
    TraceKeys,
    convert_to_tensor,
    ensure_tuple_rep,
    get_equivalent_dtype,
)

from monai_gmr.symmetry import axis_direction, is_grid_symmetry, rotation_matrix, transform_grid
from monai_gmr.transforms.grid_symmetry import fresh_tensor, image_rank, image_shape, pending_settings
from monai_gmr.utils import ConfigurationError, check_choice

MODES = ("bilinear", "nearest")
PADDING_MODES = ("border", "reflection", "zeros")


def turn_by_matrix(
    img: torch.Tensor,
    pull: np.ndarray,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    dtype: torch.dtype,
    lazy: bool,
    transform_info: dict,
) -> torch.Tensor:
    """Functional form of :class:`RotateAboutAxis`, in the way of ``monai.transforms.spatial.functional.rotate``.

    Args:
        img: shape ``(C, *spatial)``.
        pull: matrix of shape ``(d, d)`` that sends a voxel of the result, seen from the centre, to the place in the image that it shows.
        mode: "bilinear" or "nearest".
        padding_mode: "border", "reflection" or "zeros".
        align_corners: as in ``torch.nn.functional.grid_sample``.
        dtype: in which to interpolate.
        lazy: whether to add a pending operation instead of interpolating.
        transform_info: what the calling transform traces.

    Example:
        >>> img, half_turn = torch.arange(3.0).reshape(1, 1, 3), -np.eye(2)
        >>> turn_by_matrix(img, half_turn, "nearest", "border", False, torch.float32, False, {}).flatten().tolist()
        [2.0, 1.0, 0.0]
    """
    shape = image_shape(img)
    dims = len(shape)
    centre = (np.array(shape) - 1) / 2
    matrix = np.eye(dims + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = pull, centre - pull @ centre
    extra_info = {
        "pull": pull.tolist(),
        "mode": mode,
        "padding_mode": padding_mode,
        "align_corners": align_corners,
        "dtype": str(dtype)[6:],  # "torch.float32" -> "float32"
    }
    exact = is_grid_symmetry(pull, shape)
    if lazy:
        # without these MONAI would resample every key, labels too, by its default; what interpolates nothing leaves the choice to others
        own = {LazyAttr.INTERP_MODE: mode, LazyAttr.PADDING_MODE: padding_mode}
        transform_info = {**transform_info, **own, **(pending_settings(img) if exact else {})}
    meta_info = TraceableTransform.track_transform_meta(
        img,
        sp_size=shape,
        affine=to_affine_nd(image_rank(img), matrix),
        extra_info=extra_info,
        orig_size=shape,
        transform_info=transform_info,
        lazy=lazy,
    )
    out = fresh_tensor(img)
    if lazy:
        # a copy as in turn_grid
        out = out.clone()
    elif exact:
        # sizes stay as they are: voxels are moved
        out = transform_grid(out, pull.T).to(torch.float32).contiguous()
    else:
        sampler = AffineTransform(
            normalized=False,
            mode=mode,
            padding_mode=padding_mode,
            align_corners=align_corners,
            reverse_indexing=True,
        )
        data = (out.as_tensor() if isinstance(out, MetaTensor) else out).to(dtype)
        theta = torch.as_tensor(matrix, dtype=dtype, device=data.device)
        turned = sampler(data.unsqueeze(0), theta, spatial_size=shape).squeeze(0).to(torch.float32)
        out = convert_to_tensor(turned, track_meta=get_track_meta())
    return out.copy_meta_from(meta_info) if isinstance(out, MetaTensor) else out


def _check_modes(mode: Sequence[str], padding_mode: Sequence[str]) -> None:
    for one in mode:
        check_choice("mode", one, MODES)
    for one in padding_mode:
        check_choice("padding_mode", one, PADDING_MODES)


class RotateAboutAxis(InvertibleTransform, LazyTransform):
    """Turn an image by an angle about an axis through the centre of its grid; the size stays.

    Angles are right in millimetres: the spacing is taken from the MetaTensor's affine. The affine follows, so that every point keeps its
    place in the world, and the spacing stays, as with MONAI's ``Rotate``. Axes are array axes: "x" is the first spatial axis, however the
    patient lies in it. Where the turn is a symmetry of the grid that keeps the sizes, such as 180 degrees, voxels are moved and nothing
    is interpolated.

    In a lazy chain MONAI resamples once, by the modes of the last transform. The transforms of this package hand on those of the one
    before where they interpolate nothing; MONAI's own ``Flip``, ``Rotate90``, crops and pads behind a rotation lose them (its issue
    6850), and labels become fractional: put those before it, or give ``Compose`` the modes as ``overrides``.

    Args:
        angle: in degrees; positive is counterclockwise seen against the axis, in 2D from the first axis towards the second
            (:func:`~monai_gmr.symmetry.rotation_matrix`).
        axis: "x", "y", "z" or 0, 1, 2: array axis; or a vector of three numbers along the array axes, in millimetres. 2D images turn
            in their plane, that is about "z".
        spacing: voxel size in millimetres, one an axis. Default: from the affine, 1 for plain tensors. An affine with shear
            has no spacing: the lengths of its columns are taken, and the turn is not rigid in the world.
        mode: "bilinear" or, for labels, "nearest".
        padding_mode: what shows beyond the frame: "border", "reflection" or "zeros".
        align_corners: as in ``torch.nn.functional.grid_sample``; matters for ``padding_mode`` "reflection" and "zeros" only.
        dtype: in which to interpolate, default float32; ``None``: that of the image. The result is float32.
        lazy: whether to execute lazily (MONAI's lazy resampling).

    Raises:
        ConfigurationError: when an argument is none of these.

    Example:
        >>> image = torch.zeros(1, 5, 5, 5); image[0, 2, 4, 2] = 1
        >>> RotateAboutAxis(90, "x")(image).nonzero().tolist()
        [[0, 2, 2, 4]]
        >>> RotateAboutAxis(30, (1, 1, 0))(image).shape
        torch.Size([1, 5, 5, 5])

    Source:
        the signatures and the tracing are those of ``monai.transforms.Rotate``, which turns about array axes only, in voxels.
    """

    backend = Rotate.backend

    def __init__(
        self,
        angle: float,
        axis: int | str | Sequence[float] = "z",
        spacing: Sequence[float] | None = None,
        mode: str = "bilinear",
        padding_mode: str = "border",
        align_corners: bool = False,
        dtype: DtypeLike | torch.dtype = torch.float32,
        lazy: bool = False,
    ) -> None:
        LazyTransform.__init__(self, lazy=lazy)
        if isinstance(angle, (bool, str)) or np.ndim(angle) or not np.isfinite(angle):
            raise ConfigurationError(f"angle={angle!r} is no angle: give one finite number of degrees.")
        axis_direction(axis)
        if spacing is not None and not all(step > 0 for step in spacing):
            raise ConfigurationError(f"spacing={spacing!r} is no voxel size: give millimetres above 0, one an axis.")
        _check_modes([mode], [padding_mode])
        self.angle = angle
        self.axis = axis
        self.spacing = spacing
        self.mode = mode
        self.padding_mode = padding_mode
        self.align_corners = align_corners
        self.dtype = dtype

    def pull_matrix(self, img: torch.Tensor) -> np.ndarray:
        """The matrix of shape ``(d, d)``, in voxels, that sends a voxel of the result to the place in the image that it shows.

        Args:
            img: shape ``(C, *spatial)``; of a MetaTensor the affine decides on the spacing, that after pending operations.
        """
        dims = len(image_shape(img))
        if dims == 2 and not np.allclose(np.abs(axis_direction(self.axis)), (0, 0, 1)):
            raise ConfigurationError(
                f"axis={self.axis!r} is not at right angles to a 2D image: leave it at 'z', the turn in the plane."
            )
        step = np.ones(dims)
        if self.spacing is not None:
            step = np.asarray(self.spacing, float)
        elif isinstance(img, MetaTensor):
            affine = img.peek_pending_affine().detach().cpu().numpy().astype(float)
            # a 2D image may lie obliquely in 3D: all rows count
            lengths = np.linalg.norm(affine[:-1, :dims], axis=0) if len(affine) > dims else step
            # only ratios matter; rounded, those that float32 files leave unlike by 1e-7 are alike again
            step = np.where(lengths > 0, lengths, 1.0)
            step = (step / step.max()).round(6)
        if step.shape != (dims,):
            raise ConfigurationError(
                f"spacing={step.tolist()} has {len(step)} entries, the image {dims} spatial axes: give one an axis."
            )
        # about -z the plane turns the other way
        sign = axis_direction(self.axis)[2] if dims == 2 else 1.0
        rotation = rotation_matrix(dims, float(self.angle) * sign, self.axis)
        return (rotation.T / step[:, None]) * step[None, :]

    def __call__(
        self,
        img: torch.Tensor,
        mode: str | None = None,
        padding_mode: str | None = None,
        align_corners: bool | None = None,
        dtype: DtypeLike | torch.dtype = None,
        lazy: bool | None = None,
    ) -> torch.Tensor:
        """
        Args:
            img: image of shape ``(C, *spatial)``, 2D or 3D; tensor, MetaTensor or array.
            mode: overrides the setting of the transform for this call, as the others do.
            padding_mode: the same.
            align_corners: the same.
            dtype: the same.
            lazy: the same.

        Returns:
            the turned image of the same shape, float32.
        """
        img = convert_to_tensor(img, track_meta=get_track_meta())
        _check_modes([mode or self.mode], [padding_mode or self.padding_mode])
        lazy_ = self.lazy if lazy is None else lazy
        return turn_by_matrix(
            img,
            self.pull_matrix(img),
            mode or self.mode,
            padding_mode or self.padding_mode,
            self.align_corners if align_corners is None else align_corners,
            get_equivalent_dtype(dtype or self.dtype or img.dtype, torch.Tensor),
            lazy_ and isinstance(img, MetaTensor),
            self.get_transform_info(),
        )

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Turn an image back, to the accuracy of the interpolation; what was turned out of the frame is lost."""
        return self.inverse_transform(data, self.pop_transform(data))

    def inverse_transform(self, data: torch.Tensor, transform: Mapping) -> torch.Tensor:
        """Turn an image back by what ``transform`` traced of it."""
        info = transform[TraceKeys.EXTRA_INFO]
        # Invertd may have put "nearest" and no align_corners into what was traced
        align_corners = False if info["align_corners"] in (None, TraceKeys.NONE) else info["align_corners"]
        with self.trace_transform(False):
            return turn_by_matrix(
                data,
                np.linalg.inv(np.array(info["pull"])),
                info["mode"],
                info["padding_mode"],
                align_corners,
                getattr(torch, info["dtype"]),
                False,
                self.get_transform_info(),
            )


class RotateAboutAxisd(MapTransform, InvertibleTransform, LazyTransform):
    """Dictionary form of :class:`RotateAboutAxis`: all keys are turned alike, each in its own mode and by its own spacing.

    Args:
        keys: items of shape ``(C, *spatial)``, such as image and label.
        angle: in degrees.
        axis: array axis or vector, as for :class:`RotateAboutAxis`.
        spacing: voxel size in millimetres, one an axis; default: from each item's affine.
        mode: "bilinear" or "nearest", one or one a key.
        padding_mode: "border", "reflection" or "zeros", one or one a key.
        align_corners: as in ``torch.nn.functional.grid_sample``, one or one a key.
        dtype: in which to interpolate, one or one a key.
        allow_missing_keys: whether items may lack keys.
        lazy: whether to execute lazily.

    Raises:
        ConfigurationError: when an argument is none of these.

    Example:
        >>> image = torch.rand(1, 9, 9); label = (image > 0.5).float()
        >>> turn = RotateAboutAxisd(["image", "label"], 30, mode=["bilinear", "nearest"])
        >>> turn({"image": image, "label": label})["label"].unique().tolist()
        [0.0, 1.0]
    """

    backend = RotateAboutAxis.backend

    def __init__(
        self,
        keys: KeysCollection,
        angle: float,
        axis: int | str | Sequence[float] = "z",
        spacing: Sequence[float] | None = None,
        mode: str | Sequence[str] = "bilinear",
        padding_mode: str | Sequence[str] = "border",
        align_corners: bool | Sequence[bool] = False,
        dtype: DtypeLike | torch.dtype | Sequence[DtypeLike | torch.dtype] = torch.float32,
        allow_missing_keys: bool = False,
        lazy: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        LazyTransform.__init__(self, lazy=lazy)
        self.turner = RotateAboutAxis(angle, axis, spacing, lazy=lazy)
        for name, setting in (("mode", mode), ("padding_mode", padding_mode), ("align_corners", align_corners)):
            if isinstance(setting, (list, tuple)) and len(setting) != len(self.keys):
                raise ConfigurationError(
                    f"{name} has {len(setting)} entries for {len(self.keys)} keys: give one for all, or one a key."
                )
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.padding_mode = ensure_tuple_rep(padding_mode, len(self.keys))
        self.align_corners = ensure_tuple_rep(align_corners, len(self.keys))
        self.dtype = ensure_tuple_rep(dtype, len(self.keys))
        _check_modes(self.mode, self.padding_mode)

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
        for key, mode, padding_mode, align_corners, dtype in self.key_iterator(
            d, self.mode, self.padding_mode, self.align_corners, self.dtype
        ):
            d[key] = self.turner(d[key], mode, padding_mode, align_corners, dtype, lazy_)
        return d

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Turn all keys back, to the accuracy of the interpolation."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.turner.inverse(d[key])
        return d


RotateAboutAxisD = RotateAboutAxisDict = RotateAboutAxisd
