"""Nested outputs of networks and the metadata of images, as all inferers handle them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import convert_to_dst_type

from monai_gmr.metrics.equivariance import map_tensors, tensors_in
from monai_gmr.utils import ConfigurationError


def plain_tensor(image: Any, most_axes: int = 3) -> torch.Tensor:
    """The image without its metadata.

    Args:
        image: tensor or MetaTensor of shape ``(batch, channels, *spatial)``.
        most_axes: how many spatial axes it may have.

    Raises:
        ConfigurationError: when it is not a tensor, or has not 1 to ``most_axes`` spatial axes.

    Example:
        >>> type(plain_tensor(MetaTensor(torch.zeros(1, 1, 4))))
        <class 'torch.Tensor'>
    """
    if not isinstance(image, torch.Tensor) or not 3 <= image.ndim <= 2 + most_axes:
        given = f"of shape {tuple(image.shape)}" if isinstance(image, torch.Tensor) else f"a {type(image).__name__}"
        raise ConfigurationError(
            f"The input is {given}: give a tensor (batch, channels, *spatial), 1 to {most_axes} axes."
        )
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def checked_tensors(answer: Any) -> list[torch.Tensor]:
    """Every tensor that a network answered with.

    Raises:
        ConfigurationError: when there is none.

    Example:
        >>> len(checked_tensors({"a": torch.zeros(1), "b": [torch.zeros(2)]}))
        2
    """
    tensors = tensors_in(answer)
    if not tensors:
        raise ConfigurationError(
            f"The network returned a {type(answer).__name__} without tensors: it must return a tensor, or tuples, lists or dicts of them."
        )
    return tensors


def outline(answer: Any) -> Any:
    """The nest with empty tensors in the places of the real ones, which it does not keep alive.

    Example:
        >>> outline((torch.zeros(3), {"a": torch.ones(2)}))
        (tensor([]), {'a': tensor([])})
    """
    return map_tensors(answer, lambda tensor: torch.empty(0))


def filled(nest: Any, tensors: Iterable[torch.Tensor], image: Any) -> Any:
    """An :func:`outline` with its tensors in order, with the metadata of the image if it has any.

    Example:
        >>> filled([torch.empty(0)], [torch.ones(2)], torch.zeros(1, 1, 4))
        [tensor([1., 1.])]
    """
    rest = iter(tensors)

    def place(_: torch.Tensor) -> torch.Tensor:
        tensor = next(rest)
        if not isinstance(image, MetaTensor):
            return tensor
        return convert_to_dst_type(tensor, image, dtype=tensor.dtype, device=tensor.device)[0]

    return map_tensors(nest, place)
