"""Registration in MONAI's layer factories: ``Conv["GMR", 3]``, ``Conv["GMRTRANS", 3]``, ``Conv["SRE", 3]``, ``Pool["GMRMAX", 3]``,
``Norm["GMRINSTANCE", 3]``, ``Conv["POINTGROUP", 3]``, ``Conv["PARTIALGROUP", 3]``, ``Norm["POINTGROUP", 3]``,
``Dropout["POINTGROUP", 3]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from inspect import signature
from typing import Annotated, Any

from monai.networks.layers.factories import Conv, Dropout, LayerFactory, Norm, Pool
from torch import nn

from monai_gmr.annotations import Named, SpatialDims, checked_arguments
from monai_gmr.arguments import check_choice
from monai_gmr.networks.layers.gmr_conv import GMRConv1d, GMRConv2d, GMRConv3d, SREConv2d, SREConv3d
from monai_gmr.networks.layers.gmr_conv_transpose import GMRConvTranspose1d, GMRConvTranspose2d, GMRConvTranspose3d
from monai_gmr.networks.layers.gmr_harmonic_conv import GMRHarmonicConv1d, GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.networks.layers.instance_norm import GMRInstanceNorm2d, GMRInstanceNorm3d
from monai_gmr.networks.layers.partial_group_conv import PartialGroupConv2d, PartialGroupConv3d
from monai_gmr.networks.layers.point_group_conv import (
    PointGroupConv1d,
    PointGroupConv2d,
    PointGroupConv3d,
    PointGroupConvTranspose1d,
    PointGroupConvTranspose2d,
    PointGroupConvTranspose3d,
)
from monai_gmr.networks.layers.point_group_fields import PointGroupDropout, PointGroupNorm
from monai_gmr.networks.layers.resampling import GMRAvgPool, GMRMaxPool
from monai_gmr.symmetry import PointGroup, partial_group
from monai_gmr.symmetry.sampled_group import FieldGroup
from monai_gmr.utils import ConfigurationError

CONVOLUTIONS = {
    "gmr": "GMR",
    "gmr_harmonic": "GMRHARMONIC",
    "group": "POINTGROUP",
    "partial": "PARTIALGROUP",
    "sre": "SRE",
    "plain": "CONV",
}
# arguments allowed with the names of convolutions on fields
FIELD_ARGUMENTS = {
    "group": ("group", "filter", "in_group", "out_group"),
    "partial": ("group", "samples", "kernel", "orders", "frequencies", "seed", "in_elements", "out_elements"),
}
# the argument conv of blocks and nets
Convolution = Annotated[str | Sequence, "a name, a pair of it and arguments, or a list of one a level"]


@cache
def _arguments_of(name: str) -> tuple[str, ...]:
    """Arguments allowed with a name in a pair: those of its layer, except those that blocks set."""
    if name in FIELD_ARGUMENTS:
        return FIELD_ARGUMENTS[name]
    known = signature(Conv[CONVOLUTIONS[name], 2]).parameters
    return tuple(each for each in known if each not in ("in_channels", "out_channels", "kernel_size"))


def split_convolution(conv: Convolution, choices: Sequence[str] = tuple(CONVOLUTIONS)) -> tuple[str, dict[str, Any]]:
    """Splits the argument ``conv`` of blocks and nets, a name or a pair of name and arguments, into the name, one of ``choices``, and the
    arguments. "group" means the whole group by default.

    Raises:
        ConfigurationError: if the name is unknown or ``conv`` has neither form.

    Example:
        >>> split_convolution("gmr"), split_convolution(("gmr_harmonic", {"orders": (0, 1)}))
        (('gmr', {}), ('gmr_harmonic', {'orders': (0, 1)}))
    """
    pair = (conv, {}) if isinstance(conv, str) else tuple(conv) if isinstance(conv, Sequence) else (None,)
    if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], Mapping):
        raise ConfigurationError(f"conv={conv!r} is impossible: give a name, or a pair of a name and arguments.")
    check_choice("conv", pair[0], tuple(choices))
    for key in pair[1]:
        check_choice(f"conv={conv!r}: the key", key, _arguments_of(pair[0]))
    return pair[0], ({"group": "all"} if pair[0] == "group" else {}) | dict(pair[1])


def fields_of(name: str, arguments: Mapping[str, Any], spatial_dims: int) -> FieldGroup:
    """The group of a convolution on fields; its outputs are fields on it, or on a part of it.

    Args:
        name, arguments: of :func:`split_convolution`, "group" or "partial".
        spatial_dims: 1, 2 or 3.

    Example:
        >>> fields_of("group", {"group": "4mm"}, 2), fields_of("partial", {"samples": 4}, 2)
        (PointGroup('4mm'), SampledGroup('SE(2)', samples=4))
    """
    if name == "group":
        return PointGroup.from_name(arguments["group"], spatial_dims)
    elements = [arguments.get(end) for end in ("out_elements", "in_elements")]
    known = next((each.group for each in elements if each is not None), None)
    # elements at the output decide; after elements at the input, another group can be named
    if known is not None and (elements[0] is not None or arguments.get("group") is None):
        return known
    return partial_group(arguments.get("group"), spatial_dims, arguments.get("samples"))


def convolution_label(conv: Convolution) -> str:
    """Short label for the argument ``conv`` of nets, for reports.

    Example:
        >>> convolution_label("gmr"), convolution_label(("group", {"group": "4mm", "filter": "gc"}))
        ('gmr', 'group 4mm gc')
        >>> convolution_label([("group", {"group": ("m", "x")}), "gmr_harmonic"])
        'group m x, gmr_harmonic'
    """
    if isinstance(conv, str):
        return conv
    if len(conv) == 2 and isinstance(conv[1], Mapping):
        words = [
            " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value) for value in conv[1].values()
        ]
        return " ".join([conv[0], *words])
    return ", ".join(map(convolution_label, conv))


@checked_arguments
def make_convolution(
    conv: Convolution,
    spatial_dims: SpatialDims,
    in_channels: int,
    out_channels: int,
    kernel_size: int | Sequence[int],
    *,
    rings: str = "gaussian",
    spacing: Sequence[float] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Makes the layer for the argument ``conv`` of blocks and nets.

    Args:
        conv: "gmr" (:class:`GMRConv2d`), "gmr_harmonic" (:class:`GMRHarmonicConv2d`), "group" (:class:`PointGroupConv2d`),
            "partial" (:class:`PartialGroupConv2d`), "sre" (:class:`SREConv2d`) or "plain" (``torch.nn.ConvNd``, the baseline); or a pair of
            the name and further arguments of the layer, such as ``("gmr_harmonic", {"orders": (0, 1)})`` or
            ``("group", {"group": "4mm", "filter": "gc"})``.
        spatial_dims: 1, 2 or 3.
        in_channels, out_channels, kernel_size, kwargs: of ``torch.nn.ConvNd``.
        rings: kind of rings (:class:`GMRConv2d`), for "gmr" and "gmr_harmonic".
        spacing: voxel size in millimetres, for all except "plain"; a group must keep it.

    Raises:
        ConfigurationError: if ``conv`` is unknown.

    Example:
        >>> make_convolution("plain", 2, 1, 4, 3, padding=1)
        Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    name, arguments = split_convolution(conv)
    options: dict[str, Any] = {} if name == "plain" or name in FIELD_ARGUMENTS else {"spacing": spacing}
    if name in FIELD_ARGUMENTS and spacing is not None:
        fields_of(name, arguments, spatial_dims).check_keeps("spacing", spacing)
    if name.startswith("gmr"):
        options["rings"] = rings
    kind = Conv[CONVOLUTIONS[name], spatial_dims]
    return kind(in_channels, out_channels, kernel_size, **(options | kwargs | arguments))


def one_per_level(name: str, value: Any, levels: int, what: str) -> list:
    """Returns a list with one window or convolution per level of a net; ``what`` names the argument that sets the number of levels.

    Args:
        value: a number, a name, or a pair of a name and arguments, for all levels; or a sequence with one per level.

    Raises:
        ConfigurationError: if there is not one per level, or ``value`` is neither a single value nor a list.

    Example:
        >>> one_per_level("kernel_sizes", 5, 3, "features"), one_per_level("conv", ["gmr_harmonic", "gmr"], 2, "features")
        ([5, 5, 5], ['gmr_harmonic', 'gmr'])
    """
    if not hasattr(value, "__len__") and not isinstance(value, int):
        raise ConfigurationError(
            f"{name}={value!r} is impossible: give one for all, or a list of one for each of the {levels} entries of {what}."
        )
    # a name and a non-name form a pair, even an impossible one
    pair = not isinstance(value, int | str) and len(value) == 2 and isinstance(value[0], str)
    if isinstance(value, int | str) or (pair and not isinstance(value[1], str | Sequence)):
        return [value] * levels
    if len(value) != levels:
        raise ConfigurationError(
            f"{name}={tuple(value)} has {len(value)} entries and {what} has {levels}: give one for each, or a single one for all."
        )
    return list(value)


def check_named(argument: str, layer: Named | float | None, factory: LayerFactory) -> None:
    """Raises if an argument names a layer that a factory of MONAI lacks.

    Example:
        >>> check_named("norm", ("batch", {"eps": 1e-3}), Norm)
    """
    name = layer[0] if isinstance(layer, tuple | list) else layer
    if isinstance(name, str) and name.upper() not in factory.names:
        check_choice(argument, name, tuple(each.lower() for each in factory.names))


def keep_channels_last(norm: Named | None) -> Named | None:
    """Norm of a block: replaces "instance" by the equal :class:`GMRInstanceNorm2d`, which keeps channels last.

    Example:
        >>> keep_channels_last(("instance", {"affine": True})), keep_channels_last("batch")
        (('GMRINSTANCE', {'affine': True}), 'batch')
    """
    if isinstance(norm, str):
        return "GMRINSTANCE" if norm.upper() == "INSTANCE" else norm
    return (keep_channels_last(norm[0]), *norm[1:]) if norm and isinstance(norm[0], str) else norm


def _by_dimension(name: str, classes: dict[int, Any]) -> Callable[[int], Any]:
    def factory(spatial_dims: int) -> Any:
        if spatial_dims not in classes:
            possible = ", ".join(str(d) for d in classes)
            raise ConfigurationError(f"{name!r} has no layer of spatial_dims={spatial_dims}: use {possible}.")
        return classes[spatial_dims]

    return factory


def register_layers() -> None:
    """Adds the layers to MONAI's ``Conv``, ``Pool``, ``Norm`` and ``Dropout`` factories; importing ``monai_gmr`` calls it.

    Example:
        >>> from monai.networks.layers import Conv
        >>> register_layers()
        >>> Conv["GMR", 3].__name__, Conv["GMRTRANS", 2].__name__, Conv["SRE", 2].__name__
        ('GMRConv3d', 'GMRConvTranspose2d', 'SREConv2d')
    """
    convolutions: dict[str, dict[int, Any]] = {
        "GMR": {1: GMRConv1d, 2: GMRConv2d, 3: GMRConv3d},
        "GMRTRANS": {1: GMRConvTranspose1d, 2: GMRConvTranspose2d, 3: GMRConvTranspose3d},
        "GMRHARMONIC": {1: GMRHarmonicConv1d, 2: GMRHarmonicConv2d, 3: GMRHarmonicConv3d},
        "POINTGROUP": {1: PointGroupConv1d, 2: PointGroupConv2d, 3: PointGroupConv3d},
        "POINTGROUPTRANS": {1: PointGroupConvTranspose1d, 2: PointGroupConvTranspose2d, 3: PointGroupConvTranspose3d},
        "PARTIALGROUP": {2: PartialGroupConv2d, 3: PartialGroupConv3d},
        "SRE": {2: SREConv2d, 3: SREConv3d},
    }
    for name, classes in convolutions.items():
        Conv.add_factory_callable(name, _by_dimension(name, classes))
    for name, pool in {"GMRMAX": GMRMaxPool, "GMRAVG": GMRAvgPool}.items():
        Pool.add_factory_callable(name, _by_dimension(name, {d: partial(pool, d) for d in (1, 2, 3)}))
    norms = {1: nn.InstanceNorm1d, 2: GMRInstanceNorm2d, 3: GMRInstanceNorm3d}
    Norm.add_factory_callable("GMRINSTANCE", _by_dimension("GMRINSTANCE", norms))
    for factory, fields in ((Norm, PointGroupNorm), (Dropout, PointGroupDropout)):
        factory.add_factory_callable(
            "POINTGROUP", _by_dimension("POINTGROUP", {d: partial(fields, d) for d in (1, 2, 3)})
        )
