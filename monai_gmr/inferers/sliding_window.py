"""Sliding windows that lie symmetrically about the centre of the image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map
from monai.inferers import SlidingWindowInferer
from monai.utils import BlendMode, PytorchPadMode, ensure_tuple_rep, fall_back_tuple, optional_import

from monai_gmr.inferers.nests import checked_tensors, filled, outline, plain_tensor
from monai_gmr.inferers.windows import symmetric_window_starts, window_placements
from monai_gmr.utils import ConfigurationError, check_choice

tqdm, _ = optional_import("tqdm", name="tqdm")

_CHANNELS: tuple[Any, ...] = (Ellipsis,)
# those of a volume, and time
MOST_AXES = 4


class _Stitch:
    """One output of the network, put together from its windows.

    Args:
        first: output of the first windows, ``(windows, *leading, *spatial)``.
        batch_size: images.
        image_size: padded size of the image in voxels.
        window: size of a window in voxels.
        weights: function of a size that gives the importance of the voxels of a window, or None where all count alike.
        starts: first voxel of all windows of an image.
        device: where the output is kept.
        dtype: of the output.
        buffer_axis: axis along which :meth:`add` puts a run of windows together before they go to ``device``.
    """

    def __init__(
        self,
        first: torch.Tensor,
        batch_size: int,
        image_size: Sequence[int],
        window: Sequence[int],
        weights: Callable[[tuple[int, ...]], torch.Tensor | None],
        starts: Sequence[tuple[int, ...]],
        device: torch.device | str,
        dtype: torch.dtype,
        buffer_axis: int,
    ) -> None:
        dims = len(window)
        self.buffer_axis = buffer_axis
        self.buffer: torch.Tensor | None = None
        self.window, out_window = tuple(window), tuple(first.shape[-dims:])
        self.out_window = out_window
        self.size = [n * q // r for n, q, r in zip(image_size, out_window, window)]
        self.weight = weights(out_window)
        self.places: list[list[tuple[tuple[slice, ...], float]]] = []
        for start in starts:
            axes = [window_placements(*args) for args in zip(start, image_size, window, self.size, out_window)]
            self.places.append(
                [
                    (tuple(slice(s, s + q) for (s, _), q in zip(choice, out_window)), math.prod(w for _, w in choice))
                    for choice in itertools.product(*axes)
                ]
            )
        self.sums = torch.zeros(batch_size, *first.shape[1:-dims], *self.size, dtype=dtype, device=device)
        self.counts = torch.zeros(self.size, dtype=dtype, device=device)
        weight = torch.ones((), dtype=dtype, device=device) if self.weight is None else self.weight.to(device)
        for place in self.places:
            for slices, share in place:
                self.counts[slices].add_(weight, alpha=share)

    def add(
        self,
        answers: torch.Tensor,
        numbers: Sequence[tuple[int, int]],
        run: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Add the outputs of windows, numbered by image and window; those of a ``run`` of one image to a buffer on the device of the
        outputs, until :meth:`flush`."""
        answers = answers.to(self.sums.dtype) if self.weight is None else answers * self.weight
        first = 0
        if run is None:
            answers = answers.to(self.sums.device)
        else:
            span = self._span(run)
            first = span.start
            if self.buffer is None:
                size = list(self.sums.shape[1:])
                size[self.buffer_axis - len(self.size)] = span.stop - span.start
                self.buffer = answers.new_zeros(size, dtype=self.sums.dtype)
        for answer, (image, window) in zip(answers, numbers):
            target = self.sums[image] if self.buffer is None else self.buffer
            for slices, share in self.places[window]:
                axes = list(slices)
                place = axes[self.buffer_axis]
                axes[self.buffer_axis] = slice(place.start - first, place.stop - first)
                target[_CHANNELS + tuple(axes)].add_(answer, alpha=share)

    def flush(self, run: Sequence[tuple[int, int]]) -> None:
        """Add the buffer of a run to the output."""
        assert self.buffer is not None
        axis = self.buffer_axis - len(self.size)
        span = self._span(run)
        self.sums[run[0][0]].narrow(axis, span.start, span.stop - span.start).add_(self.buffer.to(self.sums.device))
        self.buffer = None

    def _span(self, run: Sequence[tuple[int, int]]) -> slice:
        """The part of the output's buffer axis that a run of windows covers."""
        places = [slices[self.buffer_axis] for _, window in run for slices, _ in self.places[window]]
        return slice(min(place.start for place in places), max(place.stop for place in places))

    def result(self, padding: Sequence[int]) -> torch.Tensor:
        """The weighted mean, without the voxels of padding at both ends."""
        whole = self.sums.div_(self.counts)
        cuts = [round(p * q / r) for p, q, r in zip(padding, self.out_window, self.window)]
        if not any(cuts):
            return whole
        return whole[_CHANNELS + tuple(slice(cut, n - cut) for cut, n in zip(cuts, self.size))]


class GMRSlidingWindowInferer(SlidingWindowInferer):
    """Sliding windows as MONAI's, but placed symmetrically about the centre of the image: an equivariant network stays
    exactly equivariant at every size.

    Along an axis the windows start at :func:`symmetric_window_starts`, which depends on the lengths of axis and window
    alone: at least the asked overlap, evenly spaced to a voxel, at most one window more than MONAI takes. An image
    shorter than the window is padded by equally many voxels at both ends; where that makes it one voxel longer than the
    window, two windows cover it. So the network sees windows of ``roi_size`` only, unless it may see larger ones:
    ``grow_roi`` spares the additional windows.

    Mirror images are always exact; exchanges of two axes are where roi, overlap and sigma are the same along both.

    Args:
        roi_size: window in voxels, one for all axes or one an axis; what is not positive is the image's own size.
        sw_batch_size: windows that the network gets at a time.
        overlap: share of a window that its neighbour covers too, at least; 0 or more and less than 1, one for all axes
            or one an axis.
        mode: "constant", or "gaussian": the border of a window counts less.
        sigma_scale: width of the Gaussian as a share of the window.
        padding_mode: "constant", "reflect", "replicate" or "circular".
        cval: value of constant padding.
        sw_device: device of the windows; default that of the input.
        device: device of the result; default that of the input.
        progress: whether to show a bar.
        cache_roi_weight_map: whether to keep the importance of the voxels of a window from one call to the next.
        cpu_thresh: voxels of an image above which the result is put together on the CPU.
        buffer_steps: steps of the windows along ``buffer_dim`` whose outputs are put together on ``sw_device`` before they go to
            ``device`` at once; ``None`` or 0: each window's goes by itself. It spares transfers where the two differ.
        buffer_dim: spatial axis of the steps, from 0, or from the end if negative.
        with_coord: whether the network gets the places of the windows in the padded image as its second argument.
        grow_roi: whether windows may be one voxel longer along the axes where symmetric ones of ``roi_size`` are more than
            MONAI takes: never more windows than MONAI's, for networks that take every size, such as ``GMRUNet``.

    Shape:
        - input: ``(batch, channels, *spatial)``, 1 to 4 axes of any size
        - output: what the network gives a window, at the size of the image; outputs of other resolutions at their share
          of it, rounded down. Nested tuples, lists and dictionaries keep their form.

    Raises:
        ConfigurationError: when arguments, input or the network's output do not fit; one sentence that says what does.

    Example:
        >>> blur, x = torch.nn.AvgPool2d(3, 1, 1), torch.rand(1, 1, 50, 37)
        >>> inferer = GMRSlidingWindowInferer(roi_size=32, sw_batch_size=4, mode="gaussian")
        >>> torch.allclose(inferer(x.rot90(1, (2, 3)), blur), inferer(x, blur).rot90(1, (2, 3)), atol=1e-6)
        True

    Source:
        ``monai.inferers.SlidingWindowInferer``; the rule: :func:`symmetric_window_starts`.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        mode: BlendMode | str = BlendMode.CONSTANT,
        sigma_scale: Sequence[float] | float = 0.125,
        padding_mode: PytorchPadMode | str = PytorchPadMode.CONSTANT,
        cval: float = 0.0,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        cache_roi_weight_map: bool = False,
        cpu_thresh: int | None = None,
        buffer_steps: int | None = None,
        buffer_dim: int = -1,
        with_coord: bool = False,
        grow_roi: bool = False,
    ) -> None:
        check_choice("mode", getattr(mode, "value", mode), tuple(choice.value for choice in BlendMode))
        modes = tuple(choice.value for choice in PytorchPadMode)
        check_choice("padding_mode", getattr(padding_mode, "value", padding_mode), modes)
        if sw_batch_size < 1:
            raise ConfigurationError(f"sw_batch_size={sw_batch_size} leaves no window: use 1 or more.")
        for share in np.atleast_1d(overlap):
            if not 0 <= share < 1:
                raise ConfigurationError(f"overlap={overlap} is impossible: use 0 or more and less than 1.")
        _buffer_axis(buffer_steps, buffer_dim, MOST_AXES)
        super().__init__(
            roi_size=roi_size,
            sw_batch_size=sw_batch_size,
            overlap=overlap,
            mode=mode,
            sigma_scale=sigma_scale,
            padding_mode=padding_mode,
            cval=cval,
            sw_device=sw_device,
            device=device,
            progress=progress,
            cpu_thresh=cpu_thresh,
            buffer_steps=buffer_steps,
            buffer_dim=buffer_dim,
            with_coord=with_coord,
        )
        self.grow_roi = grow_roi
        self.keeps_weights = cache_roi_weight_map
        self._weights: dict[tuple, torch.Tensor] = {}

    def windows(self, image_size: Sequence[int]) -> tuple[tuple[int, ...], list[int], list[list[int]]]:
        """How windows lie on an image.

        Args:
            image_size: spatial size in voxels.

        Returns:
            size of the window, voxels of padding at both ends of each axis, and the starts along each axis of the
            padded image.

        Example:
            >>> GMRSlidingWindowInferer(32).windows((50, 29))
            ((32, 32), [0, 2], [[0, 18], [0, 1]])
            >>> GMRSlidingWindowInferer(32, grow_roi=True).windows((50, 29))
            ((32, 33), [0, 2], [[0, 18], [0]])
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
        return tuple(r for r, _, _ in axes), [p for _, p, _ in axes], [starts for _, _, starts in axes]

    def _axis(self, size: int, window: int, overlap: float) -> tuple[int, int, list[int]]:
        """Window, padding at both ends and starts along one axis."""
        padding = -(-max(window - size, 0) // 2)
        interval = max(int(window * (1 - overlap)), 1)
        starts = symmetric_window_starts(size + 2 * padding, window, interval)
        monais = -(-max(size - window, 0) // interval) + 1
        if self.grow_roi and len(starts) > monais:
            return self._axis(size, window + 1, overlap)
        return window, padding, starts

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Run the network on all windows and put its outputs together.

        Args:
            inputs: image of shape ``(batch, channels, *spatial)``.
            network: module, or anything that is called with windows of shape ``(windows, channels, *roi_size)``.
            args: further arguments of the network.
            kwargs: further arguments of the network; ``condition``, of the shape of ``inputs``, is cut into windows
                too, and ``device``, ``buffer_steps`` and ``buffer_dim`` override the inferer's.
        """
        image = plain_tensor(inputs, MOST_AXES)
        size = tuple(image.shape[2:])
        buffer_steps = kwargs.pop("buffer_steps", self.buffer_steps)
        buffer_axis = _buffer_axis(buffer_steps, kwargs.pop("buffer_dim", self.buffer_dim), len(size))
        window, padding, axes = self.windows(size)
        device = kwargs.pop("device", self.device)
        if device is None and self.cpu_thresh is not None and image.shape[2:].numel() > self.cpu_thresh:
            device = "cpu"
        device, sw_device = device or image.device, self.sw_device or image.device
        dtype = image.dtype if image.dtype in (torch.float32, torch.float64) else torch.float32
        condition = kwargs.pop("condition", None)
        if condition is not None:
            condition = plain_tensor(condition, MOST_AXES)
            if condition.shape != image.shape:
                raise ConfigurationError(
                    f"condition of shape {tuple(condition.shape)} does not match the input: use {tuple(image.shape)}."
                )
            condition = self._padded(condition, padding)
        image = self._padded(image, padding)
        padded = tuple(image.shape[2:])

        starts = list(itertools.product(*axes))
        slices = [tuple(slice(s, s + r) for s, r in zip(start, window)) for start in starts]
        numbers = [(b, w) for b in range(image.shape[0]) for w in range(len(starts))]
        buffered = bool(buffer_steps) and buffer_steps > 0
        runs = _runs(starts, image.shape[0], buffer_steps, buffer_axis) if buffered else [numbers]
        stitches: list[_Stitch] = []
        nest: Any = None

        def weights(out_window: tuple[int, ...]) -> torch.Tensor | None:
            return self._importance(out_window, sw_device, dtype)

        steps = [(run, first) for run in runs for first in range(0, len(run), self.sw_batch_size)]
        for run, first in tqdm(steps) if self.progress else steps:
            batch = run[first : first + self.sw_batch_size]
            cut = [(slice(b, b + 1), slice(None), *slices[w]) for b, w in batch]
            further = list(args)
            if self.with_coord:
                further.insert(0, [list(each) for each in cut])
            if condition is not None:
                kwargs["condition"] = self._cut(condition, cut).to(sw_device)
            answer = network(self._cut(image, cut).to(sw_device), *further, **kwargs)
            tensors = checked_tensors(answer)
            if not stitches:
                nest = outline(answer)
                for tensor in tensors:
                    _check_answer(tensor, len(batch), len(window))
                    layout = (image.shape[0], padded, window, weights, starts)
                    stitches.append(_Stitch(tensor, *layout, device, dtype, buffer_axis))
            for stitch, tensor in zip(stitches, tensors):
                stitch.add(tensor, batch, run if buffered else None)
                if buffered and first + self.sw_batch_size >= len(run):
                    stitch.flush(run)
        results = [stitch.result(padding) for stitch in stitches]
        if image.is_floating_point():
            results = [result.to(image.dtype) for result in results]
        return filled(nest, results, inputs)

    @staticmethod
    def _cut(image: torch.Tensor, places: Sequence[tuple[slice, ...]]) -> torch.Tensor:
        # a copy also of one window: a network that works in place must not reach the image, which other windows are cut from
        return torch.cat([image[place] for place in places])

    def _padded(self, image: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
        if not any(padding):
            return image
        mode = getattr(self.padding_mode, "value", self.padding_mode)
        pad = [p for axis in reversed(padding) for p in (axis, axis)]
        if mode == PytorchPadMode.CONSTANT.value:
            return F.pad(image, pad, mode=mode, value=self.cval)
        size = tuple(image.shape[2:])
        if len(size) > 3:
            raise ConfigurationError(f"padding_mode={mode!r} cannot pad {len(size)} axes: use 'constant'.")
        if mode != PytorchPadMode.REPLICATE.value and any(p >= n for p, n in zip(padding, size)):
            raise ConfigurationError(
                f"padding_mode={mode!r} cannot fill a window of {self.roi_size} from an image of {size}: use 'constant' or 'replicate'."
            )
        return F.pad(image, pad, mode=mode)

    def _importance(self, size: tuple[int, ...], device: torch.device | str, dtype: torch.dtype) -> torch.Tensor | None:
        """Weights of the voxels of a window, None where all count alike."""
        if self.mode == BlendMode.CONSTANT:
            return None
        key = (size, str(device), dtype)
        weights = self._weights.get(key)
        if weights is None:
            weights = compute_importance_map(size, self.mode, self.sigma_scale, device, dtype)
            if self.keeps_weights:
                self._weights[key] = weights
        return weights


def _buffer_axis(buffer_steps: int | None, buffer_dim: int, dims: int) -> int:
    """The axis along which outputs are buffered, from 0; checks both arguments."""
    if buffer_steps is not None and not isinstance(buffer_steps, (int, np.integer)):
        raise ConfigurationError(f"buffer_steps={buffer_steps!r} is no number of steps: give a whole number or None.")
    whole = isinstance(buffer_dim, (int, np.integer))
    # without a buffer the axis has no meaning
    if not whole or (buffer_steps and not -dims <= buffer_dim < dims):
        raise ConfigurationError(
            f"buffer_dim={buffer_dim!r} is none of the {dims} spatial axes: give a whole number from {-dims} to {dims - 1}."
        )
    return int(buffer_dim) % dims


def _runs(starts: Sequence[tuple[int, ...]], images: int, steps: int, axis: int) -> list[list[tuple[int, int]]]:
    """Windows, numbered by image and window, that share a buffer: those of ``steps`` successive starts along an axis.

    Example:
        >>> _runs([(0, 0), (0, 4), (0, 8), (4, 0), (4, 4), (4, 8)], 1, 2, 1)
        [[(0, 0), (0, 3), (0, 1), (0, 4)], [(0, 2), (0, 5)]]
    """
    levels = sorted({start[axis] for start in starts})
    at = {level: [w for w, start in enumerate(starts) if start[axis] == level] for level in levels}
    groups = [levels[first : first + steps] for first in range(0, len(levels), steps)]
    return [[(b, w) for level in group for w in at[level]] for b in range(images) for group in groups]


def _check_answer(tensor: torch.Tensor, windows: int, dims: int) -> None:
    if tensor.ndim < dims + 2 or tensor.shape[0] != windows:
        raise ConfigurationError(
            f"The network returned a tensor of shape {tuple(tensor.shape)} for {windows} windows: sliding windows need "
            f"({windows}, channels, *{dims} spatial axes)."
        )
