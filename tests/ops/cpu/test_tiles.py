"""Tiles cover an image, each row once, and have the same input as a padded whole image."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from monai_gmr.ops.cpu import tiles
from monai_gmr.ops.cpu.tiles import slices_of, tile_of


@pytest.mark.parametrize("batch", [1, 5, 8])
@pytest.mark.parametrize("sizes", [(47,), (47, 13), (5, 6, 7)])
@pytest.mark.parametrize("floats", [1, 2**14, 2**22])
def test_tiles_cover_every_row_once(batch, sizes, floats):
    samples, rows = tile_of(batch, sizes, floats)
    counts = torch.zeros(batch, sizes[0])
    for b, new_b in slices_of(batch, samples):
        for r, new_r in slices_of(sizes[0], rows):
            counts[b, r][new_b, new_r] += 1
    assert (counts == 1).all()


@pytest.mark.parametrize("floats", [1, 2**16, 2**21])
@pytest.mark.parametrize("margins", [[0, 0], [1, 2], [-1, 3], [5, 0], [4, -2]])
def test_tiles_see_the_padded_image(floats, margins):
    x, window = torch.randn(3, 7, 9, 2), tiles.Window((0,) * 9, (3, 3), 1, (1, 1))
    found = tiles.Tiles(x, margins, window, floats)
    padded = F.pad(x, [0, 0, margins[1], margins[1], margins[0], margins[0]])
    for tile in found:
        expected = padded[tile.samples, tile.rows.start : tile.rows.stop + 2]
        assert torch.equal(found.input_of(tile), expected)


@pytest.mark.parametrize("floats", [1, 2**21])
def test_what_a_tile_sees_is_contiguous_whatever_the_stride_of_an_axis_of_one_voxel(floats):
    x = torch.randn(3, 8, 1, 2)
    x = x.as_strided(x.shape, (16, 2, 1, 1))
    window = tiles.Window((0,) * 9, (3, 3), 1, (1, 1))
    found = tiles.Tiles(x, [1, 1], window, floats)
    assert x.is_contiguous()
    assert all(found.input_of(tile).is_contiguous() for tile in found)


@settings(deadline=None)
@given(
    batch=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    margin=st.integers(-1, 3),
    taps=st.sampled_from([1, 3, 5]),
    capacity=st.integers(1, 4000),
)
def test_tiles_see_what_padding_at_once_gives(batch, sizes, margin, taps, capacity):
    dims = len(sizes)
    assume(all(n + 2 * margin >= taps for n in sizes))
    window = tiles.Window((0,) * taps**dims, (taps,) * dims, 1, (1,) * dims)
    x = torch.arange(1.0, 2 * batch * math.prod(sizes) + 1).reshape(batch, *sizes, 2)
    padded = F.pad(x, [0, 0, *([margin] * 2 * dims)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "BYTES_OF_A_TILE", capacity)
        found = tiles.Tiles(x, [margin] * dims, window, floats=3)
        covered = torch.zeros(batch, found.sizes[0])
        for tile in found:
            seen = found.input_of(tile)
            rows = slice(tile.rows.start, tile.rows.stop + taps - 1)
            assert torch.equal(seen, padded[tile.samples, rows])
            assert seen.is_contiguous()
            covered[tile.samples, tile.rows][tile.new] += 1
    assert (covered == 1).all()
