"""Replacements of modules by modules on fields of a group."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_gmr.networks.convert.fields import NORMS
from monai_gmr.networks.convert.layers import FieldLinear, swapped_class
from monai_gmr.networks.convert.options import (
    Options,
    Swap,
    as_array,
    keep_training,
    projects,
    stays_broken,
    take_weights,
    with_hooks_of,
)
from monai_gmr.networks.convert.trace import CONVOLUTIONS, classes_of
from monai_gmr.networks.layers import (
    GMRAvgPool,
    GMRInterpolate,
    PointGroupConvTranspose1d,
    PointGroupConvTranspose2d,
    PointGroupConvTranspose3d,
    PointGroupDropout,
    PointGroupNorm,
)
from monai_gmr.networks.layers.conv_nd import convolution_like
from monai_gmr.symmetry import PointGroup, filter_table, project_kernel_on_group, project_on_products
from monai_gmr.symmetry.projection import fitted_window

TO_SCALARS: Sequence[Any] = (PointGroupConvTranspose1d, PointGroupConvTranspose2d, PointGroupConvTranspose3d)
SINGLE_CHANNELS = "has statistics or weights for single channels, which a group exchanges"


def joins_fields(module: Any, options: Options) -> bool:
    """Whether a module is a convolution that takes fields or ends on them."""
    fields = options.fields
    is_convolution = fields is not None and isinstance(module, CONVOLUTIONS)
    return fields is not None and is_convolution and (fields.takes_fields(module) or fields.gives_fields(module))


def swap_group_convolution(
    module: Any, kernel: np.ndarray | None, window: Sequence[int], padding: Any, options: Options, **changes: Any
) -> Swap:
    """Group convolution of stride 1 in place of a convolution that :func:`joins_fields`; callers add steps and upsampling.

    Args:
        module: the convolution.
        kernel: ``(out_channels, in_channels / groups, *window)`` to project the weights from, or ``None`` for fresh weights.
        window: window of the new layer.
        padding: padding of the new layer.
        options: options of the conversion.
        changes: arguments of the new layer that differ from the module's.
    """
    fields, group = options.fields, options.group_arguments["group"]
    assert fields is not None
    dims = len(window)
    if dims != options.spatial_dims:
        return stays_broken(f"works on {dims} axes, the group on {options.spatial_dims}")
    if not fields.is_plain(module):
        return stays_broken(
            "is given scalars and fields of the group in turn, or fields whose channels lie along another axis"
        )
    takes, gives = fields.takes_fields(module), fields.gives_fields(module)
    if takes and module.in_channels % group.order:
        return stays_broken(f"its {module.in_channels} input channels are not those of whole fields of {group.order}")
    arguments = {"kernel_size": window, "stride": 1, "padding": padding, **options.group_arguments, **changes}
    groups = module.groups
    if takes and gives and groups == module.in_channels == module.out_channels:
        arguments |= {"filter": "depthwise", "groups": 1}
    elif groups > 1 and any(
        channels % (groups * (group.order if are_fields else 1))
        for channels, are_fields in ((module.in_channels, takes), (module.out_channels, gives))
    ):
        return stays_broken(f"its groups={groups} divide fields of {group.order}")
    lengths = (window, padding, module.stride, arguments.get("dilation", module.dilation))
    if not all(map(group.keeps, lengths)):
        return stays_broken(
            f"its window, padding, stride or dilation differs between axes that {group!r} exchanges: use its subgroup "
            f"{group.keeping(*lengths)!r}"
        )
    remark = ""
    if gives:
        kind = swapped_class("PointGroupConv", dims)
        arguments["in_group"] = None if takes else "1"
        remark = "" if takes else "lifts scalars to fields"
    else:
        if module.padding_mode != "zeros":
            return stays_broken(f"ends on scalars, which padding_mode={module.padding_mode!r} cannot")
        kind = TO_SCALARS[dims - 1]
        dilation = arguments.get("dilation", module.dilation)
        arguments["padding"] = [d * (k - 1) - p for d, k, p in zip(dilation, window, padding)]
        if min(arguments["padding"]) < 0:
            return stays_broken(f"its padding={tuple(padding)} is wider than its window")
        arguments |= {"out_group": "1", "filter": "full"}
        remark = "from fields to scalars"
        if module not in fields.heads:
            remark += f", because {module.out_channels} channels are not a multiple of {group.order}"
    layer = convolution_like(kind, module, **arguments)
    change = take_weights(layer, module, options, partial(_project, kernel=kernel, groups=groups))
    return Swap(layer, remark, change)


def swap_direct(module: Any, surplus: Sequence[int], options: Options) -> Swap:
    """The replacement of a convolution that is not transposed."""
    window, padding = options.window(module.kernel_size), module.padding
    if padding == "valid":
        padding = (0,) * len(window)
    elif padding == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size))
        surplus = [d * (k - 1) % 2 for d, k in zip(module.dilation, module.kernel_size)]
    growth = [d * (new - old) for d, new, old in zip(module.dilation, window, module.kernel_size)]
    total = [2 * p + g for p, g in zip(padding, growth)]
    if any(surplus) or any(t % 2 for t in total) or min(total) < 0:
        return stays_broken("pads one end of an axis more than the other, which a group convolution cannot")
    given = fitted_window(as_array(module.weight), window) if projects(module, options) else None
    found = swap_group_convolution(module, given, window, tuple(t // 2 for t in total), options)
    if found.module is None or max(module.stride) == 1:
        return found
    steps = GMRAvgPool(len(window), 1, module.stride, rounding="floor")
    # with a window of 1, the skipped voxels need not be computed
    parts = (steps, found.module) if max(window) == 1 else (found.module, steps)
    return found._replace(module=with_hooks_of(nn.Sequential(*parts), found.module))


def swap_upsampling(
    module: Any, kernel: np.ndarray | None, geometry: dict[str, Any], extent: Sequence[int], options: Options
) -> Swap:
    """The replacement of a transposed convolution: a convolution on the coarse grid, then linear interpolation about the centre."""
    changes = {"dilation": geometry["dilation"]}
    found = swap_group_convolution(module, kernel, geometry["kernel_size"], geometry["padding"], options, **changes)
    if found.module is None:
        return found
    upsample = GMRInterpolate(module.stride, "linear", extent=extent)
    block = with_hooks_of(nn.Sequential(found.module, upsample), found.module)
    remark = "upsampling, followed by linear interpolation"
    return found._replace(module=block, reason="; ".join(filter(None, [found.reason, remark])))


def _project(layer: Any, module: Any, kernel: np.ndarray | None, groups: int) -> float | None:
    """Sets the weights nearest to a kernel ``(out_channels, in_channels / groups, *window)``; returns its relative change."""
    if kernel is None:
        return None
    if layer.transposed:
        parts = kernel.reshape(groups, -1, *kernel.shape[1:]).swapaxes(1, 2)
        kernel = np.flip(parts.reshape(-1, *parts.shape[2:]), tuple(range(2, kernel.ndim)))
    table = layer.weight_table.cpu().numpy()
    if layer.spatial_weight is not None:
        table = filter_table(layer.columns_group, layer.rows_group, layer.kernel_size)
    weights, change = project_kernel_on_group(kernel, table)
    if layer.spatial_weight is None:
        layer.weight.copy_(torch.as_tensor(weights))
        return change
    # per pair of fields, or per field: weights over elements (and inputs) times weights over taps
    matrices = weights.reshape(*weights.shape[:2], layer.columns_group.order, -1)
    if layer.filter == "gc":
        matrices = matrices.reshape(len(matrices), 1, -1, matrices.shape[-1])
    columns, rows = project_on_products(matrices)
    layer.weight.copy_(torch.as_tensor(columns.reshape(layer.weight.shape)))
    layer.spatial_weight.copy_(torch.as_tensor(rows.reshape(layer.spatial_weight.shape)))
    nearest = as_array(layer.dense_kernel()).reshape(kernel.shape)
    norm = float(np.linalg.norm(kernel))
    return float(np.linalg.norm(nearest - kernel)) / norm if norm > 0 else 0.0


def _on_fields(module: nn.Module, options: Options) -> PointGroup | None:
    """The group on whose fields a module works, or ``None``."""
    if options.fields is None or not options.fields.takes_fields(module):
        return None
    group: PointGroup = options.group_arguments["group"]
    return group


def swap_norm(module: Any, options: Options) -> Swap | None:
    """Replace a norm by one with statistics and weights per field; trained ones become means over the channels of a field."""
    group = _on_fields(module, options)
    if group is None:
        return None
    if not _is_torch_forward(module):
        return stays_broken(f"{type(module).__name__} has a forward of its own, which may do more than normalise")
    channels = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
    if channels % group.order or not _has_voxels(module, options):
        return stays_broken(SINGLE_CHANNELS)
    remark, arguments = "", {"eps": module.eps, "affine": module.affine}
    if isinstance(module, nn.GroupNorm):
        name, count = "group", math.gcd(module.num_groups, channels // group.order)
        arguments["num_groups"] = count
        if count != module.num_groups:
            remark = f"{count} groups of whole fields in place of {module.num_groups} groups"
    else:
        kinds = ((nn.SyncBatchNorm, "syncbatch"), (classes_of("InstanceNorm"), "instance"), (nn.Module, "batch"))
        name = next(name for kind, name in kinds if isinstance(module, kind))
        arguments |= {"momentum": module.momentum, "track_running_stats": module.track_running_stats}
    layer = PointGroupNorm(options.spatial_dims, channels, group, (name, arguments))
    tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    sample = next((each for each in tensors.values() if each.is_floating_point()), None)
    if sample is not None:
        layer.to(sample.device, sample.dtype)
    with torch.no_grad():
        for key, tensor in tensors.items() if options.keeps_weights else ():
            own = getattr(layer.norm, key)
            if tensor.is_meta or tensor.dim() == 0:
                own.copy_(tensor)
                continue
            own.copy_(tensor.unflatten(0, (-1, group.order)).mean(1))
            if key == "running_var":
                own.add_(module.running_mean.unflatten(0, (-1, group.order)).var(1, correction=0))
    keep_training(layer, module, layer.norm)
    return Swap(layer, remark)


def swap_dropout(module: Any, options: Options) -> Swap | None:
    """Dropout of channels becomes dropout of fields."""
    group = _on_fields(module, options)
    if group is None or not _has_voxels(module, options):
        return None
    layer = PointGroupDropout(options.spatial_dims, module.p, group=group)
    keep_training(layer, module)
    return Swap(layer)


def swap_activation(module: Any, options: Options) -> Swap | None:
    """A rectifier with slopes for single channels gets their mean for all."""
    if _on_fields(module, options) is None or module.num_parameters == 1:
        return None
    layer = nn.PReLU(1, device=module.weight.device, dtype=module.weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(module.weight.mean())
    keep_training(layer, module)
    return Swap(layer, "one slope in place of one per channel")


def swap_dense(module: Any, options: Options) -> Swap | None:
    """A linear layer on fields takes their means over the group."""
    group, trace = _on_fields(module, options), options.trace
    # layers on single voxels get their own sentence
    if group is None or module in trace.flattened or module in trace.flattened_in_training:
        return None
    assert options.fields is not None
    if not _is_torch_forward(module):
        return stays_broken(f"{type(module).__name__} has a forward of its own, which may do more than multiply")
    if module.in_features % group.order or not options.fields.is_plain(module):
        return stays_broken(SINGLE_CHANNELS)
    factory: dict[str, Any] = {"device": module.weight.device, "dtype": module.weight.dtype}
    layer = FieldLinear(module.in_features, module.out_features, module.bias is not None, **factory, order=group.order)
    with torch.no_grad():
        if options.keeps_weights and not module.weight.is_meta:
            layer.weight.copy_(module.weight.unflatten(1, (-1, group.order)).sum(2))
            if module.bias is not None:
                layer.bias.copy_(module.bias)
    keep_training(layer, module)
    return Swap(layer, "of the means of each field")


def swap_single_channels(module: Any, options: Options) -> Swap | None:
    """Mark a module that treats the channels of a field differently."""
    group = _on_fields(module, options)
    weights = [each for each in module.parameters(recurse=False) if each.numel() > 1]
    exempt = isinstance(module, nn.LayerNorm) and not weights
    return None if group is None or exempt else stays_broken(SINGLE_CHANNELS)


def _is_torch_forward(module: nn.Module) -> bool:
    """Whether a module computes the same as its torch class."""
    kind: Any = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn"))
    own: Any = type(module)
    return own.forward is kind.forward


def _has_voxels(module: nn.Module, options: Options) -> bool:
    """Whether a module takes images of fields with a batch, with channels along axis 1."""
    assert options.fields is not None
    return options.fields.is_plain(module) and options.fields.axes[module] == options.spatial_dims + 2


GROUP_SWAPS: tuple[tuple[Any, Callable[[Any, Options], Swap | None]], ...] = (
    (NORMS, swap_norm),
    (classes_of("Dropout"), swap_dropout),
    (nn.PReLU, swap_activation),
    (nn.Linear, swap_dense),
    ((nn.LayerNorm, nn.LocalResponseNorm, nn.Bilinear, nn.PixelShuffle, nn.PixelUnshuffle), swap_single_channels),
)
