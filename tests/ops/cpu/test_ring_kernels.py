"""The kernels of radial convolutions equal sums in float64 for all geometries; if there are no kernels, the reason is logged."""

import functools
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_gmr.networks.layers import GMRConv2d, GMRConv3d
from monai_gmr.ops.cpu import library as kernels
from monai_gmr.ops.cpu import ring_kernels
from monai_gmr.ops.cpu.ring_kernels import choose_sums, line_sums, ring_gradients, ring_products, tap_sums
from monai_gmr.ops.cpu.tiles import Window
from monai_gmr.symmetry import kernel_shells

pytestmark = pytest.mark.skipif(kernels.load_kernels() is None, reason="no kernels were built")


def sums_of_shells(image, window, sizes):
    """``(batch, *sizes, shells, channels)`` in float64, tap by tap."""
    found = torch.zeros(image.shape[0], *sizes, window.num_shells, image.shape[-1], dtype=torch.float64)
    for shell, place in zip(window.shells, itertools.product(*map(range, window.shape))):
        if shell < window.num_shells:
            region = tuple(slice(p * d, p * d + n) for p, d, n in zip(place, window.dilation, sizes))
            found[..., shell, :] += image[(slice(None), *region)].double()
    return found


geometries = st.tuples(
    st.integers(1, 3),  # batch
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 2)), min_size=1, max_size=3),
    st.sampled_from([1, 1, 2, 3]),  # groups
    st.sampled_from([1, 3, 16, 20]),  # channels of a group
    st.sampled_from([1, 5, 16, 70]),  # others of a group
    st.integers(1, 6),  # shells
    st.integers(1, 10),  # rings
    st.sampled_from([1, 2, 90]),  # how many times as long the last axis is
    st.sampled_from([1, 2, 64]),  # how many lines of the window are different
    st.integers(0, 2**16),
)


@settings(max_examples=60, deadline=None)
@given(
    geometry=geometries,
    threads=st.integers(1, 3),
    way=st.sampled_from([tap_sums, line_sums]),
    columns_first=st.booleans(),
)
def test_kernels_give_what_sums_in_float64_give(libraries, geometry, threads, way, columns_first):
    """Compares the kernels for each kind of processor with the same sums."""
    batch, axes, groups, channels, others, num_shells, rings, factor, different, seed = geometry
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    sizes, shape, dilation = ([axis[i] for axis in axes] for i in range(3))
    sizes[-1] *= factor
    # the window can have unused shells and shells without taps
    lines = torch.randint(0, num_shells + 1, (different, shape[-1]), generator=generator)
    of_lines = torch.randint(0, different, (math.prod(shape[:-1]),), generator=generator)
    window = Window(tuple(lines[of_lines].flatten().tolist()), tuple(shape), num_shells, tuple(dilation))
    image = draw(batch, *(n + reach for n, reach in zip(sizes, window.reach())), groups * channels)
    basis, weight, bias = draw(rings, num_shells), draw(groups, rings, channels, others), draw(groups, others)
    shells = sums_of_shells(image, window, sizes)
    mixed = torch.einsum("rs,...sc->...rc", basis.double(), shells)
    blocks = mixed.unflatten(-1, (groups, channels))
    expected = torch.einsum("...rgc,grco->...go", blocks, weight.double()).flatten(-2)
    shifted, every = expected + bias.flatten(), groups * others
    # the sum of the absolute terms, which limits rounding where they cancel
    parts = torch.einsum("rs,...sc->...rc", basis.double().abs(), sums_of_shells(image.abs(), window, sizes))
    terms = torch.einsum("...rgc,grco->...go", parts.unflatten(-1, (groups, channels)), weight.double().abs()).flatten(
        -2
    )
    rounding = 1e-6 * (terms + bias.abs().flatten()).norm()
    weights = weight.permute(0, 3, 2, 1).contiguous()
    given_weights = weights if columns_first else weights.transpose(1, 2).contiguous()
    other = draw(batch, *sizes, every)
    met = other.double().unflatten(-1, (groups, others))
    expected_products = torch.einsum("...rgc,...go->gocr" if columns_first else "...rgc,...go->gcor", blocks, met)
    back = torch.einsum("...go,grco->...rgc", met, weight.double()).flatten(-2)
    expected_inner = torch.einsum("...sc,...rc->rs", shells, back)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for processor, library in libraries.items():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(kernels, "load_kernels", lambda library=library: library)
                patch.setattr(ring_kernels, "choose_sums", lambda window, length: way(window))
                result = torch.empty(batch, *sizes, every)
                ring_products(image, window, basis, weights, bias.flatten(), result, slice(0, every))
                assert (result - shifted).norm() <= rounding, processor
                own, products = torch.empty(batch, *sizes, every), torch.ones_like(given_weights)
                inner = torch.ones(rings, num_shells, dtype=torch.float64)
                find = functools.partial(
                    ring_gradients, image, window, basis, other, given_weights, columns_first=columns_first
                )
                find((own, products, inner))
                assert (own - expected).norm() <= rounding, processor
                # added to previous values
                product_error = (products - 1 - expected_products).norm()
                assert product_error <= 1e-5 * blocks.norm() * other.norm() + 1e-6 * products.norm(), processor
                inner_error = (inner - 1 - expected_inner).norm()
                assert inner_error <= 1e-5 * shells.norm() * back.norm() + 1e-12, processor
                # what is not asked for is left alone
                find((None, None, None))
                find((own.zero_(), None, None))
                assert (own - expected).norm() <= rounding, processor
                # some channels of a result that has more
                wide = torch.zeros(batch, *sizes, every + 3)
                ring_products(image, window, basis, weights, bias.flatten(), wide, slice(2, every + 2))
                assert torch.equal(wide[..., 2:-1], result), processor
                assert not wide[..., :2].any()
                assert not wide[..., -1].any()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(7,), (9, 9), (4, 5), (3, 3, 3), (5, 5, 5), (7, 5, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_sums_of_lines_have_every_tap_once(shape, dilation):
    shells = kernel_shells(shape).tap_shell
    window = Window.of(torch.as_tensor(shells), int(shells.max()), [dilation] * len(shape))
    taps, lines = tap_sums(window), line_sums(window)
    found = []
    for sums in (taps, lines):
        places = []
        for shell, (first, last) in enumerate(itertools.pairwise(sums.first_taps.tolist())):
            for tap in range(first, last):
                begin, end = sums.first_lines[sums.sets_of_taps[tap] :][:2].tolist() if sums is lines else (0, 1)
                added = sums.lines[begin:end] if sums is lines else torch.zeros(1, 3).long()
                places += [(shell, *place) for place in (added + sums.taps[tap]).tolist()]
        found.append(sorted(places))
    assert found[0] == found[1]
    assert len(found[0]) == len(set(found[0])) == len(taps.taps)


@pytest.mark.parametrize(
    ("shape", "length", "by_lines"),
    [((7, 7, 7), 48, True), ((5, 5, 5), 48, True), ((3, 3, 3), 48, False), ((9, 9), 64, False), ((7, 7, 7), 2, False)],
)
def test_lines_are_added_first_where_that_saves_additions(shape, length, by_lines):
    layer = {2: GMRConv2d, 3: GMRConv3d}[len(shape)](1, 1, shape)
    window = Window.of(layer.shells, layer.num_shells, [1] * len(shape))
    sums = choose_sums(window, length)
    assert sums is (line_sums if by_lines else tap_sums)(window)


@pytest.mark.usefixtures("processor")
def test_the_same_call_gives_the_same_digits():
    window = Window((2, 1, 2, 1, 0, 1, 2, 1, 2), (3, 3), 3, (1, 1))
    image, basis, other = torch.randn(2, 42, 52, 20), torch.randn(2, 3), torch.randn(2, 40, 50, 7)
    weights, found = torch.randn(1, 7, 20, 2), []
    for _ in range(3):
        results = [torch.empty_like(other), torch.zeros_like(weights), torch.zeros(2, 3).double()]
        ring_gradients(image, window, basis, other, weights, results)
        found.append(results)
    assert all(torch.equal(a, b) for again in found[1:] for a, b in zip(found[0], again))


@pytest.mark.usefixtures("processor")
def test_a_call_leaves_nothing_behind_for_the_next():
    window = Window((1, 0, 1), (3,), 2, (1,))
    basis, weights = torch.randn(2, 2), torch.randn(1, 5, 3, 2)
    for size, value in ((64, math.inf), (7, 1.0), (3, 1.0)):
        image, other = torch.full((4, size + 2, 3), value), torch.full((4, size, 5), value)
        found = [torch.empty_like(other), torch.zeros_like(weights), torch.zeros(2, 2).double()]
        ring_gradients(image, window, basis, other, weights, found)
        assert all(each.isfinite().all() for each in found) == (value == 1.0)


@pytest.mark.parametrize(
    ("image", "result"),
    [
        (torch.zeros(1, 6, 3), torch.zeros(1, 5, 3)),
        (torch.zeros(2, 6, 3), torch.zeros(1, 4, 3)),
        (torch.zeros(1, 6, 3, dtype=torch.float64), torch.zeros(1, 4, 3)),
        (torch.zeros(1, 3, 6).transpose(1, 2), torch.zeros(1, 4, 3)),
    ],
)
def test_memory_that_does_not_fit_is_refused(image, result):
    window, weights = Window((1, 0, 1), (3,), 2, (1,)), torch.zeros(1, 3, 3, 2)
    with pytest.raises(AssertionError, match=r"^an? (tensor|image) of shape"):
        ring_products(image, window, torch.zeros(2, 2), weights, None, result, slice(0, 3))
    image, result = torch.zeros(1, 6, 3), torch.zeros(1, 4, 3)
    with pytest.raises(AssertionError, match=r"^a basis of shape \(2, 3\) is not for 2 shells$"):
        ring_products(image, window, torch.zeros(2, 3), weights, None, result, slice(0, 3))
    for others in (torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 3, 3), torch.zeros(1, 2, 3, 3).transpose(1, 3)):
        with pytest.raises(AssertionError, match=r"^weights of shape .* are not for an image of shape \(1, 6, 3\)$"):
            ring_products(image, window, torch.zeros(2, 2), others, None, result, slice(0, 3))
