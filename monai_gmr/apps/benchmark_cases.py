"""The cases of the benchmark and the candidates compared in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from monai_gmr.inferers import SymmetryInferer
from monai_gmr.networks.layers.factories import make_convolution
from monai_gmr.networks.nets import GMRUNet, gmr_resnet18
from monai_gmr.ops import ring_conv
from monai_gmr.ops.ring_conv import ring_conv_transpose

GROUPS = ("ring_conv", "layers", "point_groups", "nets", "test_time")
# only a forward pass without gradients is measured
FORWARD_ONLY = ("test_time",)
PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
LAYERS: dict[str, str | tuple[str, dict[str, str]]] = {
    "GMRConv": "gmr",
    "GMRHarmonicConv": "gmr_harmonic",
    "GMRHarmonicConv, keeps rotations": ("gmr_harmonic", {"keeps": "rotations"}),
    "GMRHarmonicConv, keeps 1": ("gmr_harmonic", {"keeps": "1"}),
    "SREConv": "sre",
}
FILTERS = ("full", "g", "gc")
PLAIN, PLAIN_3 = "plain", "plain k=3"


class RingConvolution(nn.Module):
    """The operation :func:`monai_gmr.ops.ring_conv` without a layer: as many outputs as inputs, the initial basis of a ``GMRConv2d``."""

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
        layer: Any = make_convolution("gmr", spatial_dims, channels, channels, kernel_size, groups=groups)
        self.weight = nn.Parameter(layer.weight.detach())
        self.values = nn.Parameter(layer.basis().detach())
        self.padding, self.num_shells, self.groups = kernel_size // 2, layer.num_shells, groups
        self.register_buffer("shells", layer.shells)

    def basis(self) -> torch.Tensor:
        """Returns the functions on shells, shape ``(rings, shells)``."""
        return self.values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(batch, channels, *spatial)`` to ``(batch, channels, *spatial_out)``."""
        arrays = (self.weight, self.basis(), self.shells)
        options = {name: getattr(self, name) for name in ("stride", "padding", "groups", "num_shells")}
        if self.transposed:
            return ring_conv_transpose(x, *arrays, output_padding=self.stride - 1, **options)
        return ring_conv(x, *arrays, **options)


class Averaged(nn.Module):
    """A net whose outputs are averaged over all symmetries of the grid, by :class:`monai_gmr.inferers.SymmetryInferer`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.inferer = net, SymmetryInferer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(batch, channels, *spatial)`` to the net's averaged output."""
        return self.inferer(x, self.net)


class Candidate(NamedTuple):
    """A module of a case: ``method`` names what it computes, such as "ring_conv" or "GMRConv"; ``backend``, one of
    :func:`monai_gmr.ops.available_backends`, is forced while it runs, ``None`` if there is no choice; ``make`` builds it."""

    method: str
    backend: str | None
    make: Callable[[], nn.Module]

    @property
    def label(self) -> str:
        """Name in the table."""
        if self.backend is None:
            return self.method
        return self.backend if self.method in ("ring_conv", "harmonic") else f"{self.method}, {self.backend}"


class Case(NamedTuple):
    """An input of shape ``(batch, channels, *spatial)`` and all candidates that are compared on it. ``group`` is one of :data:`GROUPS`,
    ``name`` gives dimensions, shape and window, ``precision`` is one of :data:`PRECISIONS`: "tf32" is float32 that a GPU multiplies in
    TF32, half precisions run under autocast."""

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
    """An input with as many channels as the output, and the windows and groups of the convolutions that are measured on it."""

    dims: int
    batch: int
    channels: int
    length: int
    windows: tuple[int, ...]
    groups: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """``(batch, channels, *spatial)``."""
        return (self.batch, self.channels, *(self.length,) * self.dims)

    def name(self, rest: str) -> str:
        """Returns the name of a case of this size."""
        lengths = "x".join([str(self.length)] * self.dims)
        groups = f", groups {self.groups}" if self.groups > 1 else ""
        return f"{self.dims}D B{self.batch} C{self.channels} {lengths} {rest}{groups}"


class Sizes(NamedTuple):
    """The sizes that are measured in each group."""

    operation: tuple[Size, ...]
    harmonic: tuple[Size, ...]
    layers: tuple[Size, ...]
    point_groups: tuple[tuple[Size, str], ...]  # and the name of the point group
    resnet: tuple[int, int, int]  # batch, length, width
    unet: tuple[int, int, tuple[int, ...]]  # batch, length, features
    volume: int  # length of the volume on which nets with these features run for all views


FULL = Sizes(
    operation=(
        *(Size(2, 8, 64, 64, (3, 5, 9)), Size(3, 1, 32, 48, (3, 5, 7))),
        *(Size(2, 8, 64, 64, (9,), groups) for groups in (4, 64)),
        *(Size(3, 1, 32, 48, (3, 5), groups) for groups in (4, 32)),
    ),
    harmonic=(Size(3, 1, 32, 48, (3, 5)),),
    layers=(Size(2, 8, 64, 64, (3, 5, 9)), Size(3, 1, 32, 48, (3, 5))),
    point_groups=(
        *((Size(2, 8, 64, 64, (3, 5)), name) for name in ("4mm", "4")),
        *((Size(3, 1, 48, 48, (3, 5)), name) for name in ("m-3m", "4/mmm")),
    ),
    resnet=(16, 64, 64),
    unet=(1, 64, (16, 32, 64)),
    volume=64,
)
QUICK = Sizes(
    operation=(Size(2, 1, 4, 8, (3, 5)), Size(3, 1, 4, 6, (3,)), Size(3, 1, 4, 6, (3,), 2)),
    harmonic=(Size(3, 1, 4, 6, (3,)),),
    layers=(Size(2, 1, 4, 8, (3,)), Size(3, 1, 4, 6, (3,))),
    point_groups=((Size(2, 1, 8, 8, (3,)), "4mm"), (Size(3, 1, 8, 6, (3,)), "mmm")),
    resnet=(2, 16, 4),
    unet=(1, 8, (2, 4)),
    volume=6,
)
VOLUMES = tuple((channels, length) for channels in (32, 64) for length in (96, 128))
CUDA = FULL._replace(
    operation=(*(Size(3, 1, *each, (5, 7)) for each in VOLUMES), *FULL.operation),
    harmonic=(*(Size(3, 1, *each, (3, 5)) for each in VOLUMES), *FULL.harmonic),
    unet=(2, 96, (32, 64, 128)),
    volume=128,
)


def _layer(conv: str | tuple, size: Size, kernel_size: int) -> nn.Module:
    geometry: dict[str, Any] = {"padding": kernel_size // 2, "groups": size.groups, "bias": False}
    return make_convolution(conv, size.dims, size.channels, size.channels, kernel_size, **geometry)


def _candidates(
    methods: Mapping[str, Callable[[], nn.Module]],
    backends: Sequence[str],
    plain: Callable[[Any], nn.Module],
    windows: Any,
) -> tuple[Candidate, ...]:
    """Returns every method with every backend, their plain counterpart with the same windows, and the plain one with window 3."""
    ours = [Candidate(method, backend, make) for method, make in methods.items() for backend in backends]
    plains = {PLAIN: windows} | ({PLAIN_3: 3} if windows != 3 else {})
    return (*ours, *(Candidate(name, None, partial(plain, window)) for name, window in plains.items()))


def _size_cases(method: str, sizes: Sequence[Size], backends: Sequence[str], precision: str) -> Iterator[Case]:
    """Yields cases of the operation, if ``method`` is "ring_conv" or "harmonic", or of the layers."""
    for size, k in [(one, k) for one in sizes for k in one.windows]:
        make: Callable[[], nn.Module] = partial(RingConvolution, size.dims, size.channels, k, size.groups)
        methods, rest = {method: make}, ""
        if method == "harmonic":
            methods, rest = {method: partial(_layer, "gmr_harmonic", size, k)}, ", orders 0 1 2"
        elif method == "layers":
            methods = {name: partial(_layer, conv, size, k) for name, conv in LAYERS.items()}
        group = "layers" if method == "layers" else "ring_conv"
        candidates = _candidates(methods, backends, partial(_layer, "plain", size), k)
        yield Case(group, size.name(f"k={k}{rest}"), precision, size.shape, candidates)


def _point_group_cases(sizes: Sequence[tuple[Size, str]], precision: str) -> Iterator[Case]:
    """Yields cases of group convolutions from fields to fields, with every filter, and a plain convolution with as many channels."""
    for size, name in sizes:
        for k in size.windows:
            convs = {kind: ("group", {"group": name, "filter": kind}) for kind in FILTERS}
            ours = [Candidate(f"filter {kind}", "auto", partial(_layer, conv, size, k)) for kind, conv in convs.items()]
            plain = Candidate(PLAIN, None, partial(_layer, "plain", size, k))
            yield Case("point_groups", size.name(f"k={k} {name}"), precision, size.shape, (*ours, plain))


def _net_cases(sizes: Sizes, backends: Sequence[str], precision: str) -> Iterator[Case]:
    batch, size, width = sizes.resnet
    images, length, features = sizes.unet
    resnet, unet = partial(gmr_resnet18, 2, 3, 10, width=width), partial(GMRUNet, 3, 1, 2, features=features)

    def candidates(make: Callable[..., nn.Module], windows: Any) -> tuple[Candidate, ...]:
        methods = {conv: partial(make, conv=conv, kernel_sizes=windows) for conv in ("gmr", "gmr_harmonic")}
        return _candidates(methods, backends, lambda window: make(conv="plain", kernel_sizes=window), windows)

    name = f"gmr_resnet18 2D B{batch} {size}x{size} k=9 9 5 5"
    yield Case("nets", name, precision, (batch, 3, size, size), candidates(resnet, (9, 9, 5, 5)))
    name = f"GMRUNet 3D B{images} {'x'.join([str(length)] * 3)} k=3"
    yield Case("nets", name, precision, (images, 1, *(length,) * 3), candidates(unet, 3))


def _test_time_cases(sizes: Sizes, precision: str) -> Iterator[Case]:
    """Yields cases of one pass of an equivariant net, one pass of a plain net, and a plain net averaged over all 48 grid symmetries."""
    make = partial(GMRUNet, 3, 1, 2, features=sizes.unet[2])
    ours = [Candidate(conv, "auto", partial(make, conv=conv)) for conv in ("gmr", "gmr_harmonic")]
    averaged = Candidate("plain, 48 views", None, lambda: Averaged(make(conv="plain")))
    candidates = (*ours, Candidate(PLAIN, None, partial(make, conv="plain")), averaged)
    lengths = (sizes.volume,) * 3
    yield Case("test_time", f"GMRUNet 3D B1 {'x'.join(map(str, lengths))}", precision, (1, 1, *lengths), candidates)


def make_cases(
    groups: Sequence[str],
    dims: Sequence[int],
    backends: Sequence[str],
    on_cuda: bool = False,
    precisions: Sequence[str] = ("float32",),
    quick: bool = False,
) -> list[Case]:
    """Returns the cases of a run, one precision after the other: with ``on_cuda`` also large volumes, with ``quick`` tiny sizes."""
    sizes = QUICK if quick else CUDA if on_cuda else FULL
    cases: list[Case] = []
    for precision in precisions:
        if "ring_conv" in groups:
            cases += _size_cases("ring_conv", sizes.operation, backends, precision)
            cases += _size_cases("harmonic", sizes.harmonic, backends, precision)
        if "layers" in groups:
            cases += _size_cases("layers", sizes.layers, backends, precision)
        if "point_groups" in groups:
            cases += _point_group_cases(sizes.point_groups, precision)
        if "nets" in groups:
            cases += _net_cases(sizes, backends, precision)
        if "test_time" in groups:
            cases += _test_time_cases(sizes, precision)
    return [case for case in cases if case.dims in dims]
