"""Instance norm of images with channels last in generated loops, for nets on backend "compiled".

The framework's own is for channels first, and its batch norm with channels last adds up in single precision along the whole image: at
128^3 voxels it is off by 1e-3, and a net would not be exactly equivariant. Here rows are added up first, about their first voxel,
and then, in double precision, their sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from monai_gmr.ops.backends import get_backend
from monai_gmr.ops.compiled_loops import Loop, can_compile, run_loop, takes_loops
from monai_gmr.ops.memory_format import image_of, runs_channels_last


def row_moments(image: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Mean and variance of each row: ``(batch, rows, voxels, channels)`` to twice ``(batch, rows, channels)``."""
    first = image[:, :, :1]
    mean = (image - first).mean(2)
    variance = ((image - first) * (image - first)).mean(2) - mean * mean
    return mean + first[:, :, 0], variance.clamp_min(0)


def normalise(image: torch.Tensor, sizes: Sequence[int], *numbers: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The image less its mean, times a scale, plus a shift; these are ``(batch, channels)``."""
    mean, scale, shift = (each[:, None, None] for each in numbers)
    return ((image - mean) * scale + shift,)


def row_gradients(
    gradient: torch.Tensor, sizes: Sequence[int], image: torch.Tensor, mean: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Sums over each row of the gradient, and of its products with the image less its mean."""
    return gradient.sum(2), (gradient * (image - mean[:, None, None])).sum(2)


def normalise_backward(
    gradient: torch.Tensor, sizes: Sequence[int], image: torch.Tensor, *numbers: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The gradient times a scale, less what mean and variance take away: a constant, and a multiple of the image less its mean."""
    mean, scale, constant, multiple = (each[:, None, None] for each in numbers)
    return (gradient * scale - constant - (image - mean) * multiple,)


class NormLoop(NamedTuple):
    """A step of the norm or of its gradient.

    Attributes:
        step: of :data:`STEPS`.
    """

    step: str

    def function(self) -> Callable:
        """What is to be compiled."""
        return STEPS[self.step][0]

    def examples(self, batch: int, sizes: Sequence[int], channels: Sequence[int]) -> list[torch.Tensor]:
        """Further images, and numbers of samples and channels."""
        _, images, numbers = STEPS[self.step]
        shapes = [(batch, *sizes, *channels)] * images + [(batch, *channels)] * numbers
        return [torch.zeros(shape) for shape in shapes]


# function, and how many images and numbers of samples and channels it takes besides the first image
STEPS: dict[str, tuple[Callable, int, int]] = {
    "row moments": (row_moments, 0, 0),
    "normalise": (normalise, 0, 3),
    "row gradients": (row_gradients, 1, 1),
    "normalise backward": (normalise_backward, 1, 4),
}


def _rows(x: torch.Tensor) -> torch.Tensor:
    """``(batch, channels, *spatial)`` as ``(batch, rows, voxels, channels)``, contiguous."""
    return x.movedim(1, -1).contiguous().flatten(1, -3)


def _run(step: str, image: torch.Tensor, *arguments: torch.Tensor) -> list[torch.Tensor]:
    sizes = tuple(image.shape[1:3])
    return run_loop(Loop(NormLoop(step), image.shape[0], sizes, sizes, tuple(image.shape[3:])), image, *arguments)


def _like(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``(batch, rows, voxels, channels)`` in the shape of ``x``, channels last in memory."""
    return image_of(rows.unflatten(1, x.shape[2:-1]))


@torch.library.custom_op("monai_gmr::compiled_instance_norm", mutates_args=())
def compiled_instance_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``torch.nn.functional.instance_norm`` by the statistics of the image, with gradients for ``x``, ``weight`` and ``bias``.

    Args:
        x: ``(batch, channels, *spatial)``, float32, 2D or 3D.
        weight, bias: ``(channels,)`` or ``None``.
        eps: added to the variance.

    Returns:
        the normalised image, channels last in memory; its mean and the inverse of its standard deviation, ``(batch, channels)``, which
        have no gradients.
    """
    image = _rows(x)
    means, variances = (each.double() for each in _run("row moments", image))
    mean = means.mean(1)
    variance = (variances + (means - mean[:, None]).square()).mean(1)
    mean, inverse = mean.float(), (variance + eps).rsqrt().float()
    scale = inverse if weight is None else inverse * weight
    shift = torch.zeros_like(mean) if bias is None else bias.expand_as(mean).contiguous()
    return _like(_run("normalise", image, mean, scale, shift)[0], x), mean, inverse


@compiled_instance_norm.register_fake
def _(x, weight, bias, eps):
    y = torch.empty_like(x.movedim(1, -1).contiguous()).movedim(-1, 1)
    return y, x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])


@torch.library.custom_op("monai_gmr::compiled_instance_norm_backward", mutates_args=())
def _gradients(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, mean: torch.Tensor, inverse: torch.Tensor
) -> list[torch.Tensor]:
    """Gradients of image, weight and bias."""
    image, gradient_rows = _rows(x), _rows(gradient)
    total, product = (each.double().sum(1) for each in _run("row gradients", gradient_rows, image, mean))
    voxels = image.shape[1] * image.shape[2]
    precise = inverse.double()
    scale = precise if weight is None else precise * weight
    constant, multiple = scale * total / voxels, scale * precise.square() * product / voxels
    numbers = (mean, scale.float(), constant.float(), multiple.float())
    found = _like(_run("normalise backward", gradient_rows, image, *numbers)[0], x)
    return [found, (product * precise).sum(0).float(), total.sum(0).float()]


@_gradients.register_fake
def _(gradient, x, weight, mean, inverse):
    y = torch.empty_like(x.movedim(1, -1).contiguous()).movedim(-1, 1)
    return [y, x.new_empty(x.shape[1:2]), x.new_empty(x.shape[1:2])]


def _setup_context(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, ...]) -> None:
    x, weight, _, ctx.eps = inputs
    ctx.save_for_backward(x, weight, *output[1:])


def _backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple:
    x, weight, mean, inverse = ctx.saved_tensors
    needed = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():
        # a gradient that is to be differentiated itself
        bias = torch.zeros_like(mean[0], requires_grad=True) if needed[2] else None
        wanted = [each for each, asked in zip((x, weight, bias), needed) if asked]
        y = F.instance_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)
        found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
        return *(next(found) if asked else None for asked in needed), None
    results = _gradients(gradient, x, weight, mean, inverse)
    return *(each if asked else None for each, asked in zip(results, needed)), None


compiled_instance_norm.register_autograd(_backward, setup_context=_setup_context)


def instance_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """``torch.nn.functional.instance_norm`` by the statistics of the image; where channels are last, by generated loops that keep them so.

    Args:
        x: ``(batch, channels, *spatial)``.
        weight, bias: ``(channels,)`` or ``None``.
        eps: added to the variance.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 1, 2, 2)
        >>> instance_norm(x, None, None, 0.0).flatten().round(decimals=3)
        tensor([-1.0690, -0.5350,  0.0000,  1.6040])
    """
    looped = (
        get_backend() != "dense"
        and takes_loops(x)
        and (weight is None or weight.dtype == torch.float32)
        and x.numel() > x.shape[0] * x.shape[1]
        and runs_channels_last(x)
        and x.shape[1] > 1
        and can_compile((x.shape, "instance norm"))
    )
    if looped:
        return compiled_instance_norm(x, weight, bias, eps)[0]
    return F.instance_norm(x, None, None, weight, bias, True, 0.0, eps)
