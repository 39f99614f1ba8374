"""Transforms that rotate images by any angle about any axis, in millimetres: invertible up to interpolation, lazy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.config.type_definitions import DtypeLike
from monai.data.meta_obj import get_track_meta
from monai.data.meta_tensor import MetaTensor
from monai.transforms import InvertibleTransform, LazyTransform, Rotate
from monai.utils import TraceKeys, convert_to_tensor, ensure_tuple, ensure_tuple_rep, get_equivalent_dtype

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import check_choice, voxel_spacing
from monai_gmr.symmetry import axis_direction, rotation_matrix
from monai_gmr.symmetry.rotations import Axis
from monai_gmr.transforms.functional import DictionaryTransform, image_shape, rotate_by_matrix
from monai_gmr.utils import ConfigurationError

MODES = ("bilinear", "nearest")
PADDING_MODES = ("border", "reflection", "zeros")


def _is_float_dtype(dtype: Any) -> bool:
    try:
        return dtype is None or bool(get_equivalent_dtype(dtype, torch.Tensor).is_floating_point)
    except (AttributeError, TypeError, ValueError):
        return False


FloatDtype = Annotated[DtypeLike | torch.dtype, _is_float_dtype, "a floating-point dtype, such as torch.float32"]


class RotateAboutAxis(InvertibleTransform, LazyTransform):
    """Rotate an image by an angle about an axis through the centre of its grid; keeps the size.

    Angles are measured in millimetres, with the spacing of the MetaTensor's affine. The affine is updated so that every point keeps its
    world position, and the spacing stays, as in MONAI's ``Rotate``. Axes are array axes: "x" is the first spatial axis for any
    orientation of the patient. A rotation that is a symmetry of the grid and keeps the sizes, such as by 180 degrees, moves voxels without
    interpolation.

    In a lazy chain MONAI's ``Flip``, ``Rotate90``, crops and pads after a rotation lose its modes (MONAI issue 6850), and labels become
    fractional: put them before it, or give ``Compose`` the modes as ``overrides``.

    Args:
        angle: angle in degrees, with the sign of :func:`~monai_gmr.symmetry.rotation_matrix`.
        axis: "x", "y", "z" or 0, 1, 2: array axis; or a vector of three numbers along the array axes, in millimetres. 2D images rotate in
            their plane, about "z".
        spacing: voxel size in millimetres, one per axis. Default: the lengths of the columns of the affine, 1 for plain tensors.
        mode: "bilinear" or, for labels, "nearest".
        padding_mode: values beyond the frame: "border", "reflection" or "zeros".
        align_corners: as in ``torch.nn.functional.grid_sample``; only matters for ``padding_mode`` "reflection" and "zeros".
        dtype: type of the interpolation, default float32; ``None``: the image's type. Other types than float32 and float64 are interpolated
            as float32. The result is float32.
        lazy: whether to execute lazily (MONAI's lazy resampling).

    Raises:
        ConfigurationError: if an argument is impossible.

    Example:
        >>> image = torch.zeros(1, 5, 5, 5); image[0, 2, 4, 2] = 1
        >>> RotateAboutAxis(90, "x")(image).nonzero().tolist()
        [[0, 2, 2, 4]]

    Source:
        the signatures and the tracing are those of ``monai.transforms.Rotate``, which rotates about array axes only, in voxels.
    """

    backend = Rotate.backend

    @checked_arguments
    def __init__(
        self,
        angle: float,
        axis: Axis = "z",
        *,
        spacing: Sequence[float] | None = None,
        mode: str = "bilinear",
        padding_mode: str = "border",
        align_corners: bool = False,
        dtype: FloatDtype = torch.float32,
        lazy: bool = False,
    ) -> None:
        LazyTransform.__init__(self, lazy=bool(lazy))
        if not np.isfinite(angle):
            raise ConfigurationError(f"angle={angle!r} is not an angle: give one finite number of degrees.")
        axis_direction(axis)
        if spacing is not None:
            voxel_spacing(spacing, len(spacing))
        check_choice("mode", mode, MODES)
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        self.angle, self.axis, self.spacing = angle, axis, spacing
        self.mode, self.padding_mode, self.align_corners, self.dtype = mode, padding_mode, bool(align_corners), dtype

    def pull_matrix(self, img: torch.Tensor) -> np.ndarray:
        """Matrix of shape ``(d, d)``, in voxels, that maps a voxel of the result to its place in the image ``(C, *spatial)``."""
        dims = len(image_shape(img))
        direction = axis_direction(self.axis)
        if dims == 2 and not np.allclose(np.abs(direction), (0, 0, 1)):
            raise ConfigurationError(
                f"axis={self.axis!r} is not at right angles to a 2D image: leave it at 'z', the rotation in the plane."
            )
        step = np.ones(dims)
        if self.spacing is not None:
            step = np.asarray(self.spacing, float)
        elif isinstance(img, MetaTensor):
            affine = img.peek_pending_affine().detach().cpu().numpy().astype(float)
            # a 2D image can lie obliquely in 3D, so all rows count
            lengths = np.linalg.norm(affine[:-1, :dims], axis=0) if len(affine) > dims else step
            # only ratios matter; rounding removes differences of 1e-7 from float32 files
            step = np.where(lengths > 0, lengths, 1.0)
            step = (step / step.max()).round(6)
        if step.shape != (dims,):
            raise ConfigurationError(
                f"spacing={step.tolist()} has {len(step)} entries, the image {dims} spatial axes: give one per axis."
            )
        # about -z the plane rotates the other way
        sign = direction[2] if dims == 2 else 1.0
        rotation = rotation_matrix(dims, float(self.angle) * sign, self.axis)
        return rotation.T / step[:, None] * step

    def __call__(
        self,
        img: torch.Tensor,
        mode: str | None = None,
        padding_mode: str | None = None,
        align_corners: bool | None = None,
        dtype: DtypeLike | torch.dtype = None,
        lazy: bool | None = None,
    ) -> torch.Tensor:
        """The image ``(C, *spatial)``, 2D or 3D, rotated, float32; further arguments override the settings for this call."""
        img = convert_to_tensor(img, track_meta=get_track_meta())
        mode, padding_mode = mode or self.mode, padding_mode or self.padding_mode
        check_choice("mode", mode, MODES)
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        return rotate_by_matrix(
            img,
            self.pull_matrix(img),
            mode=mode,
            padding_mode=padding_mode,
            align_corners=self.align_corners if align_corners is None else align_corners,
            dtype=get_equivalent_dtype(dtype or self.dtype or img.dtype, torch.Tensor),
            lazy=(self.lazy if lazy is None else lazy) and isinstance(img, MetaTensor),
            transform_info=self.get_transform_info(),
        )

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """The image rotated back, up to interpolation; voxels that left the frame are lost."""
        info = self.pop_transform(data)[TraceKeys.EXTRA_INFO]
        # Invertd can put "nearest" and no align_corners into the trace
        align_corners = False if info["align_corners"] in (None, TraceKeys.NONE) else info["align_corners"]
        with self.trace_transform(False):
            return rotate_by_matrix(
                data,
                np.linalg.inv(np.array(info["pull"])),
                mode=info["mode"],
                padding_mode=info["padding_mode"],
                align_corners=align_corners,
                dtype=getattr(torch, info["dtype"]),
                lazy=False,
                transform_info=self.get_transform_info(),
            )


class RotateAboutAxisd(DictionaryTransform):
    """Dictionary form of :class:`RotateAboutAxis`: all keys, ``(C, *spatial)``, are rotated alike, each with its own spacing.

    ``mode``, ``padding_mode``, ``align_corners`` and ``dtype`` are one for all or one per key.

    Example:
        >>> image = torch.rand(1, 9, 9); label = (image > 0.5).float()
        >>> rotate = RotateAboutAxisd(["image", "label"], 30, mode=["bilinear", "nearest"])
        >>> rotate({"image": image, "label": label})["label"].unique().tolist()
        [0.0, 1.0]
    """

    backend = RotateAboutAxis.backend

    @checked_arguments
    def __init__(
        self,
        keys: KeysCollection,
        angle: float,
        axis: Axis = "z",
        *,
        spacing: Sequence[float] | None = None,
        mode: str | Sequence[str] = "bilinear",
        padding_mode: str | Sequence[str] = "border",
        align_corners: bool | Sequence[bool] = False,
        dtype: DtypeLike | torch.dtype | Sequence[DtypeLike | torch.dtype] = torch.float32,
        allow_missing_keys: bool = False,
        lazy: bool = False,
    ) -> None:
        number = len(ensure_tuple(keys))
        settings = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners, "dtype": dtype}
        for name, setting in settings.items():
            if isinstance(setting, (list, tuple, np.ndarray)) and len(setting) != number:
                raise ConfigurationError(
                    f"{name} has {len(setting)} entries for {number} keys: give one, or one per key."
                )
        each = zip(*(ensure_tuple_rep(setting, number) for setting in settings.values()))
        transforms = [RotateAboutAxis(angle, axis, spacing=spacing, lazy=lazy, **dict(zip(settings, e))) for e in each]
        super().__init__(keys, transforms, allow_missing_keys, lazy)


RotateAboutAxisD = RotateAboutAxisDict = RotateAboutAxisd
