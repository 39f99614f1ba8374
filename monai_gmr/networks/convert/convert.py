"""Conversion of any network to an equivariant one: kernels, strides, pools and upsampling."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from monai.utils import ensure_tuple
from torch import nn
from torch.nn.parameter import UninitializedParameter

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import check_choice
from monai_gmr.networks.annealing import pending_sentence
from monai_gmr.networks.convert.annealed import with_rest
from monai_gmr.networks.convert.arguments import (
    check_built,
    check_network,
    check_no_rings,
    check_selectors,
    check_trace,
    check_windows,
    group_arguments,
    input_of,
    selects,
)
from monai_gmr.networks.convert.audit import remaining_operations
from monai_gmr.networks.convert.fields import trace_fields
from monai_gmr.networks.convert.group_swaps import joins_fields
from monai_gmr.networks.convert.options import Options, Swap
from monai_gmr.networks.convert.report import ConversionReport, ConvertedModule
from monai_gmr.networks.convert.sized import sized_class
from monai_gmr.networks.convert.swaps import CONVERTIBLE, ON_FIELDS, one_sided_ends, swap
from monai_gmr.networks.convert.ties import shared_parameters, tie_again
from monai_gmr.networks.convert.trace import (
    CONVOLUTIONS,
    Pass,
    convolutions_of,
    make_inputs,
    sizes_of_network,
    trace_sizes,
)
from monai_gmr.networks.layers import AnnealedConv, split_convolution
from monai_gmr.networks.layers.factories import Convolution
from monai_gmr.networks.layers.gmr_conv import RINGS
from monai_gmr.networks.layers.size_trail import TrailStart
from monai_gmr.symmetry.group_structure import GroupSpec
from monai_gmr.utils import ConfigurationError, SymmetryWarning, warn

Selector = str | type | Callable[[str, nn.Module], bool]
Selectors = Annotated[Selector | Sequence[Selector] | None, "names, classes, or functions of name and module"]
NEEDED = "give in_channels and spatial_size of its image, or example_inputs for a network that takes more than an image"
POSITIONS = re.compile(r"pos(ition)?(al)?_?emb|relative_position_bias|rel_pos")


@checked_arguments
def convert_to_gmr(
    module: nn.Module,
    kernel_sizes: Annotated[
        int | Mapping[int, int] | None, "one window of at least 1 for all, or windows for windows as in {3: 5}"
    ] = None,
    include: Selectors = None,
    exclude: Selectors = None,
    conv: Convolution = "gmr",
    *,
    group: GroupSpec | None = None,
    rings: str = "gaussian",
    weights: str | None = None,
    spacing: Sequence[float] | None = None,
    num_rings: int | None = None,
    inplace: bool = False,
    in_channels: int | None = None,
    spatial_dims: int | None = None,
    spatial_size: Annotated[Sequence[int] | None, "one number per axis, such as (64, 64)"] = None,
    example_inputs: Annotated[
        Sequence | Mapping[str, Any] | None, "what forward takes as a list, or as a dictionary by name"
    ] = None,
) -> nn.Module:
    """Makes a network equivariant under the symmetries of the grid, at every size: replaces its convolutions by radial, harmonic or group
    ones, and its strides, pools, upsampling and one-sided padding by ones about the centre of the grid.

    Sizes do not change, except those of upsampling, which returns to the sizes on the way down: if a decoder of the given network misses
    the size of a skip connection or of the image (most do on odd sizes), the converted one matches it. ``module.conversion_report``,
    printed, names the replacement of each module, or why it stayed. Convert to the final dtype before ``torch.jit.script`` or ``trace``: a
    recorded graph keeps its dtype.

    Args:
        module: the network; unchanged unless ``inplace``.
        kernel_sizes: window for all convolutions with a window above 1, or a mapping of old to new windows, ``{3: 5}``; default: unchanged.
        include: modules to convert, by name (``"encoder*"``), by class, or by a function of name and module; default: all.
        exclude: modules to leave unchanged, likewise.
        conv: "gmr" (radial kernels), "gmr_harmonic" (radial profiles times harmonics, reduced to lengths and products: keeps most of the
            accuracy; heads, linear shortcuts, depthwise convolutions and upsampling become radial), "group" (group convolutions: channels
            become fields, with as many tensor channels as before; norms, dropout and dense layers work on fields, and layers that end the
            network give scalars), or a pair of the name and further arguments, ``("group", {"group": "4mm", "filter": "gc"})``; "plain"
            changes nothing, as a baseline.
        group: group of conv="group", as in :class:`~monai_gmr.networks.layers.PointGroupConv2d`; default: all symmetries of the grid that
            keep the spacing. A convolution whose channels its order does not divide ends on scalars.
        rings: kind of rings of radial kernels, see :class:`~monai_gmr.networks.layers.GMRConv2d`.
        weights: "project": the weights nearest to the given ones, by least squares, for a trained network; "init": fresh ones, for a
            network that will be trained. Default: "project"; "init" for conv="group", because the channels of a trained network are not
            orientations of each other: projection changes its weights by nearly their norm. "anneal": the nearest weights, and next to each
            layer the rest of the trained kernel (:class:`~monai_gmr.networks.layers.AnnealedConv`), so that the convolutions compute the
            same as before, steps and upsampling included. Training drives the rests to zero (:class:`~monai_gmr.handlers.AnnealRests`, or
            :class:`~monai_gmr.networks.annealing.RestPenalty` in a custom loop), then :func:`~monai_gmr.networks.drop_rests` leaves an
            ordinary converted network. Other replacements change the output at once: pools and upsampling on sizes on which they are not
            exact, pixel shuffling, norms on the fields of conv="group".
        spacing: voxel size in millimetres, one per axis; kernels are then round in millimetres.
        num_rings: number of rings of a kernel; default: as in :class:`~monai_gmr.networks.layers.GMRConv2d`.
        inplace: whether to change the given network itself.
        in_channels: channels of the network's input; default: those of its first convolution, else the first number that the network takes
            among those of its layers, 1 and 3.
        spatial_dims: 1, 2 or 3; default: the first number among those of its convolutions that the network takes.
        spatial_size: a size in voxels that the network takes, one number per axis; default: the one that the network names, or a usual one.
        example_inputs: arguments of ``forward``, in order or by name, for a network that takes more than an image:
            ``(image, timesteps)``. The first tensor with a batch, channels and all spatial axes is the image, whose size replaces
            ``spatial_size``.

    Returns:
        the converted network, of the given class, in the given mode, on the given device.

    Raises:
        ConfigurationError: if arguments do not fit, or lazily built layers have no channels yet.

    Example:
        >>> import torch
        >>> from monai.networks.nets import UNet
        >>> net = UNet(2, 1, 2, channels=(4, 8, 16), strides=(2, 2)).eval()
        >>> converted, x = convert_to_gmr(net), torch.rand(1, 1, 33, 38)
        >>> torch.allclose(converted(x.rot90(1, (2, 3))), converted(x).rot90(1, (2, 3)), atol=1e-5)
        True
        >>> print(str(converted.conversion_report).splitlines()[0])
        UNet: 5 modules converted, 0 kept
    """
    name, arguments = split_convolution(conv, ("gmr", "gmr_harmonic", "group", "plain"))
    if weights is None:
        weights = "init" if name == "group" else "project"
    check_choice("weights", weights, ("project", "init", "anneal"))
    check_choice("rings", rings, RINGS)
    check_windows(kernel_sizes)
    check_network(module, inplace)
    net = module if inplace else copy.deepcopy(module)
    if name == "plain":
        return _with_report(net, ConversionReport(type(module).__name__, (), ("conv='plain': unchanged",)))
    channels, possible_dims = input_of(net, in_channels, spatial_dims)
    if spatial_size is not None and len(spatial_size) not in possible_dims:
        raise ConfigurationError(
            f"spatial_size={tuple(spatial_size)} has {len(spatial_size)} sizes, {type(net).__name__} works on "
            f"{' or '.join(map(str, possible_dims))} axes: give one for each."
        )
    dims, *other_dims = possible_dims if spatial_size is None else [len(spatial_size)]
    if any(isinstance(each, UninitializedParameter) for each in net.parameters()):
        sizes = [tuple(spatial_size)] if spatial_size is not None else [*sizes_of_network(net, dims), (64,) * dims]
        inputs = partial(make_inputs, net, sizes[0], channels[0], example_inputs)
        _BuildingPass(net, guessed=in_channels is None and example_inputs is None).run(inputs, sizes_only=False)
    trace = trace_sizes(net, dims, channels, spatial_size, example_inputs)
    for other in other_dims:
        if trace.failure:
            found = trace_sizes(net, other, channels, spatial_size, example_inputs)
            trace, dims = (trace, dims) if found.failure else (found, other)
    check_trace(net, trace, in_channels, example_inputs)
    embeddings = [each for each in net.modules() if type(each).__name__.startswith("PatchEmbed")]
    patches = {inner for each in embeddings for inner in each.modules()}
    of_groups: dict[str, Any] = {}
    if name == "group":
        check_no_rings(rings, num_rings)
        of_groups, arguments = group_arguments(arguments, group, dims, spacing), {}
        if trace.failure:
            raise ConfigurationError(f"{trace.failure}: conv='group' follows an image through the network; {NEEDED}.")
    elif group is not None:
        raise ConfigurationError(f"group={group!r} is for conv='group', not for conv={name!r}.")
    fields = trace_fields(net, trace, of_groups["group"].order, example_inputs) if of_groups else None
    if fields is not None and not any(map(fields.gives_fields, convolutions_of(net))):
        counts = sorted({each.out_channels for each in convolutions_of(net) if each not in fields.heads})
        if not counts:
            raise ConfigurationError(
                f"{type(net).__name__} has only convolutions whose output is the network's, which end on scalars: use conv='gmr'."
            )
        raise ConfigurationError(
            f"{type(net).__name__} has convolutions of {', '.join(map(str, counts))} channels, none a multiple of the {fields.order} of "
            f"{of_groups['group']!r}: give a smaller group, or build it with multiples of {fields.order}."
        )
    arguments |= {"rings": rings, "num_rings": num_rings, "spacing": spacing}
    options = Options(
        name, arguments, kernel_sizes, weights, trace, dims, patches=patches, group_arguments=of_groups, fields=fields
    )
    shared = shared_parameters(net)
    rows, net = _convert_modules(net, options, include, exclude)
    notes = [*(() if fields is None else fields.notes)]
    notes += [
        f"{path} stays: it depends on positions, which no replacement of layers makes equivariant"
        for path, _ in net.named_parameters()
        if POSITIONS.search(path)
    ]
    if trace.failure:
        notes.append(
            f"{trace.failure}: its heads are unknown, and upsampling doubles sizes, even if skip connections have "
            f"others; {NEEDED}."
        )
    else:
        if getattr(net, "trail_start", None) is None:
            kind: Any = type(net)
            net.__class__ = sized_class(kind)
            net.trail_start = TrailStart(trace.network, list(trace.size), trace.in_channels)  # type: ignore[assignment]
        known = [row.path for row in rows if row.breaks]
        given = (net, trace, options.group, trace.in_channels, example_inputs)
        notes += remaining_operations(*given, known, measured=not (known or notes))
    if of_groups:
        net.symmetry_group = of_groups["group"]
    remarks = tuple(tie_again(net, shared))
    report = ConversionReport(type(module).__name__, tuple(rows), tuple(notes), remarks, pending_sentence(net))
    if limits := report.evaluation_limits:
        more = f"; {len(limits) - 1} more in conversion_report.limits" if len(limits) > 1 else ""
        sentence = f"the converted {report.name} is not exactly equivariant: {limits[0].rstrip('.')}{more}."
        warn(sentence, SymmetryWarning)
    return _with_report(net, report)


def _with_report(net: nn.Module, report: ConversionReport) -> nn.Module:
    net.conversion_report = report  # type: ignore[assignment]
    return net


def _matches(path: str, module: nn.Module, selector: Selector) -> bool:
    if isinstance(selector, str):
        return selects(path, selector)
    if isinstance(selector, nn.Module):
        raise ConfigurationError(
            f"{type(selector).__name__}() is a module: give its name, its class, or a function of both."
        )
    return isinstance(module, selector) if isinstance(selector, type) else selector(path, module)


def _is_at(net: nn.Module, path: str, module: nn.Module) -> bool:
    try:
        return net.get_submodule(path) is module
    except AttributeError:
        return False


class _BuildingPass(Pass):
    """Builds lazily built layers, but raises if channels are guessed and the first convolution is lazily built."""

    def __init__(self, net: nn.Module, guessed: bool) -> None:
        super().__init__(net)
        self.guessed, self.channels = guessed, {each: each.in_channels for each in convolutions_of(net)}

    def enter(self, module: nn.Module, args: tuple) -> None:
        """Checks the channels that the first convolution had before."""
        if self.guessed and module in self.channels:
            check_built(self.net, self.channels[module])
            self.guessed = False


def _convert_modules(
    net: nn.Module, options: Options, include: Any, exclude: Any
) -> tuple[list[ConvertedModule], nn.Module]:
    """Replace module by module; a module with several names is replaced once, under all of them."""
    paths: dict[nn.Module, list[str]] = {}
    for path, each in net.named_modules(remove_duplicate=False):
        paths.setdefault(each, []).append(path)

    names_of_all = [path for each in paths.values() for path in each]
    included, excluded = (None if given is None else ensure_tuple(given) for given in (include, exclude))
    for argument, selectors in (("include", included), ("exclude", excluded)):
        check_selectors(argument, selectors or (), names_of_all, net)

    def matches(module: nn.Module, selectors: Sequence[Selector]) -> bool:
        return any(_matches(path, module, selector) for path in paths[module] for selector in selectors)

    def why_left(module: nn.Module) -> str:
        if excluded is not None and matches(module, excluded):
            return "excluded"
        return "not included" if included is not None and not matches(module, included) else ""

    options = replace(options, selected=lambda module: not why_left(module))
    # layers on fields are judged as a whole
    judged = {part for each in paths if hasattr(each, "field_groups") for part in each.modules() if part is not each}
    rows: list[ConvertedModule] = []
    for each, names in paths.items():
        # the parts of a replaced module are gone
        if each in judged or not _is_at(net, names[0], each):
            continue
        before, text, left = type(each).__name__, _short(each), why_left(each)
        found = _left_module(each, left, options) if left else swap(each, options)
        if found is None:
            continue
        if found.module is not None and found.module is not each:
            replacement: nn.Module = found.module
            if options.anneals and isinstance(each, CONVOLUTIONS):
                replacement, rest = with_rest(each, replacement, one_sided_ends(each, options))
                found = found._replace(module=replacement, rest=rest)
            for inner in replacement.modules():
                if hasattr(inner, "levels"):
                    inner.levels = options.trace.levels(each)  # type: ignore[assignment]
            for path in names:
                if path:
                    net.set_submodule(path, replacement)
                else:
                    net = replacement
        also = f"; also {', '.join(names[1:])}" if len(names) > 1 else ""
        after = None if found.module is None else _short(found.module)
        reason = f"{found.reason}{also}".lstrip("; ")
        rows.append(ConvertedModule(names[0] or before, text, after, reason, *found[2:]))
    return rows, net


def _left_module(module: nn.Module, why: str, options: Options) -> Swap | None:
    """Row of a module that is not converted."""
    fields = options.fields
    on_fields = fields is not None and (fields.takes_fields(module) or joins_fields(module, options))
    if on_fields and isinstance(module, (*CONVERTIBLE, *ON_FIELDS)):
        return Swap(None, f"{why}, on fields, whose channels the group exchanges", breaks=True)
    return Swap(None, why) if isinstance(module, CONVERTIBLE) else None


def _short(module: nn.Module) -> str:
    """Class, window and stride of a module in a few words."""
    if isinstance(module, nn.Sequential):
        return " + ".join(_short(each) for each in module)
    if isinstance(module, AnnealedConv):
        return f"{_short(module.equivariant)} + rest"
    words = [type(module).__name__.removeprefix("Swapped")]
    kernel: Any = getattr(module, "kernel_size", None)
    stride: Any = getattr(module, "factors", getattr(module, "stride", None))
    for label, value in (("k", kernel), ("s", stride)):
        numbers = [value] if isinstance(value, int) else list(value) if isinstance(value, list | tuple) else []
        # a network may keep the windows of all its levels
        if numbers and all(isinstance(number, int) for number in numbers) and (label == "k" or max(numbers) > 1):
            words.append(label + ("x".join(map(str, numbers)) if len(set(numbers)) > 1 else str(numbers[0])))
    return " ".join(words)
