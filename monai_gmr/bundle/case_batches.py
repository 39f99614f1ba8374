"""Batches of a loader's cases; cases that fail are left out and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.data import DataLoader, MetaTensor
from monai.utils import CommonKeys
from torch.utils.data import Dataset

from monai_gmr.bundle.headers import describe_resampling
from monai_gmr.transforms import check_finite
from monai_gmr.utils import ConfigurationError, WriteError, reason

# name, item, and the reason if there is no item
NamedItem = tuple[str, Any, str]


class CaseBatch(NamedTuple):
    """``names`` of cases, and the ``batch`` that the loader makes of them."""

    names: list[str]
    batch: Any


def case_name(dataset: Any, index: int) -> str:
    """Names a case by the file name of its image or the ``name`` in the dataset's list, else by its number."""
    entries = getattr(dataset, "data", None)
    # the list of an inner dataset names cases without reading items
    while isinstance(entries, Dataset):
        entries = getattr(entries, "data", None)
    try:
        entry = entries[index]  # type: ignore[index]
        image = entry[CommonKeys.IMAGE]
        image = image[0] if isinstance(image, (list, tuple)) else image
        name = Path(image).name if isinstance(image, (str, Path)) else entry.get("name")
    except (AttributeError, KeyError, IndexError, TypeError):
        name = None
    return name if isinstance(name, str) else f"case {index}"


def _check_growth(dataset: Any, index: int) -> None:
    """Raises ``ConfigurationError`` if the dataset's transform resamples the image of a case to too many voxels."""
    try:
        image = dataset.data[index][CommonKeys.IMAGE]
    except (AttributeError, KeyError, IndexError, TypeError):
        return
    if isinstance(image, (str, Path)):
        describe_resampling(image, getattr(dataset, "transform", None))


class _NamedItems(Dataset):
    """Items of a dataset with their name, and the reason if an item cannot be made or its image is not finite."""

    def __init__(self, dataset: Any, indices: Sequence[int], names: Sequence[str]) -> None:
        self.dataset, self.indices, self.names = dataset, indices, names

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> NamedItem:
        index = self.indices[place]
        try:
            _check_growth(self.dataset, index)
            item = self.dataset[index]
            image = item.get(CommonKeys.IMAGE) if isinstance(item, Mapping) else None
            if isinstance(image, torch.Tensor):
                check_finite(image)
            return self.names[index], item, ""
        except Exception as error:
            return self.names[index], None, reason(error)


def _have_one_size(items: list[Any]) -> bool:
    """Checks whether items can be stacked, by the sizes of their tensors; otherwise MONAI's collate_fn prints all voxels."""
    if not all(isinstance(item, dict) for item in items):
        return True
    sizes = [{key: value.shape for key, value in item.items() if isinstance(value, torch.Tensor)} for item in items]
    return all(each == sizes[0] for each in sizes)


def refuse_failures(failures: Mapping[str, str], total: int, what: str) -> None:
    """Raises :class:`ConfigurationError` if any case failed (name to reason), so that the exit status is not 0."""
    if failures:
        name, why = next(iter(failures.items()))
        first = f"the first is {name}" if len(failures) > 1 else name
        raise ConfigurationError(f"{len(failures)} of {total} {what}, {first}: {why}")


class CaseBatches:
    """The cases of a loader over a dataset with a length, each with a unique name; ``cases`` limits them to the first ones.

    The loader is not iterated: only its dataset, batch size, collation and workers are used, in the dataset's order. Raises
    ``ConfigurationError`` if there is no such dataset, or it has no case.

    Example:
        >>> from monai.data import DataLoader, Dataset
        >>> cases = CaseBatches(DataLoader(Dataset([{"image": 1}, {"image": 2}]), batch_size=2))
        >>> [cases.process(items, print) for items in cases.load(["case 1"])]
        CaseBatch(names=['case 1'], batch={'image': tensor([2])})
        [{}]
    """

    def __init__(self, loader: Any, cases: int | None = None) -> None:
        dataset: Any = getattr(loader, "dataset", None)
        try:
            count = len(dataset)
        except TypeError:
            raise ConfigurationError(
                f"the evaluator's data are a {type(loader).__name__} without a dataset of known length: "
                "give it a DataLoader over a Dataset."
            ) from None
        if cases is not None and (isinstance(cases, bool) or not isinstance(cases, int) or cases < 1):
            raise ConfigurationError(f"cases={cases!r} is out of range: give the number of cases, 1 or more.")
        if count == 0:
            raise ConfigurationError("the evaluator's dataset has no case: check its folder and its list.")
        self.loader, self.dataset = loader, dataset
        names = [case_name(dataset, index) for index in range(min(count, cases or count))]
        # images with equal names in two folders are two cases
        self.names = [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)]

    def items(self, names: Sequence[str] | None = None) -> _NamedItems:
        """Returns these cases, by default all, one by one: name, item, and the reason if there is no item."""
        position = {name: index for index, name in enumerate(self.names)}
        chosen = self.names if names is None else names
        return _NamedItems(self.dataset, [position[name] for name in chosen], self.names)

    def load(self, names: Sequence[str] | None = None) -> DataLoader:
        """Loads lists of the items of these cases, by default all, for :meth:`process`."""
        size, workers = self.loader.batch_size or 1, self.loader.num_workers
        return DataLoader(self.items(names), batch_size=size, num_workers=workers, collate_fn=list)

    def one(self, name: str) -> CaseBatch:
        """Returns the batch of a single case; raises ``ConfigurationError`` if it does not load."""
        _, item, why = self.items([name])[0]
        if why:
            raise ConfigurationError(why)
        return CaseBatch([name], self.loader.collate_fn([item]))

    def process(self, items: list[NamedItem], function: Callable[[CaseBatch], None]) -> dict[str, str]:
        """Calls a function with the batch of some items, or with each item separately if that fails or their sizes differ.

        Returns name to reason for items that did not load or made the function fail; a write error is raised. Empties the list of items,
        so that a single case is in memory only once.
        """
        failures = {name: why for name, _, why in items if why}
        loaded = [(name, item) for name, item, why in items if not why]
        items.clear()
        groups = [loaded] if _have_one_size([item for _, item in loaded]) else [[each] for each in loaded]
        for group in filter(None, groups):
            names = [name for name, _ in group]
            try:
                batch = self.loader.collate_fn([item for _, item in group])
                if len(names) == 1:
                    group.clear()
                function(CaseBatch(names, batch))
            except WriteError:
                raise
            except Exception as error:
                if len(names) == 1:
                    failures[names[0]] = reason(error)
                else:
                    # the loop continues with these
                    groups += [[each] for each in group]
        return failures


def usable_image(title: str, batches: CaseBatches) -> Any:
    """Returns the image of the first case that loads; raises :class:`ConfigurationError` if none does, or it is not 2D or 3D."""
    items = batches.items()
    item = next((item for _, item, why in map(items.__getitem__, range(len(items))) if not why), None)
    image = item.get(CommonKeys.IMAGE) if isinstance(item, dict) else None
    if image is None:
        name, _, why = items[0]
        why = f"the first, {name}: {why}" if why else "none has an 'image'"
        raise ConfigurationError(f"none of the {len(batches.names)} cases of {title} can be used; {why}")
    if image.ndim - 1 not in (2, 3):
        raise ConfigurationError(
            f"an image of shape {tuple(image.shape)} cannot be rotated: it must be (channels, *spatial), 2 or 3 axes."
        )
    return image


def anisotropic_spacing(image: Any) -> list[float] | None:
    """Returns the voxel size of an image in millimetres if it differs between axes by more than 5 %, else ``None``.

    Example:
        >>> affine = torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0]))
        >>> anisotropic_spacing(MetaTensor(torch.zeros(1, 4, 4, 4), affine=affine))
        [1.0, 1.0, 3.0]
    """
    if not isinstance(image, MetaTensor):
        return None
    spacing = [round(float(size), 4) for size in image.pixdim][: image.ndim - 1]
    return spacing if min(spacing) > 0 and max(spacing) > 1.05 * min(spacing) else None
