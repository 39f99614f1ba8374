"""What the benchmark compares: the cases, who takes part in each, and how many operations each needs."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from monai_gmr.networks.layers import GMRConv2d, GMRConv3d
from monai_gmr.networks.layers.factories import make_convolution
from monai_gmr.networks.layers.gmr_conv import GMRConvNd
from monai_gmr.networks.layers.gmr_harmonic_conv import GMRHarmonicConvNd
from monai_gmr.networks.nets import GMRUNet, gmr_resnet18
from monai_gmr.ops import ring_conv
from monai_gmr.ops.cpu.ring_kernels import choose_sums
from monai_gmr.ops.cpu.tiles import Window
from monai_gmr.ops.ring_conv import ring_conv_transpose

GROUPS = ("ring_conv", "layers", "nets")
LAYERS = {"GMRConv": "gmr", "GMRHarmonicConv": "gmr_harmonic", "SREConv": "sre"}
PLAIN, PLAIN_3 = "plain", "plain k=3"
# voxels of a line, for which additions are counted
LINE = 64
# distribution, to its package and module
PEERS = {
    "GMR-Conv": ("GMR_Conv", "gmr_conv"),
    "SRE-Conv": ("SRE_Conv", "sre_conv"),
    "e2cnn": ("e2cnn", "nn"),
    "escnn": ("escnn", "nn"),
}


class Candidate(NamedTuple):
    """One that takes part in a case.

    Attributes:
        method: what is computed, such as "ring_conv" or "GMRConv".
        backend: which of :func:`monai_gmr.available_backends` is forced while it runs; ``None`` where there is no choice.
        make: makes the module.
    """

    method: str
    backend: str | None
    make: Callable[[], nn.Module]

    @property
    def label(self) -> str:
        """What the table calls it."""
        if self.backend is None:
            return self.method
        return self.backend if self.method in ("ring_conv", "harmonic") else f"{self.method}, {self.backend}"


class Case(NamedTuple):
    """One input and all that are compared on it.

    Attributes:
        group: one of :data:`GROUPS`.
        name: dimensions, shape and window.
        precision: "float32", or "float16" or "bfloat16" for autocast.
        shape: ``(batch, channels, *spatial)`` of the input.
        candidates: who takes part.
    """

    group: str
    name: str
    precision: str
    shape: tuple[int, ...]
    candidates: tuple[Candidate, ...]

    @property
    def dims(self) -> int:
        """Number of spatial axes."""
        return len(self.shape) - 2

    @property
    def title(self) -> str:
        """Name and precision."""
        return f"{self.group}: {self.name}, {self.precision}"


class Size(NamedTuple):
    """One input and the convolutions that are measured on it.

    Attributes:
        dims: number of spatial axes.
        batch: samples.
        channels: of input and output.
        length: of each axis.
        windows: one case each.
        groups: blocks of channels that do not see each other.
    """

    dims: int
    batch: int
    channels: int
    length: int
    windows: tuple[int, ...]
    groups: int = 1

    def name(self, rest: str) -> str:
        """What the table calls it."""
        shape = "x".join([str(self.length)] * self.dims)
        groups = f", groups {self.groups}" if self.groups > 1 else ""
        return f"{self.dims}D B{self.batch} C{self.channels} {shape} {rest}{groups}"


class Sizes(NamedTuple):
    """What is measured."""

    operation: tuple[Size, ...]
    harmonic: tuple[Size, ...]
    layers: tuple[Size, ...]
    resnet: tuple[int, int, int]  # batch, length, width
    unet: tuple[int, tuple[int, ...]]  # length, features


FULL = Sizes(
    operation=(
        *(Size(2, 8, 64, 64, (3, 5, 9)), Size(3, 1, 32, 48, (3, 5, 7))),
        *(Size(2, 8, 64, 64, (9,), groups) for groups in (4, 64)),
        *(Size(3, 1, 32, 48, (3, 5), groups) for groups in (4, 32)),
    ),
    harmonic=(Size(3, 1, 32, 48, (3, 5)),),
    layers=(Size(2, 8, 64, 64, (3, 5, 9)), Size(3, 1, 32, 48, (3, 5))),
    resnet=(16, 64, 64),
    unet=(64, (16, 32, 64)),
)
QUICK = Sizes(
    operation=(Size(2, 1, 4, 8, (3, 5)), Size(3, 1, 4, 6, (3,)), Size(3, 1, 4, 6, (3,), 2)),
    harmonic=(Size(3, 1, 4, 6, (3,)),),
    layers=(Size(2, 1, 4, 8, (3,)), Size(3, 1, 4, 6, (3,))),
    resnet=(2, 16, 4),
    unet=(8, (2, 4)),
)
CUDA_OPERATION = tuple(Size(3, 1, channels, length, (5, 7)) for channels in (32, 64) for length in (96, 128))


class RingConvolution(nn.Module):
    """The operation :func:`monai_gmr.ops.ring_conv` alone, with the basis that :class:`GMRConv2d` begins with.

    Args:
        spatial_dims: 2 or 3.
        channels: of input and output.
        kernel_size: window length in voxels, odd.
        groups: blocks of channels that do not see each other.
        stride: in voxels: how many times smaller than the input the output is, along each axis.
        transposed: whether the convolution is transposed: the output is as many times larger instead.

    Example:
        >>> RingConvolution(2, 4, 5)(torch.rand(1, 4, 6, 6)).shape
        torch.Size([1, 4, 6, 6])
        >>> RingConvolution(2, 4, 5, stride=2, transposed=True)(torch.rand(1, 4, 6, 6)).shape
        torch.Size([1, 4, 12, 12])
    """

    shells: torch.Tensor

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        kernel_size: int,
        groups: int = 1,
        stride: int = 1,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.transposed = stride, transposed
        layer = {2: GMRConv2d, 3: GMRConv3d}[spatial_dims](channels, channels, kernel_size, groups=groups)
        self.weight = nn.Parameter(layer.weight.detach())
        self.values = nn.Parameter(layer.basis().detach())
        self.padding, self.num_shells, self.groups = kernel_size // 2, layer.num_shells, groups
        self.register_buffer("shells", layer.shells)

    def basis(self) -> torch.Tensor:
        """The functions on shells, shape ``(rings, shells)``."""
        return self.values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, *spatial)`` to ``(batch, channels, *spatial_out)``."""
        arrays = (self.weight, self.basis(), self.shells)
        options = {name: getattr(self, name) for name in ("stride", "padding", "groups", "num_shells")}
        if self.transposed:
            return ring_conv_transpose(x, *arrays, output_padding=self.stride - 1, **options)
        return ring_conv(x, *arrays, **options)


class SteerableConvolution(nn.Module):
    """A radial convolution by e2cnn or escnn: kernels from trivial fields to trivial fields of all rotations.

    Args:
        package: "e2cnn" (2D only) or "escnn".
        spatial_dims: 2 or 3.
        channels: of input and output.
        kernel_size: window length in voxels, odd.
    """

    def __init__(self, package: str, spatial_dims: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        layers, gspaces = (importlib.import_module(f"{package}.{name}") for name in ("nn", "gspaces"))
        if package == "e2cnn":
            space = gspaces.Rot2dOnR2(-1, maximum_frequency=1)
        elif spatial_dims == 2:
            space = gspaces.rot2dOnR2(-1, maximum_frequency=1)
        else:
            space = gspaces.rot3dOnR3(maximum_frequency=1)
        self.fields = layers.FieldType(space, channels * [space.trivial_repr])
        self.wrap = layers.GeometricTensor
        kind = getattr(layers, f"R{spatial_dims}Conv")
        self.convolution = kind(self.fields, self.fields, kernel_size, padding=kernel_size // 2, bias=False)
        self.in_channels = self.out_channels = channels
        self.kernel_size = (kernel_size,) * spatial_dims

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, *spatial)`` to the same."""
        return self.convolution(self.wrap(x, self.fields)).tensor


def import_peer(name: str) -> Any:
    """The module of a peer that holds its layers, without its package's ``__init__`` where that needs more than the layers do.

    Args:
        name: of :data:`PEERS`.
    """
    package, module = PEERS[name]
    if module == "nn":
        return importlib.import_module(f"{package}.{module}")
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or []) if found else []
    spec = importlib.util.spec_from_file_location(f"{package}.{module}", Path(folders[0]) / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    layers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layers)
    return layers


def installed_peers() -> list[str]:
    """Those of :data:`PEERS` that can be imported here."""
    return [name for name, (package, _) in PEERS.items() if importlib.util.find_spec(package) is not None]


def make_peer(name: str, spatial_dims: int, channels: int, kernel_size: int) -> nn.Module:
    """A peer's convolution without a bias whose output is as large as its input."""
    if PEERS[name][1] == "nn":
        return SteerableConvolution(name, spatial_dims, channels, kernel_size)
    kind = getattr(import_peer(name), f"{PEERS[name][0]}{spatial_dims}d")
    return kind(channels, channels, kernel_size, padding=kernel_size // 2, bias=False)


def dense_operations(taps: int, in_channels: int, out_channels: int, voxels: int, groups: int = 1) -> int:
    """Multiply-adds of a convolution: every tap, pair of channels and voxel of the output.

    Example:
        >>> dense_operations(taps=9, in_channels=4, out_channels=8, voxels=100)
        28800
    """
    return taps * in_channels * out_channels * voxels // groups


def shell_operations(
    taps: int, shells: int, in_channels: int, out_channels: int, voxels: int, components: int = 1, groups: int = 1
) -> int:
    """Multiply-adds where the taps of a shell are summed first, once an input channel, and a pair of channels has a product a shell.

    Args:
        taps: taps on the shells.
        shells: shells on which the kernel is not zero.
        in_channels, out_channels: all of them, not those of a group.
        voxels: of the output, over the batch.
        components: angular factors, each with sums of its own.
        groups: blocks of channels that do not see each other.

    Example:
        >>> shell_operations(taps=9, shells=3, in_channels=4, out_channels=8, voxels=100)
        13200
    """
    return voxels * components * in_channels * (taps + shells * out_channels // groups)


class RadialPart(NamedTuple):
    """What a radial kernel of one order counts."""

    taps: int
    live_taps: int
    shells: int
    in_channels: int
    out_channels: int
    components: int
    groups: int
    rings: int
    additions: int  # of backend "cpp"


def _radial_part(layer: Any, basis: torch.Tensor, channels: int, components: int, groups: int) -> RadialPart:
    used = torch.nonzero(basis.detach().abs().sum(0))
    shells = int(used.max()) + 1 if len(used) else 0
    live = int((layer.shells < shells).sum())
    ins, window = layer.weight.shape[1] * groups, Window.of(layer.shells, shells, [1] * layer.shells.dim())
    additions = round(choose_sums(window, LINE).additions(LINE, window.shape[-1] - 1))
    return RadialPart(layer.shells.numel(), live, shells, ins, channels, components, groups, basis.shape[0], additions)


def radial_parts(layer: nn.Module) -> list[RadialPart]:
    """What each order of a radial layer counts; a layer without orders has one."""
    if isinstance(layer, GMRHarmonicConvNd):
        profiles = layer.radial_profiles()
        return [
            _radial_part(layer, profiles[min(order, 1)], channels * layer.groups, components, layer.groups)
            for order, channels, components in zip(layer.orders, layer.channels, layer.components)
            if channels
        ]
    groups = int(getattr(layer, "groups", 1))
    weight, basis = layer.weight, layer.basis()  # type: ignore[operator]
    return [_radial_part(layer, basis, int(weight.shape[0]), 1, groups)]  # type: ignore[index, arg-type, union-attr]


def _dense_count(part: RadialPart, voxels: int) -> int:
    return dense_operations(part.taps, part.in_channels, part.out_channels * part.components, voxels, part.groups)


def _shell_count(part: RadialPart, voxels: int) -> int:
    channels = (part.in_channels, part.out_channels)
    return shell_operations(part.live_taps, part.shells, *channels, voxels, part.components, part.groups)


def _rings_count(part: RadialPart, voxels: int, additions: int) -> int:
    """So many additions, the rings' sums, then a product."""
    mixing = part.rings * (part.shells + part.out_channels // part.groups)
    return voxels * part.in_channels * (additions + mixing)


def _kernel_count(part: RadialPart, voxels: int) -> int:
    """Of backend "cpp": sums, then a product; for an order above 0 a product, then every pair of mirrored taps, with its factors."""
    if part.components == 1:
        return _rings_count(part, voxels, part.additions)
    product = part.shells * part.in_channels * part.out_channels // part.groups
    return voxels * (product + part.live_taps // 2 * (1 + part.components) * part.out_channels)


def _sums_count(part: RadialPart, voxels: int) -> int:
    """Of backend "triton": sums, tap by tap, then a product; of an order above 0 every component has sums of its own."""
    return _rings_count(part, voxels, part.live_taps) if part.components == 1 else _shell_count(part, voxels)


# how a backend counts; one that is not here has no operations in the table
BACKEND_COUNTS: dict[str, Callable[[RadialPart, int], int]] = {
    "dense": _dense_count,
    "cpp": _kernel_count,
    "triton": _sums_count,
}


def is_counted(layer: nn.Module) -> bool:
    """Whether a module is a convolution that :func:`layer_operations` counts."""
    ours_or_plain = isinstance(layer, (_ConvNd, GMRConvNd, RingConvolution, SteerableConvolution))
    return ours_or_plain or type(layer).__name__.startswith(("GMR_Conv", "SRE_Conv"))


def layer_operations(layer: Any, voxels: int, backend: str | None) -> int | None:
    """Multiply-adds of a convolution's forward pass, by the count of the method that runs.

    Args:
        layer: for which :func:`is_counted`.
        voxels: of the output, over the batch.
        backend: the one that runs a radial layer.

    Returns:
        the number; ``None`` when the backend's count is not known.

    Example:
        >>> layer_operations(nn.Conv2d(4, 8, 3), 100, None), layer_operations(RingConvolution(2, 8, 3), 100, "triton")
        (28800, 24800)
    """
    if isinstance(layer, (GMRConvNd, RingConvolution)):
        count = BACKEND_COUNTS.get(backend or "dense")
        return sum(count(part, voxels) for part in radial_parts(layer)) if count else None
    taps, groups = math.prod(layer.kernel_size), getattr(layer, "groups", 1)
    if type(layer).__name__ == "GMR_Conv2d" and layer.dw_fwd:
        # GMR-Conv, in 2D alone: every input channel with every ring's window, then products of rings and channels
        return layer.num_rings * layer.in_channels * (taps + layer.out_channels) * voxels
    return dense_operations(taps, layer.in_channels, layer.out_channels, voxels, groups)


def count_cost(module: nn.Module, forward: Callable[[], Any], backend: str | None) -> tuple[int | None, int]:
    """Multiply-adds, and bytes at least moved, of the convolutions of a forward pass.

    Args:
        module: a convolution or a net of convolutions.
        forward: runs it.
        backend: the one that runs radial layers.

    Returns:
        the multiply-adds (``None`` when not known), and the bytes of input, output and weights of each convolution, each once.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.ReLU())
        >>> count_cost(net, lambda: net(torch.rand(1, 2, 3, 3)), None)
        (36, 160)
    """
    counts: list[int | None] = []
    moved: list[int] = []

    def hook(layer: Any, inputs: tuple, output: torch.Tensor) -> None:
        counts.append(layer_operations(layer, output.numel() // layer_channels(layer), backend))
        arrays = [inputs[0], output, *layer.parameters()]
        moved.append(sum(array.numel() * array.element_size() for array in arrays))

    hooks = [layer.register_forward_hook(hook) for layer in _counted_layers(module)]
    try:
        forward()
    finally:
        for handle in hooks:
            handle.remove()
    known = [count for count in counts if count is not None]
    return (sum(known) if len(known) == len(counts) else None), sum(moved)


def layer_channels(layer: Any) -> int:
    """Output channels of a convolution."""
    return layer.weight.shape[0] if isinstance(layer, RingConvolution) else layer.out_channels


def _counted_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The convolutions, not those inside one that is counted."""
    if is_counted(module):
        yield module
        return
    for child in module.children():
        yield from _counted_layers(child)


def _layer(conv: str, size: Size, kernel_size: int) -> nn.Module:
    geometry: dict[str, Any] = {"padding": kernel_size // 2, "groups": size.groups, "bias": False}
    return make_convolution(conv, size.dims, size.channels, size.channels, kernel_size, **geometry)


def _plains(size: Size, kernel_size: int) -> list[Candidate]:
    candidates = [Candidate(PLAIN, None, partial(_layer, "plain", size, kernel_size))]
    if kernel_size != 3:
        candidates.append(Candidate(PLAIN_3, None, partial(_layer, "plain", size, 3)))
    return candidates


def _operation_cases(
    sizes: Sequence[Size], backends: Sequence[str], peers: Sequence[str], precisions: Sequence[str], harmonic: bool
) -> Iterator[Case]:
    method, rest = ("harmonic", ", orders 0 1 2") if harmonic else ("ring_conv", "")
    for size in sizes:
        dims, channels, groups = size.dims, size.channels, size.groups
        for precision in precisions:
            for k in size.windows:
                make: Callable[[], nn.Module] = partial(RingConvolution, dims, channels, k, groups)
                if harmonic:
                    make = partial(_layer, "gmr_harmonic", size, k)
                ours = [Candidate(method, backend, make) for backend in backends]
                others = [
                    Candidate(peer, None, partial(make_peer, peer, dims, channels, k))
                    for peer in peers
                    if groups == 1 and (dims == 2 or peer != "e2cnn")
                ]
                everyone = (*ours, *_plains(size, k), *others)
                shape = (size.batch, channels, *(size.length,) * dims)
                yield Case("ring_conv", size.name(f"k={k}{rest}"), precision, shape, everyone)


def _layer_cases(sizes: Sequence[Size], backends: Sequence[str], precisions: Sequence[str]) -> Iterator[Case]:
    for size in sizes:
        for precision in precisions:
            for k in size.windows:
                ours = [
                    Candidate(name, backend, partial(_layer, conv, size, k))
                    for name, conv in LAYERS.items()
                    for backend in backends
                ]
                shape = (size.batch, size.channels, *(size.length,) * size.dims)
                yield Case("layers", size.name(f"k={k}"), precision, shape, (*ours, *_plains(size, k)))


def _net_candidates(make: Callable[..., nn.Module], windows: Any, backends: Sequence[str]) -> tuple[Candidate, ...]:
    candidates = [
        Candidate(conv, backend, partial(make, conv=conv, kernel_sizes=windows))
        for conv in ("gmr", "gmr_harmonic")
        for backend in backends
    ]
    candidates.append(Candidate(PLAIN, None, partial(make, conv="plain", kernel_sizes=windows)))
    if windows != 3:
        candidates.append(Candidate(PLAIN_3, None, partial(make, conv="plain", kernel_sizes=3)))
    return tuple(candidates)


def _net_cases(sizes: Sizes, backends: Sequence[str], precisions: Sequence[str]) -> Iterator[Case]:
    batch, size, width = sizes.resnet
    resnet = partial(gmr_resnet18, 2, 3, 10, width=width)
    length, features = sizes.unet
    unet = partial(GMRUNet, 3, 1, 2, features=features)
    for precision in precisions:
        everyone = _net_candidates(resnet, (9, 9, 5, 5), backends)
        name = f"gmr_resnet18 2D B{batch} {size}x{size} k=9 9 5 5"
        yield Case("nets", name, precision, (batch, 3, size, size), everyone)
        name = f"GMRUNet 3D B1 {'x'.join([str(length)] * 3)} k=3"
        yield Case("nets", name, precision, (1, 1, *(length,) * 3), _net_candidates(unet, 3, backends))


def make_cases(
    groups: Sequence[str],
    dims: Sequence[int],
    backends: Sequence[str],
    peers: Sequence[str] = (),
    on_cuda: bool = False,
    autocast: bool = False,
    quick: bool = False,
) -> list[Case]:
    """The cases of a run.

    Args:
        groups: of :data:`GROUPS`.
        dims: of 2 and 3.
        backends: of :func:`monai_gmr.available_backends`.
        peers: of :data:`PEERS`; they take part in the operation's cases.
        on_cuda: whether there are the large volumes too, in float32 and bfloat16.
        autocast: whether every case is there in bfloat16 too.
        quick: tiny sizes, for tests.

    Example:
        >>> [case.name for case in make_cases(["nets"], [3], ["dense"])]
        ['GMRUNet 3D B1 64x64x64 k=3']
    """
    sizes = QUICK if quick else FULL
    precisions = ("float32", "bfloat16") if autocast else ("float32",)
    cases: list[Case] = []
    if "ring_conv" in groups:
        cases += _operation_cases(sizes.operation, backends, peers, precisions, harmonic=False)
        cases += _operation_cases(sizes.harmonic, backends, peers, precisions, harmonic=True)
        if on_cuda and not quick:
            both = ("float32", "bfloat16")
            cases += _operation_cases(CUDA_OPERATION, backends, peers, both, harmonic=False)
    if "layers" in groups:
        cases += _layer_cases(sizes.layers, backends, precisions)
    if "nets" in groups:
        cases += _net_cases(sizes, backends, precisions)
    return [case for case in cases if case.dims in dims]
