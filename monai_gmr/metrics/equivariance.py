"""Equivariance error of any network: its output for a transformed image compared with its transformed output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import voxel_spacing
from monai_gmr.symmetry import (
    PointGroup,
    View,
    inscribed_ball,
    is_grid_symmetry,
    point_group,
    transform_fields,
    transform_grid,
    transform_image,
)
from monai_gmr.symmetry.group_structure import GroupOrElements, group_elements
from monai_gmr.symmetry.views import angle_view, shift_views, view_name
from monai_gmr.utils import ConfigurationError, kept_buffers, map_tensors, progress_bar, tensors_in


class ViewError(NamedTuple):
    """The relative L2 error of one view."""

    name: str  # that of the rotation report
    family: str  # "group", "angles" or "shifts"
    angle: float | None  # in degrees, None for group elements and shifts
    error: float


@dataclass(frozen=True)
class EquivarianceErrors:
    """Errors of a network over views, returned by :func:`equivariance_error`; ``str`` gives a table.

    Example:
        >>> errors = EquivarianceErrors((ViewError("m [10]", "group", None, 0.5), ViewError("30", "angles", 30.0, 0.1)))
        >>> errors.worst, errors.mean, errors.angles.worst
        (0.5, 0.3, 0.1)
    """

    views: tuple[ViewError, ...]

    @property
    def errors(self) -> tuple[float, ...]:
        """Relative L2 error of each view."""
        return tuple(view.error for view in self.views)

    @property
    def mean(self) -> float:
        """Mean over the views."""
        return float(np.mean(self.errors)) if self.views else 0.0

    @property
    def worst(self) -> float:
        """Largest error of the views; NaN if any error is NaN."""
        return float(np.max(self.errors)) if self.views else 0.0

    @property
    def group(self) -> EquivarianceErrors:
        """Errors of only the elements of the grid's point group."""
        return EquivarianceErrors(tuple(view for view in self.views if view.family == "group"))

    @property
    def angles(self) -> EquivarianceErrors:
        """Errors of only the other angles."""
        return EquivarianceErrors(tuple(view for view in self.views if view.family == "angles"))

    @property
    def shifts(self) -> EquivarianceErrors:
        """Errors of only the shifts."""
        return EquivarianceErrors(tuple(view for view in self.views if view.family == "shifts"))

    def __str__(self) -> str:
        lines = [(view.name, view.error) for view in self.views] + [("mean", self.mean), ("worst", self.worst)]
        width = max(10, *(len(name) for name, _ in lines))
        return "\n".join([f"{'view':<{width}}  {'error':>9}"] + [f"{n:<{width}}  {e:>9.2e}" for n, e in lines])


@checked_arguments
def equivariance_error(
    net: Callable[[torch.Tensor], Any],
    x: torch.Tensor,
    group: GroupOrElements | None = None,
    angles: Sequence[float] = (),
    spacing: Sequence[float] | None = None,
    order: int = 5,
    shifts: Sequence[float] = (),
    progress: bool = False,
) -> EquivarianceErrors:
    """Measures the relative error ``||net(g x) - g net(x)|| / ||net(x)||`` of every view ``g``.

    ``g`` transforms outputs with spatial axes and leaves outputs of shape ``(B, N)``, such as logits, unchanged; for layers on fields of a
    group, and a ``torch.nn.Sequential`` of them, it also permutes the channels. Of several (nested) outputs, the worst one counts. Elements
    of the point group are compared voxel by voxel; other angles and shifts are interpolated by splines and compared inside the inscribed
    disc or ball of the output, so the image should be smooth. The network runs in its current mode; its buffers and torch's random state
    are restored afterwards.

    Args:
        net: a module, or any callable that takes ``x``.
        x: input of shape ``(B, C, *spatial)``.
        group: a group as in layers (``"4mm"``, ``("m", "x")``, a :class:`~monai_gmr.symmetry.PointGroup`), or a list of elements
            (:func:`~monai_gmr.symmetry.grid_element`), such as matrices of shape ``(d, d)``. Default: the elements shared by all layers
            of the network (group convolutions, and harmonic layers with ``keeps``), or the whole point group; only elements that keep
            ``spacing``.
        angles: further rotations in degrees, in 3D about each of the three axes. Multiples of 90 belong to the group and are left out.
        spacing: voxel size of ``x`` in millimetres, one per axis; default 1.
        order: order of the spline that rotates and shifts images, 0 to 5.
        shifts: distances in voxels of ``x``, along each axis. If the nonlinearities of a network create frequencies that its grid cannot
            represent, it has an error under shifts by fractions of a voxel, and the same error under ``angles``.
        progress: show a bar over the elements of the group, if tqdm is installed.

    Raises:
        ConfigurationError: if ``x`` is not ``(B, C, *spatial)`` with 1 to 3 spatial axes, or an element of the group
            is not a matrix of the grid.

    Example:
        >>> import torch
        >>> blur, shift = torch.nn.AvgPool2d(3, 1, 1), torch.nn.ZeroPad2d((1, 0, 0, 0))
        >>> x = torch.randn(1, 2, 9, 8, generator=torch.Generator().manual_seed(0))
        >>> equivariance_error(blur, x).worst < 1e-6, equivariance_error(shift, x).worst > 0.1
        (True, True)
        >>> len(equivariance_error(blur, x, angles=(15, 30)).angles.views)
        2
    """
    dims = x.ndim - 2
    if dims not in (1, 2, 3):
        raise ConfigurationError(f"x of shape {tuple(x.shape)} is not an image: give (B, C, *spatial), 1 to 3 axes.")
    if spacing is not None and len(spacing) != dims:
        raise ConfigurationError(f"spacing has {len(spacing)} entries: give one for each of the {dims} axes.")
    x = x.detach().as_subclass(torch.Tensor)
    elements = checked_group(net, group, dims, spacing)
    taken, returned = field_ends(net)
    views = []
    with preserved_state(net, x) as run:
        upright = run(x)
        size = "x".join(map(str, x.shape[2:]))
        for element in progress_bar(elements, f"views of size {size}", progress):
            actual = run(transform_tensors(x, element, dims, taken))
            error = nested_error(actual, transform_tensors(upright, element, dims, returned))
            views.append(ViewError(view_name(element), "group", None, error))
        for view in moved_views(dims, angles, shifts):
            output = run(transform_image(x, view.matrix, order, spacing, view.shift))
            error = moved_error(output, upright, view, order=order, input_size=x.shape[2:], spacing=spacing)
            views.append(ViewError(view.name, view.family, view.angle, error))
    return EquivarianceErrors(tuple(views))


def moved_views(dims: int, angles: Sequence[float], shifts: Sequence[float]) -> list[View]:
    """Makes views: rotations that the grid does not have, about each axis, and shifts in voxels, along each axis."""
    rotated = [angle_view(dims, angle, axis) for angle in angles for axis in range(3 if dims == 3 else 1)]
    return [*(view for view in rotated if not is_grid_symmetry(view.matrix)), *shift_views(dims, shifts)]


def symmetries_of(net: nn.Module) -> PointGroup | None:
    """Returns the elements shared by all layers of a network; ``None`` if no layer is on fields or keeps only a subgroup.

    Example:
        >>> from monai_gmr.networks.layers import PointGroupConv2d, PointGroupPool
        >>> lift = PointGroupConv2d(1, 8, 3, group="4mm", in_group="1")
        >>> symmetries_of(nn.Sequential(lift, PointGroupConv2d(8, 8, 3, group="4mm", out_group="4"), PointGroupPool(2, "4")))
        PointGroup('4')
    """
    found: PointGroup | None = None
    for module in net.modules():
        own = [getattr(module, name, None) for name in ("symmetry_group", "rows_group")]
        for group in (*own, *(getattr(module, "field_groups", None) or ())):
            if isinstance(group, PointGroup):
                found = group if found is None else found.common(group)
    return found


def checked_group(
    net: Any,
    group: GroupOrElements | None,
    spatial_dims: int,
    spacing: Sequence[float] | None,
) -> list[np.ndarray]:
    """Returns the elements to test; by default the net's symmetries, or the point group, restricted to elements that keep the spacing."""
    if spacing is not None:
        spacing = voxel_spacing(spacing, spatial_dims)
    own = symmetries_of(net) if group is None and isinstance(net, nn.Module) else None
    if group is None and own is not None:
        group = own if spacing is None else own.keeping(spacing)
    return list(point_group(spatial_dims, spacing) if group is None else group_elements(group, spatial_dims))


def transform_tensors(value: Any, element: np.ndarray, spatial_dims: int, group: PointGroup | None = None) -> Any:
    """Copies all tensors and transforms those with batch, channel and spatial axes by a group element, as fields if a group is given; a
    list of one integer per axis is a size and is permuted with the axes."""

    def transform(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim >= spatial_dims + 2 and group is not None:
            tensor = transform_fields(tensor, element, group)
        elif tensor.ndim >= spatial_dims + 2:
            tensor = transform_grid(tensor, element)
        return tensor.clone(memory_format=torch.contiguous_format)

    if isinstance(value, Mapping):
        return {key: transform_tensors(item, element, spatial_dims, group) for key, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        if len(value) == spatial_dims and all(type(item) is int for item in value):
            return type(value)(value[np.abs(row).argmax()] for row in element)
        return type(value)(transform_tensors(item, element, spatial_dims, group) for item in value)
    return map_tensors(value, transform)


def _joins_channels(module: nn.Module) -> bool:
    return hasattr(module, "field_groups") or hasattr(module, "in_channels")


def field_ends(net: Any) -> tuple[PointGroup | None, PointGroup | None]:
    """Returns the groups of the input and output fields of a layer, or a sequence of layers; ``None`` for scalars."""
    if hasattr(net, "field_groups") or not isinstance(net, nn.Sequential):
        return getattr(net, "field_groups", (None, None))
    # a convolution that is not on fields takes or returns scalars
    ends = [field_ends(each) for each in net if any(map(_joins_channels, each.modules()))]
    return (ends[0][0], ends[-1][1]) if ends else (None, None)


def nested_error(actual: Any, expected: Any) -> float:
    """Computes the worst relative L2 error of equally nested tensors; infinite if their number or shapes differ."""
    pairs = list(zip(tensors_in(actual), tensors_in(expected)))
    if len(tensors_in(actual)) != len(tensors_in(expected)):
        return math.inf
    return float(np.max([_relative_error(a, e, e) for a, e in pairs])) if pairs else 0.0


def _relative_error(actual: torch.Tensor, expected: torch.Tensor, reference: torch.Tensor) -> float:
    if actual.shape != expected.shape:
        return math.inf
    wide = torch.complex128 if actual.is_complex() or expected.is_complex() else torch.float64
    difference = float(torch.linalg.vector_norm(actual.to(wide) - expected.to(wide)))
    norm = float(torch.linalg.vector_norm(reference.to(wide)))
    if difference == 0.0:
        return 0.0
    return difference / norm if norm != 0.0 else math.inf


def move_image(
    x: torch.Tensor, view: View, *, order: int, input_size: Sequence[int], spacing: Sequence[float] | None
) -> torch.Tensor:
    """Copies and moves a network's input, output or feature map like its input of ``input_size``; no change without spatial axes."""
    if x.ndim < len(input_size) + 2:
        return x.clone()
    zoom, step = _voxels(x, input_size, spacing)
    shift = None if view.shift is None else view.shift / zoom
    return transform_image(x, view.matrix, order if x.is_floating_point() else 0, step.tolist(), shift)


def _voxels(
    x: torch.Tensor, input_size: Sequence[int], spacing: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the size of a feature map's voxels per axis, in voxels of the input and in millimetres."""
    pairs = zip(input_size, x.shape[-len(input_size) :])
    zoom = np.array([round(n / m) if n >= m else 1 / round(m / n) for n, m in pairs])
    return zoom, zoom * (1.0 if spacing is None else np.asarray(spacing, float))


def moved_error(
    actual: Any,
    upright: Any,
    view: View,
    *,
    order: int,
    input_size: Sequence[int],
    spacing: Sequence[float] | None,
) -> float:
    """Computes the worst error of (nested) outputs for a rotated or shifted input, each inside its inscribed disc or ball."""
    dims, errors = len(input_size), [0.0]
    for moved, still in zip(tensors_in(actual), tensors_in(upright)):
        if still.ndim < dims + 2 or moved.shape != still.shape:
            errors.append(_relative_error(moved, still, still))
            continue
        ball = inscribed_ball(still.shape[-dims:], _voxels(still, input_size, spacing)[1].tolist())
        # A grid of two voxels per side has none in its disc.
        inside = torch.as_tensor(ball if ball.any() else ~ball, device=still.device)
        expected = move_image(still, view, order=order, input_size=input_size, spacing=spacing)
        errors.append(_relative_error(moved[..., inside], expected[..., inside], still[..., inside]))
    return float(np.max(errors))


@contextmanager
def preserved_state(net: Any, x: torch.Tensor) -> Iterator[Callable[[torch.Tensor], Any]]:
    """Yields a function that runs the network without gradients and always from the same random state; restores
    its modes, its buffers and the random state at the end."""
    modules = list(net.modules()) if isinstance(net, nn.Module) else []
    modes = [(module, module.training) for module in modules]
    tensors = [x] + [tensor for module in modules for tensor in module.parameters(recurse=False)]
    devices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"})

    def run(value: torch.Tensor) -> Any:
        with torch.random.fork_rng(devices):
            return net(value.clone())

    kept = kept_buffers(net) if modules else nullcontext()
    with torch.random.fork_rng(devices), torch.no_grad(), kept:
        try:
            yield run
        finally:
            for module, mode in modes:
                module.training = mode
