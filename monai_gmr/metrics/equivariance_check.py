"""Which module of a network breaks its symmetry, and at which size."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.utils import optional_import
from scipy import ndimage
from torch import nn

from monai_gmr.metrics.equivariance import (
    EquivarianceErrors,
    checked_group,
    equivariance_error,
    kept_state,
    map_tensors,
    nested_error,
    tensors_in,
    turned,
)
from monai_gmr.metrics.equivariance_report import EquivarianceReport, ModuleCheck, SizeCheck, size_text
from monai_gmr.metrics.explain import explain_composite, explain_module
from monai_gmr.utils import ConfigurationError

ROUNDING = "exact in float64, so rounding"


def check_equivariance(
    net: nn.Module,
    spatial_size: int | Sequence[int | Sequence[int]],
    in_channels: int | None = None,
    spatial_dims: int | None = None,
    group: Sequence[np.ndarray] | np.ndarray | None = None,
    angles: Sequence[float] = (),
    tolerance: float = 1e-5,
    per_module: bool = True,
    seed: int = 0,
    device: torch.device | str | None = None,
    spacing: Sequence[float] | None = None,
    batch_size: int = 2,
    progress: bool = False,
) -> EquivarianceReport:
    """Measure the equivariance error of a network at several sizes and name the modules that break it.

    The input is noise of unit variance, smoothed for ``angles``. Every module of the network is asked alone, with the input that it gets
    there, whether its answer turns with this input; the deepest ones that do not are the culprits. Modules whose input is not
    ``(B, C, *spatial)`` are passed over. The network runs in the mode it is in (batch normalisation in train mode is
    exact, dropout is not); its buffers and torch's random state are left as they were.

    Args:
        net: the network.
        spatial_size: size in voxels. An int is a square or cube, a sequence of ints one size with an entry an axis (or one
            entry for all), a sequence that holds sequences several sizes: ``[(96,), (97,), (64, 65, 70)]``.
        in_channels: channels of the input. Default: those of the first convolution.
        spatial_dims: 1, 2 or 3. Default: that of the first convolution, else the number of entries of a size.
        group: signed permutation matrices of shape ``(d, d)``. Default: all those that keep ``spacing``.
        angles: further rotations in degrees, measured but not judged; see
            :func:`~monai_gmr.metrics.equivariance_error`.
        tolerance: largest relative L2 error that counts as exact.
        per_module: look for the modules that break it.
        seed: of the input.
        device: where to run. Default: where the network is.
        spacing: voxel size in millimetres, one an axis; default 1.
        batch_size: images in the input.
        progress: show a bar over the sizes, where tqdm is installed.

    Returns:
        a report with ``ok``, ``worst``, ``broken``, ``rows`` and a table as ``str``. A size that the network cannot take is one
        sentence in it.

    Raises:
        ConfigurationError: when a size does not fit ``spatial_dims``, or ``in_channels`` is not given and there is no
            convolution.

    Example:
        >>> net = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(2))
        >>> check_equivariance(net, 16, in_channels=1, spatial_dims=2).ok
        True
        >>> report = check_equivariance(net, 17, in_channels=1, spatial_dims=2)
        >>> [(module.path, module.class_name) for module in report.broken]
        [('1', 'MaxPool2d')]
    """
    # Hooks do not go into a compiled forward, so the module inside is asked.
    net = getattr(net, "_orig_mod", net)
    in_channels, dims = _input_format(net, spatial_size, in_channels, spatial_dims)
    sizes = _sizes(spatial_size, dims)
    elements = checked_group(group, dims, spacing)
    tensors = [tensor for tensor in [*net.parameters(), *net.buffers()] if tensor.is_floating_point()]
    home, dtype = (tensors[0].device, tensors[0].dtype) if tensors else (torch.device("cpu"), torch.float32)
    device = home if device is None else torch.device(device)
    net.to(device)
    checks = []
    try:
        for size in _with_progress(sizes) if progress else sizes:
            noise = torch.randn((batch_size, in_channels, *size), generator=torch.Generator().manual_seed(seed))
            x = noise.to(device, dtype)
            checks.append(_check_size(net, x, elements, tolerance, per_module))
            if angles and not checks[-1].failure:
                smooth = ndimage.gaussian_filter(noise.numpy(), (0, 0, *(1.2,) * dims), mode="wrap")
                smooth_x = torch.as_tensor(smooth / smooth.std()).to(device, dtype)
                spread = equivariance_error(net, smooth_x, [], angles, spacing)
                both = EquivarianceErrors(checks[-1].errors.views + spread.views)
                checks[-1] = SizeCheck(size, both, checks[-1].modules)
    finally:
        net.to(home)
    return EquivarianceReport(type(net).__name__, tolerance, tuple(checks))


def _input_format(
    net: nn.Module, spatial_size: Any, in_channels: int | None, spatial_dims: int | None
) -> tuple[int, int]:
    for module in net.modules():
        kernel: Any = getattr(module, "kernel_size", None)
        if isinstance(kernel, tuple) and isinstance(getattr(module, "in_channels", None), int):
            in_channels = module.in_channels if in_channels is None else in_channels  # type: ignore[assignment]
            spatial_dims = len(kernel) if spatial_dims is None else spatial_dims
            break
    if spatial_dims is None and isinstance(spatial_size, Sequence):
        nested = [size for size in spatial_size if isinstance(size, Sequence)]
        entries = max(len(size) for size in nested or [spatial_size])
        spatial_dims = entries if entries > 1 else None
    if in_channels is None or spatial_dims is None:
        raise ConfigurationError(f"{type(net).__name__} has no convolution: give in_channels and spatial_dims.")
    return in_channels, spatial_dims


def _with_progress(sizes: list[tuple[int, ...]]) -> Iterable[tuple[int, ...]]:
    tqdm, installed = optional_import("tqdm", name="tqdm")
    return tqdm(sizes, desc="sizes", unit="size") if installed else sizes


def _sizes(spatial_size: int | Sequence[int | Sequence[int]], dims: int) -> list[tuple[int, ...]]:
    """The input sizes, one entry an axis."""
    several = isinstance(spatial_size, Sequence) and any(isinstance(size, Sequence) for size in spatial_size)
    sizes = []
    for size in spatial_size if several else [spatial_size]:  # type: ignore[union-attr]
        entries = tuple(size) if isinstance(size, Sequence) else (size,)
        entries = entries * dims if len(entries) == 1 else entries
        if len(entries) != dims or not all(isinstance(n, int | np.integer) and n > 0 for n in entries):
            raise ConfigurationError(
                f"spatial_size holds {size!r}: give one positive number for all axes or {dims} numbers, one an axis; "
                "several sizes are a sequence of sequences."
            )
        sizes.append(tuple(int(n) for n in entries))  # type: ignore[arg-type]
    return sizes


def _check_size(
    net: nn.Module, x: torch.Tensor, elements: list[np.ndarray], tolerance: float, per_module: bool
) -> SizeCheck:
    size = tuple(x.shape[2:])
    probe = _ModuleProbe(net, len(size), _telling_elements(elements) if per_module else [], tolerance)
    asked = size
    try:
        with kept_state(net, x) as run, probe.attached():
            run(x)
        probe.watching = False
        for element in elements:
            asked = tuple(turned(x, element, len(size)).shape[2:])
            if asked != size:
                with kept_state(net, x) as run:
                    run(turned(x, element, len(size)))
                break
        errors = equivariance_error(net, x, elements)
    except Exception as error:
        return SizeCheck(size, failure=_failure(net, size, asked, probe.failed_in, error))
    modules = probe.checks(net, x, errors.worst, elements) if per_module else []
    return SizeCheck(size, errors, tuple(modules))


def _failure(net: nn.Module, size: tuple, asked: tuple, path: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    turned_size = f" turned to {size_text(asked)}" if asked != size else ""
    where = f" in {path}" if path else ""
    return f"Size {size_text(size)}: {type(net).__name__} cannot take it{turned_size}{where}: {reason[:200]}."


def _telling_elements(elements: list[np.ndarray]) -> list[np.ndarray]:
    """Mirrors and exchanges of two axes, which generate the point groups and show a break on any axis; all elements of a
    group that they do not generate."""
    dims = len(elements[0]) if elements else 0
    simple = [
        g
        for g in elements
        if round(np.trace(g)) == dims - 2 and (np.count_nonzero(np.diag(g)) == dims or np.min(g) >= 0)
    ]
    mirrors = [g for g in simple if np.count_nonzero(np.diag(g)) == dims]
    return simple if len(mirrors) == dims else elements


def _is_spatial(value: Any, dims: int) -> bool:
    return any(tensor.ndim == dims + 2 and tensor.is_floating_point() for tensor in tensors_in(value))


def _copied(value: Any) -> Any:
    return map_tensors(value, lambda tensor: tensor.detach().clone())


def _in_float64(value: Any) -> Any:
    return map_tensors(value, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


class _ModuleProbe:
    """Hooks that ask each module, when it has answered inside the network, for its answer to its turned input."""

    def __init__(self, net: nn.Module, dims: int, elements: list[np.ndarray], tolerance: float) -> None:
        self.net, self.dims, self.elements, self.tolerance = net, dims, elements, tolerance
        self.paths: dict[nn.Module, list[str]] = {}
        for path, module in net.named_modules(remove_duplicate=False):
            self.paths.setdefault(module, []).append(path)
        self.worst: dict[nn.Module, tuple[float, tuple[int, ...], bool]] = {}
        self.calls: dict[nn.Module, int] = {}
        self.unchecked: set[nn.Module] = set()
        self.open: list[tuple[nn.Module, Any]] = []
        self.asking = False
        self.watching = True
        self.devices = sorted({p.device.index for p in net.parameters() if p.device.type == "cuda"})

    @property
    def failed_in(self) -> str:
        """The deepest module that had begun and not answered, while the network ran upright."""
        names = [(self.paths[module][0], type(module).__name__) for module, _ in self.open if module is not self.net]
        return f"{names[-1][0]} ({names[-1][1]})" if names and self.watching else ""

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The hooks, for as long as the context lasts."""
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

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not self.asking:
            ask = self.elements and module is not self.net and _is_spatial((args, kwargs), self.dims)
            # Modules that work in place overwrite their input, so what it was is kept.
            self.open.append((module, (*_copied((args, kwargs)), self._random_state()) if ask else None))

    def _random_state(self) -> list[torch.Tensor]:
        return [torch.get_rng_state()] + [torch.cuda.get_rng_state(index) for index in self.devices]

    def _after(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if self.asking:
            return
        given = None
        while self.open:
            opened, given = self.open.pop()
            if opened is module:
                break
        # The last axes of what these two take are channels.
        channels_last = isinstance(module, nn.Linear) or (
            isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1
        )
        if given is None or channels_last or not tensors_in(output):
            return
        self.calls[module] = self.calls.get(module, 0) + 1
        self.asking = True
        try:
            error = self._error(module, given, output, self.elements)
            rounding = self.tolerance < error < 1e-2 and self._only_rounding(module, given, self.elements)
        except Exception:
            self.unchecked.add(module)
            return
        finally:
            self.asking = False
        size = next(tuple(t.shape[2:]) for t in tensors_in(given[:2]) if t.ndim == self.dims + 2)
        if module not in self.worst or error > self.worst[module][0]:
            self.worst[module] = (error, size, rounding)

    def _error(self, module: nn.Module, given: Any, output: Any, elements: list[np.ndarray]) -> float:
        errors = [0.0]
        for element in elements:
            args, kwargs = turned(given[:2], element, self.dims)
            answer = self._ask(module, args, kwargs, given[2])
            errors.append(nested_error(answer, turned(output, element, self.dims)))
        return float(np.max(errors))

    def _ask(self, module: nn.Module, args: tuple, kwargs: dict, random_state: list[torch.Tensor]) -> Any:
        """The answer of a module that draws the random numbers it drew inside the network."""
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(random_state[0])
            for index, state in zip(self.devices, random_state[1:]):
                torch.cuda.set_rng_state(state, index)
            return module(*args, **kwargs)

    def _only_rounding(self, module: nn.Module, given: Any, elements: list[np.ndarray]) -> bool:
        """Whether the error of a module goes away in float64, as that of a norm over nearly equal numbers does."""
        double, (args, kwargs) = copy.deepcopy(module).double(), _in_float64(given[:2])
        output = self._ask(double, _copied(args), _copied(kwargs), given[2])
        return self._error(double, (args, kwargs, given[2]), output, elements) <= min(self.tolerance, 1e-9)

    def checks(self, net: nn.Module, x: torch.Tensor, error: float, elements: list[np.ndarray]) -> list[ModuleCheck]:
        """The modules that were asked, the network itself first, with the deepest broken ones marked."""
        rounding = False
        if self.tolerance < error < 1e-2:
            try:
                with kept_state(net, x):
                    rounding = self._only_rounding(net, ((x,), {}, self._random_state()), elements)
            except Exception:
                rounding = False
        worst = {net: (error, tuple(x.shape[2:]), rounding)} | self.worst
        broken = {m for m, (e, _, rounded) in worst.items() if not e <= self.tolerance and not rounded}
        found = []
        for module, names in self.paths.items():
            if module not in worst:
                continue
            error, size, rounding = worst[module]
            inside = [child for child in module.modules() if child is not module]
            deepest = module in broken and not any(child in broken for child in inside)
            remark = ROUNDING if rounding else ""
            if deepest and isinstance(module, torch.jit.ScriptModule):
                remark = "scripted: its modules cannot be asked"
            elif deepest and inside:
                unasked = sorted({type(child).__name__ for child in inside if child in self.unchecked})
                remark = explain_composite(unasked)
            elif deepest:
                remark = explain_module(module, size)
            if len(names) > 1:
                remark = "; ".join(filter(None, [remark, f"also named {', '.join(names[1:])}"]))
            path = names[0] or "(network)"
            calls = self.calls.get(module, 1)
            found.append(
                ModuleCheck(path, type(module).__name__, size, error, calls, module in broken, deepest, remark)
            )
        return found
