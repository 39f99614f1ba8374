"""Handlers: training that resumes, scores of turned images."""

from monai_gmr.handlers.best_checkpoint import BestCheckpoint
from monai_gmr.handlers.not_finite import StopAtNotFinite
from monai_gmr.handlers.progress import TrainingProgress
from monai_gmr.handlers.resume import LatestCheckpoint, SeedEpochs
from monai_gmr.handlers.utils import from_engine_in_ball

__all__ = [
    "BestCheckpoint",
    "LatestCheckpoint",
    "SeedEpochs",
    "StopAtNotFinite",
    "TrainingProgress",
    "from_engine_in_ball",
]
