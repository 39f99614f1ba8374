"""The cases of a loader one batch after the other, those that cannot be loaded left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from monai.data import DataLoader, MetaTensor
from monai.utils import CommonKeys
from torch.utils.data import Dataset

from monai_gmr.engines.command_line import reason
from monai_gmr.utils import ConfigurationError


class CaseBatch(NamedTuple):
    """A batch as the loader gives it: ``names`` of its cases and the ``batch``; ``failures``, name of a case that did not load to
    the reason."""

    names: list[str]
    batch: Any
    failures: dict[str, str]


def case_name(dataset: Any, index: int) -> str:
    """The file name of a case's image where the dataset's list tells it, else its number.

    Example:
        >>> from monai.data import Dataset
        >>> [case_name(Dataset([{"image": "/data/a.nii.gz"}, {"image": 3}]), i) for i in range(2)]
        ['a.nii.gz', 'case 1']
    """
    try:
        image = dataset.data[index][CommonKeys.IMAGE]
        image = image[0] if isinstance(image, (list, tuple)) else image
    except (AttributeError, KeyError, IndexError, TypeError):
        return f"case {index}"
    return Path(image).name if isinstance(image, (str, Path)) else f"case {index}"


class _Guarded(Dataset):
    """Items of a dataset with their index, and the reason where one cannot be made."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[int, Any, str]:
        index = self.indices[index]
        try:
            return index, self.dataset[index], ""
        except Exception as error:
            return index, None, reason(error)


def _collate(
    collate: Callable[[list], Any], items: list[tuple[int, Any, str]]
) -> tuple[list[int], Any, dict[int, str]]:
    failures = {index: why for index, _, why in items if why}
    indices = [index for index, _, why in items if not why]
    if not indices:
        return [], None, failures
    try:
        return indices, collate([item for _, item, why in items if not why]), failures
    except Exception as error:
        why = (
            f"a batch of these {len(indices)} cannot be made ({reason(error)}): set the batch size of the loader to 1."
        )
        return [], None, {**failures, **dict.fromkeys(indices, why)}


class CaseBatches:
    """The cases of a loader, each under a name of its own.

    Args:
        loader: ``torch.utils.data.DataLoader`` or MONAI's, over a dataset with a length. It is not iterated itself: its dataset, batch
            size, collation and workers are used, in the dataset's order.
        cases: the first so many only; default all.

    Raises:
        ConfigurationError: when there is no such dataset, or no case in it.

    Example:
        >>> from monai.data import DataLoader, Dataset
        >>> batches = CaseBatches(DataLoader(Dataset([{"image": 1}, {"image": 2}]), batch_size=2))
        >>> [batch.names for batch in batches.load(["case 1"])]
        [['case 1']]
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
        # two images of one name in two folders are two cases
        self.names = [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)]

    def load(self, names: Sequence[str]) -> Iterator[CaseBatch]:
        """The batches of these cases, loaded as they are asked for."""
        position = {name: index for index, name in enumerate(self.names)}
        loader = DataLoader(
            _Guarded(self.dataset, [position[name] for name in names]),
            batch_size=self.loader.batch_size or 1,
            num_workers=self.loader.num_workers,
            collate_fn=partial(_collate, self.loader.collate_fn),
        )
        for indices, batch, failures in loader:
            yield CaseBatch(
                [self.names[index] for index in indices],
                batch,
                {self.names[index]: why for index, why in failures.items()},
            )

    def first_image(self) -> Any:
        """The image of the first case that loads, to learn its axes and spacing; ``None`` when none does."""
        for index in range(len(self.names)):
            try:
                item = self.dataset[index]
            except Exception:
                continue
            if isinstance(item, dict) and CommonKeys.IMAGE in item:
                return item[CommonKeys.IMAGE]
            return None
        return None


def anisotropic_spacing(image: Any) -> list[float] | None:
    """The voxel size of an image in millimetres where its axes differ by more than 5 %, else ``None``.

    Example:
        >>> import torch
        >>> affine = torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0]))
        >>> anisotropic_spacing(MetaTensor(torch.zeros(1, 4, 4, 4), affine=affine))
        [1.0, 1.0, 3.0]
    """
    if not isinstance(image, MetaTensor):
        return None
    spacing = [round(float(size), 4) for size in image.pixdim][: image.ndim - 1]
    return spacing if min(spacing) > 0 and max(spacing) > 1.05 * min(spacing) else None
