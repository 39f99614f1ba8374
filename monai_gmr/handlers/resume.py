"""Handlers that resume a training from its latest checkpoint, as if it had not been interrupted."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from monai.data import set_rnd
from monai.utils import is_scalar, optional_import, set_determinism

from monai_gmr.annotations import Seed, checked_arguments
from monai_gmr.arguments import describe
from monai_gmr.files import FolderLock, check_folder, remove_unfinished
from monai_gmr.fingerprints import describe_cases
from monai_gmr.handlers.best_checkpoint import check_network, rank, unwrapped, write_checkpoint
from monai_gmr.handlers.optimizer_settings import change_settings, read_settings
from monai_gmr.networks.description import check_description, write_description
from monai_gmr.networks.weights import check_finite, read_checkpoint, state_of
from monai_gmr.utils import ConfigurationError

Events, _ = optional_import("ignite.engine", name="Events")
Checkpoint, _ = optional_import("ignite.handlers", name="Checkpoint")
if TYPE_CHECKING:
    from monai.engines import Workflow

logger = logging.getLogger(__name__)

# key of the cases, the seed and the settings of optimizers in a checkpoint
MADE_WITH = "made_with"


class SeedEpochs:
    """Handler that sets all random states, including those of the ``dataset``, from seed and epoch at the start of each epoch.

    Epoch 7 then draws the same order, patches and dropout in an uninterrupted and in a resumed run. Processes of a
    distributed run differ.
    """

    @checked_arguments
    def __init__(self, seed: Seed, dataset: Any = None) -> None:
        self.seed, self.dataset = seed, dataset

    def attach(self, engine: Workflow) -> None:
        """Registers with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Workflow) -> None:
        """Sets the states for the starting epoch."""
        seed = self.seed + engine.state.epoch + 100_003 * rank()
        set_determinism(seed)
        if self.dataset is not None:
            set_rnd(self.dataset, seed)


class _BestMetric:
    """State dict of the best validation score so far, of the validator and of the saver of its model, and of the history of all epochs."""

    def __init__(self, validator: Any, saver: Any, path: Path) -> None:
        self.validator, self.saver, self.path = validator, saver, path
        self.history: list[dict[str, Any]] = []
        self._score: float | None = None
        self._start = time.monotonic(), time.process_time()

    def attach(self, engine: Workflow) -> None:
        """Registers with a trainer; a validator that runs at the end of an epoch provides the epoch's score."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        self.validator.add_event_handler(Events.COMPLETED, self._validated)

    def _begin(self) -> None:
        self._score, self._start = None, (time.monotonic(), time.process_time())

    def _validated(self) -> None:
        state = self.validator.state
        score = state.metrics.get(state.key_metric_name)
        self._score = float(score) if is_scalar(score) else None

    def end(self, engine: Workflow) -> None:
        """Adds a finished epoch to the history."""
        row = {
            "epoch": engine.state.epoch,
            "seconds": round(time.monotonic() - self._start[0], 3),
            "score": self._score,
        }
        if torch.device(engine.state.device).type == "cpu":
            row["processor_seconds"] = round(time.process_time() - self._start[1], 3)
        self.history.append(row)

    def state_dict(self) -> dict[str, Any]:
        state = self.validator.state
        best = {"best_metric": float(state.best_metric), "best_metric_epoch": int(state.best_metric_epoch)}
        return best | {"history": list(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # checkpoints of earlier versions have no history
        self.history = list(state_dict.get("history", []))
        best, epoch = float(state_dict["best_metric"]), int(state_dict["best_metric_epoch"])
        # without a valid file of the best model the next validation must write one, whatever its score
        if epoch < 0 or not math.isfinite(best) or (self.saver is not None and not self._is_good()):
            return
        self.validator.state.best_metric, self.validator.state.best_metric_epoch = best, epoch
        if hasattr(self.saver, "load_state_dict"):
            self.saver.load_state_dict({"_saved": [(best, self.path.name)]})

    def _is_good(self) -> bool:
        if not self.path.is_file():
            return False
        try:
            state, network = state_of(read_checkpoint(self.path), self.path), self.validator.network
            check_description(state, network, self.path, "so it is not the best of this training.")
            check_finite(network, state, self.path, "")
        except ConfigurationError as error:
            logger.warning(f"{error} The next validation writes it anew.")
            return False
        return True


class LatestCheckpoint:
    """Handler that writes one checkpoint after every epoch and, when training starts again, resumes from it.

    Restores network, optimizer, schedule, epoch counter and the best validation score. With a validator the file also holds, at
    ``["best"]["history"]``, a dictionary per epoch: ``epoch``, its ``seconds`` with validation, on a CPU also ``processor_seconds`` of all
    threads, and the validation ``score``, ``None`` without validation. The file is written atomically, and never with weights that are not
    finite. ``monai.handlers.CheckpointLoader`` reads it. The handler must be the last of the trainer's handlers, after validation and
    schedule. While the training runs, its folder is locked for trainings of other processes. A training that resumes with another learning
    rate or weight decay gets the new ones, and a schedule is scaled with the rate.

    Args:
        save_dir: directory of the checkpoint, created if missing.
        save_dict: objects to save by name, such as ``{"model": network, "optimizer": optimizer}``; the trainer is added.
        resume: whether to resume from an existing checkpoint; otherwise it is overwritten after the first epoch.
        validator: evaluator whose best score selects the best model.
        best_saver: :class:`BestCheckpoint` of that validator, or ``monai.handlers.CheckpointSaver(save_key_metric=True,
            key_metric_filename="model.pt")``.
        filename: name of the file.
        cases: lists of cases or datasets for training and validation; the file stores their number and a fingerprint
            (:func:`~monai_gmr.fingerprints.describe_cases`).
        seed: seed of the training, stored in the file.

    Raises:
        ConfigurationError: if an existing checkpoint cannot be read, is not finite, or was written with another network, optimizer, cases
            or seed, or after more epochs than requested; or if the folder is in use or cannot be written.
    """

    @checked_arguments
    def __init__(
        self,
        save_dir: str | Path,
        save_dict: dict[str, Any],
        resume: bool = True,
        validator: Any = None,
        best_saver: Any = None,
        filename: Annotated[str, "a file name"] = "latest.pt",
        *,
        cases: Sequence[Any] = (),
        seed: Seed | None = None,
    ) -> None:
        self.cases, self.seed = cases, seed
        self.path, self.save_dict, self.resume = Path(save_dir) / filename, dict(save_dict), resume
        self._files = [self.path]
        if best_saver is not None:
            if not hasattr(best_saver, "path") and not hasattr(best_saver, "save_dir"):
                raise ConfigurationError(
                    f"best_saver={describe(best_saver)} saves no model: give a handler such as monai_gmr.handlers.BestCheckpoint."
                )
            self._files += [getattr(best_saver, "path", None) or Path(best_saver.save_dir) / "model.pt"]
        self._best = None if validator is None else _BestMetric(validator, best_saver, self._files[-1])
        if self._best is not None:
            self.save_dict["best"] = self._best

    def attach(self, engine: Workflow) -> None:
        """Registers with a trainer."""
        optimizers = {key: each for key, each in self.save_dict.items() if isinstance(each, torch.optim.Optimizer)}
        # before a checkpoint brings others back
        self._optimizers = {name: read_settings(optimizer) for name, optimizer in optimizers.items()}
        self.save_dict["trainer"] = engine
        if self._best is not None:
            self._best.attach(engine)
        self._checkpoint = Checkpoint(
            self.save_dict,
            save_handler=lambda checkpoint, _: self._write(checkpoint),
            filename_pattern=self.path.name,
        )
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _open(self) -> None:
        if rank() == 0:
            for file in self._files:
                check_folder(file.parent, "ckpt_dir", [file.name])
            self._lock = FolderLock(self.path.parent)
            for file in self._files:
                remove_unfinished(file)

    def _close(self) -> None:
        if rank() == 0:
            self._lock.release()

    def _save(self, engine: Workflow) -> None:
        # in every process, so that all end alike
        for saved in self.save_dict.values():
            if isinstance(saved, torch.nn.Module):
                check_network(saved, self.path)
        if self._best is not None:
            self._best.end(engine)
        self._checkpoint(engine)

    def _write(self, checkpoint: dict[str, Any]) -> None:
        for name, saved in self.save_dict.items():
            if isinstance(saved, torch.nn.Module):
                write_description(checkpoint[name], saved)
        if rank() == 0:
            made_with = self._made_with | {"optimizers": self._optimizers}
            write_checkpoint({**checkpoint, MADE_WITH: made_with}, self.path)

    @cached_property
    def _made_with(self) -> dict[str, Any]:
        """Cases and seed, shared only by trainings with the same result, as plain data."""
        cases = {"cases": [describe_cases(each) for each in self.cases]} if self.cases else {}
        return cases | ({} if self.seed is None else {"seed": self.seed})

    def _check_optimizers(self, written: Mapping[str, Any], settings: str) -> None:
        """Raises if a checkpoint was written with optimizers of another class."""
        for name, own in self._optimizers.items():
            other = written.get(name, own)["class"]
            if other != own["class"]:
                raise ConfigurationError(
                    f"{self.path} is of a training with the {name} {other}, here {own['class']}: {settings}"
                )

    def _change_optimizers(self, written: Mapping[str, Any]) -> None:
        """Gives resumed optimizers the learning rates and weight decays of this training."""
        for name, own in self._optimizers.items():
            before, schedules = written.get(name, own), list(self.save_dict.values())
            for changed in change_settings(self.save_dict[name], schedules, before, own):
                there, here = (", ".join(f"{each:g}" for each in values[changed]) for values in (before, own))
                logger.info(f"Changes the {changed} of the {name} from {there} to {here}.")

    def _check_made_with(self, written: Any, elsewhere: str) -> None:
        """Raises if a checkpoint was written with other cases or another seed."""
        # each process of a distributed run can have a part of the cases; the first one writes
        if not isinstance(written, Mapping) or rank() != 0:
            return
        for what, own in self._made_with.items():
            other = written.get(what, own)
            if other == own:
                continue
            if what == "cases":
                there, here = (" and ".join(str(each["cases"]) for each in lists) for lists in (other, own))
                numbers = (
                    f"{there} cases, here {here}"
                    if there != here
                    else f"as many cases, {here}, of other files or values"
                )
                raise ConfigurationError(f"{self.path} is of a training on other data ({numbers}): {elsewhere}.")
            raise ConfigurationError(
                f"{self.path} is of a training with {what}={other!r}, here {own!r}: give --{what} {other}, {elsewhere}."
            )

    def load(self, engine: Workflow) -> None:
        """Resumes from the checkpoint, if there is one and ``resume`` is set."""
        if not (self.resume and self.path.is_file()):
            return
        epochs, epoch_length = engine.state.max_epochs, engine.state.epoch_length
        elsewhere = "give another --ckpt_dir, or --resume False to start anew"
        checkpoint = read_checkpoint(self.path, engine.state.device, elsewhere)
        if not isinstance(checkpoint, Mapping) or not set(self.save_dict) <= set(checkpoint):
            raise ConfigurationError(
                f"{self.path} is not a checkpoint of such a training, which holds {', '.join(self.save_dict)}: {elsewhere}."
            )
        written = checkpoint.get(MADE_WITH)
        self._check_made_with(written, elsewhere)
        settings = f"give the settings that it was trained with, {elsewhere}."
        # an earlier version wrote none
        optimizers = written.get("optimizers", {}) if isinstance(written, Mapping) else {}
        self._check_optimizers(optimizers, settings)
        for name, saved in self.save_dict.items():
            if isinstance(saved, torch.nn.Module) and isinstance(checkpoint[name], Mapping):
                check_description(checkpoint[name], saved, self.path, settings)
                check_finite(unwrapped(saved), checkpoint[name], self.path, elsewhere)
            elif name not in ("best", "trainer") and _has_nan(checkpoint[name]):
                raise ConfigurationError(f"{self.path} holds NaN in the state of the {name}: {elsewhere}.")
        try:
            Checkpoint.load_objects(to_load=self.save_dict, checkpoint=checkpoint)
        except Exception as error:
            raise ConfigurationError(
                f"{self.path} was written with another network or optimizer: {settings}"
            ) from error
        self._change_optimizers(optimizers)
        engine.state.max_epochs = epochs
        if engine.state.epoch > epochs:
            raise ConfigurationError(
                f"{self.path} has run {engine.state.epoch} epochs and epochs={epochs}: give more --epochs, {elsewhere}."
            )
        # another batch size means another number of iterations per epoch
        engine.state.epoch_length = epoch_length
        engine.state.iteration = engine.state.epoch * epoch_length
        logger.info(f"Resumed from {self.path} after epoch {engine.state.epoch} of {epochs}.")
        if engine.state.epoch >= epochs:
            logger.info(f"All {epochs} epochs are done: to train on give more --epochs, to start anew {elsewhere}.")


def _has_nan(state: Any) -> bool:
    """Checks whether a state dict holds NaN, at any depth."""
    if isinstance(state, (Mapping, list, tuple)):
        return any(map(_has_nan, state.values() if isinstance(state, Mapping) else state))
    return isinstance(state, (torch.Tensor, float)) and bool(torch.isnan(torch.as_tensor(state)).any())
