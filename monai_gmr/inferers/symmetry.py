"""Averages of a network's outputs over rotated and mirrored views of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from monai.inferers import Inferer, SimpleInferer

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import check_choice, check_count, voxel_spacing
from monai_gmr.inferers.outputs import OutputAccumulators, plain_tensor
from monai_gmr.inferers.reduction import REDUCTIONS, UNCERTAINTIES, ViewReduction, entropy
from monai_gmr.inferers.rotate import interpolate_image, rotate_image
from monai_gmr.inferers.tokens import TokenCheck
from monai_gmr.symmetry import View, is_grid_symmetry, is_mirror, make_views, point_group, transform_grid
from monai_gmr.symmetry.group_structure import names_group
from monai_gmr.symmetry.mirrored_labels import LabelPairs, check_label_pairs, exchange_channels
from monai_gmr.utils import ConfigurationError, SymmetryWarning, map_tensors, progress_bar, warn


class SymmetryInferer(Inferer):
    """Runs a network on rotated and mirrored views of the image, transforms its outputs back and reduces them to one.

    Over a group of symmetries of the grid this makes any network exactly equivariant, with or without sliding windows inside, at one pass
    per view. It wraps any MONAI inferer and is used like one.

    Symmetries of the grid move voxels onto voxels; other views are interpolated linearly both ways, with the border repeated beyond the
    frame. Tensors among the further arguments with the image's batch and spatial size, such as ``condition``, are transformed with it.

    Args:
        inferer: runs the network on one view; default ``monai.inferers.SimpleInferer()``.
        views: "group" (all symmetries of the grid that keep ``spacing``: 8 in 2D, 48 in 3D); another set of
            :func:`~monai_gmr.symmetry.make_views`, such as "432" (the 24 rotations of the cube) or ``{"angles": 30}``; or a
            sequence of :class:`~monai_gmr.symmetry.View` or of orthogonal matrices of shape ``(d, d)``.
        reduce: "mean", "median", "max", or "vote": the share of views in which a class has the largest value (for one channel, or with
            ``activation="sigmoid"``: in which it exceeds ``threshold``). Only the median needs memory for all views.
        activation: activation of the output for each view: "softmax" or "sigmoid" over the channels, a callable of a tensor, or None.
        spatial: whether outputs with a batch, a channel and the spatial axes are transformed back, at any resolution. Others, such as class
            scores, never are; a warning, once, reports outputs that change with the views like a map with flattened spatial axes.
        views_per_batch: number of views of one size that go through the network at once, which multiplies the batch size.
        uncertainty: "std", "entropy", or both in a list, to return them as well.
        spacing: voxel size in millimetres, one per axis; default 1.
        threshold: threshold of a vote.
        mirrored_labels: pairs of output channels to exchange in mirrored views, such as those of a left and a right kidney, ``[(1, 2)]``.
            Without it the average over mirror images cannot distinguish them.
        progress: whether to show a progress bar over the views.

    Shape:
        - input: ``(batch, channels, *spatial)``, 1 to 3 axes, tensor or MetaTensor, whose metadata the result keeps
        - output: the network's output, also nested; half precision and integers become float32, except integer maps of one
          channel, or none, which are taken as class numbers and refused (a vote takes one channel). With ``uncertainty`` a dictionary of
          outputs: "pred"; "std", the standard deviation over the views (divided by their number); "entropy", the entropy of the mean over
          the views in nats, one channel if the channels are a distribution, else one for each.

    Raises:
        ConfigurationError: if arguments, input or the network's output do not fit.

    Example:
        >>> net, x = torch.nn.Conv2d(1, 2, 3, padding=1), torch.rand(1, 1, 7, 8)
        >>> inferer = SymmetryInferer(activation="softmax", uncertainty=["std", "entropy"], views_per_batch=4)
        >>> output, rotated = inferer(x, net), inferer(x.rot90(1, (2, 3)), net)
        >>> torch.allclose(rotated["pred"], output["pred"].rot90(1, (2, 3)), atol=1e-6)
        True
        >>> {name: tuple(value.shape) for name, value in output.items()}
        {'pred': (1, 2, 7, 8), 'std': (1, 2, 7, 8), 'entropy': (1, 1, 7, 8)}
    """

    @checked_arguments
    def __init__(
        self,
        inferer: Annotated[Callable[..., Any] | None, "a MONAI inferer such as monai.inferers.SimpleInferer()"] = None,
        views: Any = "group",
        *,
        reduce: str = "mean",
        activation: str | Callable[[torch.Tensor], torch.Tensor] | None = None,
        spatial: bool = True,
        views_per_batch: int = 1,
        uncertainty: str | Sequence[str] | None = None,
        spacing: Sequence[float] | None = None,
        threshold: float = 0.5,
        mirrored_labels: LabelPairs = (),
        progress: bool = False,
    ) -> None:
        super().__init__()
        self.inferer = SimpleInferer() if inferer is None else inferer
        if getattr(self.inferer, "reduction", None) is not None:
            raise ConfigurationError(
                "inferer reduces its outputs, and labels have no mean over the views: leave its reduction out."
            )
        self.views, self.spacing = views, spacing
        self._given = _given_matrices(views)
        if self._given is None and views != "group":
            axes = 0 if spacing is None else len(spacing)
            try:
                make_views(views, 2, spacing if axes == 2 else None)
            except ConfigurationError:
                # invalid in both: raise the error for 3D
                make_views(views, 3, spacing if axes == 3 else None)
        check_choice("reduce", reduce, REDUCTIONS)
        if activation is not None and not callable(activation):
            check_choice("activation", activation, ("softmax", "sigmoid", None))
        check_count("views_per_batch", views_per_batch)
        if spacing is not None:
            voxel_spacing(spacing, len(spacing))
        self.uncertainty = (uncertainty,) if isinstance(uncertainty, str) else tuple(uncertainty or ())
        for each in self.uncertainty:
            check_choice("uncertainty", each, UNCERTAINTIES)
        if "entropy" in self.uncertainty and activation is None and reduce != "vote":
            raise ConfigurationError(
                "uncertainty='entropy' needs probabilities: use activation='softmax', 'sigmoid' or a callable, or reduce='vote'."
            )
        self.reduce, self.activation, self.spatial = reduce, activation, spatial
        self.views_per_batch, self.threshold, self.progress = views_per_batch, threshold, progress
        self.mirrored_labels = check_label_pairs(mirrored_labels)
        self._warned = False

    def matrices(self, spatial_dims: int) -> list[np.ndarray]:
        """Views of images of ``spatial_dims`` axes, as orthogonal matrices.

        Example:
            >>> len(SymmetryInferer().matrices(3)), len(SymmetryInferer(views="mmm").matrices(3))
            (48, 8)
        """
        if self.spacing is not None and len(self.spacing) != spatial_dims:
            raise ConfigurationError(
                f"spacing has {len(self.spacing)} entries and the image {spatial_dims} axes: give one per axis."
            )
        if self._given is None:
            if self.views == "group":
                return list(point_group(spatial_dims, self.spacing))
            return [view.matrix for view in make_views(self.views, spatial_dims, self.spacing)]
        if len(self._given[0]) != spatial_dims:
            raise ConfigurationError(
                f"views are of {len(self._given[0])} axes and the image of {spatial_dims}: give matrices of shape {(spatial_dims,) * 2}."
            )
        return self._given

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs the network on all views of ``inputs`` and reduces its outputs; ``args`` and ``kwargs`` go to the wrapped inferer."""
        image = plain_tensor(inputs)
        outputs = OutputAccumulators(self._reduction, self._add)

        def run(batch: list[np.ndarray]) -> Any:
            view, further, named = self._transform((image, args, kwargs), batch, image)
            return self.inferer(view, network, *further, **named)

        batches = list(self._batches(self.matrices(image.ndim - 2), image.shape[2:]))
        for batch in progress_bar(batches, "views", self.progress):
            # not kept in a variable: the output for one view must be freed before the next pass
            outputs.add(run(batch), batch, image.shape)
        reductions = outputs.accumulators
        self._warn_of_tokens(reductions)
        results = {"pred": [reduction.result() for reduction in reductions]}
        if "std" in self.uncertainty:
            results["std"] = [reduction.std() for reduction in reductions]
        if "entropy" in self.uncertainty:
            results["entropy"] = [self._entropy(*each) for each in zip(reductions, results["pred"])]
        nested = {name: outputs.nested(tensors, inputs) for name, tensors in results.items()}
        return nested if self.uncertainty else nested["pred"]

    def _warn_of_tokens(self, reductions: Sequence[ViewReduction]) -> None:
        """Warn once about outputs that are averaged as features but change with the views like maps."""
        for reduction in reductions:
            size = None if reduction.tokens is None else reduction.tokens.found()
            if size is not None and not self._warned:
                self._warned = True
                warn(
                    f"the network's output of shape {tuple(reduction.shape)} is not transformed back, but changes with the views like a "
                    f"flattened map of {' x '.join(map(str, size))}: let the network return (batch, channels, *spatial), or "
                    "give spatial=False if these are features.",
                    SymmetryWarning,
                )

    def _entropy(self, reduction: ViewReduction, prediction: torch.Tensor) -> torch.Tensor:
        mean = prediction if self.reduce == "vote" else reduction.mean
        if mean.ndim < 2:
            raise ConfigurationError("uncertainty='entropy' needs outputs with a channel axis: use 'std'.")
        axis = reduction.channel_axis
        return entropy(mean, axis, exclusive=self.activation != "sigmoid" and mean.shape[axis] > 1)

    def _batches(self, matrices: list[np.ndarray], size: Sequence[int]) -> Iterator[list[np.ndarray]]:
        """Views that go through the network together: at most ``views_per_batch``, of one size."""
        by_size: dict[tuple[int, ...], list[np.ndarray]] = {}
        for matrix in matrices:
            exact = is_grid_symmetry(matrix, self.spacing)
            source = np.abs(matrix).argmax(1).tolist() if exact else range(len(size))
            by_size.setdefault(tuple(size[axis] for axis in source), []).append(matrix)
        for group in by_size.values():
            for first in range(0, len(group), self.views_per_batch):
                yield group[first : first + self.views_per_batch]

    def _transform(self, value: Any, batch: list[np.ndarray], image: torch.Tensor) -> Any:
        """The image, or an argument like it, once for each view, concatenated along the batch axis."""

        def transform(tensor: torch.Tensor) -> torch.Tensor:
            tensor = plain_tensor(tensor) if tensor.ndim == image.ndim else tensor
            alike = tensor.ndim == image.ndim and tensor.shape[0] == image.shape[0]
            if not alike or tensor.shape[2:] != image.shape[2:]:
                return tensor
            views = [rotate_image(tensor, matrix, self.spacing) for matrix in batch]
            # copies, even for the identity: a network that works in place must not change the image
            return torch.cat(views) if len(views) > 1 else views[0].contiguous()

        return map_tensors(value, transform)

    def _reduction(self, tensor: torch.Tensor, batch: list[np.ndarray], shape: Sequence[int]) -> ViewReduction:
        dims = len(shape) - 2
        axis = tensor.ndim - dims - 1 if self.spatial and tensor.ndim >= dims + 2 else min(1, tensor.ndim - 1)
        channels = tensor.shape[axis] if tensor.ndim else 1
        if self.activation == "softmax" and channels == 1:
            raise ConfigurationError(
                f"activation='softmax' is 1 everywhere over the only channel of {tuple(tensor.shape)}: use 'sigmoid'."
            )
        alone = self.activation == "sigmoid" or channels == 1
        return ViewReduction(
            self.reduce,
            channel_axis=axis,
            threshold=self.threshold if alone else None,
            std="std" in self.uncertainty,
            mean="entropy" in self.uncertainty and self.reduce != "vote",
        )

    def _add(
        self, reduction: ViewReduction, tensor: torch.Tensor, batch: list[np.ndarray], shape: Sequence[int]
    ) -> None:
        """Splits an output into its views, transforms them back and adds them to the reduction."""
        images, dims = shape[0], len(shape) - 2
        tensor = tensor.as_subclass(torch.Tensor)
        if len(batch) > 1 and (tensor.ndim == 0 or tensor.shape[0] != images * len(batch)):
            raise ConfigurationError(
                f"The network returned a tensor of shape {tuple(tensor.shape)} for {images * len(batch)} images, which cannot be split "
                "into views: use views_per_batch=1."
            )
        if self.activation is None:
            self._check_scores(tensor, shape)
        for matrix, view in zip(batch, tensor.chunk(len(batch)) if len(batch) > 1 else (tensor,)):
            if self.spatial and view.ndim < dims + 2 and is_grid_symmetry(matrix, self.spacing):
                reduction.tokens = reduction.tokens or TokenCheck(view.shape, shape[2:])
                reduction.tokens.add(view, matrix)
            elif self.spatial and view.ndim >= dims + 2:
                view = self._transform_back(view, matrix, shape[2:])
            if self.mirrored_labels and is_mirror(matrix):
                view = exchange_channels(view, self.mirrored_labels, reduction.channel_axis)
            if callable(self.activation):
                view = self.activation(view)
                self._check_scores(view, shape)
            elif self.activation is not None:
                view = view if view.dtype == torch.float64 else view.float()
                view = view.sigmoid() if self.activation == "sigmoid" else view.softmax(reduction.channel_axis)
            if reduction.count and view.shape != reduction.shape:
                raise ConfigurationError(
                    f"The network's outputs for two views have shapes {tuple(reduction.shape)} and {tuple(view.shape)}: use spatial=True "
                    "for maps, or views that keep the size of the image."
                )
            reduction.add(view)

    def _check_scores(self, tensor: torch.Tensor, shape: Sequence[int]) -> None:
        """Raises ``ConfigurationError`` for a map of class numbers: integers with one channel, or with the image's axes and none."""
        dims = len(shape) - 2
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool or tensor.ndim <= dims:
            return
        flat = tensor.ndim == dims + 1
        alike = sorted(tensor.shape[-dims:]) == sorted(shape[2:])
        labels = alike if flat else tensor.shape[-dims - 1] == 1 and (alike or self.spatial)
        # a vote on one channel counts what exceeds the threshold
        if labels and (flat or self.reduce != "vote"):
            raise ConfigurationError(
                f"the network returns integers of shape {tuple(tensor.shape)}, and class numbers have no {self.reduce} over the views: "
                "let it return scores, one channel per class, or a map of floating-point numbers if the integers are measurements."
            )

    def _transform_back(self, view: torch.Tensor, matrix: np.ndarray, size: Sequence[int]) -> torch.Tensor:
        if is_grid_symmetry(matrix, self.spacing):
            return transform_grid(view, matrix.T)
        # an output of another resolution has another voxel size, which can differ between axes
        step = np.array(size) / np.array(view.shape[-len(size) :])
        step = step * (1.0 if self.spacing is None else np.asarray(self.spacing, float))
        return interpolate_image(view, matrix.T, step.tolist())


def _given_matrices(views: Any) -> list[np.ndarray] | None:
    """Views as matrices; None if sets of them are named or described."""
    named = partial(names_group, among_elements=False)
    listed = isinstance(views, Mapping | Sequence) or (isinstance(views, np.ndarray | torch.Tensor) and views.ndim > 1)
    if not named(views) and not listed:
        raise ConfigurationError(
            f"views={views!r} is impossible: give 'group', or a list of views or orthogonal matrices."
        )
    if any(named(each) or isinstance(each, Mapping) for each in (views, *([] if named(views) else views))):
        return None
    views = [views] if isinstance(views, View) else views
    matrices = [np.asarray(view.matrix if isinstance(view, View) else view, dtype=float) for view in views]
    if not matrices:
        raise ConfigurationError("views is empty: give one view or more, or 'group' for all symmetries of the grid.")
    for matrix in matrices:
        square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
        if not square or not np.allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-6):
            raise ConfigurationError(
                f"views holds {matrix.tolist()}, which is not an orthogonal matrix: give views of monai_gmr.symmetry or matrices (d, d)."
            )
    if len({len(matrix) for matrix in matrices}) > 1:
        raise ConfigurationError("views holds matrices of different shapes: give matrices for one number of axes.")
    return matrices
