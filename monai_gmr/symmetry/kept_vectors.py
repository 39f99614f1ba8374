"""Combinations of the harmonics of an order that a group leaves unchanged."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from monai_gmr.symmetry.group_structure import GroupSpec, PointGroup
from monai_gmr.symmetry.point_groups import is_mirror
from monai_gmr.symmetry.wigner import harmonic_matrices


@lru_cache(maxsize=64)
def kept_vectors(order: int, group: PointGroup) -> np.ndarray:
    """Orthonormal combinations of the harmonics of an order that a group leaves unchanged, read-only ``(components, count)``.

    They span the image of the mean of :func:`~monai_gmr.symmetry.harmonic_matrices` over the group: all for the trivial group, none for the
    whole group of the grid and orders 1 to 3.

    Example:
        >>> kept_vectors(2, PointGroup.from_name("4/mmm", 3)).round(6).T + 0.0  # 3 z^2 - 1
        array([[1., 0., 0., 0., 0.]])
        >>> kept_vectors(1, PointGroup.from_name("m-3m", 3)).shape
        (3, 0)

    Source:
        J.-P. Serre, "Linear representations of finite groups", section 2.6 (projection on the invariants).
    """
    # on the CPU, even if layers are made on the meta device
    matrices = torch.as_tensor(np.asarray(group.elements, float), device="cpu")
    mean = harmonic_matrices(matrices, order).mean(0).numpy()
    vectors: list[np.ndarray] = []
    # in the order of the components, for the same result on every machine
    for column in (mean + mean.T).T / 2:
        rest = column - sum((vector * (vector @ column) for vector in vectors), np.zeros(len(column)))
        length = float(np.linalg.norm(rest))
        if length > 1e-6:
            vectors.append(rest / length)
    found = np.stack(vectors, axis=1) if vectors else np.zeros((len(mean), 0))
    found.setflags(write=False)
    return found


def kept_group(keeps: GroupSpec, spatial_dims: int) -> PointGroup:
    """Group given by an argument ``keeps``: "all", "rotations", or a group as in :meth:`PointGroup.from_name`.

    Example:
        >>> kept_group("rotations", 3), kept_group(("mm2", "x"), 3)
        (PointGroup('432'), PointGroup('mm2', axis=0))
    """
    rotations = isinstance(keeps, str) and keeps == "rotations"
    whole = PointGroup.from_name("all" if rotations else keeps, spatial_dims, "keeps")
    if not rotations:
        return whole
    return PointGroup.from_elements([element for element in whole.elements if not is_mirror(element)])


def has_mirrors(group: PointGroup) -> bool:
    """Whether a group has elements of determinant -1: a net that keeps it cannot distinguish left from right.

    Example:
        >>> has_mirrors(PointGroup.from_name("432", 3)), has_mirrors(PointGroup.from_name("mm2", 3))
        (False, True)
    """
    return any(is_mirror(element) for element in group.elements)


def relaxation_tables(
    orders: Sequence[int], channels: Sequence[int], group: PointGroup
) -> tuple[np.ndarray, np.ndarray]:
    """Combinations of responses that a group leaves unchanged, and their owners among the channels of a harmonic layer.

    Args:
        orders, channels: orders of the layer, and channels of each; order 0 is left out of the responses.
        group: symmetries that stay exact.

    Returns:
        vectors: ``(combinations, responses)``, by order, then channel.
        owners: ``(channels, combinations)``, 1 where a combination belongs to the channel's response.

    Example:
        >>> vectors, owners = relaxation_tables((0, 1), (2, 1), PointGroup.from_name("m", 2))
        >>> vectors.round(6) + 0.0, owners.tolist()
        (array([[0., 1.]]), [[0], [0], [1]])
    """
    blocks = [kept_vectors(order, group).T if order else np.zeros((0, 0)) for order in orders]
    of_channels = [block for block, count in zip(blocks, channels) for _ in range(count)]
    vectors = np.zeros((sum(len(block) for block in of_channels), sum(block.shape[1] for block in of_channels)))
    owners = np.zeros((sum(channels), len(vectors)), dtype=np.int64)
    row = column = 0
    for channel, block in enumerate(of_channels):
        vectors[row : row + len(block), column : column + block.shape[1]] = block
        owners[channel, row : row + len(block)] = 1
        row, column = row + len(block), column + block.shape[1]
    return vectors, owners
