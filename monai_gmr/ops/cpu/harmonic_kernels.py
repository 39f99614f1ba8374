"""Calls of the kernels in ``cpp/harmonic_conv.cpp``, which backend "cpp" runs angular orders of harmonic convolutions with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from monai_gmr.ops.cpu.library import call_kernel
from monai_gmr.ops.cpu.ring_kernels import pad_columns
from monai_gmr.ops.cpu.tiles import Window
from monai_gmr.ops.invariants import NORM_SMOOTHING, inner_product_scale

# what the kernels have memory and code for
MOST_CHANNELS, MOST_COMPONENTS = 512, 7


class Terms(NamedTuple):
    """What one order adds up: two taps of a shell whose factors are the same up to a sign, or one tap.

    Attributes:
        places: ``(terms, 2, 3)``, where the two taps lie, in voxels; of one tap, twice the same.
        shells: ``(terms,)``, numbers among ``used``.
        signs: ``(terms,)``, of the second tap; 0 where there is one.
        factors: ``(terms, components)``, of the first tap.
        first: ``(shells + 1,)``: the first entry of each shell, and one more.
        entries: ``(entries, 2)``: term and component of the factors that are not zero, by shell.
        used: the shells that have terms.
    """

    places: torch.Tensor
    shells: torch.Tensor
    signs: torch.Tensor
    factors: torch.Tensor
    first: torch.Tensor
    entries: torch.Tensor
    used: torch.Tensor


def as_volume(numbers: Sequence[int], filler: int) -> list[int]:
    """One number for each of three axes: of two, the one between them is missing, for kernels go from plane to plane.

    Example:
        >>> as_volume([7, 8], 1), as_volume([8], 1)
        ([7, 1, 8], [1, 1, 8])
    """
    return {1: [filler, filler, *numbers], 2: [*numbers[:1], filler, *numbers[1:]], 3: list(numbers)}[len(numbers)]


@lru_cache(maxsize=256)
def terms_of(window: Window, rows: tuple[tuple[float, ...], ...]) -> Terms:
    """The terms of an order.

    Args:
        window: the taps.
        rows: the factors of each component, of each tap.

    Example:
        >>> terms = terms_of(Window((1, 0, 1), (3,), 2, (1,)), ((-1.0, 0.0, 1.0),))
        >>> terms.places.tolist(), terms.signs.tolist(), terms.factors.tolist(), terms.used.tolist()
        ([[[0, 0, 0], [0, 0, 2]]], [-1.0], [[-1.0]], [1])
    """
    grid = itertools.product(*(range(0, n * d, d) for n, d in zip(window.shape, window.dilation)))
    taps = [as_volume(place, 0) for place in grid]
    factors = list(zip(*rows))
    found = []
    counted = {tap for tap, shell in enumerate(window.shells) if shell < window.live and any(factors[tap])}
    for tap in sorted(counted):
        other, shell = len(taps) - 1 - tap, window.shells[tap]
        sign = next((s for s in (1.0, -1.0) if factors[other] == tuple(s * f for f in factors[tap])), 0.0)
        paired = other != tap and other in counted and sign != 0 and window.shells[other] == shell
        if not paired:
            found.append((shell, [taps[tap]] * 2, 0.0, factors[tap]))
        elif tap < other:
            found.append((shell, [taps[tap], taps[other]], sign, factors[tap]))
    used = sorted({shell for shell, *_ in found})
    numbers = [used.index(shell) for shell, *_ in found]
    entries = [
        (number, term, component)
        for term, (number, row) in enumerate(zip(numbers, (row for *_, row in found)))
        for component, factor in enumerate(row)
        if factor != 0
    ]
    counts = [sum(number == shell for number, *_ in entries) for shell in range(len(used))]
    return Terms(
        torch.tensor([pair for _, pair, *_ in found], dtype=torch.int64).reshape(-1, 2, 3),
        torch.tensor(numbers, dtype=torch.int64),
        torch.tensor([sign for _, _, sign, _ in found], dtype=torch.float32),
        torch.tensor([row for *_, row in found], dtype=torch.float32).reshape(-1, len(rows)),
        torch.tensor([0, *counts]).cumsum(0),
        torch.tensor([pair for _, *pair in sorted(entries)], dtype=torch.int64).reshape(-1, 2),
        torch.tensor(used, dtype=torch.int64),
    )


def has_kernel(reach: Sequence[int], norms: int, products: int, components: int, padding: Sequence[int]) -> bool:
    """Whether there is a kernel for an order: not for margins wider than the window's reach, and for very many channels.

    Example:
        >>> has_kernel([2], 8, 8, 3, [1]), has_kernel([2], 8, 8, 3, [3]), has_kernel([2], 600, 0, 3, [1])
        (True, False, False)
    """
    fits = norms <= MOST_CHANNELS and components <= MOST_COMPONENTS and products <= norms
    return fits and all(p <= r for p, r in zip(padding, reach))


class AngularOrder:
    """One order of a harmonic convolution of stride 1 and one group.

    Args:
        window: the taps.
        rows: the factors of each component, of each tap.
        norms, products: how many output channels become lengths, and how many inner products with the first of them.
        padding: in voxels, one an axis; at most the window's reach.
    """

    def __init__(
        self,
        window: Window,
        rows: tuple[tuple[float, ...], ...],
        norms: int,
        products: int,
        padding: Sequence[int],
    ) -> None:
        self.terms, self.norms, self.products = terms_of(window, rows), norms, products
        self.kinds = 2 if products else 1
        self.components, self.reach, self.padding = len(rows), window.reach(), list(padding)
        if not has_kernel(self.reach, norms, products, self.components, padding):
            raise AssertionError(
                f"padding={padding} with {products} inner products of {norms} lengths of {len(rows)} components has no kernel"
            )

    def _geometry(self, image: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
        """What both kernels are told of an image and its scalars, ``(batch, *sizes, channels)``."""
        for tensor in (image, scalars):
            if not tensor.is_contiguous() or tensor.dtype != torch.float32:
                raise AssertionError(f"a tensor of shape {tuple(tensor.shape)} is not contiguous and float32")
        sizes, seen = scalars.shape[1:-1], image.shape[1:-1]
        wanted = [n + 2 * p - reach for n, p, reach in zip(seen, self.padding, self.reach)]
        if wanted != list(sizes) or len(image) != len(scalars):
            raise AssertionError(f"an image of shape {tuple(image.shape)} does not give {tuple(scalars.shape)}")
        terms = self.terms
        axes = [*as_volume(sizes, 1), *as_volume(seen, 1), *as_volume(self.padding, 0), *as_volume(self.reach, 0)]
        counts = [image.shape[-1], len(terms.used), self.components, self.norms, self.products, scalars.shape[-1]]
        more = [len(terms.shells), len(terms.entries), torch.get_num_threads()]
        return torch.tensor([len(image), *axes, *counts, *more])

    def _constants(self) -> torch.Tensor:
        return torch.tensor([NORM_SMOOTHING, inner_product_scale(self.components)])

    def _columns(self, weight: torch.Tensor) -> torch.Tensor:
        """``(norms + products, channels, live shells)`` as ``(channels, kinds * used shells * norms)``."""
        weight = weight[:, :, self.terms.used]
        weight = torch.cat([weight, weight.new_zeros((self.kinds * self.norms - len(weight), *weight.shape[1:]))])
        return weight.unflatten(0, (self.kinds, self.norms)).permute(2, 0, 3, 1).flatten(1)

    def write_scalars(
        self,
        image: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        scalars: torch.Tensor,
        channels: slice,
    ) -> None:
        """Compute the order.

        Args:
            image: ``(batch, *sizes, channels)``.
            weight: ``(norms + products, channels, live shells)``.
            bias: ``(norms + products,)`` or ``None``.
            scalars: ``(batch, *sizes_out, all)``.
            channels: which of them are the order's; these are written to.
        """
        terms, matrix = self.terms, pad_columns(self._columns(weight))
        arrays = (terms.places, terms.shells, terms.signs, terms.factors)
        bias = None if bias is None else bias.contiguous()
        geometry = self._geometry(image, scalars)
        call_kernel("harmonic_conv", geometry, *arrays, image, matrix, self._constants(), bias, scalars[..., channels])

    def add_gradients(
        self,
        image: torch.Tensor,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        channels: slice,
        image_gradient: torch.Tensor | None,
        weight_gradient: torch.Tensor | None,
    ) -> None:
        """Compute the gradients of the order.

        Args:
            image, weight: as in :meth:`write_scalars`.
            gradient: ``(batch, *sizes_out, all)``.
            channels: which of them are the order's.
            image_gradient: what that of ``image`` is added to, or ``None``.
            weight_gradient: what that of ``weight`` is added to, or ``None``.
        """
        terms, columns = self.terms, self._columns(weight)
        matrix, transposed = pad_columns(columns), pad_columns(columns.T)
        found = None
        if weight_gradient is not None:
            found = matrix.new_zeros((torch.get_num_threads(), *matrix.shape))
        arrays: list[Any] = [*terms[:-1], image, matrix, transposed, self._constants(), gradient[..., channels]]
        call_kernel("harmonic_conv_backward", self._geometry(image, gradient), *arrays, image_gradient, found)
        if weight_gradient is not None and found is not None:
            sizes = (self.kinds, len(terms.used), self.norms)
            own = found.sum(0)[:, : columns.shape[1]].unflatten(1, sizes).permute(1, 3, 0, 2).flatten(0, 1)
            weight_gradient.index_add_(2, terms.used, own[: self.norms + self.products].contiguous())
