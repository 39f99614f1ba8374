"""Partial group convolutions: fields on samples of a group, where each layer learns how much of the group it keeps."""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from torch import nn
from torch.func import functional_call

from monai_gmr.annotations import Device, Seed, checked_arguments
from monai_gmr.arguments import check_choice
from monai_gmr.networks.layers.conv_nd import DirectConvNd
from monai_gmr.networks.layers.partial_elements import GroupElements, PartialGroupElements
from monai_gmr.networks.layers.partial_kernels import HarmonicKernel, PartialKernel, SirenKernel
from monai_gmr.networks.layers.point_group_fields import check_fields
from monai_gmr.ops.autocast import without_autocast
from monai_gmr.ops.made_conv import MadeKernel
from monai_gmr.ops.memory_format import keep_format
from monai_gmr.ops.split_axis import split_axis
from monai_gmr.symmetry import field_channels, tap_spacing
from monai_gmr.symmetry.group_structure import GroupSpec
from monai_gmr.symmetry.sampled_group import SampledGroup, partial_group
from monai_gmr.utils import ConfigurationError

KERNELS = ("harmonic", "siren")
GivenElements = Annotated[PartialGroupElements | None, "the out_elements of another partial layer"]


def _checked_elements(
    name: str, elements: PartialGroupElements | None, spatial_dims: int
) -> PartialGroupElements | None:
    if elements is not None and elements.spatial_dims != spatial_dims:
        raise ConfigurationError(
            f"{name}={elements!r} transforms {elements.spatial_dims} axes: give elements of {spatial_dims}."
        )
    return elements


def _tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from itertools.chain(module.parameters(), module.buffers())
    # tensors computed by torch.nn.utils.prune and similar tools
    for each in module.modules():
        yield from (value for value in vars(each).values() if isinstance(value, torch.Tensor))


class PartialGroupConvNd(DirectConvNd):
    """Partial group convolution of any dimension; use :class:`PartialGroupConv2d` or :class:`PartialGroupConv3d`."""

    has_sampled_fields = True

    @checked_arguments
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Device | None = None,
        dtype: torch.dtype | None = None,
        *,
        group: GroupSpec | SampledGroup | None = None,
        samples: int | None = None,
        in_elements: GivenElements = None,
        out_elements: GivenElements = None,
        kernel: str = "harmonic",
        orders: Sequence[int] | None = None,
        frequencies: int | None = None,
        seed: Seed | None = None,
    ) -> None:
        geometry = (kernel_size, stride, padding, dilation, groups, padding_mode)
        super().__init__(in_channels, out_channels, *geometry, dtype)
        dims = self.spatial_dims
        check_choice("kernel", kernel, KERNELS)
        ins, outs = (
            _checked_elements(name, each, dims)
            for name, each in (("in_elements", in_elements), ("out_elements", out_elements))
        )
        if outs is None:
            whole = ins.group if group is None and ins is not None else partial_group(group, dims, samples)
            if ins is None:
                outs = PartialGroupElements(dims, whole, learned=False, seed=seed, device=device, dtype=dtype)
            else:
                outs = ins.following(whole)
                outs = outs.to(device=device, dtype=dtype)
        self.in_elements, self.out_elements = ins, outs
        self.out_order = outs.order
        for name in ("kernel_size", "stride", "dilation", "padding"):
            values = getattr(self, name)
            if not isinstance(values, str):
                outs.group.check_keeps(name, values)
        self.in_fields = in_channels if ins is None else field_channels("in_channels", in_channels, ins.group)
        self.out_fields = field_channels("out_channels", out_channels, outs.group)
        if self.in_fields % groups or self.out_fields % groups:
            raise ConfigurationError(
                f"groups={groups} must divide the {self.in_fields} fields of in_channels={in_channels} and the {self.out_fields} of "
                f"out_channels={out_channels}."
            )
        self.kernel = self._make_kernel(kernel, orders, frequencies=frequencies, device=device, dtype=dtype)
        self.bias = nn.Parameter(torch.empty(self.out_fields, device=device, dtype=dtype)) if bias else None
        self._finish_tables()
        self.reset_parameters()

    def _make_tables(self) -> dict:
        # the kernel and the elements have their own tables
        return {}

    def _make_kernel(self, kind: str, orders: Sequence[int] | None, **options: Any) -> PartialKernel:
        steps, ins = tap_spacing(self.kernel_size, None, self.dilation), self.in_elements
        options |= {"lifts": ins is None, "mirrors": self.out_elements.mirrors or (ins is not None and ins.mirrors)}
        fields = (self.out_fields, self.in_fields // self.groups)
        if kind == "harmonic":
            return HarmonicKernel(self.kernel_size, steps, *fields, orders=orders, **options)
        if orders is not None:
            raise ConfigurationError(f"orders={orders} is for kernel='harmonic': leave it out of kernel='siren'.")
        return SirenKernel(self.kernel_size, steps, *fields, **options)

    @property
    def weight(self) -> nn.Parameter:
        """The weights of the kernel, or of its last layer."""
        return self.kernel.weight

    def reset_parameters(self) -> None:
        """Draws fresh weights of the kernel and a fresh bias."""
        self.kernel.reset_parameters(1 if self.in_elements is None else self.in_elements.order)
        if self.bias is not None and not self.bias.is_meta:
            bound = 1 / math.sqrt(self.in_channels // self.groups * math.prod(self.kernel_size))
            nn.init.uniform_(self.bias, -bound, bound)

    def dense_kernel(self) -> torch.Tensor:
        """The kernel as ``torch.nn.ConvNd.weight``, with rows and columns over all elements, for the current samples."""
        # full precision also under autocast
        with without_autocast(self.kernel.weight):
            return self._made_kernel().tensor()

    def _made_kernel(self) -> MadeKernel:
        """The kernel, made from its parameters and the current samples."""
        weight = self.kernel.weight
        precision = torch.float64 if weight.dtype == torch.float64 else torch.float32
        with without_autocast(weight):
            orientations = self.out_elements().matrices.to(weight.device, precision)
            samples = [orientations]
            if self.in_elements is not None:
                taken = GroupElements(*(each.to(weight.device, precision) for each in self.in_elements()))
                # g^-1 h
                samples.append(orientations.transpose(1, 2).unsqueeze(1) @ taken.matrices)
                samples.append(taken.gates / taken.gates.sum())
        names, parameters = zip(*self.kernel.named_parameters())
        return MadeKernel(partial(self._kernel_of, names, len(samples)), (*samples, *parameters))

    def _kernel_of(self, names: Sequence[str], count: int, *tensors: torch.Tensor) -> torch.Tensor:
        """The kernel from ``count`` tensors of samples and the parameters ``names``."""
        orientations, *taken = tensors[:count]
        relative, share = taken or (None, None)
        parameters, own = dict(zip(names, tensors[count:])), dict(self.kernel.named_parameters())
        if all(each is own[name] for name, each in parameters.items()):
            kernel = self.kernel(orientations, relative)
        else:
            # parameters of a backward pass, during which another thread can use the module
            own_copy = copy.deepcopy(self.kernel, {id(each): each for each in _tensors_of(self.kernel)})
            kernel = functional_call(own_copy, parameters, (orientations, relative))
        if share is not None:
            kernel = kernel * share.unsqueeze(1)
        return kernel.to(self.kernel.weight.dtype).flatten(2, 3).flatten(0, 1).unflatten(2, self.kernel_size)

    def _dense_bias(self) -> torch.Tensor | None:
        """The bias of each channel, which is the bias of its field."""
        return None if self.bias is None else self.bias.repeat_interleave(self.out_order)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolves ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``."""
        input, padding = self._padded(input)
        return self._conv_by_kernel(input, self._made_kernel(), self.kernel_size, padding)

    def to_conv(self) -> nn.Module:
        """The equal ``torch.nn.ConvNd``, for deployment, in eval mode only."""
        if self.training:
            raise ConfigurationError(
                f"{type(self).__name__} draws its elements in train mode: call eval() before to_conv()."
            )
        return super().to_conv()

    def extra_repr(self) -> str:
        start = "scalars" if self.in_elements is None else repr(self.in_elements.group)
        return f"{nn.Conv2d.extra_repr(self)}, {start} to {self.out_elements.group!r}"  # type: ignore[arg-type]


class PartialGroupConv2d(PartialGroupConvNd):
    r"""Group convolution onto a learned part of a group: full equivariance, none, or as much as the data have.

    .. math::
        y_{o,g} = b_o + \sum_h \gamma_h \sum_i w_{oi}(g^{-1} t,\; g^{-1} h) \star x_{i,h}, \qquad \sum_h \gamma_h = 1

    A field has one channel per element of a list: ``out_elements``, a :class:`PartialGroupElements` with a learned extent; ``h`` are the
    elements of the input, with weights :math:`\gamma`. The layer that outputs a field and those that take it share the list:
    ``in_elements`` of a layer is ``out_elements`` of the one before. The first layer, without ``in_elements``, lifts an image to the whole
    group. Tensors have ``fields * order`` channels, field by field, as in :class:`PointGroupConv2d`.

    With the whole group the layer is equivariant, in eval and in train mode: exactly to the symmetries of the grid under which its samples
    are closed (4 if it divides their number; in 3D 432 with 24 samples, 23 with 12, 222 with 4), to others as closely as the taps sample
    its kernels. With extent 0 it is an ordinary convolution.

    In train mode :func:`~monai_gmr.networks.layers.draw_elements` draws new samples; nets of this library do so in each forward pass.

    Shape:
        - input: ``(batch, in_channels, *spatial)`` or ``(in_channels, *spatial)``
        - output: as ``torch.nn.Conv2d``'s
        - ``weight``: ``(out_fields, in_fields / groups, functions)``; ``bias``: ``(out_fields,)``

    Args:
        in_channels, out_channels: channels of the input and of the output, multiples of the numbers of elements.
        groups: blocks of fields that are convolved separately.
        group: "SE(2)" (rotations) or "E(2)" (also mirror images); or a group of the grid (:func:`~monai_gmr.symmetry.named_group`), with a
            learned probability for each element; default: the group of ``in_elements``, else "SE(2)".
        samples: number of rotations of a continuous group; default 8.
        in_elements: ``out_elements`` of the layer before; default: the input is scalars, which are lifted to the whole group.
        out_elements: elements of another layer to use for the output; default: a new, learned part of the group.
        kernel: "harmonic": Gaussians of the radius times harmonics of the direction times functions of the relative rotation, which are
            rotated exactly; "siren": a small network of sines.
        orders: orders of the harmonics of direction, 0 to 3; default 0 to 2, or only 0 for windows of 1.
        frequencies: highest frequency (order in 3D) of the functions of relative rotations, 0 to 3; default 2, in 3D 1.
        seed: seed of the samples; default: torch's global generator.

    All other arguments are those of :class:`GMRConv2d`, ``padding="symmetric"`` included.

    Raises:
        ConfigurationError: if arguments or input do not fit; the message says what does.

    Example:
        >>> lift = PartialGroupConv2d(1, 16, 5, padding=2, group="SE(2)", samples=8)
        >>> layer = PartialGroupConv2d(16, 8, 5, padding=2, in_elements=lift.out_elements)
        >>> net = torch.nn.Sequential(lift, torch.nn.ReLU(), layer, PartialGroupPool(layer.out_elements)).eval()
        >>> x = torch.rand(1, 1, 9, 12)
        >>> net(x).shape, torch.allclose(net(x).rot90(1, (2, 3)), net(x.rot90(1, (2, 3))), atol=1e-6)
        (torch.Size([1, 1, 9, 12]), True)

    Source:
        Romero and Lohit, Learning partial equivariances from data, arXiv 2110.10211.
    """

    spatial_dims = 2


class PartialGroupConv3d(PartialGroupConvNd):
    """:class:`PartialGroupConv2d` in three dimensions, on "SO(3)" (default) or "O(3)": rotations by at most a learned angle about any axis.

    ``samples`` is 24 by default: the rotations of the cube, contracted to the learned part.
    """

    spatial_dims = 3


class PartialGroupPool(nn.Module):
    """Maximum or mean of fields over the elements of a part of a group, weighted by their gates, to scalars.

    Args:
        elements: ``out_elements`` of the layer before.
        reduce: "max": of the values plus the logarithm of the gates; "mean": weighted by the gates.

    Shape:
        - input: ``(batch, fields * order, *spatial)``
        - output: ``(batch, fields, *spatial)``

    Example:
        >>> elements = PartialGroupElements(2, "SE(2)", samples=4)
        >>> PartialGroupPool(elements)(torch.arange(8.0).reshape(1, 8, 1, 1)).flatten()
        tensor([3., 7.])
    """

    has_sampled_fields = True

    @checked_arguments
    def __init__(self, elements: PartialGroupElements, reduce: str = "max") -> None:
        super().__init__()
        check_choice("reduce", reduce, ("max", "mean"))
        self.elements, self.reduce = elements, reduce

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reduce the elements of each field."""
        dims = self.elements.spatial_dims
        check_fields(self, x, dims, self.elements.order)
        return keep_format(self._reduced(x, x.dim() - dims - 1), x)

    def _reduced(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        x, dims = split_axis(x, axis, self.elements.order), self.elements.spatial_dims
        gates = self.elements().gates.to(x.device, torch.promote_types(x.dtype, torch.float32))
        gates = gates.reshape([-1] + [1] * dims)
        if self.reduce == "mean":
            return (x * (gates / gates.sum()).to(x.dtype)).sum(axis + 1)
        kept = gates > 0
        # 1 where the logarithm is undefined, so that gradients stay finite
        handicap = torch.where(kept, gates, torch.ones_like(gates)).log().to(x.dtype)
        return torch.where(kept, x + handicap, -math.inf).amax(axis + 1)

    def extra_repr(self) -> str:
        return f"reduce={self.reduce!r}"
