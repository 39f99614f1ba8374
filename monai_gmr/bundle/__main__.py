"""``python -m monai_gmr.bundle run``: ``python -m monai.bundle run`` that checks overrides before MONAI applies them. ``trt_export`` is
also MONAI's command; it reports in one sentence what is missing."""

from __future__ import annotations

import sys
from typing import Any

import fire
import monai.bundle

from monai_gmr.bundle.checks import check_tensorrt
from monai_gmr.bundle.command_line import GMRWorkflow, report


def run(run_id: str | None = None, **arguments: Any) -> None:
    """Runs a bundle; the arguments are those of ``monai.bundle.run``, including overrides."""
    monai.bundle.run(run_id, workflow_name=GMRWorkflow, **arguments)


def trt_export(net_id: str | None = None, **arguments: Any) -> None:
    """Exports a network to TensorRT; the arguments are those of ``monai.bundle.trt_export``."""
    check_tensorrt()
    monai.bundle.trt_export(net_id, **arguments)


if __name__ == "__main__":
    try:
        fire.Fire({"run": run, "trt_export": trt_export}, name="monai_gmr.bundle")
    except Exception:
        report(*sys.exc_info())  # type: ignore[arg-type]
        sys.exit(1)
