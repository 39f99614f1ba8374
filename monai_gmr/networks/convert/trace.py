"""One pass of an image of a reference size through a network, without computing: sizes that layers see, and what becomes of answers."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.parameter import UninitializedParameter
from torch.utils._python_dispatch import TorchDispatchMode

from monai_gmr.networks.layers.size_trail import Levels, tensors_in
from monai_gmr.ops.backend import set_backend

# multiples of 32 first, then what odd factors and patches ask for
REFERENCE_SIZES = (128, 96, 64, 256, 224, 160, 192, 48, 32, 144, 162, 81, 129, 97, 65, 33, 320, 512, 384, 270, 16)
# of an image in a pass that computes
MOST_REAL_VOXELS = 32**3
# the sizes that MONAI's nets are built for, when they are built for one
SIZE_ATTRIBUTES = ("input_image_size", "img_size", "image_size", "in_shape")
# what passes on a linear layer's answer as it is, or only squashes it into an output
PASSING = [
    "add",
    "sub",
    "cat",
    "stack",
    "view",
    "reshape",
    "_unsafe_view",
    "permute",
    "transpose",
    "slice",
    "select",
    "split",
    "unsqueeze",
    "squeeze",
    "expand",
    "clone",
    "contiguous",
    "_to_copy",
    "alias",
    "detach",
    "neg",
    "mean",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d",
    "constant_pad_nd",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_trilinear3d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
    "upsample_bicubic2d",
    "pixel_shuffle",
    "unbind",
    "narrow",
    "flatten",
    "sigmoid",
    "_softmax",
    "_log_softmax",
    "tanh",
    "native_dropout",
    "split_with_sizes",
]
FLATTENING = ("view", "reshape", "_unsafe_view", "flatten")
LINEAR = ("convolution", "addmm", "mm", "bmm", "matmul", "linear", "_convolution")
JOINING = ("add", "sub", "cat", "stack")

Sizes = tuple[int, ...]


@dataclass
class Trace:
    """What a pass has shown.

    Attributes:
        size: the reference size.
        in_channels: channels of the image.
        fake: whether the tensors had no values.
        calls: of each module that was called, the sizes before and after, for each call.
        paddings: modules that do nothing but pad with zeros, and by how much, as ``torch.nn.functional.pad`` counts.
        pads: of each convolution, the padding module whose result alone it takes.
        heads: convolutions whose answer is the network's, with no nonlinearity in between.
        shortcuts: convolutions whose answer is joined with another path and then met by linear layers only.
        flattened: linear layers that take all voxels of an image at once.
        failure: why no pass was possible.
        network: name by which layers know the trail of sizes of this network.
    """

    size: Sizes = ()
    in_channels: int = 0
    fake: bool = True
    calls: dict[nn.Module, list[tuple[Sizes, Sizes]]] = field(default_factory=dict)
    paddings: dict[nn.Module, list[int]] = field(default_factory=dict)
    pads: dict[nn.Module, nn.Module] = field(default_factory=dict)
    heads: set[nn.Module] = field(default_factory=set)
    shortcuts: set[nn.Module] = field(default_factory=set)
    flattened: set[nn.Module] = field(default_factory=set)
    failure: str | None = None
    network: str = field(default_factory=lambda: uuid.uuid4().hex)

    def levels(self, module: nn.Module) -> Levels:
        """Where a module stands, as layers that keep a trail of sizes take it."""
        return Levels(self.network, [(list(given), list(answer)) for given, answer in self.calls.get(module, [])])


class _Followed(TorchDispatchMode):
    """Carries along, on tensors, the convolutions whose answers they are."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self.bent: set[nn.Module] = set()

    @staticmethod
    def _passes(name: str, args: tuple) -> bool:
        return name in PASSING or (name in ("mul", "div") and len(tensors_in(args)) == 1)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0].rstrip("_")
        images = [t for t in tensors_in(args) if t.dim() == len(self.trace.size) + 2]
        if name == "constant_pad_nd" and (len(args) < 3 or args[2] == 0):
            output._gmr_padded = args[0], list(args[1])
        if name in FLATTENING and images and images[0].shape[2:].numel() > 1 and output.dim() == 2:
            output._gmr_flattened = True
        sources = [tag for tensor in tensors_in((args, kwargs)) for tag in getattr(tensor, "_gmr_answers", ())]
        if name in LINEAR:
            self.trace.shortcuts |= {module for module, joined in sources if joined}
        elif sources and not self._passes(name, args):
            self.bent |= {module for module, _ in sources}
        elif sources:
            tags = {(module, joined or name in JOINING) for module, joined in sources}
            for tensor in tensors_in(output):
                tensor._gmr_answers = tags  # type: ignore[attr-defined]
        return output


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is one of torch's convolutions, or stands for one."""
    return isinstance(module, nn.modules.conv._ConvNd)


@contextmanager
def _in_eval_mode(net: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _watch(net: nn.Module, trace: Trace, dims: int) -> list:
    """Hooks that fill a trace."""
    outputs: dict[int, tuple[torch.Tensor, nn.Module]] = {}

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        given = [t for t in tensors_in(args) if t.dim() == dims + 2]
        answers = [t for t in tensors_in(output) if t.dim() == dims + 2]
        if is_convolution(module):
            for tensor in answers:
                tensor._gmr_answers = {(module, False)}  # type: ignore[attr-defined]
            source = outputs.get(id(given[0])) if given else None
            if source is not None:
                trace.pads[module] = source[1]
        if isinstance(module, nn.Linear) and any(getattr(t, "_gmr_flattened", False) for t in tensors_in(args)):
            trace.flattened.add(module)
        source, padding = getattr(answers[0], "_gmr_padded", (None, [])) if answers else (None, [])
        if given and source is given[0] and len(padding) <= 2 * dims:
            trace.paddings[module] = padding
            # kept, so that no later tensor takes its number
            outputs[id(answers[0])] = (answers[0], module)
        if given and answers:
            sizes = tuple(given[0].shape[2:]), tuple(answers[0].shape[2:])
            if sizes not in trace.calls.setdefault(module, []):
                trace.calls[module].append(sizes)

    return [module.register_forward_hook(after) for module in net.modules()]


def run_without_values(
    net: nn.Module, inputs: Callable[[], tuple[tuple, dict]], fake: bool, watch: TorchDispatchMode
) -> Any:
    """The answer of a network in eval mode under a dispatch mode, without gradients.

    Args:
        net: the network.
        inputs: makes its arguments.
        fake: whether on fake tensors, which have sizes and no values.
        watch: sees each operation.
    """
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    # a size that does not fit is an answer, not an error to print
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    mode: Any = FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext()
    try:
        # kernels could read nothing, and a pass that does not compute is no reason to compile them
        with _in_eval_mode(net), set_backend("dense"), mode, watch, torch.no_grad():
            args, kwargs = inputs()
            return net(*args, **kwargs)
    finally:
        logger.setLevel(level)


def _run(net: nn.Module, trace: Trace, inputs: Callable[[], tuple[tuple, dict]]) -> None:
    handles, followed = _watch(net, trace, len(trace.size)), _Followed(trace)
    try:
        output = run_without_values(net, inputs, trace.fake, followed)
        for tensor in tensors_in(list(output.values()) if isinstance(output, dict) else output):
            trace.heads |= {module for module, _ in getattr(tensor, "_gmr_answers", ())}
        trace.shortcuts -= followed.bent
    finally:
        for handle in handles:
            handle.remove()


def sizes_of_network(net: nn.Module, dims: int) -> list[Sizes]:
    """Sizes that a network says it is built for."""
    found = []
    for name in SIZE_ATTRIBUTES:
        value = getattr(net, name, None)
        if isinstance(value, Sequence) and len(value) in (dims, dims + 1) and all(isinstance(n, int) for n in value):
            found.append(tuple(value)[-dims:])
    return found


def materialise(net: nn.Module, inputs: Callable[[], tuple[tuple, dict]]) -> None:
    """Give lazily built layers their parameters, by one real pass."""
    if any(isinstance(each, UninitializedParameter) for each in net.parameters()):
        with _in_eval_mode(net), torch.no_grad():
            args, kwargs = inputs()
            net(*args, **kwargs)


def make_inputs(
    net: nn.Module, size: Sizes, in_channels: int, example_inputs: Sequence | Mapping[str, Any] | None = None
) -> tuple[tuple, dict]:
    """What a network is called with in a pass: an image of zeros, or copies of given inputs on its device and in its precision.

    Args:
        net: the network.
        size: of the image.
        in_channels: of the image.
        example_inputs: what its ``forward`` takes, in order or by name; default: the image.
    """
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


def size_of_inputs(example_inputs: Sequence | Mapping[str, Any], dims: int) -> Sizes | None:
    """The spatial size of the first of given inputs that is an image."""
    values = list(example_inputs.values()) if isinstance(example_inputs, Mapping) else list(example_inputs)
    return next((tuple(t.shape[-dims:]) for t in tensors_in(values) if t.dim() >= dims + 2), None)


def trace_sizes(
    net: nn.Module,
    dims: int,
    in_channels: int | Sequence[int],
    spatial_size: Sequence[int] | None = None,
    example_inputs: Sequence | Mapping[str, Any] | None = None,
) -> Trace:
    """Send an image of a reference size through a network on fake tensors, which have sizes and no values; where a network asks for
    values, on real ones of a small size.

    Args:
        net: the network; it and its buffers stay as they are.
        dims: number of spatial axes.
        in_channels: channels of the image, or several numbers to try.
        spatial_size: the reference size; default: the first of those that the network names and some usual ones that it can take.
        example_inputs: what its ``forward`` takes, in order or by name; default: the image alone.

    Returns:
        the trace; its ``failure`` is one sentence if no size was possible.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
        >>> trace = trace_sizes(net, 2, 1)
        >>> trace.calls[net[0]], trace.heads == {net[2]}
        ([((128, 128), (64, 64))], True)
    """
    named = [tuple(spatial_size)] if spatial_size is not None else sizes_of_network(net, dims)
    usual = [(n,) * dims for n in REFERENCE_SIZES] if spatial_size is None else []
    if example_inputs is not None:
        named, usual = [size_of_inputs(example_inputs, dims) or (1,) * dims], []
    reason = ""
    for fake in (True, False):
        for channels in [in_channels] if isinstance(in_channels, int) else in_channels:
            for size in [*named, *(each for each in usual if fake or prod(each) <= MOST_REAL_VOXELS)]:
                trace = Trace(size, channels, fake)
                try:
                    _run(net, trace, partial(make_inputs, net, size, channels, example_inputs))
                    return trace
                except Exception as error:  # whatever a network says to a size that it cannot take
                    reason = reason or (str(error).strip() or type(error).__name__).splitlines()[0][:160].rstrip(".")
    return Trace(failure=f"no size could be sent through it ({reason})")
