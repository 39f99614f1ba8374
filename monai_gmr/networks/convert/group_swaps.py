"""Replacements of modules by those on fields of a group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_gmr.networks.convert.layers import swapped_class
from monai_gmr.networks.convert.options import Options, Swap, as_array, stays_broken, take_weights
from monai_gmr.networks.convert.trace import classes_of
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
    """Whether a convolution is given fields or ends on them."""
    fields = options.fields
    return fields is not None and (fields.takes_fields(module) or fields.gives_fields(module))


def swap_group_convolution(
    module: Any, kernel: np.ndarray | None, window: Sequence[int], padding: Any, options: Options, **changes: Any
) -> Swap:
    """The group convolution in place of one that :func:`joins_fields`, at every voxel, then every ``stride``-th about the centre.

    Args:
        module: the convolution.
        kernel: ``(out_channels, in_channels / groups, *window)``, that its weights are projected from, or ``None`` for fresh ones.
        window: that of the layer.
        padding: that of the layer.
        options: those of the conversion.
        changes: other arguments of the layer than the module's.
    """
    fields, group = options.fields, options.group_arguments["group"]
    assert fields is not None
    dims, taken = len(window), fields.taken.get(module, set())
    if len(taken) > 1:
        return stays_broken("is given scalars and, elsewhere, fields of the group")
    takes, gives = fields.takes_fields(module), fields.gives_fields(module)
    if takes and module.in_channels % group.order:
        return stays_broken(f"its {module.in_channels} input channels are not those of whole fields of {group.order}")
    arguments = {"kernel_size": window, "stride": 1, "padding": padding, **options.group_arguments, **changes}
    groups = module.groups
    if takes and gives and groups == module.in_channels == module.out_channels:
        arguments |= {"filter": "depthwise", "groups": 1}
    elif groups > 1 and any(
        module_channels % (groups * (group.order if are_fields else 1))
        for module_channels, are_fields in ((module.in_channels, takes), (module.out_channels, gives))
    ):
        return stays_broken(f"its groups={groups} divide fields of {group.order}")
    if not all(
        group.keeping(arguments[name]) == group for name in ("kernel_size", "padding", "dilation") if name in arguments
    ):
        return stays_broken(f"its window or padding differs between axes that {group!r} exchanges")
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
            remark += f", for {module.out_channels} channels are no multiple of {group.order}"
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
    given = None if module.weight.is_meta else fitted_window(as_array(module.weight), window)
    found = swap_group_convolution(module, given, window, tuple(t // 2 for t in total), options)
    if found.module is None or max(module.stride) == 1:
        return found
    steps = GMRAvgPool(len(window), 1, module.stride, rounding="floor")
    # of a window of 1 the voxels that are left out need not be computed
    parts = (steps, found.module) if max(window) == 1 else (found.module, steps)
    return found._replace(module=nn.Sequential(*parts))


def swap_upsampling(
    module: Any, kernel: np.ndarray | None, geometry: dict[str, Any], extent: Sequence[int], options: Options
) -> Swap:
    """The replacement of a transposed convolution: one of the coarse grid, then linear interpolation about the centre."""
    changes = {"dilation": geometry["dilation"]}
    found = swap_group_convolution(module, kernel, geometry["kernel_size"], geometry["padding"], options, **changes)
    if found.module is None:
        return found
    block = nn.Sequential(found.module, GMRInterpolate(module.stride, "linear", extent=extent))
    remark = "upsampling, followed by linear interpolation"
    return found._replace(module=block, reason="; ".join(filter(None, [found.reason, remark])))


def _project(layer: Any, module: Any, kernel: np.ndarray | None, groups: int) -> float | None:
    """Write the weights nearest to a kernel ``(out_channels, in_channels / groups, *window)``; how much it changes."""
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
    # of each pair of fields, or of each field, the weights over elements (and inputs) times those over taps
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
    """A norm with statistics and weights of fields; of trained ones the means over the channels of a field."""
    group = _on_fields(module, options)
    if group is None:
        return None
    channels = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
    if channels % group.order:
        return stays_broken(SINGLE_CHANNELS)
    remark, arguments = "", {"eps": module.eps, "affine": module.affine}
    if isinstance(module, nn.GroupNorm):
        name, count = "group", math.gcd(module.num_groups, channels // group.order)
        arguments["num_groups"] = count
        if count != module.num_groups:
            remark = f"{count} groups of whole fields in place of {module.num_groups} groups"
    else:
        names = {"BatchNorm": "batch", "SyncBatchNorm": "syncbatch", "InstanceNorm": "instance"}
        name = next((each for start, each in names.items() if type(module).__name__.startswith(start)), "batch")
        arguments |= {"momentum": module.momentum, "track_running_stats": module.track_running_stats}
    layer = PointGroupNorm(options.spatial_dims, channels, group, (name, arguments))
    tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    with torch.no_grad():
        for key, tensor in tensors.items():
            device, own = tensor.device, getattr(layer.norm, key)
            layer.to(device)
            own = getattr(layer.norm, key)
            if tensor.is_floating_point():
                own.data = own.data.to(tensor.dtype)
            if tensor.is_meta or options.weights != "project":
                continue
            if tensor.dim() == 0:
                own.copy_(tensor)
                continue
            parts = tensor.unflatten(0, (-1, group.order))
            own.copy_(parts.mean(1))
            if key == "running_var":
                means = module.running_mean.unflatten(0, (-1, group.order))
                own.add_(means.var(1, correction=0))
    for key, parameter in module.named_parameters(recurse=False):
        getattr(layer.norm, key).requires_grad_(parameter.requires_grad)
    return Swap(layer.train(module.training), remark)


def swap_dropout(module: Any, options: Options) -> Swap | None:
    """Dropout of channels becomes dropout of fields."""
    group = _on_fields(module, options)
    if group is None:
        return None
    return Swap(PointGroupDropout(options.spatial_dims, module.p, group=group).train(module.training))


def swap_activation(module: Any, options: Options) -> Swap | None:
    """A rectifier with slopes for single channels gets their mean for all."""
    if _on_fields(module, options) is None or module.num_parameters == 1:
        return None
    layer = nn.PReLU(1, device=module.weight.device, dtype=module.weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(module.weight.mean())
    return Swap(layer.train(module.training), "one slope in place of one a channel")


def swap_dense(module: Any, options: Options) -> Swap | None:
    """A linear layer on fields takes their means over the group."""
    group = _on_fields(module, options)
    if group is None:
        return None
    if module.in_features % group.order:
        return stays_broken(SINGLE_CHANNELS)
    fields = module.in_features // group.order
    kind: Any = nn.Linear
    layer = kind(fields, module.out_features, module.bias is not None, module.weight.device, module.weight.dtype)
    with torch.no_grad():
        if options.weights == "project" and not module.weight.is_meta:
            layer.weight.copy_(module.weight.unflatten(1, (fields, -1)).sum(2))
            if module.bias is not None:
                layer.bias.copy_(module.bias)
    block = nn.Sequential(nn.AvgPool1d(group.order), layer)
    return Swap(block.train(module.training), "of the means of each field")


def swap_single_channels(module: Any, options: Options) -> Swap | None:
    """What treats the channels of a field unlike."""
    group = _on_fields(module, options)
    weights = [each for each in module.parameters(recurse=False) if each.numel() > 1]
    exempt = isinstance(module, nn.LayerNorm) and not weights
    return None if group is None or exempt else stays_broken(SINGLE_CHANNELS)


GROUP_SWAPS = (
    ((*classes_of("BatchNorm", "InstanceNorm"), nn.SyncBatchNorm, nn.GroupNorm), swap_norm),
    (classes_of("Dropout"), swap_dropout),
    (nn.PReLU, swap_activation),
    (nn.Linear, swap_dense),
    ((nn.LayerNorm, nn.LocalResponseNorm, nn.Bilinear, nn.PixelShuffle, nn.PixelUnshuffle), swap_single_channels),
)
