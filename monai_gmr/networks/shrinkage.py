"""Proximal steps of a group lasso, which shorten groups of weights and set short ones to exactly zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from monai_gmr.utils import ConfigurationError


@torch.no_grad()
def shrink_groups(parameter: torch.Tensor, amount: float | torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    r"""Shortens each group of weights by an amount, in place; groups of at most that length become exactly zero.

    .. math:: v \leftarrow v\, \max(0,\; 1 - a / |v|)

    This is the proximal operator of :math:`a |v|`. After an optimiser's step of learning rate :math:`\eta`, the amount is :math:`\eta
    \lambda` for a penalty of :math:`\lambda |v|`.

    Args:
        parameter: any tensor; it is changed in place, so optimisers keep it.
        amount: non-negative number for all groups, or a tensor that broadcasts to the groups; infinity sets all to zero.
        dims: axes that a group spans (all axes for a single group); the other axes index the groups.

    Returns:
        the factors of the groups, in the parameter's shape with 1 along ``dims``.

    Example:
        >>> weights = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> shrink_groups(weights, 1.0, dims=[1]).flatten().tolist(), weights.tolist()[1]
        ([0.800000011920929, 0.0], [0.0, 0.0])

    Source:
        Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006; Parikh and Boyd, Proximal algorithms,
        2014, section 6.5.4.
    """
    # half precision is cast, because squares would overflow
    values = parameter if parameter.dtype == torch.float64 else parameter.float()
    norms = torch.linalg.vector_norm(values, dim=tuple(dims), keepdim=True)
    factors = torch.where(norms > amount, 1 - amount / norms, torch.zeros_like(norms))
    # not a plain product, which gives NaN for infinity times zero, and negative zeros
    parameter.copy_(torch.where(factors > 0, values * factors, torch.zeros_like(values)))
    return factors


class ProximalStep:
    """Acts on parameters after each step of an optimiser, using each parameter's learning rate.

    Subclasses implement :meth:`shrink`, which is called after each step until :meth:`remove`.

    Args:
        optimizer: any optimiser of ``torch.optim``.
        parameters: parameters that it must hold.
        what: description of the parameters, for the error.

    Raises:
        ConfigurationError: if the optimiser does not hold them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor], what: str) -> None:
        self.optimizer = optimizer
        held = self._rates()
        if any(id(each) not in held for each in parameters):
            raise ConfigurationError(
                f"{type(optimizer).__name__} does not hold {what}: create it from all parameters, after the last change of the net."
            )
        self._handle = optimizer.register_step_post_hook(self._after_step)

    def _rates(self) -> dict[int, float]:
        return {id(each): float(group["lr"]) for group in self.optimizer.param_groups for each in group["params"]}

    def rates(self) -> Callable[[torch.Tensor], float]:
        """Returns a function from a parameter to its current learning rate; for untrained parameters, that of the first group."""
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
