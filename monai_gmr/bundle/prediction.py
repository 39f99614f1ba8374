"""The evaluator of an inference: a case that fails is left out by name, all others are predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.utils import CommonKeys

from monai_gmr.bundle.case_batches import CaseBatches, LoadedBatch, refuse_failures
from monai_gmr.utils import ConfigurationError, reason


def check_answer(answer: Any) -> None:
    """Raise :class:`ConfigurationError` when a tensor that a network returned holds NaN or inf, which argmax makes any class."""
    if isinstance(answer, torch.Tensor) and not torch.isfinite(answer).all():
        raise ConfigurationError(
            "the answer of the network holds NaN or inf: check its weights, or run it without amp."
        )


class CasePredictor(SupervisedEvaluator):
    """``monai.engines.SupervisedEvaluator`` with a method :meth:`predict` that finishes all cases that it can.

    Batches whose images differ in size, and those in which a case fails, are predicted case by case.

    Args:
        output: where predictions go, to be printed.
        kwargs: those of ``SupervisedEvaluator``; ``val_data_loader`` as for :class:`~monai_gmr.bundle.case_batches.CaseBatches`.

    Example:
        >>> from monai.data import DataLoader, Dataset
        >>> cases = [{"image": torch.full((1, n, 4), value)} for n, value in ((4, 1.0), (5, 1.0), (4, float("nan")))]
        >>> loader = DataLoader(Dataset(cases), batch_size=3)
        >>> predictor = CasePredictor(device=torch.device("cpu"), val_data_loader=loader, network=torch.nn.Identity(), output="out")
        >>> predictor.predict()
        Traceback (most recent call last):
        ...
        monai_gmr.utils.ConfigurationError: 1 of 3 images were not predicted, case 2: the image holds 16 values of 16 that are NaN ...
    """

    def __init__(self, *, output: str | Path = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.output = output
        self.failures: dict[str, str] = {}
        self._done = 0
        self._cases: CaseBatches | None = None
        self.add_event_handler(
            IterationEvents.FORWARD_COMPLETED, lambda: check_answer(self.state.output[CommonKeys.PRED])
        )

    def predict(self) -> None:
        """Predict all cases; print how many were, and those that were not with the reason, about which it then raises."""
        loader, length = self.data_loader, self.state.epoch_length
        self._cases, self.failures, self._done = CaseBatches(loader), {}, 0
        self.data_loader = self._cases.loaded()
        self.state.epoch_length = len(self.data_loader)
        try:
            self.run()
        finally:
            self.data_loader, self.state.epoch_length = loader, length
        print(f"{self._done} predictions in {self.output}")
        for name, why in self.failures.items():
            print(f"{name} is left out: {why}")
        refuse_failures(self.failures, len(self._cases.names), "images were not predicted")

    # MONAI's name for the method that a subclass replaces
    def _iteration(self, engine: Any, batchdata: Any) -> Any:
        if not isinstance(batchdata, LoadedBatch):
            return super()._iteration(engine, batchdata)
        inputs: list[Any] = []
        outputs: list[Any] = []
        waiting = list(batchdata)
        while waiting:
            cases = waiting.pop(0)
            self.failures.update(cases.failures)
            if not cases.names:
                continue
            try:
                engine.state.batch = cases.batch
                outputs += super()._iteration(engine, cases.batch)
            except Exception as error:
                if len(cases.names) == 1:
                    self.failures[cases.names[0]] = reason(error)
                else:
                    assert self._cases is not None
                    waiting[:0] = [single for name in cases.names for single in self._cases.load([name])]
                continue
            inputs += engine.state.batch
            self._done += len(cases.names)
        # for the handlers of a whole iteration
        engine.state.batch, engine.state.output = inputs, outputs
        if not self._done and engine.state.iteration == engine.state.epoch_length:
            # there is nothing to write for the handlers of a whole epoch
            engine.terminate()
        return outputs
