"""Checks of one case, image and label, against the network and against each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from monai.utils import ensure_tuple

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import check_counts
from monai_gmr.symmetry import is_mirror
from monai_gmr.utils import ConfigurationError, warn

# distance of the corners of two grids, in voxels, up to which they count as the same grid
TOLERANCE = 0.1
# relative deviation from an integer caused by a stored scale, as in 255 * 0.00392157
ROUNDING = 1e-6
SMALLEST_DETERMINANT = 1e-6
# runs listed in a sentence
MOST_PARTS = 12


@checked_arguments
def check_image(
    image: torch.Tensor | np.ndarray, spatial_dims: int, in_channels: int | Sequence[int], name: str = "the image"
) -> None:
    """Raises :class:`ConfigurationError` if an image ``(C, *spatial)`` does not fit the network, is empty or holds NaN or inf; warns if it
    has the same value everywhere.

    ``in_channels`` is the number of channels that the network takes, or several possible numbers; ``name`` begins the sentence.

    Example:
        >>> check_image(np.zeros((3, 8, 8)), spatial_dims=2, in_channels=1)
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: the image has 3 channels and the network reads 1: give images of 1 channel, or train with ...
    """
    check_shape(tuple(image.shape), spatial_dims, in_channels, name)
    check_finite(image, name)
    values = torch.as_tensor(image).as_subclass(torch.Tensor)
    first = values[(0,) * values.ndim]
    if (values == first).all():
        warn(f"{name} has one value everywhere, {first.item()}: nothing is to be seen in it.")


def check_shape(shape: Sequence[int], spatial_dims: int, in_channels: int | Sequence[int], name: str) -> None:
    """Applies :func:`check_image` to a shape ``(C, *spatial)``, as in the header of a file."""
    accepted = ensure_tuple(in_channels)
    check_counts("in_channels", accepted, (1, 3))
    dims = len(shape) - 1
    if dims != spatial_dims:
        raise ConfigurationError(
            f"{name} has {dims} spatial axes and the network works on {spatial_dims}: give {spatial_dims}D images."
        )
    count = shape[0]
    if count not in accepted:
        reads = " or ".join(str(number) for number in accepted)
        raise ConfigurationError(
            f"{name} has {count} channel{'s' * (count != 1)} and the network reads {reads}: give images of {reads} "
            f"channel{'s' * (accepted[-1] != 1)}, or train with --in_channels {count} on images like this one."
        )
    if 0 in shape:
        raise ConfigurationError(f"{name} is empty, of shape {tuple(shape[1:])}: take it out.")


@checked_arguments
def check_finite(image: torch.Tensor | np.ndarray, name: str = "the image") -> None:
    """Raises :class:`ConfigurationError`, with their number, if an array of any shape holds NaN or inf."""
    values = torch.as_tensor(image)
    if not (values.is_floating_point() or values.is_complex()):
        return
    finite = torch.isfinite(values)
    if not finite.all():
        wrong = int((~finite).sum())
        raise ConfigurationError(
            f"{name} holds {wrong} value{'s' * (wrong != 1)} of {values.numel()} that {'are' if wrong != 1 else 'is'} NaN or infinite: "
            "correct it or take it out."
        )


def describe_runs(runs: Sequence[tuple[int, int]]) -> str:
    """Lists runs of integers, given by their first and last, in words; of many runs only the first ones.

    Example:
        >>> describe_runs([(0, 1), (4, 6), (9, 9)]), describe_runs([(0, 2)]), describe_runs([(7, 7)])
        ('0, 1, 4 to 6 and 9', '0 to 2', '7')
    """
    parts: list[str] = []
    for first, last in runs[:MOST_PARTS]:
        parts += [f"{first} to {last}"] if last > first + 1 else map(str, range(first, last + 1))
    parts += ["others"] * (len(runs) > MOST_PARTS)
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


@checked_arguments
def check_label(
    label: torch.Tensor | np.ndarray,
    out_channels: int,
    setting: str = "out_channels",
    name: str = "the label",
    label_values: Sequence[int] | None = None,
) -> None:
    """Raises :class:`ConfigurationError` if a label of any shape holds a value that is not an integer from 0 to ``out_channels - 1``.

    Give it as it was read: a cast would hide values that are not integers. ``setting`` is the bundle's setting for the number of classes;
    ``label_values`` are the values that the label can hold instead, one per class.

    Example:
        >>> check_label(np.array([0, 1, 2]), out_channels=2)
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: the label holds 0 to 2 and the network has 2 classes: give --out_channels 3.
    """
    values = torch.as_tensor(label)
    if values.numel() == 0:
        raise ConfigurationError(f"{name} is empty, of shape {tuple(values.shape)}: take the case out.")
    check_finite(values, name)
    values = values.as_subclass(torch.Tensor)
    if values.is_floating_point():
        whole = (values - values.round()).abs() <= ROUNDING * values.abs().clamp_min(1)
        if not whole.all():
            first = values[~whole][0].item()
            raise ConfigurationError(
                f"{name} holds {first:.7g} and other values that are not whole: labels are class indices, the integers from 0 on."
            )
    if label_values is not None:
        known = torch.as_tensor(list(label_values), dtype=torch.float64)
        others = _runs(_integers(values[~torch.isin(values.double().round(), known)]))
        if others:
            raise ConfigurationError(
                f"{name} holds {describe_runs(others)}, which label_values={list(label_values)} lacks: give all values of the labels as "
                f"--label_values, one per class, and their number as --{setting}."
            )
        return
    low, high = (round(value.item()) for value in values.aminmax())
    if low < 0:
        raise ConfigurationError(
            f"{name} holds values from {low} to {high}: labels are class indices, from 0 on; give labels of other values as "
            "--label_values, one per class."
        )
    if high >= out_channels:
        found = _integers(values)
        missing = [(before + 1, after - 1) for before, after in pairwise([-1, *found]) if after > before + 1]
        hint = f"give --{setting} {high + 1}"
        if missing:
            given = "with all values of the labels"
            if len(found) <= MOST_PARTS:
                given = f"[{','.join(map(str, found))}] with --{setting} {len(found)}"
            hint += f" or, if no label has {describe_runs(missing)}, --label_values {given}"
        raise ConfigurationError(
            f"{name} holds {describe_runs(_runs(found))} and the network has {out_channels} classes: {hint}."
        )


def _integers(values: torch.Tensor) -> list[int]:
    """Returns the integers in a label, ascending, each once."""
    return sorted(set(map(round, values.unique().tolist())))


def _runs(integers: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the first and last integer of each run of ascending integers."""
    runs = np.split(np.asarray(integers), np.flatnonzero(np.diff(integers) > 1) + 1) if integers else []
    return [(int(run[0]), int(run[-1])) for run in runs]


def describe_offset(
    affine: np.ndarray, reference: np.ndarray, shape: Sequence[int], tolerance: float = TOLERANCE
) -> str:
    """Describes how a grid of voxels differs from a reference of the same shape; empty if no corner is off by more than ``tolerance``.

    The tolerance is in voxels of the reference. The affines, ``(4, 4)``, map indices to millimetres. The description names the first
    difference: spacing, mirrored axes, order of the axes, rotation, shift; else the distance at the corners. An affine that is not finite
    or has no inverse raises :class:`ConfigurationError`.

    Example:
        >>> mirrored, shifted = np.diag([-1.0, 1, 1, 1]), np.eye(4)
        >>> shifted[0, 3] = 40
        >>> [describe_offset(affine, np.eye(4), (8, 8, 8)) for affine in (mirrored, shifted, np.diag([2.0, 2, 2, 1]))]
        ['mirrored along axis 0', 'shifted by 40 mm', 'of voxels of 2 x 2 x 2 mm, where the image has 1 x 1 x 1 mm']
    """
    dims, last = len(shape), np.array(shape) - 1
    for matrix in (affine, reference):
        # of the normalised directions, because a voxel can be a nanometre long
        lengths = np.linalg.norm(matrix[:3, :3], axis=0)
        is_usable = np.isfinite(matrix).all() and lengths.all()
        if not is_usable or abs(np.linalg.det(matrix[:3, :3] / lengths)) < SMALLEST_DETERMINANT:
            raise ConfigurationError("an affine of it is not finite or has no inverse: correct the header.")
    corners = np.pad(np.array(list(np.ndindex(*[2] * dims))) * last, [(0, 0), (0, 4 - dims)])
    corners[:, 3] = 1
    distance = np.abs(corners @ (np.linalg.inv(reference) @ affine).T - corners).max()
    if distance <= tolerance:
        return ""
    sizes, expected = (np.linalg.norm(matrix[:3, :dims], axis=0) for matrix in (affine, reference))
    if (np.abs(sizes / expected - 1) * last).max() > tolerance:
        own, other = (" x ".join(f"{size:.4g}" for size in part) for part in (sizes, expected))
        return f"of voxels of {own} mm, where the image has {other} mm"
    # columns: directions of the axes of one grid in axes of the other
    rotation = np.linalg.lstsq(reference[:3, :dims] / expected, affine[:3, :dims] / sizes, rcond=None)[0]
    signs = np.sign(np.diag(rotation))
    slack = tolerance / max(1, last.max())
    if np.abs(rotation - np.eye(dims)).max() > slack:
        mirrored = [str(axis) for axis in range(dims) if signs[axis] < 0]
        if np.abs(rotation - np.diag(signs)).max() <= slack:
            return f"mirrored along ax{'es' if len(mirrored) > 1 else 'is'} {' and '.join(mirrored)}"
        if np.abs(rotation - np.round(rotation)).max() <= slack:
            return "of its axes in another order"
        cosine = (np.trace(rotation @ np.diag(signs)) - (dims == 3)) / 2
        angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        return f"rotated by {angle:.3g} degrees" + " and mirrored" * is_mirror(rotation)
    shift = np.linalg.norm(affine[:3, 3] - reference[:3, 3])
    if shift > tolerance * expected.min():
        return f"shifted by {shift:.3g} mm"
    return f"off by {distance:.3g} voxels at a corner"
