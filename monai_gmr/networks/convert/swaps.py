"""Replacements of modules: functions that map a module to its replacement, or to the reason why it stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.networks.blocks import DVF2DDF, SubpixelUpsample, Warp
from monai.networks.blocks.patchembedding import PatchEmbed, PatchEmbeddingBlock
from monai.networks.layers.spatial_transforms import AffineTransform
from monai.networks.nets.autoencoderkl import AsymmetricPad
from monai.networks.nets.resnet import ResNetBlock, ResNetBottleneck
from monai.networks.nets.swin_unetr import PatchMerging, PatchMergingV2, WindowAttention
from monai.utils import ensure_tuple_rep
from torch import nn
from torch.nn.utils import parametrize

from monai_gmr.networks.convert.group_swaps import GROUP_SWAPS, joins_fields, swap_direct, swap_upsampling
from monai_gmr.networks.convert.layers import swapped_class
from monai_gmr.networks.convert.monai_modules import (
    REPLACEMENTS,
    SortedPixelUnshuffle,
    SymmetricChannelShortcut,
    SymmetricSubpixelUpsample,
    replacement_of,
)
from monai_gmr.networks.convert.options import (
    EXACT,
    Options,
    Swap,
    as_array,
    projects,
    stays_broken,
    take_weights,
    with_hooks_of,
)
from monai_gmr.networks.convert.trace import CONVOLUTIONS, classes_of
from monai_gmr.networks.layers import GMRAvgPool, GMRInterpolate, GMRMaxPool, GMRSubpixelMean
from monai_gmr.networks.layers.conv_nd import convolution_like
from monai_gmr.networks.layers.gmr_conv import RingConvNd
from monai_gmr.networks.layers.gmr_harmonic_conv import GMRHarmonicConvNd
from monai_gmr.networks.layers.point_group_conv import PointGroupFilterNd
from monai_gmr.networks.layers.sized_upsampling import MODES
from monai_gmr.symmetry import project_kernel, project_kernel_on_order, project_transposed_kernel
from monai_gmr.symmetry.projection import fitted_window

VECTORS = (
    "moves voxels by channels that are components of vectors, which rotate otherwise than the channels of a radial net"
)


def swap(module: nn.Module, options: Options) -> Swap | None:
    """Replacement of a module; ``None`` if the symmetry does not depend on it."""
    if module in options.trace.paddings:
        return _swap_padding(module, options)
    for kinds, swap_on_fields in GROUP_SWAPS if options.fields is not None else ():
        if isinstance(module, kinds):
            found = swap_on_fields(module, options)
            if found is not None:
                return found
    for kinds, convert in SWAPS:
        if isinstance(module, kinds):
            found = convert(module, options)
            return found if found is None else _with_oblong(module, found, options)
    return None


def _with_oblong(module: nn.Module, found: Swap, options: Options) -> Swap:
    """The swap, marked if a window, step or factor differs between axes that the symmetries of the network exchange."""
    layer = found.module or module
    # in a module with children, which are judged separately, these names may hold one value per level
    names = () if any(layer.children()) else ("kernel_size", "stride", "dilation", "padding", "scale_factor", "factors")
    for name in names:
        values: Any = getattr(layer, name, None)
        fits = isinstance(values, list | tuple) and len(values) == options.spatial_dims
        if fits and not options.group.keeps(values):
            text = f"{name}={tuple(values)} differs between axes: not exact where these are exchanged"
            return found._replace(reason="; ".join(filter(None, [text, found.reason])), breaks=True)
    return found


def _swap_convolution(module: Any, options: Options) -> Swap:
    dims = len(module.kernel_size)
    if isinstance(module, RingConvNd):
        return Swap(None, "radial already")
    if isinstance(module, PointGroupFilterNd):
        return Swap(None, "a group convolution already")
    transposed = isinstance(module, classes_of("ConvTranspose"))
    base = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    if type(module).forward is not base.forward or "forward" in vars(module):
        return stays_broken(f"{type(module).__name__} has a forward of its own, which may do more than convolve")
    if parametrize.is_parametrized(module) or "weight" not in dict(module.named_parameters(recurse=False)):
        return stays_broken("its weight is computed from others: remove the parametrisation or weight norm first")
    if module in options.trace.shared:
        return stays_broken("its parameters are also used outside of it, where a replacement's would not fit")
    surplus = _surplus(module, options)
    on_fields = joins_fields(module, options)
    moved = any(surplus) or (transposed and any(module.output_padding))
    if max(module.kernel_size) == max(module.stride) == 1 and not moved and not on_fields:
        return Swap(None, f"{EXACT}: a window of 1")
    if module in options.patches:
        return stays_broken("a patch embedding: it has separate weights for each place in a patch")
    if transposed:
        return _transposed(module, dims, options)
    return swap_direct(module, surplus, options) if on_fields else _convolution(module, dims, surplus, options)


def _one_sided(ends: Sequence[int]) -> bool:
    return any(ends[i] != ends[i + 1] for i in range(0, len(ends), 2))


def one_sided_ends(module: nn.Module, options: Options) -> list[int]:
    """Voxels that a padding module before a convolution adds at both ends of each axis, in the order of ``torch.nn.functional.pad``, if it
    pads one end more than the other."""
    pad = options.trace.pads.get(module)
    ends = [] if pad is None else options.trace.paddings[pad]
    return ends if _one_sided(ends) else []


def _surplus(module: Any, options: Options) -> list[int]:
    """Voxels along each axis that :func:`one_sided_ends` adds."""
    ends, dims = one_sided_ends(module, options), len(module.kernel_size)
    if not ends:
        return [0] * dims
    ends = ends + [0] * (2 * dims - len(ends))
    return [ends[i] + ends[i + 1] for i in range(len(ends) - 2, -1, -2)]


def _kind(module: Any, window: Sequence[int], options: Options) -> tuple[str, str]:
    """The infix "Harmonic" if a convolution becomes harmonic, and the reason if it should but does not."""
    if options.conv == "group":
        return "", "radial: from scalars to scalars"
    if options.conv != "gmr_harmonic" or max(window) == 1:
        return "", ""
    trace = options.trace
    if module in trace.heads:
        return "", "radial: a head, whose output must take both signs"
    if module in trace.shortcuts:
        return "", "radial: a shortcut, which must be linear"
    if module.out_channels // module.groups < 2:
        return "", "radial: one channel a group cannot be shared among the orders"
    return "Harmonic", ""


def _arguments(options: Options, harmonic: str) -> dict[str, Any]:
    """Arguments of the new layer."""
    left_out = () if harmonic else ("orders", "order_split", "inner_products", "keeps", "relax")
    return {name: value for name, value in options.arguments.items() if name not in left_out}


def _convolution(module: Any, dims: int, surplus: list[int], options: Options) -> Swap:
    window = options.window(module.kernel_size)
    harmonic, remark = _kind(module, window, options)
    # "valid" is not a padding size; centred layers take numbers
    padding: Any = (0,) * dims if module.padding == "valid" else module.padding
    if not isinstance(padding, str):
        # a longer window keeps the sizes
        growth = [d * (new - old) for d, new, old in zip(module.dilation, window, module.kernel_size)]
        total = [2 * p + g + s for p, g, s in zip(padding, growth, surplus)]
        if min(total) < 0:
            return stays_broken(f"a window of {window} leaves no padding that keeps the size")
        padding, surplus = tuple(t // 2 for t in total), [t % 2 for t in total]
    elif padding == "same":
        surplus = [d * (k - 1) % 2 for d, k in zip(module.dilation, window)]
    blurred = any(d % 2 == 0 and s > 1 for d, s in zip(module.dilation, module.stride))
    centred = (max(module.stride) > 1 or any(surplus)) and not blurred
    changes: dict[str, Any] = {"kernel_size": window, "padding": padding} | _arguments(options, harmonic)
    if blurred:
        changes["stride"] = 1
    elif centred and padding != "same":
        changes["surplus"] = surplus
    layer = convolution_like(swapped_class(f"GMR{'Centred' if centred else ''}{harmonic}Conv", dims), module, **changes)
    change = take_weights(layer, module, options, _project_convolution)
    if blurred:
        remark = "an even dilation has no centred steps: all steps, then every other"
        steps = GMRAvgPool(dims, 1, module.stride, rounding="floor")
        return Swap(with_hooks_of(nn.Sequential(layer, steps), layer), remark, change)
    other = any((new - old) % 2 for new, old in zip(window, module.kernel_size))
    if not remark and other and options.keeps_weights:
        remark = "drawn anew: a window of the other parity cannot hold the old weights"
    return Swap(layer, remark, change)


def _project_convolution(layer: Any, module: Any) -> float | None:
    kernel = fitted_window(as_array(module.weight), layer.kernel_size)
    if kernel is None:
        return None
    if not isinstance(layer, GMRHarmonicConvNd):
        functions = as_array(layer.basis())[:, layer.shells.flatten().cpu().numpy()]
        weights, change = project_kernel(kernel, functions)
        layer.weight.copy_(torch.as_tensor(weights))
        return change
    rows = np.split(kernel.reshape(layer.groups, -1, *kernel.shape[1:]), np.cumsum(layer.channels)[:-1], axis=1)
    parts, squares = [], 0.0
    for order, part, functions in zip(layer.orders, rows, layer.tap_basis().split(layer.components)):
        if part.size == 0:
            continue
        taps, values = part.reshape(-1, *kernel.shape[1:]), as_array(functions)
        weights, change = project_kernel(taps, values[0]) if order == 0 else project_kernel_on_order(taps, values)
        parts.append(weights.reshape(*part.shape[:2], *weights.shape[1:]))
        squares += (change * float(np.linalg.norm(part))) ** 2
    layer.weight.copy_(torch.as_tensor(np.concatenate(parts, axis=1).reshape(layer.weight.shape)))
    norm = float(np.linalg.norm(kernel))
    return math.sqrt(squares) / norm if norm > 0 else 0.0


def _transposed(module: Any, dims: int, options: Options) -> Swap:
    window, padding, extent = [], [], []
    lengths = (module.kernel_size, module.stride, module.dilation, module.output_padding, module.padding)
    for k, s, d, o, p in zip(*lengths):
        reach = d * (k - 1) + 1
        extent.append(reach + o - 2 * p)
        # linear interpolation covers 2 s - 1 voxels, each further coarse tap on either side adds s
        coarse = k if s == 1 else 1 + 2 * max(0, math.ceil((reach - 2 * s + 1) / (2 * s)))
        margin = extent[-1] + reach - 2 if s == 1 else coarse - 1
        if margin < 0 or margin % 2 or (s == 1 and o > 0):
            moved = f" with output_padding={module.output_padding}" if any(module.output_padding) else ""
            return stays_broken(f"its padding={module.padding}{moved} has no symmetric form")
        window.append(coarse)
        padding.append(margin // 2)
    dilation = [d if s == 1 else 1 for d, s in zip(module.dilation, module.stride)]
    geometry = {"kernel_size": window, "padding": padding, "dilation": dilation}
    if joins_fields(module, options):
        taps = np.eye(math.prod(window)).reshape(-1, *window)
        weights = _coarse_weights(module, taps)[0] if projects(module, options) else None
        kernel = None if weights is None else weights.reshape(*weights.shape[:2], *window)
        return swap_upsampling(module, kernel, geometry, extent, options)
    geometry |= {"stride": 1, "extent": extent, "factors": module.stride} | _arguments(options, "")
    layer = convolution_like(swapped_class("GMRResizedConv", dims), module, **geometry)
    change = take_weights(layer, module, options, _project_transposed)
    return Swap(layer, "radial: upsampling, followed by linear interpolation", change)


def _project_transposed(layer: Any, module: Any) -> float:
    functions = as_array(layer.basis())[:, layer.shells.cpu().numpy()]
    weights, change = _coarse_weights(module, functions)
    layer.weight.copy_(torch.as_tensor(weights))
    return change


def _coarse_weights(module: Any, functions: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights of functions on coarse taps that replace a transposed convolution's kernel, and the kernel's relative change."""
    groups = module.groups
    kernel = as_array(module.weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1))
    for axis, (d, s, o) in enumerate(zip(module.dilation, module.stride, module.output_padding), start=2):
        if s > 1:
            # zeros after the last tap are the voxels that output_padding adds
            reach = d * (kernel.shape[axis] - 1) + 1 + o
            spread = np.zeros((*kernel.shape[:axis], reach, *kernel.shape[axis + 1 :]))
            spread[(slice(None),) * axis + (slice(0, reach - o, d),)] = kernel
            kernel = spread
    return project_transposed_kernel(kernel, functions, module.stride)


def _swap_pooling(module: Any, options: Options) -> Swap:
    dims, maximum = options.spatial_dims, isinstance(module, classes_of("MaxPool"))
    base = getattr(nn, f"{'Max' if maximum else 'Avg'}Pool{dims}d")
    if type(module).forward is not base.forward or "forward" in vars(module):
        return stays_broken(f"{type(module).__name__} has a forward of its own, which may do more than pool")
    kernel, stride, padding = (ensure_tuple_rep(n, dims) for n in (module.kernel_size, module.stride, module.padding))
    if max(stride) == 1:
        return Swap(None, f"{EXACT}: a step of 1")
    uncentred = "which has no centred form: its steps are not exact on every size"
    if maximum and (module.return_indices or max(ensure_tuple_rep(module.dilation, dims)) > 1):
        return Swap(None, f"returns indices or is dilated, {uncentred}")
    if getattr(module, "divisor_override", None) is not None:
        return stays_broken(f"has a divisor of its own, {uncentred}")
    make = GMRMaxPool if maximum else partial(GMRAvgPool, count_padding=module.count_include_pad)
    return Swap(make(dims, kernel, stride, padding, rounding="ceil" if module.ceil_mode else "floor"))


def _swap_upsample(module: Any, options: Options) -> Swap:
    dims = options.spatial_dims
    factors = () if module.scale_factor is None else ensure_tuple_rep(module.scale_factor, dims)
    if module.mode not in MODES or not factors or any(int(f) != f or f < 1 for f in factors):
        nearest = module.mode.startswith("nearest")
        if not nearest and factors:
            # use the actual ratio of the sizes if the given factor does not divide them
            module.recompute_scale_factor = True
        return Swap(None, "nearest: not exact for sizes that are not multiples" if nearest else EXACT)
    return Swap(GMRInterpolate([int(f) for f in factors], module.mode, module.align_corners))


def _swap_shuffle(module: Any, options: Options) -> Swap:
    remark = "the mean over the parts of a voxel, then interpolation"
    if isinstance(module, nn.PixelShuffle):
        return Swap(GMRSubpixelMean([module.upscale_factor] * 2), remark)
    dims, factor = module.dimensions, int(module.scale_factor)
    inner = module.conv_block
    if type(inner) is not getattr(nn, f"Conv{dims}d") or inner.groups != 1:
        # it keeps its block, which is converted later
        mean = GMRSubpixelMean([factor] * dims)
        mean.interpolate.levels = options.trace.levels(module)
        module.__class__, module.mean, module.pad_pool = SymmetricSubpixelUpsample, mean, nn.Identity()
        return Swap(module, remark)
    folded = convolution_like(type(inner), inner, out_channels=inner.out_channels // factor**dims)
    with torch.no_grad():
        folded.weight.copy_(inner.weight.unflatten(0, (-1, factor**dims)).mean(1))
        if inner.bias is not None:
            folded.bias.copy_(inner.bias.unflatten(0, (-1, factor**dims)).mean(1))
    if options.fields is not None and inner in options.fields.taken:
        options.fields.taken[folded] = options.fields.taken[inner]
    found = _swap_convolution(folded, options)
    block = nn.Sequential(found.module or folded, GMRInterpolate([factor] * dims, "linear"))
    return Swap(block, remark, found.change)


def _swap_unshuffle(module: Any, options: Options) -> Swap:
    return Swap(SortedPixelUnshuffle(module.downscale_factor), "the parts of a voxel sorted by value, not by place")


def _swap_padding(module: Any, options: Options) -> Swap | None:
    ends = options.trace.paddings.get(module, getattr(module, "padding", getattr(module, "pad", ())))
    if not _one_sided(ends):
        return None
    takers = [conv for conv, pad in options.trace.pads.items() if pad is module]
    if len(takers) == 1 and options.selected(takers[0]) and not joins_fields(takers[0], options):
        return Swap(nn.Identity(), "the convolution behind it pads both ends alike")
    return stays_broken("pads one end more than the other, and no convolution follows that could take over the padding")


def _swap_monai(module: Any, options: Options) -> Swap | None:
    found = replacement_of(type(module))
    if found is None:
        return None
    module.__class__ = found[0]
    if hasattr(module, "become_symmetric"):
        module.become_symmetric()
    return Swap(module, found[1])


def _swap_residual_block(module: Any, options: Options) -> Swap | None:
    if not isinstance(module.downsample, partial):
        return None
    given = module.downsample.keywords
    module.downsample = SymmetricChannelShortcut(given["spatial_dims"], given["planes"], given["stride"])
    return Swap(module, "its shortcut steps about the centre")


def _stays(reason: str, breaks: bool = False) -> Callable[..., Swap]:
    return lambda module, options: Swap(None, reason, breaks=breaks)


def _swap_embedding(module: Any, options: Options) -> Swap | None:
    # an embedding that convolves is judged by its convolution
    convolves = any(isinstance(each, CONVOLUTIONS) for each in module.modules())
    return None if convolves else stays_broken("a patch embedding: it has separate weights for each place in a patch")


def _swap_linear(module: Any, options: Options) -> Swap | None:
    by_place = "takes each voxel by its place: not equivariant, whatever comes before"
    if module in options.trace.flattened:
        return stays_broken(by_place)
    return stays_broken(f"in training {by_place}") if module in options.trace.flattened_in_training else None


SWAPS: tuple[tuple[Any, Callable[..., Swap | None]], ...] = (
    (CONVOLUTIONS, _swap_convolution),
    (classes_of("MaxPool", "AvgPool"), _swap_pooling),
    (nn.Upsample, _swap_upsample),
    ((nn.PixelShuffle, SubpixelUpsample), _swap_shuffle),
    ((*classes_of("ConstantPad", "ReflectionPad", "ReplicationPad"), AsymmetricPad), _swap_padding),
    (classes_of("AdaptiveAvgPool", "AdaptiveMaxPool"), _stays(EXACT)),
    (nn.PixelUnshuffle, _swap_unshuffle),
    (classes_of("MaxUnpool"), _stays("exact where the pooling is that gives its indices")),
    (classes_of("FractionalMaxPool"), _stays("has no symmetric form", breaks=True)),
    (classes_of("LPPool"), _stays("has no centred form: its steps are not exact on every size", breaks=True)),
    ((Warp, DVF2DDF, AffineTransform), _stays(VECTORS, breaks=True)),
    ((PatchMerging, PatchMergingV2), _stays("takes the voxels of a patch by their place", breaks=True)),
    (WindowAttention, _stays("attends within windows that begin at one end, by places within them", breaks=True)),
    ((PatchEmbed, PatchEmbeddingBlock), _swap_embedding),
    (nn.MultiheadAttention, _stays("attends by content: exact, unless positions were embedded before")),
    (nn.Linear, _swap_linear),
    (tuple(REPLACEMENTS), _swap_monai),
    ((ResNetBlock, ResNetBottleneck), _swap_residual_block),
)
# kinds that matter only on fields
ON_FIELDS = tuple(kind for kinds, _ in GROUP_SWAPS for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
CONVERTIBLE = tuple(
    kind for kinds, _ in SWAPS for kind in (kinds if isinstance(kinds, tuple) else (kinds,)) if kind is not nn.Linear
)
