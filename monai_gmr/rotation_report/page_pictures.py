"""The pictures of the report's page: slices of a rotating case, and their overlays, as data addresses."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from monai_gmr.rotation_report.probe import Shown
from monai_gmr.rotation_report.sweeps import Sweep
from monai_gmr.rotation_report.worst_cases_picture import (
    CLASS_COLOURS,
    ERROR_COLOURS,
    find_errors,
    find_window,
    in_colour,
)

# pixels along the longer side, and bytes of all pictures of images; base64 adds a third
LARGEST_SIDE, SMALLEST_SIDE, LARGEST_SUM = 256, 64, 4_500_000
# measured on noise, the largest, as WebP of this quality
BYTES_PER_PIXEL, QUALITY = 0.56, 80


def choose_side(pictures: int) -> int:
    """Chooses the pixels along the longer side for this number of pictures, so that a page stays small.

    Example:
        >>> choose_side(100), choose_side(10_000)
        (256, 64)
    """
    side = int((LARGEST_SUM / max(pictures, 1) / BYTES_PER_PIXEL) ** 0.5)
    return max(SMALLEST_SIDE, min(LARGEST_SIDE, side))


def _address(picture: Any, kind: str, **how: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _resized(picture: Any, side: int, pixel: tuple[float, float], resampling: int) -> Any:
    """Resizes a picture to square pixels, no larger than ``side``; ``pixel`` is the size of its pixels along rows and columns."""
    width, height = picture.width * pixel[1] / min(pixel), picture.height * pixel[0] / min(pixel)
    scale = min(1.0, side / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return picture if size == picture.size else picture.resize(size, resampling)


def image_address(image: np.ndarray, window: tuple[float, float], side: int, pixel: tuple[float, float]) -> str:
    """Encodes an image ``(C, H, W)`` as WebP."""
    from PIL import Image

    colours = np.round(255 * in_colour(image, window)).astype(np.uint8)
    picture = _resized(Image.fromarray(colours), side, pixel, Image.Resampling.BOX)
    small = max(picture.size) <= SMALLEST_SIDE
    return _address(picture, "WEBP", quality=QUALITY, lossless=small, method=4)


def overlay_address(numbers: np.ndarray, colours: Sequence[str], side: int, pixel: tuple[float, float]) -> str:
    """Encodes integers ``(H, W)`` as PNG, transparent at 0 and with one of the colours elsewhere; 1 is the first colour."""
    from PIL import Image

    shown = np.where(numbers == 0, 0, (numbers - 1) % len(colours) + 1).astype(np.uint8)
    picture = _resized(Image.fromarray(shown), side, pixel, Image.Resampling.NEAREST)
    picture.putpalette(b"\0\0\0" + b"".join(bytes.fromhex(colour[1:]) for colour in colours))
    return _address(picture, "PNG", optimize=True, transparency=0, bits=4)


class CasePictures:
    """The pictures of one case, ``steps[sweep][step]``: ``image``, ``label`` and, for each network by name, ``prediction``, ``difference``
    and, if its label is its own, ``label``; addresses, or the class of a whole image and its ``probabilities``.

    Volumes are shown as one slice: for rotations always the slice with most foreground across the axis of the rotation, for other views one
    across the last axis. ``own_labels``: whether networks are compared with their own answers.
    """

    def __init__(
        self, sweeps: Sequence[Sweep], side: int, spacing: Sequence[float] | None = None, own_labels: bool = False
    ) -> None:
        self.sweeps, self.side, self.spacing, self.own_labels = sweeps, side, spacing, own_labels
        self.steps: list[list[dict[str, Any]]] = [[{"networks": {}} for _ in sweep.steps] for sweep in sweeps]
        self.classes: set[int] = set()
        self._window: tuple[float, float] | None = None
        # per axis, the slice with most foreground in the first view, the upright one
        self._slices: list[int] | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether there is any picture."""
        return any(step["networks"] for steps in self.steps for step in steps)

    def add(self, network: str, shown: Shown) -> None:
        """Adds the pictures of one view; the first one is the upright view."""
        if self._window is None:
            # only the first channel of a volume is shown
            self._window = find_window(shown.image[:1] if shown.image.ndim == 4 else shown.image)
        if self._slices is None and shown.image.ndim == 4:
            self._slices = [_fullest_slice(shown, axis) for axis in range(3)]
        for sweep, steps in zip(self.sweeps, self.steps):
            for step, content in zip(sweep.steps, steps):
                if step.view.name == shown.view.name:
                    self._fill(content, network, shown, sweep)

    def _fill(self, content: dict[str, Any], network: str, shown: Shown, sweep: Sweep) -> None:
        assert self._window is not None
        image, maps, pixel = shown.image, {"label": shown.label, "prediction": shown.prediction}, (1.0, 1.0)
        is_map = {name: np.ndim(value) > 0 for name, value in maps.items()}
        if image.ndim == 4:
            axis = 2 if sweep.axis is None else sweep.axis
            place = _fullest_slice(shown, axis) if sweep.axis is None or self._slices is None else self._slices[axis]
            # a shifted or resampled answer can be smaller
            image = image.take(min(place, image.shape[axis + 1] - 1), axis + 1)[:1]
            maps = {
                name: value.take(min(place, value.shape[axis] - 1), axis) if is_map[name] else value
                for name, value in maps.items()
            }
            sizes = [size for other, size in enumerate(self.spacing or (1.0, 1.0, 1.0)) if other != axis]
            pixel = (sizes[0], sizes[1])
        elif self.spacing:
            pixel = (self.spacing[0], self.spacing[1])
        self.classes |= {int(number) for name in maps if is_map[name] for number in np.unique(maps[name])} - {0}

        def drawn(name: str) -> Any:
            value = maps[name]
            if not is_map[name]:
                return None if value is None else int(value)
            return overlay_address(value, CLASS_COLOURS, self.side, pixel)

        if "image" not in content:
            content["image"] = image_address(image, self._window, self.side, pixel)
            if not self.own_labels:
                content["label"] = drawn("label")
        answer: dict[str, Any] = {"prediction": drawn("prediction")}
        if self.own_labels:
            answer["label"] = drawn("label")
        if all(is_map.values()) and maps["label"].shape == maps["prediction"].shape:
            errors = find_errors(maps["label"], maps["prediction"])
            answer["difference"] = overlay_address(errors, ERROR_COLOURS, self.side, pixel)
            answer["wrong"] = int(np.count_nonzero(errors))
        if shown.probabilities is not None:
            answer["probabilities"] = [round(float(value), 4) for value in shown.probabilities]
        content["networks"][network] = answer


def _fullest_slice(shown: Shown, axis: int) -> int:
    """Finds the slice across an axis with most foreground of label and prediction; the middle one if there is none."""
    maps = [value for value in (shown.label, shown.prediction) if np.ndim(value) == 3]
    others = tuple(other for other in range(3) if other != axis)
    counts = sum(np.count_nonzero(value, axis=others) for value in maps) if maps else np.zeros(1, int)
    return int(np.argmax(counts)) if counts.any() else shown.image.shape[axis + 1] // 2
