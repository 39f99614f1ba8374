"""The kernels of angular orders equal dense convolutions in float64, for every kind of processor."""

from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from monai_gmr.ops.cpu import library as kernels
from monai_gmr.ops.cpu.harmonic_kernels import AngularOrder, KeptTerms, terms_of
from monai_gmr.ops.cpu.tiles import Window
from monai_gmr.ops.harmonic_operation import dense_harmonic_operation
from monai_gmr.ops.kept_terms import num_chiral
from monai_gmr.symmetry import kernel_shells, tap_harmonics

pytestmark = pytest.mark.skipif(kernels.load_kernels() is None, reason="no kernels were built")

geometries = st.tuples(
    st.integers(1, 3),  # batch
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 2), st.integers(0, 6)), min_size=1, max_size=3
    ),
    st.sampled_from([1, 3, 16, 20]),  # channels
    st.sampled_from([(1, 0), (1, 1), (3, 2), (4, 4), (17, 3)]),  # norms and inner products
    st.integers(1, 7),  # components
    st.integers(1, 4),  # shells
    st.sampled_from(["even", "odd", "neither"]),
    st.sampled_from([1, 2, 90]),  # how many times as long the last axis is
    st.integers(0, 2**16),
)


@settings(max_examples=30, deadline=None)
@given(geometry=geometries, threads=st.integers(1, 3), terms=st.sampled_from(["none", "linear", "chiral", "both"]))
def test_kernels_give_what_convolutions_in_float64_give(libraries, geometry, threads, terms):
    """Compares the kernels for each kind of processor with one convolution."""
    batch, axes, channels, (norms, products), components, num_shells, parity, factor, seed = geometry
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    sizes, shape, dilation, wanted = ([axis[i] for axis in axes] for i in range(4))
    sizes[-1] *= factor
    reach = [d * (k - 1) for d, k in zip(dilation, shape)]
    padding = [min(p, r) for p, r in zip(wanted, reach)]
    assume(all(n + 2 * p > r for n, p, r in zip(sizes, padding, reach)))
    # shells and factors that are mirrored or not, and some that are zero
    count = torch.Size(shape).numel()
    numbers = torch.randint(0, num_shells + 1, (count,), generator=generator)
    factors = draw(components, count) * (torch.rand(components, count, generator=generator) < 0.7)
    if parity != "neither":
        numbers = torch.minimum(numbers, numbers.flip(0))
        factors = factors + (factors if parity == "even" else -factors).flip(1)
    window = Window(tuple(numbers.tolist()), tuple(shape), num_shells, tuple(dilation))
    x, weight, bias = (
        draw(batch, channels, *sizes),
        draw(norms + products, channels, num_shells),
        draw(norms + products),
    )
    # three channels of other orders follow; below, one of them is moved to the front
    count_of_all = norms + products + 3
    has_chiral = num_chiral(norms, products, components) > 0
    factors_of = {"linear": draw(count_of_all, (norms + products) * components), "chiral": draw(count_of_all)}
    asked = {"linear": terms in ("linear", "both"), "chiral": terms in ("chiral", "both") and has_chiral}
    kept = {name: value if asked[name] else None for name, value in factors_of.items()}
    gradient = None

    def dense(dtype):
        """Scalars and their gradients for image, weight and factors, by convolution in a precision."""
        nonlocal gradient
        given = (x, weight, *kept.values())
        inputs = [None if each is None else each.to(dtype).requires_grad_() for each in given]
        nothing = (weight.new_zeros(3, channels, 1, dtype=dtype), weight.new_zeros(1, num_shells, dtype=dtype))
        radial = (nothing[0], nothing[1], *inputs[1:], numbers.reshape(shape))
        orders = ([norms, 3], [products, 0], [components, 0])
        y = dense_harmonic_operation(inputs[0], *radial, factors.to(dtype), padding, dilation, *orders)
        if gradient is None:
            gradient = draw(*y.shape)
            if kept["linear"] is None:
                gradient[:, norms + products :] = 0
        wanted = [each for each in inputs if each is not None]
        return y.detach(), *torch.autograd.grad(y, wanted, gradient.to(dtype))

    y, *gradients_expected = dense(torch.float64)
    expected = y.clone()
    expected[:, : norms + products] += bias.double().reshape(-1, *[1] * len(shape))

    def is_near(found, expected, rounding, number):
        """Whether the error is within the rounding of float32, or of the convolution in float32, which only runs if needed."""
        error = (found - expected).norm()
        bound = 1e-5 * expected.norm() + rounding
        return error <= bound or error <= 4 * (dense(torch.float32)[number] - expected).norm()

    rows = tuple(map(tuple, factors.tolist()))
    order = AngularOrder(window, rows, norms, products, padding)
    # the order's channels start at the second channel
    last = lambda each: each.movedim(1, -1).roll(1, -1).contiguous()  # noqa: E731
    before, channels_of_it = torch.get_num_threads(), slice(1, 1 + norms + products)
    own_kept = KeptTerms(
        None if kept["linear"] is None else kept["linear"].roll(1, 0),
        None if kept["chiral"] is None else kept["chiral"][: norms + products],
    )
    image = x.movedim(1, -1).contiguous()
    torch.set_num_threads(threads)
    try:
        for processor, library in libraries.items():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(kernels, "load_kernels", lambda library=library: library)
                scalars = torch.zeros(batch, *y.shape[2:], count_of_all)
                order.write_scalars(image, weight, bias, scalars, channels_of_it, own_kept)
                error = (scalars - last(expected)).norm()
                assert error <= 1e-5 * expected.norm() + 1e-6, processor
                if kept["linear"] is None:
                    assert not scalars[..., 0].any()
                    assert not scalars[..., -2:].any()
                scalars = last(gradient)
                found = [torch.ones_like(each) for each in (image, weight)]
                own = KeptTerms(*(None if each is None else torch.ones_like(each) for each in own_kept))
                order.add_gradients(image, weight, scalars, channels_of_it, *found, own_kept, own)
                # lengths are smoothed at .01: their gradients are large near zero, and so is the rounding of
                # convolutions in float32
                rounding = 1e-5 * gradient.norm()
                assert is_near(found[0].movedim(-1, 1) - 1, gradients_expected[0], rounding, 1), processor
                assert is_near(found[1] - 1, gradients_expected[1], rounding * x.norm(), 2), processor
                place = 2
                if own.linear is not None:
                    linear = own.linear.roll(-1, 0) - 1
                    assert is_near(linear, gradients_expected[place], rounding * x.norm(), place + 1), processor
                    place += 1
                if own.chiral is not None:
                    chiral = torch.nn.functional.pad(own.chiral - 1, [0, 3])
                    assert is_near(chiral, gradients_expected[place], rounding * x.norm(), place + 1), processor
                # what is not asked for is left alone
                again = torch.ones_like(weight)
                order.add_gradients(image, weight, scalars, channels_of_it, None, again, own_kept)
                assert torch.equal(again, found[1])
                order.add_gradients(image, weight, scalars, channels_of_it, None, None, own_kept)
    finally:
        torch.set_num_threads(before)


WRONG = [("bias", (1,)), ("bias", (5,)), ("linear", (4, 4)), ("linear", (1, 8)), ("gradient", (4, 4))]


@pytest.mark.parametrize(("given", "shape"), WRONG)
def test_what_has_another_shape_than_the_channels_is_refused(given, shape):
    window = Window((0,) * 3, (3,), 1, (1,))
    order = AngularOrder(window, ((1.0, 0.0, -1.0), (0.0, 1.0, 0.0)), norms=3, products=1, padding=[1])
    tensors = {"bias": torch.ones(4), "linear": torch.ones(4, 8), "gradient": torch.ones(4, 8)}
    bias, linear, gradient = (tensors | {given: torch.ones(shape)}).values()
    arguments = (torch.ones(1, 9, 2), torch.ones(4, 2, 1))
    scalars, places, kept = torch.zeros(1, 9, 4), slice(0, 4), KeptTerms(linear)
    if given == "gradient":
        call = partial(order.add_gradients, *arguments, scalars, places, None, None, kept, KeptTerms(gradient))
    else:
        call = partial(order.write_scalars, *arguments, bias, scalars, places, kept)
    with pytest.raises(AssertionError, match=r"of shape .* (is|are) not"):
        call()


@pytest.mark.parametrize("window", [(3,), (3, 3), (4, 4), (5, 3), (3, 3, 3), (5, 5, 5)])
@pytest.mark.parametrize("order", [1, 2])
def test_mirrored_taps_of_harmonics_are_added_first(window, order):
    if len(window) == 1 and order == 2:
        return
    shells = kernel_shells(window).tap_shell
    # as layers keep them
    rows = tap_harmonics(window, None, order).round(12)
    num_shells = int(shells.max()) + 1
    terms = terms_of(
        Window(tuple(shells.flatten().tolist()), window, num_shells, (1,) * len(window)), tuple(map(tuple, rows))
    )
    counted = sum(bool(column.any()) for column in rows.T)
    assert terms.signs.tolist() == [(-1.0) ** order] * (counted // 2)
    # all taps, each once, with their factors
    spread = torch.zeros(len(rows), *([9] * 3))
    for (a, b), sign, factors in zip(terms.places, terms.signs, terms.angular):
        spread[(slice(None), *a)] += factors
        spread[(slice(None), *b)] += sign * factors
    assert (spread != 0).sum() == (rows != 0).sum()
    assert torch.allclose(spread.square().sum().double(), torch.as_tensor((rows**2).sum()).double())
    # entries are the factors that are not zero, by shell
    assert len(terms.entries) == (terms.angular != 0).sum()
    by_shell = [terms.shells[term] for term, _ in terms.entries]
    assert by_shell == sorted(by_shell)
    assert [by_shell.index(shell) for shell in range(len(terms.used))] == terms.first[:-1].tolist()


@pytest.mark.parametrize(
    ("image", "scalars", "padding"),
    [
        (torch.zeros(1, 6, 3), torch.zeros(1, 5, 2), [0]),
        (torch.zeros(2, 6, 3), torch.zeros(1, 4, 2), [0]),
        (torch.zeros(1, 6, 3).double(), torch.zeros(1, 4, 2), [0]),
        (torch.zeros(1, 3, 6).transpose(1, 2), torch.zeros(1, 4, 2), [0]),
        (torch.zeros(1, 6, 3), torch.zeros(1, 10, 2), [3]),
    ],
)
def test_memory_that_does_not_fit_is_refused(image, scalars, padding):
    window = Window((1, 0, 1), (3,), 2, (1,))

    def run():
        order = AngularOrder(window, ((-1.0, 0.0, 1.0),), 1, 1, padding)
        order.write_scalars(image, torch.zeros(2, 3, 2), None, scalars, slice(0, 2))

    with pytest.raises(AssertionError, match=r"^(a tensor of shape|an image of shape|padding=\[3\])"):
        run()


@pytest.mark.parametrize(
    ("weight", "linear"),
    [
        (torch.zeros(3, 3, 2), None),
        (torch.zeros(2, 4, 2), None),
        (torch.zeros(2, 2, 3).transpose(1, 2), None),
        (torch.zeros(2, 3, 2), torch.zeros(2, 2).T),
    ],
)
def test_factors_that_do_not_fit_are_refused(weight, linear):
    order = AngularOrder(Window((1, 0, 1), (3,), 2, (1,)), ((-1.0, 0.0, 1.0),), 1, 1, [0])
    with pytest.raises(
        AssertionError, match=r"^(a weight of shape|linear factors or gradients have strides \[\(1, 2\)\])"
    ):
        order.write_scalars(
            torch.zeros(1, 6, 3), weight, None, torch.zeros(1, 4, 2), slice(0, 2), KeptTerms(linear=linear)
        )
