"""Calls of the kernels of angular orders, ``csrc/harmonic_conv.cpp``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from monai_gmr.ops.cpu.library import HarmonicConvGeometry, call_kernel
from monai_gmr.ops.cpu.ring_kernels import check_memory, pad_columns
from monai_gmr.ops.cpu.tiles import Window
from monai_gmr.ops.invariants import NORM_SMOOTHING, inner_product_scale

# limits of the kernels
MOST_CHANNELS, MOST_COMPONENTS = 512, 7


class Terms(NamedTuple):
    """Terms of the sum of one order: two taps of a shell whose angular factors are the same up to a sign, or one tap."""

    places: torch.Tensor  # (terms, 2, 3), where the two taps lie, in voxels; of one tap, twice the same
    shells: torch.Tensor  # (terms,), indices into used
    signs: torch.Tensor  # (terms,), of the second tap; 0 where there is one
    angular: torch.Tensor  # (terms, components), factors of the first tap
    first: torch.Tensor  # (shells + 1,), the first entry of each shell, and one more
    entries: torch.Tensor  # (entries, 2), term and component of the factors that are not zero, shell by shell
    used: torch.Tensor  # the shells that have terms


def as_volume(numbers: Sequence[int], filler: int) -> list[int]:
    """One number for each of three axes; of two axes, the middle one is missing, for the kernels go from plane to plane."""
    return {1: [filler, filler, *numbers], 2: [*numbers[:1], filler, *numbers[1:]], 3: list(numbers)}[len(numbers)]


@lru_cache(maxsize=256)
def terms_of(window: Window, angular: tuple[tuple[float, ...], ...]) -> Terms:
    """The terms of an order, from a window and the ``angular`` factors of each component, of each tap."""
    grid = itertools.product(*(range(0, n * d, d) for n, d in zip(window.shape, window.dilation)))
    taps = [as_volume(place, 0) for place in grid]
    factors = list(zip(*angular))
    counted = {tap for tap, shell in enumerate(window.shells) if shell < window.num_shells and any(factors[tap])}
    pairs, signs, first_taps = [], [], []
    for tap in sorted(counted):
        mirrored = len(taps) - 1 - tap
        sign = next((s for s in (1.0, -1.0) if factors[mirrored] == tuple(s * f for f in factors[tap])), 0.0)
        alone = mirrored == tap or mirrored not in counted or sign == 0 or window.shells[mirrored] != window.shells[tap]
        if alone or tap < mirrored:
            pairs.append([taps[tap], taps[tap if alone else mirrored]])
            signs.append(0.0 if alone else sign)
            first_taps.append(tap)
    used = sorted({window.shells[tap] for tap in first_taps})
    shells = torch.tensor([used.index(window.shells[tap]) for tap in first_taps], dtype=torch.int64)
    values = torch.tensor([factors[tap] for tap in first_taps], dtype=torch.float32).reshape(-1, len(angular))
    entries = values.nonzero()
    entries = entries[shells[entries[:, 0]].argsort(stable=True)]
    counts = shells[entries[:, 0]].bincount(minlength=len(used))
    return Terms(
        places=torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2, 3),
        shells=shells,
        signs=torch.tensor(signs, dtype=torch.float32),
        angular=values,
        first=F.pad(counts.cumsum(0), [1, 0]),
        entries=entries.contiguous(),
        used=torch.tensor(used, dtype=torch.int64),
    )


def supports_order(reach: Sequence[int], norms: int, products: int, components: int, padding: Sequence[int]) -> bool:
    """Whether the kernels compute an order: margins at most as wide as the window's reach, and not very many channels."""
    fits = norms <= MOST_CHANNELS and components <= MOST_COMPONENTS and products <= norms
    return fits and all(p <= r for p, r in zip(padding, reach))


class AngularOrder:
    """One order of a harmonic convolution of stride 1 and one group: ``norms`` output channels are lengths, ``products`` inner products
    with the first of them; ``angular`` as in :func:`terms_of`, ``padding`` at most the window's reach, in voxels, one an axis."""

    def __init__(
        self, window: Window, angular: tuple[tuple[float, ...], ...], norms: int, products: int, padding: Sequence[int]
    ) -> None:
        self.terms, self.norms, self.products = terms_of(window, angular), norms, products
        self.kinds = 2 if products else 1
        self.components, self.reach, self.padding = len(angular), window.reach(), list(padding)
        self.constants = (NORM_SMOOTHING, inner_product_scale(self.components))
        if not supports_order(self.reach, norms, products, self.components, padding):
            raise AssertionError(
                f"padding={padding} with {products} inner products of {norms} lengths of {len(angular)} components has no kernel"
            )

    def _geometry(self, image: torch.Tensor, scalars: torch.Tensor) -> HarmonicConvGeometry:
        """Of an image and its scalars, ``(batch, *sizes, channels)``."""
        sizes, image_sizes = scalars.shape[1:-1], image.shape[1:-1]
        check_memory(image, scalars, [n + 2 * p - r for n, p, r in zip(image_sizes, self.padding, self.reach)])
        return HarmonicConvGeometry(
            batch=len(image),
            sizes=tuple(as_volume(sizes, 1)),
            image=tuple(as_volume(image_sizes, 1)),
            padding=tuple(as_volume(self.padding, 0)),
            reach=tuple(as_volume(self.reach, 0)),
            channels=image.shape[-1],
            shells=len(self.terms.used),
            components=self.components,
            norms=self.norms,
            products=self.products,
            row=scalars.shape[-1],
            terms=len(self.terms.shells),
            entries=len(self.terms.entries),
            threads=torch.get_num_threads(),
        )

    def _columns(self, weight: torch.Tensor) -> torch.Tensor:
        """``(norms + products, channels, shells)`` as ``(channels, kinds * used shells * norms)``."""
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
        """Compute the order of an image ``(batch, *sizes, channels)``: ``channels`` of ``scalars`` ``(batch, *sizes_out, all)``."""
        geometry, matrix = self._geometry(image, scalars), pad_columns(self._columns(weight))
        bias = None if bias is None else bias.contiguous()
        arrays = (*self.terms[:4], image, matrix)
        call_kernel("harmonic_conv", geometry, *arrays, *self.constants, bias, scalars[..., channels])

    def add_gradients(
        self,
        image: torch.Tensor,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        channels: slice,
        image_gradient: torch.Tensor | None,
        weight_gradient: torch.Tensor | None,
    ) -> None:
        """Add the gradients of the order, from that of the scalars, to those of ``image`` and ``weight``, each a tensor or ``None``."""
        geometry, columns = self._geometry(image, gradient), self._columns(weight)
        matrix, transposed = pad_columns(columns), pad_columns(columns.T)
        sums = None if weight_gradient is None else matrix.new_zeros((geometry.threads, *matrix.shape))
        arrays = (*self.terms[:-1], image, matrix, transposed)
        outputs = (gradient[..., channels], image_gradient, sums)
        call_kernel("harmonic_conv_backward", geometry, *arrays, *self.constants, *outputs)
        if weight_gradient is not None and sums is not None:
            sizes = (self.kinds, geometry.shells, self.norms)
            own = sums.sum(0)[:, : columns.shape[1]].unflatten(1, sizes).permute(1, 3, 0, 2).flatten(0, 1)
            weight_gradient.index_add_(2, self.terms.used, own[: self.norms + self.products].contiguous())
