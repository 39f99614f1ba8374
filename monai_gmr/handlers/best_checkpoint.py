"""Checkpoint of the best validation score."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
from monai.utils import is_scalar, optional_import

from monai_gmr.annotations import checked_arguments
from monai_gmr.checksums import forget_sum
from monai_gmr.files import replacing
from monai_gmr.networks.description import write_description
from monai_gmr.networks.weights import check_finite

Events, _ = optional_import("ignite.engine", name="Events")
logger = logging.getLogger(__name__)

# part of every sentence about non-finite values without a faulty case; a study reads it as a too large learning rate
SMALLER_RATE = "give a smaller --learning_rate"


def rank() -> int:
    """Returns the rank of this process in a distributed run; 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """Returns the network inside the wrapper of a distributed run."""
    return network.module if isinstance(network, torch.nn.parallel.DistributedDataParallel) else network


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Writes a checkpoint atomically, in the first process of a run; if writing fails, the old file stays."""
    if rank() == 0:
        forget_sum(path)
        # torch.save with a path drops the system's error
        with replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save(checkpoint, file)


def check_network(network: torch.nn.Module, path: Path) -> None:
    """Raises if the weights of a network to save are not finite."""
    what = f"the network of this epoch, which was not saved to {path},"
    check_finite(network, network.state_dict(), what, f"{SMALLER_RATE} or look at the cases")


class BestCheckpoint:
    """Handler that writes the weights with the best key metric, atomically and never from a network with non-finite weights.

    ``monai.handlers.CheckpointSaver`` removes the file before it writes the better one, and keeps a first score of NaN as the best
    forever. This handler ignores a score that is not finite and logs a line.

    Args:
        save_dir: directory of the checkpoint.
        network: network to save, as a ``state_dict`` with a description of the network (:mod:`monai_gmr.networks.description`).
        filename: name of the file.

    Raises:
        ConfigurationError: if the weights are not finite, or the system cannot write the file.
    """

    @checked_arguments
    def __init__(
        self, save_dir: str | Path, network: torch.nn.Module, filename: Annotated[str, "a file name"] = "model.pt"
    ) -> None:
        self.path, self.network = Path(save_dir) / filename, unwrapped(network)
        self._best: tuple[float, int] = (-1, -1)

    def attach(self, engine: Any) -> None:
        """Registers with an evaluator."""
        engine.add_event_handler(Events.STARTED, self._remember)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _remember(self, engine: Any) -> None:
        self._best = engine.state.best_metric, engine.state.best_metric_epoch

    def __call__(self, engine: Any) -> None:
        """Saves the network if its score is the best so far, compared by the evaluator's ``metric_cmp_fn``."""
        state = engine.state
        value = state.metrics.get(state.key_metric_name)
        if is_scalar(value) and not math.isfinite(value):
            logger.warning(
                f"The validation score {state.key_metric_name} is {float(value)}: {self.path.name} stays as it is."
            )
            # MONAI takes any first score as the best, and infinity as better than all
            state.best_metric, state.best_metric_epoch = self._best
            return
        check_network(self.network, self.path)
        if (state.best_metric, state.best_metric_epoch) != self._best:
            write_checkpoint(write_description(self.network.state_dict(), self.network), self.path)
