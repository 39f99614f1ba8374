"""The hippocampus bundle is the volume bundle with its own defaults, and predicts with its own weights."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, run, verify_net_in_out
from nibabel.affines import apply_affine

from monai_gmr.bundle import check_values
from monai_gmr.metrics import equivariance_error
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.utils import ConfigurationError

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
BUNDLE = BUNDLES / "hippocampus_segmentation_gmr_unet"
CONFIGS = BUNDLE / "configs"
OWN_DEFAULTS = {
    "dataset_dir",
    "phantom_dir",
    "voxel_size",
    "out_channels",
    "features",
    "epochs",
    "val_interval",
    "patch_size",
    "samples_per_case",
    "learning_rate",
}


def read(bundle, name):
    return yaml.safe_load((BUNDLES / bundle / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))


def without_resampling(node):
    """Removes the transforms to and from the voxel size from a config."""
    own = {"monai.transforms.Spacingd", "monai.transforms.Invertd"}
    if isinstance(node, dict):
        return {key: without_resampling(value) for key, value in node.items()}
    if isinstance(node, list):
        return [
            without_resampling(each) for each in node if not (isinstance(each, dict) and each.get("_target_") in own)
        ]
    return node.replace("[:-1]", "[:2]").replace(" voxel_size=@voxel_size,", "") if isinstance(node, str) else node


@pytest.mark.parametrize("name", ["train", "evaluate", "inference", "multi_gpu_train"])
def test_it_differs_from_the_volume_bundle_in_defaults_and_the_voxel_size(name):
    ours, theirs = read(BUNDLE.name, name), read("volume_segmentation_gmr_unet", name)
    theirs["initialize"] = [line for line in theirs["initialize"] if "phantom" not in line]
    ours = without_resampling(ours)
    assert {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)} <= OWN_DEFAULTS


def test_the_network_is_what_the_metadata_say():
    verify_net_in_out("network_def", str(CONFIGS / "metadata.json"), str(CONFIGS / "inference.yaml"), device="cpu")


def test_the_readme_names_every_default_of_its_own():
    readme = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    for name in sorted(OWN_DEFAULTS - {"phantom_dir"}):
        assert f"`{name}`" in readme, name


@pytest.mark.parametrize("value", [0, -1.0, "1 mm", [1, 1, 1]])
def test_a_voxel_size_that_no_scan_has_is_refused(value):
    with pytest.raises(ConfigurationError, match="voxel_size"):
        check_values(3, voxel_size=value)


@pytest.fixture(scope="module")
def network():
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.yaml"))
    net = parser.get_parsed_content("network_def")
    net.load_state_dict(torch.load(BUNDLE / "models" / "model.pt", weights_only=True))
    return net.eval()


def ellipsoid(shape, affine):
    """Makes a bright ellipsoid of 18 x 9 x 9 mm in the middle of a noisy volume."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    distances = apply_affine(affine, voxels) - apply_affine(affine, (np.array(shape) - 1) / 2)
    inside = ((distances / [18, 9, 9]) ** 2).sum(axis=-1) < 1
    return (100 * inside + np.random.default_rng(0).normal(0, 5, shape)).astype(np.float32)


def test_the_weights_are_exact_on_the_grid(network):
    x = torch.from_numpy(ellipsoid((12, 15, 13), np.eye(4)))[None, None]
    x = (x - x.mean()) / x.std()
    assert isinstance(network, GMRUNet)
    assert equivariance_error(network, x).worst < 1e-5


def oblique(spacing, degrees, signs):
    """Makes an affine that rotates about the first axis and mirrors axes."""
    angle = np.deg2rad(degrees)
    rotation = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing) @ np.diag(signs)
    affine[:3, 3] = 10, -20, 30
    return affine


@pytest.mark.parametrize(
    ("shape", "spacing", "degrees", "signs", "settings"),
    [
        ((36, 48, 34), 1.0, 0, (1, 1, 1), {}),
        ((60, 70, 40), (0.6, 0.7, 1.0), 20, (-1, -1, 1), {}),
        ((60, 70, 40), (0.6, 0.7, 1.0), 20, (-1, -1, 1), {"roi_size": [32, 32, 32], "reduction": "argmax"}),
    ],
)
def test_a_scan_of_any_voxel_size_is_segmented_in_its_own_geometry(shape, spacing, degrees, signs, settings, tmp_path):
    affine = oblique(np.broadcast_to(spacing, 3), degrees, signs)
    nib.save(nib.Nifti1Image(ellipsoid(shape, affine), affine), tmp_path / "scan.nii.gz")
    folder = tmp_path / "out"
    run(
        config_file=str(CONFIGS / "inference.yaml"),
        input=str(tmp_path / "scan.nii.gz"),
        output_dir=str(folder),
        ckpt_dir=str(BUNDLE / "models"),
        logging_file=False,
        **settings,
    )
    (path,) = folder.rglob("*.nii.gz")
    prediction = nib.load(path)
    assert prediction.shape == shape
    assert np.allclose(prediction.affine, affine, atol=1e-4)
    assert set(np.unique(prediction.get_fdata())) <= {0, 1, 2}
