"""Proximal steps of a group lasso: they make groups of weights shorter, and those that are short exactly zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from monai_gmr.utils import ConfigurationError


@torch.no_grad()
def shrink_groups(parameter: torch.Tensor, amount: float | torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    r"""Shorten each group of weights by an amount, in place; a group that is no longer than that becomes exactly zero.

    .. math:: v \leftarrow v\, \max(0,\; 1 - a / |v|)

    This is the step that minimises :math:`a |v|` beside the squared distance from where an optimiser has left :math:`v`: after a step of
    learning rate :math:`\eta` the amount is :math:`\eta \lambda` for a penalty :math:`\lambda |v|`.

    Args:
        parameter: any tensor; a parameter keeps its place in optimisers.
        amount: not negative, one for all groups, or a tensor that broadcasts to the groups; infinity sets all to zero.
        dims: axes over which a group reaches, all axes for one group; the others count the groups.

    Returns:
        the factors, of the parameter's shape with 1 along ``dims``.

    Example:
        >>> weights = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> shrink_groups(weights, 1.0, dims=[1]).flatten().tolist(), weights.tolist()[1]
        ([0.800000011920929, 0.0], [0.0, 0.0])

    Source:
        Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006; Parikh and Boyd, Proximal algorithms,
        2014, section 6.5.4.
    """
    # not in half precision, whose squares overflow
    values = parameter if parameter.dtype == torch.float64 else parameter.float()
    norms = torch.linalg.vector_norm(values, dim=tuple(dims), keepdim=True)
    factors = torch.where(norms > amount, 1 - amount / norms, torch.zeros_like(norms))
    # not a product, which leaves infinity times zero and negative zeros
    parameter.copy_(torch.where(factors > 0, values * factors, torch.zeros_like(values)))
    return factors


class ProximalStep:
    """What acts on parameters after each step of an optimiser, at the learning rate that each has in it.

    A subclass has :meth:`shrink`, which is called after each step until :meth:`remove`.

    Args:
        optimizer: of ``torch.optim``.
        parameters: those that it must hold.
        what: what they are, for the sentence of the error.

    Raises:
        ConfigurationError: when the optimiser does not hold them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor], what: str) -> None:
        self.optimizer = optimizer
        held = self._rates()
        if any(id(each) not in held for each in parameters):
            raise ConfigurationError(
                f"{type(optimizer).__name__} does not hold {what}: make it of all parameters, after the net is what it is to be."
            )
        self._handle = optimizer.register_step_post_hook(self._after_step)

    def _rates(self) -> dict[int, float]:
        return {id(each): float(group["lr"]) for group in self.optimizer.param_groups for each in group["params"]}

    def rates(self) -> Callable[[torch.Tensor], float]:
        """The present learning rate as a function of a parameter; of one that is not trained that of the first group."""
        rates, usual = self._rates(), float(self.optimizer.param_groups[0]["lr"])
        return lambda parameter: rates.get(id(parameter), usual)

    def _after_step(self, *_: Any) -> None:
        self.shrink()

    def shrink(self) -> None:
        """Act once."""
        raise NotImplementedError

    def remove(self) -> None:
        """Stop acting on the optimiser's steps."""
        self._handle.remove()
