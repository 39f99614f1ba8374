"""Depthwise convolution: each channel with its own taps."""

import torch

from monai_gmr.ops.cpu.depthwise_conv import cpp_depthwise_conv
from monai_gmr.ops.cpu.library import runs_float32
from monai_gmr.ops.memory_format import FORMATS
from monai_gmr.ops.recorded import is_recorded
from monai_gmr.ops.ring_conv import conv_nd

# the kernel makes a training step faster from this number of products of image values with taps
LEAST_PRODUCTS = 2**19
# by spatial axes, the longest window whose gradients torch computes as fast
FAST_WINDOWS = {2: 3, 3: 1}


@torch.jit.unused
def _runs_in_kernels(
    x: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> bool:
    """Whether a kernel computes the gradient of the weights."""
    if x.dim() != kernel.dim() or x.dim() not in FORMATS or kernel.dtype != torch.float32:
        return False
    if is_recorded(x, kernel, bias):
        return False
    slow = max(kernel.shape[2:]) > FAST_WINDOWS[x.dim() - 2] and x.numel() * kernel[0].numel() >= LEAST_PRODUCTS
    if not slow or not kernel.requires_grad or not torch.is_grad_enabled():
        return False
    reach = [d * (k - 1) for d, k in zip(dilation, kernel.shape[2:])]
    sizes = [n + 2 * p - r for n, p, r in zip(x.shape[2:], padding, reach)]
    fits = max(stride) == 1 and min(sizes) > 0 and all(p <= r for p, r in zip(padding, reach))
    return fits and runs_float32(x)


def depthwise_conv(
    x: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    """Depthwise convolution: convolves each channel with its own taps.

    Args:
        x: ``(batch, channels, *spatial)`` or ``(channels, *spatial)``, 1 to 3 spatial axes.
        kernel: ``(channels, 1, *kernel_size)``.
        bias: ``(channels,)`` or ``None``.
        stride, padding, dilation: in voxels, one per axis; ``padding`` adds zeros at both ends.

    Returns:
        ``(batch, channels, *spatial_out)`` or without the batch, sizes as in ``torch.nn.ConvNd``.

    Example:
        >>> depthwise_conv(torch.ones(1, 2, 3), torch.tensor([[[1.0, 1.0]], [[2.0, 0.0]]]), None, [1], [0], [1])
        tensor([[[2., 2.],
                 [2., 2.]]])
    """
    if not torch.jit.is_scripting() and _runs_in_kernels(x, kernel, bias, stride, padding, dilation):
        return cpp_depthwise_conv(x, kernel, bias, padding, dilation)
    return conv_nd(x, kernel, bias, stride, padding, dilation, groups=kernel.shape[0])
