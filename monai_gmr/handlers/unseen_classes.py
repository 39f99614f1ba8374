"""Warning about classes that occur in no label of a training or validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from monai.utils import CommonKeys, optional_import

from monai_gmr.annotations import checked_arguments
from monai_gmr.transforms.case_checks import describe_runs
from monai_gmr.utils import warn

Events, _ = optional_import("ignite.engine", name="Events")
if TYPE_CHECKING:
    from monai.engines import Workflow


class _SeenClasses:
    """Collects the classes in the labels of an engine's first epoch, then warns about missing ones."""

    def __init__(self, engine: Workflow, num_classes: int, sentence: str) -> None:
        self.unseen, self.sentence, self.is_done = set(range(num_classes)), sentence, False
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._look)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._warn)

    def _look(self, engine: Workflow) -> None:
        if self.unseen and not self.is_done:
            parts = engine.state.batch
            for part in parts if isinstance(parts, (list, tuple)) else [parts]:
                label = torch.as_tensor(part[CommonKeys.LABEL]).as_subclass(torch.Tensor)
                self.unseen -= {index for index in self.unseen if bool((label == index).any())}

    def _warn(self) -> None:
        if self.is_done:
            return
        self.is_done, each, rank = True, [self.unseen], 0
        if dist.is_available() and dist.is_initialized():
            each, rank = [set() for _ in range(dist.get_world_size())], dist.get_rank()
            dist.all_gather_object(each, self.unseen)
        unseen = sorted(set.intersection(*each))
        if unseen and rank == 0:
            warn(self.sentence.format(classes=describe_runs([(index, index) for index in unseen])))


class WarnOfUnseenClasses:
    """Handler that warns, once, about classes missing from all labels of a training's first epoch, or of its first validation.

    Labels hold class indices, as :class:`~monai_gmr.transforms.LoadCased` reads them. Training labels can be patches, in which a rare class
    can be missing by chance.

    Args:
        num_classes: number of classes, including the background.
        validator: evaluator of the training, whose labels are also checked.
    """

    @checked_arguments
    def __init__(self, num_classes: int, validator: Any = None) -> None:
        self.num_classes, self.validator = num_classes, validator

    def attach(self, engine: Workflow) -> None:
        """Registers with a trainer, and with the validator if there is one."""
        _SeenClasses(
            engine,
            self.num_classes,
            "no label of this training epoch holds the values {classes}, which are classes of the network: if no training image has them, "
            "add images that do, or give only the existing classes by --out_channels and --label_values.",
        )
        if self.validator is not None:
            _SeenClasses(
                self.validator,
                self.num_classes,
                "no label of the validation holds the values {classes}, which are classes of the network: the score ignores them, "
                "and is 0 if all labels are background.",
            )
