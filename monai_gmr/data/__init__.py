"""Data sets: classification files in the MedMNIST layout, generated phantoms, and the files of predictions."""

from monai_gmr.data.medmnist import (
    MedMNISTCacheDataset,
    download_medmnist,
    medmnist_file,
    medmnist_flags,
    medmnist_info,
)
from monai_gmr.data.nifti_writer import SameGridWriter
from monai_gmr.data.phantoms import PHANTOM_LABELS, make_phantom, write_phantoms
from monai_gmr.data.prediction_layout import PredictionLayout

__all__ = [
    "PHANTOM_LABELS",
    "MedMNISTCacheDataset",
    "PredictionLayout",
    "SameGridWriter",
    "download_medmnist",
    "make_phantom",
    "medmnist_file",
    "medmnist_flags",
    "medmnist_info",
    "write_phantoms",
]
