"""Arguments of a backend: the tensors of a kernel, and a value object that describes the convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from monai_gmr.ops.autocast import autocast_dtype
from monai_gmr.ops.memory_format import has_channels_last
from monai_gmr.ops.recorded import is_recorded


def output_sizes(
    sizes: Sequence[int], window: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Sizes of a convolution's result, as in ``torch.nn.ConvNd``; all arguments have one number per axis."""
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(sizes, window, stride, padding, dilation)]


class ResponseTables(NamedTuple):
    """Index tables of a group's responses by component and channel, int64."""

    profile: torch.Tensor  # (components,), the radial profile of each
    channel: torch.Tensor  # (responses,), the output channel of each
    component: torch.Tensor  # (responses,), its component


class RingKernel(NamedTuple):
    """The tensors that a radial or harmonic kernel is made of."""

    weight: torch.Tensor  # (out_channels, in_channels / groups, rings); transposed: in and out are exchanged
    basis: torch.Tensor  # (rings, shells); of a harmonic convolution (orders, rings, shells)
    shells: torch.Tensor  # integers of the window's shape, the shell of each tap
    bias: torch.Tensor | None = None  # (out_channels,)
    angular: torch.Tensor | None = None  # (components, taps), constants; None for a radial kernel
    num_shells: int | None = None  # number of shells in use: basis is zero on the others
    responses: ResponseTables | None = None  # of a harmonic convolution
    # only of a convolution that keeps a subgroup:
    linear: torch.Tensor | None = None  # (groups, out_channels / groups, responses of the orders above 0 of a group)
    chiral: torch.Tensor | None = (
        None  # (groups, out_channels / groups), factors of the terms whose sign mirroring changes
    )


class Orders(NamedTuple):
    """Channels of one group of a harmonic convolution, by order."""

    norms: tuple[int, ...]  # number of channels that are lengths of responses; for order 0, number of channels
    products: tuple[int, ...]  # number of channels that are inner products with the first of those
    components: tuple[int, ...]  # of a response; 0 for order 0

    def channels(self) -> list[int]:
        """Channels of each order."""
        return [n + m for n, m in zip(self.norms, self.products)]

    def num_responses(self) -> int:
        """Total number of components of all channels."""
        return sum(n * max(count, 1) for n, count in zip(self.channels(), self.components))

    def above_zero(self) -> Orders:
        """These orders without the channels of order 0."""
        norms, products = (tuple(n if count else 0 for n, count in zip(sizes, self.components)) for sizes in self[:2])
        return self._replace(norms=norms, products=products)


class Call(NamedTuple):
    """Description of one call of a convolution, from which a backend is chosen. Lengths are in voxels, one per axis."""

    kernel_size: tuple[int, ...]
    channels: tuple[int, int]  # of input and output; for a harmonic convolution the output counts all responses
    stride: Sequence[int] = (1, 1, 1)
    padding: Sequence[int] = (0, 0, 0)
    dilation: Sequence[int] = (1, 1, 1)
    output_padding: Sequence[int] = (0, 0, 0)
    groups: int = 1  # blocks of channels that do not mix
    transposed: bool = False
    angular: bool = False  # whether the kernel has angular components
    orders: Orders | None = None  # of a harmonic convolution
    kept: bool = False  # whether it has linear or chiral terms
    device: torch.device = torch.device("cpu")  # of the input
    precision: torch.dtype = torch.float32  # data type of the computation
    weight_precision: torch.dtype = torch.float32  # data type of the weight
    batch: int = 1  # number of images
    sizes: Sequence[int] = ()  # of an image
    channels_last: bool = False  # whether the input has its channels last in memory
    gradients: bool = True  # whether gradients are recorded
    recorded: bool = False  # whether the call is recorded in a graph or runs under ``torch.func``
    shells: torch.Tensor | None = None  # the shell of each tap

    @classmethod
    def of_input(
        cls,
        x: torch.Tensor,
        kernel_size: tuple[int, ...],
        channels: tuple[int, int],
        factors: Sequence[torch.Tensor | None] = (),
        **more: Any,
    ) -> Call:
        """A call with attributes from an input ``(batch, in_channels, *sizes)`` and ``factors``, the tensors of a kernel; others by name.

        Example:
            >>> call = Call.of_input(torch.zeros(2, 3, 8, 9), (3, 3), (3, 4))
            >>> call.batch, tuple(call.sizes), call.voxels(), call.output_sizes()
            (2, (8, 9), 144, [6, 7])
        """
        recorded, precision = is_recorded(x, *factors), x.dtype
        if precision.itemsize <= 4:
            precision = autocast_dtype(x) or precision
        known: dict[str, Any] = {"device": x.device, "precision": precision, "batch": x.shape[0], "sizes": x.shape[2:]}
        known |= {"gradients": torch.is_grad_enabled(), "recorded": recorded}
        if "channels_last" not in more:
            known["channels_last"] = not recorded and has_channels_last(x)
        return cls(kernel_size, channels, **known, **more)

    def conv_arguments(self) -> dict[str, Any]:
        """Arguments of torch's convolution, by name.

        Example:
            >>> Call((3,), (1, 2), (1,), (1,), (1,)).conv_arguments()
            {'stride': [1], 'padding': [1], 'dilation': [1], 'groups': 1}
        """
        lengths = {"stride": list(self.stride), "padding": list(self.padding), "dilation": list(self.dilation)}
        return lengths | {"groups": self.groups}

    def num_outputs(self) -> int:
        """Channels of the result; for a harmonic convolution, channels of its scalars."""
        return self.channels[1] if self.orders is None else self.groups * sum(self.orders.channels())

    def is_symmetric(self) -> bool:
        """Whether the window of shells is its own mirror image."""
        numbers = [] if self.shells is None else self.shells.flatten().tolist()
        return numbers == numbers[::-1]

    def voxels(self) -> int:
        """Number of voxels of the input, over the batch."""
        return self.batch * math.prod(self.sizes)

    def reach(self) -> list[int]:
        """Distance between the window's first and last tap in voxels, one number per axis."""
        return [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size)]

    def output_sizes(self) -> list[int]:
        """Sizes of the result, as in ``torch.nn.ConvNd`` and ``torch.nn.ConvTransposeNd``."""
        if not self.transposed:
            return output_sizes(self.sizes, self.kernel_size, self.stride, self.padding, self.dilation)
        axes = zip(self.sizes, self.reach(), self.stride, self.padding, self.output_padding)
        return [(n - 1) * s + 1 + reach - 2 * p + more for n, reach, s, p, more in axes]
