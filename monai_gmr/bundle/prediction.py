"""Evaluator for inference that predicts all cases, leaving out and naming those that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.utils import CommonKeys, convert_to_dst_type

from monai_gmr.bundle.case_batches import CaseBatch, CaseBatches, refuse_failures
from monai_gmr.utils import ConfigurationError


def check_answer(answer: Any) -> None:
    """Raises :class:`ConfigurationError` if a network's output holds NaN or inf, which argmax would turn into an arbitrary class."""
    if isinstance(answer, torch.Tensor) and not torch.isfinite(answer).all():
        raise ConfigurationError("the answer of the network holds NaN or inf: check its weights, or leave amp out.")


def keep_geometry(output: dict[str, Any]) -> None:
    """Copies the metadata of the image, position and file, to a prediction without metadata on the image's grid.

    Example:
        >>> output = {"image": MetaTensor(torch.rand(1, 1, 4, 4), affine=2 * torch.eye(4)), "pred": torch.rand(1, 2, 4, 4)}
        >>> keep_geometry(output)
        >>> output["pred"].affine[0, 0].item(), output["pred"].shape
        (2.0, torch.Size([1, 2, 4, 4]))
    """
    image, answer = output[CommonKeys.IMAGE], output[CommonKeys.PRED]
    plain = isinstance(answer, torch.Tensor) and not isinstance(answer, MetaTensor)
    if isinstance(image, MetaTensor) and plain and answer.shape[2:] == image.shape[2:] and len(answer) == len(image):
        output[CommonKeys.PRED] = convert_to_dst_type(answer, image, dtype=answer.dtype, device=answer.device)[0]


class CasePredictor(SupervisedEvaluator):
    """``monai.engines.SupervisedEvaluator`` with a method :meth:`predict` that predicts as many cases as possible.

    Batches with images of different size, or with a case that fails, are predicted case by case.

    Args:
        output: where predictions are written, for the printed line.
        kwargs: arguments of ``SupervisedEvaluator``; for ``val_data_loader`` see :class:`~monai_gmr.bundle.case_batches.CaseBatches`.

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
        # set during prediction
        self._cases: CaseBatches | None = None
        self.add_event_handler(
            IterationEvents.FORWARD_COMPLETED, lambda: check_answer(self.state.output[CommonKeys.PRED])
        )
        self.add_event_handler(IterationEvents.FORWARD_COMPLETED, lambda: keep_geometry(self.state.output))

    def predict(self) -> None:
        """Predicts all cases; prints the number of predictions and each failure with its reason, then raises if any case failed."""
        loader, length = self.data_loader, self.state.epoch_length
        self._cases = cases = CaseBatches(loader)
        self.data_loader, self.failures = cases.load(), {}
        self.state.epoch_length = len(self.data_loader)
        # checks the outputs of windows, because labels no longer show NaN
        check = self.network.register_forward_hook(lambda _module, _inputs, answer: check_answer(answer))
        try:
            self.run()
        finally:
            check.remove()
            self.data_loader, self.state.epoch_length, self._cases = loader, length, None
        count = len(cases.names) - len(self.failures)
        print(f"{count} prediction{'' if count == 1 else 's'} in {self.output}")
        for name, why in self.failures.items():
            print(f"{name} is left out: {why}")
        refuse_failures(self.failures, len(cases.names), "images were not predicted")

    # method that MONAI's subclasses override
    def _iteration(self, engine: Any, batchdata: Any) -> Any:
        iterate = super()._iteration
        if self._cases is None:
            return iterate(engine, batchdata)
        inputs: list[Any] = []
        outputs: list[Any] = []

        def predict(batch: CaseBatch) -> None:
            engine.state.batch = batch.batch
            outputs.extend(iterate(engine, batch.batch))
            inputs.extend(engine.state.batch)

        self.failures |= self._cases.process(batchdata, predict)
        # for handlers of the whole iteration
        engine.state.batch, engine.state.output = inputs, outputs
        if len(self.failures) == len(self._cases.names) and engine.state.iteration == engine.state.epoch_length:
            # handlers of the whole epoch have nothing to write
            engine.terminate()
        return outputs
