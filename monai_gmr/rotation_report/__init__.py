"""The rotation report: the metrics of any bundle, on images that are rotated and mirrored."""

from monai_gmr.rotation_report.handler import RotationReport
from monai_gmr.rotation_report.prepare_batch import PrepareBatchView

__all__ = ["PrepareBatchView", "RotationReport"]
