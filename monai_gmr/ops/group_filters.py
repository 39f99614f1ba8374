"""Filters of group convolutions, spread over the elements of a group by index tables, for torch's convolution."""

import torch


def spread_filter(weight: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """A filter on a group as an ordinary one: ``W[(o, g), (i, h), x] = weight[o, i, table[g, h, x]]``.

    Args:
        weight: ``(out, in, numbers)``, one number for each group element and tap.
        table: integers ``(out order, in order, taps)`` (:func:`~monai_gmr.symmetry.filter_table`).

    Returns:
        ``(out * out order, in * in order, taps)``, dtype of ``weight``.

    Example:
        >>> spread_filter(torch.tensor([[[1, 2]]]), torch.tensor([[[0], [1]], [[1], [0]]])).squeeze(2)
        tensor([[1, 2],
                [2, 1]])
    """
    rows, columns = weight.shape[0], weight.shape[1]
    # indexing the first axis copies whole rows in both passes
    numbers = weight.flatten(0, 1).t().index_select(0, table.flatten())
    spread = numbers.reshape([table.shape[0], table.shape[1], table.shape[2], rows, columns])
    return spread.permute(3, 0, 4, 1, 2).reshape(rows * table.shape[0], columns * table.shape[1], table.shape[2])
