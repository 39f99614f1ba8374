"""Allowed values of the bundles' settings, as one table; other values are refused before data are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from monai_gmr.arguments import devices, is_device
from monai_gmr.ops import get_backend
from monai_gmr.transforms.augmentation import AUGMENTATIONS
from monai_gmr.utils import ConfigurationError


class Rule(NamedTuple):
    """A rule for values: ``passes`` takes a value and the number of spatial axes; ``says`` is the rule in words, with ``{dims}`` for the
    number of axes and ``{devices}`` for the devices of this machine."""

    passes: Callable[[Any, int], bool]
    says: str


def _is_number(value: Any, whole: bool = False) -> bool:
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(low: int, high: int | None = None) -> Rule:
    says = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    return Rule(
        lambda value, _: _is_number(value, whole=True) and low <= value <= (value if high is None else high), says
    )


def _number(low: float, high: float = math.inf, above: bool = False) -> Rule:
    says = f"from {low:g} to {high:g}" if high < math.inf else f"{'above' if above else 'of at least'} {low:g}"
    return Rule(
        lambda value, _: _is_number(value) and low <= value <= high and not (above and value == low), f"a number {says}"
    )


def _one_of(*choices: Any) -> Rule:
    return Rule(lambda value, _: value in choices, f"one of {', '.join(map(repr, choices))}")


def _listed(each: Rule, or_one: bool = False, per_axis: bool = False) -> Rule:
    """Makes the rule of a non-empty list; ``or_one``: or a single value; ``per_axis``: with one value per spatial axis."""

    def passes(value: Any, dims: int) -> bool:
        if not isinstance(value, (list, tuple)):
            return or_one and each.passes(value, dims)
        return len(value) == (dims if per_axis else max(1, len(value))) and all(
            each.passes(part, dims) for part in value
        )

    length = " of {dims}, one per axis" if per_axis else ""
    return Rule(passes, f"a list{length}, each {each.says}" + (", or one for all" if or_one else ""))


def _or_none(rule: Rule) -> Rule:
    return Rule(lambda value, dims: value is None or rule.passes(value, dims), f"{rule.says}, or None")


COUNT = SIZE = _whole(1)
SWITCH = Rule(lambda value, _: isinstance(value, bool), "True or False")
TABLE: dict[str, Rule] = {
    "device": Rule(lambda value, _: is_device(value), "a device of this machine, one of {devices}"),
    # the network
    "spatial_dims": _whole(2, 3),
    "in_channels": COUNT,
    "out_channels": COUNT,
    "num_classes": COUNT,
    "features": _listed(COUNT),
    "layers": _listed(COUNT),
    "width": COUNT,
    "stem_stride": COUNT,
    "stem_kernel_size": COUNT,
    "kernel_sizes": _or_none(
        Rule(_listed(_listed(COUNT, True), True).passes, "a whole number of at least 1, or a list of them, one a level")
    ),
    "spacing": _or_none(_listed(_number(0, above=True), per_axis=True)),
    "voxel_size": _or_none(_number(0, above=True)),
    # the data
    "seed": _whole(0, 2**32 - 1),
    "cache_rate": _number(0, 1),
    "num_workers": _whole(0),
    "size": SIZE,
    "spatial_size": _whole(0),
    "margin": _whole(0),
    "label_values": _or_none(_listed(Rule(lambda value, _: _is_number(value, whole=True), "a whole number"))),
    "classes": _or_none(_listed(_whole(0))),
    "cases": _or_none(COUNT),
    # the training
    "epochs": COUNT,
    "val_interval": COUNT,
    "batch_size": COUNT,
    "patch_size": _listed(SIZE, or_one=True, per_axis=True),
    "samples_per_case": COUNT,
    "learning_rate": _number(0, above=True),
    "weight_decay": _number(0),
    "symmetry_strength": _number(0),
    "optimizer_name": _one_of("sgd", "adamw"),
    "select_by": _one_of("auc", "balanced_accuracy", "accuracy"),
    "augmentation": _one_of(*AUGMENTATIONS),
    "convert_weights": _one_of("init", "project", "anneal"),
    "anneal_epochs": COUNT,
    "anneal_strength": _number(0),
    "anneal_power": _number(0),
    "anneal_by": _one_of("layer", "channel"),
    # values that are not positive mean the size of the image
    "roi_size": _or_none(
        _listed(
            _whole(-1)._replace(says="a whole number of voxels, 0 or -1 for the whole axis"), or_one=True, per_axis=True
        )
    ),
    "reduction": _one_of(None, "argmax"),
    # the evaluation
    "angle_step": _number(0, 360),
    "num_group_elements": _or_none(COUNT),
    "num_resamples": _whole(0),
    "worst_cases": _whole(0),
    "views_per_batch": COUNT,
    **dict.fromkeys(("amp", "resume", "tensorboard", "balanced_loss", "grey", "download", "multi_label"), SWITCH),
}


def check_value(name: str, value: Any, spatial_dims: int, option: str = "") -> None:
    """Raises :class:`ConfigurationError` if a setting of :data:`TABLE`, given under the id ``option``, has a value that no run can use."""
    rule, option = TABLE[name], option or name
    if not rule.passes(value, spatial_dims):
        says = rule.says.format(dims=spatial_dims, devices=", ".join(devices()))
        raise ConfigurationError(f"{option}={value!r} cannot be used: give --{option} {says}.")


def check_values(spatial_dims: int | None = None, **settings: Any) -> None:
    """Raises if a setting of :data:`TABLE` has a value that no run can use, or if ``MONAI_GMR_BACKEND`` does not name a backend.

    ``spatial_dims`` is the number of spatial axes of the bundle's network, and the length of some lists.

    Example:
        >>> check_values(3, patch_size=[16, 16])
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: patch_size=[16, 16] cannot be used: give --patch_size a list of 3, one per axis, each ...
    """
    get_backend()
    if spatial_dims is not None:
        settings = {"spatial_dims": spatial_dims, **settings}
    for name, value in settings.items():
        check_value(name, value, spatial_dims or 0)
    check_together(settings)


def check_together(settings: Mapping[str, Any]) -> None:
    """Raises :class:`ConfigurationError` if valid settings cannot be combined."""
    if settings.get("reduction") is not None and settings.get("roi_size", "unknown") is None:
        raise ConfigurationError(
            f"reduction={settings['reduction']!r} reduces windows and there are none: give --roi_size, or leave --reduction out."
        )
    features, dims = settings.get("features"), settings.get("spatial_dims")
    if not isinstance(features, (list, tuple)) or not isinstance(dims, int):
        return
    for name in ("patch_size", "roi_size"):
        size = settings.get(name)
        sides = [size] * dims if isinstance(size, int) else size
        # sides that are not positive are as long as the image
        if isinstance(sides, (list, tuple)) and all(
            isinstance(side, int) and 0 < side <= 2 ** (len(features) - 1) for side in sides
        ):
            raise ConfigurationError(
                f"{name}={size} is too small for the {len(features)} levels of features={list(features)}, which leave one voxel of it: "
                f"give --{name} more than {2 ** (len(features) - 1)} voxels along an axis, or fewer --features."
            )
