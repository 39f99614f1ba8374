"""Finds which tensors of a network become fields on a group, and which stay scalars, when its convolutions become group convolutions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn

from monai_gmr.networks.convert.trace import CONVOLUTIONS, Inputs, Pass, Trace, classes_of, convolutions_of, make_inputs
from monai_gmr.utils import tensors_in

# kinds of inputs of a module; misplaced fields have their channels along another axis than the module's
SCALARS, FIELDS, MISPLACED = "scalars", "fields", "misplaced fields"
NORMS = (*classes_of("BatchNorm", "InstanceNorm"), nn.SyncBatchNorm, nn.GroupNorm)
# modules that are judged as a whole, by their swaps
JUDGED = (*CONVOLUTIONS, *NORMS, *classes_of("Dropout"), nn.PReLU, nn.LayerNorm, nn.Linear)

# operations voxel by voxel and channel by channel
POINTWISE = re.compile(
    "add|sub|rsub|mul|div|maximum|minimum|where|addcmul|addcdiv|lerp|pow|masked_fill|copy|relu|leaky_relu|elu|gelu|silu|mish"
    "|sigmoid|tanh|hardtanh|hardsigmoid|hardswish|softplus|log_sigmoid_forward|threshold|abs|neg|exp|log|log1p|sqrt|rsqrt"
    "|square|reciprocal|sign|clamp|clamp_min|clamp_max|nan_to_num|eq|ne|lt|le|gt|ge|logical_and|logical_or|logical_not"
    "|_to_copy|clone|contiguous|alias|detach|lift_fresh|native_dropout|bernoulli|zeros_like|ones_like|full_like|empty_like"
    "|rand_like|randn_like"
)
REDUCING = re.compile(
    "mean|sum|amax|amin|max|min|var|std|var_mean|norm|linalg_vector_norm|logsumexp|prod|any|all|argmax|argmin"
)
# beginnings of the names of operations on the spatial axes of images
SPATIAL = (
    *(
        "avg_pool",
        "_adaptive_avg_pool",
        "adaptive_avg_pool",
        "max_pool",
        "adaptive_max_pool",
        "max_unpool",
        "reflection_pad",
    ),
    *("replication_pad", "constant_pad", "upsample", "_upsample", "grid_sampler"),
)
JOINS = "joins scalars with fields, whose channels a group exchanges"
WEIGHS = "has weights for single channels, which a group exchanges"
PLACES = "takes channels of a field by their place"


class Kind(NamedTuple):
    """Kind of a tensor: the axis of the channels for fields, ``None`` for scalars; and the last convolutions that it comes from."""

    axis: int | None
    givers: frozenset[nn.Module] = frozenset()


class _Unlike(Exception):
    """An operation that treats, or can treat, the channels of a field differently."""


@dataclass
class Fields:
    """Results of a pass, for a group of a given order."""

    order: int
    # convolutions that always end on scalars, because their output is the network's or is added to it
    heads: frozenset[nn.Module]
    # kinds of inputs of each module, and their numbers of axes
    taken: dict[nn.Module, set[str]] = field(default_factory=dict)
    axes: dict[nn.Module, int] = field(default_factory=dict)
    # sentences on what no replacement of modules makes equivariant
    notes: dict[str, None] = field(default_factory=dict)

    def takes_fields(self, module: nn.Module) -> bool:
        """Whether a module is given fields."""
        return not {FIELDS, MISPLACED}.isdisjoint(self.taken.get(module, ()))

    def is_plain(self, module: nn.Module) -> bool:
        """Whether a module gets the same kind of input in every call, with the channels along the module's axis."""
        taken = self.taken.get(module, set())
        return len(taken) <= 1 and MISPLACED not in taken

    def gives_fields(self, module: Any) -> bool:
        """Whether a convolution ends on fields."""
        return module not in self.heads and module.out_channels % self.order == 0


def trace_fields(net: nn.Module, trace: Trace, order: int, example_inputs: Any = None) -> Fields:
    """Pass the reference image of a trace through a network and follow the fields that its convolutions would give.

    A convolution ends on fields if the order divides its channels, unless its output is the network's or is added to it.

    Example:
        >>> from monai_gmr.networks.convert.trace import trace_sizes
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1))
        >>> fields = trace_fields(net, trace_sizes(net, 2, 1), order=8)
        >>> [fields.takes_fields(each) for each in net], fields.gives_fields(net[2])
        ([False, True, True], False)
    """

    def inputs() -> tuple[tuple, dict]:
        args, kwargs = make_inputs(net, trace.size, trace.in_channels, example_inputs)
        for tensor in tensors_in((args, kwargs)):
            _mark(tensor, Kind(None))
        return args, kwargs

    heads, convolutions = frozenset(trace.heads), convolutions_of(net)
    first: Fields | None = None
    while True:
        found = Fields(order, heads)
        forced = _FieldsPass(net, found).follow(inputs, trace.sizes_only)
        if first is None:
            first = found
        if not forced <= heads:
            heads = heads | forced
            continue
        if not any(map(found.gives_fields, convolutions)):
            # in a net that returns the outputs of all layers, no layer is left to give fields
            first.notes["its outputs are fields: reduce them by PointGroupPool"] = None
            return first
        return found


def _is_judged(module: nn.Module) -> bool:
    """Whether a module is judged as a whole; layers of this library treat all channels alike or work on fields."""
    return isinstance(module, JUDGED) or type(module).__module__.startswith("monai_gmr.networks.layers.")


def _mark(tensor: torch.Tensor, kind: Kind) -> None:
    tensor._gmr_kind = kind  # type: ignore[attr-defined]


def _kind(tensor: torch.Tensor) -> Kind | None:
    return getattr(tensor, "_gmr_kind", None)


def _is_fields(tensor: torch.Tensor) -> bool:
    kind = _kind(tensor)
    return kind is not None and kind.axis is not None


class _FieldsPass(Pass):
    """Fills :class:`Fields`; tensors carry their kind along, in an attribute."""

    def __init__(self, net: nn.Module, found: Fields) -> None:
        super().__init__(net)
        self.found = found
        self.names = {module: name for name, module in net.named_modules()}
        self.stack: list[nn.Module] = []
        self.forced: set[nn.Module] = set()

    def follow(self, inputs: Inputs, sizes_only: bool) -> set[nn.Module]:
        """Runs the pass and returns further convolutions that must end on scalars: their fields are the network's output or are added to
        it."""
        output = self.run(inputs, sizes_only)
        for tensor in filter(_is_fields, tensors_in(output)):
            givers = tensor._gmr_kind.givers  # type: ignore[attr-defined]
            self.forced |= givers
            if not givers:
                self.found.notes["its output consists of fields: reduce it by PointGroupPool"] = None
        return self.forced

    def enter(self, module: nn.Module, args: tuple) -> None:
        self.stack.append(module)
        last = isinstance(module, nn.Linear)
        for tensor in tensors_in(args):
            kind = _kind(tensor)
            if kind is not None:
                place = tensor.dim() - 1 if last else 1
                given = SCALARS if kind.axis is None else FIELDS if kind.axis == place else MISPLACED
                self.found.taken.setdefault(module, set()).add(given)
                self.found.axes[module] = tensor.dim()

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        while self.stack and self.stack.pop() is not module:
            pass
        if not _is_judged(module):
            return
        given = [kind for tensor in tensors_in(args) if (kind := _kind(tensor)) is not None]
        if not given:
            return
        kind = given[0]
        if hasattr(module, "field_groups"):
            kind = Kind(None if module.field_groups[1] is None else 1, kind.givers)  # type: ignore[index]
        elif isinstance(module, CONVOLUTIONS):
            kind = Kind(1 if self.found.gives_fields(module) else None, frozenset([module]))
        elif isinstance(module, nn.Linear):
            kind = Kind(None, kind.givers)
        for tensor in tensors_in(output):
            _mark(tensor, kind)

    def look(self, name: str, args: tuple, kwargs: dict, output: Any) -> None:
        """Follow fields through an operation, and note if it does not respect them."""
        results = tensors_in(output)
        if name in ("zeros", "zeros_like", "new_zeros"):
            for tensor in results:
                tensor._gmr_zeros = True  # type: ignore[attr-defined]
        given = [tensor for tensor in tensors_in((args, kwargs)) if _kind(tensor) is not None]
        if not given:
            return
        if name == "repeat" and args[0].dim() == results[0].dim() > 1 == args[0].shape[1]:
            results[0]._gmr_alike = True  # type: ignore[attr-defined]
        givers = frozenset().union(*(tensor._gmr_kind.givers for tensor in given))  # type: ignore[attr-defined]
        fields = [tensor for tensor in given if _is_fields(tensor)]
        axis: int | None = None
        if any(hasattr(tensor, "_gmr_places") for tensor in given):
            self._note(PLACES)
        if fields:
            x = max(fields, key=torch.Tensor.dim)
            axis = x._gmr_kind.axis  # type: ignore[attr-defined]
            if any(map(_is_judged, self.stack)):
                axis = min(axis, 1)
            else:
                try:
                    axis = _Operation(self, name, args, kwargs, results).axis_after(x, axis)
                except _Unlike as error:
                    self._note(error)
        for tensor in results:
            _mark(tensor, Kind(axis if axis is not None and axis < tensor.dim() else None, givers))

    def _note(self, sentence: object) -> None:
        """Note a sentence on the running module."""
        where = self.names[self.stack[-1]] if self.stack else ""
        self.found.notes[f"{where or type(self.net).__name__}: {sentence}"] = None


class _Operation:
    """One call of an operation on fields, and the axis of their channels afterwards; ``after_NAME`` returns it for operation NAME."""

    def __init__(self, owner: _FieldsPass, name: str, args: tuple, kwargs: dict, results: list[torch.Tensor]) -> None:
        self.owner, self.order = owner, owner.found.order
        self.name = name if name.startswith("_") else name.rstrip("_")
        self.args, self.kwargs, self.results = args, kwargs, results

    def axis_after(self, x: torch.Tensor, axis: int) -> int | None:
        """Axis of the channels in the results, ``None`` if they are reduced to scalars; raises if the channels are treated differently."""
        if POINTWISE.fullmatch(self.name):
            return self._pointwise(x, axis)
        if REDUCING.fullmatch(self.name):
            return self._reduced(x, axis)
        if self.name.startswith(SPATIAL):
            return self._spatial(x, axis)
        look = getattr(self, f"after_{self.name.strip('_')}", None)
        if look is None:
            raise _Unlike(f"calls {self.name}, which may treat the channels of a field differently")
        after: int | None = look(x, axis)
        return after

    def _argument(self, place: int, name: str, default: Any) -> Any:
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def _dims(self, place: int, name: str, dims: int, default: Any = None) -> list[int]:
        given = self._argument(place, name, default)
        given = list(given) if isinstance(given, Sequence) else [given]
        return [each % dims for each in given if isinstance(each, int)]

    def _check_other(self, other: torch.Tensor, size: int) -> None:
        """Raises if fields meet scalars or constants that differ between channels."""
        kind = _kind(other)
        if size == 1:
            return
        if kind is None:
            raise _Unlike(WEIGHS)
        if not kind.givers or not kind.givers <= self.owner.found.heads:
            raise _Unlike(JOINS)

    def _pointwise(self, x: torch.Tensor, axis: int) -> int:
        after = self.results[0].dim() if self.results else x.dim()
        from_the_end = axis - x.dim()
        for other in tensors_in((self.args, self.kwargs)):
            size = other.shape[from_the_end] if other.dim() >= -from_the_end else 1
            if size > 1 and (other.stride(from_the_end) == 0 or getattr(other, "_gmr_alike", False)):
                # expanded, or one channel repeated: the same for all channels
                size = x.shape[axis] if _is_fields(other) else 1
            if not _is_fields(other):
                self._check_other(other, size)
                kind = _kind(other)
                if size > 1 and kind is not None:
                    # tensors added to the network's output must also be scalars
                    for field_tensor in filter(_is_fields, tensors_in((self.args, self.kwargs))):
                        self.owner.forced |= field_tensor._gmr_kind.givers  # type: ignore[attr-defined]
            elif other._gmr_kind.axis - other.dim() != from_the_end or size != x.shape[axis]:  # type: ignore[attr-defined]
                raise _Unlike("joins fields whose channels lie along different axes")
        return after + from_the_end

    def _reduced(self, x: torch.Tensor, axis: int) -> int | None:
        dims = self._dims(1, "dim", x.dim())
        if not dims or axis in dims:
            if self.name in ("argmax", "argmin"):
                raise _Unlike(PLACES)
            for indices in self.results[1:] if self.name in ("max", "min") else ():
                indices._gmr_places = True  # type: ignore[attr-defined]
            return None
        kept = self.results[0].dim() == x.dim()
        return axis if kept else axis - sum(each < axis for each in dims)

    def _spatial(self, x: torch.Tensor, axis: int) -> int:
        if axis != 1 or x.dim() < 3:
            raise _Unlike(f"calls {self.name} along the channels of fields")
        if self.name.startswith("constant_pad"):
            pads = list(self.args[1]) + [0] * (2 * x.dim())
            # pads begin with the last axis
            before, after = pads[2 * (x.dim() - 2) : 2 * (x.dim() - 2) + 2]
            if before % self.order or after % self.order:
                raise _Unlike("pads the channels of fields by a fraction of a field")
        return axis

    def after_mse_loss(self, x: torch.Tensor, axis: int) -> int | None:
        self._pointwise(x, axis)
        return axis if self.results[0].dim() == x.dim() else None

    after_smooth_l1_loss = after_huber_loss = after_mse_loss

    def after_cat(self, x: torch.Tensor, axis: int) -> int:
        for other in self.args[0]:
            zeros = (
                getattr(other, "_gmr_zeros", False) and other.dim() == x.dim() and other.shape[axis] % self.order == 0
            )
            if not _is_fields(other) and not zeros:
                raise _Unlike(JOINS if _kind(other) is not None else WEIGHS)
            if _is_fields(other) and other._gmr_kind.axis != axis:
                raise _Unlike("joins fields whose channels lie along different axes")
        return axis

    def after_stack(self, x: torch.Tensor, axis: int) -> int:
        if not all(map(_is_fields, self.args[0])):
            raise _Unlike(JOINS)
        (dim,) = self._dims(1, "dim", x.dim() + 1, 0)
        return axis + (dim <= axis)

    def after_view(self, x: torch.Tensor, axis: int) -> int:
        (result,) = self.results
        before, size = prod(x.shape[:axis]), x.shape[axis]
        for place in range(result.dim()):
            if prod(result.shape[:place]) == before and result.shape[place] == size:
                return place
        raise _Unlike("regroups the channels of fields, or puts them and the voxels on one axis")

    after_unsafe_view = after_reshape = after_reshape_alias = after_view

    def after_permute(self, x: torch.Tensor, axis: int) -> int:
        return self._dims(1, "dims", x.dim()).index(axis)

    def after_transpose(self, x: torch.Tensor, axis: int) -> int:
        one, other = self._dims(1, "dim0", x.dim()) + self._dims(2, "dim1", x.dim())
        return {one: other, other: one}.get(axis, axis)

    def after_t(self, x: torch.Tensor, axis: int) -> int:
        return x.dim() - 1 - axis

    def after_unsqueeze(self, x: torch.Tensor, axis: int) -> int:
        (dim,) = self._dims(1, "dim", x.dim() + 1)
        return axis + (dim <= axis)

    def after_squeeze(self, x: torch.Tensor, axis: int) -> int:
        dims = self._dims(1, "dim", x.dim()) or range(x.dim())
        return axis - sum(dim < axis and x.shape[dim] == 1 for dim in dims)

    def after_expand(self, x: torch.Tensor, axis: int) -> int:
        return axis + self.results[0].dim() - x.dim()

    def after_repeat(self, x: torch.Tensor, axis: int) -> int:
        # repeated channels are further fields
        return axis + self.results[0].dim() - x.dim()

    def after_softmax(self, x: torch.Tensor, axis: int) -> int:
        return axis

    after_log_softmax = after_softmax

    def after_select(self, x: torch.Tensor, axis: int) -> int:
        (dim,) = self._dims(1, "dim", x.dim(), 0)
        if dim == axis:
            raise _Unlike(PLACES)
        return axis - (dim < axis)

    after_unbind = after_select

    def after_slice(self, x: torch.Tensor, axis: int) -> int:
        (dim,) = self._dims(1, "dim", x.dim(), 0)
        start, end, step = (
            self._argument(place, name, None) for place, name in ((2, "start"), (3, "end"), (4, "step"))
        )
        taken = range(x.shape[dim])[slice(start, end, step or 1)]
        if dim == axis and (taken.start % self.order or len(taken) % self.order or taken.step != 1):
            raise _Unlike(PLACES)
        return axis

    def after_split(self, x: torch.Tensor, axis: int) -> int:
        (dim,) = self._dims(2, "dim", x.dim(), 0)
        if dim == axis and any(part.shape[axis] % self.order for part in self.results):
            raise _Unlike(PLACES)
        return axis

    after_split_with_sizes = after_split

    def after_glu(self, x: torch.Tensor, axis: int) -> int:
        if axis in self._dims(1, "dim", x.dim(), -1) and x.shape[axis] // 2 % self.order:
            raise _Unlike(PLACES)
        return axis

    def _along(self, place: int, name: str, x: torch.Tensor, axis: int, default: Any = -1) -> int:
        dims = self._dims(place, name, x.dim(), default)
        if axis in dims or not dims:
            raise _Unlike(PLACES)
        return axis

    def after_flip(self, x: torch.Tensor, axis: int) -> int:
        return self._along(1, "dims", x, axis)

    def after_roll(self, x: torch.Tensor, axis: int) -> int:
        return self._along(2, "dims", x, axis, ())

    def after_cumsum(self, x: torch.Tensor, axis: int) -> int:
        return self._along(1, "dim", x, axis)

    after_sort = after_cumsum

    def after_topk(self, x: torch.Tensor, axis: int) -> int:
        return self._along(2, "dim", x, axis)

    def after_index_select(self, x: torch.Tensor, axis: int) -> int:
        return self._along(1, "dim", x, axis)

    def after_index(self, x: torch.Tensor, axis: int) -> int:
        chosen = [place for place, index in enumerate(self.args[1]) if index is not None]
        if axis in chosen or self.results[0].dim() != x.dim():
            raise _Unlike(PLACES)
        return axis
