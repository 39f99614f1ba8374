"""Labels that trade places under a mirror image, such as a left and a right kidney."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated

import torch

from monai_gmr.utils import ConfigurationError

LabelPairs = Annotated[
    Sequence[Sequence[int]], "pairs of whole numbers from 0 on, each label once, such as [[1, 2], [3, 4]]"
]
LabelPairsOfKeys = Annotated[
    Mapping[Hashable, LabelPairs] | None, "the pairs of each key that is a label map, such as {'label': [[1, 2]]}"
]


def check_label_pairs(pairs: LabelPairs) -> tuple[tuple[int, int], ...]:
    """Pairs of labels as tuples.

    Raises:
        ConfigurationError: if they are not pairs of integers of at least 0, or a label occurs twice.

    Example:
        >>> check_label_pairs([[1, 2], [4, 3]])
        ((1, 2), (4, 3))
    """
    try:
        found = tuple((int(first), int(second)) for first, second in pairs)
        labels = [label for pair in found for label in pair]
        fits = all(int(label) == label for pair in pairs for label in pair) and min(labels, default=0) >= 0
    except (TypeError, ValueError):
        fits, found, labels = False, (), []
    if not fits or len(set(labels)) < len(labels):
        raise ConfigurationError(
            f"mirrored_labels={pairs!r} is impossible: give pairs of whole numbers from 0 on, each label once, such as [[1, 2], [3, 4]]."
        )
    return found


def exchange_labels(x: torch.Tensor, pairs: LabelPairs) -> torch.Tensor:
    """Copy of a label map with the values of each pair exchanged.

    Example:
        >>> exchange_labels(torch.tensor([0, 1, 2, 3]), [(1, 2)])
        tensor([0, 2, 1, 3])
    """
    result = x.clone()
    for first, second in pairs:
        result[x == first], result[x == second] = second, first
    return result


def exchange_channels(x: torch.Tensor, pairs: LabelPairs, axis: int) -> torch.Tensor:
    """Copy with the channels of each pair exchanged along an axis.

    Raises:
        ConfigurationError: if there is no such channel.

    Example:
        >>> exchange_channels(torch.tensor([[5, 6, 7]]), [(1, 2)], axis=1)
        tensor([[5, 7, 6]])
    """
    order = list(range(x.shape[axis]))
    for first, second in pairs:
        if max(first, second) >= len(order):
            raise ConfigurationError(
                f"mirrored_labels has {(first, second)}, and a tensor of shape {tuple(x.shape)} has {len(order)} channels: give labels "
                f"below {len(order)}."
            )
        order[first], order[second] = second, first
    return x.index_select(axis, torch.tensor(order, device=x.device))


def mirror_labels(x: torch.Tensor, pairs: LabelPairs, axis: int) -> torch.Tensor:
    """Labels of a mirror image: classes, with at most one channel along ``axis``, or one-hot, with one channel per class.

    Raises:
        ConfigurationError: if there is no such channel.

    Example:
        >>> mirror_labels(torch.tensor([[0, 1, 2]]), [(1, 2)], axis=0)
        tensor([[0, 2, 1]])
        >>> mirror_labels(torch.eye(3), [(1, 2)], axis=0).argmax(0)
        tensor([0, 2, 1])
    """
    one_hot = x.ndim > axis and x.shape[axis] > 1
    return exchange_channels(x, pairs, axis) if one_hot else exchange_labels(x, pairs)
