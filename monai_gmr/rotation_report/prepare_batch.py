"""Batches as an engine sees them: turned by one view, so that a bundle's own evaluator can be run on turned images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import PrepareBatch, default_prepare_batch

from monai_gmr.symmetry import View, is_grid_symmetry, transform_image
from monai_gmr.utils import check_choice

LABEL_SAMPLINGS = ("nearest", "share")


def turn_label(
    label: torch.Tensor, view: View, spacing: Sequence[float] | None = None, sampling: str = "nearest"
) -> torch.Tensor:
    """Turn an image of whole numbers.

    Args:
        label: tensor of shape ``(..., *spatial)``.
        view: how to turn it.
        spacing: voxel size in millimetres, one an axis; default 1.
        sampling: "nearest": a voxel gets the class of the nearest one; "share": each class is sampled linearly and a voxel
            gets the one with the largest share, which keeps borders from fraying.

    Returns:
        tensor of the same dtype.

    Example:
        >>> from monai_gmr.symmetry import angle_views
        >>> label = torch.zeros(1, 1, 9, 9); label[..., 4:] = 2
        >>> turn_label(label, angle_views(2, 45)[0]).unique().tolist()
        [0.0, 2.0]
    """
    check_choice("labels", sampling, LABEL_SAMPLINGS)
    if sampling == "nearest" or is_grid_symmetry(view.matrix, spacing):
        return transform_image(label, view.matrix, order=0, spacing=spacing)
    turned, largest = torch.zeros_like(label), torch.full(label.shape, -torch.inf, device=label.device)
    for value in torch.unique(label):
        share = transform_image((label == value).float(), view.matrix, order=1, spacing=spacing)
        turned[share > largest] = value
        largest = torch.maximum(share, largest)
    return turned


def keep_metadata(turn: Callable[..., torch.Tensor], x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """``turn(x, *arguments)`` of the bare tensor, with the metadata of ``x`` if it has any.

    Example:
        >>> type(keep_metadata(torch.neg, MetaTensor(torch.ones(1, 1, 4)))).__name__
        'MetaTensor'
    """
    if not isinstance(x, MetaTensor):
        return turn(x, *arguments).contiguous()
    result = MetaTensor(turn(x.as_tensor(), *arguments).contiguous()).copy_meta_from(x)
    result.is_batch = x.is_batch
    return result


class PrepareBatchView(PrepareBatch):
    """A ``prepare_batch``, and a view by which every image that it prepares is turned.

    While :attr:`view` is ``None`` or upright batches pass as they are. A label with the image's spatial shape is turned with it;
    a class label is left alone, because a turned image keeps its class. Metadata stays that of the upright image.

    Args:
        order: order of the spline that samples the image, 0 to 5.
        spacing: voxel size in millimetres, one an axis; default 1.
        labels: how label images are sampled, "nearest" or "share" (see :func:`turn_label`); ``None`` leaves them upright.
        prepare_batch: what makes image and label of a batch; default ``monai.engines.default_prepare_batch``.

    Raises:
        ConfigurationError: when ``labels`` is unknown.

    Example:
        >>> import torch
        >>> from monai_gmr.symmetry import group_views
        >>> prepare_batch = PrepareBatchView()
        >>> prepare_batch.view = group_views(2)[1]
        >>> image, label = prepare_batch({"image": torch.rand(4, 1, 8, 6), "label": torch.zeros(4, 1)})
        >>> sorted(image.shape[2:]), tuple(label.shape)
        ([6, 8], (4, 1))
    """

    def __init__(
        self,
        order: int = 3,
        spacing: Sequence[float] | None = None,
        labels: str | None = "nearest",
        prepare_batch: Callable[..., Any] = default_prepare_batch,
    ) -> None:
        check_choice("labels", labels, (*LABEL_SAMPLINGS, None))
        self.order = order
        self.spacing = spacing
        self.labels = labels
        self.prepare_batch = prepare_batch
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
            the image and the label, or ``None`` for a label that is not there; further items of ``prepare_batch`` follow as they are.
        """
        image, label, *rest = self.prepare_batch(batchdata, device, non_blocking, **kwargs)
        if self.view is None or self.view.family == "upright":
            return image, label, *rest
        if self.labels and isinstance(label, torch.Tensor) and label.shape[2:] == image.shape[2:]:
            label = keep_metadata(turn_label, label, self.view, self.spacing, self.labels)
        return keep_metadata(self._turn_image, image), label, *rest

    def _turn_image(self, image: torch.Tensor) -> torch.Tensor:
        assert self.view is not None
        return transform_image(image, self.view.matrix, order=self.order, spacing=self.spacing)
