"""Handlers of engines: checkpoints, resuming, progress, checks of a training, annealing, scores inside the ball."""

from monai_gmr.handlers.anneal import AnnealRests
from monai_gmr.handlers.best_checkpoint import SMALLER_RATE, BestCheckpoint
from monai_gmr.handlers.in_ball import from_engine_in_ball
from monai_gmr.handlers.not_finite import StopAtNotFinite
from monai_gmr.handlers.progress import TrainingProgress
from monai_gmr.handlers.resume import LatestCheckpoint, SeedEpochs
from monai_gmr.handlers.symmetry_threshold import SymmetryThresholdHandler
from monai_gmr.handlers.unseen_classes import WarnOfUnseenClasses

__all__ = [
    "SMALLER_RATE",
    "AnnealRests",
    "BestCheckpoint",
    "LatestCheckpoint",
    "SeedEpochs",
    "StopAtNotFinite",
    "SymmetryThresholdHandler",
    "TrainingProgress",
    "WarnOfUnseenClasses",
    "from_engine_in_ball",
]
