"""The checkpoint of the best validation score."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.handlers import CheckpointSaver
from monai.utils import is_scalar, optional_import

from monai_gmr.files import replacing
from monai_gmr.networks.weights import check_finite

Events, _ = optional_import("ignite.engine", name="Events")
logger = logging.getLogger(__name__)


def check_modules(save_dict: Mapping[str, Any], name: str | Path) -> None:
    """Raise when a network that is about to be saved has weights that are not finite.

    Args:
        save_dict: what is saved under which name.
        name: the file.

    Raises:
        ConfigurationError: when a weight is not finite.

    Example:
        >>> check_modules({"model": torch.nn.Linear(1, 1)}, "model.pt")
    """
    for saved in save_dict.values():
        if isinstance(saved, torch.nn.Module):
            what = f"the network of this epoch, which was not saved to {name},"
            check_finite(saved, saved.state_dict(), what, "give a smaller --learning_rate or look at the cases")


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint that is whole at any moment.

    Raises:
        ConfigurationError: when the system cannot write it; the file of before stays.

    Example:
        >>> file = getfixture("tmp_path") / "model.pt"
        >>> write_checkpoint({"weight": torch.ones(1)}, file)
        >>> torch.load(file, weights_only=True)
        {'weight': tensor([1.])}
    """
    # torch's own writer of paths keeps what the system said to itself
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(checkpoint, file)


class BestCheckpoint(CheckpointSaver):
    """``monai.handlers.CheckpointSaver`` of the best key metric, whose file is whole at any moment and never of a broken network.

    MONAI's removes the file before it writes the better one, and takes a first score of NaN for the best for ever. Here the file is
    replaced in one step, a score that is not finite is passed over with a line, and weights that are not finite end the run.

    Args:
        save_dir: directory of the checkpoint.
        save_dict: what to save under which name, such as ``{"model": network}``.
        filename: name of the file.
        kwargs: further arguments of ``monai.handlers.CheckpointSaver``, such as ``key_metric_negative_sign``.

    Raises:
        ConfigurationError: when the weights are not finite, or the system cannot write the file.

    Example:
        >>> saver = BestCheckpoint("models", {"model": torch.nn.Linear(1, 1)})
        >>> saver.path.name
        'model.pt'
    """

    def __init__(self, save_dir: str, save_dict: dict[str, Any], filename: str = "model.pt", **kwargs: Any) -> None:
        super().__init__(str(save_dir), save_dict, save_key_metric=True, key_metric_filename=filename, **kwargs)
        self.path = Path(save_dir) / filename
        kept: Any = self._key_metric_checkpoint
        # a plain function: ignite removes nothing before it
        kept.save_handler = self._write

    def _write(self, checkpoint: Mapping[str, Any], _: str, __: Any = None) -> None:
        write_checkpoint(checkpoint, self.path)

    def attach(self, engine: Any) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self._remember)
        super().attach(engine)

    def _remember(self, engine: Any) -> None:
        self._best = engine.state.best_metric, engine.state.best_metric_epoch

    def metrics_completed(self, engine: Any) -> None:
        """Save the network if its score is the best so far."""
        state = engine.state
        name = state.key_metric_name
        value = state.metrics.get(name)
        if is_scalar(value) and not math.isfinite(value):
            logger.warning(f"The validation score {name} is {float(value)}: {self.path.name} stays as it is.")
            # MONAI takes the first score for the best, whatever it is, and infinity for better than all
            state.best_metric, state.best_metric_epoch = self._best
            return
        check_modules(self.save_dict, self.path)
        super().metrics_completed(engine)
