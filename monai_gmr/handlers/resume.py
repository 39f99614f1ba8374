"""Training that goes on from its newest checkpoint, as if it had not been interrupted."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from monai.data import set_rnd
from monai.handlers import CheckpointLoader, CheckpointSaver
from monai.utils import optional_import, set_determinism

from monai_gmr.utils import ConfigurationError

Events, _ = optional_import("ignite.engine", name="Events")
Checkpoint, _ = optional_import("ignite.handlers", name="Checkpoint")
if TYPE_CHECKING:
    from monai.engines import Workflow

logger = logging.getLogger(__name__)


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


class SeedEpochs:
    """Handler that sets all random states from the seed and the epoch whenever an epoch starts.

    Epoch 7 then draws the same order, patches and dropout whether the run came there in one piece or was resumed.

    Args:
        seed: seed of the run.
        dataset: training dataset, whose random transforms are set as well.

    Example:
        >>> from monai.data import Dataset
        >>> handler = SeedEpochs(seed=0, dataset=Dataset([1, 2]))
    """

    def __init__(self, seed: int, dataset: Any = None) -> None:
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Workflow) -> None:
        """Set the states for the epoch that starts; processes of a distributed run differ."""
        seed = self.seed + engine.state.epoch + 100_003 * _rank()
        set_determinism(seed)
        if self.dataset is not None:
            set_rnd(self.dataset, seed)


class _BestMetric:
    """The best validation score so far, of the validator and of the saver that keeps its model, as a state_dict."""

    def __init__(self, validator: Any, best_saver: CheckpointSaver | None, path: Path | None) -> None:
        self.validator, self.best_saver, self.path = validator, best_saver, path

    def state_dict(self) -> dict[str, float]:
        state = self.validator.state
        return {"best_metric": float(state.best_metric), "best_metric_epoch": int(state.best_metric_epoch)}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        epoch = int(state_dict["best_metric_epoch"])
        # without the file of the best model the next validation must write one, whatever it scores
        if epoch < 0 or (self.path is not None and not self.path.is_file()):
            return
        self.validator.state.best_metric = state_dict["best_metric"]
        self.validator.state.best_metric_epoch = epoch
        if self.best_saver is not None and self.path is not None:
            self.best_saver.load_state_dict({"_saved": [(state_dict["best_metric"], self.path.name)]})


class NewestCheckpoint:
    """Handler that writes one checkpoint after every epoch and, when training starts again, goes on from it.

    Network, optimizer, schedule, epoch counter and the best validation score continue. The file is written under a temporary
    name and renamed, so a kill at any moment leaves a whole one; ``monai.handlers.CheckpointLoader`` reads it
    (``weights_only=True``). It must stand last among the trainer's handlers, behind validation and schedule.

    Args:
        save_dir: directory of the checkpoint, made if need be.
        save_dict: what to save under which name, such as ``{"model": network, "optimizer": optimizer}``; the trainer is added.
        resume: whether to go on from a checkpoint that is there; otherwise it is overwritten after the first epoch.
        validator: evaluator whose best score decides about the best model.
        best_saver: ``monai.handlers.CheckpointSaver(save_key_metric=True, key_metric_filename=...)`` of that validator.
        filename: name of the file.

    Raises:
        ConfigurationError: when the checkpoint there was written by another network or optimizer, or by more epochs than are
            asked for.

    Example:
        >>> import tempfile, torch
        >>> network = torch.nn.Linear(2, 1)
        >>> handler = NewestCheckpoint(tempfile.mkdtemp(), {"model": network})
        >>> handler.path.name
        'newest.pt'
    """

    def __init__(
        self,
        save_dir: str | Path,
        save_dict: dict[str, Any],
        resume: bool = True,
        validator: Any = None,
        best_saver: CheckpointSaver | None = None,
        filename: str = "newest.pt",
    ) -> None:
        self.path = Path(save_dir) / filename
        self.save_dict = dict(save_dict)
        self.resume = resume
        if validator is not None:
            # MONAI's saver tells its file to nobody
            kept: Any = best_saver._key_metric_checkpoint if best_saver is not None else None
            best_file = Path(kept.save_handler.dirname) / kept.save_handler.filename if kept is not None else None
            self.save_dict["best"] = _BestMetric(validator, best_saver, best_file)

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        self.save_dict["trainer"] = engine
        self._checkpoint = Checkpoint(self.save_dict, save_handler=self._write, filename_pattern=self.path.name)
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._checkpoint)

    def _write(self, checkpoint: dict, filename: str) -> None:
        if _rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_name(f"{filename}.part")
            torch.save(checkpoint, temporary)
            os.replace(temporary, self.path)

    def load(self, engine: Workflow) -> None:
        """Go on from the checkpoint, if there is one and ``resume`` is set."""
        if not (self.resume and self.path.is_file()):
            return
        epochs, epoch_length = engine.state.max_epochs, engine.state.epoch_length
        elsewhere = "give another --ckpt_dir, or --resume False to start anew"
        try:
            CheckpointLoader(str(self.path), self.save_dict, map_location=engine.state.device)(engine)
        except ValueError as error:
            if engine.state.epoch <= epochs:
                raise ConfigurationError(f"{self.path} is of another training ({error}): {elsewhere}.") from error
            raise ConfigurationError(
                f"{self.path} has run {engine.state.epoch} epochs and epochs={epochs}: give more --epochs, {elsewhere}."
            ) from error
        except (RuntimeError, KeyError) as error:
            raise ConfigurationError(
                f"{self.path} was written with another network or optimizer: give the settings that it was trained "
                f"with, {elsewhere}."
            ) from error
        # another batch size has another number of iterations in an epoch
        engine.state.epoch_length = epoch_length
        engine.state.iteration = engine.state.epoch * epoch_length
        logger.info(f"Resumed from {self.path} after epoch {engine.state.epoch} of {epochs}.")
        if engine.state.epoch >= epochs:
            logger.info(f"All {epochs} epochs are done: to train on give more --epochs, to start anew {elsewhere}.")
