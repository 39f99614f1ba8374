"""Channels last: the memory format in which convolutions on a CPU are fastest."""

import torch

from monai_gmr.ops.recorded import is_recorded

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def has_channels_last(x: torch.Tensor, axis: int = 1) -> bool:
    """Whether an image's channels, along ``axis``, are adjacent in memory; for one channel, whether its strides say so."""
    if x.stride(axis) != 1:
        return False
    # runs at every call of a layer: avoid a view
    if axis == 1 and x.dim() in FORMATS:
        return x.is_contiguous(memory_format=FORMATS[x.dim()])
    return x.movedim(axis, -1).is_contiguous()


def image_of(last: torch.Tensor) -> torch.Tensor:
    """A tensor ``(batch, *spatial, channels)``, contiguous and used nowhere else, as an image ``(batch, channels, *spatial)`` that is not a
    view, so that later layers can work in place."""
    view = last.movedim(-1, 1)
    return last.new_empty((0,)).set_(last.untyped_storage(), last.storage_offset(), view.shape, view.stride())


def follow_format(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``y``, which has channels last, in the memory format of its input ``x``, like the results of torch's convolutions."""
    return y if has_channels_last(x) else y.contiguous()


@torch.jit.unused
def runs_channels_last(x: torch.Tensor) -> bool:
    """Whether an image ``(batch, channels, *spatial)`` has channels last and is not recorded: recorded tensors have no memory format."""
    return x.dim() in FORMATS and not is_recorded(x) and has_channels_last(x)


@torch.jit.unused
def make_channels_last(x: torch.Tensor) -> torch.Tensor:
    """An image ``(batch, channels, *spatial)`` with channels last, on a CPU in 2D and 3D; otherwise, and in a recorded graph, unchanged.

    An image of one channel keeps its memory and gets channels-last strides, which torch's convolutions check.
    """
    if x.device.type != "cpu" or x.dim() not in FORMATS or is_recorded(x) or has_channels_last(x):
        return x
    x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    if x.shape[1] > 1:
        return x
    return x.as_strided(x.shape, [1 if axis == 1 else stride for axis, stride in enumerate(x.stride())])


def keep_format(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``y``, an image that torch computed from ``x``, with channels last if ``x`` has them. On a CPU, 3D convolutions with few channels or
    voxels lose this format, and reductions of fields lose it everywhere."""
    if torch.jit.is_scripting() or not runs_channels_last(x):
        return y
    return make_channels_last(y) if y.device.type == "cpu" else y.contiguous(memory_format=FORMATS[y.dim()])
