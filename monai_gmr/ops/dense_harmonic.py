"""Reference of a harmonic convolution, slab by slab: neither pass holds all responses of a large volume.

Only input and weights are saved for backward, which recomputes the kernel rows and the responses of a slab, except those of order 0. This
takes at most one more convolution than keeping the responses, and needs less memory: by 1.5 (2D) or 2.5 (3D) times the result, and by the
sums of the norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from monai_gmr.ops.autocast import autocast_dtype, without_autocast
from monai_gmr.ops.call import Call, Orders
from monai_gmr.ops.dense_gradients import dense_gradients, takes_dense_gradients
from monai_gmr.ops.harmonic_conv import response_invariants
from monai_gmr.ops.harmonic_operation import orders_of
from monai_gmr.ops.made_conv import KernelOfLeaves, MadeKernel, conv_gradients, made_conv
from monai_gmr.ops.memory_format import image_of, runs_channels_last
from monai_gmr.ops.ring_conv import conv_nd
from monai_gmr.ops.slabs import InputSlab, Slab, input_slab, make_slabs

# responses of at most this many bytes are kept: recomputing them takes longer than it is worth
KEPT_BYTES = 2**22
# a slab's responses take at most this share of the result's memory, or KEPT_BYTES,
SHARE = 0.5
# or this many times the extra rows of a slab's input, whose gradient is computed for two slabs
ROWS_PER_MARGIN = 4


class Factors(NamedTuple):
    """Factors that reduce responses to scalars, as in :class:`~monai_gmr.ops.RingKernel`."""

    linear: torch.Tensor | None = None
    chiral: torch.Tensor | None = None
    bias: torch.Tensor | None = None


FACTORS = len(Factors._fields)


def dense_harmonic_conv(x: torch.Tensor, rows: MadeKernel, factors: Factors, call: Call) -> torch.Tensor:
    """A harmonic convolution by torch's convolution, with gradients for ``x`` ``(batch, in_channels, *spatial)``, for the parts of ``rows``
    ``(groups * responses, in_channels / groups, *kernel_size)``, and for ``factors``.

    In a graph of ``torch.compile`` the backward pass recomputes all rows and responses at once; graphs for export and ``torch.func``
    contain the plain operations. Responses of at most 4 MB are kept.
    """
    if autocast_dtype(x) is not None:
        x, rows = x.to(call.precision), rows.to(call.precision)
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting() and torch.is_grad_enabled():
        return checkpoint(whole_harmonic_conv, x, rows, factors, call, use_reentrant=False)
    if call.recorded:
        return whole_harmonic_conv(x, rows, factors, call)
    voxels = len(x) * math.prod(call.output_sizes())
    if voxels * call.channels[1] * call.precision.itemsize <= KEPT_BYTES:
        y = whole_harmonic_conv(x, rows, factors, call)
        # the backward pass keeps the scalars, and layers after a convolution without a bias can work in place
        return y.clone() if factors.bias is None and y.requires_grad else y
    return _SlabBySlab.apply(call, rows.make, x, *factors, *rows.parts)


def whole_harmonic_conv(x: torch.Tensor, rows: MadeKernel, factors: Factors, call: Call) -> torch.Tensor:
    """Computes responses by one convolution, and reduces them to scalars."""
    # image and rows have their precision already; the invariants choose theirs
    with without_autocast(x):
        return _reduced(made_conv(x, rows, None, call), factors, call)


def _reduced(responses: torch.Tensor, factors: Factors, call: Call) -> torch.Tensor:
    assert call.orders is not None
    y = _scalars(responses, call.orders, factors, call)
    return y if factors.bias is None else y + factors.bias.to(y.dtype).reshape([-1] + [1] * (y.dim() - 2))


def _scalars(responses: torch.Tensor, orders: Orders, factors: Factors, call: Call) -> torch.Tensor:
    norms, products, components = map(list, orders)
    more: dict[str, Any] = {"groups": call.groups, "dims": len(call.kernel_size)}
    more |= {"linear": factors.linear, "chiral": factors.chiral}
    return response_invariants(responses, norms, products, components, **more)


class _Slabs:
    """Slabs of a convolution's result, each with the slab of the input that it needs.

    On CPUs in 3D they are cut along the last axis, through all samples: torch runs a slower convolution if samples, channels and the
    first two sizes are small.

    Attributes:
        axis: axis of the rows.
        call: the convolution of a slab, whose rows are already padded along their axis.
    """

    def __init__(self, x: torch.Tensor, call: Call) -> None:
        through = x.device.type == "cpu" and x.dim() == 5
        self.axis = x.dim() - 1 if through else 2
        along, sizes = self.axis - 2, call.output_sizes()
        self.call = call._replace(padding=[0 if n == along else p for n, p in enumerate(call.padding)])
        sizes = [sizes.pop(along), *sizes]
        numbers = len(x) * call.num_outputs() * math.prod(sizes)
        at_once = [len(x)] if through else []
        least = ROWS_PER_MARGIN * call.reach()[along] * math.prod([*at_once, *sizes[1:]])
        most = max(int(SHARE * numbers), KEPT_BYTES // call.precision.itemsize) // call.channels[1]
        slabs = make_slabs(1 if through else len(x), [sizes[0], *at_once, *sizes[1:]], max(most, least, 1))
        self._slabs = [slab._replace(samples=len(x)) if through else slab for slab in slabs]
        lengths = {
            "window": call.kernel_size,
            "stride": call.stride,
            "padding": call.padding,
            "dilation": call.dilation,
        }
        self._lengths, self._size = {name: each[along] for name, each in lengths.items()}, x.shape[self.axis]

    def __iter__(self) -> Iterator[tuple[Slab, InputSlab]]:
        for slab in self._slabs:
            yield slab, input_slab(slab, self._size, **self._lengths)


class _SlabBySlab(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Call, make: Callable[..., torch.Tensor], x: torch.Tensor, *tensors: Any
    ) -> torch.Tensor:
        factors, sizes = Factors(*tensors[:FACTORS]), call.output_sizes()
        ctx.call, ctx.make = call, make
        ctx.save_for_backward(x, *tensors)
        if runs_channels_last(x):
            y = image_of(x.new_empty((len(x), *sizes, call.num_outputs()), dtype=call.precision))
        else:
            y = x.new_empty((len(x), call.num_outputs(), *sizes), dtype=call.precision)
        slabs = _Slabs(x, call)
        arguments = slabs.call.conv_arguments()
        with without_autocast(x):
            rows = make(*tensors[FACTORS:])
            for slab, source in slabs:
                part = source.of(x, slabs.axis)
                # not assigned to a name, which would keep the responses while the next slab's are computed
                slab.of(y, slabs.axis).copy_(_reduced(conv_nd(part, rows, None, **arguments), factors, call))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        x, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        if takes_dense_gradients(gradient):

            def whole(x: torch.Tensor, *tensors: Any) -> torch.Tensor:
                rows = MadeKernel(ctx.make, tensors[FACTORS:])
                return whole_harmonic_conv(x, rows, Factors(*tensors[:FACTORS]), ctx.call)

            return None, None, *dense_gradients(whole, (x, *tensors), needed, gradient)
        made = KernelOfLeaves(ctx.make, tensors[FACTORS:], needed[1 + FACTORS :])
        asked = (needed[0], any(made.needed), *needed[1 : 1 + FACTORS])
        # within autocast too, the backward pass uses the precision of the forward pass
        with without_autocast(x):
            image, by_rows, *found = _gradients(x, made.kernel, Factors(*tensors[:FACTORS]), ctx.call, asked, gradient)
            return None, None, image, *found, *made.part_gradients(by_rows)


def _gradients(
    x: torch.Tensor, rows: torch.Tensor, factors: Factors, call: Call, needed: Sequence[bool], gradient: torch.Tensor
) -> list[torch.Tensor | None]:
    """Gradients of input, rows and factors, ``None`` if not needed."""
    image = torch.zeros_like(x) if needed[0] else None
    # at least float32: sums over many slabs
    wide = torch.promote_types(call.precision, torch.float32)
    tensors = (rows, *factors)
    sums = [
        torch.zeros_like(each, dtype=wide) if each is not None and asked else None
        for each, asked in zip(tensors, needed[1:])
    ]
    slabs = _Slabs(x, call)
    for slab, source in slabs:
        part = slab.of(gradient, slabs.axis)
        own, *found = _slab_gradients(source.of(x, slabs.axis), rows, factors, slabs.call, needed, part)
        if image is not None and own is not None:
            source.place.of(image, slabs.axis).add_(own.narrow(slabs.axis, source.before, source.place.rows))
        for total, each in zip(sums, found):
            if total is not None and each is not None:
                total.add_(each)
    pairs = zip(sums, tensors)
    return [image, *(None if total is None or each is None else total.to(each.dtype) for total, each in pairs)]


def _slab_gradients(
    x: torch.Tensor, rows: torch.Tensor, factors: Factors, call: Call, needed: Sequence[bool], gradient: torch.Tensor
) -> list[torch.Tensor | None]:
    """Gradients of a slab's input, of the rows and of the factors, ``None`` if not needed."""
    by_response, *terms = _response_gradients(x, rows, factors, call, gradient)
    by_input, by_rows, _ = conv_gradients(by_response, x, rows, call, (needed[0], needed[1], False))
    by_bias = gradient.sum([0, *range(2, gradient.dim())], dtype=torch.float64) if needed[-1] else None
    return [by_input, by_rows, *terms, by_bias]


def _response_gradients(
    x: torch.Tensor, rows: torch.Tensor, factors: Factors, call: Call, gradient: torch.Tensor
) -> list[Any]:
    """Gradients of a slab's responses and of the linear and chiral factors, ``None`` without such factors."""
    orders, channels, responses = _recomputed(call)
    if orders.num_responses() == 0:
        return [gradient, None, None]
    before, _, after = _split(rows, call.groups, 0, responses)
    y = conv_nd(x, torch.cat([before, after], dim=1).flatten(0, 1), None, **call.conv_arguments())
    terms = {"linear": factors.linear, "chiral": factors.chiral}
    given = {name: each.detach().requires_grad_() for name, each in terms.items() if each is not None}
    with torch.enable_grad():
        scalars = _scalars(y.requires_grad_(), orders, factors._replace(**given), call)
    before, own, after = _split(gradient, call.groups, 1, channels)
    rest = torch.cat([before, after], dim=2).flatten(1, 2)
    y_gradient, *found = torch.autograd.grad(scalars, [y, *given.values()], rest, materialize_grads=True)
    del y, scalars
    first, last = y_gradient.unflatten(1, (call.groups, -1)).tensor_split((responses.start,), dim=2)
    by_term = dict(zip(given, found))
    return [torch.cat([first, own, last], dim=2).flatten(1, 2), by_term.get("linear"), by_term.get("chiral")]


def _recomputed(call: Call) -> tuple[Orders, slice, slice]:
    """The orders whose responses a gradient needs; channels and responses of order 0 in each group if it does not need them.

    The scalars of order 0 are its responses, unless linear terms are added to them.
    """
    assert call.orders is not None
    for order in () if call.kept else orders_of(*call.orders):
        if order.components == 0:
            start, count = order.responses.start, order.norms
            return call.orders.above_zero(), order.channels, slice(start, start + count)
    return call.orders, slice(0, 0), slice(0, 0)


def _split(tensor: torch.Tensor, groups: int, axis: int, part: slice) -> Sequence[torch.Tensor]:
    """Splits each group along ``axis`` into what lies before, in and after a part; ``axis`` becomes two axes."""
    grouped = tensor.unflatten(axis, (groups, -1))
    return grouped.tensor_split((part.start, part.stop), dim=axis + 1)
