"""Convolutions that keep the rest of their trained kernels next to the equivariant layers that replace them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from monai_gmr.networks.convert.trace import classes_of
from monai_gmr.networks.layers import AnnealedConv, AnnealedConvTranspose
from monai_gmr.networks.layers.centred_conv import CentredConvNd
from monai_gmr.networks.layers.conv_nd import convolution_like
from monai_gmr.networks.layers.gmr_conv import GMRConvNd
from monai_gmr.networks.layers.gmr_harmonic_conv import GMRHarmonicConvNd
from monai_gmr.networks.layers.point_group_conv import PointGroupConvNd, PointGroupConvTransposeNd
from monai_gmr.networks.layers.sized_upsampling import ResizedConvNd
from monai_gmr.networks.utils import move_hooks
from monai_gmr.utils import ConfigurationError


def with_rest(module: Any, layer: Any, ends: Sequence[int] = ()) -> tuple[nn.Module, float]:
    """The replacement of a trained convolution with the rest of its kernel next to it; together they compute the same as the convolution.

    Args:
        module: the convolution.
        layer: its replacement, with projected weights.
        ends: zeros that a padding module, removed by the conversion, added before it, in the order of ``torch.nn.functional.pad``.

    Returns:
        both, and the norm of the rest relative to the kernel; only the layer for a kernel of zeros.

    Example:
        >>> from monai_gmr.networks.layers import GMRConv2d
        >>> annealed, size = with_rest(nn.Conv2d(1, 2, 3, bias=False), GMRConv2d(1, 2, 3, bias=False))
        >>> annealed.rest, annealed.blends
        (Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1), bias=False), False)
    """
    if module.weight.is_meta:
        raise ConfigurationError(
            "weights='anneal' keeps trained kernels, and those of a network on the meta device have no values: load them first."
        )
    norm = float(torch.linalg.vector_norm(module.weight.detach().float()))
    if norm == 0:
        return layer, 0.0
    transposed = isinstance(module, classes_of("ConvTranspose"))
    changes = {"output_padding": module.output_padding} if transposed else {}
    kernel = _equal_kernel(layer, module)
    with torch.no_grad():
        bias = module.bias
        if kernel is not None and bias is not None:
            # the layer's bias has one number per field
            bias = bias - layer.bias.repeat_interleave(len(bias) // len(layer.bias))
            bias = bias if bias.any() else None
        rest = convolution_like(_torch_class(module, transposed), module, bias=bias is not None, **changes)
        rest.weight.copy_(module.weight if kernel is None else module.weight - kernel)
        if bias is not None:
            rest.bias.copy_(bias)
    for name, parameter in rest.named_parameters():
        parameter.requires_grad_(getattr(module, name).requires_grad)
    kind = AnnealedConvTranspose if transposed else AnnealedConv
    annealed = kind(layer, rest, norm, blends=kernel is None, ends=ends)
    move_hooks(layer, annealed)
    annealed.train(module.training)
    return annealed, float(annealed.rest_size())


def _torch_class(module: Any, transposed: bool) -> Any:
    return getattr(nn, f"Conv{'Transpose' if transposed else ''}{len(module.kernel_size)}d")


def _equal_kernel(layer: Any, module: Any) -> torch.Tensor | None:
    """The kernel with which a convolution equals a layer; ``None`` if the layer takes norms or its taps lie elsewhere."""
    if max(module.stride) > 1 or tuple(getattr(layer, "kernel_size", ())) != tuple(module.kernel_size):
        return None
    if isinstance(layer, PointGroupConvTransposeNd):
        # to scalars: the adjoint of lifting
        kernel = layer.dense_kernel().unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
        return kernel.flip(tuple(range(2, kernel.dim())))
    nonlinear_or_elsewhere = (CentredConvNd, GMRHarmonicConvNd, ResizedConvNd)
    if isinstance(layer, (GMRConvNd, PointGroupConvNd)) and not isinstance(layer, nonlinear_or_elsewhere):
        return layer.dense_kernel()
    return None
