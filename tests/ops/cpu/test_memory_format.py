"""Conversion of memory formats in a kernel equals torch's copies, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_gmr.ops.cpu.memory_format import image_like, voxel_rows
from monai_gmr.ops.memory_format import has_channels_last, make_channels_last

pytestmark = pytest.mark.usefixtures("processor")


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 140),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
)
def test_both_directions(batch, channels, sizes):
    x = torch.randn(batch, channels, *sizes)
    rows = voxel_rows(x)
    assert rows.is_contiguous()
    assert torch.equal(rows, x.movedim(1, -1))
    image = image_like(rows, x)
    assert image.is_contiguous()
    assert torch.equal(image, x)


@pytest.mark.parametrize("sizes", [(4, 5), (3, 4, 5)])
def test_channels_last_are_not_copied(sizes):
    x = make_channels_last(torch.randn(2, 6, *sizes))
    rows = voxel_rows(x)
    assert rows.data_ptr() == x.data_ptr()
    image = image_like(rows, x)
    assert has_channels_last(image)
    assert image.data_ptr() == x.data_ptr()


def test_neither_format():
    x = torch.randn(2, 3, 4, 10)[..., ::2]
    assert torch.equal(voxel_rows(x), x.movedim(1, -1))
