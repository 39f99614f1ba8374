"""A ``prepare_batch`` that rotates or mirrors its images by one view, for use in a bundle's own evaluator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import PrepareBatch, default_prepare_batch

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import check_choice
from monai_gmr.symmetry import View, inscribed_ball, is_grid_symmetry, is_mirror, transform_image
from monai_gmr.symmetry.mirrored_labels import LabelPairs, check_label_pairs, mirror_labels

LABEL_SAMPLINGS = ("nearest", "share")


def holds_classes(label: torch.Tensor) -> bool:
    """Checks whether a label image holds classes: whole numbers, unlike the target of a regression.

    Example:
        >>> holds_classes(torch.tensor([0.0, 2.0])), holds_classes(torch.tensor([0.5, 2.0]))
        (True, False)
    """
    values = label.as_subclass(torch.Tensor)
    return not values.is_floating_point() or bool((values == values.round()).all())


def transform_label(label: torch.Tensor, view: View, spacing: Sequence[float] | None, sampling: str) -> torch.Tensor:
    """Rotates or mirrors an image of integers, of shape ``(..., *spatial)``, by a view; keeps the dtype.

    With sampling "nearest" a voxel gets the class of the nearest voxel; with "share" each class is sampled linearly and a voxel gets the
    class with the largest share, which keeps borders smooth.
    """
    if sampling == "nearest" or is_grid_symmetry(view.matrix, spacing):
        return transform_image(label, view.matrix, order=0, spacing=spacing)
    result, largest = torch.zeros_like(label), torch.full(label.shape, -torch.inf, device=label.device)
    for value in torch.unique(label):
        share = transform_image((label == value).float(), view.matrix, order=1, spacing=spacing)
        result[share > largest] = value
        largest = torch.maximum(share, largest)
    return result


def keep_metadata(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Applies ``function`` to the bare tensor; the result has the metadata of ``x``, if any."""
    if not isinstance(x, MetaTensor):
        return function(x).contiguous()
    result = MetaTensor(function(x.as_tensor()).contiguous()).copy_meta_from(x)
    result.is_batch = x.is_batch
    return result


def least_in_ball(image: torch.Tensor, spacing: Sequence[float] | None) -> torch.Tensor:
    """Computes the smallest value of each case and channel inside the inscribed disc or ball, of shape ``(B, C, 1, ...)``."""
    ball = torch.as_tensor(inscribed_ball(image.shape[2:], spacing), device=image.device)
    least = image.as_subclass(torch.Tensor)[..., ball].amin(-1)
    return least.reshape(*least.shape, *[1] * ball.ndim)


class PrepareBatchView(PrepareBatch):
    """A ``prepare_batch`` that rotates, mirrors or shifts every image by one view.

    While :attr:`view` is ``None`` or upright, batches are unchanged, except for ``in_ball``. A label with the image's spatial shape is
    rotated with it, one that does not hold classes by the image's spline; a class label, and any label of a shifted image, is unchanged.
    Metadata is kept from the upright image.

    Args:
        order: order of the spline that samples the image, 0 to 5.
        spacing: voxel size in millimetres per axis; default 1.
        labels: sampling of label images at angles, "nearest" or "share" (the class with the largest share of a voxel); ``None`` leaves
            labels upright.
        in_ball: whether all images, including upright ones, are masked outside the inscribed disc or ball, so that a rotation moves nothing
            out of the frame or into it. The background is the smallest value of each case and channel inside, in the upright image.
        mirrored_labels: pairs of classes that mirroring exchanges, such as left and right kidney: in label images, class labels and
            channels of one-hot labels.
        prepare_batch: function that makes image and label of a batch; default ``monai.engines.default_prepare_batch``.

    Raises:
        ConfigurationError: if ``labels`` is unknown.

    Example:
        >>> from monai_gmr.symmetry import group_views
        >>> prepare_batch = PrepareBatchView()
        >>> prepare_batch.view = group_views(2)[1]
        >>> image, label = prepare_batch({"image": torch.rand(4, 1, 8, 6), "label": torch.zeros(4, 1)})
        >>> sorted(image.shape[2:]), tuple(label.shape)
        ([6, 8], (4, 1))
    """

    @checked_arguments
    def __init__(
        self,
        *,
        order: int = 3,
        spacing: Sequence[float] | None = None,
        labels: str | None = "nearest",
        in_ball: bool = False,
        mirrored_labels: LabelPairs = (),
        prepare_batch: Callable[..., Any] = default_prepare_batch,
    ) -> None:
        check_choice("labels", labels, (*LABEL_SAMPLINGS, None))
        self.order, self.spacing, self.labels, self.prepare_batch = order, spacing, labels, prepare_batch
        self.in_ball, self.mirrored_labels = in_ball, check_label_pairs(mirrored_labels)
        self.view: View | None = None
        # upright label that replaces the batch's own
        self.label: torch.Tensor | None = None

    def __call__(
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Like ``monai.engines.PrepareBatch``; the label is ``None`` if missing, and further items of ``prepare_batch`` follow
        unchanged."""
        view, spacing, order, labels = self.view, self.spacing, self.order, self.labels
        image, label, *rest = self.prepare_batch(batchdata, device, non_blocking, **kwargs)
        label = label if self.label is None else self.label
        background = least_in_ball(image, spacing) if self.in_ball else None
        shift = None
        if view is not None and view.family != "upright":
            shift, has_map = view.shift, isinstance(label, torch.Tensor) and label.shape[2:] == image.shape[2:]
            if labels and has_map and shift is None:
                if holds_classes(label):
                    label = keep_metadata(lambda x: transform_label(x, view, spacing, labels), label)
                else:
                    label = keep_metadata(lambda x: transform_image(x, view.matrix, order, spacing), label)
            if labels and isinstance(label, torch.Tensor) and self.mirrored_labels and is_mirror(view.matrix):
                label = keep_metadata(lambda x: mirror_labels(x, self.mirrored_labels, axis=1), label)
            image = keep_metadata(lambda x: transform_image(x, view.matrix, order, spacing, shift), image)
        if background is not None:
            ball = torch.as_tensor(inscribed_ball(image.shape[2:], spacing, shift), device=image.device)
            image = keep_metadata(lambda x: torch.where(ball, x, background), image)
        return image, label, *rest
