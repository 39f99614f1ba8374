r"""The convolution with functions on taps that are constant on shells up to an angular factor, and backend "triton" of it.

.. math:: y_{om} = \sum_i \sum_s w_{ois} \sum_{t \in s} f_m(t)\, x_i(\cdot + t)

A radial kernel has one component with :math:`f = 1`, a harmonic one of order :math:`l` the :math:`2l + 1` harmonics. Backend "triton" runs
harmonic kernels, strides and groups here, and other radial convolutions in :mod:`monai_gmr.ops.triton.ring_conv`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.weak import WeakIdKeyDictionary

from monai_gmr.ops.ring_conv import conv_nd, output_sizes


def dense_shell_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    shells: torch.Tensor,
    factors: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Build the kernel of all components and call the framework's convolution; the reference.

    Args:
        x: ``(batch, groups * in_channels, *spatial)``, 1 to 3 spatial axes.
        weight: ``(out_channels, in_channels, live shells)``; shells beyond count as zero.
        shells: integers of the window's shape, the shell of each tap.
        factors: ``(components, taps)``.
        stride, padding, dilation: in voxels, one an axis; ``padding`` is of zeros, at both ends.
        groups: blocks of channels that do not see each other.

    Returns:
        ``(batch, out_channels, components, *spatial_out)``.

    Example:
        >>> shells = torch.tensor([1, 0, 1])
        >>> y = dense_shell_conv(torch.ones(1, 1, 4), torch.ones(1, 1, 2), shells, torch.ones(1, 3), [1], [1], [1], 1)
        >>> y.flatten().tolist()
        [2.0, 3.0, 3.0, 2.0]
    """
    live = weight.shape[2]
    flat = shells.flatten()
    spread = weight.index_select(2, flat.clamp(max=live - 1)) * (flat < live)
    kernel = (spread[:, None] * factors.to(weight.dtype)[None, :, None]).flatten(0, 1)
    kernel = kernel.reshape(*kernel.shape[:2], *shells.shape).to(x.dtype)
    y = conv_nd(x, kernel, None, list(stride), list(padding), list(dilation), groups)
    return y.unflatten(1, (weight.shape[0], len(factors)))


# contents of tensors of shells, dropped with the tensor
_CONTENTS: Any = WeakIdKeyDictionary()


class TapTable(NamedTuple):
    """Taps sorted by shell.

    Attributes:
        offsets: int32, ``(taps, 3)``: where a tap lies relative to the first voxel of its window, less the padding.
        starts: int32, ``(shells + 1,)``: the first tap of each shell.
        order: int64, ``(taps,)``: the taps' positions in the window.
    """

    offsets: torch.Tensor
    starts: torch.Tensor
    order: torch.Tensor


def tap_table(
    shells: np.ndarray, live: int, padding: Sequence[int], dilation: Sequence[int], mirrored: bool = False
) -> TapTable:
    """Taps of the first ``live`` shells, sorted by shell.

    Args:
        shells: integers of the window's shape.
        live: number of shells that are not zero.
        padding, dilation: in voxels, one an axis.
        mirrored: whether the taps are turned about the window's centre: the kernel of the gradient of the input.

    Example:
        >>> tap_table(np.array([1, 0, 1]), 1, [1], [1])
        TapTable(offsets=tensor([[0, 0, 0]], dtype=torch.int32), starts=tensor([0, 1], dtype=torch.int32), order=tensor([1]))
    """
    missing = 3 - shells.ndim
    places = np.stack(np.meshgrid(*map(np.arange, shells.shape), indexing="ij"), -1).reshape(-1, shells.ndim)
    offsets = places * np.asarray(dilation) - np.asarray(padding)
    if mirrored:
        offsets = -offsets
    offsets = np.concatenate([np.zeros((len(offsets), missing), offsets.dtype), offsets], 1)
    flat = shells.ravel()
    order = np.argsort(flat, kind="stable")
    order = order[flat[order] < live]
    starts = np.searchsorted(flat[order], np.arange(live + 1))
    return TapTable(
        torch.as_tensor(offsets[order].astype(np.int32)),
        torch.as_tensor(starts.astype(np.int32)),
        torch.as_tensor(order.astype(np.int64)),
    )


@lru_cache(maxsize=256)
def _table_on(
    content: bytes, shape: tuple[int, ...], live: int, padding: tuple, dilation: tuple, mirrored: bool, device: str
) -> TapTable:
    table = tap_table(np.frombuffer(content, np.int64).reshape(shape), live, padding, dilation, mirrored)
    return TapTable(*(array.to(device) for array in table))


def _as_volume(x: torch.Tensor, axes: int) -> torch.Tensor:
    """With three spatial axes, the missing ones first and of length 1."""
    return x.reshape(*x.shape[: x.dim() - axes], *(1,) * (3 - axes), *x.shape[x.dim() - axes :])


def _product(dtype: torch.dtype) -> dict[str, Any]:
    """How a kernel multiplies: as ``torch.matmul`` does."""
    import triton
    import triton.language as tl

    types = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    # numpy, with which Triton's interpreter multiplies, has no bfloat16
    wide = dtype not in types or (dtype == torch.bfloat16 and triton.knobs.runtime.interpret)
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return {"PRODUCT_TYPE": tl.float32 if wide else types[dtype], "PRECISION": "tf32" if tf32 else "ieee"}


class Blocks(NamedTuple):
    """Sizes of a kernel's blocks."""

    voxels: int
    out: int
    inner: int
    warps: int

    @classmethod
    def candidates(cls, in_channels: int, out_channels: int) -> list[Blocks]:
        """A short list to choose from by time: powers of two from 16 that hold the channels, up to 64, and several numbers of voxels.

        Example:
            >>> Blocks.candidates(3, 40)[0]
            Blocks(voxels=64, out=64, inner=16, warps=4)
        """
        fit = [max(16, min(64, 1 << (count - 1).bit_length())) for count in (in_channels, out_channels)]
        return [cls(voxels, fit[1], min(fit[0], 32), warps) for voxels, warps in ((64, 4), (32, 2), (128, 4), (128, 8))]

    def options(self, dtype: torch.dtype) -> dict[str, Any]:
        """The constants that both kernels are compiled for."""
        sizes = {"BLOCK_VOXELS": self.voxels, "BLOCK_OUT": self.out, "BLOCK_IN": self.inner}
        return {**sizes, "num_warps": self.warps, **_product(dtype)}


Sizes = TypeVar("Sizes", bound=Hashable)
_fastest: dict[tuple, Any] = {}


def choose_blocks(
    key: tuple,
    candidates: Sequence[Sizes],
    launch: Callable[[Sizes], None],
    timer: Callable[[Callable[[], None]], float] | None,
) -> Sizes:
    """The blocks whose launch takes least, measured once for each key and kept for the process.

    Args:
        key: what the choice may depend on.
        candidates: at least one.
        launch: runs the kernel; running it again gives the same.
        timer: milliseconds of a call; ``None`` takes the first candidate.

    Raises:
        RuntimeError: when no candidate can run.
    """
    if timer is None:
        return candidates[0]
    if key not in _fastest:
        times, errors = {}, []
        for blocks in candidates:
            try:
                times[blocks] = timer(partial(launch, blocks))
            except Exception as error:  # too large for this GPU's shared memory or registers
                errors.append(" ".join(str(error).split()))
        if not times:
            raise RuntimeError(f"no block size of backend 'triton' runs here ({errors[0]}): set_backend('dense').")
        _fastest[key] = min(times, key=times.__getitem__)
    return _fastest[key]


def timer_of(device: torch.device) -> Callable[[Callable[[], None]], float] | None:
    """Triton's own timing on a GPU; in its interpreter all blocks are equally slow."""
    if device.type != "cuda":
        return None
    from triton.testing import do_bench

    return partial(do_bench, warmup=5, rep=20)


def _launch_fastest(name: str, x: torch.Tensor, shape: Any, sizes: tuple, launch: Callable[[Blocks], None]) -> None:
    """Run a kernel with the blocks that are fastest for such sizes, of those for ``shape``, the weight's ``(groups, shells, in, out)``."""
    key = (name, x.device, x.dtype, tuple(shape), *(int(size).bit_length() for size in sizes))
    launch(choose_blocks(key, Blocks.candidates(shape[2], shape[3]), launch, timer_of(x.device)))


def _voxels(y: torch.Tensor) -> int:
    """Voxels of all samples of ``(batch, channels, components, 3 axes)``."""
    return y.shape[0] * y.shape[3] * y.shape[4] * y.shape[5]


def _geometry(x: torch.Tensor, y: torch.Tensor, steps: list[int], shape: Any, factors: torch.Tensor) -> list[int]:
    """The numbers that both kernels take, in their order; ``shape`` is the weight's ``(groups, shells, in, out)``."""
    sizes = [*x.stride(), *y.stride(), *x.shape[2:], *y.shape[3:], *steps, _voxels(y)]
    return [*sizes, shape[2], shape[3], len(factors), shape[1], factors.shape[1]]


def _launch_convolution(
    x: torch.Tensor, weight: torch.Tensor, table: TapTable, factors: torch.Tensor, y: torch.Tensor, steps: list[int]
) -> None:
    """Fill ``y`` ``(batch, groups * out, components, 3 axes)``; ``weight`` is ``(groups, shells, in, out)``."""
    from monai_gmr.ops.triton import shell_kernels as triton_kernels

    groups, _, _, out_channels = weight.shape

    def launch(blocks: Blocks) -> None:
        grid = (-(-_voxels(y) // blocks.voxels), -(-out_channels // blocks.out), groups * len(factors))
        triton_kernels.shell_conv_kernel[grid](
            x,
            weight,
            table.offsets,
            factors,
            table.starts,
            y,
            *_geometry(x, y, steps, weight.shape, factors),
            **blocks.options(x.dtype),
        )

    _launch_fastest("convolution", x, weight.shape, (_voxels(y), len(factors), len(table.order)), launch)


def _launch_weight_gradient(
    x: torch.Tensor, gradient: torch.Tensor, table: TapTable, factors: torch.Tensor, shape: Any, steps: list[int]
) -> torch.Tensor:
    """Gradient of the weight ``(groups, shells, in, out)``, float32."""
    from monai_gmr.ops.triton import shell_kernels as triton_kernels

    groups, live, in_channels, out_channels = shape
    voxels = _voxels(gradient)
    # as many parts as keep a GPU busy; their sum is taken afterwards, so that the result does not depend on an order
    parts = max(1, min(256, -(-voxels // 512)))
    chunk = -(-voxels // parts)
    partial_sums = torch.zeros((parts, groups, live, in_channels, out_channels), dtype=torch.float32, device=x.device)

    def launch(blocks: Blocks) -> None:
        grid = (parts, -(-out_channels // blocks.out) * -(-in_channels // blocks.inner), groups * live)
        triton_kernels.shell_weight_gradient_kernel[grid](
            x,
            gradient,
            table.offsets,
            factors,
            table.starts,
            partial_sums,
            *_geometry(x, gradient, steps, shape, factors),
            groups,
            chunk,
            **blocks.options(x.dtype),
        )

    _launch_fastest("weight gradient", x, shape, (voxels, len(factors), len(table.order)), launch)
    return partial_sums.sum(0)


@torch.library.custom_op("monai_gmr::shell_conv", mutates_args=())
def triton_shell_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    shells: torch.Tensor,
    factors: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """:func:`dense_shell_conv` in one Triton kernel, with gradients for ``x`` and ``weight``.

    Saved for the backward pass are input and weight alone. One node for ``torch.compile`` and ``torch.export``.
    """
    axes = shells.dim()
    window = tuple(shells.shape)
    sizes = output_sizes(x.shape[2:], window, stride, padding, dilation)
    y = torch.empty((x.shape[0], weight.shape[0], len(factors), *sizes), dtype=x.dtype, device=x.device)
    table = _table(shells, weight.shape[2], padding, dilation, False, x.device)
    grouped = weight.to(x.dtype).unflatten(0, (groups, -1)).permute(0, 3, 2, 1).contiguous()
    sorted_factors = factors.to(torch.float32)[:, table.order].contiguous()
    steps = [1] * (3 - axes) + list(stride)
    _launch_convolution(_as_volume(x, axes), grouped, table, sorted_factors, _as_volume(y, axes), steps)
    return y


@triton_shell_conv.register_fake
def _(x, weight, shells, factors, stride, padding, dilation, groups):
    sizes = output_sizes(x.shape[2:], shells.shape, stride, padding, dilation)
    return x.new_empty((x.shape[0], weight.shape[0], factors.shape[0], *sizes))


def content_of(shells: torch.Tensor) -> bytes:
    """The values of a tensor of shells, int64, read back from a GPU once a tensor, for reading waits for the GPU.

    Example:
        >>> np.frombuffer(content_of(torch.tensor([1, 0, 1])), np.int64).tolist()
        [1, 0, 1]
    """
    content = _CONTENTS.get(shells)
    if content is None:
        content = shells.detach().cpu().numpy().astype(np.int64).tobytes()
        _CONTENTS[shells] = content
    return content


def _table(shells: torch.Tensor, live: int, padding, dilation, mirrored: bool, device: torch.device) -> TapTable:
    geometry = (tuple(shells.shape), live, tuple(padding), tuple(dilation))
    return _table_on(content_of(shells), *geometry, mirrored, str(device))


def _setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    x, weight, shells, factors, ctx.stride, ctx.padding, ctx.dilation, ctx.groups = inputs
    ctx.save_for_backward(x, weight, shells, factors)


def _input_gradient(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
    x, weight, shells, factors = ctx.saved_tensors
    axes = shells.dim()
    if any(s != 1 for s in ctx.stride):
        # a strided window's adjoint skips voxels: the framework's transposed convolution knows how
        with torch.enable_grad():
            source = x.detach().requires_grad_()
            y = dense_shell_conv(
                source, weight.detach(), shells, factors, ctx.stride, ctx.padding, ctx.dilation, ctx.groups
            )
        return torch.autograd.grad(y, source, gradient)[0]
    table = _table(shells, weight.shape[2], ctx.padding, ctx.dilation, True, x.device)
    # the kernel is its own adjoint: the weights are transposed, and the components become input channels
    components, outs = len(factors), weight.shape[0] // ctx.groups
    result = torch.zeros(x.shape, dtype=torch.float32 if components > 1 else x.dtype, device=x.device)
    grouped = weight.to(x.dtype).unflatten(0, (ctx.groups, outs)).permute(0, 3, 1, 2).contiguous()
    for component in range(components):
        part = torch.empty_like(x)
        chosen = factors[component : component + 1].to(torch.float32)[:, table.order].contiguous()
        _launch_convolution(
            _as_volume(gradient[:, :, component], axes),
            grouped,
            table,
            chosen,
            _as_volume(part, axes)[:, :, None],
            [1, 1, 1],
        )
        result += part
    return result.to(x.dtype)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple:
    x, weight, shells, factors = ctx.saved_tensors
    axes = shells.dim()
    x_gradient = _input_gradient(ctx, gradient) if ctx.needs_input_grad[0] else None
    weight_gradient = None
    if ctx.needs_input_grad[1]:
        table = _table(shells, weight.shape[2], ctx.padding, ctx.dilation, False, x.device)
        sorted_factors = factors.to(torch.float32)[:, table.order].contiguous()
        steps = [1] * (3 - axes) + list(ctx.stride)
        outs, ins, live = weight.shape[0] // ctx.groups, weight.shape[1], weight.shape[2]
        grouped = _launch_weight_gradient(
            _as_volume(x, axes),
            _as_volume(gradient, axes),
            table,
            sorted_factors,
            (ctx.groups, live, ins, outs),
            steps,
        )
        weight_gradient = grouped.permute(0, 3, 2, 1).flatten(0, 1).to(weight.dtype)
    return x_gradient, weight_gradient, None, None, None, None, None, None


triton_shell_conv.register_autograd(_backward, setup_context=_setup_context)
