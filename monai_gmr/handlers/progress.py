"""Progress bar of a training, from the first epoch to the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monai.utils import optional_import

from monai_gmr.annotations import checked_arguments

Events, _ = optional_import("ignite.engine", name="Events")
if TYPE_CHECKING:
    from monai.engines import Workflow


class TrainingProgress:
    """Handler that shows one progress bar over all epochs, with the loss, and a line per validation of a ``validator``.

    ``ignite.handlers.ProgressBar`` restarts at each epoch, so it never shows how long a training takes.
    """

    @checked_arguments
    def __init__(self, validator: Any = None) -> None:
        self.validator = validator
        self._bar: Any = None
        self._losses: list[float] = []

    def attach(self, engine: Workflow) -> None:
        """Registers with a trainer, and with the validator if there is one."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._stop)
        engine.add_event_handler(Events.TERMINATE, self._stop)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self._report, engine)

    def _start(self, engine: Workflow) -> None:
        self._losses = []
        if self._bar is None:
            tqdm, _ = optional_import("tqdm", name="tqdm")
            state = engine.state
            total = state.max_epochs * state.epoch_length
            self._bar = tqdm(total=total, initial=state.iteration, desc="Training", unit="batch", mininterval=0.5)

    def _step(self, engine: Workflow) -> None:
        output = engine.state.output
        self._losses.append(float((output[0] if isinstance(output, list) else output)["loss"]))
        mean = sum(self._losses) / len(self._losses)
        self._bar.set_postfix_str(
            f"epoch {engine.state.epoch}/{engine.state.max_epochs}, loss {mean:.3f}", refresh=False
        )
        self._bar.update(1)

    def _report(self, validator: Workflow, engine: Workflow) -> None:
        state = validator.state
        scores = ", ".join(f"{name} {float(value):.4f}" for name, value in state.metrics.items())
        best = f"best {float(state.best_metric):.4f} at epoch {state.best_metric_epoch}"
        loss = sum(self._losses) / max(len(self._losses), 1)
        if self._bar is not None:
            self._bar.write(f"epoch {engine.state.epoch}: loss {loss:.4f}, {scores} ({best})")

    def _fail(self, error: BaseException) -> None:
        # otherwise the bar would be drawn again after the error sentence
        self._stop()
        raise error

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
