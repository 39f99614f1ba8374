"""Handlers: training that resumes, scores of turned images, and the rotation table."""

from monai_gmr.handlers.best_checkpoint import BestCheckpoint
from monai_gmr.handlers.not_finite import StopAtNotFinite
from monai_gmr.handlers.progress import TrainingProgress
from monai_gmr.handlers.resume import NewestCheckpoint, SeedEpochs
from monai_gmr.handlers.rotation_sweep import RotationSweep
from monai_gmr.handlers.utils import from_engine_in_ball

__all__ = [
    "BestCheckpoint",
    "NewestCheckpoint",
    "RotationSweep",
    "SeedEpochs",
    "StopAtNotFinite",
    "TrainingProgress",
    "from_engine_in_ball",
]
