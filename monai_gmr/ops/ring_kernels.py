"""Calls of the kernels in ``cpp/ring_conv.cpp``, which backend "compiled" runs radial convolutions with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F

from monai_gmr.ops.kernels import call_kernel
from monai_gmr.ops.parts import Window

# rows of matrices are padded to this, whatever the length of the processor's vectors
LANES = 16


@lru_cache(maxsize=256)
def _taps(window: Window) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of the first tap of each shell, and one more; places of the taps in voxels, ``(taps, axes)``."""
    shells = window.taps()
    counts = torch.tensor([0, *(len(taps) for taps in shells)])
    places = torch.tensor([place for taps in shells for place in taps], dtype=torch.int64)
    return counts.cumsum(0), places.reshape(-1, len(window.shape))


def _three(sizes: Sequence[int]) -> list[int]:
    """Sizes of an image of three axes that lies in memory alike."""
    return [1] * (3 - len(sizes)) + list(sizes)


class _Call:
    """What both kernels are told of an image ``(batch, *seen sizes, channels)`` and a result ``(batch, *sizes, channels)``, of which so
    many others are meant, in so many groups."""

    def __init__(
        self, image: torch.Tensor, result: torch.Tensor, others: int, groups: int, window: Window, basis: torch.Tensor
    ) -> None:
        for tensor in (image, result):
            if not tensor.is_contiguous() or tensor.dtype != torch.float32:
                raise AssertionError(f"a tensor of shape {tuple(tensor.shape)} is not contiguous and float32")
        if basis.shape[1] != window.live:
            raise AssertionError(f"a basis of shape {tuple(basis.shape)} is not for {window.live} shells")
        seen, sizes = image.shape[1:-1], result.shape[1:-1]
        if [n + reach for n, reach in zip(sizes, window.reach())] != list(seen) or len(image) != len(result):
            raise AssertionError(f"an image of shape {tuple(image.shape)} does not give {tuple(result.shape)}")
        numbers = [len(image), *_three(sizes), *_three(seen), image.shape[-1], others, *basis.T.shape]
        self.geometry = torch.tensor([*numbers, torch.get_num_threads(), result.shape[-1], groups])
        first, places = _taps(window)
        strides = torch.tensor(image.stride()[1:-1])
        self.tensors = [self.geometry, first, (places * strides).sum(1), basis.T.contiguous(), image]

    def run(self, name: str, *further: torch.Tensor | None) -> None:
        """Call a kernel."""
        call_kernel(name, *self.tensors, *further)


def pad_columns(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix with zeros behind its rows, so that they are whole vectors: contiguous.

    Example:
        >>> pad_columns(torch.ones(2, 5)).shape
        torch.Size([2, 16])
    """
    return F.pad(matrix, [0, -matrix.shape[-1] % LANES]).contiguous()


def ring_products(
    image: torch.Tensor,
    window: Window,
    basis: torch.Tensor,
    matrices: torch.Tensor,
    bias: torch.Tensor | None,
    result: torch.Tensor,
    channels: slice,
) -> None:
    """Sums of rings, times a matrix, plus a bias; channels and others are those of a group.

    Args:
        image: ``(batch, *sizes + reach, groups * channels)``.
        window: the taps.
        basis: ``(rings, shells)``.
        matrices: ``(groups, rings * channels, others)``, by :func:`pad_columns`.
        bias: ``(groups, others)``, by :func:`pad_columns`, or ``None``.
        result: ``(batch, *sizes, all)``.
        channels: which of them are the others of all groups; these are written to.
    """
    call = _Call(image, result, channels.stop - channels.start, len(matrices), window, basis)
    call.run("ring_conv", matrices, bias, result[..., channels])


def ring_gradients(
    image: torch.Tensor,
    window: Window,
    basis: torch.Tensor,
    other: torch.Tensor,
    matrices: torch.Tensor,
    transposed: torch.Tensor,
    found: Sequence[torch.Tensor | None],
) -> None:
    """Sums of rings, and what follows from them; what is ``None`` in ``found`` is left out. Channels and others are those of a group.

    Args:
        image: ``(batch, *sizes + reach, groups * channels)``.
        window: the taps.
        basis: ``(rings, shells)``.
        other: ``(batch, *sizes, groups * others)``.
        matrices: ``(groups, rings * channels, others)``, by :func:`pad_columns`.
        transposed: ``(groups, others, rings * channels)``, the channels of each ring by :func:`pad_columns`.
        found: of the shape of ``other``, the sums times the matrices, written to; ``(threads, groups, rings * channels, others)``, by
            :func:`pad_columns`, what the sums' products with ``other`` are added to; ``(threads, shells, rings)``, float64, what the inner
            products of the shells' sums with ``other`` times ``transposed`` are added to.
    """
    call = _Call(image, other, other.shape[-1], len(matrices), window, basis)
    call.run("ring_conv_backward", other, matrices, transposed, *found)
