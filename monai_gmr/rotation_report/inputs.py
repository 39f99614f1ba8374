"""What a rotation report is made of: evaluators by name, and whether their cases are the same images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from monai.engines import Evaluator
from monai.utils import CommonKeys

from monai_gmr.arguments import describe
from monai_gmr.bundle.case_batches import CaseBatch
from monai_gmr.rotation_report.probe import answer_marks
from monai_gmr.rotation_report.records import IMAGE, ViewRecords
from monai_gmr.utils import ConfigurationError

# of a case without a file and without a name: its place in the dataset says nothing about its image
ONLY_NUMBERED = re.compile(r"case \d+")


def named_evaluators(evaluator: Any, name: str) -> dict[str, Any]:
    """Name of each network to its evaluator, of one evaluator or a mapping of them; raises ``ConfigurationError`` for anything else."""
    by_name = isinstance(evaluator, Mapping)
    # a bundle names its network after its setting conv, which may be a list
    evaluators = {str(title): one for title, one in (evaluator.items() if by_name else [(name, evaluator)])}
    if not evaluators:
        raise ConfigurationError("there is no evaluator: give one, or a mapping of names to evaluators.")
    for title, one in evaluators.items():
        if not isinstance(one, Evaluator):
            words = describe(one) if one is None or isinstance(one, str) else f"a {type(one).__name__}"
            place = f"evaluator[{title!r}]" if by_name else "evaluator"
            raise ConfigurationError(
                f"{place} is {words} and no evaluator: give a monai.engines.SupervisedEvaluator, or several in a dictionary by name, as in "
                "{'first': evaluator, 'second': other}."
            )
    return evaluators


def image_marks(batch: CaseBatch) -> np.ndarray | None:
    """Two numbers by which each image of a batch is recognised, ``(batch, 2)``; ``None`` where it has no image."""
    image = batch.batch.get(CommonKeys.IMAGE) if isinstance(batch.batch, Mapping) else None
    if not isinstance(image, torch.Tensor) or len(image) != len(batch.names):
        return None
    return answer_marks(image.detach().as_subclass(torch.Tensor))


def why_another_image(case: str, marks: np.ndarray | None, others: Mapping[str, ViewRecords], view: str) -> str:
    """Why a case, whose image has these marks, is not the one that other networks have under its name; empty where it is, or nothing
    is known. ``view`` is the name of the upright one.

    Cases that are named, by their file or their item's ``"name"``, are the same ones however each network prepares them.
    """
    if marks is None or not ONLY_NUMBERED.fullmatch(case):
        return ""
    for title, records in others.items():
        kept = records.one(IMAGE, view, case)
        if kept is not None and not np.allclose(kept, marks, rtol=1e-3, atol=1e-3):
            return (
                f"its image is not that of {title}: give all networks the same images in one order, or each item of the datasets a "
                "'name' by which they are paired."
            )
    return ""


def other_images(
    records: ViewRecords, cases: Iterable[str], others: Mapping[str, ViewRecords], view: str
) -> dict[str, str]:
    """Recorded cases whose images are not those that other networks have under their names, and why."""
    found = {case: why_another_image(case, records.one(IMAGE, view, case), others, view) for case in cases}
    return {case: why for case, why in found.items() if why}


def same_cases(
    compared: Mapping[str, ViewRecords], others: Mapping[str, ViewRecords], view: str
) -> list[tuple[str, ViewRecords, list[str]]]:
    """Name, records and cases of earlier reports, without the cases whose images are not those of this report, which are printed."""
    rows = []
    for title, records in compared.items():
        different = other_images(records, records.cases, others, view)
        for case, why in different.items():
            print(f"{title}: {case} is left out: {why}")
        rows.append((title, records, [case for case in records.cases if case not in different]))
    return rows
