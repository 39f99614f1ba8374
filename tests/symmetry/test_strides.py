"""The rule of exact strides, compared with actual convolutions."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_gmr.symmetry import stride_is_exact, symmetric_padding, transposed_padding
from monai_gmr.utils import ConfigurationError


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 4), st.integers(0, 4), st.integers(1, 3))
def test_rule_tells_whether_mirroring_commutes(size, kernel_size, stride, padding, dilation):
    if size + 2 * padding < dilation * (kernel_size - 1) + 1:
        return
    half = torch.rand(1, 1, (kernel_size + 1) // 2, dtype=torch.float64)
    kernel = torch.cat([half, half[..., : kernel_size // 2].flip(-1)], -1)
    x = torch.rand(1, 1, size, dtype=torch.float64) + 1
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    commutes = torch.allclose(F.conv1d(x, kernel, **options).flip(-1), F.conv1d(x.flip(-1), kernel, **options))
    exact = stride_is_exact(size, kernel_size, stride, padding, dilation)
    assert commutes or not exact
    if size > 2 * stride and kernel_size <= size:
        assert exact or not commutes


@settings(max_examples=100, deadline=None)
@given(st.integers(8, 40), st.integers(1, 7), st.integers(1, 4), st.integers(1, 2))
def test_symmetric_padding_is_exact_or_says_that_nothing_is(size, kernel_size, stride, dilation):
    every = [p for p in range(40) if stride_is_exact(size, kernel_size, stride, p, dilation)]
    if not every:
        with pytest.raises(ConfigurationError, match="no padding makes"):
            symmetric_padding(size, kernel_size, stride, dilation)
        return
    found = symmetric_padding(size, kernel_size, stride, dilation)
    reach = dilation * (kernel_size - 1)
    assert found in every
    assert abs(2 * found - reach) == min(abs(2 * p - reach) for p in every)


@pytest.mark.parametrize(("kernel_size", "stride"), [(2, 2), (4, 2), (3, 3), (5, 3), (1, 1), (3, 1)])
def test_transposed_padding_multiplies_the_size(kernel_size, stride):
    padding = transposed_padding(kernel_size, stride)
    out = F.conv_transpose1d(torch.ones(1, 1, 7), torch.ones(1, 1, kernel_size), stride=stride, padding=padding)
    assert out.shape[-1] == 7 * stride


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 2), (1, 2), (2, 3)])
def test_impossible_transposed_padding_says_what_is_possible(kernel_size, stride):
    with pytest.raises(ConfigurationError, match="at least the stride and of its parity"):
        transposed_padding(kernel_size, stride)
