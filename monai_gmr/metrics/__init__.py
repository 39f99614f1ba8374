"""Metrics: the equivariance error of a network, the modules that break it, and scores of classifiers."""

from monai_gmr.metrics.broken_symmetry import BrokenSymmetry, broken_symmetry
from monai_gmr.metrics.classification import AccuracyMetric, MacroAUCMetric, MeanRecallMetric
from monai_gmr.metrics.equivariance import EquivarianceErrors, ViewError, equivariance_error
from monai_gmr.metrics.equivariance_check import check_equivariance
from monai_gmr.metrics.equivariance_report import EquivarianceReport, ModuleCheck, SizeCheck

__all__ = [
    "AccuracyMetric",
    "BrokenSymmetry",
    "EquivarianceErrors",
    "EquivarianceReport",
    "MacroAUCMetric",
    "MeanRecallMetric",
    "ModuleCheck",
    "SizeCheck",
    "ViewError",
    "broken_symmetry",
    "check_equivariance",
    "equivariance_error",
]
