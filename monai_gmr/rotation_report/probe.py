"""Runs of an evaluator on one batch, rotated or mirrored by each view in turn, and measurements of its answers."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.engines import IterationEvents
from monai.inferers import Inferer
from monai.metrics import Cumulative
from monai.transforms import SaveImaged
from monai.utils import CommonKeys, optional_import

from monai_gmr.bundle.case_batches import CaseBatch
from monai_gmr.bundle.config_parts import transforms_in
from monai_gmr.bundle.prediction import check_answer
from monai_gmr.inferers import rotate_image
from monai_gmr.metrics.equivariance import move_image, moved_error
from monai_gmr.rotation_report.prepare_batch import PrepareBatchView, holds_classes, keep_metadata
from monai_gmr.rotation_report.records import ANSWER, TRUE_CLASS, ViewRecord
from monai_gmr.symmetry import View, inscribed_ball, is_grid_symmetry, is_mirror
from monai_gmr.symmetry.mirrored_labels import LabelPairs, exchange_channels
from monai_gmr.utils import ConfigurationError

Events, _ = optional_import("ignite.engine", name="Events")
Metric, _ = optional_import("ignite.metrics", name="Metric")

# a logit that makes its class certain and fits in half precision
CERTAIN = 1e4


def metric_handlers(evaluator: Any) -> dict[str, Any]:
    """Returns the metrics of an evaluator by name, the key metric first."""
    metrics = {}
    # ignite has no public list of attached metrics
    for handler, arguments, _ in evaluator._event_handlers[Events.EPOCH_COMPLETED]:
        owner = getattr(handler, "__self__", None)
        if isinstance(owner, Metric) and handler.__name__ == "completed":
            metrics[str(arguments[-1])] = owner
    key = evaluator.state.key_metric_name
    return dict(sorted(metrics.items(), key=lambda item: item[0] != key))


def relative_errors(
    answer: torch.Tensor, upright: torch.Tensor, view: View, spacing: Sequence[float] | None, dims: int
) -> list[float]:
    """Computes ``||g^-1 f(g x) - f(x)|| / ||f(x)||`` for every case of a batch.

    Answers of shape ``(B, C, *spatial)`` with ``dims`` spatial axes are rotated back, and compared inside the inscribed disc or ball if
    the view is not a symmetry of the grid. Others, such as class scores, are compared as they are. If shapes differ, errors are NaN.
    """
    spatial = answer.ndim == dims + 2
    if spatial:
        answer = rotate_image(answer, view.matrix.T, spacing)
    if answer.shape != upright.shape:
        return [float("nan")] * len(upright)
    difference, upright = answer.double() - upright.double(), upright.double()
    if spatial and not is_grid_symmetry(view.matrix, spacing):
        ball = torch.as_tensor(inscribed_ball(answer.shape[2:], spacing), device=answer.device)
        difference, upright = difference * ball, upright * ball
    lengths, scales = (part.flatten(1).norm(dim=1).tolist() for part in (difference, upright))
    return [0.0 if a == 0 else a / b if b else float("inf") for a, b in zip(lengths, scales)]


def is_exclusive(channels: int, label: torch.Tensor | None) -> bool:
    """Checks whether the channels of a prediction are exclusive classes, the first one the background. They are not if there is a single
    channel, or if the label has as many channels and is not one-hot."""
    if channels == 1 or label is None or label.shape[1] == 1:
        return channels > 1
    return label.shape[1] == channels and bool((label.sum(1) == 1).all())


def is_regression(channels: int, label: torch.Tensor | None) -> bool:
    """Checks whether a label image is a target of a regression: it has fractions, or as many channels as the prediction and more than two
    values.

    Example:
        >>> target = torch.tensor([[[0.0, 1.0, 3.0]]])
        >>> is_regression(1, target), is_regression(4, target), is_regression(1, target == 1), is_regression(4, target / 2)
        (True, False, False, True)
    """
    if label is None or label.ndim < 3:
        return False
    values = label.as_subclass(torch.Tensor)
    return not holds_classes(values) or (
        label.shape[1] == channels and bool(((values != values.min()) & (values != values.max())).any())
    )


def keep_ball(
    prediction: torch.Tensor, label: torch.Tensor | None, spacing: Sequence[float] | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sets raw answers and label, of shape ``(B, C, *spatial)``, to background outside the inscribed disc or ball, where a rotation moves
    voxels into or out of the image; those of a regression to 0."""
    ball = torch.as_tensor(inscribed_ball(prediction.shape[2:], spacing))
    exclusive = is_exclusive(prediction.shape[1], label)
    # logits, probabilities or numbers
    on, off = CERTAIN, -CERTAIN
    if is_regression(prediction.shape[1], label):
        on, off = 0.0, 0.0
    elif holds_probabilities(prediction.as_subclass(torch.Tensor), exclusive):
        on, off = 1.0, 0.0

    def outside(x: torch.Tensor, first: float, other: float) -> torch.Tensor:
        background = x.new_full((1, x.shape[1], *[1] * (x.ndim - 2)), other)
        background[:, 0] = first
        return keep_metadata(lambda y: torch.where(ball.to(y.device), y, background.as_subclass(torch.Tensor)), x)

    kept = outside(prediction, on if exclusive else off, off)
    if label is not None and label.shape[2:] == prediction.shape[2:]:
        label = outside(label, 1 if exclusive and label.shape[1] > 1 and on else 0, 0)
    return kept, label


def holds_probabilities(x: torch.Tensor, exclusive: bool = False) -> bool:
    """Checks whether an answer ``(B, C, *spatial)`` holds probabilities: all values lie between 0 and 1, and sum to 1 over exclusive
    channels."""
    if not bool(((x >= 0) & (x <= 1)).all()):
        return False
    return not exclusive or bool(((x.float().sum(1) - 1).abs() < 1e-2).all())


def is_on(x: torch.Tensor) -> torch.Tensor:
    """Marks the voxels where a network sees a region: logits above 0, or probabilities above 0.5 if all values lie between 0 and 1."""
    # values outside the ball do not come from the network
    return x > (0.5 if holds_probabilities(x[x > -CERTAIN]) else 0.0)


def class_map(x: torch.Tensor, logits: bool, exclusive: bool = True) -> np.ndarray:
    """Computes the class of every case or voxel, an integer, from logits or a label ``(B,)``, ``(B, C)`` or ``(B, C, *spatial)``.

    :func:`is_on` decides where a single channel of logits, or one that is not exclusive, is on. If channels are not exclusive, a voxel
    gets the last channel that is on, counted from 1.
    """
    x = x.detach().as_subclass(torch.Tensor).cpu()
    x = x[:, None] if x.ndim < 2 else x
    channels = x.shape[1]
    if channels > 1 and exclusive:
        return np.asarray(x.float().argmax(1))
    if channels == 1 and not logits:
        return np.asarray(x[:, 0].round()).astype(int)
    numbers = torch.arange(1, channels + 1).reshape(1, -1, *[1] * (x.ndim - 2))
    return np.asarray((is_on(x) * numbers).amax(1))


def class_probabilities(scores: torch.Tensor) -> torch.Tensor:
    """Computes class probabilities ``(B, C)`` from logits of that shape; a single logit, ``(B, 1)``, is for class 1 of two.

    Example:
        >>> class_probabilities(torch.zeros(1, 1))
        tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """
    scores = scores.detach().as_subclass(torch.Tensor)
    scores = torch.cat([torch.zeros_like(scores), scores], 1) if scores.shape[1] == 1 else scores
    return scores.double().softmax(1)


def true_class(scores: torch.Tensor, label: Any) -> list[float] | None:
    """Computes the probability that a classifier gives the true class of each case, from logits ``(B, C)`` (a single one is for class 1)
    and classes ``(B,)``, ``(B, 1)`` or one-hot ``(B, C)``; ``None`` for any other label, such as several labels per case."""
    if not isinstance(label, torch.Tensor) or scores.ndim != 2 or label.numel() not in (len(scores), scores.numel()):
        return None
    label = label.detach().as_subclass(torch.Tensor).cpu().reshape(len(scores), -1)
    if label.shape[1] > 1 and not (label.sum(1) == 1).all():
        return None
    classes = label.float().argmax(1) if label.shape[1] > 1 else label[:, 0].long()
    probabilities = class_probabilities(scores).cpu()
    if int(classes.min()) < 0 or int(classes.max()) >= probabilities.shape[1]:
        return None
    return probabilities.gather(1, classes[:, None])[:, 0].tolist()


def answer_marks(answer: torch.Tensor) -> np.ndarray:
    """Computes two numbers that identify each answer of a batch, ``(batch, 2)``: its norm, and a sum that also changes if the answer is
    rotated or mirrored.

    Example:
        >>> answer_marks(torch.tensor([[3.0, 4.0], [4.0, 3.0]])).round(2).tolist()
        [[5.0, 6.16], [5.0, 6.09]]
    """
    flat = answer.double().flatten(1)
    weights = torch.arange(1, flat.shape[1] + 1, dtype=flat.dtype, device=flat.device).sin_()
    return torch.stack([flat.norm(dim=1), flat @ weights], dim=1).cpu().numpy()


class Shown(NamedTuple):
    """One view of the first case of a batch, to be drawn: ``image`` of shape ``(C, *spatial)``; ``label`` (or ``None``) and ``prediction``,
    integers of shape ``(*spatial)`` or a single integer; and the ``probabilities`` of a classifier, ``(classes,)``."""

    view: View
    image: np.ndarray
    label: Any
    prediction: Any
    probabilities: np.ndarray | None


# takes a function that makes what is shown, and may raise
Show = Callable[[Callable[[], Shown]], None]


class _TimedInferer(Inferer):
    """A timed inferer that selects one of several answers of the network, or returns ``answer`` if it is set."""

    def __init__(self, inferer: Callable[..., Any], prediction: int | str | None) -> None:
        super().__init__()
        self.inferer, self.prediction, self.seconds = inferer, prediction, 0.0
        self.answer: torch.Tensor | None = None

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.answer is not None:
            self.seconds = 0.0
            return self.answer

        def now() -> float:
            if inputs.is_cuda:
                torch.cuda.synchronize(inputs.device)
            return time.perf_counter()

        start = now()
        answer = self.inferer(inputs, network, *args, **kwargs)
        self.seconds = now() - start
        return self._pick(answer)

    def _pick(self, answer: Any) -> torch.Tensor:
        if isinstance(answer, torch.Tensor) and self.prediction is None:
            return answer
        keys = list(answer) if isinstance(answer, Mapping) else []
        keys = list(range(len(answer))) if isinstance(answer, (tuple, list)) else keys
        if self.prediction in keys and isinstance(answer[self.prediction], torch.Tensor):
            return answer[self.prediction]
        kind, given = type(answer).__name__, f"prediction={self.prediction!r}"
        if not keys:
            raise ConfigurationError(f"the network returned a {kind}, so {given} cannot be used: leave it out.")
        given = "" if self.prediction is None else f" and {given} is not a tensor in it"
        raise ConfigurationError(
            f"the network returned a {kind} of {len(keys)}{given}: say which is judged with prediction, one of "
            f"{', '.join(map(repr, keys))}."
        )


def _image_savers(evaluator: Any) -> list[SaveImaged]:
    """Finds the transforms of an evaluator's postprocessing that write images."""
    # MONAI gives no public access to the postprocessing, which is in the closure of a handler
    handlers = [entry[0] for entry in evaluator._event_handlers[IterationEvents.MODEL_COMPLETED]]
    variables = [inspect.getclosurevars(handler).nonlocals for handler in handlers if inspect.isfunction(handler)]
    parts = [value for names in variables for value in names.values()]
    return [each for part in parts for each in transforms_in(part) if isinstance(each, SaveImaged)]


class ViewProbe:
    """Probe that runs an evaluator on a batch, rotated or mirrored by each view in turn, and records the results.

    Inside ``with probe:`` the evaluator has another ``prepare_batch``, ``inferer`` and loader, its ``SaveImaged`` writes nothing, and its
    log is quiet; afterwards it is restored. ``inferer`` runs the network; ``metrics`` are the names of the metrics to record. With
    ``rotates_answer`` the answer to the first view, moved with the image, replaces the answers to all other views. The other arguments
    are those of :class:`~monai_gmr.rotation_report.RotationReport`.
    """

    def __init__(
        self,
        evaluator: Any,
        inferer: Callable[..., Any],
        metrics: Sequence[str],
        *,
        spacing: Sequence[float] | None,
        order: int,
        labels: str,
        frame: str,
        in_ball: bool,
        images_in_ball: bool,
        prediction: int | str | None,
        mirrored_labels: LabelPairs = (),
        rotates_answer: bool = False,
    ) -> None:
        self.evaluator, self.recorded, self.metrics = evaluator, metrics, metric_handlers(evaluator)
        self.rotates_answer = rotates_answer
        self.spacing, self.order, self.frame, self.in_ball = spacing, order, frame, in_ball
        views: dict[str, Any] = {"order": order, "spacing": spacing, "labels": labels if frame == "rotated" else None}
        self.mirrored_labels = mirrored_labels
        views |= {"in_ball": images_in_ball, "mirrored_labels": mirrored_labels}
        self._prepare = PrepareBatchView(**views, prepare_batch=evaluator.prepare_batch)
        reduction = getattr(evaluator.inferer, "reduction", None)
        if reduction is not None:
            raise ConfigurationError(
                f"the inferer has reduction={reduction!r}, and labels have no equivariance error: leave reduction out."
            )
        self._inferer = _TimedInferer(inferer, prediction)
        self._upright: torch.Tensor | None = None
        self._size: Sequence[int] = ()
        self._show: Show | None = None
        # makes a label from an answer, for evaluators whose labels are the network's own answers to upright images
        self._label_of: Callable[[torch.Tensor], torch.Tensor] | None = getattr(evaluator, "label_of", None)
        self._first_scores: dict[str, list[np.ndarray]] = {}
        self._has_true_class: bool | None = None
        self._stack = ExitStack()

    def __enter__(self) -> ViewProbe:
        evaluator, stack = self.evaluator, self._stack

        def change(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        change(evaluator, "prepare_batch", self._prepare)
        change(evaluator, "inferer", self._inferer)
        change(evaluator, "data_loader", [])
        change(evaluator.state, "epoch_length", 0)
        # a run that failed must not be resumed by the next one
        change(evaluator, "interrupt_resume_enabled", False)
        for saver in _image_savers(evaluator):
            change(saver, "keys", ())
        # one line for each view and event would hide the progress bar
        stack.callback(evaluator.logger.setLevel, evaluator.logger.level)
        evaluator.logger.setLevel("CRITICAL")
        for event, handler in (
            (Events.ITERATION_STARTED, self._start),
            (IterationEvents.FORWARD_COMPLETED, self._measure_answer),
            (Events.ITERATION_COMPLETED, self._record),
        ):
            stack.callback(evaluator.add_event_handler(event, handler).remove)
        network = getattr(evaluator, "network", None)
        if isinstance(network, torch.nn.Module):
            stack.callback(network.register_forward_pre_hook(self._count_passes, with_kwargs=True).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._upright, self._prepare.label = None, None

    def run(
        self,
        batch: CaseBatch,
        views: Sequence[View],
        keep: Callable[[ViewRecord], None] = lambda record: None,
        show: Show | None = None,
    ) -> None:
        """Runs the evaluator on a batch, once for each view; calls ``keep`` with each record as soon as it is made, and ``show`` with the
        first case. The first view is the upright one: equivariance errors are relative to it, and own labels are made from it."""
        self._names, self._views, self._keep, self._show = batch.names, views, keep, show
        self._upright, self._prepare.label = None, None
        self.evaluator.data_loader = [batch.batch] * len(views)
        self.evaluator.state.epoch_length = len(views)
        self.evaluator.run()

    def measure(self, batch: CaseBatch, view: View) -> ViewRecord:
        """Returns the record of one view."""
        records: list[ViewRecord] = []
        self.run(batch, [view], records.append)
        return records[0]

    def images(self, batch: CaseBatch, views: Sequence[View]) -> list[Shown]:
        """Returns views of the first case, to be drawn; the first view is the upright one."""
        shown: list[Shown] = []
        self.run(batch, views, show=lambda make: shown.append(make()))
        return shown

    def _count_passes(self, network: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        image = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)
        self._passes += 1 if image is None else len(image)

    def _view(self) -> View:
        return self._views[self.evaluator.state.iteration - 1]

    def _move_back(self, x: torch.Tensor, view: View, size: Sequence[int]) -> torch.Tensor:
        """Moves an answer to an image of this size, or the image, to the upright frame: rotates with linear interpolation, or shifts with
        splines, because a linear shift by half a voxel would blur."""
        if view.shift is None:
            return rotate_image(x, view.matrix.T, self.spacing)
        back = view._replace(shift=tuple(-distance for distance in view.shift))
        return move_image(x, back, order=self.order, input_size=size, spacing=self.spacing)

    def _mirror(self, answer: torch.Tensor, view: View) -> torch.Tensor:
        """Exchanges the mirrored channels of an answer to a mirror image; returns other answers unchanged."""
        if not self.mirrored_labels or not is_mirror(view.matrix) or answer.ndim < 2:
            return answer
        return exchange_channels(answer, self.mirrored_labels, axis=1)

    def _start(self) -> None:
        view = self._view()
        self._prepare.view, self._passes, self._inferer.answer = view, 0, None
        if self.rotates_answer and self._upright is not None:
            # rotated linearly, as in averaging and in rotating back
            how: dict[str, Any] = {"order": 1 if view.shift is None else self.order, "spacing": self.spacing}
            self._inferer.answer = self._mirror(move_image(self._upright, view, input_size=self._size, **how), view)

    def _measure_answer(self) -> None:
        output, view = self.evaluator.state.output, self._view()
        image, label, answer = output[CommonKeys.IMAGE], output.get(CommonKeys.LABEL), output[CommonKeys.PRED]
        plain = answer.detach().as_subclass(torch.Tensor)
        check_answer(plain)
        if self._upright is None:
            # a copy: the network may return a buffer and write to it again
            self._upright, self._size = plain.clone(), image.shape[2:]
            if self._label_of is not None:
                self._prepare.label = label = self._label_of(self._upright)
        spatial = answer.ndim == image.ndim
        size, upright = image.shape[2:], self._upright
        if view.shift is None:
            self._errors = relative_errors(self._mirror(plain, view), upright, view, self.spacing, len(size))
        else:
            how: dict[str, Any] = {"order": self.order, "input_size": size, "spacing": self.spacing}
            self._errors = [moved_error(*pair, view, **how) for pair in zip(plain.split(1), upright.split(1))]
        self._values = {ANSWER: [answer_marks(plain)]}
        probability = None if spatial or self._label_of is not None else true_class(plain, label)
        # a batch of cases with several labels can have one each by chance, so the first batch decides for all
        self._has_true_class = probability is not None if self._has_true_class is None else self._has_true_class
        if self._has_true_class:
            self._values[TRUE_CLASS] = [np.full(len(plain), np.nan) if probability is None else np.array(probability)]
        if spatial and (self.frame == "upright" or view.shift is not None):
            answer, image = (keep_metadata(lambda x: self._move_back(x, view, size), x) for x in (answer, image))
        if self.frame == "upright":
            answer = keep_metadata(lambda x: self._mirror(x, view), answer)
        if spatial and self.in_ball and answer.shape[2:] == image.shape[2:]:
            answer, label = keep_ball(answer, label, self.spacing)
        output[CommonKeys.PRED] = answer
        if CommonKeys.LABEL in output:
            output[CommonKeys.LABEL] = label
        if self._show is not None:
            self._show(partial(self._shown, view, image, label, answer, spatial))

    def _shown(self, view: View, image: torch.Tensor, label: Any, answer: torch.Tensor, spatial: bool) -> Shown:
        label = label if isinstance(label, torch.Tensor) else None
        exclusive = not spatial or is_exclusive(answer.shape[1], label)
        classes = None if label is None else class_map(label[:1], logits=False, exclusive=exclusive)[0]
        predicted = class_map(answer[:1], logits=True, exclusive=exclusive)[0]
        probabilities = None if spatial or answer.ndim != 2 else class_probabilities(answer[:1])[0].cpu().numpy()
        return Shown(view, np.asarray(image[0].detach().cpu()), classes, predicted, probabilities)

    def _record(self) -> None:
        count = len(self._names)
        scores = {name: _case_values(name, self.metrics[name], count) for name in self.recorded}
        self._first_scores = self._first_scores if self.evaluator.state.iteration > 1 else scores
        last = self.evaluator.state.iteration == len(self._views)
        for name, metric in self.metrics.items():
            # at the end, the evaluator itself has the metrics of the first view
            if last and name in self.recorded and keeps_cases(metric):
                metric.reset()
                metric.metric_fn.extend(*(torch.as_tensor(part) for part in self._first_scores[name]))
            elif not last:
                metric.reset()
        values = {ANSWER: self._values.pop(ANSWER), **scores, **self._values}
        seconds, passes = self._inferer.seconds / count, self._passes / count
        self._keep(ViewRecord(self._view().name, self._names, np.array(self._errors), seconds, passes, values))


def keeps_cases(metric: Any) -> bool:
    """Checks whether a metric is one of MONAI's, which keep values for each case."""
    return isinstance(getattr(metric, "metric_fn", None), Cumulative)


def _case_values(name: str, metric: Any, count: int) -> list[np.ndarray]:
    """Returns the values that a metric has kept since its reset: arrays with one entry per case."""
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
    """Computes a metric over cases from the values that :class:`ViewProbe` recorded; if it is not MONAI's, its mean over the batches.

    Returns NaN if no case has a score, for example if all labels lack the classes; MONAI's mean would be 0.
    """
    if all(np.isnan(part).all() for part in values):
        return float("nan")
    if not keeps_cases(metric):
        return float(np.nanmean(values[0])) if np.isfinite(values[0]).any() else float("nan")
    # in double precision the mean of equal scores is that score; copies, because MONAI's means write to their input
    parts = [torch.tensor(part, dtype=torch.float64) for part in values]
    # a copy that aggregates these parts: extending the metric's own buffer case by case takes longer than the aggregation
    metric_fn = copy.copy(metric.metric_fn)
    metric_fn.get_buffer = lambda: parts[0] if len(parts) == 1 else parts
    result = metric_fn.aggregate()
    # MONAI's handlers also report the first of several
    result = result[0] if isinstance(result, (tuple, list)) else result
    return float(torch.as_tensor(result, dtype=torch.float64).nanmean())
