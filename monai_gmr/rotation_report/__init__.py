"""The rotation report: metrics of any bundle on rotated and mirrored images."""

from monai_gmr.rotation_report.handler import RotationReport
from monai_gmr.rotation_report.prepare_batch import PrepareBatchView

__all__ = ["PrepareBatchView", "RotationReport"]
