"""Which tensors of a network become fields on a group and which stay scalars, when its convolutions become group convolutions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from monai_gmr.networks.convert.trace import CONVOLUTIONS, Inputs, Pass, Trace, make_inputs
from monai_gmr.utils import tensors_in

SCALARS, FIELDS = "scalars", "fields"
# operations channel by channel, and those that put channels behind each other
ELEMENTWISE = ("add", "sub", "mul", "div", "maximum", "minimum", "where")
APPENDING = ("cat", "stack")


@dataclass
class Fields:
    """What a pass showed, for a group of an order."""

    order: int
    # convolutions that end on scalars whatever their channels: those whose output is the network's, or joins it
    heads: set[nn.Module]
    # what each module is given
    taken: dict[nn.Module, set[str]] = field(default_factory=dict)
    # whether the network's output consists of fields
    ends: bool = False
    # what no swap of modules makes equivariant, a sentence each
    notes: dict[str, None] = field(default_factory=dict)

    def takes_fields(self, module: nn.Module) -> bool:
        """Whether a module is given fields."""
        return FIELDS in self.taken.get(module, ())

    def gives_fields(self, module: Any) -> bool:
        """Whether a convolution ends on fields."""
        return module not in self.heads and module.out_channels % self.order == 0


def trace_fields(net: nn.Module, trace: Trace, order: int, example_inputs: Any = None) -> Fields:
    """Pass the reference image of a trace through a network and follow what its convolutions make fields.

    A convolution ends on fields if the order divides its channels, unless its output is the network's.

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
            tensor._gmr_kind = SCALARS  # type: ignore[attr-defined]
        return args, kwargs

    heads = set(trace.heads)
    while True:
        found = Fields(order, heads)
        joined = _FieldsPass(net, found).follow(inputs, trace.sizes_only)
        if joined <= heads:
            return found
        heads = heads | joined


def _kind(tensor: torch.Tensor) -> str | None:
    return getattr(tensor, "_gmr_kind", None)


def _givers(tensor: torch.Tensor) -> set[nn.Module]:
    """The last convolutions that a tensor comes from."""
    return getattr(tensor, "_gmr_givers", set())


class _FieldsPass(Pass):
    """Fills :class:`Fields`; tensors carry along what they are, in an attribute."""

    def __init__(self, net: nn.Module, found: Fields) -> None:
        super().__init__(net)
        self.found = found
        self.names = {module: name for name, module in net.named_modules()}
        self.weights = {id(each) for each in [*net.parameters(), *net.buffers()]}
        self.stack: list[nn.Module] = []
        self.joined: set[nn.Module] = set()

    def follow(self, inputs: Inputs, sizes_only: bool) -> set[nn.Module]:
        """Run the pass; convolutions whose fields are added to what heads give."""
        output = self.run(inputs, sizes_only)
        self.found.ends = any(_kind(tensor) == FIELDS for tensor in tensors_in(output))
        return self.joined

    def enter(self, module: nn.Module, args: tuple) -> None:
        self.stack.append(module)
        kinds = {_kind(tensor) for tensor in tensors_in(args)} - {None}
        self.found.taken.setdefault(module, set()).update(kinds)  # type: ignore[arg-type]

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        while self.stack and self.stack.pop() is not module:
            pass
        kind = None
        if isinstance(module, CONVOLUTIONS):
            kind = FIELDS if self.found.gives_fields(module) else SCALARS
        elif isinstance(module, nn.Linear | nn.Bilinear):
            kind = SCALARS
        for tensor in tensors_in(output) if kind else ():
            tensor._gmr_kind, tensor._gmr_givers = kind, {module}  # type: ignore[attr-defined]

    def look(self, name: str, args: tuple, kwargs: dict, output: Any) -> None:
        """Follow fields through an operation, and note what does not respect them."""
        given = tensors_in((args, kwargs))
        kinds = {_kind(tensor) for tensor in given}
        kind = FIELDS if FIELDS in kinds else SCALARS if SCALARS in kinds else None
        results = tensors_in(output) if kind else []
        for tensor in results:
            # one channel is what all channels gave
            single = tensor.dim() > 1 and tensor.shape[1] == 1
            tensor._gmr_kind = SCALARS if single else kind  # type: ignore[attr-defined]
            tensor._gmr_givers = set().union(*map(_givers, given))  # type: ignore[attr-defined]
        if kind == FIELDS and self.stack:
            sentence = self._sentence(name.rstrip("_"), given, results)
            if sentence:
                self.found.notes[f"{self.names[self.stack[-1]] or type(self.net).__name__}: {sentence}"] = None

    def _sentence(self, name: str, given: list[torch.Tensor], results: list[torch.Tensor]) -> str | None:
        fields = [tensor for tensor in given if _kind(tensor) == FIELDS]
        others = [tensor for tensor in given if _kind(tensor) == SCALARS]
        if name in APPENDING and others:
            return "joins scalars with fields, whose channels a group exchanges"
        if name in ELEMENTWISE:
            wide = [tensor for tensor in others if tensor.dim() > 1 and tensor.shape[1] > 1]
            if wide and all(_givers(tensor) and _givers(tensor) <= self.found.heads for tensor in wide):
                self.joined.update(*map(_givers, fields))
            elif wide:
                return "joins scalars with fields, whose channels a group exchanges"
            if any(id(tensor) in self.weights and tensor.numel() > 1 for tensor in given):
                return "has weights for single channels, which a group exchanges"
        if name.startswith(("slice", "select", "narrow", "split", "unbind")):
            channels = fields[0].shape[1] if fields[0].dim() > 1 else 0
            taken = {tensor.shape[1] for tensor in results if tensor.dim() == fields[0].dim()}
            if any(count != channels and count % self.found.order for count in taken):
                return "takes channels of a field by their place"
        return None
