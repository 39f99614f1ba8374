r"""Convolution with functions on taps that are constant on shells up to an angular factor, on backend "triton".

.. math:: y_{om} = \sum_i \sum_s w_{ois} \sum_{t \in s} f_m(t)\, x_i(\cdot + t)

A radial kernel has one component with :math:`f = 1`, a harmonic one of order :math:`l` the :math:`2l + 1` harmonics. Backend "triton" runs
harmonic kernels, strides and groups here, and other radial convolutions in :mod:`monai_gmr.ops.triton.ring_conv`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from monai_gmr.ops.call import output_sizes
from monai_gmr.ops.ring_conv import dense_shell_conv
from monai_gmr.ops.triton.launch import Blocks, choose_blocks, timer_of
from monai_gmr.ops.triton.tables import TapTable, tap_table_of


def _as_volume(x: torch.Tensor, axes: int) -> torch.Tensor:
    """``x`` with three spatial axes; missing axes come first, with length 1."""
    return x.reshape(*x.shape[: x.dim() - axes], *(1,) * (3 - axes), *x.shape[x.dim() - axes :])


def _launch_fastest(name: str, x: torch.Tensor, shape: Any, sizes: tuple, launch: Callable[[Blocks], None]) -> None:
    """Runs a kernel with the fastest blocks for ``sizes`` and ``shape``, the weight's ``(groups, shells, in, out)``."""
    key = (name, x.device, x.dtype, tuple(shape), *(int(size).bit_length() for size in sizes))
    launch(choose_blocks(key, Blocks.candidates(shape[2], shape[3]), launch, timer_of(x.device)))


def _voxels(y: torch.Tensor) -> int:
    """Number of voxels of all samples of ``(batch, channels, components, 3 axes)``."""
    return y.shape[0] * y.shape[3] * y.shape[4] * y.shape[5]


def _geometry(x: torch.Tensor, y: torch.Tensor, steps: list[int], shape: Any, angular: torch.Tensor) -> list[int]:
    """The numeric arguments of both kernels, in order; ``shape`` is the weight's ``(groups, shells, in, out)``."""
    sizes = [*x.stride(), *y.stride(), *x.shape[2:], *y.shape[3:], *steps, _voxels(y)]
    return [*sizes, shape[2], shape[3], len(angular), shape[1], angular.shape[1]]


def _launch_convolution(
    x: torch.Tensor, weight: torch.Tensor, table: TapTable, angular: torch.Tensor, y: torch.Tensor, steps: list[int]
) -> None:
    """Fills ``y`` ``(batch, groups * out, components, 3 axes)``; ``weight`` is ``(groups, shells, in, out)``."""
    from monai_gmr.ops.triton import shell_kernels as triton_kernels

    groups, _, _, out_channels = weight.shape

    def launch(blocks: Blocks) -> None:
        grid = (-(-_voxels(y) // blocks.voxels), -(-out_channels // blocks.out), groups * len(angular))
        arrays = (x, weight, table.offsets, angular, table.starts, y)
        geometry = _geometry(x, y, steps, weight.shape, angular)
        triton_kernels.shell_conv_kernel[grid](*arrays, *geometry, **blocks.options(x.dtype))

    _launch_fastest("convolution", x, weight.shape, (_voxels(y), len(angular), len(table.order)), launch)


def _launch_weight_gradient(
    x: torch.Tensor, gradient: torch.Tensor, table: TapTable, angular: torch.Tensor, shape: Any, steps: list[int]
) -> torch.Tensor:
    """Gradient of the weight ``(groups, shells, in, out)``, float32."""
    from monai_gmr.ops.triton import shell_kernels as triton_kernels

    groups, num_shells, in_channels, out_channels = shape
    voxels = _voxels(gradient)
    # as many parts as keep a GPU busy; they are summed afterwards, so that the result does not depend on their order
    parts = max(1, min(256, -(-voxels // 512)))
    chunk = -(-voxels // parts)
    partial_sums = torch.zeros((parts, *shape), dtype=torch.float32, device=x.device)

    def launch(blocks: Blocks) -> None:
        grid = (parts, -(-out_channels // blocks.out) * -(-in_channels // blocks.inner), groups * num_shells)
        arrays = (x, gradient, table.offsets, angular, table.starts, partial_sums)
        geometry = _geometry(x, gradient, steps, shape, angular)
        kernel = triton_kernels.shell_weight_gradient_kernel[grid]
        kernel(*arrays, *geometry, groups, chunk, **blocks.options(x.dtype))

    _launch_fastest("weight gradient", x, shape, (voxels, len(angular), len(table.order)), launch)
    return partial_sums.sum(0)


def _steps(stride: Sequence[int]) -> list[int]:
    return [1] * (3 - len(stride)) + list(stride)


def _sorted(angular: torch.Tensor, table: TapTable) -> torch.Tensor:
    """Angular functions in the order of a table's taps."""
    return angular.to(torch.float32)[:, table.order].contiguous()


@torch.library.custom_op("monai_gmr::shell_conv", mutates_args=())
def triton_shell_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    shells: torch.Tensor,
    angular: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """:func:`~monai_gmr.ops.dense_shell_conv` in one Triton kernel, with gradients for ``x`` and ``weight``.

    Only input and weight are saved for backward. The operation is one node for ``torch.compile`` and ``torch.export``.
    """
    axes = shells.dim()
    sizes = output_sizes(x.shape[2:], shells.shape, stride, padding, dilation)
    y = x.new_empty((x.shape[0], weight.shape[0], len(angular), *sizes))
    table = tap_table_of(shells, x.device, weight.shape[2], padding, dilation, False)
    grouped = weight.to(x.dtype).unflatten(0, (groups, -1)).permute(0, 3, 2, 1).contiguous()
    arrays = (_as_volume(x, axes), grouped, table, _sorted(angular, table))
    _launch_convolution(*arrays, _as_volume(y, axes), _steps(stride))
    return y


@triton_shell_conv.register_fake
def _(x, weight, shells, angular, stride, padding, dilation, groups):
    sizes = output_sizes(x.shape[2:], shells.shape, stride, padding, dilation)
    return x.new_empty((x.shape[0], weight.shape[0], angular.shape[0], *sizes))


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    *tensors, ctx.stride, ctx.padding, ctx.dilation, ctx.groups = inputs
    ctx.save_for_backward(*tensors)


def _input_gradient(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
    x, weight, shells, angular = ctx.saved_tensors
    axes = shells.dim()
    if any(s != 1 for s in ctx.stride):
        # the adjoint of a strided convolution skips voxels: use torch's transposed convolution
        geometry = {"stride": ctx.stride, "padding": ctx.padding, "dilation": ctx.dilation, "groups": ctx.groups}
        with torch.enable_grad():
            source = x.detach().requires_grad_()
            y = dense_shell_conv(source, weight.detach(), shells, angular, **geometry)
        return torch.autograd.grad(y, source, gradient)[0]
    table = tap_table_of(shells, x.device, weight.shape[2], ctx.padding, ctx.dilation, True)
    # the kernel is its own adjoint: the weights are transposed, and the components become input channels
    result = torch.zeros(x.shape, dtype=torch.float32 if len(angular) > 1 else x.dtype, device=x.device)
    grouped = weight.to(x.dtype).unflatten(0, (ctx.groups, -1)).permute(0, 3, 1, 2).contiguous()
    for component, functions in enumerate(_sorted(angular, table)):
        part = torch.empty_like(x)
        arrays = (_as_volume(gradient[:, :, component], axes), grouped, table, functions[None])
        _launch_convolution(*arrays, _as_volume(part, axes)[:, :, None], [1, 1, 1])
        result += part
    return result.to(x.dtype)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple:
    x, weight, shells, angular = ctx.saved_tensors
    axes, (rows, ins, num_shells) = shells.dim(), weight.shape
    x_gradient = _input_gradient(ctx, gradient) if ctx.needs_input_grad[0] else None
    weight_gradient = None
    if ctx.needs_input_grad[1]:
        table = tap_table_of(shells, x.device, num_shells, ctx.padding, ctx.dilation, False)
        shape = (ctx.groups, num_shells, ins, rows // ctx.groups)
        volumes = (_as_volume(x, axes), _as_volume(gradient, axes))
        grouped = _launch_weight_gradient(*volumes, table, _sorted(angular, table), shape, _steps(ctx.stride))
        weight_gradient = grouped.permute(0, 3, 2, 1).flatten(0, 1).to(weight.dtype)
    return x_gradient, weight_gradient, *[None] * 6


triton_shell_conv.register_autograd(_backward, setup_context=_setup_context)
