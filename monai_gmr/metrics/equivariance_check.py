"""Search for the modules of a network that break its symmetry, at several input sizes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from monai_gmr.annotations import Device, Seed, checked_arguments
from monai_gmr.arguments import check_count, is_whole
from monai_gmr.metrics.equivariance import (
    EquivarianceErrors,
    ViewError,
    checked_group,
    equivariance_error,
    field_ends,
    move_image,
    moved_error,
    moved_views,
    nested_error,
    preserved_state,
    transform_tensors,
)
from monai_gmr.metrics.equivariance_report import EquivarianceReport, ModuleCheck, SizeCheck, size_text
from monai_gmr.metrics.explain import explain_module
from monai_gmr.symmetry import PointGroup, View
from monai_gmr.symmetry.group_structure import GroupOrElements
from monai_gmr.utils import ConfigurationError, map_tensors, tensors_in, windowed_layers

# order of the splines that rotate and shift
ORDER = 5


@checked_arguments
def check_equivariance(
    net: Annotated[nn.Module, "a torch.nn.Module, or measure it by monai_gmr.metrics.equivariance_error"],
    spatial_size: int | Sequence[int | Sequence[int]],
    in_channels: int | None = None,
    spatial_dims: int | None = None,
    *,
    group: GroupOrElements | None = None,
    angles: Sequence[float] = (),
    shifts: Sequence[float] = (),
    tolerance: float = 1e-5,
    per_module: bool = True,
    moves_per_module: bool = False,
    seed: Seed = 0,
    device: Device | None = None,
    spacing: Sequence[float] | None = None,
    batch_size: int = 2,
    progress: bool = False,
) -> EquivarianceReport:
    """Measures the equivariance error of a network at several sizes and names the modules that break it.

    The input is noise of unit variance, smoothed for ``angles`` and ``shifts``. Every module with an input ``(B, C, *spatial)`` is checked
    separately, with its input inside the network; the report names the deepest broken ones. The network runs in its current mode (batch
    normalisation in train mode is exact, dropout is not); its buffers and torch's random state are restored afterwards.

    Args:
        net: the network.
        spatial_size: size in voxels. An int is a square or cube, a sequence of ints is one size with an entry per axis (or one
            entry for all), a sequence of sequences holds several sizes: ``[(96,), (97,), (64, 65, 70)]``.
        in_channels, spatial_dims: of the input. Default: those of the first convolution, else the number of entries of a size.
        group, spacing: see :func:`~monai_gmr.metrics.equivariance_error`.
        angles: further rotations in degrees, measured but not judged.
        shifts: distances in voxels along each axis, measured but not judged.
        tolerance: largest relative L2 error that counts as exact.
        per_module: find the modules that break equivariance.
        moves_per_module: also measure every module under ``angles`` and ``shifts``, with its input for the smoothed image. All modules get
            the same shift: half a voxel of the image is an eighth of a voxel on a grid that is four times as coarse. This interpolates
            every feature map, which takes minutes in 3D.
        seed, batch_size: of the input.
        device: where to run. Default: the device of the network.
        progress: show a bar over the views of each size, if tqdm is installed.

    Returns:
        a report with ``ok``, ``worst``, ``broken``, ``rows`` and a table as ``str``. It has one sentence for a size that the network
        cannot take.

    Raises:
        ConfigurationError: if a size does not fit ``spatial_dims``, or ``in_channels`` is not given and there is no
            convolution.

    Example:
        >>> net = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(2))
        >>> report = check_equivariance(net, 17, in_channels=1, spatial_dims=2)
        >>> [(module.path, module.class_name) for module in report.broken]
        [('1', 'MaxPool2d')]
    """
    # Hooks do not run inside torch.compile's wrapper, which has no public access to the module inside.
    net = getattr(net, "_orig_mod", net)
    if in_channels is not None:
        check_count("in_channels", in_channels)
    in_channels, dims = _input_format(net, spatial_size, in_channels, spatial_dims)
    sizes = _sizes(spatial_size, dims)
    elements = checked_group(net, group, dims, spacing)
    check_count("batch_size", batch_size)
    if not tolerance > 0:
        raise ConfigurationError(f"tolerance={tolerance} is impossible: give a relative error above 0.")
    if not (len(elements) or len(angles) or len(shifts)):
        raise ConfigurationError("no elements, no angles and no shifts: nothing is compared, give one of each or more.")
    tensors = [tensor for tensor in [*net.parameters(), *net.buffers()] if tensor.is_floating_point()]
    home, dtype = (tensors[0].device, tensors[0].dtype) if tensors else (torch.device("cpu"), torch.float32)
    device = home if device is None else torch.device(device)
    net.to(device)
    checks = []
    try:
        for size in sizes:
            noise = torch.randn((batch_size, in_channels, *size), generator=torch.Generator().manual_seed(int(seed)))
            check = _check_size(net, noise.to(device, dtype), elements, tolerance, per_module, progress)
            if (len(angles) or len(shifts)) and not check.failure:
                smooth = ndimage.gaussian_filter(noise.numpy(), (0, 0, *(1.2,) * dims), mode="wrap")
                x = torch.as_tensor(smooth / smooth.std()).to(device, dtype)
                moved = equivariance_error(net, x, [], angles, spacing, order=ORDER, shifts=shifts)
                modules = check.modules
                if moves_per_module and modules:
                    probe = _MoveProbe(net, x, moved_views(dims, angles, shifts), spacing)
                    modules = probe.add_moves(modules, moved)
                check = SizeCheck(size, EquivarianceErrors(check.errors.views + moved.views), modules)
            checks.append(check)
    finally:
        net.to(home)
    rests = sum(bool(getattr(module, "holds_rest", False)) for module in net.modules())
    return EquivarianceReport(type(net).__name__, tolerance, tuple(checks), rests)


def _input_format(
    net: nn.Module, spatial_size: Any, in_channels: int | None, spatial_dims: int | None
) -> tuple[int, int]:
    for module in windowed_layers(net):
        kernel, channels = module.kernel_size, getattr(module, "in_channels", None)
        if isinstance(kernel, tuple) and isinstance(channels, int):
            in_channels = channels if in_channels is None else in_channels
            spatial_dims = len(kernel) if spatial_dims is None else spatial_dims
            break
    if spatial_dims is None and isinstance(spatial_size, Sequence):
        nested = [size for size in spatial_size if isinstance(size, Sequence)]
        entries = max(len(size) for size in nested or [spatial_size])
        spatial_dims = entries if entries > 1 else None
    if in_channels is None or spatial_dims is None:
        raise ConfigurationError(f"{type(net).__name__} has no convolution: give in_channels and spatial_dims.")
    return in_channels, spatial_dims


def _sizes(spatial_size: Any, dims: int) -> list[tuple[int, ...]]:
    """Returns the input sizes, one entry per axis."""
    several = not is_whole(spatial_size) and not all(map(is_whole, spatial_size))
    sizes = []
    for size in spatial_size if several else [spatial_size]:
        entries = (size,) if is_whole(size) else tuple(size)
        entries = entries * dims if len(entries) == 1 else entries
        if len(entries) != dims or not all(is_whole(n) and n > 0 for n in entries):
            raise ConfigurationError(
                f"spatial_size holds {size!r}: give one positive number for all axes or {dims} numbers, one per axis; "
                "several sizes are a sequence of sequences."
            )
        sizes.append(tuple(int(n) for n in entries))
    return sizes


def _check_size(
    net: nn.Module,
    x: torch.Tensor,
    elements: list[np.ndarray],
    tolerance: float,
    per_module: bool,
    progress: bool,
) -> SizeCheck:
    size, dims = tuple(x.shape[2:]), x.ndim - 2
    probe = _ModuleProbe(net, dims, _sensitive_elements(elements) if per_module else [], tolerance)
    given = x
    try:
        with preserved_state(net, x) as run:
            with probe.attached():
                run(x)
            taken, _ = field_ends(net)
            transformed = (transform_tensors(x, element, dims, taken) for element in elements)
            given = next((each for each in transformed if each.shape != x.shape), x)
            if given is not x:
                run(given)
        errors = equivariance_error(net, x, elements, progress=progress)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        rotated = "" if given is x else f" rotated to {size_text(given.shape[2:])}"
        where = f" in {probe.failed_in}" if probe.failed_in else ""
        sentence = f"Size {size_text(size)}: {type(net).__name__} cannot take it{rotated}{where}: {reason[:200]}."
        return SizeCheck(size, failure=sentence)
    return SizeCheck(size, errors, tuple(probe.checks(x, errors.worst, elements)) if per_module else ())


def _sensitive_elements(elements: list[np.ndarray]) -> list[np.ndarray]:
    """Returns mirrors and exchanges of two axes, which generate the point groups and detect a break on any axis; for a
    group that they do not generate, returns all elements."""
    dims = len(elements[0]) if elements else 0
    mirrors = [g for g in elements if np.count_nonzero(np.diag(g)) == dims and round(np.trace(g)) == dims - 2]
    exchanges = [g for g in elements if np.min(g) >= 0 and round(np.trace(g)) == dims - 2]
    return mirrors + exchanges if len(mirrors) == dims else elements


class _Call(NamedTuple):
    """The arguments of a module inside the network, and the random state before its call."""

    args: tuple
    kwargs: dict
    random_state: list[torch.Tensor]
    # the groups of its input and output fields, ``None`` for scalars
    taken: PointGroup | None = None
    returned: PointGroup | None = None


def _field_group(value: Any) -> PointGroup | None:
    """Returns the group with which a layer on fields has marked its output."""
    return next((group for t in tensors_in(value) if (group := getattr(t, "_gmr_fields", None)) is not None), None)


class _ModuleProbe:
    """Hooks that repeat each call of a module inside the network with transformed input, and compare."""

    def __init__(self, net: nn.Module, dims: int, elements: list[np.ndarray], tolerance: float) -> None:
        self.net, self.dims, self.elements, self.tolerance = net, dims, elements, tolerance
        self.paths: dict[nn.Module, list[str]] = {}
        for path, module in net.named_modules(remove_duplicate=False):
            self.paths.setdefault(module, []).append(path)
        # worst error of each module, its size, and whether it is only rounding
        self.worst: dict[nn.Module, tuple[float, tuple[int, ...], bool]] = {}
        self.calls: dict[nn.Module, int] = {}
        self.unchecked: set[nn.Module] = set()
        self.running: list[tuple[nn.Module, _Call | None]] = []
        self.repeating = False
        # the network is measured separately; a container of layers on fields does not tell the group of its input
        self.left_out = {net} | {
            m for m in self.paths if any(hasattr(child, "field_groups") for child in m.modules() if child is not m)
        }
        # elements do not permute the channels of fields on samples of a group
        sampled = {m for m in self.paths if getattr(m, "has_sampled_fields", False)}
        self.left_out |= {child for m in sampled for child in m.modules()}
        self.left_out |= {m for m in self.paths if not sampled.isdisjoint(m.modules())}
        self.devices = sorted({p.device.index for p in net.parameters() if p.device.type == "cuda"})

    @property
    def failed_in(self) -> str:
        """Returns the deepest module that was running when the network failed."""
        names = [f"{self.paths[m][0]} ({type(m).__name__})" for m, _ in self.running if m is not self.net]
        return names[-1] if names else ""

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attaches the hooks while the context lasts."""
        handles = []
        try:
            for module in self.paths:
                if not isinstance(module, torch.jit.ScriptModule):
                    handles.append(module.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True))
                    handles.append(module.register_forward_hook(self._after, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _images(self, value: Any) -> list[torch.Tensor]:
        return [t for t in tensors_in(value) if t.ndim == self.dims + 2 and t.is_floating_point()]

    def _random_state(self) -> list[torch.Tensor]:
        return [torch.get_rng_state()] + [torch.cuda.get_rng_state(index) for index in self.devices]

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.repeating:
            return
        call = None
        taken = getattr(module, "field_groups", (_field_group((args, kwargs)),))[0]
        if self.elements and module not in self.left_out and self._images((args, kwargs)):
            # copies, because in-place modules overwrite their input
            args, kwargs = map_tensors((args, kwargs), lambda t: t.detach().clone())
            call = _Call(args, kwargs, self._random_state(), taken)
        self.running.append((module, call))

    def _after(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if self.repeating:
            return
        call = None
        while self.running:
            started, call = self.running.pop()
            if started is module:
                break
        self._mark(module, call, output)
        # The last axes of the input of linear layers and row norms are channels.
        is_row_norm = isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1
        if call is None or isinstance(module, nn.Linear) or is_row_norm or not tensors_in(output):
            return
        self.calls[module] = self.calls.get(module, 0) + 1
        self.repeating = True
        try:
            self._measure(module, call._replace(returned=_field_group(output)), output)
        except Exception:
            self.unchecked.add(module)
        finally:
            self.repeating = False

    def _mark(self, module: nn.Module, call: _Call | None, output: Any) -> None:
        """Marks tensors on fields: outputs of layers on fields, and of other modules that keep the number of channels."""
        returned = getattr(module, "field_groups", (None, None))[1]
        if returned is None and call is not None and call.taken is not None and not hasattr(module, "field_groups"):
            channels = {t.shape[1] for t in self._images((call.args, call.kwargs, output))}
            returned = call.taken if len(channels) == 1 else None
        for tensor in self._images(output) if module not in self.left_out else ():
            tensor._gmr_fields = returned  # type: ignore[attr-defined]

    def _measure(self, module: nn.Module, call: _Call, output: Any) -> None:
        error = self._error(module, call, output, self.elements)
        rounding = self._is_rounding(module, call, error, self.elements)
        if module not in self.worst or error > self.worst[module][0]:
            size = tuple(self._images((call.args, call.kwargs))[0].shape[2:])
            self.worst[module] = (error, size, rounding)

    def _error(self, module: nn.Module, call: _Call, output: Any, elements: list[np.ndarray]) -> float:
        errors = [0.0]
        for element in elements:
            args, kwargs = transform_tensors((call.args, call.kwargs), element, self.dims, call.taken)
            actual = self._repeat(module, call._replace(args=args, kwargs=kwargs))
            errors.append(nested_error(actual, transform_tensors(output, element, self.dims, call.returned)))
        return float(np.max(errors))

    def _repeat(self, module: nn.Module, call: _Call) -> Any:
        """Runs a module again with the random numbers that it drew inside the network."""
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(call.random_state[0])
            for index, state in zip(self.devices, call.random_state[1:]):
                torch.cuda.set_rng_state(state, index)
            return module(*call.args, **call.kwargs)

    def _is_rounding(self, module: nn.Module, call: _Call, error: float, elements: list[np.ndarray]) -> bool:
        """Checks whether a small error disappears in float64, as for a norm over nearly equal numbers."""
        if not self.tolerance < error < 1e-2:
            return False
        double = copy.deepcopy(module).double()
        args, kwargs = map_tensors((call.args, call.kwargs), lambda t: t.double() if t.is_floating_point() else t)
        call = call._replace(args=args, kwargs=kwargs)
        # a copy, because the module can work in place
        output = self._repeat(double, call._replace(**map_tensors({"args": args, "kwargs": kwargs}, torch.clone)))
        return self._error(double, call, output, elements) <= min(self.tolerance, 1e-9)

    def checks(self, x: torch.Tensor, error: float, elements: list[np.ndarray]) -> list[ModuleCheck]:
        """Returns the checked modules, first the network itself with its ``error``, with the deepest broken ones marked."""
        try:
            with preserved_state(self.net, x):
                rounding = self._is_rounding(
                    self.net, _Call((x,), {}, self._random_state(), *field_ends(self.net)), error, elements
                )
        except Exception:
            rounding = False
        worst = {self.net: (error, tuple(x.shape[2:]), rounding)} | self.worst
        broken = {m for m, (e, _, rounded) in worst.items() if not e <= self.tolerance and not rounded}
        checks = []
        for module, (first, *others) in self.paths.items():
            if module not in worst:
                continue
            error, size, rounding = worst[module]
            inside = [child for child in module.modules() if child is not module]
            deepest = module in broken and not broken.intersection(inside)
            remarks = ["exact in float64, so rounding"] if rounding else []
            if deepest:
                remarks = [self._explain(module, size, inside)]
            if others:
                remarks.append(f"also named {', '.join(others)}")
            known = (first or "(network)", type(module).__name__, size, error, self.calls.get(module, 1))
            marks: dict[str, Any] = {"deepest": deepest, "remark": "; ".join(filter(None, remarks))}
            checks.append(ModuleCheck(*known, broken=module in broken, **marks))
        return checks

    def _explain(self, module: nn.Module, size: tuple[int, ...], inside: list[nn.Module]) -> str:
        if isinstance(module, torch.jit.ScriptModule):
            return "scripted: its modules cannot be checked"
        if not inside:
            return explain_module(module, size)
        unchecked = sorted({type(child).__name__ for child in inside if child in self.unchecked})
        children = f", or a child that could not be checked: {', '.join(unchecked)}" if unchecked else ""
        return "functional code in forward" + children


class _MoveProbe(_ModuleProbe):
    """Hooks that repeat each call of a module with its input moved by views off the grid."""

    def __init__(self, net: nn.Module, x: torch.Tensor, views: Sequence[View], spacing: Sequence[float] | None) -> None:
        super().__init__(net, x.ndim - 2, [view.matrix for view in views], tolerance=0.0)
        self.x, self.views = x, views
        self.how: dict[str, Any] = {"order": ORDER, "input_size": x.shape[2:], "spacing": spacing}
        # the worst error of each module, one per view
        self.moved: dict[nn.Module, list[float]] = {}

    def _measure(self, module: nn.Module, call: _Call, output: Any) -> None:
        errors = []
        for view in self.views:
            args, kwargs = map_tensors((call.args, call.kwargs), partial(move_image, view=view, **self.how))
            actual = self._repeat(module, call._replace(args=args, kwargs=kwargs))
            errors.append(moved_error(actual, output, view, **self.how))
        self.moved[module] = np.maximum(errors, self.moved.get(module, errors)).tolist()

    def add_moves(self, checks: Sequence[ModuleCheck], whole: EquivarianceErrors) -> tuple[ModuleCheck, ...]:
        """Adds errors under moves to the checked modules; the network itself gets its errors as a ``whole``."""
        with preserved_state(self.net, self.x) as run, self.attached():
            run(self.x)
        errors = {self.paths[module][0]: values for module, values in self.moved.items()}
        errors["(network)"] = list(whole.errors)
        named = {
            path: EquivarianceErrors(tuple(ViewError(v.name, v.family, v.angle, e) for v, e in zip(self.views, values)))
            for path, values in errors.items()
        }
        return tuple(replace(check, moves=named.get(check.path, check.moves)) for check in checks)
