"""Averages of a network's answers over views of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer, SimpleInferer
from monai.utils import optional_import

from monai_gmr.inferers.nests import checked_tensors, filled, outline, plain_tensor
from monai_gmr.inferers.streams import REDUCTIONS, UNCERTAINTIES, ViewStream, entropy
from monai_gmr.inferers.turning import interpolate_image, turn_image
from monai_gmr.metrics.equivariance import map_tensors
from monai_gmr.symmetry import View, is_grid_symmetry, make_views, point_group, transform_grid
from monai_gmr.utils import ConfigurationError, check_choice

tqdm, _ = optional_import("tqdm", name="tqdm")


class SymmetryInferer(Inferer):
    """Runs a network on turned and mirrored copies of the image, turns its answers back and reduces them to one.

    Over a group of symmetries of the grid this makes any network exactly equivariant (``reduce`` of whatever kind; with
    or without sliding windows inside), for as many passes as there are views. It wraps every MONAI inferer and works as
    one.

    Symmetries of the grid move voxels onto voxels; other views are interpolated linearly on the way there and on the
    way back, and what they turn into the image from outside repeats its border. Tensors among the further arguments
    that have the image's batch and spatial size, such as ``condition``, are turned with it.

    Args:
        inferer: what runs the network on one view; default ``monai.inferers.SimpleInferer()``.
        views: "group" (all symmetries of the grid that keep ``spacing``: 8 in 2D, 48 in 3D); another set of
            :func:`~monai_gmr.symmetry.make_views`, such as "432" (the 24 rotations of the cube) or ``{"angles": 30}``; or a
            sequence of :class:`~monai_gmr.symmetry.View` or of orthogonal matrices of shape ``(d, d)``.
        reduce: "mean", "median", "max", or "vote": the share of views in which a class has the largest value (of one
            channel, or with ``activation="sigmoid"``: in which it exceeds ``threshold``). All but the median, which
            keeps the answers to all views, are reckoned as the views come: memory does not grow with their number.
        activation: applied to the answer to each view before they are reduced: "softmax" or "sigmoid" over the
            channels, a callable of a tensor, or nothing.
        spatial: whether outputs with a batch, a channel and the spatial axes are turned back, at whatever resolution.
            Others, such as class scores, never are. False: none is.
        views_per_batch: views that go through the network at once, as a batch of that many times the images; only views
            of one size go together.
        uncertainty: "std", "entropy", or both in a list, to get them too.
        spacing: voxel size in millimetres, one an axis; default 1.
        threshold: what a voxel must exceed to vote for a class of its own.
        progress: whether to show a bar over the views.

    Shape:
        - input: ``(batch, channels, *spatial)``, 1 to 3 axes, tensor or MetaTensor, whose metadata the result takes
        - output: what the network gives, of one or several tensors in nested tuples, lists or dictionaries;
          reckoned and returned in float32 where the network gives halves or whole numbers. With ``uncertainty`` a
          dictionary of such: "pred"; "std", the standard deviation over the views (divided by their number) of every
          value; "entropy", that of the mean over the views (for votes: of their shares) in nats, one channel where the
          channels are a distribution, one for each with ``activation="sigmoid"`` or where there is but one.

    Raises:
        ConfigurationError: when arguments, input or the network's output do not fit; one sentence that says what does.

    Example:
        >>> net, x = torch.nn.Conv2d(1, 2, 3, padding=1), torch.rand(1, 1, 7, 8)
        >>> inferer = SymmetryInferer(activation="softmax", uncertainty=["std", "entropy"], views_per_batch=4)
        >>> answer, turned = inferer(x, net), inferer(x.rot90(1, (2, 3)), net)
        >>> torch.allclose(turned["pred"], answer["pred"].rot90(1, (2, 3)), atol=1e-6)
        True
        >>> {name: tuple(value.shape) for name, value in answer.items()}
        {'pred': (1, 2, 7, 8), 'std': (1, 2, 7, 8), 'entropy': (1, 1, 7, 8)}

    Source:
        averaging over a group; users have asked for it in MONAI's issues 8032, 8218 and 8276.
    """

    def __init__(
        self,
        inferer: Callable[..., Any] | None = None,
        views: Any = "group",
        reduce: str = "mean",
        activation: str | Callable[[torch.Tensor], torch.Tensor] | None = None,
        spatial: bool = True,
        views_per_batch: int = 1,
        uncertainty: str | Sequence[str] | None = None,
        spacing: Sequence[float] | None = None,
        threshold: float = 0.5,
        progress: bool = False,
    ) -> None:
        super().__init__()
        self.inferer = SimpleInferer() if inferer is None else inferer
        if not callable(self.inferer):
            raise ConfigurationError(
                f"inferer={inferer!r} cannot be called: give a MONAI inferer such as monai.inferers.SimpleInferer()."
            )
        self.spacing = spacing
        self.views = views
        self._given = _given_matrices(views)
        if self._given is None:
            self._check_names()
        check_choice("reduce", reduce, REDUCTIONS)
        if activation is not None and not callable(activation):
            check_choice("activation", activation, ("softmax", "sigmoid", None))
        if views_per_batch < 1:
            raise ConfigurationError(f"views_per_batch={views_per_batch} leaves no view: use 1 or more.")
        self.uncertainty = (uncertainty,) if isinstance(uncertainty, str) else tuple(uncertainty or ())
        for each in self.uncertainty:
            check_choice("uncertainty", each, UNCERTAINTIES)
        if "entropy" in self.uncertainty and activation is None and reduce != "vote":
            raise ConfigurationError(
                "uncertainty='entropy' needs probabilities: use activation='softmax', 'sigmoid' or a callable, or reduce='vote'."
            )
        self.reduce, self.activation, self.spatial = reduce, activation, spatial
        self.views_per_batch, self.threshold, self.progress = views_per_batch, threshold, progress

    def matrices(self, spatial_dims: int) -> list[np.ndarray]:
        """The views of images of so many axes, as orthogonal matrices.

        Example:
            >>> len(SymmetryInferer().matrices(3)), len(SymmetryInferer(views="mmm").matrices(3))
            (48, 8)
        """
        if self.spacing is not None and len(self.spacing) != spatial_dims:
            raise ConfigurationError(
                f"spacing has {len(self.spacing)} entries and the image {spatial_dims} axes: give one an axis."
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

    def _check_names(self) -> None:
        """Raise now what would be wrong with the sets of views in 2D as well as in 3D."""
        if self.views == "group":
            return
        errors = []
        for dims in (2, 3):
            spacing = self.spacing if self.spacing is not None and len(self.spacing) == dims else None
            try:
                make_views(self.views, dims, spacing)
            except ConfigurationError as error:
                errors.append(error)
        if len(errors) == 2:
            raise errors[-1]

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the network on all views and reduce its answers.

        Args:
            inputs: image of shape ``(batch, channels, *spatial)``.
            network: module, or what else the wrapped inferer takes.
            args: further arguments of the wrapped inferer.
            kwargs: further arguments of the wrapped inferer.
        """
        image = plain_tensor(inputs)
        dims = image.ndim - 2
        batches = list(self._batches(self.matrices(dims), image.shape[2:]))
        streams: list[ViewStream] = []
        nest: Any = None
        for batch in tqdm(batches) if self.progress else batches:
            turned, further, named = self._turned((image, args, kwargs), batch, image)
            answer = self.inferer(turned, network, *further, **named)
            del turned, further, named
            tensors = checked_tensors(answer)
            if not streams:
                nest = outline(answer)
                streams = [self._stream(tensor, dims) for tensor in tensors]
            if len(tensors) != len(streams):
                raise ConfigurationError(
                    f"The network returned {len(tensors)} tensors for one view and {len(streams)} for another: it must return as many "
                    "for each."
                )
            for tensor, stream in zip(tensors, streams):
                self._add(tensor, stream, batch, image.shape)
            # nothing of a view may live on while the next one goes through the network
            del answer, tensors, tensor
        return self._results(streams, nest, inputs)

    def _results(self, streams: list[ViewStream], nest: Any, inputs: Any) -> Any:
        predictions = [stream.result() for stream in streams]
        results: dict[str, list[torch.Tensor]] = {"pred": predictions}
        if "std" in self.uncertainty:
            results["std"] = [stream.std() for stream in streams]
        if "entropy" in self.uncertainty:
            results["entropy"] = []
            for stream, prediction in zip(streams, predictions):
                mean = prediction if self.reduce == "vote" else stream.mean()
                if mean.ndim < 2:
                    raise ConfigurationError("uncertainty='entropy' needs outputs with a channel axis: use 'std'.")
                exclusive = self.activation != "sigmoid" and mean.shape[stream.channel_axis] > 1
                results["entropy"].append(entropy(mean, stream.channel_axis, exclusive))
        answers = {name: filled(nest, tensors, inputs) for name, tensors in results.items()}
        return answers if self.uncertainty else answers["pred"]

    def _batches(self, matrices: list[np.ndarray], size: Sequence[int]) -> Iterator[list[np.ndarray]]:
        """Views that go through the network together: at most ``views_per_batch``, of one turned size."""
        by_size: dict[tuple[int, ...], list[np.ndarray]] = {}
        for matrix in matrices:
            exact = is_grid_symmetry(matrix, self.spacing)
            source = [int(np.argmax(np.abs(row))) for row in matrix] if exact else range(len(size))
            by_size.setdefault(tuple(size[axis] for axis in source), []).append(matrix)
        for group in by_size.values():
            for first in range(0, len(group), self.views_per_batch):
                yield group[first : first + self.views_per_batch]

    def _turned(self, value: Any, batch: list[np.ndarray], image: torch.Tensor) -> Any:
        """The image, and arguments like it, once for each view, one after the other along the batch axis."""

        def turn(tensor: torch.Tensor) -> torch.Tensor:
            tensor = plain_tensor(tensor) if tensor.ndim == image.ndim else tensor
            alike = tensor.ndim == image.ndim and tensor.shape[0] == image.shape[0]
            if not alike or tensor.shape[2:] != image.shape[2:]:
                return tensor
            views = [turn_image(tensor, matrix, self.spacing) for matrix in batch]
            # copies, the upright view too: a network that works in place must not reach the image itself
            return torch.cat(views) if len(views) > 1 else views[0].contiguous()

        return map_tensors(value, turn)

    def _is_spatial(self, tensor: torch.Tensor, dims: int) -> bool:
        return self.spatial and tensor.ndim >= dims + 2

    def _stream(self, tensor: torch.Tensor, dims: int) -> ViewStream:
        axis = tensor.ndim - dims - 1 if self._is_spatial(tensor, dims) else min(1, tensor.ndim - 1)
        channels = tensor.shape[axis] if tensor.ndim else 1
        if self.activation == "softmax" and channels == 1:
            raise ConfigurationError(
                f"activation='softmax' is 1 everywhere over the one channel of {tuple(tensor.shape)}: use 'sigmoid'."
            )
        alone = self.activation == "sigmoid" or channels == 1
        return ViewStream(
            self.reduce,
            channel_axis=axis,
            threshold=self.threshold if alone else None,
            std="std" in self.uncertainty,
            mean="entropy" in self.uncertainty and self.reduce != "vote",
        )

    def _add(self, tensor: torch.Tensor, stream: ViewStream, batch: list[np.ndarray], shape: Sequence[int]) -> None:
        """Split an output into its views, turn them back and stream them."""
        images, dims = shape[0], len(shape) - 2
        tensor = tensor.as_subclass(torch.Tensor)
        if len(batch) > 1 and (tensor.ndim == 0 or tensor.shape[0] != images * len(batch)):
            raise ConfigurationError(
                f"The network returned a tensor of shape {tuple(tensor.shape)} for {images * len(batch)} images, which cannot be split "
                "into views: use views_per_batch=1."
            )
        for matrix, part in zip(batch, tensor.chunk(len(batch)) if len(batch) > 1 else (tensor,)):
            if self._is_spatial(part, dims):
                part = self._turned_back(part, matrix, shape[2:])
            if callable(self.activation):
                part = self.activation(part)
            elif self.activation == "softmax":
                part = (part if part.dtype == torch.float64 else part.float()).softmax(stream.channel_axis)
            elif self.activation == "sigmoid":
                part = (part if part.dtype == torch.float64 else part.float()).sigmoid()
            if stream.count and part.shape != stream.shape:
                raise ConfigurationError(
                    f"The network's outputs for two views have shapes {tuple(stream.shape)} and {tuple(part.shape)}: use spatial=True "
                    "for maps, or views that keep the size of the image."
                )
            stream.add(part)

    def _turned_back(self, part: torch.Tensor, matrix: np.ndarray, size: Sequence[int]) -> torch.Tensor:
        if is_grid_symmetry(matrix, self.spacing):
            return transform_grid(part, matrix.T)
        # an output of another resolution has another voxel size, which may differ by axis
        step = np.array(size) / np.array(part.shape[-len(size) :])
        step = step * (1.0 if self.spacing is None else np.asarray(self.spacing, float))
        return interpolate_image(part, matrix.T, step.tolist())


def _given_matrices(views: Any) -> list[np.ndarray] | None:
    """Views as matrices; None where sets of them are named or described."""
    if not isinstance(views, str | Mapping | Sequence | np.ndarray | torch.Tensor):
        raise ConfigurationError(f"views={views!r} are none: give 'group', or a list of views or orthogonal matrices.")
    if isinstance(views, str | Mapping) or any(isinstance(view, str | Mapping) for view in views):
        return None
    matrices = [_checked_matrix(view) for view in ([views] if isinstance(views, View) else views)]
    if not matrices:
        raise ConfigurationError("views is empty: give one view or more, or 'group' for all symmetries of the grid.")
    if len({len(matrix) for matrix in matrices}) > 1:
        raise ConfigurationError("views holds matrices of unlike shapes: give those of one number of axes.")
    return matrices


def _checked_matrix(view: Any) -> np.ndarray:
    matrix = np.asarray(view.matrix if isinstance(view, View) else view, dtype=float)
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if not square or not np.allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-6):
        raise ConfigurationError(
            f"views holds {matrix.tolist()}, which is not an orthogonal matrix: give views of monai_gmr.symmetry or matrices (d, d)."
        )
    return matrix
