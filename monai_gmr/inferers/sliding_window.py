"""Sliding windows that lie symmetrically about the centre of the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map
from monai.inferers import SlidingWindowInferer
from monai.utils import BlendMode, PytorchPadMode, ensure_tuple_rep, fall_back_tuple

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import check_choice, check_count, check_number
from monai_gmr.inferers.merging import Reduction, Tile, WindowMerger, Windows, argmax_labels
from monai_gmr.inferers.outputs import OutputAccumulators, plain_tensor
from monai_gmr.inferers.windows import symmetric_window_starts
from monai_gmr.utils import ConfigurationError, progress_bar

# the axes of a volume, and time
MAX_AXES = 4


class GMRSlidingWindowInferer(SlidingWindowInferer):
    """MONAI's sliding windows, placed symmetrically about the centre of the image: an equivariant network stays exactly equivariant at
    every size.

    Along an axis the windows start at :func:`symmetric_window_starts`, with at least the given overlap and at most one window more than in
    MONAI. An image shorter than the window is padded equally at both ends; if that makes it one voxel longer than the window, two windows
    cover it. Mirrors are always exact; exchanges of two axes are exact if roi, overlap and sigma are the same along both.

    Args:
        roi_size, sw_batch_size, overlap, mode, sigma_scale, padding_mode, cval, sw_device, device, progress, cache_roi_weight_map,
            cpu_thresh, buffer_steps, buffer_dim, with_coord: as in MONAI, in the same order.
        grow_roi: whether windows may be one voxel longer along axes that would need more symmetric windows of ``roi_size`` than MONAI
            takes: never more windows than MONAI's; for networks that take every size, such as ``GMRUNet``.
        reduction: "argmax" returns the labels of the largest channels. They equal the argmax of the whole output, which is never held:
            parts of the image are reduced as soon as no later window touches them. Or a function such as ``lambda y: y.sigmoid() > 0.5``
            that works voxel by voxel on parts of the output, ``(1, channels, *spatial)``. Every tensor of a nested output is reduced,
            without gradients.

    Shape:
        - input: ``(batch, channels, *spatial)``, 1 to 4 axes of any size
        - output: the network's output for a window, at the size of the image; outputs of other resolutions at their share of it, rounded
          down. Nested tuples, lists and dictionaries keep their form. With ``reduction="argmax"`` the channel axis, the last before the
          spatial ones, has length 1, and the type is the smallest integer type that fits: uint8 up to 256 channels.

    Raises:
        ConfigurationError: if arguments, input or the network's output do not fit.

    Example:
        >>> blur, x = torch.nn.AvgPool2d(3, 1, 1), torch.rand(1, 1, 50, 37)
        >>> inferer = GMRSlidingWindowInferer(roi_size=32, sw_batch_size=4, mode="gaussian")
        >>> torch.allclose(inferer(x.rot90(1, (2, 3)), blur), inferer(x, blur).rot90(1, (2, 3)), atol=1e-6)
        True
        >>> labels = GMRSlidingWindowInferer(32, reduction="argmax")(torch.rand(1, 3, 50, 37), blur)
        >>> labels.shape, labels.dtype
        (torch.Size([1, 1, 50, 37]), torch.uint8)
    """

    @checked_arguments
    def __init__(
        self,
        roi_size: Annotated[
            Sequence[int | None] | int | None, "whole numbers, such as 96 or (96, 96, 64), or None for the whole axis"
        ],
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        mode: BlendMode | str = BlendMode.CONSTANT,
        sigma_scale: Sequence[float] | float = 0.125,
        padding_mode: PytorchPadMode | str = PytorchPadMode.CONSTANT,
        cval: float | None = 0.0,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        cache_roi_weight_map: bool = False,
        cpu_thresh: float | None = None,
        buffer_steps: int | None = None,
        buffer_dim: int = -1,
        with_coord: bool = False,
        *,
        grow_roi: bool = False,
        reduction: str | Reduction | None = None,
    ) -> None:
        check_choice("mode", mode, tuple(choice.value for choice in BlendMode))
        if not callable(reduction):
            check_choice("reduction", reduction, (None, "argmax"))
        super().__init__(
            roi_size,  # type: ignore[arg-type]
            sw_batch_size,
            overlap,
            mode,
            sigma_scale=sigma_scale,
            padding_mode=padding_mode,
            cval=0.0 if cval is None else cval,
            sw_device=sw_device,
            device=device,
            progress=progress,
            cpu_thresh=cpu_thresh,  # type: ignore[arg-type]
            buffer_steps=buffer_steps,
            buffer_dim=buffer_dim,
            with_coord=with_coord,
        )
        self.padding_mode = str(self.padding_mode)
        check_choice("padding_mode", self.padding_mode, tuple(choice.value for choice in PytorchPadMode))
        check_count("sw_batch_size", sw_batch_size)
        for share in np.atleast_1d(overlap):
            if not 0 <= share < 1:
                raise ConfigurationError(f"overlap={overlap} is impossible: use 0 or more and less than 1.")
        for scale in np.atleast_1d(sigma_scale):
            check_number("sigma_scale", scale, 0, above=True)
        _buffer_axis(self.buffer_steps, self.buffer_dim, MAX_AXES)
        self.grow_roi, self.reduction = grow_roi, reduction
        self.keep_weights = cache_roi_weight_map
        self._weights: dict[tuple, torch.Tensor] = {}

    def windows(self, image_size: Sequence[int]) -> Windows:
        """How windows lie on an image of the given spatial size in voxels.

        Example:
            >>> GMRSlidingWindowInferer(32).windows((50, 29))
            Windows(size=(32, 32), padding=[0, 2], starts=[[0, 18], [0, 1]])
            >>> GMRSlidingWindowInferer(32, grow_roi=True).windows((50, 29))
            Windows(size=(32, 33), padding=[0, 2], starts=[[0, 18], [0]])
        """
        dims = len(image_size)
        options: dict[str, Any] = {"roi_size": self.roi_size, "overlap": self.overlap, "sigma_scale": self.sigma_scale}
        for name, value in options.items():
            if np.ndim(value) > 0 and len(value) != dims:
                raise ConfigurationError(
                    f"{name}={tuple(value)} has {len(value)} entries and the image {dims} axes: give one per axis, or one number for all."
                )
        window = tuple(int(n) for n in fall_back_tuple(self.roi_size, image_size))
        axes = [self._axis(n, r, o) for n, r, o in zip(image_size, window, ensure_tuple_rep(self.overlap, dims))]
        sizes, padding, starts = zip(*axes)
        return Windows(sizes, list(padding), list(starts))

    def _axis(self, size: int, window: int, overlap: float) -> tuple[int, int, list[int]]:
        """Window, padding at both ends and starts along one axis."""
        padding = -(-max(window - size, 0) // 2)
        interval = max(int(window * (1 - overlap)), 1)
        starts = symmetric_window_starts(size + 2 * padding, window, interval)
        if self.grow_roi and len(starts) > -(-max(size - window, 0) // interval) + 1:
            return self._axis(size, window + 1, overlap)
        return window, padding, starts

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs the network on all windows and merges its outputs.

        Args:
            inputs: image of shape ``(batch, channels, *spatial)``.
            network: module or other callable, called with windows of shape ``(windows, channels, *roi_size)``.
            args: further arguments of the network.
            kwargs: further arguments of the network; ``condition``, of the shape of ``inputs``, is also cut into windows, and ``device``,
                ``buffer_steps`` and ``buffer_dim`` override the inferer's.
        """
        for name in ("process_fn", "roi_weight_map"):
            if name in kwargs:
                raise ConfigurationError(
                    f"{name} is an argument of monai.inferers.sliding_window_inference, not of its inferers: take it in a function around "
                    "the network, or use mode='gaussian' for weights."
                )
        image = plain_tensor(inputs, MAX_AXES)
        size = image.shape[2:]
        if 0 in image.shape:
            raise ConfigurationError(f"The input of shape {tuple(image.shape)} is empty: give one image or more.")
        buffer_steps = kwargs.pop("buffer_steps", self.buffer_steps)
        buffer_axis = _buffer_axis(buffer_steps, kwargs.pop("buffer_dim", self.buffer_dim), len(size))
        windows = self.windows(size)
        device = kwargs.pop("device", self.device)
        if device is None and self.cpu_thresh is not None and size.numel() > self.cpu_thresh:
            device = "cpu"
        device, sw_device = device or image.device, self.sw_device or image.device
        dtype = image.dtype if image.dtype in (torch.float32, torch.float64) else torch.float32
        condition = kwargs.pop("condition", None)
        if condition is not None:
            condition = plain_tensor(condition, MAX_AXES)
            if condition.shape != image.shape:
                raise ConfigurationError(
                    f"condition of shape {tuple(condition.shape)} does not match the input: use {tuple(image.shape)}."
                )
            condition = self._pad(condition, windows.padding)
        image = self._pad(image, windows.padding)
        importance = partial(self._importance, device=sw_device, dtype=dtype)
        buffer = (buffer_axis, int(buffer_steps)) if buffer_steps and buffer_steps > 0 else None
        runs = _runs(windows, len(image), buffer)
        steps = [(run, run[i : i + self.sw_batch_size]) for run in runs for i in range(0, len(run), self.sw_batch_size)]

        out_dtype = image.dtype if image.is_floating_point() else dtype
        options: dict[str, Any] = {"buffer": buffer, "device": device, "dtype": dtype, "out_dtype": out_dtype}

        def make(tensor: torch.Tensor, batch: list[Tile], _run: list[Tile] | None) -> WindowMerger:
            if tensor.ndim < len(size) + 2 or len(tensor) != len(batch):
                raise ConfigurationError(
                    f"The network returned a tensor of shape {tuple(tensor.shape)} for {len(batch)} windows: sliding windows need "
                    f"({len(batch)}, channels, *{len(size)} spatial axes)."
                )
            reduction: Any = self.reduction
            if reduction == "argmax":
                reduction = partial(argmax_labels, channel_axis=tensor.ndim - len(size) - 1)
            return WindowMerger(tensor, windows, len(image), importance, reduction=reduction, **options)

        outputs = OutputAccumulators(make, WindowMerger.add)
        for run, batch in progress_bar(steps, "windows", self.progress):
            slices = [
                (slice(b, b + 1), slice(None), *(slice(s, s + n) for s, n in zip(corner, windows.size)))
                for b, corner in batch
            ]
            places = [[list(each) for each in slices]] if self.with_coord else []
            if condition is not None:
                kwargs["condition"] = _cut(condition, slices).to(sw_device)
            output = network(_cut(image, slices).to(sw_device), *places, *args, **kwargs)
            outputs.add(output, batch, run if buffer else None)
            del output
        return outputs.nested([merger.result() for merger in outputs.accumulators], inputs)

    def _pad(self, image: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
        if not any(padding):
            return image
        pad = [p for axis in reversed(padding) for p in (axis, axis)]
        if self.padding_mode == PytorchPadMode.CONSTANT:
            return F.pad(image, pad, mode=self.padding_mode, value=self.cval)
        size = tuple(image.shape[2:])
        if len(size) > 3:
            raise ConfigurationError(f"padding_mode={self.padding_mode!r} cannot pad {len(size)} axes: use 'constant'.")
        if self.padding_mode != PytorchPadMode.REPLICATE and any(p >= n for p, n in zip(padding, size)):
            raise ConfigurationError(
                f"padding_mode={self.padding_mode!r} cannot fill a window of {self.roi_size} from an image of {size}: use 'constant' or "
                "'replicate'."
            )
        return F.pad(image, pad, mode=self.padding_mode)

    def _importance(self, size: tuple[int, ...], device: torch.device | str, dtype: torch.dtype) -> torch.Tensor | None:
        """Weights of the voxels of a window, None if all are equal."""
        if self.mode == BlendMode.CONSTANT:
            return None
        key = (size, str(device), dtype)
        cache = self._weights if self.keep_weights else {}
        if key not in cache:
            cache[key] = compute_importance_map(size, self.mode, self.sigma_scale, device, dtype)
        return cache[key]


def _cut(image: torch.Tensor, places: Sequence[tuple[slice, ...]]) -> torch.Tensor:
    # a copy even of one window: a network that works in place must not change the image
    return torch.cat([image[place] for place in places])


def _buffer_axis(buffer_steps: int | None, buffer_dim: int, dims: int) -> int:
    """Axis along which outputs are buffered, from 0."""
    # without a buffer, the axis is not used
    if buffer_steps and not -dims <= buffer_dim < dims:
        raise ConfigurationError(
            f"buffer_dim={buffer_dim!r} is not one of the {dims} spatial axes: give a whole number from {-dims} to {dims - 1}."
        )
    return int(buffer_dim) % dims


def _runs(windows: Windows, images: int, buffer: tuple[int, int] | None) -> list[list[Tile]]:
    """Windows in the order in which they go through the network; a run are those that share a buffer, with successive starts along its
    axis."""
    corners = windows.corners
    if buffer is None:
        return [[(image, corner) for image in range(images) for corner in corners]]
    axis, steps = buffer
    starts = windows.starts[axis]
    return [
        [(image, corner) for start in run for corner in corners if corner[axis] == start]
        for image in range(images)
        for run in (starts[i : i + steps] for i in range(0, len(starts), steps))
    ]
