"""Multiply-adds and bytes of convolutions, by the way in which each backend computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from benchmark_peers import SteerableConvolution
from torch import nn

from monai_gmr.apps.benchmark_cases import RingConvolution
from monai_gmr.networks.layers.gmr_conv import GMRConvNd
from monai_gmr.networks.layers.gmr_harmonic_conv import GMRHarmonicConvNd
from monai_gmr.ops.cpu.ring_kernels import choose_sums
from monai_gmr.ops.cpu.tiles import Window

# voxels of a line, for which additions are counted
LINE = 64
COUNTED_BACKENDS = (None, "dense", "cpp", "triton")
COUNTED_LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(GMRConvNd, RingConvolution, SteerableConvolution),
)


class RadialPart(NamedTuple):
    """The numbers by which the kernel of one order is counted.

    Attributes:
        taps: of the window.
        nonzero_taps: on shells where the kernel is not zero.
        shells: where the kernel is not zero.
        in_channels, out_channels: all of them, not those of a group.
        components: of a response.
        groups: blocks of channels that do not see each other.
        rings: weights of a pair of channels.
        additions: of backend "cpp", for each voxel and input channel.
    """

    taps: int
    nonzero_taps: int
    shells: int
    in_channels: int
    out_channels: int
    components: int
    groups: int
    rings: int
    additions: int

    def operations(self, voxels: int, backend: str) -> int:
        """Multiply-adds of a forward pass.

        Args:
            voxels: of the output, over the batch.
            backend: "dense" multiplies at every tap. "cpp" and "triton" add up the taps of each shell, mix the sums to rings, then
                channels. Of an order above 0 "cpp" multiplies first, and then adds pairs of mirrored taps, each with the factors of all
                components; "triton" has sums for every component.

        Example:
            >>> part = RadialPart(9, 9, 3, 4, 8, 1, 1, rings=2, additions=7)
            >>> [part.operations(1, backend) for backend in ("dense", "cpp", "triton")]
            [288, 116, 124]
        """
        pairs = self.in_channels * self.out_channels // self.groups
        if backend == "dense":
            return voxels * self.components * self.taps * pairs
        if self.components == 1:
            additions = self.additions if backend == "cpp" else self.nonzero_taps
            return voxels * (self.in_channels * (additions + self.rings * self.shells) + self.rings * pairs)
        if backend == "cpp":
            mirrored = self.nonzero_taps // 2 * (1 + self.components) * self.out_channels
            return voxels * (self.shells * pairs + mirrored)
        return voxels * self.components * (self.in_channels * self.nonzero_taps + self.shells * pairs)


def _radial_part(layer: Any, basis: torch.Tensor, channels: int, components: int) -> RadialPart:
    used = torch.nonzero(basis.detach().abs().sum(0))
    shells, groups = int(used.max()) + 1 if len(used) else 0, layer.groups
    window = Window.of(layer.shells, shells, [1] * layer.shells.dim())
    additions = round(choose_sums(window, LINE).additions(LINE, window.shape[-1] - 1))
    taps, nonzero = layer.shells.numel(), int((layer.shells < shells).sum())
    ins, rings = layer.weight.shape[1] * groups, basis.shape[0]
    return RadialPart(taps, nonzero, shells, ins, channels, components, groups, rings, additions)


def radial_parts(layer: Any) -> list[RadialPart]:
    """The numbers of each order of a radial layer; a layer without orders has one part."""
    if not isinstance(layer, GMRHarmonicConvNd):
        return [_radial_part(layer, layer.basis(), layer.weight.shape[0], 1)]
    profiles = layer.radial_profiles()
    orders = zip(profiles, layer.channels, layer.components)
    return [_radial_part(layer, profile, count * layer.groups, m) for profile, count, m in orders if count]


def layer_operations(layer: Any, voxels: int, backend: str | None) -> int:
    """Multiply-adds of a convolution's forward pass.

    Args:
        layer: one of :data:`COUNTED_LAYERS`, or a layer of GMR-Conv or SRE-Conv.
        voxels: of the output, over the batch.
        backend: the one that runs a radial layer, of :data:`COUNTED_BACKENDS`.

    Example:
        >>> layer_operations(nn.Conv2d(4, 8, 3), 100, None), layer_operations(RingConvolution(2, 8, 3), 100, "triton")
        (28800, 24800)
    """
    if isinstance(layer, (GMRConvNd, RingConvolution)):
        return sum(part.operations(voxels, backend or "dense") for part in radial_parts(layer))
    taps, groups = math.prod(layer.kernel_size), getattr(layer, "groups", 1)
    if type(layer).__name__ == "GMR_Conv2d" and layer.dw_fwd:
        # GMR-Conv, in 2D alone: every input channel with every ring's window, then products of rings and channels
        return layer.num_rings * layer.in_channels * (taps + layer.out_channels) * voxels
    return taps * layer.in_channels * layer.out_channels * voxels // groups


def _counted_layers(module: nn.Module) -> Iterator[Any]:
    """The convolutions, not those inside one that is counted."""
    if isinstance(module, COUNTED_LAYERS) or type(module).__name__.startswith(("GMR_Conv", "SRE_Conv")):
        yield module
        return
    for child in module.children():
        yield from _counted_layers(child)


def count_cost(module: nn.Module, forward: Callable[[], Any], backend: str | None) -> tuple[int | None, int]:
    """Multiply-adds of the convolutions of a forward pass, and the bytes that they move at least.

    Args:
        module: a convolution or a net of convolutions.
        forward: runs it.
        backend: the one that runs radial layers.

    Returns:
        the multiply-adds (``None`` for a backend whose count is not known), and the bytes of input, output and weights of each
        convolution, each once.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.ReLU())
        >>> count_cost(net, lambda: net(torch.rand(1, 2, 3, 3)), None)
        (36, 160)
    """
    operations = moved = 0

    def hook(layer: Any, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal operations, moved
        if backend in COUNTED_BACKENDS:
            channels = getattr(layer, "out_channels", None) or layer.weight.shape[0]
            operations += layer_operations(layer, output.numel() // channels, backend)
        arrays = [inputs[0], output, *layer.parameters()]
        moved += sum(array.numel() * array.element_size() for array in arrays)

    hooks = [layer.register_forward_hook(hook) for layer in _counted_layers(module)]
    try:
        forward()
    finally:
        for handle in hooks:
            handle.remove()
    return (operations if backend in COUNTED_BACKENDS else None), moved
