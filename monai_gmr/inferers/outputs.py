"""Common handling of nested outputs of networks and of the metadata of images by all inferers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch
from monai.data import MetaTensor
from monai.utils import convert_to_dst_type

from monai_gmr.utils import ConfigurationError, map_tensors, tensors_in

Accumulator = TypeVar("Accumulator")


def plain_tensor(image: Any, max_axes: int = 3) -> torch.Tensor:
    """The image of shape ``(batch, channels, *spatial)`` without its metadata; raises ``ConfigurationError`` if it is not a tensor with 1
    to ``max_axes`` spatial axes."""
    if not isinstance(image, torch.Tensor) or not 3 <= image.ndim <= 2 + max_axes:
        given = f"of shape {tuple(image.shape)}" if isinstance(image, torch.Tensor) else f"a {type(image).__name__}"
        raise ConfigurationError(
            f"The input is {given}: give a tensor (batch, channels, *spatial), 1 to {max_axes} axes."
        )
    return image.as_tensor() if isinstance(image, MetaTensor) else image


class OutputAccumulators(Generic[Accumulator]):
    """One accumulator for each tensor of a network's nested output, over many calls of the network.

    Args:
        make: makes the accumulator of a tensor of the first output.
        update: adds a tensor to its accumulator. Both also get the further arguments of :meth:`add`.

    Example:
        >>> outputs = OutputAccumulators(lambda tensor: [], lambda values, tensor: values.append(float(tensor)))
        >>> outputs.add({"a": torch.tensor(1.0)}); outputs.add({"a": torch.tensor(2.0)})
        >>> outputs.accumulators
        [[1.0, 2.0]]
        >>> outputs.nested([torch.tensor(3.0)], image=torch.zeros(1, 1, 4))
        {'a': tensor(3.)}
    """

    def __init__(self, make: Callable[..., Accumulator], update: Callable[..., None]) -> None:
        self.make, self.update = make, update
        self.accumulators: list[Accumulator] = []
        self._structure: Any = None

    def add(self, output: Any, *args: Any) -> None:
        """Adds each tensor of an output to its accumulator; raises ``ConfigurationError`` if there are none, or another number than in the
        first output."""
        tensors = tensors_in(output)
        if not tensors:
            raise ConfigurationError(
                f"The network returned a {type(output).__name__} without tensors: it must return a tensor, or tuples, lists or "
                "dicts of them."
            )
        if not self.accumulators:
            # empty tensors in place of the real ones, which can be large
            self._structure = map_tensors(output, lambda _: torch.empty(0))
            self.accumulators = [self.make(tensor, *args) for tensor in tensors]
        if len(tensors) != len(self.accumulators):
            raise ConfigurationError(
                f"The network returned {len(tensors)} tensors in one call and {len(self.accumulators)} in another: it must return as "
                "many in each."
            )
        for accumulator, tensor in zip(self.accumulators, tensors):
            self.update(accumulator, tensor, *args)

    def nested(self, results: Iterable[torch.Tensor], image: Any) -> Any:
        """One result for each accumulator, nested like the output, with the metadata of the image if it has any."""
        remaining = iter(results)

        def place(_: torch.Tensor) -> torch.Tensor:
            tensor = next(remaining)
            if not isinstance(image, MetaTensor):
                return tensor
            return convert_to_dst_type(tensor, image, dtype=tensor.dtype, device=tensor.device)[0]

        return map_tensors(self._structure, place)
