"""Calls of the kernels of angular orders, ``csrc/harmonic_conv.cpp``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from monai_gmr.ops.cpu.library import HarmonicConvGeometry, call_kernel
from monai_gmr.ops.cpu.ring_kernels import check_bias, check_memory
from monai_gmr.ops.cpu.tiles import Window
from monai_gmr.ops.invariants import NORM_SMOOTHING, inner_product_scale
from monai_gmr.ops.kept_terms import num_chiral, triple_product_scale

# limits of the kernels
MOST_CHANNELS, MOST_COMPONENTS = 512, 7


class Terms(NamedTuple):
    """Terms of the sum of one order: two taps of a shell whose angular factors are the same up to a sign, or one tap."""

    places: torch.Tensor  # (terms, 2, 3), positions of the two taps, in voxels; a single tap is repeated
    shells: torch.Tensor  # (terms,), indices into used
    signs: torch.Tensor  # (terms,), of the second tap; 0 for a single tap
    angular: torch.Tensor  # (terms, components), factors of the first tap
    used: torch.Tensor  # the shells that have terms
    first: torch.Tensor  # (shells + 1,), the first entry of each shell, and the number of entries
    entries: torch.Tensor  # (entries, 2), term and component of each nonzero factor, shell by shell


class KeptTerms(NamedTuple):
    """Factors of the terms that an order adds to the scalars of a layer that keeps a subgroup, or their gradients."""

    linear: torch.Tensor | None = None  # (all scalars, channels * components), of the order's responses, by channel
    chiral: torch.Tensor | None = None  # (channels,)


NO_TERMS = KeptTerms()


def as_volume(numbers: Sequence[int], filler: int) -> list[int]:
    """One number for each of three axes; in 2D the filler is the middle axis, because the kernels go from plane to plane."""
    return {1: [filler, filler, *numbers], 2: [*numbers[:1], filler, *numbers[1:]], 3: list(numbers)}[len(numbers)]


@lru_cache(maxsize=256)
def terms_of(window: Window, angular: tuple[tuple[float, ...], ...]) -> Terms:
    """The terms of an order, from a window and the ``angular`` factors of each component and tap."""
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
        used=torch.tensor(used, dtype=torch.int64),
        first=F.pad(counts.cumsum(0), [1, 0]),
        entries=entries.contiguous(),
    )


def supports_order(reach: Sequence[int], norms: int, products: int, components: int, padding: Sequence[int]) -> bool:
    """Whether the kernels support an order: padding at most the window's reach, and limited numbers of channels and components."""
    fits = norms <= MOST_CHANNELS and components <= MOST_COMPONENTS and products <= norms
    return fits and all(p <= r for p, r in zip(padding, reach))


class AngularOrder:
    """One order of a harmonic convolution of stride 1 and one group: ``norms`` output channels are lengths, ``products`` inner products
    with the first lengths; ``angular`` as in :func:`terms_of`, ``padding`` at most the window's reach, in voxels, one per axis."""

    def __init__(
        self, window: Window, angular: tuple[tuple[float, ...], ...], norms: int, products: int, padding: Sequence[int]
    ) -> None:
        self.terms, self.norms, self.products = terms_of(window, angular), norms, products
        self.kinds = 2 if products else 1
        self.components = len(angular)
        # output size minus input size, along each axis
        self.gains = [2 * p - r for p, r in zip(padding, window.reach())]
        self.geometry = {
            "padding": tuple(as_volume(padding, 0)),
            "reach": tuple(as_volume(window.reach(), 0)),
            "shells": len(self.terms.used),
            "components": self.components,
            "norms": norms,
            "products": products,
            "terms": len(self.terms.shells),
            "entries": len(self.terms.entries),
        }
        self.constants = (NORM_SMOOTHING, inner_product_scale(self.components))
        self.has_chiral = num_chiral(norms, products, self.components) > 0
        self.chiral_scale = inner_product_scale(2) if self.components == 2 else triple_product_scale()
        if not supports_order(window.reach(), norms, products, self.components, padding):
            raise AssertionError(
                f"padding={padding} with {products} inner products of {norms} lengths of {len(angular)} components has no kernel"
            )

    def _geometry(
        self, image: torch.Tensor, weight: torch.Tensor, scalars: torch.Tensor, *linear: torch.Tensor | None
    ) -> HarmonicConvGeometry:
        """The geometry for an image and its scalars, ``(batch, *sizes, channels)``, a weight ``(norms + products, channels, shells)``, and
        linear factors and their gradient, which must have equal strides."""
        factors = [each for each in linear if each is not None]
        expected = scalars.shape[-1], (self.norms + self.products) * self.components
        if any(each.shape != expected for each in factors):
            raise AssertionError(
                f"linear factors or gradients of shape {[tuple(each.shape) for each in factors]} are not {expected}"
            )
        # strides of axes with one element are arbitrary
        rows = {each.stride(0) for each in factors if each.shape[0] > 1}
        if len(rows) > 1 or any(each.shape[1] > 1 and each.stride(1) != 1 for each in factors):
            raise AssertionError(f"linear factors or gradients have strides {[each.stride() for each in factors]}")
        if weight.shape[:2] != (self.norms + self.products, image.shape[-1]) or not weight.is_contiguous():
            raise AssertionError(
                f"a weight of shape {tuple(weight.shape)} is not for an image of shape {tuple(image.shape)}"
            )
        sizes, image_sizes = scalars.shape[1:-1], image.shape[1:-1]
        check_memory(image, scalars, [n + gain for n, gain in zip(image_sizes, self.gains)])
        return HarmonicConvGeometry(
            batch=len(image),
            sizes=tuple(as_volume(sizes, 1)),
            image=tuple(as_volume(image_sizes, 1)),
            channels=image.shape[-1],
            all_shells=weight.shape[2],
            row=scalars.shape[-1],
            linear_row=max(rows, default=0),
            threads=torch.get_num_threads(),
            **self.geometry,
        )

    def _chiral(self, chiral: torch.Tensor | None) -> torch.Tensor | None:
        """Factors ``(channels,)`` as ``(norms,)``: the scaled factors of the inner products, then zeros."""
        if chiral is None or not self.has_chiral:
            return None
        return F.pad(chiral[self.norms :].float() * self.chiral_scale, [0, self.norms - self.products])

    def write_scalars(
        self,
        image: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        scalars: torch.Tensor,
        channels: slice,
        kept: KeptTerms = NO_TERMS,
    ) -> None:
        """Writes the order of an image ``(batch, *sizes, channels)`` to ``channels`` of ``scalars`` ``(batch, *sizes_out, all)``; with
        linear terms, adds the order to these channels and the linear terms to all scalars."""
        geometry = self._geometry(image, weight, scalars, kept.linear)
        bias = check_bias(bias, self.norms + self.products)
        factors = (kept.linear, self._chiral(kept.chiral))
        arrays = (*self.terms[:5], image, weight)
        call_kernel(
            "harmonic_conv", geometry, *arrays, *self.constants, bias, *factors, scalars[..., channels], scalars
        )

    def add_gradients(
        self,
        image: torch.Tensor,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        channels: slice,
        image_gradient: torch.Tensor | None,
        weight_gradient: torch.Tensor | None,
        kept: KeptTerms = NO_TERMS,
        kept_gradients: KeptTerms = NO_TERMS,
    ) -> None:
        """Adds the order's gradients, computed from the scalars' ``gradient``, to the gradients of ``image``, ``weight`` and ``kept``,
        each a tensor or ``None``."""
        geometry = self._geometry(image, weight, gradient, kept.linear, kept_gradients.linear)
        chiral, chiral_sums = self._chiral(kept.chiral), None
        if chiral is not None and kept_gradients.chiral is not None:
            chiral_sums = chiral.new_zeros((geometry.threads, len(chiral)), dtype=torch.float64)
        arrays = (*self.terms, image, weight)
        outputs = (image_gradient, weight_gradient, kept_gradients.linear, chiral_sums)
        scalars = (gradient[..., channels], gradient)
        call_kernel(
            "harmonic_conv_backward", geometry, *arrays, *self.constants, kept.linear, chiral, *scalars, *outputs
        )
        if kept_gradients.chiral is not None and chiral_sums is not None:
            kept_gradients.chiral[self.norms :].add_(chiral_sums.sum(0)[: self.products], alpha=self.chiral_scale)
