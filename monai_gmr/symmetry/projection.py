"""Least-squares projection of ordinary kernels, ``(out, in, *window)``, on functions on taps, to convert trained weights.

Each projection returns weights ``(out, in, rings)`` and the relative change of the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def relative_change(before: np.ndarray, after: np.ndarray) -> float:
    """Norm of the difference over the norm of ``before``."""
    norm = float(np.linalg.norm(before))
    return float(np.linalg.norm(after - before)) / norm if norm > 0 else 0.0


def fitted_window(kernel: np.ndarray, window: Sequence[int]) -> np.ndarray | None:
    """Kernel centred in a longer window or cropped to a shorter one; ``None`` if the parities differ.

    Example:
        >>> fitted_window(np.ones((1, 1, 3)), (5,))
        array([[[0., 1., 1., 1., 0.]]])
    """
    margins = [0, 0, *(k - n for k, n in zip(window, kernel.shape[2:]))]
    if any(margin % 2 for margin in margins):
        return None
    padded = np.pad(kernel, [(max(margin, 0) // 2,) * 2 for margin in margins])
    cuts = [max(-margin, 0) // 2 for margin in margins]
    return padded[tuple(slice(cut, n - cut) for cut, n in zip(cuts, padded.shape))]


def project_kernel(kernel: np.ndarray, functions: np.ndarray) -> tuple[np.ndarray, float]:
    r"""Weights of functions on taps, ``(rings, taps)``, whose weighted sum is nearest to a kernel.

    .. math:: \min_w \sum_t \Big(K_{oi}(t) - \sum_r w_{oir}\, b_r(t)\Big)^2

    Example:
        >>> weights, change = project_kernel(np.array([[[1.0, 5.0, 3.0]]]), np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]))
        >>> weights.round(3).tolist(), round(change, 3)
        ([[[5.0, 2.0]]], 0.239)
    """
    rows = kernel.reshape(-1, functions.shape[1])
    weights = rows @ np.linalg.pinv(functions)
    return weights.reshape(*kernel.shape[:2], -1), relative_change(rows, weights @ functions)


def project_kernel_on_order(kernel: np.ndarray, functions: np.ndarray) -> tuple[np.ndarray, float]:
    r"""Weights of an angular order, ``functions`` ``(components, rings, taps)``, nearest to kernels of one direction; only the norm of the
    components is kept.

    For each output channel, the direction ``u`` of the components explains most of the kernel:
    :math:`K_{oi} \approx \sum_r w_{oir} \sum_m u_{om}\, b_r Y_m`, the best approximation of rank one.

    Example:
        >>> slopes = np.array([[[-1.0, 0.0, 1.0]]])
        >>> weights, change = project_kernel_on_order(np.array([[[-2.0, 0.0, 2.0]]]), slopes)
        >>> abs(weights).round(3).tolist(), round(change, 3)
        ([[[2.0]]], 0.0)
    """
    components, rings, taps = functions.shape
    rows = kernel.reshape(-1, taps)
    fitted = rows @ np.linalg.pinv(functions.reshape(-1, taps))
    fitted = fitted.reshape(*kernel.shape[:2], components, rings).swapaxes(1, 2)
    left, values, right = np.linalg.svd(fitted.reshape(len(kernel), components, -1), full_matrices=False)
    weights = (values[:, :1, None] * right[:, :1]).reshape(len(kernel), kernel.shape[1], rings)
    nearest = np.einsum("oir,om,mrt->oit", weights, left[:, :, 0], functions)
    return weights, relative_change(rows, nearest.reshape(-1, taps))


def upsampled_functions(
    functions: np.ndarray, kernel_size: Sequence[int], factors: Sequence[int]
) -> tuple[np.ndarray, list[int]]:
    """Functions on coarse taps ``(rings, *odd window)``, interpolated linearly to the taps of a transposed kernel and beyond.

    The fine taps are closer by ``factors``. The result is ``(rings, *fine window)``, which holds all nonzero values, and for each axis the
    number of taps that it has on each side beyond ``kernel_size``.

    Example:
        >>> upsampled_functions(np.ones((1, 1)), (2,), (2,))
        (array([[0.25, 0.75, 0.75, 0.25]]), [1])
    """
    margins = []
    for axis, (k, s) in enumerate(zip(kernel_size, factors), start=1):
        coarse = functions.shape[axis]
        reach = s * (coarse - 1) / 2 + s
        margin = max(0, int(np.ceil(reach - (k - 1) / 2)) - 1)
        fine = np.arange(-margin, k + margin) - (k - 1) / 2
        centres = s * (np.arange(coarse) - (coarse - 1) / 2)
        hats = np.clip(1 - np.abs(fine[:, None] - centres) / s, 0, None)
        functions = np.moveaxis(np.tensordot(hats, functions, (1, axis)), 0, axis)
        margins.append(margin)
    return functions, margins


def project_transposed_kernel(
    kernel: np.ndarray, functions: np.ndarray, factors: Sequence[int]
) -> tuple[np.ndarray, float]:
    """Weights of coarse functions, as in :func:`upsampled_functions`, whose linear interpolation is nearest to a transposed kernel.

    Only weights that keep the mean response to a constant image are considered.

    Example:
        >>> weights, change = project_transposed_kernel(np.array([[[1.0, 3.0]]]), np.ones((1, 1)), (2,))
        >>> weights.round(3).tolist(), round(change, 3)
        ([[[2.0]]], 0.548)
    """
    fine, margins = upsampled_functions(functions, kernel.shape[2:], factors)
    within = (slice(None), *(slice(margin, margin + k) for margin, k in zip(margins, kernel.shape[2:])))
    # taps of the kernel, and taps beyond it, where it is zero
    middle, beyond = fine[within].reshape(len(fine), -1), fine.copy()
    beyond[within] = 0
    rows, beyond = kernel.reshape(-1, middle.shape[1]), beyond.reshape(len(fine), -1)
    gram_beyond, sums = beyond @ beyond.T, fine.reshape(len(fine), -1).sum(1)
    bordered = np.block([[middle @ middle.T + gram_beyond, sums[:, None]], [sums[None], np.zeros((1, 1))]])
    right = np.concatenate([rows @ middle.T, rows.sum(1, keepdims=True)], axis=1)
    weights = (right @ np.linalg.pinv(bordered))[:, : len(fine)]
    norm, outside = np.linalg.norm(rows), np.sqrt(max(0.0, np.vdot(weights, weights @ gram_beyond)))
    change = float(np.hypot(relative_change(rows, weights @ middle), outside / norm)) if norm > 0 else 0.0
    return weights.reshape(*kernel.shape[:2], -1), change


def project_kernel_on_group(kernel: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights of a group convolution whose filter, spread by an index table, is nearest to a kernel: means over equal entries.

    Args:
        kernel: ``(fields * out order, fields * in order, *window)``.
        table: indices ``(out order, in order, taps)`` (:func:`~monai_gmr.symmetry.filter_table`).

    Returns:
        weights ``(out fields, in fields, numbers)``, and the relative change of the kernel.

    Example:
        >>> weights, change = project_kernel_on_group(np.array([[[1.0]], [[3.0]]]), np.array([[[0]], [[0]]]))
        >>> weights.tolist(), round(change, 3)
        ([[[2.0]]], 0.447)
    """
    rows, columns, taps = table.shape
    given = kernel.reshape(len(kernel) // rows, rows, kernel.shape[1] // columns, columns, taps).transpose(
        0, 2, 1, 3, 4
    )
    flat, places = given.reshape(*given.shape[:2], -1), table.ravel()
    sums = [[np.bincount(places, row) for row in rows_of_field] for rows_of_field in flat]
    weights = np.array(sums) / np.maximum(np.bincount(places), 1)
    return weights, relative_change(flat, weights[:, :, places])


def project_on_products(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of unit mean square whose outer products are nearest to matrices ``(..., n, m)``.

    Example:
        >>> column, row = project_on_products(np.array([[2.0, -2.0], [4.0, -4.0]]))
        >>> np.outer(column, row).round(6).tolist(), round(float((row**2).mean()), 6)
        ([[2.0, -2.0], [4.0, -4.0]], 1.0)

    Source:
        Eckart and Young: the largest singular value with its vectors.
    """
    left, values, right = np.linalg.svd(matrices, full_matrices=False)
    scale = np.sqrt(matrices.shape[-1])
    return left[..., 0] * values[..., :1] / scale, right[..., 0, :] * scale
