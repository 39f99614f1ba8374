"""Data sets: MedMNIST-layout classification files, phantoms that the library makes itself, and the layout of predictions."""

from monai_gmr.data.medmnist import MedMNISTCacheDataset, medmnist_info
from monai_gmr.data.phantoms import PHANTOM_LABELS, make_phantom, write_phantoms
from monai_gmr.data.prediction_layout import PredictionLayout

__all__ = [
    "PHANTOM_LABELS",
    "MedMNISTCacheDataset",
    "PredictionLayout",
    "make_phantom",
    "medmnist_info",
    "write_phantoms",
]
