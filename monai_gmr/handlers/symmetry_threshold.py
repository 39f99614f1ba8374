"""Handler for trainings that keep the symmetry of the data: a threshold on symmetry-breaking terms, and a report of the remaining ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Events
from torch import nn
from torch.optim import Optimizer

from monai_gmr.annotations import checked_arguments
from monai_gmr.metrics import broken_symmetry
from monai_gmr.networks.symmetry_penalty import SymmetryThreshold

if TYPE_CHECKING:
    from monai.engines import Workflow


class SymmetryThresholdHandler:
    """Handler that applies a :class:`~monai_gmr.networks.symmetry_penalty.SymmetryThreshold` while a training runs.

    After each epoch it sets terms to zero that are not longer than one step, so the validated and saved network is exactly symmetric where
    possible; place it before the ``ValidationHandler``. At the end it writes ``broken_symmetry.csv`` and ``broken_symmetry.png`` of the
    last weights.

    Args:
        network: a net with layers that keep only a subgroup.
        optimizer: the trainer's optimizer.
        strength: see the threshold.
        output_dir: folder of table and picture; ``None`` writes neither.

    Raises:
        ConfigurationError: if the net has no such layer.
    """

    @checked_arguments
    def __init__(
        self, network: nn.Module, optimizer: Optimizer, strength: float, output_dir: str | Path | None
    ) -> None:
        self.threshold = SymmetryThreshold(network, optimizer, strength)
        self.network, self.output_dir = network, output_dir

    def attach(self, engine: Workflow) -> None:
        """Registers with a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.settle)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def settle(self, _: Any) -> None:
        """Sets terms to zero that are not longer than a step."""
        self.threshold.settle()

    def finish(self, _: Any) -> None:
        """Removes the threshold and writes the remaining asymmetry."""
        self.threshold.remove()
        if self.output_dir is not None:
            broken_symmetry(self.network).save(self.output_dir)
