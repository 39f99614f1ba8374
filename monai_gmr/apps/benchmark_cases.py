"""What the benchmark compares: the cases, and the candidates of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from monai_gmr.apps.benchmark_layers import RingConvolution
from monai_gmr.networks.layers.factories import make_convolution
from monai_gmr.networks.nets import GMRUNet, gmr_resnet18

GROUPS = ("ring_conv", "layers", "nets")
LAYERS = {"GMRConv": "gmr", "GMRHarmonicConv": "gmr_harmonic", "SREConv": "sre"}
PLAIN, PLAIN_3 = "plain", "plain k=3"


class Candidate(NamedTuple):
    """One module of a case: what it computes, such as "ring_conv" or "GMRConv", the one of :func:`monai_gmr.ops.available_backends` that
    is forced while it runs, ``None`` where there is no choice, and what makes it."""

    method: str
    backend: str | None
    make: Callable[[], nn.Module]

    @property
    def label(self) -> str:
        """Its name in the table."""
        if self.backend is None:
            return self.method
        return self.backend if self.method in ("ring_conv", "harmonic") else f"{self.method}, {self.backend}"


class Case(NamedTuple):
    """One input of shape ``(batch, channels, *spatial)`` and all candidates that are compared on it; the group is one of :data:`GROUPS`,
    the name says dimensions, shape and window, and a precision other than "float32" is that of autocast."""

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
    """One input, as wide as the output, the length of its axes, and the windows and groups of the convolutions that are measured on it."""

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
        """The name of a case of this size."""
        lengths = "x".join([str(self.length)] * self.dims)
        groups = f", groups {self.groups}" if self.groups > 1 else ""
        return f"{self.dims}D B{self.batch} C{self.channels} {lengths} {rest}{groups}"


class Sizes(NamedTuple):
    """What is measured in each group."""

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


def _layer(conv: str, size: Size, kernel_size: int) -> nn.Module:
    geometry: dict[str, Any] = {"padding": kernel_size // 2, "groups": size.groups, "bias": False}
    return make_convolution(conv, size.dims, size.channels, size.channels, kernel_size, **geometry)


def _plains(make: Callable[[Any], nn.Module], windows: Any) -> list[Candidate]:
    """The plain counterpart of the same windows, and of window 3."""
    kinds = {PLAIN: windows} | ({PLAIN_3: 3} if windows != 3 else {})
    return [Candidate(name, None, partial(make, window)) for name, window in kinds.items()]


def _each(sizes: Sequence[Size], precisions: Sequence[str]) -> list[tuple[Size, str, int]]:
    return [(size, precision, window) for size in sizes for precision in precisions for window in size.windows]


def _operation_cases(
    sizes: Sequence[Size], backends: Sequence[str], precisions: Sequence[str], harmonic: bool
) -> Iterator[Case]:
    method, rest = ("harmonic", ", orders 0 1 2") if harmonic else ("ring_conv", "")
    for size, precision, k in _each(sizes, precisions):
        make: Callable[[], nn.Module] = partial(RingConvolution, size.dims, size.channels, k, size.groups)
        if harmonic:
            make = partial(_layer, "gmr_harmonic", size, k)
        ours = [Candidate(method, backend, make) for backend in backends]
        candidates = (*ours, *_plains(partial(_layer, "plain", size), k))
        yield Case("ring_conv", size.name(f"k={k}{rest}"), precision, size.shape, candidates)


def _layer_cases(sizes: Sequence[Size], backends: Sequence[str], precisions: Sequence[str]) -> Iterator[Case]:
    for size, precision, k in _each(sizes, precisions):
        ours = [
            Candidate(name, backend, partial(_layer, conv, size, k))
            for name, conv in LAYERS.items()
            for backend in backends
        ]
        yield Case(
            "layers", size.name(f"k={k}"), precision, size.shape, (*ours, *_plains(partial(_layer, "plain", size), k))
        )


def _net_candidates(make: Callable[..., nn.Module], windows: Any, backends: Sequence[str]) -> tuple[Candidate, ...]:
    ours = [
        Candidate(conv, backend, partial(make, conv=conv, kernel_sizes=windows))
        for conv in ("gmr", "gmr_harmonic")
        for backend in backends
    ]
    return (*ours, *_plains(lambda window: make(conv="plain", kernel_sizes=window), windows))


def _net_cases(sizes: Sizes, backends: Sequence[str], precisions: Sequence[str]) -> Iterator[Case]:
    batch, size, width = sizes.resnet
    length, features = sizes.unet
    resnet = _net_candidates(partial(gmr_resnet18, 2, 3, 10, width=width), (9, 9, 5, 5), backends)
    unet = _net_candidates(partial(GMRUNet, 3, 1, 2, features=features), 3, backends)
    for precision in precisions:
        name = f"gmr_resnet18 2D B{batch} {size}x{size} k=9 9 5 5"
        yield Case("nets", name, precision, (batch, 3, size, size), resnet)
        name = f"GMRUNet 3D B1 {'x'.join([str(length)] * 3)} k=3"
        yield Case("nets", name, precision, (1, 1, *(length,) * 3), unet)


def make_cases(
    groups: Sequence[str],
    dims: Sequence[int],
    backends: Sequence[str],
    on_cuda: bool = False,
    autocast: bool = False,
    quick: bool = False,
) -> list[Case]:
    """The cases of a run.

    Args:
        groups, dims: of :data:`GROUPS`, and of 2 and 3.
        backends: of :func:`monai_gmr.ops.available_backends`.
        on_cuda: whether to add large volumes, in float32 and bfloat16.
        autocast: whether to add every case in bfloat16.
        quick: tiny sizes, for tests.

    Example:
        >>> [case.name for case in make_cases(["nets"], [3], ["dense"])]
        ['GMRUNet 3D B1 64x64x64 k=3']
    """
    sizes = QUICK if quick else FULL
    precisions = ("float32", "bfloat16") if autocast else ("float32",)
    cases: list[Case] = []
    if "ring_conv" in groups:
        cases += _operation_cases(sizes.operation, backends, precisions, harmonic=False)
        cases += _operation_cases(sizes.harmonic, backends, precisions, harmonic=True)
        if on_cuda and not quick:
            cases += _operation_cases(CUDA_OPERATION, backends, ("float32", "bfloat16"), harmonic=False)
    if "layers" in groups:
        cases += _layer_cases(sizes.layers, backends, precisions)
    if "nets" in groups:
        cases += _net_cases(sizes, backends, precisions)
    return [case for case in cases if case.dims in dims]
