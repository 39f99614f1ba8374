"""Transforms that rotate and mirror images by a given or random symmetry of the voxel grid: exact, invertible, lazy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_obj import get_track_meta
from monai.data.meta_tensor import MetaTensor
from monai.transforms import InvertibleTransform, LazyTransform, RandomizableTransform, Rotate90
from monai.utils import TraceKeys, convert_to_tensor, ensure_tuple

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import check_number
from monai_gmr.symmetry import grid_element, is_mirror
from monai_gmr.symmetry.group_names import Element
from monai_gmr.symmetry.group_structure import GroupOrElements, group_elements
from monai_gmr.symmetry.mirrored_labels import LabelPairs, LabelPairsOfKeys, check_label_pairs, mirror_labels
from monai_gmr.transforms.functional import DictionaryTransform, image_shape, transform_by_element
from monai_gmr.utils import ConfigurationError


class GridSymmetry(InvertibleTransform, LazyTransform):
    """Rotate or mirror an image by one symmetry of the voxel grid: quarter turns, reflections and their products.

    2D images have 8 of them (D4), 3D images 48 (Oh). Voxels are moved, never interpolated; the result is a copy. The affine is updated so
    that every voxel keeps its world position, as in MONAI's ``Flip`` and ``Rotate90``. An element that exchanges two axes also exchanges
    their sizes and spacings. In a lazy chain the transform keeps the interpolation and padding mode of the previous one.

    Args:
        element: index into :func:`~monai_gmr.symmetry.point_group` (0 is the identity); name such as "4+ [001]", "m [100]" or "-y,x,z"
            (:func:`~monai_gmr.symmetry.element_name`); or signed permutation matrix of shape ``(d, d)``. Axes are array axes.
        lazy: whether to execute lazily (MONAI's lazy resampling), which gives float32 and, for 2D images, an affine of shape (3, 3).
        mirrored_labels: for a label map, pairs of values to exchange in mirror images, such as a left and a right kidney, ``[(1, 2)]``; for
            an image of several channels, which is taken as one-hot labels, pairs of channels.

    Raises:
        ConfigurationError: if the images have no such element, ``mirrored_labels`` are not pairs, or one-hot labels have too few channels.

    Example:
        >>> image = MetaTensor(torch.arange(6.0).reshape(1, 2, 3), affine=torch.eye(4))
        >>> rotated = GridSymmetry("4+")(image)
        >>> rotated[0].tolist()
        [[2.0, 5.0], [1.0, 4.0], [0.0, 3.0]]
        >>> bool((GridSymmetry("4+")(rotated) == GridSymmetry("2")(image)).all())
        True

    Source:
        the signatures and the tracing are those of ``monai.transforms.Rotate90``.
    """

    backend = Rotate90.backend

    @checked_arguments
    def __init__(self, element: Element, lazy: bool = False, mirrored_labels: LabelPairs = ()) -> None:
        LazyTransform.__init__(self, lazy=bool(lazy))
        self.mirrored_labels = check_label_pairs(mirrored_labels)
        try:
            grid_element(element, 2)
        except ConfigurationError:
            # raise the error for 3D, which says more; a matrix of two axes is already valid
            grid_element(element, 3)
        self.element = element

    def __call__(self, img: torch.Tensor, lazy: bool | None = None) -> torch.Tensor:
        """The image ``(C, *spatial)``, 2D or 3D, transformed, of the same dtype; ``lazy`` overrides the setting for this call."""
        img = convert_to_tensor(img, track_meta=get_track_meta())
        lazy_ = (self.lazy if lazy is None else lazy) and isinstance(img, MetaTensor)
        return self._transformed(img, grid_element(self.element, len(image_shape(img))), lazy_)

    def _transformed(self, img: torch.Tensor, element: np.ndarray, lazy: bool) -> torch.Tensor:
        moved = transform_by_element(img, element, lazy=lazy, transform_info=self.get_transform_info())
        if not self.mirrored_labels or not is_mirror(element):
            return moved
        return mirror_labels(moved, self.mirrored_labels, axis=0)

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """The image transformed back, exactly."""
        element = np.array(self.pop_transform(data)[TraceKeys.EXTRA_INFO]["element"])
        inverse = GridSymmetry(element.T, mirrored_labels=self.mirrored_labels)
        with inverse.trace_transform(False):
            return inverse(data)


class GridSymmetryd(DictionaryTransform):
    """Dictionary form of :class:`GridSymmetry`: all keys, ``(C, *spatial)``, are transformed by the same element; ``mirrored_labels`` holds
    the pairs of each key that is a label map, ``{"label": [(1, 2)]}``.

    Example:
        >>> data = {"image": torch.rand(1, 4, 5, 6), "label": torch.ones(1, 4, 5, 6)}
        >>> {key: tuple(item.shape) for key, item in GridSymmetryd(["image", "label"], "4+ [001]")(data).items()}
        {'image': (1, 5, 4, 6), 'label': (1, 5, 4, 6)}
    """

    backend = GridSymmetry.backend

    @checked_arguments
    def __init__(
        self,
        keys: KeysCollection,
        element: Element,
        allow_missing_keys: bool = False,
        lazy: bool = False,
        mirrored_labels: LabelPairsOfKeys = None,
    ) -> None:
        pairs = _pairs_of_keys(keys, mirrored_labels)
        super().__init__(keys, [GridSymmetry(element, lazy, each) for each in pairs], allow_missing_keys, lazy)


GridSymmetryD = GridSymmetryDict = GridSymmetryd


def _pairs_of_keys(keys: KeysCollection, mirrored_labels: LabelPairsOfKeys) -> list[LabelPairs]:
    """The pairs of labels of each key."""
    given = {} if mirrored_labels is None else mirrored_labels
    names = ensure_tuple(keys)
    if not isinstance(given, Mapping) or not set(given) <= set(names):
        raise ConfigurationError(
            f"mirrored_labels={given!r} is impossible: give the pairs of each key that is a label map, of the keys {list(names)}, such as "
            f"{{{names[-1]!r}: [[1, 2]]}}."
        )
    return [given.get(key, ()) for key in names]


class RandGridSymmetry(RandomizableTransform, GridSymmetry):
    """With a probability, rotate or mirror an image by a random symmetry of the voxel grid.

    Every element of the group, the identity included, is equally likely. Groups that exchange axes also exchange their sizes and spacings:
    if patches are not cubes or spacing differs between axes, use a group that does not exchange them, such as "mmm" (all mirrors along the
    axes) or, for thick slices, "4/mmm" (with ``axis`` the thick direction).

    Args:
        prob: probability of drawing an element.
        group: name of a group (:func:`~monai_gmr.symmetry.named_group`): "all" (D4 in 2D, Oh in 3D), "oh", "432" (rotations only), "4/mmm",
            "mmm", "m", "p4", ...; a pair of it and an axis, ("4/mmm", "x"); a :class:`~monai_gmr.symmetry.PointGroup`; or a list of
            elements to draw from, as in :class:`GridSymmetry`.
        axis: array axis (0, 1, 2 or "x", "y", "z") of a named group's main direction; default: the last in 3D, the first in 2D.
        lazy: whether to execute lazily.
        mirrored_labels: as in :class:`GridSymmetry`.

    Raises:
        ConfigurationError: if there is no such group, element or probability.

    Example:
        >>> mirror = RandGridSymmetry(prob=1.0, group="m", axis="y").set_random_state(0)
        >>> sorted({tuple(mirror(torch.tensor([[[0.0, 1.0]]])).flatten().tolist()) for _ in range(20)})
        [(0.0, 1.0), (1.0, 0.0)]

    Source:
        the signatures are those of ``monai.transforms.RandRotate90``.
    """

    @checked_arguments
    def __init__(
        self,
        prob: float = 0.1,
        group: GroupOrElements = "all",
        axis: int | str | None = None,
        lazy: bool = False,
        mirrored_labels: LabelPairs = (),
    ) -> None:
        check_number("prob", prob, 0, 1)
        try:
            elements = group_elements(group, 2, axis)
        except ConfigurationError:
            elements = group_elements(group, 3, axis)
        if not len(elements):
            raise ConfigurationError("group=[] is a set of size zero: give a name, such as 'all', or elements.")
        RandomizableTransform.__init__(self, prob)
        LazyTransform.__init__(self, lazy=bool(lazy))
        self.group, self.axis = group, axis
        self.mirrored_labels = check_label_pairs(mirrored_labels)
        self._element: np.ndarray | None = None

    def randomize(self, data: Any | None = None) -> None:
        """Draws whether to transform, and by which element, for an image ``data`` of shape ``(C, *spatial)`` in 2D or 3D."""
        RandomizableTransform.randomize(self, None)
        if not self._do_transform:
            return
        if data is None:
            raise ConfigurationError("randomize() cannot choose between 2D and 3D: give it the image (C, *spatial).")
        elements = group_elements(self.group, len(image_shape(data)), self.axis)
        self._element = elements[self.R.randint(len(elements))]

    def __call__(  # type: ignore[override]
        self, img: torch.Tensor, randomize: bool = True, lazy: bool | None = None
    ) -> torch.Tensor:
        """Like :class:`GridSymmetry`; without ``randomize`` the last draw is used again."""
        img = convert_to_tensor(img, track_meta=get_track_meta())
        if randomize:
            self.randomize(img)
        lazy_ = (self.lazy if lazy is None else lazy) and isinstance(img, MetaTensor)
        # the identity if none is drawn, so that the result is a copy and pending operations keep their modes
        drawn = self._element if self._do_transform else 0
        if drawn is None:
            raise ConfigurationError("no element has been drawn yet: call randomize(img), or with randomize=True.")
        return self._transformed(img, grid_element(drawn, len(image_shape(img))), lazy_)


class RandGridSymmetryd(RandomizableTransform, DictionaryTransform):
    """Dictionary form of :class:`RandGridSymmetry`: all keys, of the same number of axes, are transformed by the same random element;
    ``mirrored_labels`` as in :class:`GridSymmetryd`.

    Example:
        >>> image = torch.arange(27.0).reshape(1, 3, 3, 3)
        >>> draw = RandGridSymmetryd(["image", "label"], prob=1.0, group="oh").set_random_state(3)
        >>> drawn = draw({"image": image, "label": image})
        >>> bool((drawn["image"] == drawn["label"]).all())
        True
    """

    backend = GridSymmetry.backend

    @checked_arguments
    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.1,
        group: GroupOrElements = "all",
        axis: int | str | None = None,
        allow_missing_keys: bool = False,
        lazy: bool = False,
        mirrored_labels: LabelPairsOfKeys = None,
    ) -> None:
        pairs = _pairs_of_keys(keys, mirrored_labels)
        transforms = [RandGridSymmetry(prob, group, axis, lazy, each) for each in pairs]
        # the first transform draws an element on every call, so that elements do not depend on the probability
        transforms[0].prob = 1.0
        DictionaryTransform.__init__(self, keys, transforms, allow_missing_keys, lazy)
        RandomizableTransform.__init__(self, prob)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandGridSymmetryd:
        """Seed both draws: whether to transform, and by which element."""
        super().set_random_state(seed, state)
        self.transforms[0].set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """The dictionary with its images transformed alike."""
        d = dict(data)
        self.randomize(None)
        first = next(iter(self.key_iterator(d)), None)
        if first is None:
            return d
        draw = self.transforms[0]
        draw.randomize(convert_to_tensor(d[first], track_meta=get_track_meta()))
        for key, transform in self.key_iterator(d, self.transforms):
            transform._do_transform, transform._element = self._do_transform, draw._element
            d[key] = transform(d[key], randomize=False, lazy=self.lazy if lazy is None else lazy)
        return d


RandGridSymmetryD = RandGridSymmetryDict = RandGridSymmetryd
