"""Backend "triton": which convolutions run in kernels on a GPU, and in which."""

from __future__ import annotations

import logging

import torch
from monai.utils import optional_import

from monai_gmr.ops.backend import register_backend
from monai_gmr.ops.once import Once
from monai_gmr.ops.ring_conv import dense_ring_conv, output_sizes
from monai_gmr.ops.triton.ring_conv import triton_ring_conv
from monai_gmr.ops.triton.shell_conv import triton_shell_conv

logger = logging.getLogger(__name__)


@Once
def _say_dense(reason: str) -> None:
    logger.warning(f"backend 'triton' is not used: {reason}; 'dense' runs in its place.")


def _can_run(device_type: str, dtype: torch.dtype) -> bool:
    """Whether the Triton kernels take such an input; if not, says once why."""
    triton, has_triton = optional_import("triton")
    reason = None
    if not has_triton:
        reason = "Triton is not installed"
    elif device_type != "cuda" and not triton.knobs.runtime.interpret:
        reason = f"it needs a CUDA device and the input is on {device_type}"
    elif dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reason = f"it has no kernel for {dtype}"
    if reason is not None:
        _say_dense(reason)
    return reason is None


# what torch.compiler.assume_constant_result does, after a second for the import of torch._dynamo
_can_run._dynamo_marked_constant = True  # type: ignore[attr-defined]


@register_backend("triton", takes_factors=True)
def triton_backend(
    x: torch.Tensor,
    weight: torch.Tensor,
    basis: torch.Tensor,
    shells: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    factors: torch.Tensor | None = None,
    live: int | None = None,
) -> torch.Tensor:
    """Backend "triton": sums over rings; one kernel of sums and products for strides, groups and angular factors; "dense" for export, for
    images smaller than the window, and where Triton cannot run."""
    arguments = (stride, padding, dilation, groups)
    exporting = torch.jit.is_tracing() or torch.compiler.is_exporting()
    sizes = output_sizes(x.shape[x.dim() - shells.dim() :], shells.shape, stride, padding, dilation)
    if exporting or min(sizes) < 1 or not _can_run(x.device.type, x.dtype):
        return dense_ring_conv(x, weight, basis, shells, bias, *arguments, factors)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    batched = x if x.dim() == shells.dim() + 2 else x[None]
    bias = None if bias is None else bias.to(x.dtype)
    if factors is None and groups == 1 and max(stride) == 1:
        y = triton_ring_conv(batched, weight.to(x.dtype), basis[:, :live], shells, bias, padding, dilation)
        return y if x.dim() == shells.dim() + 2 else y[0]
    with torch.autocast(device_type=x.device.type, enabled=False):
        per_shell = weight.to(basis.dtype) @ basis[:, :live]
    components = torch.ones((1, shells.numel()), device=x.device) if factors is None else factors
    y = triton_shell_conv(batched, per_shell, shells, components, *arguments)
    y = y[:, :, 0] if factors is None else y
    if bias is not None:
        y = y + bias.reshape([-1] + [1] * shells.dim())
    return y if x.dim() == shells.dim() + 2 else y[0]
