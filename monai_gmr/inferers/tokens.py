"""Finds outputs that are maps with flattened spatial axes, such as the tokens of a transformer, by their changes with views."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from monai_gmr.symmetry import transform_grid

# fewer voxels along an axis are not evidence, because features of a small group have as many orientations
SHORTEST_AXIS = 4
# share of the squared differences between views that remains after transforming the output back as a map: about 1 or more for features,
# less by chance if few entries change; number of standard deviations beyond chance
REMAINING, DEVIATIONS = 0.5, 4.0
# if fewer entries change, as for a class that is certain, there is no evidence
LEAST_CHANGED = 12
# share of the squared output below which differences are rounding
ROUNDING = 1e-6


class TokenCheck:
    """Compares the outputs for several views, as they are and transformed back as if one of their axes were the voxels of a map.

    The axis must be as long as the number of voxels, or of square or cubic patches of voxels, of the image. Lengths are not enough: a
    feature vector may have the same length by chance, but its entries do not move with the voxels.

    Args:
        shape: shape of the output for one view.
        size: size of the upright image, without batch and channels.

    Example:
        >>> x, turn = torch.rand(1, 2, 8, 8), np.array([[0, -1], [1, 0]])
        >>> check = TokenCheck((1, 2, 64), (8, 8))
        >>> check.add(x.flatten(2), np.eye(2)); check.add(transform_grid(x, turn).flatten(2), turn)
        >>> check.found()
        (8, 8)
    """

    def __init__(self, shape: Sequence[int], size: Sequence[int]) -> None:
        steps = [
            step for step in range(1, min(size) // SHORTEST_AXIS + 1) if all(length % step == 0 for length in size)
        ]
        # axis of the output and patch size
        self.candidates = [
            (axis, step)
            for axis in range(1, len(shape))
            for step in steps
            if shape[axis] == math.prod(length // step for length in size)
        ]
        self.size = tuple(size)
        self._first: torch.Tensor | None = None
        self._first_maps: list[torch.Tensor] = []
        self._scale = self._changed = 0.0
        # per candidate: remaining squared differences, and the sum of the squares of the change of each entry of its axis
        self._remaining, self._squares = ([0.0] * len(self.candidates) for _ in range(2))

    def add(self, output: torch.Tensor, matrix: np.ndarray) -> None:
        """Adds the output for one view, a symmetry of the grid."""
        if self._first is not None and output.shape != self._first.shape:
            # tensors of different shapes raise in the reduction
            self.candidates = []
        if not self.candidates:
            return
        with torch.no_grad():
            output = output.detach().as_subclass(torch.Tensor)
            maps = [self._as_map(output, matrix, *each) for each in self.candidates]
            if self._first is None:
                # copies: the network may return a buffer and write to it again
                self._first, self._first_maps = output.clone(), [each.clone() for each in maps]
                return
            self._scale += float(self._first.double().square().sum())
            change = (output.double() - self._first.double()).square()
            self._changed += float(change.sum())
            for place, ((axis, _), *pair) in enumerate(zip(self.candidates, maps, self._first_maps)):
                self._remaining[place] += float((pair[0].double() - pair[1].double()).square().sum())
                others = [other for other in range(1, change.ndim) if other != axis]
                entries = change.sum(others) if others else change
                self._squares[place] += float(entries.square().sum())

    def found(self) -> tuple[int, ...] | None:
        """Size of the map that the output is, or ``None`` if it changes like features."""
        if not self.candidates or not self._changed > ROUNDING * self._scale:
            return None
        place = int(np.argmin(self._remaining))
        # effective number of changing entries of the axis, over images and views
        count = self._changed**2 / self._squares[place]
        # the logarithm of a ratio of two sums of ``count`` squares has a variance of about 4 / count
        share = min(REMAINING, math.exp(-DEVIATIONS * math.sqrt(4 / count)))
        if count < LEAST_CHANGED or not self._remaining[place] < share * self._changed:
            return None
        return tuple(length // self.candidates[place][1] for length in self.size)

    def _as_map(self, output: torch.Tensor, matrix: np.ndarray, axis: int, step: int) -> torch.Tensor:
        """The output as a map, ``(..., *spatial)``, transformed back."""
        # sizes of the view, whose axes are those of the image in another order
        size = [self.size[source] // step for source in np.abs(matrix).argmax(1)]
        return transform_grid(output.movedim(axis, -1).unflatten(-1, size), matrix.T)
