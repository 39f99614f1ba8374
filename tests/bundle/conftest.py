"""A complete bundle of a tiny network, made by MONAI's ``init_bundle``; only the name of its network refers to this library."""

import json

import pytest
import torch
from monai.bundle import init_bundle

from monai_gmr.bundle.shipped import find_bundle, read_metadata
from monai_gmr.networks.nets import GMRUNet

NETWORK = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "features": [2, 3]}
TENSOR = {"type": "image", "format": "magnitude", "dtype": "float32", "value_range": [], "is_patch_data": False}
INPUT = {"num_channels": 1, "spatial_shape": [9, 10], "channel_def": {"0": "image"}}
OUTPUT = {"num_channels": 3, "spatial_shape": [9, 10], "channel_def": {"0": "background", "1": "nucleus", "2": "edge"}}
INFERENCE = {
    "imports": ["$import monai_gmr.networks.nets"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/prediction'",
    "device": "cpu",
    "network_def": {"_target_": "GMRUNet", **NETWORK},
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
            {"_target_": "ScaleIntensityd", "keys": "image"},
        ],
    },
    "inferer": {"_target_": "SimpleInferer"},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"},
        ],
    },
}
PART = {"dataset": {"_target_": "Dataset", "data": []}, "handlers": []}
TRAIN = {
    "bundle_root": ".",
    "device": "cpu",
    "dataset_dir": "data",
    "val_interval": 1,
    "train": {**PART, "trainer": {"_target_": "SupervisedTrainer", "max_epochs": 1}},
    "validate": {**PART, "evaluator": {"_target_": "SupervisedEvaluator"}},
}


@pytest.fixture(scope="session")
def whole_bundle(tmp_path_factory):
    """Folder of a complete bundle, not to be changed."""
    root = tmp_path_factory.mktemp("whole") / "nuclei_segmentation"
    own = read_metadata(find_bundle("volume_segmentation_gmr_unet"))
    layout = {"inputs": {"image": {**TENSOR, **INPUT}}, "outputs": {"pred": {**TENSOR, **OUTPUT}}}
    metadata = {**own, "data_source": "nuclei, CC BY 4.0", "network_data_format": layout}
    torch.manual_seed(0)
    init_bundle(root, network=GMRUNet(**NETWORK), dataset_license=True, metadata_str=metadata, inference_str=INFERENCE)
    (root / "configs" / "train.json").write_text(json.dumps(TRAIN))
    return root
