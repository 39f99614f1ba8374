"""Passes an image through a network, without values if possible, to find the sizes at its layers and where their outputs go."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn

# the import path in torch's documentation of TorchDispatchMode
from torch.utils._python_dispatch import TorchDispatchMode

from monai_gmr.networks.convert.shapes import output_without_values
from monai_gmr.networks.layers.size_trail import Levels
from monai_gmr.ops import Backend, set_backend
from monai_gmr.utils import tensors_in

# multiples of 32 first, then sizes for odd factors and patches
REFERENCE_SIZES = (128, 96, 64, 256, 224, 160, 192, 48, 32, 144, 162, 81, 129, 97, 65, 33, 320, 512, 384, 270, 16)
# largest image of a pass with values
MOST_REAL_VOXELS = 32**3
# attributes of MONAI's nets with the size that they are built for
SIZE_ATTRIBUTES = ("input_image_size", "img_size", "image_size", "in_shape")
# operations that keep a linear layer's output, or only squash it
PASSING = re.compile(
    "add|sub|neg|mean|cat|stack|view|_unsafe_view|reshape|flatten|permute|transpose|slice|select|narrow|split|split_with_sizes|unbind"
    "|squeeze|unsqueeze|expand|clone|contiguous|_to_copy|alias|detach|(_?adaptive_)?avg_pool[123]d|constant_pad_nd|pixel_shuffle"
    "|_?upsample_(linear1d|bilinear2d|trilinear3d|bicubic2d|nearest(_exact)?[123]d)|sigmoid|_softmax|_log_softmax|tanh|native_dropout"
)
# operations among these after which a convolution is not a shortcut
REARRANGING = re.compile(
    "view|permute|transpose|slice|select|split|split_with_sizes|unbind|squeeze|unsqueeze|expand|upsample_(bilinear2d|trilinear3d)"
    "|_softmax|_log_softmax"
)
FLATTENING = ("view", "reshape", "_unsafe_view", "flatten")
LINEAR = ("convolution", "addmm", "mm", "bmm", "matmul", "linear", "_convolution")
JOINING = ("add", "sub", "cat", "stack")

Sizes = tuple[int, ...]
Inputs = Callable[[], tuple[tuple, dict]]


def classes_of(*names: str) -> tuple[type, ...]:
    """Classes of ``torch.nn`` in 1, 2 and 3 dimensions, given their names without the dimension."""
    found = (getattr(nn, f"{name}{dims}d", None) for name in names for dims in (1, 2, 3))
    return tuple(each for each in found if each is not None)


CONVOLUTIONS = classes_of("Conv", "ConvTranspose")


def convolutions_of(net: nn.Module) -> list[Any]:
    """The convolutions of a network, in the order of ``modules()``."""
    return [each for each in net.modules() if isinstance(each, CONVOLUTIONS)]


def first_line(error: Exception) -> str:
    """Beginning of an error's text, to quote in a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160].rstrip(".")


@dataclass
class Trace:
    """Results of a pass."""

    # reference size, and channels of its image
    size: Sizes = ()
    in_channels: int = 0
    # whether the tensors had no values
    sizes_only: bool = True
    called: set[nn.Module] = field(default_factory=set)
    # sizes before and after each call of each module that was called with an image
    calls: dict[nn.Module, list[tuple[Sizes, Sizes]]] = field(default_factory=dict)
    # modules that only pad with zeros, and their padding in the order of torch.nn.functional.pad
    paddings: dict[nn.Module, list[int]] = field(default_factory=dict)
    # padding module of each convolution that takes nothing but its result
    pads: dict[nn.Module, nn.Module] = field(default_factory=dict)
    # convolutions whose output is the network's, with no nonlinearity in between
    heads: set[nn.Module] = field(default_factory=set)
    # convolutions whose output is joined with another path and then taken by linear layers only
    shortcuts: set[nn.Module] = field(default_factory=set)
    # linear layers that take all voxels of an image at once, and those that do so only in training
    flattened: set[nn.Module] = field(default_factory=set)
    flattened_in_training: set[nn.Module] = field(default_factory=set)
    # convolutions whose parameters other modules also use
    shared: set[nn.Module] = field(default_factory=set)
    # why no pass was possible: a sentence, and the network's error
    failure: str | None = None
    reason: str = ""
    # key under which layers find the trail of sizes of this network
    network: str = field(default_factory=lambda: uuid.uuid4().hex)

    def levels(self, module: nn.Module) -> Levels:
        """Levels of a module, for layers that keep a trail of sizes."""
        return Levels(self.network, [(list(before), list(after)) for before, after in self.calls.get(module, [])])


@contextmanager
def keep_tensors(net: nn.Module) -> Iterator[None]:
    """Restores the attributes, lists and dictionaries of modules that store tensors in them inside the context."""
    own = vars(nn.Module())
    before = {
        module: {
            key: (value, copy(value) if isinstance(value, list | dict) else value)
            for key, value in vars(module).items()
            if key not in own
        }
        for module in net.modules()
    }
    try:
        yield
    finally:
        for module, attributes in before.items():
            for key in [key for key, value in vars(module).items() if key not in own and tensors_in(value)]:
                value, content = attributes.get(key, (None, None))
                if isinstance(value, list):
                    value[:] = content
                elif isinstance(value, dict):
                    value.clear()
                    value.update(content)
                if key in attributes:
                    vars(module)[key] = value
                else:
                    del vars(module)[key]


class Pass(TorchDispatchMode):
    """A pass through a network that visits each call of a module and each operation; subclasses override the visits.

    Attributes:
        backend: backend of radial and harmonic convolutions.
    """

    # the other backends need values
    backend: str | Backend = "dense"

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.sizes_only = net, False

    def enter(self, module: nn.Module, args: tuple) -> None:
        """Look at the inputs of a module, also those given by keyword."""

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Look at the output of a module; also called when it raises, with ``None``."""

    def look(self, name: str, args: tuple, kwargs: dict, output: Any) -> None:
        """Look at an operation, by its name without the overload."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        output = output_without_values(func, args, kwargs) if self.sizes_only else func(*args, **kwargs)
        self.look(func.__name__.split(".")[0], args, kwargs, output)
        return output

    def run(self, inputs: Inputs, sizes_only: bool, training: bool = False) -> Any:
        """Output of the network for the arguments that ``inputs`` makes, without gradients; ``sizes_only``: on the meta device, whose
        tensors have sizes but no values, so that the network and its buffers stay unchanged, as they do in evaluation mode."""
        modes = [(module, module.training) for module in self.net.modules()]

        def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self.enter(module, (*args, *kwargs.values()))

        def leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            self.leave(module, (*args, *kwargs.values()), output)

        # scripted modules take no hooks
        hooked = [module for module, _ in modes if not isinstance(module, torch.jit.ScriptModule)]
        handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in hooked]
        handles += [module.register_forward_hook(leave, with_kwargs=True, always_call=True) for module in hooked]
        self.sizes_only = sizes_only
        try:
            self.net.train(training)
            keep = keep_tensors(self.net) if sizes_only else nullcontext()
            with keep, set_backend(self.backend), self, torch.no_grad():
                args, kwargs = inputs()
                return self.net(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
            for module, was_training in modes:
                module.training = was_training


class _OtherChannels(Exception):
    """The first convolution of a pass takes another number of channels than its image has, at every size."""


class _SizesPass(Pass):
    """Fills a trace; tensors carry the convolutions that gave them along, in attributes."""

    def __init__(self, net: nn.Module, trace: Trace) -> None:
        super().__init__(net)
        self.trace, self.rank = trace, len(trace.size) + 2
        self.bent: set[nn.Module] = set()
        self.convolved = False
        # several convolutions may share a parameter
        self.owners: dict[int, set[nn.Module]] = {}
        for each in convolutions_of(net):
            for own in each.parameters(recurse=False):
                self.owners.setdefault(id(own), set()).add(each)
        self.running: list[nn.Module] = []

    def enter(self, module: nn.Module, args: tuple) -> None:
        """Checks the channels of the first convolution, which has 0 before it is built."""
        self.running.append(module)
        if self.convolved or not isinstance(module, CONVOLUTIONS):
            return
        self.convolved = True
        given = [t.shape[1] for t in tensors_in(args) if t.dim() == self.rank]
        if module.in_channels and given and given[0] != module.in_channels:  # type: ignore[attr-defined]
            raise _OtherChannels(f"its first convolution takes {module.in_channels} channels, not {given[0]}")

    def look(self, name: str, args: tuple, kwargs: dict, output: Any) -> None:
        """Follow outputs of convolutions, padded images and flattened ones."""
        name = name.rstrip("_")
        for owners in (self.owners.get(id(each), set()) for each in tensors_in((args, kwargs))):
            if owners.isdisjoint(self.running):
                self.trace.shared |= owners
        if name == "constant_pad_nd" and (len(args) < 3 or args[2] == 0):
            output._gmr_padded = args[0], list(args[1])
        images = [t for t in tensors_in(args) if t.dim() == self.rank]
        if name in FLATTENING and images and images[0].shape[2:].numel() > 1 and output.dim() == 2:
            output._gmr_flattened = True
        sources = [tag for tensor in tensors_in((args, kwargs)) for tag in getattr(tensor, "_gmr_sources", ())]
        if name in LINEAR:
            self.trace.shortcuts |= {module for module, joined in sources if joined}
        elif sources and not (PASSING.fullmatch(name) or (name in ("mul", "div") and len(tensors_in(args)) == 1)):
            self.bent |= {module for module, _ in sources}
        elif sources:
            if REARRANGING.fullmatch(name):
                self.bent |= {module for module, _ in sources}
            tags = {(module, joined or name in JOINING) for module, joined in sources}
            for tensor in tensors_in(output):
                tensor._gmr_sources = tags  # type: ignore[attr-defined]

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Note sizes, and padding or flattening before a convolution or a linear layer."""
        while self.running and self.running.pop() is not module:
            pass
        trace = self.trace
        trace.called.add(module)
        before = [t for t in tensors_in(args) if t.dim() == self.rank]
        after = [t for t in tensors_in(output) if t.dim() == self.rank]
        if isinstance(module, CONVOLUTIONS):
            for tensor in after:
                tensor._gmr_sources = {(module, False)}  # type: ignore[attr-defined]
            if before and hasattr(before[0], "_gmr_pad"):
                trace.pads[module] = before[0]._gmr_pad
        if isinstance(module, nn.Linear) and any(getattr(t, "_gmr_flattened", False) for t in tensors_in(args)):
            trace.flattened.add(module)
        if before and after:
            source, padding = getattr(after[0], "_gmr_padded", (None, []))
            if source is before[0] and len(padding) <= 2 * (self.rank - 2):
                trace.paddings[module] = padding
                after[0]._gmr_pad = module  # type: ignore[attr-defined]
            sizes = tuple(before[0].shape[2:]), tuple(after[0].shape[2:])
            if sizes not in trace.calls.setdefault(module, []):
                trace.calls[module].append(sizes)

    def fill(self, inputs: Inputs) -> Trace:
        """Runs the pass, and one in training mode if linear layers were not called."""
        trace = self.trace
        output = self.run(inputs, trace.sizes_only)
        for tensor in tensors_in(output):
            trace.heads |= {module for module, _ in getattr(tensor, "_gmr_sources", ())}
        trace.shortcuts -= self.bent
        if trace.sizes_only and any(
            isinstance(each, nn.Linear) and each not in trace.called for each in self.net.modules()
        ):
            training = _SizesPass(self.net, Trace(trace.size))
            with suppress(Exception):  # a network may need values, or targets, to train
                training.run(inputs, sizes_only=True, training=True)
            trace.flattened_in_training = training.trace.flattened - trace.called
        return trace


def sizes_of_network(net: nn.Module, dims: int) -> list[Sizes]:
    """Sizes that a network says it is built for."""
    given = [getattr(net, name, None) for name in SIZE_ATTRIBUTES]
    values = [tuple(each) for each in given if isinstance(each, Sequence) and len(each) in (dims, dims + 1)]
    return [value[-dims:] for value in values if all(isinstance(n, int) for n in value)]


def make_inputs(
    net: nn.Module, size: Sizes, in_channels: int, example_inputs: Sequence | Mapping[str, Any] | None = None
) -> tuple[tuple, dict]:
    """Arguments for a network in a pass: an image of zeros, or copies of given inputs, in order or by name, on its device and in its
    precision."""
    first = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    if example_inputs is None:
        return (torch.zeros((2, in_channels, *size), dtype=first.dtype, device=first.device),), {}

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().to(first.device, first.dtype if value.is_floating_point() else None, copy=True)
        if isinstance(value, Mapping):
            return {key: copied(item) for key, item in value.items()}
        return type(value)(map(copied, value)) if isinstance(value, list | tuple) else value

    return ((), copied(example_inputs)) if isinstance(example_inputs, Mapping) else (copied(tuple(example_inputs)), {})


def trace_sizes(
    net: nn.Module,
    dims: int,
    in_channels: int | Sequence[int],
    spatial_size: Sequence[int] | None = None,
    example_inputs: Sequence | Mapping[str, Any] | None = None,
) -> Trace:
    """Pass an image of a reference size through a network on the meta device, whose tensors have sizes but no values; if the network needs
    values, pass a small image with values.

    Args:
        net: the network; it and its buffers stay unchanged.
        dims: number of spatial axes.
        in_channels: channels of the image, or several numbers to try.
        spatial_size: the reference size; default: the first that the network takes among those that it names and some usual ones.
        example_inputs: arguments of ``forward``, in order or by name; default: only the image.

    Returns:
        the trace; its ``failure`` is one sentence if no size was possible.
    """
    named = [tuple(spatial_size)] if spatial_size is not None else sizes_of_network(net, dims)
    usual = [(n,) * dims for n in REFERENCE_SIZES] if spatial_size is None else []
    if example_inputs is not None:
        images = [tuple(t.shape[-dims:]) for t in tensors_in(example_inputs) if t.dim() >= dims + 2]
        named, usual = [*images, (1,) * dims][:1], []
    reason = ""
    for sizes_only in (True, False):
        for channels in [in_channels] if isinstance(in_channels, int) else in_channels:
            for size in [*named, *(each for each in usual if sizes_only or prod(each) <= MOST_REAL_VOXELS)]:
                inputs = partial(make_inputs, net, size, channels, example_inputs)
                try:
                    return _SizesPass(net, Trace(size, channels, sizes_only)).fill(inputs)
                except _OtherChannels as error:
                    reason = reason or first_line(error)
                    break
                except Exception as error:  # networks raise anything for a size that they cannot take
                    reason = reason or first_line(error)
    return Trace(failure=f"no size could be sent through it ({reason})", reason=reason)
