"""The evaluator for scans without labels: compares a network with its own answer to the upright image."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import DiceMetric
from monai.transforms import AsDiscreted, Lambdad
from monai.utils import CommonKeys

from monai_gmr.bundle.case_batches import CaseBatches, usable_image
from monai_gmr.bundle.config_parts import transforms_in
from monai_gmr.metrics.agreement import ChangedProbability, ChangedVoxels, SameClass
from monai_gmr.rotation_report.evaluator import BundleEvaluator, open_evaluator
from monai_gmr.rotation_report.probe import ViewProbe, class_probabilities, is_on
from monai_gmr.rotation_report.statistics import CHANGED_PROBABILITY, CHANGED_VOXELS, ERROR, format_cell
from monai_gmr.symmetry import make_views
from monai_gmr.utils import ConfigurationError, reason

BOTH = (CommonKeys.PRED, CommonKeys.LABEL)
# settings under which the bundle's metadata still describe its network
HARMLESS = {"device", "amp", "roi_size", "voxel_size", "num_workers", "batch_size"}


class AgreementEvaluator(SupervisedEvaluator):
    """``monai.engines.SupervisedEvaluator`` whose label is the network's own answer to the upright image.

    ``label_of`` converts a raw answer of shape ``(B, C, ...)`` to a label, which :class:`~monai_gmr.rotation_report.RotationReport` rotates
    like any other.
    """

    def __init__(self, *, label_of: Callable[[torch.Tensor], torch.Tensor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.label_of = label_of


class OwnAnswers(NamedTuple):
    """The ``evaluator`` of a network's agreement with itself, and names for the numbers of its classes."""

    evaluator: Any
    class_names: dict[int, str]


def open_own_answers(
    bundle: str | Path,
    scan: str | Path,
    output_dir: str | Path,
    settings: Mapping[str, Any] | None = None,
    config_file: str | Path | Sequence[str | Path] | None = None,
    prediction: int | str | None = None,
) -> OwnAnswers:
    """Makes the evaluator of a bundle for scans without labels, a file or a folder of files; it scores the agreement of the answers with
    the answer to the upright image.

    Preprocessing, inferer and checkpoint come from the bundle's inference config. Segmentations have the metrics ``dice`` (mean over the
    classes without background), ``dice_CLASS`` for each class if there are several, and ``changed_voxels``; classifications have
    ``changed_probability`` and ``same_class``. The network runs once on the first scan. Raises ``ConfigurationError`` if the bundle,
    checkpoint or scan does not exist, or the network cannot take the scan.
    """
    opened = open_evaluator(bundle, settings, config_file, scan=scan, output_dir=output_dir)
    title = Path(bundle).resolve().name
    batches = CaseBatches(opened.evaluator.data_loader)
    image = usable_image(title, batches)
    answer = _first_answer(opened.evaluator, batches, title, tuple(image.shape), prediction)
    channels, spatial = answer.shape[1], answer.ndim == image.ndim + 1
    if not spatial and answer.ndim != 2:
        raise ConfigurationError(
            f"{title} answers an image of shape {tuple(image.shape)} with the shape {tuple(answer.shape[1:])}: this command compares "
            "segmentations, (channels, *spatial), and classifications, (classes,)."
        )
    exclusive = spatial and channels > 1 and not _has_regions(opened)
    names = (
        {}
        if set(settings or ()) - HARMLESS
        else _channel_names(opened, channels, first=0 if exclusive or not spatial else 1)
    )
    if spatial:
        foreground = range(1, channels) if exclusive else range(channels)
        first = 0 if exclusive else 1
        parts = _segmentation_parts(exclusive, channels, {k: names.get(k + first, "") for k in foreground})
    else:
        parts = _classification_parts()
    return OwnAnswers(AgreementEvaluator(**_run_of(opened.evaluator), **parts), names)


def _run_of(evaluator: Any) -> dict[str, Any]:
    """Returns the arguments with which an evaluator runs its network, without handlers, metrics and postprocessing."""
    names = {"prepare_batch", "non_blocking", "inferer", "network", "amp", "amp_kwargs", "to_kwargs"}
    return {
        **{name: getattr(evaluator, name) for name in names},
        "device": evaluator.state.device,
        "val_data_loader": evaluator.data_loader,
    }


def _first_answer(
    evaluator: Any, batches: CaseBatches, title: str, shape: tuple[int, ...], prediction: int | str | None
) -> torch.Tensor:
    """Computes the raw answer to the first scan that loads."""
    name = next(name for name, _, why in map(batches.items().__getitem__, range(len(batches.names))) if not why)
    options: dict[str, Any] = {
        "spacing": None,
        "order": 1,
        "labels": "nearest",
        "frame": "rotated",
        "prediction": prediction,
    }
    answers: list[torch.Tensor] = []

    def keep(answer: torch.Tensor) -> torch.Tensor:
        answers.append(answer)
        return answer

    trial = AgreementEvaluator(**_run_of(evaluator), label_of=keep)
    probe = ViewProbe(trial, trial.inferer, [], in_ball=False, images_in_ball=False, **options)
    try:
        with probe:
            probe.run(batches.one(name), make_views("upright", len(shape) - 1))
    except Exception as error:
        raise ConfigurationError(
            f"the network of {title} cannot take {name}, which its preprocessing makes an image of shape {shape} ({reason(error)}): give a "
            "scan with the channels and axes that the bundle is made for."
        ) from error
    return answers[0]


def _has_regions(opened: BundleEvaluator) -> bool:
    """Whether channels are regions that can overlap: the bundle's postprocessing has a threshold and no argmax."""
    parts = [each for part in opened.parser.ref_resolver.resolved_content.values() for each in transforms_in(part)]
    discrete = [part for part in parts if isinstance(part, AsDiscreted)]
    return any(any(part.threshold) for part in discrete) and not any(any(part.argmax) for part in discrete)


def _channel_names(opened: BundleEvaluator, channels: int, first: int) -> dict[int, str]:
    """Reads names of the classes from the bundle's metadata if they describe as many channels as the network has; ``first`` is the class of
    the first channel."""
    meta: Any = opened.parser.get("_meta_", {}) or {}
    for key in ("network_data_format", "outputs", CommonKeys.PRED, "channel_def"):
        meta = meta.get(key) if isinstance(meta, Mapping) else None
    if not isinstance(meta, Mapping) or sorted(meta) != sorted(map(str, range(channels))):
        return {}
    return {int(key) + first: str(name) for key, name in meta.items()}


def _metric(metric_fn: Any, transform: Callable[..., Any] | None = None) -> IgniteMetricHandler:
    return IgniteMetricHandler(metric_fn=metric_fn, output_transform=transform or from_engine(BOTH), save_details=False)


def _one_channel(channel: int, output: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    predictions, labels = from_engine(BOTH)(output)
    return [each[channel : channel + 1] for each in predictions], [each[channel : channel + 1] for each in labels]


def _regions(answer: torch.Tensor) -> torch.Tensor:
    return is_on(answer).to(answer.dtype)


def _largest(answer: torch.Tensor) -> torch.Tensor:
    return answer.argmax(1, keepdim=True).to(answer.dtype)


def _segmentation_parts(exclusive: bool, channels: int, foreground: Mapping[int, str]) -> dict[str, Any]:
    """Makes label, postprocessing and metrics; ``foreground`` has the channels that are scored, with their names."""
    discrete: Any = Lambdad(CommonKeys.PRED, _regions)
    if exclusive:
        discrete = AsDiscreted(keys=BOTH, argmax=[True, False], to_onehot=channels)
    # a class in neither answer counts as agreement, a class in only one answer as full disagreement
    dice = partial(DiceMetric, include_background=True, ignore_empty=False)
    metrics: dict[str, Any] = {}
    for channel, name in foreground.items() if len(foreground) > 1 else ():
        words = re.sub(r"\W+", "_", name).strip("_").lower() or f"class_{channel if exclusive else channel + 1}"
        words = f"dice_{words}"
        metrics[words if words not in metrics else f"{words}_{channel}"] = _metric(
            dice(), partial(_one_channel, channel)
        )
    return {
        "label_of": _largest if exclusive else _regions,
        "postprocessing": discrete,
        "key_val_metric": {"dice": _metric(dice(include_background=not exclusive))},
        "additional_metrics": {**metrics, CHANGED_VOXELS: _metric(ChangedVoxels())},
    }


def _classification_parts() -> dict[str, Any]:
    def probabilities(answer: torch.Tensor) -> torch.Tensor:
        # for a single case, as MONAI splits batches
        return class_probabilities(answer[None])[0]

    return {
        "label_of": class_probabilities,
        "postprocessing": Lambdad(CommonKeys.PRED, probabilities),
        "key_val_metric": {CHANGED_PROBABILITY: _metric(ChangedProbability())},
        "additional_metrics": {"same_class": _metric(SameClass())},
    }


def say_agreement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Summarises the rows of a report's table in one sentence for each network.

    Example:
        >>> row = {"network": "net", "metric": "dice", "family": "turns", "mean": 0.9, "worst": 0.75, "worst_view": "90 degrees"}
        >>> print(say_agreement([row]))
        net, its dice with its own upright answer: 0.9000 about the axes (worst 0.7500, 90 degrees).
    """
    places = {"group": "on the grid", "turns": "about the axes", "random": "at random"}
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network and row["metric"] != ERROR and row["family"] in places]
        key = next((row["metric"] for row in own), None)
        parts = [
            f"{format_cell(row['mean'])} {places[row['family']]} (worst {format_cell(row['worst'])}, {row['worst_view']})"
            for row in own
            if row["metric"] == key
        ]
        if key is not None:
            lines.append(f"{network}, its {key.replace('_', ' ')} with its own upright answer: {', '.join(parts)}.")
    return "\n".join(lines)
