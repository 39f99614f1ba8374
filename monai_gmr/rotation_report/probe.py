"""Runs an evaluator on one batch, rotated or mirrored by one view after the other, and measures its answers."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
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
from monai_gmr.rotation_report.prepare_batch import PrepareBatchView, keep_metadata
from monai_gmr.rotation_report.records import ANSWER, TRUE_CLASS, ViewRecord
from monai_gmr.symmetry import View, inscribed_ball, is_grid_symmetry, is_mirror
from monai_gmr.symmetry.mirrored_labels import LabelPairs, exchange_channels
from monai_gmr.utils import ConfigurationError

Events, _ = optional_import("ignite.engine", name="Events")
Metric, _ = optional_import("ignite.metrics", name="Metric")

# a logit so large that its class is certain, and that half precision holds
CERTAIN = 1e4


def metric_handlers(evaluator: Any) -> dict[str, Any]:
    """The metrics of an evaluator by name, the key metric first."""
    metrics = {}
    # ignite has no public list of what is attached to an engine
    for handler, arguments, _ in evaluator._event_handlers[Events.EPOCH_COMPLETED]:
        owner = getattr(handler, "__self__", None)
        if isinstance(owner, Metric) and handler.__name__ == "completed":
            metrics[str(arguments[-1])] = owner
    key = evaluator.state.key_metric_name
    return dict(sorted(metrics.items(), key=lambda item: item[0] != key))


def relative_errors(
    answer: torch.Tensor, upright: torch.Tensor, view: View, spacing: Sequence[float] | None, dims: int
) -> list[float]:
    """``||g^-1 f(g x) - f(x)|| / ||f(x)||`` of every case of a batch.

    Answers of shape ``(B, C, *spatial)`` with ``dims`` spatial axes are rotated back; except for symmetries of the grid they are compared
    inside the inscribed disc or ball. Others, such as class scores, are compared as they are. Where the shapes differ there is no number.
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
    """Whether the channels of a prediction are classes of which a voxel has one, the first being the background: not for a single
    channel, and not if the label has as many and is not one-hot."""
    if channels == 1 or label is None or label.shape[1] == 1:
        return channels > 1
    return label.shape[1] == channels and bool((label.sum(1) == 1).all())


def keep_ball(
    prediction: torch.Tensor, label: torch.Tensor | None, spacing: Sequence[float] | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Raw answers and label, of shape ``(B, C, *spatial)``, with background outside the inscribed disc or ball: a rotation moves the rest
    out of the image, or in."""
    ball = torch.as_tensor(inscribed_ball(prediction.shape[2:], spacing))
    exclusive = is_exclusive(prediction.shape[1], label)

    def outside(x: torch.Tensor, first: float, other: float) -> torch.Tensor:
        background = x.new_full((1, x.shape[1], *[1] * (x.ndim - 2)), other)
        background[:, 0] = first
        return keep_metadata(lambda y: torch.where(ball.to(y.device), y, background.as_subclass(torch.Tensor)), x)

    kept = outside(prediction, CERTAIN if exclusive else -CERTAIN, -CERTAIN)
    if label is not None and label.shape[2:] == prediction.shape[2:]:
        label = outside(label, 1 if exclusive and label.shape[1] > 1 else 0, 0)
    return kept, label


def is_on(x: torch.Tensor) -> torch.Tensor:
    """Where a network sees a region, from logits, above 0, or from probabilities, above 0.5 where all lie between 0 and 1."""
    # values outside the ball are not the network's
    inside = x[x > -CERTAIN]
    is_probability = bool(((inside >= 0) & (inside <= 1)).all())
    return x > (0.5 if is_probability else 0.0)


def class_map(x: torch.Tensor, logits: bool, exclusive: bool = True) -> np.ndarray:
    """Whole numbers to draw: the class of every case or voxel, of logits or a label of shape ``(B,)``, ``(B, C)`` or ``(B, C, *spatial)``.

    A single channel of logits, or one that is not exclusive, is on as :func:`is_on` says. Of channels that are not exclusive a voxel gets
    the last one that it has, counted from 1.
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
    """Probabilities of classes, of shape ``(B, C)``, from logits of that shape; a single one, ``(B, 1)``, is that of class 1 of two.

    Example:
        >>> class_probabilities(torch.zeros(1, 1))
        tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """
    scores = scores.detach().as_subclass(torch.Tensor)
    scores = torch.cat([torch.zeros_like(scores), scores], 1) if scores.shape[1] == 1 else scores
    return scores.double().softmax(1)


def true_class(scores: torch.Tensor, label: Any) -> list[float] | None:
    """Probability that a classifier gives the true class of each case, from logits of shape ``(B, C)`` (a single one is that of class 1)
    and classes of shape ``(B,)``, ``(B, 1)`` or one-hot ``(B, C)``; ``None`` for any other label, such as several for a case."""
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
    """Two numbers by which each answer of a batch is recognised, ``(batch, 2)``: its norm, and a sum that changes when an answer is
    rotated or mirrored, too.

    Example:
        >>> answer_marks(torch.tensor([[3.0, 4.0], [4.0, 3.0]])).round(2).tolist()
        [[5.0, 6.16], [5.0, 6.09]]
    """
    flat = answer.double().flatten(1)
    weights = torch.arange(1, flat.shape[1] + 1, dtype=flat.dtype, device=flat.device).sin_()
    return torch.stack([flat.norm(dim=1), flat @ weights], dim=1).cpu().numpy()


class Shown(NamedTuple):
    """What one view of the first case of a batch looks like: ``image`` of shape ``(C, *spatial)``, ``label`` (or ``None``) and
    ``prediction``, whole numbers of shape ``(*spatial)`` or one of them, and the ``probabilities`` of a classifier, ``(classes,)``."""

    view: View
    image: np.ndarray
    label: Any
    prediction: Any
    probabilities: np.ndarray | None


class _TimedInferer(Inferer):
    """An inferer, timed, that takes one of several answers of the network, or gives ``answer`` instead."""

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
            raise ConfigurationError(f"the network returned a {kind}, of which {given} cannot be taken: leave it out.")
        given = "" if self.prediction is None else f" and {given} is no tensor of it"
        raise ConfigurationError(
            f"the network returned a {kind} of {len(keys)}{given}: say which is judged with prediction, one of "
            f"{', '.join(map(repr, keys))}."
        )


def _image_savers(evaluator: Any) -> list[SaveImaged]:
    """The transforms of an evaluator's postprocessing that write images."""
    # MONAI has no public way to a postprocessing, which is in the closure of a handler
    handlers = [entry[0] for entry in evaluator._event_handlers[IterationEvents.MODEL_COMPLETED]]
    variables = [inspect.getclosurevars(handler).nonlocals for handler in handlers if inspect.isfunction(handler)]
    parts = [value for names in variables for value in names.values()]
    return [each for part in parts for each in transforms_in(part) if isinstance(each, SaveImaged)]


class ViewProbe:
    """Runs an evaluator on a batch, rotated or mirrored by one view after the other, and records what comes out.

    Inside ``with probe:`` the evaluator has another ``prepare_batch``, ``inferer`` and loader, its ``SaveImaged`` writes nothing, and its
    log is quiet; afterwards it is as before. ``inferer`` runs the network, ``metrics`` are those that are recorded; ``rotates_answer``
    takes the answer to the first view, moved with the image, for all others; the other arguments are those of
    :class:`~monai_gmr.rotation_report.RotationReport`.
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
        self._show: Callable[[Shown], None] | None = None
        # of an evaluator whose labels are the network's own answers to upright images: what makes one of an answer
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
        show: Callable[[Shown], None] | None = None,
    ) -> None:
        """Run the evaluator on a batch, once for each view; ``keep`` takes each record as soon as it is made, ``show`` what the first case
        looks like. Equivariance errors are measured from the first view, of which own labels are made, too: it is the upright one."""
        self._names, self._views, self._keep, self._show = batch.names, views, keep, show
        self._upright, self._prepare.label = None, None
        self.evaluator.data_loader = [batch.batch] * len(views)
        self.evaluator.state.epoch_length = len(views)
        self.evaluator.run()

    def measure(self, batch: CaseBatch, view: View) -> ViewRecord:
        """The record of one view."""
        records: list[ViewRecord] = []
        self.run(batch, [view], records.append)
        return records[0]

    def images(self, batch: CaseBatch, views: Sequence[View]) -> list[Shown]:
        """What views of the first case look like; the first is the upright one."""
        shown: list[Shown] = []
        self.run(batch, views, show=shown.append)
        return shown

    def _count_passes(self, network: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        image = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)
        self._passes += 1 if image is None else len(image)

    def _view(self) -> View:
        return self._views[self.evaluator.state.iteration - 1]

    def _move_back(self, x: torch.Tensor, view: View, size: Sequence[int]) -> torch.Tensor:
        """An answer to an image of this size, or the image, in the upright frame: rotated linearly, or shifted by splines, which keep
        what half a voxel's mean would blur."""
        if view.shift is None:
            return rotate_image(x, view.matrix.T, self.spacing)
        back = view._replace(shift=tuple(-distance for distance in view.shift))
        return move_image(x, back, order=self.order, input_size=size, spacing=self.spacing)

    def _mirror(self, answer: torch.Tensor, view: View) -> torch.Tensor:
        """An answer to a mirror image with the channels exchanged that trade places; other answers as they are."""
        if not self.mirrored_labels or not is_mirror(view.matrix) or answer.ndim < 2:
            return answer
        return exchange_channels(answer, self.mirrored_labels, axis=1)

    def _start(self) -> None:
        view = self._view()
        self._prepare.view, self._passes, self._inferer.answer = view, 0, None
        if self.rotates_answer and self._upright is not None:
            # linearly where it is rotated, as answers are averaged and rotated back
            how: dict[str, Any] = {"order": 1 if view.shift is None else self.order, "spacing": self.spacing}
            self._inferer.answer = self._mirror(move_image(self._upright, view, input_size=self._size, **how), view)

    def _measure_answer(self) -> None:
        output, view = self.evaluator.state.output, self._view()
        image, label, answer = output[CommonKeys.IMAGE], output.get(CommonKeys.LABEL), output[CommonKeys.PRED]
        plain = answer.detach().as_subclass(torch.Tensor)
        check_answer(plain)
        if self._upright is None:
            # a copy: the network may hand out a buffer that it writes to again
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
        # of several labels a case, a batch may happen to have one each: the first batch decides for all
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
            self._show(self._shown(view, image, label, answer, spatial))

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
            # the metrics that the evaluator itself ends with are those of the first view
            if last and name in self.recorded and keeps_cases(metric):
                metric.reset()
                metric.metric_fn.extend(*(torch.as_tensor(part) for part in self._first_scores[name]))
            elif not last:
                metric.reset()
        values = {ANSWER: self._values.pop(ANSWER), **scores, **self._values}
        seconds, passes = self._inferer.seconds / count, self._passes / count
        self._keep(ViewRecord(self._view().name, self._names, np.array(self._errors), seconds, passes, values))


def keeps_cases(metric: Any) -> bool:
    """Whether a metric is one of MONAI's, which keep what they need of each case."""
    return isinstance(getattr(metric, "metric_fn", None), Cumulative)


def _case_values(name: str, metric: Any, count: int) -> list[np.ndarray]:
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
    """The metric over cases, from what :class:`ViewProbe` recorded of each; of a metric that is not MONAI's the mean over the batches.

    NaN if no case has a score, for example if all labels lack the classes; MONAI's mean would be 0.
    """
    if all(np.isnan(part).all() for part in values):
        return float("nan")
    if not keeps_cases(metric):
        return float(np.nanmean(values[0])) if np.isfinite(values[0]).any() else float("nan")
    # in double precision a mean of equal scores is that score; copies, for MONAI's means write to what they take
    parts = [torch.tensor(part, dtype=torch.float64) for part in values]
    # a copy that aggregates these parts: to extend a metric's own buffer case by case takes longer than to aggregate it
    metric_fn = copy.copy(metric.metric_fn)
    metric_fn.get_buffer = lambda: parts[0] if len(parts) == 1 else parts
    result = metric_fn.aggregate()
    # MONAI's handlers, too, report the first of several
    result = result[0] if isinstance(result, (tuple, list)) else result
    return float(torch.as_tensor(result, dtype=torch.float64).nanmean())
