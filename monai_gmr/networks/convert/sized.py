"""Class of a converted network: a subclass whose public methods keep a trail of sizes and which TorchScript can compile."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from monai_gmr.networks.convert.trace import first_line, make_inputs
from monai_gmr.networks.layers.size_trail import TrailStart, begin_trail, end_trail
from monai_gmr.ops.free_sizes import recorded_number
from monai_gmr.utils import ConfigurationError, kept_buffers, tensors_in

# sizes to try for the recorded image; a graph recorded on a small image serves all sizes
SCRIPT_SIZES = (16, 32, 33, 48, 64, 65, 96, 128)
# voxels beyond the recorded size, to check that the graph works for other sizes
OTHER_SIZES = (1, 2, 3, 16, 32)

# at a graph break, the compiler would separate these two from the code between them
OUTSIDE_GRAPHS = torch.compiler.disable(begin_trail), torch.compiler.disable(end_trail)


def _keeps_trail(method: Callable) -> Callable:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        start: TrailStart | None = getattr(self, "trail_start", None)
        if start is None:
            return method(self, *args, **kwargs)
        if torch.jit.is_tracing() and self.conversion_report.evaluation_limits:
            # parts that use positions may branch on the size, so the graph refuses other sizes
            args = tuple(
                each.expand(-1, -1, *map(recorded_number, each.shape[2:]))
                if isinstance(each, torch.Tensor) and each.dim() > 2
                else each
                for each in args
            )
        inputs, output = (*args, *kwargs.values()), None
        begin, end = (begin_trail, end_trail) if torch.compiler.is_compiling() else OUTSIDE_GRAPHS
        trail = begin(start, inputs, self)
        try:
            output = method(self, *args, **kwargs)
            return output
        finally:
            end(trail, output)

    return call


def _new(cls: type, *args: Any) -> Any:
    made = sized_class(cls)
    return made.__new__(made, *args)


def _reduce(self: Any, protocol: Any) -> Any:
    """Reduce for ``copy`` and ``pickle``, which make the class again from the given one."""
    parent: Any = type(self).__mro__[1]
    make, args, *rest = parent.__reduce_ex__(self, protocol)
    return (_new, (parent, *args[1:]), *rest) if args[:1] == (type(self),) else (make, args, *rest)


@functools.cache
def sized_class(cls: Any) -> Any:
    """A subclass whose ``forward`` and public methods keep the trail of sizes that ``trail_start`` begins.

    ``torch.jit.trace`` records a graph for every size; if the network's report has limits, the graph refuses other sizes than the recorded
    one. Instances are copied and pickled like those of the given class, and ``torch.jit.script`` compiles the graphs of
    :func:`scriptable_network`.
    """
    if "trail_start" in vars(cls):
        return cls
    methods: dict[str, Any] = {"forward": _keeps_trail(cls.forward)}
    for owner in cls.__mro__:
        if not owner.__module__.startswith("torch."):
            for name, value in vars(owner).items():
                if inspect.isfunction(value) and not name.startswith("_"):
                    methods.setdefault(name, _keeps_trail(value))
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    members = {"trail_start": None, "__reduce_ex__": _reduce, "__prepare_scriptable__": scriptable_network}
    return type(cls.__name__, (cls,), names | members | methods)


class RecordedPasses(nn.Module):
    """A network as two recorded graphs that share its weights; without one for training if outputs have another type there."""

    def __init__(self, evaluation_pass: nn.Module, training_pass: nn.Module | None) -> None:
        super().__init__()
        self.evaluation_pass = evaluation_pass
        self.training_pass = training_pass

    def forward(self, x: torch.Tensor):
        if self.training:
            if self.training_pass is not None:
                return self.training_pass(x)
            raise RuntimeError("this network's output has another form while it trains: call eval() first.")
        return self.evaluation_pass(x)


def scriptable_network(net: Any) -> nn.Module:
    """Module that ``torch.jit.script`` compiles in place of a converted network: its graphs, with symbolic sizes; takes only an image.

    TorchScript compiles modules one by one, so upsampling cannot know the sizes on the way down; a graph has them as values. The dtype is
    fixed when the graphs are recorded. Graphs hold tables of taps that the network does not save: load a state dict into the network before
    recording, or with ``strict=False`` after it. The network, its buffers and the random generators stay unchanged.

    Raises:
        ConfigurationError: if the network takes more than an image, or its graph depends on the recorded size.
    """
    mode = net.training
    try:
        with torch.random.fork_rng(), torch.no_grad(), kept_buffers(net), warnings.catch_warnings():
            # warnings about branches on numbers that are equal for every size
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            image = _first_image(net.eval())
            evaluation = torch.jit.trace(net, image, check_trace=False, strict=False)
            _check_other_sizes(net, evaluation, image)
            made = RecordedPasses(evaluation, torch.jit.trace(net.train(), image, check_trace=False, strict=False))
            try:
                torch.jit.script(made)
            except RuntimeError:
                made = RecordedPasses(evaluation, None)
    finally:
        net.train(mode)
    return made.train(mode)


def _make_image(net: Any, size: list[int]) -> torch.Tensor:
    return torch.rand_like(make_inputs(net, tuple(size), net.trail_start.in_channels)[0][0])


def _first_image(net: Any) -> torch.Tensor:
    reference, reason = list(net.trail_start.reference), ""
    for size in [*([n] * len(reference) for n in SCRIPT_SIZES), reference]:
        image = _make_image(net, size)
        try:
            net(image)
            return image
        except Exception as error:  # networks raise anything for a size that they cannot take
            reason = first_line(error)
    raise ConfigurationError(
        f"{type(net).__name__} cannot be scripted, because it did not take only an image ({reason}): record it with your inputs by "
        "torch.jit.trace."
    )


def _check_other_sizes(net: Any, recorded: nn.Module, image: torch.Tensor) -> None:
    for more in OTHER_SIZES:
        other = _make_image(net, [n + more for n in image.shape[2:]])
        try:
            expected = tensors_in(net(other))
        except Exception:  # the network does not take this size
            continue
        try:
            alike = all(
                one.shape == two.shape and torch.allclose(one, two, 1e-3, 1e-3 * float(one.abs().max()))
                for one, two in zip(expected, tensors_in(recorded(other)))
            )
        except RuntimeError:  # a graph that refuses the size
            alike = False
        if not alike:
            raise ConfigurationError(
                f"{type(net).__name__} cannot be scripted for all sizes, because its forward branches on the size of the image: record it "
                "by torch.jit.trace for each size."
            )
