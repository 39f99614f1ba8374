"""``python -m monai_gmr.bundle run``: ``python -m monai.bundle run`` whose overrides are checked before MONAI applies them; ``trt_export``
is MONAI's, too, and says in one sentence what it lacks."""

from __future__ import annotations

import sys
from typing import Any

import fire
import monai.bundle

from monai_gmr.bundle.checks import check_tensorrt
from monai_gmr.bundle.command_line import GMRWorkflow, report


def run(run_id: str | None = None, **arguments: Any) -> None:
    """Run a bundle; the arguments are those of ``monai.bundle.run``, overrides included."""
    monai.bundle.run(run_id, workflow_name=GMRWorkflow, **arguments)


def trt_export(net_id: str | None = None, **arguments: Any) -> None:
    """Export a network to TensorRT; the arguments are those of ``monai.bundle.trt_export``."""
    check_tensorrt()
    monai.bundle.trt_export(net_id, **arguments)


if __name__ == "__main__":
    try:
        fire.Fire({"run": run, "trt_export": trt_export}, name="monai_gmr.bundle")
    except Exception:
        report(*sys.exc_info())  # type: ignore[arg-type]
        sys.exit(1)
