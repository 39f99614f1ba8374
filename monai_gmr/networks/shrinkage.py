"""Soft thresholds on groups of numbers: the proximal step of a group lasso."""

from collections.abc import Sequence

import torch


@torch.no_grad()
def shrink_groups(parameter: torch.Tensor, amount: float, dims: int | Sequence[int]) -> None:
    r"""Shorten each group of a tensor by ``amount``, in place; those that are shorter become exactly zero.

    .. math:: v \leftarrow v\,\max(0,\, 1 - \tau / |v|)

    Args:
        parameter: any real tensor.
        amount: :math:`\tau`, at least 0.
        dims: axes over which a group runs.

    Example:
        >>> rows = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> shrink_groups(rows, 1.0, 1)
        >>> rows
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])

    Source:
        M. Yuan, Y. Lin, "Model selection and estimation in regression with grouped variables", J. R. Stat. Soc. B 68, 2006.
    """
    norms = torch.linalg.vector_norm(parameter, dim=dims, keepdim=True)
    # a group of zeros stays what it is
    parameter.mul_((1 - amount / norms.clamp_min(torch.finfo(parameter.dtype).tiny)).clamp_min(0.0))
