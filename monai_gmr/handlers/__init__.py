"""Handlers: training that resumes, scores of turned images, and the rotation table."""

from monai_gmr.handlers.progress import TrainingProgress
from monai_gmr.handlers.resume import NewestCheckpoint, SeedEpochs
from monai_gmr.handlers.rotation_sweep import RotationSweep
from monai_gmr.handlers.utils import from_engine_in_ball

__all__ = ["NewestCheckpoint", "RotationSweep", "SeedEpochs", "TrainingProgress", "from_engine_in_ball"]
