"""Short explanations of why a module of torch or MONAI is not equivariant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from monai_gmr.symmetry import point_group, stride_is_exact, transform_grid

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
DROPOUT = (nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout)


def explain_module(module: nn.Module, size: Sequence[int]) -> str:
    """Explains what breaks the symmetry of a module without children at a spatial size; empty if no rule covers it.

    Example:
        >>> explain_module(nn.MaxPool2d(2), (16, 17))
        'stride 2 skips one end of size 17 (axis 1): (n + 2p - d(k-1) - 1) % s is not 0'
    """
    if isinstance(module, DROPOUT):
        return "draws every voxel at random: call net.eval()"
    if isinstance(module, nn.PixelShuffle | nn.PixelUnshuffle):
        return "the place of each channel within a cell is fixed"
    if isinstance(module, nn.Flatten):
        return "flattens positions: pool first"
    if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        return "has one weight for each position"
    if isinstance(module, nn.Upsample):
        return _explain_upsample(module, size)
    if getattr(module, "transposed", False) or isinstance(module, TRANSPOSED):
        extra = tuple(_per_axis(getattr(module, "output_padding", 0), len(size)))
        reason = f"output_padding={extra} adds to one end: it must be 0" if any(extra) else ""
        return "; ".join(filter(None, [reason, _explain_kernel(module)]))
    if hasattr(module, "kernel_size") and hasattr(module, "stride"):
        return "; ".join(filter(None, [_explain_stride(module, size), _explain_kernel(module)]))
    padding: Any = getattr(module, "padding", None)
    if isinstance(padding, tuple):
        lopsided = any(first != last for first, last in zip(padding[::2], padding[1::2]))
        return "pads one end more than the other" if lopsided else "pads the axes differently"
    return ""


def _per_axis(value: Any, dims: int) -> list[int]:
    return [int(v) for v in value] if isinstance(value, Sequence) else [int(value)] * dims


def _explain_stride(module: Any, size: Sequence[int]) -> str:
    dims = len(size)
    padding = getattr(module, "padding", 0)
    dilation = _per_axis(getattr(module, "dilation", 1), dims)
    kernel, stride = _per_axis(module.kernel_size, dims), _per_axis(module.stride, dims)
    if padding == "same":
        lopsided = any(d * (k - 1) % 2 for d, k in zip(dilation, kernel))
        return "padding='same' pads an even kernel more at one end" if lopsided else ""
    if isinstance(padding, str) and padding != "valid":
        return ""
    padding = [0] * dims if padding == "valid" else _per_axis(padding, dims)
    broken = [i for i in range(dims) if not stride_is_exact(size[i], kernel[i], stride[i], padding[i], dilation[i])]
    if not broken:
        return ""
    sizes = " and ".join(sorted({str(size[i]) for i in broken}))
    strides = " and ".join(sorted({str(stride[i]) for i in broken}))
    axes = ", ".join(map(str, broken))
    return f"stride {strides} skips one end of size {sizes} (axis {axes}): (n + 2p - d(k-1) - 1) % s is not 0"


def _explain_kernel(module: Any) -> str:
    """Explains a dense weight, whose last axes are the window; empty for others."""
    weight, kernel = getattr(module, "weight", None), getattr(module, "kernel_size", None)
    if not isinstance(weight, torch.Tensor) or not isinstance(kernel, tuple) or tuple(weight.shape[2:]) != kernel:
        return ""
    plain = weight.detach()
    group = point_group(len(kernel), kernel)
    symmetric = all(torch.allclose(transform_grid(plain, g), plain, rtol=1e-5, atol=1e-7) for g in group)
    return "" if symmetric and len(set(kernel)) == 1 else f"its {'x'.join(map(str, kernel))} kernel is not radial"


def _explain_upsample(module: nn.Upsample, size: Sequence[int]) -> str:
    factors: Any = module.scale_factor
    if factors is not None:
        whole = all(float(f).is_integer() for f in (factors if isinstance(factors, Sequence) else [factors]))
    else:
        whole = all(t % n == 0 for t, n in zip(_per_axis(module.size, len(size)), size))
    if whole:
        return ""
    if module.mode in ("nearest", "area"):
        return f"mode {module.mode!r} rounds a fractional factor to one side: use a linear mode"
    return "a fractional scale_factor shifts the grid: give size, or align_corners=True"
