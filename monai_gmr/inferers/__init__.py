"""Inference that keeps the symmetry: averages over views, and sliding windows placed about the centre."""

from monai_gmr.inferers.rotate import rotate_image
from monai_gmr.inferers.sliding_window import GMRSlidingWindowInferer
from monai_gmr.inferers.symmetry import SymmetryInferer
from monai_gmr.inferers.windows import symmetric_window_starts, window_placements

__all__ = [
    "GMRSlidingWindowInferer",
    "SymmetryInferer",
    "rotate_image",
    "symmetric_window_starts",
    "window_placements",
]
