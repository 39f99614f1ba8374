"""Schedule that makes an annealed network equivariant during training."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from monai.utils import optional_import

from monai_gmr.annotations import checked_arguments
from monai_gmr.arguments import check_count
from monai_gmr.handlers.best_checkpoint import unwrapped
from monai_gmr.networks.annealing import RestPenalty, rest_sizes
from monai_gmr.utils import ConfigurationError

Events, _ = optional_import("ignite.engine", name="Events")
if TYPE_CHECKING:
    from monai.engines import Workflow

logger = logging.getLogger(__name__)


class AnnealRests:
    """Handler that drives the rests of an annealed network to zero with a penalty that rises over its first epochs.

    The network comes from ``convert_to_gmr(net, weights="anneal")``; the penalty is a :class:`~monai_gmr.networks.annealing.RestPenalty`.
    After the last iteration of ``epochs`` every rest is exactly zero, and the state dict is that of an ordinary converted network, which
    trains for the remaining epochs. The penalty depends only on the iteration number, so an interrupted training resumes unchanged.

    Args:
        network: the network to train.
        optimizer: its optimizer, created after the conversion.
        epochs: number of epochs over which the penalty rises, at most the epochs of the training.
        strength, power, by: see the penalty.
        validator: evaluator that keeps a best score, which is reset at the first network without rests, so that the best checkpoint is
            an equivariant network.

    Raises:
        ConfigurationError: if the network has no rests, the optimiser does not hold them, a number is impossible, or the training ends
            before the schedule.

    Example:
        >>> from monai_gmr.networks import convert_to_gmr
        >>> net = convert_to_gmr(torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3)), weights="anneal")
        >>> handler = AnnealRests(net, torch.optim.SGD(net.parameters(), lr=1e-2), epochs=30)
    """

    @checked_arguments
    def __init__(
        self,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        strength: float = 1.0,
        power: float = 2.0,
        by: str = "layer",
        validator: Any = None,
    ) -> None:
        check_count("epochs", epochs)
        self.network, self.validator = unwrapped(network), validator
        self.epochs, self.penalty = epochs, RestPenalty(self.network, optimizer, strength, power, by)

    def attach(self, engine: Workflow) -> None:
        """Registers with a trainer."""
        engine.add_event_handler(Events.STARTED, self._check)
        engine.add_event_handler(Events.ITERATION_STARTED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._finish)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)

    def _check(self, engine: Workflow) -> None:
        epochs = engine.state.max_epochs
        if epochs is not None and epochs < self.epochs:
            raise ConfigurationError(
                f"the penalty on the rests rises over {self.epochs} epochs and the training ends after {epochs}: give at most as many."
            )

    def __call__(self, engine: Workflow) -> None:
        """Sets the fraction of the schedule for the starting iteration."""
        self.penalty.fraction = min(1.0, engine.state.iteration / (self.epochs * engine.state.epoch_length))

    def _finish(self, engine: Workflow) -> None:
        if engine.state.iteration != self.epochs * engine.state.epoch_length:
            return
        # also if a GradScaler has skipped the step
        self.penalty.finish()
        if self.validator is not None:
            state = self.validator.state
            state.best_metric, state.best_metric_epoch = -1, -1

    def _log(self, engine: Workflow) -> None:
        if engine.state.epoch <= self.epochs:
            sizes = rest_sizes(self.network)
            held = [size for size in sizes.values() if size > 0]
            mean = sum(sizes.values()) / len(sizes)
            logger.info(
                f"Epoch {engine.state.epoch}: {len(held)} of {len(sizes)} rests are left, {mean:.2f} of a kernel on average."
            )
