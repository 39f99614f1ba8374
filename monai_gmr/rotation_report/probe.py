"""What an evaluator does with one batch, turned by one view after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from monai.engines import IterationEvents
from monai.inferers import Inferer
from monai.metrics import Cumulative
from monai.transforms import SaveImage
from monai.utils import CommonKeys, optional_import

from monai_gmr.bundle.prediction import check_answer
from monai_gmr.inferers.rotate import rotate_image
from monai_gmr.rotation_report.prepare_batch import PrepareBatchView, keep_metadata
from monai_gmr.symmetry import View, inscribed_ball, is_grid_symmetry
from monai_gmr.utils import ConfigurationError

Events, _ = optional_import("ignite.engine", name="Events")
Metric, _ = optional_import("ignite.metrics", name="Metric")

# a logit so large that its class is certain, and that half precision holds
CERTAIN = 1e4


class Seen(NamedTuple):
    """What one view of a batch gave: equivariance ``errors``, one a case; ``seconds`` and ``passes`` of the network for the whole
    batch; metric to ``values``, arrays with one entry a case; ``norms`` of the raw answers, one a case; ``true_class``: probability
    of the true class, one a case, of classifiers."""

    errors: list[float]
    seconds: float
    passes: float
    values: dict[str, list[np.ndarray]]
    norms: list[float]
    true_class: list[float] | None


class Shown(NamedTuple):
    """What one view of a batch looks like, to be drawn: arrays ``image`` of shape ``(B, C, *spatial)``, ``label`` and
    ``prediction`` of whole numbers of shape ``(B, *spatial)`` or ``(B,)``; ``None`` where there is no label."""

    image: np.ndarray
    label: np.ndarray | None
    prediction: np.ndarray


def metric_handlers(evaluator: Any) -> dict[str, Any]:
    """The metrics of an evaluator by name, the key metric first.

    Example:
        >>> from monai.engines import SupervisedEvaluator
        >>> from monai.handlers import MeanDice
        >>> metric = {"dice": MeanDice()}
        >>> net = torch.nn.Identity()
        >>> list(metric_handlers(SupervisedEvaluator(torch.device("cpu"), [], net, key_val_metric=metric)))
        ['dice']
    """
    found = {}
    # ignite has no public list of what is attached to an engine
    for handler, arguments, _ in evaluator._event_handlers[Events.EPOCH_COMPLETED]:
        owner = getattr(handler, "__self__", None)
        if isinstance(owner, Metric) and handler.__name__ == "completed":
            found[str(arguments[-1])] = owner
    key = evaluator.state.key_metric_name
    return dict(sorted(found.items(), key=lambda item: item[0] != key))


def relative_errors(
    answer: torch.Tensor, upright: torch.Tensor, view: View, spacing: Sequence[float] | None, dims: int
) -> list[float]:
    """``||g^-1 f(g x) - f(x)|| / ||f(x)||`` of every case of a batch.

    Answers with spatial axes are turned back; after other turns than those of the grid they are compared inside the
    inscribed disc or ball. Others, such as class scores, are compared as they are.

    Args:
        answer: what the network gave for the turned images, of shape ``(B, C)`` or ``(B, C, *spatial)``.
        upright: what it gave for the upright ones.
        view: the turn.
        spacing: voxel size in millimetres, one an axis; default 1.
        dims: number of spatial axes of the image.

    Returns:
        one error a case.

    Example:
        >>> from monai_gmr.symmetry import group_views
        >>> x = torch.rand(1, 1, 4, 6)
        >>> relative_errors(x.flip(2), x, group_views(2, group="m", axis=0)[1], None, 2)
        [0.0]
    """
    if answer.ndim == dims + 2:
        answer = rotate_image(answer, view.matrix.T, spacing)
    if answer.shape != upright.shape:
        return [float("nan")] * len(upright)
    answer, upright = answer.double(), upright.double()
    difference = answer - upright
    if answer.ndim == dims + 2 and not is_grid_symmetry(view.matrix, spacing):
        ball = torch.as_tensor(inscribed_ball(answer.shape[2:], spacing), device=answer.device)
        difference, upright = difference * ball, upright * ball
    lengths, scales = (part.flatten(1).norm(dim=1).tolist() for part in (difference, upright))
    return [0.0 if a == 0 else a / b if b else float("inf") for a, b in zip(lengths, scales)]


def is_exclusive(channels: int, label: torch.Tensor | None) -> bool:
    """Whether the channels of a prediction are classes of which a voxel has one, the first being the background: not if there is but
    one, and not if the label has as many and is not one-hot.

    Example:
        >>> is_exclusive(2, None), is_exclusive(1, None), is_exclusive(2, torch.ones(1, 2, 4))
        (True, False, False)
    """
    if channels == 1 or label is None or label.shape[1] == 1:
        return channels > 1
    return label.shape[1] == channels and bool((label.sum(1) == 1).all())


def keep_ball(
    prediction: torch.Tensor, label: torch.Tensor | None, spacing: Sequence[float] | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Make background of what lies outside the inscribed disc or ball: a turn carries it out of the image, or in.

    Args:
        prediction: raw answer of the network, ``(B, C, *spatial)``; channels that are not exclusive (:func:`is_exclusive`) are each a yes
            or no of its own.
        label: of the same spatial shape, or ``None``.
        spacing: voxel size in millimetres, one an axis; default 1.

    Returns:
        prediction and label.

    Example:
        >>> prediction, label = keep_ball(torch.zeros(1, 2, 3, 3), torch.ones(1, 1, 3, 3), None)
        >>> label.int().tolist()
        [[[[0, 1, 0], [1, 1, 1], [0, 1, 0]]]]
    """
    ball = torch.as_tensor(inscribed_ball(prediction.shape[2:], spacing), device=prediction.device)
    channels, exclusive = prediction.shape[1], is_exclusive(prediction.shape[1], label)
    one_hot = exclusive and label is not None and label.shape[1] > 1
    background = torch.full((channels,), -CERTAIN, device=prediction.device)
    background[0] = CERTAIN if exclusive else -CERTAIN
    background = background.to(prediction.dtype).reshape(1, -1, *[1] * (prediction.ndim - 2))
    prediction = keep_metadata(lambda x: torch.where(ball, x, background), prediction)
    if label is None or label.shape[2:] != prediction.shape[2:]:
        return prediction, label
    empty = torch.zeros((label.shape[1],), device=label.device, dtype=label.dtype)
    empty[0] = 1 if one_hot else 0
    empty = empty.reshape(1, -1, *[1] * (label.ndim - 2))
    return prediction, keep_metadata(lambda x: torch.where(ball.to(x.device), x, empty), label)


def class_map(x: torch.Tensor, logits: bool, exclusive: bool = True) -> np.ndarray:
    """Whole numbers to be drawn: the class of every case or voxel, of logits or of a label.

    Args:
        x: of shape ``(B,)``, ``(B, C)`` or ``(B, C, *spatial)``.
        logits: whether they are answers of a network; a single channel, or one that is not exclusive, is on above 0, or above 0.5 where all
            lie between 0 and 1.
        exclusive: whether a voxel has one of several channels; else it gets the last one that it has, counted from 1.

    Example:
        >>> class_map(torch.tensor([[0.1, 2.0]]), logits=True), class_map(torch.tensor([[3.0]]), logits=False)
        (array([1]), array([3]))
        >>> class_map(torch.tensor([[3.0, -1.0, 2.0], [-1.0, -1.0, -1.0]]), logits=True, exclusive=False)
        array([3, 0])
    """
    x = x.detach().as_subclass(torch.Tensor).cpu()
    x = x[:, None] if x.ndim < 2 else x
    channels = x.shape[1]
    if channels > 1 and exclusive:
        return np.asarray(x.float().argmax(1))
    if channels == 1 and not logits:
        return np.asarray(x[:, 0].round()).astype(int)
    # what lies outside the ball tells nothing
    inside = x[x > -CERTAIN]
    is_probability = inside.numel() == 0 or (float(inside.min()) >= 0 and float(inside.max()) <= 1)
    numbers = torch.arange(1, channels + 1).reshape(1, -1, *[1] * (x.ndim - 2))
    return np.asarray(((x > (0.5 if is_probability else 0.0)) * numbers).amax(1))


def _wait(x: torch.Tensor) -> None:
    """Until the device has done what it was asked for."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def true_class(scores: torch.Tensor, label: Any) -> list[float] | None:
    """Probability that a classifier gives the true class of each case.

    Args:
        scores: logits of shape ``(B, C)``; a single one is that of class 1.
        label: classes of shape ``(B,)`` or ``(B, 1)``, or one-hot of shape ``(B, C)``; anything else gives ``None``.

    Example:
        >>> true_class(torch.zeros(2, 4), torch.tensor([[1], [3]]))
        [0.25, 0.25]
    """
    if not isinstance(label, torch.Tensor) or scores.ndim != 2 or label.numel() not in (len(scores), scores.numel()):
        return None
    label = label.detach().as_subclass(torch.Tensor).cpu().reshape(len(scores), -1)
    classes = label.float().argmax(1) if label.shape[1] > 1 else label[:, 0].long()
    scores = scores.detach().cpu()
    scores = torch.cat([torch.zeros_like(scores), scores], 1) if scores.shape[1] == 1 else scores
    if int(classes.min()) < 0 or int(classes.max()) >= scores.shape[1]:
        return None
    return scores.double().softmax(1).gather(1, classes[:, None])[:, 0].tolist()


class _WatchedInferer(Inferer):
    """An inferer, timed, that takes one of several answers of the network."""

    def __init__(self, inferer: Callable[..., Any], prediction: int | str | None) -> None:
        super().__init__()
        self.inferer, self.prediction = inferer, prediction
        self.seconds = 0.0

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        _wait(inputs)
        start = time.perf_counter()
        answer = self.inferer(inputs, network, *args, **kwargs)
        _wait(inputs)
        self.seconds = time.perf_counter() - start
        return self._pick(answer)

    def _pick(self, answer: Any) -> torch.Tensor:
        if isinstance(answer, torch.Tensor) and self.prediction is None:
            return answer
        keys = (
            list(answer)
            if isinstance(answer, Mapping)
            else range(len(answer))
            if isinstance(answer, (tuple, list))
            else []
        )
        if self.prediction in keys:
            chosen = answer[self.prediction]
            if isinstance(chosen, torch.Tensor):
                return chosen
        there, kind = ", ".join(map(repr, keys)), type(answer).__name__
        if not there:
            raise ConfigurationError(
                f"the network returned a {kind}, of which prediction={self.prediction!r} cannot be taken: leave it out."
            )
        given = "" if self.prediction is None else f" and prediction={self.prediction!r} is no tensor of it"
        raise ConfigurationError(
            f"the network returned a {kind} of {len(keys)}{given}: say which is judged with prediction, one of {there}."
        )


class ViewProbe:
    """Runs an evaluator on a batch turned by one view after the other, and sees what comes out.

    Inside ``with probe:`` the evaluator has another ``prepare_batch``, ``inferer`` and loader; afterwards it has its own again.
    Files that its postprocessing saves are not written meanwhile, and its log is quiet.

    Args:
        evaluator: ``monai.engines.SupervisedEvaluator`` or one that works like it.
        inferer: what runs the network; default the evaluator's own.
        spacing: voxel size in millimetres, one an axis; default 1.
        order: order of the spline that turns images.
        labels: how label images are sampled, "nearest" or "share".
        frame: "turned": the turned prediction is judged by the turned label. "upright": it is turned back (linearly) and judged by the
            label as it is, which a postprocessing needs that inverts the preprocessing.
        in_ball: whether predictions and labels are background outside the inscribed disc or ball.
        prediction: which of several answers of the network is judged, index or key.
        metrics: names of the evaluator's metrics that are wanted; default all.
    """

    def __init__(
        self,
        evaluator: Any,
        inferer: Callable[..., Any] | None = None,
        spacing: Sequence[float] | None = None,
        order: int = 3,
        labels: str = "nearest",
        frame: str = "turned",
        in_ball: bool = True,
        prediction: int | str | None = None,
        metrics: Sequence[str] | None = None,
    ) -> None:
        self.evaluator = evaluator
        self.metrics = metric_handlers(evaluator)
        self.wanted = list(self.metrics) if metrics is None else list(metrics)
        self.spacing, self.frame, self.in_ball = spacing, frame, in_ball
        self._prepare = PrepareBatchView(
            order, spacing, labels if frame == "turned" else None, prepare_batch=evaluator.prepare_batch
        )
        self._inferer = _WatchedInferer(inferer or evaluator.inferer, prediction)
        self._views: Sequence[View] = ()
        self._upright: torch.Tensor | None = None
        self._keep: Callable[[View, Seen], None] = lambda view, seen: None
        self._first: dict[str, list[np.ndarray]] = {}
        self._shown: Shown | None = None
        self._passes = 0.0
        self._errors: list[float] = []
        self._norms: list[float] = []
        self._true_class: list[float] | None = None
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> ViewProbe:
        evaluator = self.evaluator
        own = {name: getattr(evaluator, name) for name in ("prepare_batch", "inferer", "data_loader")}
        epoch_length, level = evaluator.state.epoch_length, evaluator.logger.level
        evaluator.prepare_batch, evaluator.inferer = self._prepare, self._inferer
        # one line for each view and event would bury the progress bar
        evaluator.logger.setLevel("CRITICAL")
        handlers = [
            evaluator.add_event_handler(Events.ITERATION_STARTED, self._start),
            evaluator.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._judge),
            evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._collect),
        ]
        self._undo = [handler.remove for handler in handlers]
        network = getattr(evaluator, "network", None)
        if isinstance(network, torch.nn.Module):
            hook = network.register_forward_pre_hook(self._count, with_kwargs=True)
            self._undo.append(hook.remove)

        def put_back() -> None:
            for name, value in own.items():
                setattr(evaluator, name, value)
            evaluator.state.epoch_length = epoch_length
            evaluator.logger.setLevel(level)

        self._undo.append(put_back)
        return self

    def __exit__(self, *_: object) -> None:
        for undo in self._undo:
            undo()
        self._undo, self._upright, self._shown = [], None, None

    def run(
        self, batch: Any, views: Sequence[View], keep: Callable[[View, Seen], None] = lambda view, seen: None
    ) -> None:
        """Run the evaluator on a batch, once for each view.

        Args:
            batch: as the evaluator's loader gives it.
            views: the upright one first.
            keep: takes what came out of each view as soon as it is there.
        """
        self._views, self._upright, self._first, self._keep = views, None, {}, keep
        self.evaluator.data_loader = [batch] * len(views)
        self.evaluator.state.epoch_length = len(views)
        with mock.patch.object(SaveImage, "__call__", lambda saver, img, *args, **kwargs: img):
            try:
                self.evaluator.run()
            except BaseException:
                # ignite keeps the generator of a run that failed, and the next run would end before it begins
                self.evaluator._internal_run_generator = None
                raise

    def measure(self, batch: Any, view: View) -> Seen:
        """Run the evaluator on a batch turned by one view."""
        seen: list[Seen] = []
        self.run(batch, [view], lambda _, each: seen.append(each))
        return seen[0]

    def show(self, batch: Any, view: View) -> Shown:
        """Run the evaluator on a batch turned by one view, and take the images that come out."""
        self.run(batch, [view])
        assert self._shown is not None
        return self._shown

    def _count(self, network: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        image = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)
        self._passes += 1 if image is None else len(image)

    def _view(self) -> View:
        return self._views[self.evaluator.state.iteration - 1]

    def _start(self) -> None:
        self._prepare.view = self._view()
        self._passes = 0.0

    def _judge(self) -> None:
        output, view = self.evaluator.state.output, self._view()
        image, label, answer = output[CommonKeys.IMAGE], output.get(CommonKeys.LABEL), output[CommonKeys.PRED]
        plain = answer.detach().as_subclass(torch.Tensor)
        check_answer(plain)
        if self._upright is None:
            # a copy: the network may hand out a buffer that it writes to again
            self._upright = plain.clone()
        dims = image.ndim - 2
        spatial = answer.ndim == image.ndim
        self._norms = plain.double().flatten(1).norm(dim=1).tolist()
        self._errors = relative_errors(plain, self._upright, view, self.spacing, dims)
        self._true_class = None if spatial else true_class(plain, label)
        if spatial and self.frame == "upright":
            answer = keep_metadata(lambda x: rotate_image(x, view.matrix.T, self.spacing), answer)
            image = keep_metadata(lambda x: rotate_image(x, view.matrix.T, self.spacing), image)
        if spatial and self.in_ball and answer.shape[2:] == image.shape[2:]:
            answer, label = keep_ball(answer, label, self.spacing)
        output[CommonKeys.PRED] = answer
        if CommonKeys.LABEL in output:
            output[CommonKeys.LABEL] = label
        if len(self._views) == 1:
            label = label if isinstance(label, torch.Tensor) else None
            exclusive = not spatial or is_exclusive(answer.shape[1], label)
            self._shown = Shown(
                np.asarray(image.detach().cpu()),
                None if label is None else class_map(label, logits=False, exclusive=exclusive),
                class_map(answer, logits=True, exclusive=exclusive),
            )

    def _collect(self) -> None:
        count = len(self._errors)
        values = {name: _take(name, self.metrics[name], count) for name in self.wanted}
        seen = Seen(self._errors, self._inferer.seconds, self._passes, values, self._norms, self._true_class)
        self._first = self._first or values
        last = self.evaluator.state.iteration == len(self._views)
        for name, metric in self.metrics.items():
            # the metrics that the evaluator itself ends with are those of the first view
            if last and name in self.wanted and keeps_cases(metric):
                metric.reset()
                metric.metric_fn.extend(*(torch.as_tensor(part) for part in self._first[name]))
            elif not last:
                metric.reset()
        self._keep(self._view(), seen)


def keeps_cases(metric: Any) -> bool:
    """Whether a metric is one of MONAI's, which keep what they need of each case."""
    return isinstance(getattr(metric, "metric_fn", None), Cumulative)


def _take(name: str, metric: Any, count: int) -> list[np.ndarray]:
    """What a metric holds of each case since it was reset: arrays with one entry a case."""
    if not keeps_cases(metric):
        return [np.full(count, float(metric.compute()))]
    buffer = metric.metric_fn.get_buffer()
    parts = [buffer] if isinstance(buffer, torch.Tensor) else list(buffer)
    if any(len(part) != count for part in parts):
        raise ConfigurationError(
            f"the metric {name!r} keeps {len(parts[0])} values of {count} cases: leave it out with metrics, or set the batch size to 1."
        )
    return [part.detach().as_subclass(torch.Tensor).cpu().numpy() for part in parts]


def score(metric: Any, values: Sequence[np.ndarray]) -> float:
    """The metric over cases, from what :class:`ViewProbe` took of each.

    Args:
        metric: one of :func:`metric_handlers`.
        values: what :attr:`Seen.values` holds of it, arrays with one entry a case.

    Returns:
        its value over all of them; of a metric that is not MONAI's the mean of its values over the batches.

    Example:
        >>> from monai.handlers import MeanDice
        >>> score(MeanDice(), [np.array([[0.5, 1.0], [0.25, 0.25]])])
        0.5
    """
    if not keeps_cases(metric):
        return float(np.nanmean(values[0])) if np.isfinite(values[0]).any() else float("nan")
    # in double precision a mean of equal scores is that score; copies, for MONAI's means write to what they take
    parts = [torch.tensor(part, dtype=torch.float64) for part in values]
    # what MONAI's metrics aggregate; to fill the buffer case by case takes longer than to aggregate it
    buffer = parts[0] if len(parts) == 1 else parts
    with mock.patch.object(metric.metric_fn, "get_buffer", return_value=buffer):
        result = metric.metric_fn.aggregate()
    # MONAI's handlers, too, report the first of several
    result = result[0] if isinstance(result, (tuple, list)) else result
    return float(torch.as_tensor(result, dtype=torch.float64).nanmean())
