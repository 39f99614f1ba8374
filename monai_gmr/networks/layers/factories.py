"""Registration in MONAI's layer factories: ``Conv["GMR", 3]``, ``Conv["GMRTRANS", 3]``, ``Conv["SRE", 3]``, ``Pool["GMRMAX", 3]``,
``Norm["GMRINSTANCE", 3]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from monai.networks.layers.factories import Conv, Norm, Pool
from torch import nn

from monai_gmr.networks.layers.gmr_conv import GMRConv1d, GMRConv2d, GMRConv3d
from monai_gmr.networks.layers.gmr_conv_transpose import (
    GMRConvTranspose1d,
    GMRConvTranspose2d,
    GMRConvTranspose3d,
)
from monai_gmr.networks.layers.gmr_harmonic_conv import GMRHarmonicConv1d, GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.networks.layers.instance_norm import GMRInstanceNorm2d, GMRInstanceNorm3d
from monai_gmr.networks.layers.resampling import GMRAvgPool, GMRMaxPool
from monai_gmr.networks.layers.square_conv import SQUARE_RINGS, GMRSquareConv2d, GMRSquareConv3d
from monai_gmr.networks.layers.sre_conv import SREConv2d, SREConv3d
from monai_gmr.utils import ConfigurationError, check_choice

CONVOLUTIONS = {"gmr": "GMR", "gmr_harmonic": "GMRHARMONIC", "sre": "SRE", "plain": "CONV"}


def split_convolution(conv: str | Sequence) -> tuple[str, dict[str, Any]]:
    """Name and further arguments of what blocks and nets call ``conv``.

    Args:
        conv: a name, or a pair of a name and arguments of the layer.

    Raises:
        ConfigurationError: when the name is unknown or ``conv`` is of neither form.

    Example:
        >>> split_convolution("gmr"), split_convolution(("gmr_harmonic", {"orders": (0, 1)}))
        (('gmr', {}), ('gmr_harmonic', {'orders': (0, 1)}))
    """
    pair = (conv, {}) if isinstance(conv, str) else tuple(conv) if isinstance(conv, Sequence) else (None,)
    if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], Mapping):
        raise ConfigurationError(
            f"conv={conv!r} is impossible: give a name, or a pair of a name and a dictionary of arguments."
        )
    check_choice("conv", pair[0], tuple(CONVOLUTIONS))
    return pair[0], dict(pair[1])


def make_convolution(
    conv: str | Sequence,
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int | Sequence[int],
    *,
    rings: str = "gaussian",
    spacing: Sequence[float] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """The convolution that blocks and nets call ``conv``.

    Args:
        conv: "gmr" (:class:`GMRConv2d`), "gmr_harmonic" (:class:`GMRHarmonicConv2d`), "sre" (:class:`SREConv2d`)
            or "plain" (``torch.nn.ConvNd``, the baseline); or a pair of the name and further arguments of the layer, such as
            ``("gmr_harmonic", {"orders": (0, 1)})``.
        spatial_dims: 1, 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: window length in voxels.
        rings: kind of rings, for "gmr" and "gmr_harmonic"; for "gmr" in 2D and 3D also "indexed_square" or "hard_square", which reach
            into the corners of the window (:class:`GMRSquareConv2d`).
        spacing: voxel size in millimetres, for all but "plain".
        kwargs: further arguments of ``torch.nn.ConvNd``.

    Raises:
        ConfigurationError: when ``conv`` is unknown.

    Example:
        >>> make_convolution("plain", 2, 1, 4, 3, padding=1)
        Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    name, arguments = split_convolution(conv)
    options: dict[str, dict[str, Any]] = {
        "gmr": {"rings": rings, "spacing": spacing},
        "gmr_harmonic": {"rings": rings, "spacing": spacing},
        "sre": {"spacing": spacing},
        "plain": {},
    }
    kwargs, key = options[name] | kwargs | arguments, CONVOLUTIONS[name]
    if name == "gmr" and kwargs["rings"] in SQUARE_RINGS:
        kwargs["rings"], key = SQUARE_RINGS[kwargs["rings"]], "GMRSQUARE"
    return Conv[key, spatial_dims](in_channels, out_channels, kernel_size, **kwargs)


def keep_channels_last(norm: tuple | str | None) -> tuple | str | None:
    """The norm of a block: "instance" becomes :class:`GMRInstanceNorm2d`, which is the same and keeps an image channels last.

    Args:
        norm: as in ``monai.networks.blocks.Convolution``.

    Example:
        >>> keep_channels_last(("instance", {"affine": True})), keep_channels_last("batch")
        (('GMRINSTANCE', {'affine': True}), 'batch')
    """
    if isinstance(norm, str):
        return "GMRINSTANCE" if norm.upper() == "INSTANCE" else norm
    return norm if norm is None else (keep_channels_last(norm[0]), *norm[1:])


def _by_dimension(name: str, classes: dict[int, Any]) -> Callable[[int], Any]:
    def factory(spatial_dims: int) -> Any:
        if spatial_dims not in classes:
            possible = ", ".join(str(d) for d in classes)
            raise ConfigurationError(f"{name!r} has no layer of spatial_dims={spatial_dims}: use {possible}.")
        return classes[spatial_dims]

    return factory


def register_layers() -> None:
    """Add the radial layers to MONAI's ``Conv``, ``Pool`` and ``Norm`` factories; importing ``monai_gmr`` does it.

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
        "GMRSQUARE": {2: GMRSquareConv2d, 3: GMRSquareConv3d},
        "SRE": {2: SREConv2d, 3: SREConv3d},
    }
    for name, classes in convolutions.items():
        Conv.add_factory_callable(name, _by_dimension(name, classes))
    for name, pool in {"GMRMAX": GMRMaxPool, "GMRAVG": GMRAvgPool}.items():
        Pool.add_factory_callable(name, _by_dimension(name, {d: partial(pool, d) for d in (1, 2, 3)}))
    norms = {1: nn.InstanceNorm1d, 2: GMRInstanceNorm2d, 3: GMRInstanceNorm3d}
    Norm.add_factory_callable("GMRINSTANCE", _by_dimension("GMRINSTANCE", norms))
