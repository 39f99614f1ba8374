"""Tables of a window's taps, by shell and by common sums, cached for each window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.weak import WeakIdKeyDictionary

# values of tensors of shells, dropped with the tensor; torch has no public weak dictionary of tensors
_CONTENTS: Any = WeakIdKeyDictionary()


def content_of(shells: torch.Tensor) -> bytes:
    """The values of a tensor of shells, int64, read from a GPU once per tensor, because reading waits for the GPU."""
    content = _CONTENTS.get(shells)
    if content is None:
        content = shells.detach().cpu().numpy().astype(np.int64).tobytes()
        _CONTENTS[shells] = content
    return content


def three_axes(values: Sequence[int], missing: int) -> list[int]:
    """One number for each of three axes; missing axes come first."""
    return [missing] * (3 - len(values)) + list(values)


class TapTable(NamedTuple):
    """Taps sorted by shell."""

    offsets: torch.Tensor  # int32, (taps, 3): offset of a tap from the first voxel of its window, minus the padding
    starts: torch.Tensor  # int32, (shells + 1,): the first tap of each shell
    order: torch.Tensor  # int64, (taps,): the taps' indices in the window


def tap_table(
    shells: np.ndarray, num_shells: int, padding: Sequence[int], dilation: Sequence[int], mirrored: bool = False
) -> TapTable:
    """Taps of the first ``num_shells`` shells, sorted by shell; ``mirrored`` about the window's centre for the gradient of the input."""
    missing = 3 - shells.ndim
    places = np.stack(np.meshgrid(*map(np.arange, shells.shape), indexing="ij"), -1).reshape(-1, shells.ndim)
    offsets = places * np.asarray(dilation) - np.asarray(padding)
    if mirrored:
        offsets = -offsets
    offsets = np.concatenate([np.zeros((len(offsets), missing), offsets.dtype), offsets], 1)
    flat = shells.ravel()
    order = np.argsort(flat, kind="stable")
    order = order[flat[order] < num_shells]
    starts = np.searchsorted(flat[order], np.arange(num_shells + 1))
    return TapTable(
        torch.as_tensor(offsets[order].astype(np.int32)),
        torch.as_tensor(starts.astype(np.int32)),
        torch.as_tensor(order.astype(np.int64)),
    )


def tap_table_of(
    shells: torch.Tensor, device: torch.device, num_shells: int, padding: list[int], dilation: list[int], mirrored: bool
) -> TapTable:
    """:func:`tap_table` on a device, cached for each window."""
    geometry = (num_shells, tuple(padding), tuple(dilation), mirrored)
    return _kept_table(tap_table, content_of(shells), tuple(shells.shape), geometry, str(device))


@lru_cache(maxsize=512)
def _kept_table(make: Callable[..., Any], content: bytes, shape: tuple, geometry: tuple, device: str | None) -> Any:
    table = make(np.frombuffer(content, np.int64).reshape(shape), *geometry)
    return table if device is None else TapTable(*(array.to(device) for array in table))


class RingTable(NamedTuple):
    """Taps that are summed together: constants of the kernel of sums. ``starts`` are the first of each group, class or shell."""

    taps_2: tuple[int, ...]  # offsets along the last axis, by group: equal columns of the window
    group_starts: tuple[int, ...]
    class_lines: tuple[int, ...]  # row * groups + group, by class: groups of rows that are equal in all planes
    class_starts: tuple[int, ...]
    shell_places: tuple[int, ...]  # plane * classes + class, by shell
    shell_starts: tuple[int, ...]
    length_0: int  # of the window along the first axis
    length: int  # and along the middle one
    margin_0: int  # padding along them, in voxels
    margin_1: int
    dilation_0: int  # distance of neighbouring taps along them, in voxels
    dilation_1: int

    def options(self) -> dict[str, Any]:
        """Constants of the kernel, by name."""
        return {name.upper(): value for name, value in self._asdict().items()}


def _grouped(keys: Sequence[Any]) -> list[list[int]]:
    """Indices of equal keys, in the order of first occurrence."""
    groups: dict[Any, list[int]] = {}
    for place, key in enumerate(keys):
        if key is not None:
            groups.setdefault(key, []).append(place)
    return list(groups.values())


def _starts(groups: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(int(n) for n in np.cumsum([0, *map(len, groups)]))


def ring_table(
    shells: np.ndarray, num_shells: int, padding: Sequence[int], dilation: Sequence[int], mirrored: bool = False
) -> RingTable:
    """Taps of a window of three axes, mirrored or not, with equal weights in every ring: along the last axis, in planes, in all planes."""
    shells = np.flip(shells) if mirrored else shells
    kept = np.where(shells < num_shells, shells, -1)
    columns = _grouped([column.tobytes() if column.max() >= 0 else None for column in np.moveaxis(kept, 2, 0)])
    lines = [kept[a, :, columns[g][0]] for a in range(kept.shape[0]) for g in range(len(columns))]
    classes = _grouped([line.tobytes() if line.max() >= 0 else None for line in lines])
    places = [int(lines[kind[0]][j]) for j in range(kept.shape[1]) for kind in classes]
    by_shell = [[place for place, shell in enumerate(places) if shell == each] for each in range(num_shells)]
    return RingTable(
        taps_2=tuple(b * dilation[2] - padding[2] for column in columns for b in column),
        group_starts=_starts(columns),
        class_lines=tuple(line for kind in classes for line in kind),
        class_starts=_starts(classes),
        shell_places=tuple(place for shell in by_shell for place in shell),
        shell_starts=_starts(by_shell),
        length_0=kept.shape[0],
        length=kept.shape[1],
        margin_0=padding[0],
        margin_1=padding[1],
        dilation_0=dilation[0],
        dilation_1=dilation[1],
    )


def ring_table_of(
    shells: torch.Tensor, num_shells: int, padding: Sequence[int], dilation: Sequence[int], mirrored: bool
) -> RingTable:
    """The cached :func:`ring_table` of a window; ``mirrored`` also mirrors the padding, for the gradient of the input. Missing axes come
    first, with length 1."""
    shape = tuple(three_axes(shells.shape, 1))
    margins, steps = three_axes(padding, 0), three_axes(dilation, 1)
    if mirrored:
        margins = [d * (k - 1) - p for d, k, p in zip(steps, shape, margins)]
    geometry = (num_shells, tuple(margins), tuple(steps), mirrored)
    return _kept_table(ring_table, content_of(shells), shape, geometry, None)
