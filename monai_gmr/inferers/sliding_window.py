"""Sliding windows that lie symmetrically about the centre of the image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map
from monai.inferers import SlidingWindowInferer
from monai.utils import BlendMode, PytorchPadMode, ensure_tuple_rep, fall_back_tuple

from monai_gmr.inferers.outputs import OutputAccumulators, plain_tensor
from monai_gmr.inferers.windows import symmetric_window_starts, window_placements
from monai_gmr.utils import ConfigurationError, check_choice, progress_bar

# those of a volume, and time
MAX_AXES = 4


class Windows(NamedTuple):
    """How windows lie on an image."""

    size: tuple[int, ...]
    padding: list[int]  # voxels at both ends of each axis
    starts: list[list[int]]  # along each axis of the padded image

    @property
    def image_size(self) -> list[int]:
        """Padded size of the image."""
        return [starts[-1] + n for starts, n in zip(self.starts, self.size)]

    @property
    def corners(self) -> list[tuple[int, ...]]:
        """First voxel of each window."""
        return list(itertools.product(*self.starts))


class _Merger:
    """One output of the network, merged from the outputs ``(windows, *leading, *spatial)`` of which ``first`` is one.

    ``importance`` gives the weights of the voxels of a window, or None where all count alike; ``options`` are device and dtype.
    """

    def __init__(
        self,
        first: torch.Tensor,
        windows: Windows,
        batch_size: int,
        importance: Callable[[tuple[int, ...]], torch.Tensor | None],
        buffer_axis: int,
        **options: Any,
    ) -> None:
        dims = len(windows.size)
        self.windows, self.buffer_axis = windows, buffer_axis
        self.out_window = tuple(first.shape[-dims:])
        self.size = [n * q // r for n, q, r in zip(windows.image_size, self.out_window, windows.size)]
        self.weight = importance(self.out_window)
        self.buffer: torch.Tensor | None = None
        # first voxels and share of the places of each window
        self.places: list[list[tuple[tuple[int, ...], float]]] = []
        for start in windows.corners:
            sizes = zip(start, windows.image_size, windows.size, self.size, self.out_window)
            corners = itertools.product(*(window_placements(*each) for each in sizes))
            self.places.append([(tuple(s for s, _ in each), math.prod(w for _, w in each)) for each in corners])
        self.sums = torch.zeros(batch_size, *first.shape[1:-dims], *self.size, **options)
        self.counts = torch.zeros(self.size, **options)
        weight = torch.ones((), **options) if self.weight is None else self.weight.to(self.sums.device)
        for corner, share in itertools.chain.from_iterable(self.places):
            self._window(self.counts, corner).add_(weight, alpha=share)

    def _window(self, image: torch.Tensor, corner: Sequence[int], buffer_start: int = 0) -> torch.Tensor:
        """The part of an image, or of a buffer that starts later along its axis, where a window lies."""
        index: list[Any] = [slice(s, s + q) for s, q in zip(corner, self.out_window)]
        axis = self.buffer_axis
        index[axis] = slice(corner[axis] - buffer_start, corner[axis] - buffer_start + self.out_window[axis])
        return image[(Ellipsis, *index)]

    def add(
        self, outputs: torch.Tensor, tiles: Sequence[tuple[int, int]], run: Sequence[tuple[int, int]] | None
    ) -> None:
        """Add the outputs of windows, numbered by image and window; those of a ``run`` of one image go to a buffer on the device of the
        outputs, and from there to the result with the last of them."""
        outputs = outputs.to(self.sums.dtype) if self.weight is None else outputs * self.weight
        if run is None:
            outputs = outputs.to(self.sums.device)
            for output, (image, window) in zip(outputs, tiles):
                for corner, share in self.places[window]:
                    self._window(self.sums[image], corner).add_(output, alpha=share)
            return
        axis = self.buffer_axis
        starts = [corner[axis] for _, window in run for corner, _ in self.places[window]]
        length = max(starts) - min(starts) + self.out_window[axis]
        target = self.sums[run[0][0]].narrow(axis - len(self.size), min(starts), length)
        if self.buffer is None:
            self.buffer = outputs.new_zeros(target.shape, dtype=self.sums.dtype)
        for output, (_, window) in zip(outputs, tiles):
            for corner, share in self.places[window]:
                self._window(self.buffer, corner, min(starts)).add_(output, alpha=share)
        if tiles[-1] == run[-1]:
            target.add_(self.buffer.to(target.device))
            self.buffer = None

    def result(self) -> torch.Tensor:
        """The weighted mean, without the padding."""
        whole = self.sums.div_(self.counts)
        cuts = [round(p * q / r) for p, q, r in zip(self.windows.padding, self.out_window, self.windows.size)]
        index: list[Any] = [slice(cut, n - cut) for cut, n in zip(cuts, self.size)]
        return whole[(Ellipsis, *index)] if any(cuts) else whole


class GMRSlidingWindowInferer(SlidingWindowInferer):
    """MONAI's sliding windows, placed symmetrically about the centre of the image: an equivariant network stays
    exactly equivariant at every size.

    Along an axis the windows start at :func:`symmetric_window_starts`: at least the asked overlap, at most one window more than MONAI
    takes. An image shorter than the window is padded by equally many voxels at both ends; where that makes it one voxel longer than the
    window, two windows cover it. Mirror images are always exact; exchanges of two axes are where roi, overlap and sigma are the same along
    both.

    Args:
        roi_size, sw_batch_size, overlap, mode, cache_roi_weight_map: as in MONAI.
        grow_roi: whether windows may be one voxel longer along the axes where symmetric ones of ``roi_size`` are more than
            MONAI takes: never more windows than MONAI's, for networks that take every size, such as ``GMRUNet``.
        kwargs: ``sigma_scale``, ``padding_mode``, ``cval``, ``sw_device``, ``device``, ``progress``, ``cpu_thresh``, ``buffer_steps``,
            ``buffer_dim`` and ``with_coord`` as in MONAI.

    Shape:
        - input: ``(batch, channels, *spatial)``, 1 to 4 axes of any size
        - output: that of the network for a window, at the size of the image; outputs of other resolutions at their share
          of it, rounded down. Nested tuples, lists and dictionaries keep their form.

    Raises:
        ConfigurationError: when arguments, input or the network's output do not fit.

    Example:
        >>> blur, x = torch.nn.AvgPool2d(3, 1, 1), torch.rand(1, 1, 50, 37)
        >>> inferer = GMRSlidingWindowInferer(roi_size=32, sw_batch_size=4, mode="gaussian")
        >>> torch.allclose(inferer(x.rot90(1, (2, 3)), blur), inferer(x, blur).rot90(1, (2, 3)), atol=1e-6)
        True
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        mode: BlendMode | str = BlendMode.CONSTANT,
        *,
        cache_roi_weight_map: bool = False,
        grow_roi: bool = False,
        **kwargs: Any,
    ) -> None:
        check_choice("mode", mode, tuple(choice.value for choice in BlendMode))
        super().__init__(roi_size, sw_batch_size, overlap, mode, **kwargs)
        self.padding_mode = str(self.padding_mode)
        check_choice("padding_mode", self.padding_mode, tuple(choice.value for choice in PytorchPadMode))
        if sw_batch_size < 1:
            raise ConfigurationError(f"sw_batch_size={sw_batch_size} leaves no window: use 1 or more.")
        for share in np.atleast_1d(overlap):
            if not 0 <= share < 1:
                raise ConfigurationError(f"overlap={overlap} is impossible: use 0 or more and less than 1.")
        _buffer_axis(self.buffer_steps, self.buffer_dim, MAX_AXES)
        self.grow_roi = grow_roi
        self.keep_weights = cache_roi_weight_map
        self._weights: dict[tuple, torch.Tensor] = {}

    def windows(self, image_size: Sequence[int]) -> Windows:
        """How windows lie on an image of a spatial size in voxels.

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
                    f"{name}={tuple(value)} has {len(value)} entries and the image {dims} axes: give one an axis, or one number for all."
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
        """Run the network on all windows and merge its outputs.

        Args:
            inputs: image of shape ``(batch, channels, *spatial)``.
            network: module, or anything that is called with windows of shape ``(windows, channels, *roi_size)``.
            args: further arguments of the network.
            kwargs: further arguments of the network; ``condition``, of the shape of ``inputs``, is cut into windows
                too, and ``device``, ``buffer_steps`` and ``buffer_dim`` override the inferer's.
        """
        image = plain_tensor(inputs, MAX_AXES)
        size = image.shape[2:]
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
        corners = windows.corners
        importance = partial(self._importance, device=sw_device, dtype=dtype)
        buffered = bool(buffer_steps) and buffer_steps > 0
        tiles = [(b, w) for b in range(len(image)) for w in range(len(corners))]
        runs = _runs(corners, len(image), buffer_steps, buffer_axis) if buffered else [tiles]
        steps = [(run, run[i : i + self.sw_batch_size]) for run in runs for i in range(0, len(run), self.sw_batch_size)]

        def make(tensor: torch.Tensor, batch: list, _run: list | None) -> _Merger:
            if tensor.ndim < len(size) + 2 or len(tensor) != len(batch):
                raise ConfigurationError(
                    f"The network returned a tensor of shape {tuple(tensor.shape)} for {len(batch)} windows: sliding windows need "
                    f"({len(batch)}, channels, *{len(size)} spatial axes)."
                )
            return _Merger(tensor, windows, len(image), importance, buffer_axis, device=device, dtype=dtype)

        outputs = OutputAccumulators(make, _Merger.add)
        for run, batch in progress_bar(steps, "windows", self.progress):
            slices = [
                (slice(b, b + 1), slice(None), *(slice(s, s + n) for s, n in zip(corners[w], windows.size)))
                for b, w in batch
            ]
            places = [[list(each) for each in slices]] if self.with_coord else []
            if condition is not None:
                kwargs["condition"] = _cut(condition, slices).to(sw_device)
            output = network(_cut(image, slices).to(sw_device), *places, *args, **kwargs)
            outputs.add(output, batch, run if buffered else None)
        out_dtype = image.dtype if image.is_floating_point() else dtype
        return outputs.nested([merger.result().to(out_dtype) for merger in outputs.accumulators], inputs)

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
        """Weights of the voxels of a window, None where all count alike."""
        if self.mode == BlendMode.CONSTANT:
            return None
        key = (size, str(device), dtype)
        cache = self._weights if self.keep_weights else {}
        if key not in cache:
            cache[key] = compute_importance_map(size, self.mode, self.sigma_scale, device, dtype)
        return cache[key]


def _cut(image: torch.Tensor, places: Sequence[tuple[slice, ...]]) -> torch.Tensor:
    # a copy also of one window: a network that works in place must not reach the image
    return torch.cat([image[place] for place in places])


def _buffer_axis(buffer_steps: int | None, buffer_dim: int, dims: int) -> int:
    """The axis along which outputs are buffered, from 0; checks both arguments."""
    if buffer_steps is not None and not isinstance(buffer_steps, (int, np.integer)):
        raise ConfigurationError(f"buffer_steps={buffer_steps!r} is no number of steps: give a whole number or None.")
    # without a buffer the axis has no meaning
    in_range = isinstance(buffer_dim, (int, np.integer)) and (not buffer_steps or -dims <= buffer_dim < dims)
    if not in_range:
        raise ConfigurationError(
            f"buffer_dim={buffer_dim!r} is none of the {dims} spatial axes: give a whole number from {-dims} to {dims - 1}."
        )
    return int(buffer_dim) % dims


def _runs(starts: Sequence[tuple[int, ...]], images: int, steps: int, axis: int) -> list[list[tuple[int, int]]]:
    """Windows, numbered by image and window, that share a buffer: those of ``steps`` successive starts along an axis."""
    levels = sorted({start[axis] for start in starts})
    order = sorted(range(len(starts)), key=lambda window: starts[window][axis])
    return [
        [(b, w) for w in order if starts[w][axis] in levels[i : i + steps]]
        for b in range(images)
        for i in range(0, len(levels), steps)
    ]
