"""Inputs of a rotation report: evaluators by name, and checks that their cases are the same images."""

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

# a case without file and name: its number in the dataset does not identify its image
ONLY_NUMBERED = re.compile(r"case \d+")


def named_evaluators(evaluator: Any, name: str) -> dict[str, Any]:
    """Maps the name of each network to its evaluator, for one evaluator or a mapping of them; raises ``ConfigurationError`` otherwise."""
    by_name = isinstance(evaluator, Mapping)
    # a bundle names its network after its setting conv, which can be a list
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
    """Returns two numbers that identify each image of a batch, ``(batch, 2)``; ``None`` if the batch has no image."""
    image = batch.batch.get(CommonKeys.IMAGE) if isinstance(batch.batch, Mapping) else None
    if not isinstance(image, torch.Tensor) or len(image) != len(batch.names):
        return None
    return answer_marks(image.detach().as_subclass(torch.Tensor))


def why_another_image(case: str, marks: np.ndarray | None, others: Mapping[str, ViewRecords], view: str) -> str:
    """Says why a case, whose image has these marks, differs from the case of other networks with the same name; empty if it is the same or
    unknown. ``view`` is the name of the upright view.

    Cases named by their file or their item's ``"name"`` are the same, however each network prepares them.
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
    """Finds recorded cases whose images differ from those of other networks with the same names; maps each to the reason."""
    found = {case: why_another_image(case, records.one(IMAGE, view, case), others, view) for case in cases}
    return {case: why for case, why in found.items() if why}


def same_cases(
    compared: Mapping[str, ViewRecords], others: Mapping[str, ViewRecords], view: str
) -> list[tuple[str, ViewRecords, list[str]]]:
    """Returns name, records and cases of earlier reports; cases whose images differ from this report's are printed and left out."""
    rows = []
    for title, records in compared.items():
        different = other_images(records, records.cases, others, view)
        for case, why in different.items():
            print(f"{title}: {case} is left out: {why}")
        rows.append((title, records, [case for case in records.cases if case not in different]))
    return rows
