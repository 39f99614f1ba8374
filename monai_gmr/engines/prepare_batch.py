"""Batches as an engine sees them: turned by one view, so that a bundle's own evaluator can be run on turned images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import PrepareBatch, default_prepare_batch
from monai.utils import CommonKeys

from monai_gmr.symmetry import View, transform_image


def _turn(x: torch.Tensor, view: View, order: int, spacing: Sequence[float] | None) -> torch.Tensor:
    plain = x.as_tensor() if isinstance(x, MetaTensor) else x
    turned = transform_image(plain, view.matrix, order=order, spacing=spacing).contiguous()
    if not isinstance(x, MetaTensor):
        return turned
    result = MetaTensor(turned).copy_meta_from(x)
    result.is_batch = x.is_batch
    return result


class PrepareBatchView(PrepareBatch):
    """MONAI's default ``prepare_batch``, and a view by which every image is turned first.

    While :attr:`view` is ``None`` batches pass as they are. A label with the image's spatial shape is turned with it;
    a class label is left alone, because a turned image keeps its class. Metadata stays that of the upright image.

    Args:
        order: order of the spline that samples the image, 0 to 5; labels are always sampled with order 0 (nearest).
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
            batchdata[CommonKeys.IMAGE] = _turn(image, self.view, self.order, self.spacing)
            if isinstance(label, torch.Tensor) and label.shape[2:] == image.shape[2:]:
                batchdata[CommonKeys.LABEL] = _turn(label, self.view, 0, self.spacing)
        return default_prepare_batch(batchdata, device, non_blocking, **kwargs)
