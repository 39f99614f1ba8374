"""Projections recover the weights that made a kernel, and are nearest to other kernels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_gmr.symmetry import centred_window, project_kernel, project_kernel_on_order, project_transposed_kernel
from monai_gmr.symmetry.projection import fitted_window, upsampled_functions

RANDOM = np.random.default_rng(0)


def test_weights_that_made_a_kernel_are_found_again():
    functions, weights = RANDOM.normal(size=(3, 25)), RANDOM.normal(size=(4, 2, 3))
    found, change = project_kernel((weights @ functions).reshape(4, 2, 5, 5), functions)
    assert np.allclose(found, weights)
    assert change < 1e-12


def test_no_other_weights_come_nearer():
    functions, kernel = RANDOM.normal(size=(2, 9)), RANDOM.normal(size=(1, 1, 3, 3))
    found, change = project_kernel(kernel, functions)
    assert change == pytest.approx(np.linalg.norm(kernel.ravel() - found.ravel() @ functions) / np.linalg.norm(kernel))
    for _ in range(20):
        other = found.ravel() + 0.1 * RANDOM.normal(size=2)
        assert np.linalg.norm(kernel.ravel() - other @ functions) >= change * np.linalg.norm(kernel)


def test_an_order_is_seen_in_the_direction_that_explains_most():
    functions = np.linalg.qr(RANDOM.normal(size=(9, 6)))[0].T.reshape(3, 2, 9)
    weights, direction = RANDOM.normal(size=(1, 4, 2)), RANDOM.normal(size=3)
    direction /= np.linalg.norm(direction)
    kernel = np.einsum("oir,m,mrt->oit", weights, direction, functions).reshape(1, 4, 3, 3)
    found, change = project_kernel_on_order(kernel, functions)
    sign = np.sign(found.ravel()[0] / weights.ravel()[0])
    assert np.allclose(sign * found, weights)
    assert change < 1e-12


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("window", [1, 3])
def test_upsampled_functions_are_what_linear_interpolation_makes(factor, window):
    coarse = torch.zeros(1, 1, 9, dtype=torch.float64)
    profile = RANDOM.normal(size=window)
    coarse[0, 0, 4 - window // 2 : 5 + window // 2] = torch.as_tensor(profile)
    fine = F.interpolate(coarse, scale_factor=factor, mode="linear", align_corners=False)[0, 0].numpy()
    # a window of the parity of the factor has its taps where the fine voxels are
    found, first = upsampled_functions(profile[None], (factor,), (factor,))
    assert np.allclose(fine[np.abs(fine) > 0], found[0][np.abs(found[0]) > 0])
    assert found.shape[1] == factor + 2 * first[0]


def test_a_transposed_kernel_keeps_its_mean():
    kernel = RANDOM.normal(size=(3, 2, 3, 3))
    weights, change = project_transposed_kernel(kernel, np.ones((1, 1, 1)), (2, 2))
    assert np.allclose(weights[:, :, 0], kernel.sum((2, 3)) / 4)
    assert 0 < change <= 1.5
    # against the kernel padded to all taps of the functions
    fine, margins = upsampled_functions(np.ones((1, 1, 1)), (3, 3), (2, 2))
    padded = np.pad(kernel, [(0, 0), (0, 0), *((margin, margin) for margin in margins)])
    made = weights[..., None] * fine
    assert change == pytest.approx(np.linalg.norm(made - padded) / np.linalg.norm(kernel))


@pytest.mark.parametrize(("window", "shape"), [((5, 3), (5, 3)), ((1, 3), (1, 3)), ((4, 3), None)])
def test_windows_are_fitted_about_their_middle(window, shape):
    kernel = RANDOM.normal(size=(1, 1, 3, 3))
    found = fitted_window(kernel, window)
    assert (None if found is None else found.shape[2:]) == shape
    if found is not None:
        assert np.array_equal(found[0, 0, window[0] // 2], kernel[0, 0, 1])


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4), st.integers(0, 6), st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=200)
def test_centred_windows_end_where_the_padded_axis_ends(size, kernel_size, stride, padding, dilation):
    length = (size + padding - dilation * (kernel_size - 1) - 1) // stride + 1
    if length < 1:
        with pytest.raises(ValueError, match="does not fit"):
            centred_window(size, kernel_size, stride, padding, dilation)
        return
    window, margin = centred_window(size, kernel_size, stride, padding, dilation)
    assert window in (kernel_size, kernel_size + 1)
    assert (length - 1) * stride + dilation * (window - 1) + 1 == size + 2 * margin


def test_an_even_dilation_has_no_other_parity():
    with pytest.raises(ValueError, match="use an odd dilation"):
        centred_window(8, 3, 2, 4, 2)
