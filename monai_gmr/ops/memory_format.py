"""Channels last: the memory format in which convolutions on a CPU are fastest."""

import torch

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_recorded(x: torch.Tensor) -> bool:
    """Whether operations on a tensor go into a graph or are those of ``torch.func``: there it has no memory format.

    Example:
        >>> is_recorded(torch.zeros(2)), torch.func.vmap(lambda x: x + is_recorded(x))(torch.zeros(2))
        (False, tensor([1., 1.]))
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return True
    try:
        x.untyped_storage()
    except NotImplementedError:  # how the tensors of torch.func answer
        return True
    return False


def has_channels_last(x: torch.Tensor, axis: int = 1) -> bool:
    """Whether the channels of an image, along ``axis``, lie next to each other in memory; of one channel, whether its strides say so.

    Example:
        >>> has_channels_last(torch.zeros(1, 4, 3)), has_channels_last(torch.zeros(1, 3, 4).movedim(-1, 1))
        (False, True)
    """
    if x.stride(axis) != 1:
        return False
    # every call of a layer asks: without a view
    if axis == 1 and x.dim() in FORMATS:
        return x.is_contiguous(memory_format=FORMATS[x.dim()])
    return x.movedim(axis, -1).is_contiguous()


def image_of(last: torch.Tensor) -> torch.Tensor:
    """``(batch, *spatial, channels)`` as an image ``(batch, channels, *spatial)`` that is no view: what follows may work in place.

    Args:
        last: contiguous, and used nowhere else.

    Example:
        >>> image = image_of(torch.zeros(1, 4, 3))
        >>> image.shape, image.stride()
        (torch.Size([1, 3, 4]), (12, 1, 3))
    """
    view = last.movedim(-1, 1)
    return last.new_empty((0,)).set_(last.untyped_storage(), last.storage_offset(), view.shape, view.stride())


def follow_format(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``y``, whose channels are last in memory, in the memory format of its input ``x``, as the framework's convolutions give it.

    Example:
        >>> x, y = torch.zeros(1, 4, 3), torch.zeros(1, 3, 5).movedim(-1, 1)
        >>> follow_format(y, x).stride(), follow_format(y, x.movedim(1, -1).contiguous().movedim(-1, 1)).stride()
        ((15, 3, 1), (15, 1, 5))
    """
    return y if has_channels_last(x) else y.contiguous()


@torch.jit.unused
def runs_channels_last(x: torch.Tensor) -> bool:
    """Whether an image has channels last and is computed on now: what is recorded as a graph has no memory format.

    Args:
        x: ``(batch, channels, *spatial)``.

    Example:
        >>> runs_channels_last(torch.zeros(1, 3, 4, 4).to(memory_format=torch.channels_last))
        True
    """
    return x.dim() in FORMATS and not is_recorded(x) and has_channels_last(x)


@torch.jit.unused
def make_channels_last(x: torch.Tensor) -> torch.Tensor:
    """An image with channels last, on a CPU in 2D and 3D; elsewhere, and where a graph is recorded, as it is.

    Args:
        x: ``(batch, channels, *spatial)``.

    Returns:
        the same values; of one channel, the same memory with strides that say channels last, which the framework's convolutions go by.

    Example:
        >>> x = torch.zeros(1, 1, 4, 4)
        >>> x.stride(), make_channels_last(x).stride()
        ((16, 16, 4, 1), (16, 1, 4, 1))
    """
    if x.device.type != "cpu" or x.dim() not in FORMATS or is_recorded(x) or has_channels_last(x):
        return x
    x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    if x.shape[1] > 1:
        return x
    return x.as_strided(x.shape, [1 if axis == 1 else stride for axis, stride in enumerate(x.stride())])
