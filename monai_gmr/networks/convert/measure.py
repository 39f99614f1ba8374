"""Measures whether the output of a converted network rotates with its image, if no rule says whether it is exact."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import isnan, prod
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_gmr.metrics.equivariance import nested_error, transform_tensors
from monai_gmr.networks.convert.trace import REARRANGING, Pass, Sizes, Trace, first_line, make_inputs
from monai_gmr.ops import set_backend
from monai_gmr.symmetry import PointGroup
from monai_gmr.utils import map_tensors

# largest image, and sizes to try: attention between all voxels takes the square of their number
MOST_VOXELS, SIZES = 64**3, (16, 32, 48, 64)
# errors of exact networks, in double precision, and in their own if they only compute in it
TOLERANCES = {torch.float64: 1e-6, None: 1e-3}


def inexact_sentence(
    net: nn.Module,
    trace: Trace,
    group: PointGroup,
    in_channels: int,
    example_inputs: Any,
    operations: Sequence[tuple[str, str]],
) -> str | None:
    """A sentence about a network whose output does not rotate with an image, or cannot be measured; ``None`` if it does rotate.

    Args:
        net: the network; it stays unchanged.
        trace: trace of the network.
        group: elements to test.
        in_channels: channels of the image.
        example_inputs: arguments of ``forward``, or ``None`` for only the image.
        operations: possible causes for the sentence: modules and the operations that they call.

    Example:
        >>> from monai_gmr.networks.convert.trace import trace_sizes
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(16, 16))
        >>> group = PointGroup.from_name("all", 2)
        >>> inexact_sentence(net, trace_sizes(net, 2, 1), group, 1, None, [("1", "addmm")])[:60]
        'its answer does not rotate with an image of 16x16: the error'
    """
    # operations that only rearrange numbers are seldom the cause
    listed = [": ".join(each) for each in sorted(operations, key=lambda each: bool(REARRANGING.fullmatch(each[1])))]
    named = "; ".join(listed[:3]) + (f"; {len(listed) - 3} more" if len(listed) > 3 else "")
    unknown = f"its exactness is unknown, because it calls operations without a rule ({named})"
    sizes = _sizes(net, trace, in_channels, example_inputs)
    if not sizes:
        return f"{unknown}, and no small image could be sent through it: ask monai_gmr.metrics.check_equivariance"
    reason = ""
    for dtype, tolerance in TOLERANCES.items():
        try:
            own = copy.deepcopy(net).eval().to(dtype)
            errors = [(_error(own, size, group, in_channels, example_inputs), size) for size in sizes]
        except Exception as failure:  # some networks only compute in their own precision, or cannot be copied
            reason = first_line(failure)
            continue
        # NaN is the worst
        error, worst = max(errors, key=lambda each: (isnan(each[0]), each[0]))
        if error <= tolerance:
            return None
        text = "x".join(map(str, worst))
        return f"its answer does not rotate with an image of {text}: the error is {error:.1e}; possible causes: {named}"
    return f"{unknown}, and its error could not be measured ({reason})"


def _sizes(net: nn.Module, trace: Trace, in_channels: int, example_inputs: Any) -> list[Sizes]:
    """A small size, and one that is a voxel longer if the network takes it; the reference size if it takes no other."""
    axes, small = len(trace.size), [trace.size] if prod(trace.size) <= MOST_VOXELS else []
    if example_inputs is not None:
        return small

    def fits(size: Sizes) -> bool:
        try:
            Pass(net).run(lambda: make_inputs(net, size, in_channels), trace.sizes_only)
        except Exception:  # not every network takes any size
            return False
        return True

    n = next((n for n in SIZES if fits((n,) * axes)), None)
    return small if n is None else [each for each in ((n,) * axes, (n + 1,) * axes) if each[0] == n or fits(each)]


def _error(net: nn.Module, size: Sizes, group: PointGroup, in_channels: int, example_inputs: Any) -> float:
    """The worst error under generators of a group."""
    dims, generator = len(size), torch.Generator().manual_seed(0)

    def varied(value: torch.Tensor) -> torch.Tensor:
        """Noise in place of a constant image."""
        if value.dim() < dims + 2 or not value.is_floating_point() or value.min() != value.max():
            return value
        return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)

    def answer(arguments: tuple[tuple, dict]) -> Any:
        # the same random numbers each time
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(0)
            return net(*arguments[0], **arguments[1])

    given = map_tensors(make_inputs(net, size, in_channels, example_inputs), varied)
    with set_backend("dense"):
        upright = answer(map_tensors(given, torch.clone))
        errors = [
            nested_error(answer(transform_tensors(given, element, dims)), transform_tensors(upright, element, dims))
            for element in group.generators()
        ]
    return float(np.max([0.0, *errors]))
