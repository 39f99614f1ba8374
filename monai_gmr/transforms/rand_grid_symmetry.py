"""Rotate and mirror images by a random symmetry of the voxel grid, or of a named subgroup."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_obj import get_track_meta
from monai.data.meta_tensor import MetaTensor
from monai.transforms import InvertibleTransform, LazyTransform, RandomizableTransform
from monai.utils import TraceKeys, convert_to_tensor

from monai_gmr.symmetry import grid_element, named_group
from monai_gmr.transforms.functional import DictionaryTransform, image_shape, transform_by_element
from monai_gmr.transforms.grid_symmetry import Element, GridSymmetry
from monai_gmr.utils import ConfigurationError

Group = str | int | Sequence[Element]


def _elements(group: Group, axis: int | str | None, spatial_dims: int) -> np.ndarray:
    """The matrices to draw from, of shape ``(order, d, d)``."""
    # YAML reads the group 222 as a number
    if isinstance(group, (str, int)):
        return named_group(str(group), spatial_dims, axis)
    if len(group) == 0:
        raise ConfigurationError(
            "group=[] is a set of size zero: give the name of a group, such as 'all', or at least one element."
        )
    return np.stack([grid_element(element, spatial_dims) for element in group])


class RandGridSymmetry(RandomizableTransform, InvertibleTransform, LazyTransform):
    """With a probability, rotate or mirror an image by a random symmetry of the voxel grid.

    Every element of the group, the identity included, is equally likely. Groups that exchange axes exchange their sizes and spacings: where
    patches are no cubes or spacing is not the same along all axes, take a group that does not, such as "mmm" (all mirror images along the
    axes) or, for thick slices, "4/mmm" (``axis`` is that of the thick direction).

    Args:
        prob: probability of drawing an element.
        group: name of a group (:func:`~monai_gmr.symmetry.named_group`): "all" (D4 in 2D, Oh in 3D), "oh", "432" (rotations only), "4/mmm",
            "mmm", "m", "p4", ...; or a list of elements as :class:`GridSymmetry` takes them, to draw from these.
        axis: array axis (0, 1, 2 or "x", "y", "z") of a named group's main direction; default: the last in 3D, the first in 2D.
        lazy: whether to execute lazily.

    Raises:
        ConfigurationError: when there is no such group, element or probability.

    Example:
        >>> mirror = RandGridSymmetry(prob=1.0, group="m", axis="y").set_random_state(0)
        >>> sorted({tuple(mirror(torch.tensor([[[0.0, 1.0]]])).flatten().tolist()) for _ in range(20)})
        [(0.0, 1.0), (1.0, 0.0)]

    Source:
        the signatures and the tracing are those of ``monai.transforms.RandRotate90``.
    """

    backend = GridSymmetry.backend

    def __init__(
        self, prob: float = 0.1, group: Group = "all", axis: int | str | None = None, lazy: bool = False
    ) -> None:
        if not 0 <= prob <= 1:
            raise ConfigurationError(f"prob={prob} is no probability: give a number from 0 to 1.")
        try:
            _elements(group, axis, 2)
        except ConfigurationError:
            _elements(group, axis, 3)
        RandomizableTransform.__init__(self, prob)
        LazyTransform.__init__(self, lazy=lazy)
        self.group, self.axis = group, axis
        self._element: np.ndarray | None = None

    def randomize(self, data: Any | None = None) -> None:
        """Draw whether to transform, and by which element, for an image ``data`` of shape ``(C, *spatial)`` in 2D or 3D."""
        super().randomize(None)
        if not self._do_transform:
            return
        if data is None:
            raise ConfigurationError(
                "randomize() cannot choose between 2D and 3D: give it the image of shape (C, *spatial)."
            )
        elements = _elements(self.group, self.axis, len(image_shape(data)))
        self._element = elements[self.R.randint(len(elements))]

    def __call__(self, img: torch.Tensor, randomize: bool = True, lazy: bool | None = None) -> torch.Tensor:
        """The transformed image of the same dtype, its spatial sizes permuted with the axes.

        Args:
            img: tensor, MetaTensor or array of shape ``(C, *spatial)``, 2D or 3D.
            randomize: whether to draw anew; otherwise the last draw is used again.
            lazy: overrides the setting of the transform for this call.
        """
        img = convert_to_tensor(img, track_meta=get_track_meta())
        if randomize:
            self.randomize(img)
        lazy_ = (self.lazy if lazy is None else lazy) and isinstance(img, MetaTensor)
        if not self._do_transform:
            # as the identity, so that the result is a copy and pending operations keep their modes
            identity = np.eye(len(image_shape(img)), dtype=int)
            return transform_by_element(img, identity, lazy=lazy_, transform_info=self.get_transform_info())
        if self._element is None:
            raise ConfigurationError("no element has been drawn yet: call randomize(img), or with randomize=True.")
        out = GridSymmetry(self._element)(img, lazy=lazy_)
        self.push_transform(out, replace=True, lazy=lazy_)
        return out

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """The image transformed back, exactly."""
        traced = self.pop_transform(data)
        # what was not drawn was traced as the identity itself
        done = traced[TraceKeys.EXTRA_INFO] if traced[TraceKeys.DO_TRANSFORM] else traced
        return GridSymmetry(0).inverse_transform(data, done)


class RandGridSymmetryd(RandomizableTransform, DictionaryTransform):
    """Dictionary form of :class:`RandGridSymmetry`: all keys are transformed by the same random element.

    Args:
        keys: items of shape ``(C, *spatial)`` with the same number of axes, such as image and label.
        prob, group, axis, lazy: as for :class:`RandGridSymmetry`.
        allow_missing_keys: whether items may lack keys.

    Example:
        >>> image = torch.arange(27.0).reshape(1, 3, 3, 3)
        >>> draw = RandGridSymmetryd(["image", "label"], prob=1.0, group="oh").set_random_state(3)
        >>> drawn = draw({"image": image, "label": image})
        >>> bool((drawn["image"] == drawn["label"]).all())
        True
    """

    backend = GridSymmetry.backend

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.1,
        group: Group = "all",
        axis: int | str | None = None,
        allow_missing_keys: bool = False,
        lazy: bool = False,
    ) -> None:
        transform = RandGridSymmetry(prob, group, axis, lazy)
        # it draws an element on every call: the elements then do not depend on the probability
        transform.prob = 1.0
        DictionaryTransform.__init__(self, keys, transform, allow_missing_keys, lazy)
        RandomizableTransform.__init__(self, prob)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandGridSymmetryd:
        """Seed both draws: whether to transform, and by which element."""
        super().set_random_state(seed, state)
        self.transforms[0].set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """The dictionary with its images transformed; ``lazy`` overrides the setting of the transform for this call."""
        d = dict(data)
        self.randomize(None)
        first = next(iter(self.key_iterator(d)), None)
        if first is None:
            return d
        transform = self.transforms[0]
        transform.randomize(convert_to_tensor(d[first], track_meta=get_track_meta()))
        transform._do_transform = self._do_transform
        for key in self.key_iterator(d):
            d[key] = transform(d[key], randomize=False, lazy=self.lazy if lazy is None else lazy)
        return d


RandGridSymmetryD = RandGridSymmetryDict = RandGridSymmetryd
