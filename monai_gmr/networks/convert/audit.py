"""Finds operations of a converted network that are not exact, by passing a reference image and one that is a voxel longer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn

from monai_gmr.networks.annealing import annealed_layers
from monai_gmr.networks.convert.fields import POINTWISE, REDUCING
from monai_gmr.networks.convert.measure import inexact_sentence
from monai_gmr.networks.convert.shapes import SizesBackend
from monai_gmr.networks.convert.trace import CONVOLUTIONS, Inputs, Pass, Trace, first_line, make_inputs
from monai_gmr.symmetry import PointGroup, stride_is_exact
from monai_gmr.utils import tensors_in

OURS = "monai_gmr.networks.layers.", "monai_gmr.networks.convert.layers"
RANDOM = ("randn", "randn_like", "rand", "rand_like", "normal", "normal_", "uniform_", "bernoulli", "bernoulli_")
# operations that give tensors of one number; all operations on such tensors give such tensors, except counting ones
FILLING = re.compile("(new_)?(zeros|ones|full|empty)(_like|_strided)?|scalar_tensor|" + "|".join(RANDOM))
COUNTING = ("cumsum", "cumprod", "tril", "triu", "nonzero", "eye")
OWN_WEIGHT = "has a weight of its own for each voxel"
OWN_NUMBER = "joins voxels with numbers that depend on their positions"
ONE_AXIS = "treats the axes of an image differently"
FINDS_PLACES = "computes the places of voxels"
JOINING = ("add", "sub", "mul", "div", "maximum", "minimum", "where", "cat", "stack")
# operations that do the same at all voxels, or whose exceptions are checked below
FOLLOWED = re.compile(
    "_?softmax|_?log_softmax|_?prelu(_kernel)?|_?batch_norm.*|_?native_batch_norm.*|cudnn_batch_norm|native_group_norm|_?convolution"
    "|max_pool.*|avg_pool.*|_?adaptive_avg_pool.*|adaptive_max_pool.*|_?upsample_.*|constant_pad_nd|reflection_pad.*"
    "|replication_pad.*|slice|select|index"
)
VIEWING = ("view", "_unsafe_view", "reshape")
PLACES = {
    "roll": "moves voxels along an axis",
    "flip": "mirrors an axis",
    "grid_sampler_2d": "samples an image at positions that it computes",
    "grid_sampler_3d": "samples an image at positions that it computes",
    "pixel_shuffle": "makes channels the places of voxels",
    "pixel_unshuffle": "makes the places of voxels channels",
    "im2col": "takes the voxels of a patch by their place",
    "col2im": "takes the voxels of a patch by their place",
    "unfold": "takes the voxels of a patch by their place",
    "cumsum": "adds up along an axis",
    "cumprod": "multiplies along an axis",
    "sort": "sorts voxels along an axis",
    "argmax": FINDS_PLACES,
    "argmin": FINDS_PLACES,
}
# place of the argument that is an axis, -1 if it is left out
AXIS_AT = {"roll": 2, "flip": 1, "cumsum": 1, "cumprod": 1, "sort": 1, "argmax": 1, "argmin": 1}


def remaining_operations(
    net: nn.Module,
    trace: Trace,
    group: PointGroup,
    in_channels: int,
    example_inputs: Any = None,
    known: Sequence[str] = (),
    measured: bool = True,
) -> list[str]:
    """Sentences on operations of a converted network that are not exact under a group, for each module that calls them and is not
    ``known``; with ``measured``, if there are none but operations without a rule are called, the network is measured.

    Example:
        >>> from monai_gmr.networks.convert.trace import trace_sizes
        >>> net = nn.Sequential(nn.ZeroPad2d((1, 0, 0, 0)))
        >>> remaining_operations(net, trace_sizes(net, 2, 1), PointGroup.from_name("all", 2), 1)
        ['0: pads one end of an axis more than the other']
    """
    sizes = [trace.size] if example_inputs is not None else [trace.size, tuple(n + 1 for n in trace.size)]
    sentences: dict[str, None] = {}
    unknown: dict[tuple[str, str], None] = {}
    for size in sizes:
        audit = _Audit(net, size, group, known)
        try:
            audit.follow(partial(make_inputs, net, size, in_channels, example_inputs), trace.sizes_only)
            sentences |= audit.sentences
            unknown |= audit.unknown
        except Exception as error:  # not every network takes a voxel more
            if size == trace.size:
                sentences[f"what it does outside of its layers could not be audited ({first_line(error)})"] = None
    # rests of an annealed conversion are not exact before they are dropped
    if measured and unknown and not (sentences or annealed_layers(net)):
        sentence = inexact_sentence(net, trace, group, in_channels, example_inputs, list(unknown))
        return [sentence] if sentence else []
    return list(sentences)


def _axes(tensor: torch.Tensor) -> tuple[int, ...]:
    """Place of each axis of a tensor in the image ``(batch, channels, *spatial)`` that it comes from."""
    return getattr(tensor, "_gmr_axes", tuple(range(tensor.dim())))


def _is_given(tensor: torch.Tensor) -> bool:
    """Whether a tensor comes from the input of the network."""
    return hasattr(tensor, "_gmr_given")


def _exchanged(tensor: torch.Tensor) -> bool:
    """Whether the spatial axes of an image are in another order."""
    spatial = [axis for axis in _axes(tensor) if axis > 1]
    return spatial != sorted(spatial)


def _pass_on_axes(given: Sequence[torch.Tensor], results: Sequence[torch.Tensor]) -> None:
    source = next((each for each in given if hasattr(each, "_gmr_axes")), None)
    for result in results if source is not None else ():
        if source is not None and result.dim() == source.dim():
            result._gmr_axes = _axes(source)  # type: ignore[attr-defined]


def _is_ours(module: nn.Module) -> bool:
    """Whether a module is a layer of this library, which is exact as a whole, or computes like one."""
    kind = type(module)
    names = kind.__module__, getattr(getattr(kind, "forward", None), "__module__", "")
    return any(
        name.startswith(OURS) or (name.startswith("monai_gmr.") and not list(module.children())) for name in names
    )


class _Audit(Pass):
    """Judges each operation outside of this library's layers, and notes the module that calls it."""

    def __init__(self, net: nn.Module, size: Sequence[int], group: PointGroup, known: Sequence[str]) -> None:
        super().__init__(net)
        self.dims, self.group, self.known = len(size), group, set(known)
        # sizes of images, to tell them from tables of attention
        self.sizes = {tuple(size)}
        self.weights = {id(each) for each in [*net.parameters(), *net.buffers()]}
        self.names = {module: name for name, module in net.named_modules()}
        self.ours = {module for module in self.names if _is_ours(module)}
        self.stack: list[nn.Module] = []
        self.backend = SizesBackend(self._in_ours)
        self.sentences: dict[str, None] = {}
        # operations on voxels that no rule covers
        self.unknown: dict[tuple[str, str], None] = {}
        for module, name in self.names.items():
            # private: torch has no public way to ask for hooks
            if module._forward_hooks or module._forward_pre_hooks:
                self.unknown[name or type(net).__name__, "a hook"] = None

    def follow(self, inputs: Inputs, sizes_only: bool) -> None:
        """Runs the pass, and looks at the network's output."""

        def marked() -> tuple[tuple, dict]:
            args, kwargs = inputs()
            for tensor in tensors_in((args, kwargs)):
                tensor._gmr_given = True  # type: ignore[attr-defined]
                if tensor.dim() >= self.dims + 2:
                    tensor._gmr_voxels = True  # type: ignore[attr-defined]
            return args, kwargs

        for tensor in tensors_in(self.run(marked, sizes_only)):
            if not _is_given(tensor):
                self.unknown[type(self.net).__name__, "an answer that no operation of torch gives"] = None
            if _exchanged(tensor):
                self.sentences[f"{type(self.net).__name__}: its output is an image with two axes exchanged"] = None

    def enter(self, module: nn.Module, args: tuple) -> None:
        self.stack.append(module)

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        if module in self.ours:
            _pass_on_axes(tensors_in(args), tensors_in(output))
            # counts as one operation on its inputs and weights
            self._mark("", (args, list(module.parameters())), {}, output)
        if module in self.ours or isinstance(module, CONVOLUTIONS):
            self.sizes |= {tuple(each.shape[2:]) for each in tensors_in(output) if each.dim() == self.dims + 2}
        while self.stack and self.stack.pop() is not module:
            pass

    def _in_ours(self) -> bool:
        """Whether one of this library's layers runs."""
        return not self.ours.isdisjoint(self.stack)

    def look(self, name: str, args: tuple, kwargs: dict, output: Any) -> None:
        if self._in_ours():
            return
        self._mark(name, args, kwargs, output)
        if not self.stack:
            return
        sentence = self._sentence(name, args, output) or self._follow_axes(name, args, output)
        caller = self.names[self.stack[-1]] or type(self.net).__name__
        if sentence and not self.known & {self.names[each] for each in self.stack}:
            self.sentences[f"{caller}: {sentence}"] = None
        if not sentence and not self._is_followed(name, args, kwargs, output):
            self.unknown[caller, name] = None

    def _mark(self, name: str, args: tuple, kwargs: dict, output: Any) -> None:
        """Mark results that come from the input, have one number everywhere, or are positions of voxels."""
        sources = tensors_in((args, kwargs))
        voxels = any(hasattr(each, "_gmr_voxels") for each in sources)
        given, inherits = any(map(_is_given, sources)), bool(sources) and name not in COUNTING
        alike = bool(FILLING.fullmatch(name)) or (inherits and all(hasattr(each, "_gmr_alike") for each in sources))
        for tensor in tensors_in(output):
            if voxels and not self._is_pooled(name, sources[0], tensor):
                tensor._gmr_voxels = True  # type: ignore[attr-defined]
            if given:
                tensor._gmr_given = True  # type: ignore[attr-defined]
            if alike:
                tensor._gmr_alike = True  # type: ignore[attr-defined]
            elif hasattr(tensor, "_gmr_alike"):  # changed in place
                del tensor._gmr_alike
        if name in ("max", "min") and isinstance(output, tuple) and self._is_image(args[0]) and self._spatial(args, 1):
            output[1]._gmr_places = True

    def _follow_axes(self, name: str, args: tuple, output: Any) -> str | None:
        """Carry the axes of images along; returns a sentence if an image is joined with its transpose."""
        given = [each for each in tensors_in(args) if each.dim() == self.dims + 2]
        if name in ("permute", "transpose") and given:
            if not hasattr(given[0], "_gmr_axes") and not self._is_image(given[0]):
                # such as an embedding, whose channels come last
                return None
            axes = list(range(self.dims + 2))
            if name == "permute":
                axes = [axis % len(axes) for axis in args[1]]
            else:
                one, other = (axis % len(axes) for axis in args[1:3])
                axes[one], axes[other] = other, one
            output._gmr_axes = tuple(_axes(given[0])[axis] for axis in axes)
            return None
        _pass_on_axes(given, tensors_in(output))
        images = [each for each in given if self._is_image(each)]
        differ = len({_exchanged(each) for each in images}) > 1
        return "joins an image with one whose axes are exchanged" if differ and name.rstrip("_") in JOINING else None

    def _is_pooled(self, name: str, source: torch.Tensor, output: torch.Tensor) -> bool:
        """Whether an operation reduces all voxels to one number."""
        one_voxel = output.dim() == self.dims + 2 and output.shape[2:].numel() == 1
        return one_voxel or (bool(REDUCING.fullmatch(name)) and source.dim() == self.dims + 2 and output.dim() == 2)

    def _is_followed(self, name: str, args: tuple, kwargs: dict, output: Any) -> bool:
        """Whether an operation is known to be exact if no sentence says otherwise."""
        sources, plain = tensors_in((args, kwargs)), name.rstrip("_")
        voxels = [each for each in sources if hasattr(each, "_gmr_voxels")]
        if name in RANDOM or not voxels:
            return name not in RANDOM
        if any(each.dim() != self.dims + 2 for each in voxels):
            return len(sources) == 1 and bool(POINTWISE.fullmatch(plain))
        if name in VIEWING:
            return output.shape[-self.dims :] == voxels[0].shape[2:]
        if plain in ("cat", "stack"):
            return plain == "cat" and len(args) > 1 and args[1] == 1
        if REDUCING.fullmatch(plain):
            axes = self._spatial(args, 1)
            return not axes or (len(axes) == self.dims and not plain.startswith("arg"))
        return bool(POINTWISE.fullmatch(plain) or plain in JOINING or FOLLOWED.fullmatch(name))

    def _is_image(self, value: Any) -> bool:
        if not isinstance(value, torch.Tensor) or value.dim() < self.dims + 2:
            return False
        size = value.shape[-self.dims :]
        return size.numel() > 1 and tuple(size) in self.sizes

    def _sentence(self, name: str, args: tuple, output: Any) -> str | None:
        if name in RANDOM and self._is_image(output):
            return "draws random numbers for each voxel: its outputs rotate with the image only on average"
        if name in VIEWING and isinstance(args[0], torch.Tensor):
            return self._viewed(args[0], output)
        plain = name.rstrip("_")
        if any(hasattr(each, "_gmr_places") for each in tensors_in(args)):
            return FINDS_PLACES
        if POINTWISE.fullmatch(plain) or plain in JOINING:
            return self._joined(tensors_in(args))
        if not args or not self._is_image(args[0]):
            return None
        if plain == "constant_pad_nd" or plain.startswith(("reflection_pad", "replication_pad")):
            return self._padded(args)
        if plain.strip("_") in ("softmax", "log_softmax"):
            return None if self._keeps(self._spatial(args, 1)) else ONE_AXIS
        for beginning, look in LOOKS.items():
            if name.startswith(beginning):
                return look(args, output, self.dims)
        if name in PLACES and (name not in AXIS_AT or self._spatial(args, AXIS_AT[name])):
            return PLACES[name]
        return None

    def _spatial(self, args: tuple, place: int) -> set[int]:
        """Axes of the image that an operation works along, given by its argument at ``place``; all axes if none is given there."""
        given = args[place] if len(args) > place else -1
        if given is None:
            return {*range(self.dims)}
        before = args[0].dim() - self.dims
        axes = {axis % args[0].dim() - before for axis in (given if isinstance(given, list | tuple) else [given])}
        return {axis for axis in axes if axis >= 0}

    def _keeps(self, axes: set[int]) -> bool:
        """Whether the group exchanges none of these axes with another axis."""
        return self.group.keeps([axis in axes for axis in range(self.dims)])

    def _padded(self, args: tuple) -> str | None:
        ends = [*args[1], *(0,) * 2 * self.dims][: 2 * self.dims]
        # the last axis first
        pairs = [(ends[i], ends[i + 1]) for i in range(0, len(ends), 2)][::-1]
        if any(one != other for one, other in pairs):
            return "pads one end of an axis more than the other"
        return None if self.group.keeps(pairs) else "pads one axis more than another"

    def _joined(self, tensors: Sequence[torch.Tensor]) -> str | None:
        """Sentence on what is joined with an image voxel by voxel and does not rotate with it."""
        images = (each for each in tensors if each.dim() == self.dims + 2 and self._is_image(each) and _is_given(each))
        x = next(images, None)
        if x is None:
            return None
        for other in tensors:
            # axes of the image along which the other tensor varies
            ends = [-i for i in range(1, min(other.dim(), x.dim()) + 1) if other.shape[-i] > 1 and other.stride(-i)]
            varies = {_axes(x)[i] - 2 for i in ends if _axes(x)[i] > 1}
            if _is_given(other):
                if other.dim() == x.dim() and not self._keeps(varies) and min(x.shape[2:]) > 1:
                    return ONE_AXIS
            # a vector of weights belongs to channels that come last
            elif varies and not hasattr(other, "_gmr_alike") and not (id(other) in self.weights and other.dim() == 1):
                return OWN_WEIGHT if id(other) in self.weights else OWN_NUMBER
        return None

    def _viewed(self, source: torch.Tensor, output: torch.Tensor) -> str | None:
        dims, tail = self.dims, output.shape[-self.dims :]
        if source.dim() == 2 and output.dim() == dims + 2:
            vector = source.shape[0] == output.shape[0] and tail.numel() > 1
            return "makes the entries of a vector voxels by their place" if vector else None
        if not self._is_image(source) or source.dim() != dims + 2 or output.dim() <= dims + 2:
            return None
        kept = tail == source.shape[-dims:] or output.shape[-1] == source.shape[-dims:].numel()
        return None if kept else "cuts an image into patches, from one end"


def _sliced(args: tuple, output: torch.Tensor, dims: int) -> str | None:
    x, axis = args[0], (args[1] if len(args) > 1 else 0) % args[0].dim()
    start, end, step = (*args[2:], *(None,) * 3)[:3]
    n = x.shape[axis]
    taken = range(n)[slice(start, end, step or 1)]
    if axis < x.dim() - dims or not len(taken):
        return None
    return None if taken[0] == n - 1 - taken[-1] else "cuts off voxels, or steps, from one end of an axis"


def _selected(args: tuple, output: torch.Tensor, dims: int) -> str | None:
    x, axis = args[0], args[1] % args[0].dim()
    n = x.shape[axis]
    return "takes voxels by their place" if axis >= x.dim() - dims and 2 * (args[2] % n) + 1 != n else None


def _picked(args: tuple, output: torch.Tensor, dims: int) -> str | None:
    x, chosen = args[:2]
    axes, masked = [chosen], False
    if isinstance(chosen, list | tuple):
        axes = [axis for axis, index in enumerate(chosen) if index is not None]
        masked = any(chosen[axis].dtype == torch.bool for axis in axes)
    spatial = any(axis % x.dim() >= x.dim() - dims for axis in axes)
    return "takes voxels by their place" if spatial and not masked else None


def _nearest(args: tuple, output: torch.Tensor, dims: int) -> str | None:
    exact = all(m % n == 0 for n, m in zip(args[0].shape[-dims:], output.shape[-dims:]))
    return None if exact else "interpolates by nearest to a size that is not a multiple"


def _linear(args: tuple, output: torch.Tensor, dims: int) -> str | None:
    scales = [f for each in args[3:] for f in (each if isinstance(each, list | tuple) else [each]) if f is not None]
    fits = all(n * f == m for n, f, m in zip(args[0].shape[-dims:], scales, output.shape[-dims:]))
    return None if args[2] or fits else "interpolates by a factor that does not fit the size"


def _stepped(args: tuple, output: torch.Tensor, dims: int) -> str | None:
    if args[0].dim() != dims + 2:
        return None
    given = [each for each in args[1:5] if not isinstance(each, bool)]
    given += [(), 0, 1][len(given) - 1 :]
    lengths = [(list(each) if isinstance(each, list | tuple) else [each]) * dims for each in given]
    window, step, padding, dilation = lengths
    return _centred(args[0].shape[-dims:], window, step or window, padding, dilation)


def _centred(sizes: Sequence[int], *lengths: Sequence[int]) -> str | None:
    exact = all(stride_is_exact(*length) for length in zip(sizes, *lengths))
    return None if exact else "steps from one end of an axis, not about its centre"


def _convolved(args: tuple, output: torch.Tensor, dims: int) -> str | None:
    window = args[1].shape[2:]
    if len(window) != dims:
        return None
    if prod(window) > 1:
        return "convolves with a kernel that rotations and mirrors change"
    return None if args[6] else _centred(args[0].shape[-dims:], window, args[3], args[4], args[5])


def _normed(args: tuple, output: Any, dims: int) -> str | None:
    shape, weight = args[1], args[2]
    own = len(shape) > 1 and prod(shape[-dims:]) > 1 and weight is not None
    return OWN_WEIGHT if own else None


LOOKS: dict[str, Callable[[tuple, Any, int], str | None]] = {
    "slice": _sliced,
    "select": _selected,
    "index": _picked,
    "upsample_nearest": _nearest,
    "_upsample_nearest_exact": _nearest,
    "upsample": _linear,
    "max_pool": _stepped,
    "avg_pool": _stepped,
    "convolution": _convolved,
    "native_layer_norm": _normed,
}
