"""Windows cover the axis, overlap as given and are their own mirror image, in the image and in outputs of other resolutions."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_gmr.inferers import symmetric_window_starts, window_placements
from monai_gmr.utils import ConfigurationError


def test_every_axis_of_up_to_70_voxels():
    for size in range(1, 71):
        for window in range(1, size + 1):
            for interval in {1, 2, 3, window // 4, window // 2, 3 * window // 4, window} - {0}:
                if interval > window:
                    continue
                starts = symmetric_window_starts(size, window, interval)
                room = size - window
                assert starts == sorted(set(starts))
                assert starts == [room - start for start in reversed(starts)]
                assert starts[0] == 0
                assert starts[-1] == room
                steps = [b - a for a, b in itertools.pairwise(starts)]
                assert all(step <= interval for step in steps)
                # MONAI's number, and one more only if an odd number cannot be mirrored
                number = math.ceil(room / interval) + 1
                assert len(starts) == number + (number % 2 == 1 and room % 2 == 1)
                assert not steps or max(steps) - min(steps) <= 2


@settings(max_examples=200, deadline=None)
@given(window=st.integers(2, 40), more=st.integers(0, 60), out_window=st.integers(1, 50), interval=st.integers(1, 40))
def test_placements_are_mirrored_and_cover(window, more, out_window, interval):
    size = window + more
    out_size = size * out_window // window
    starts = symmetric_window_starts(size, window, min(interval, window))
    placed = [window_placements(start, size, window, out_size, out_window) for start in starts]
    for place, mirrored in zip(placed, reversed(placed)):
        assert sorted((out_size - out_window - start, weight) for start, weight in mirrored) == sorted(place)
        assert sum(weight for _, weight in place) == 1
        assert all(0 <= start <= out_size - out_window for start, _ in place)
    covered = {voxel for place in placed for start, _ in place for voxel in range(start, start + out_window)}
    assert covered == set(range(out_size))
    if out_window == window:
        assert placed == [[(start, 1.0)] for start in starts]


@pytest.mark.parametrize(("size", "window", "interval"), [(4, 5, 1), (4, 0, 1), (4, 2, 0)])
def test_impossible_windows(size, window, interval):
    with pytest.raises(ConfigurationError, match="use 1"):
        symmetric_window_starts(size, window, interval)
