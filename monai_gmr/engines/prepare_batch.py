"""Batches as an engine sees them: turned by one view, so that a bundle's own evaluator can be run on turned images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import PrepareBatch, default_prepare_batch
from monai.utils import CommonKeys

from monai_gmr.symmetry import View, is_grid_symmetry, transform_grid, transform_image


def _turn_label(label: torch.Tensor, view: View, spacing: Sequence[float] | None) -> torch.Tensor:
    """Each voxel gets the class with the largest share there: nearest-neighbour sampling would fray every border."""
    if is_grid_symmetry(view.matrix):
        return transform_grid(label, view.matrix)
    turned, largest = torch.zeros_like(label), torch.full(label.shape, -torch.inf, device=label.device)
    for value in torch.unique(label):
        share = transform_image((label == value).float(), view.matrix, order=1, spacing=spacing)
        turned[share > largest] = value
        largest = torch.maximum(share, largest)
    return turned


def _turn_image(image: torch.Tensor, view: View, order: int, spacing: Sequence[float] | None) -> torch.Tensor:
    return transform_image(image, view.matrix, order=order, spacing=spacing)


def _keep_metadata(turn: Callable[..., torch.Tensor], x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    if not isinstance(x, MetaTensor):
        return turn(x, *arguments).contiguous()
    result = MetaTensor(turn(x.as_tensor(), *arguments).contiguous()).copy_meta_from(x)
    result.is_batch = x.is_batch
    return result


class PrepareBatchView(PrepareBatch):
    """MONAI's default ``prepare_batch``, and a view by which every image is turned first.

    While :attr:`view` is ``None`` batches pass as they are. A label with the image's spatial shape is turned with it;
    a class label is left alone, because a turned image keeps its class. Metadata stays that of the upright image.

    Args:
        order: order of the spline that samples the image, 0 to 5. Of a label each class is sampled linearly, and a voxel gets
            the class with the largest share.
        spacing: voxel size in millimetres, one an axis; default 1.

    Example:
        >>> import torch
        >>> from monai_gmr.symmetry import group_views
        >>> prepare_batch = PrepareBatchView()
        >>> prepare_batch.view = group_views(2)[1]
        >>> image, label = prepare_batch({"image": torch.rand(4, 1, 8, 6), "label": torch.zeros(4, 1)})
        >>> sorted(image.shape[2:]), tuple(label.shape)
        ([6, 8], (4, 1))
    """

    def __init__(self, order: int = 3, spacing: Sequence[float] | None = None) -> None:
        self.order = order
        self.spacing = spacing
        self.view: View | None = None

    def __call__(
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> Any:
        """
        Args:
            batchdata: dictionary with ``image`` of shape ``(B, C, *spatial)`` and ``label``.
            device: where the tensors go.
            non_blocking: as for ``torch.Tensor.to``.
            kwargs: further arguments for ``torch.Tensor.to``.

        Returns:
            the image and the label, or ``None`` for a label that is not there.
        """
        if self.view is not None:
            batchdata = dict(batchdata)
            image, label = batchdata[CommonKeys.IMAGE], batchdata.get(CommonKeys.LABEL)
            batchdata[CommonKeys.IMAGE] = _keep_metadata(_turn_image, image, self.view, self.order, self.spacing)
            if isinstance(label, torch.Tensor) and label.shape[2:] == image.shape[2:]:
                batchdata[CommonKeys.LABEL] = _keep_metadata(_turn_label, label, self.view, self.spacing)
        return default_prepare_batch(batchdata, device, non_blocking, **kwargs)
