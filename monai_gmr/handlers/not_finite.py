"""Handler that stops a training at a loss or gradient that is not finite, before the weights change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys

from monai_gmr.handlers.best_checkpoint import SMALLER_RATE
from monai_gmr.utils import ConfigurationError

if TYPE_CHECKING:
    from monai.engines import Workflow

# item with the name of a case whose tensors have no metadata
NAME_KEY = "name"
MOST_NAMES = 6


def _names(batch: Mapping[str, Any], size: int) -> list[str]:
    """Names each sample of a batch by its file, its item "name", or its position."""
    for value in batch.values():
        if isinstance(value, MetaTensor):
            files = value.meta.get("filename_or_obj")
            files = [files] if isinstance(files, (str, Path)) else list(files or [])
            if len(files) == size and all(files):
                return [str(file) for file in files]
    names = batch.get(NAME_KEY)
    if isinstance(names, (list, tuple)) and len(names) == size:
        return [str(name) for name in names]
    return [f"sample {index + 1} of the batch" for index in range(size)]


def name_cases(batch: Any) -> tuple[list[str], bool]:
    """Names the cases of a batch that hold non-finite values, or all cases if none does, each once; also returns whether any does.

    A batch is a dictionary of tensors ``(B, ...)``, or a list of such dictionaries.
    """
    if isinstance(batch, (list, tuple)):
        several = [name_cases(part) for part in batch if isinstance(part, Mapping)]
        broken = [names for names, are_broken in several if are_broken]
        return _once(name for names in (broken or [names for names, _ in several]) for name in names), bool(broken)
    tensors = [batch[key] for key in (CommonKeys.IMAGE, CommonKeys.LABEL) if torch.is_tensor(batch.get(key))]
    tensors = [tensor for tensor in tensors if tensor.dim() > 0]
    if not tensors:
        return [], False
    size = tensors[0].shape[0]
    broken_at = torch.zeros(size, dtype=torch.bool)
    for tensor in tensors:
        if tensor.shape[0] == size:
            broken_at |= ~torch.isfinite(tensor.detach().as_subclass(torch.Tensor)).reshape(size, -1).all(1).cpu()
    any_broken = bool(broken_at.any())
    names = _names(batch, size)
    return _once(name for name, broken in zip(names, broken_at.tolist()) if broken or not any_broken), any_broken


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


class StopAtNotFinite:
    """Handler that stops a training at the first loss or gradient that is NaN or infinite, and names the cases of that batch.

    It checks after the backward pass and before the optimizer's step, so the weights are unchanged; it reads one number from the device
    for both checks. It does not check gradients scaled by a ``GradScaler``, which skips steps whose gradients overflow. The processes of a
    distributed run have the same gradients; they stop together, and all name the faulty cases.

    Raises:
        ConfigurationError: if the loss or a gradient is not finite.
    """

    def attach(self, engine: Workflow) -> None:
        """Registers with a ``monai.engines.SupervisedTrainer``."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Checks the iteration's loss and gradients."""
        loss = engine.state.output[CommonKeys.LOSS].detach().float().sum()
        scaler = getattr(engine, "scaler", None)
        scaled = engine.amp and scaler is not None and scaler.is_enabled()
        values = loss.reshape(1)
        if not scaled:
            # without a limit it scales by 1 and returns the norm over all gradients
            norm = torch.nn.utils.clip_grad_norm_(engine.network.parameters(), math.inf)
            values = torch.stack([loss, norm.to(loss)])
        if bool(torch.isfinite(values).all()):
            return
        state, value = engine.state, loss.item()
        faults: list[Any] = [None if math.isfinite(value) else (value, *name_cases(state.batch))]
        if not scaled and dist.is_available() and dist.is_initialized():
            fault, faults = faults[0], [None] * dist.get_world_size()
            dist.all_gather_object(faults, fault)
        place = f"in epoch {state.epoch}, batch {(state.iteration - 1) % state.epoch_length + 1},"
        raise ConfigurationError(
            f"{place} {self._describe([fault for fault in faults if fault is not None], state.batch)}; the checkpoints are those of before."
        )

    @staticmethod
    def _describe(faults: list[tuple[float, list[str], bool]], batch: Any) -> str:
        broken = _once(name for _, names, are_broken in faults for name in names if are_broken)
        names = broken or _once(name for _, names, _ in faults for name in names) or name_cases(batch)[0]
        rest = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        listed = ", ".join(names[:MOST_NAMES]) + rest
        if not faults:
            advice = f"{SMALLER_RATE} or look at these cases"
            return f"gradients are not finite though the loss is, with the cases {listed}: {advice}"
        if broken:
            why = f"for these cases hold values that are not finite: {listed}; mend them or take them out of the list"
            return f"the loss is {faults[0][0]}, {why}"
        return f"the loss is {faults[0][0]}, with the cases {listed}: look at their values, or {SMALLER_RATE}"
