"""What each setting of the bundles may be, as one table, so that an impossible value is one sentence before data are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from monai_gmr.ops import get_backend
from monai_gmr.transforms.augmentation import AUGMENTATIONS
from monai_gmr.utils import ConfigurationError


class Rule(NamedTuple):
    """What a setting may be: ``passes`` takes a value and the number of spatial axes, ``says`` is the rule in words, ``{dims}`` in it
    the number of axes."""

    passes: Callable[[Any, int], bool]
    says: str


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def whole(low: int, high: int | None = None) -> Rule:
    """A whole number.

    Example:
        >>> rule = whole(1)
        >>> rule.passes(1, 3), rule.passes(0, 3), rule.passes(1.5, 3), rule.says
        (True, False, False, 'a whole number of at least 1')
    """
    says = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    return Rule(lambda value, _: _is_whole(value) and low <= value and (high is None or value <= high), says)


def number(low: float, high: float = math.inf, above: bool = False) -> Rule:
    """A finite number; ``above``: larger than ``low``.

    Example:
        >>> number(0, above=True).passes(0.0, 3), number(0, 1).says
        (False, 'a number from 0 to 1')
    """
    says = (
        f"a number {'above' if above else 'of at least'} {low:g}"
        if high == math.inf
        else f"a number from {low:g} to {high:g}"
    )
    return Rule(lambda value, _: _is_number(value) and (low < value if above else low <= value) and value <= high, says)


def one_of(*choices: Any) -> Rule:
    """One of some values.

    Example:
        >>> one_of("sgd", "adamw").says
        "one of 'sgd', 'adamw'"
    """
    return Rule(lambda value, _: value in choices, f"one of {', '.join(map(repr, choices))}")


def per_axis(each: Rule, or_one: bool = False) -> Rule:
    """A list of one value an axis; ``or_one``: or one value for all.

    Example:
        >>> per_axis(whole(1)).passes([16, 16], 3), per_axis(whole(1)).passes([16, 16], 2)
        (False, True)
    """

    def passes(value: Any, dims: int) -> bool:
        if isinstance(value, (list, tuple)):
            return len(value) == dims and all(each.passes(part, dims) for part in value)
        return or_one and each.passes(value, dims)

    return Rule(passes, f"a list of {{dims}}, one an axis, each {each.says}" + (", or one for all" if or_one else ""))


def listed(each: Rule, or_one: bool = False) -> Rule:
    """A list that is not empty; ``or_one``: or one value.

    Example:
        >>> listed(whole(1)).passes([4, 0], 3), listed(whole(1), or_one=True).passes(5, 3)
        (False, True)
    """

    def passes(value: Any, dims: int) -> bool:
        if isinstance(value, (list, tuple)):
            return len(value) > 0 and all(each.passes(part, dims) for part in value)
        return or_one and each.passes(value, dims)

    return Rule(passes, f"a list, each {each.says}" + (", or one for all" if or_one else ""))


def or_none(rule: Rule) -> Rule:
    """A rule, or no value.

    Example:
        >>> or_none(whole(1)).passes(None, 3)
        True
    """
    return Rule(lambda value, dims: value is None or rule.passes(value, dims), f"{rule.says}, or None")


def _is_device(value: Any, _: int) -> bool:
    try:
        device = torch.device(value)
        return device.type in ("cpu", "meta") or torch.empty(0, device=device).device.type == device.type
    except (RuntimeError, TypeError, AssertionError):
        return False


COUNT = SIZE = whole(1)
SWITCH = Rule(lambda value, _: isinstance(value, bool), "True or False")
TABLE: dict[str, Rule] = {
    "device": Rule(_is_device, "a device of this machine, such as cpu or cuda:0"),
    # the network
    "spatial_dims": whole(2, 3),
    "in_channels": COUNT,
    "out_channels": COUNT,
    "num_classes": COUNT,
    "features": listed(COUNT),
    "layers": listed(COUNT),
    "width": COUNT,
    "stem_stride": COUNT,
    "stem_kernel_size": COUNT,
    "kernel_sizes": or_none(
        Rule(listed(listed(COUNT, True), True).passes, "a whole number of at least 1, or a list of them, one a level")
    ),
    "spacing": or_none(per_axis(number(0, above=True))),
    # the data
    "seed": whole(0, 2**32 - 1),
    "cache_rate": number(0, 1),
    "num_workers": whole(0),
    "size": SIZE,
    "spatial_size": whole(0),
    "classes": or_none(listed(whole(0))),
    "cases": or_none(COUNT),
    # the training
    "epochs": COUNT,
    "val_interval": COUNT,
    "batch_size": COUNT,
    "patch_size": per_axis(SIZE, or_one=True),
    "samples_per_case": COUNT,
    "learning_rate": number(0, above=True),
    "weight_decay": number(0),
    "optimizer_name": one_of("sgd", "adamw"),
    "select_by": one_of("auc", "balanced_accuracy"),
    "augmentation": one_of(*AUGMENTATIONS),
    # what is not positive is the size of the image
    "roi_size": or_none(per_axis(whole(-1), or_one=True)),
    # the evaluation
    "angle_step": number(0, 360),
    "num_group_elements": or_none(COUNT),
    "num_resamples": whole(0),
    "worst_cases": whole(0),
    "views_per_batch": COUNT,
    "amp": SWITCH,
    "resume": SWITCH,
    "tensorboard": SWITCH,
    "balanced_loss": SWITCH,
    "grey": SWITCH,
    "download": SWITCH,
}


def check_value(name: str, value: Any, spatial_dims: int, option: str = "") -> None:
    """Raise when a value breaks the rule of a setting.

    Args:
        name: the setting, one of :data:`TABLE`.
        value: what was given for it.
        spatial_dims: spatial axes of the bundle's network.
        option: the id that the user gave it by, where that is another one.

    Raises:
        ConfigurationError: when no run can have this value.

    Example:
        >>> check_value("learning_rate", -1, 3, "optimizer::lr")
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: optimizer::lr=-1 cannot be used: give --optimizer::lr a number above 0.
    """
    rule, option = TABLE[name], option or name
    if not rule.passes(value, spatial_dims):
        says = rule.says.format(dims=spatial_dims)
        raise ConfigurationError(f"{option}={value!r} cannot be used: give --{option} {says}.")


def check_values(spatial_dims: int | None = None, **settings: Any) -> None:
    """Raise when a setting of a bundle has a value that no run can have, or ``MONAI_GMR_BACKEND`` names no backend.

    Args:
        spatial_dims: spatial axes of the bundle's network, to which the length of some settings is tied; not needed for others.
        settings: names in :data:`TABLE` to values.

    Raises:
        ConfigurationError: for the first value that is out of its range.

    Example:
        >>> check_values(3, epochs=2, patch_size=[16, 16, 16])
        >>> check_values(3, patch_size=[16, 16])
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: patch_size=[16, 16] cannot be used: give --patch_size a list of 3, one an axis, each ...
    """
    get_backend()
    if spatial_dims is not None:
        settings = {"spatial_dims": spatial_dims, **settings}
    for name, value in settings.items():
        check_value(name, value, spatial_dims or 0)
