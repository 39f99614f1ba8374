"""Predictions have the grid of the input file: its shape, its affine, and structures at their positions in the world."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from scipy.spatial.transform import Rotation

from monai_gmr.utils import ConfigurationError

CONFIG = Path(__file__).resolve().parents[2] / "bundles" / "volume_segmentation_gmr_unet" / "configs" / "inference.yaml"
# label to centre in world millimetres and radius; no rotation or mirroring maps them onto each other
BALLS = {1: ((14.0, -9.0, 6.0), 7.0), 2: ((-8.0, 10.0, -4.0), 5.0), 3: ((6.0, 12.0, 12.0), 3.5)}
SPACING = (1.5, 2.0, 1.0)


def affine_of(directions, size, spacing=SPACING):
    """Makes an affine whose grid of ``size`` voxels has its centre near the origin of the world."""
    affine = np.eye(4)
    affine[:3, :3] = directions @ np.diag(spacing)
    affine[:3, 3] = (0.3, -0.7, 1.1) - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return affine


def oblique(degrees=20):
    return Rotation.from_euler("xyz", (degrees, -degrees, degrees), degrees=True).as_matrix()


PERMUTED = np.eye(3)[[2, 0, 1]]
DIRECTIONS = {
    "RAS": np.eye(3),
    "LPS": np.diag([-1.0, -1, 1]),
    "left-handed": np.diag([-1.0, 1, 1]),
    "permuted": PERMUTED,
    "permuted, left-handed": PERMUTED @ np.diag([1.0, -1, 1]),
    "oblique": oblique(),
    "oblique, left-handed": oblique() @ np.diag([1.0, 1, -1]),
    "oblique, permuted": oblique() @ PERMUTED @ np.diag([-1.0, 1, -1]),
}


class Shades(torch.nn.Module):
    """A network that predicts the class with the nearest grey value. Classes have equal steps, from the lowest value of a window, the
    background, to the highest."""

    def forward(self, x):
        low, high = x.amin(), x.amax()
        values = torch.arange(4, dtype=x.dtype) / 3 * (high - low) + low
        return -(x - values.reshape(1, 4, 1, 1, 1)).abs()


def world_labels(size, affine):
    """Computes the label of every voxel from its position by the affine."""
    voxels = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    world = nib.affines.apply_affine(affine, voxels)
    labels = np.zeros(size, np.uint8)
    for label, (centre, radius) in BALLS.items():
        labels[np.linalg.norm(world - centre, axis=-1) < radius] = label
    return labels


def predict(network, **settings):
    """Runs the bundle's inference on the folder images, with another network."""
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    parser.update({"bundle_root": ".", "input": "images", "output_dir": "out", "device": torch.device("cpu")})
    parser.update({"network": network, **settings})
    parser.parse()
    parser.get_parsed_content("evaluator").predict()


class Plain(Shades):
    """A network whose predictions have no metadata, like compiled or scripted networks."""

    def forward(self, x):
        return torch.from_numpy(super().forward(x).numpy())


def write(name, image):
    Path("images").mkdir(exist_ok=True)
    nib.save(image, Path("images", name))


# as large as the image and larger: a window sees all grey values
WINDOWS = {"roi_size": [34, 40, -1]}


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        (Shades, {}),
        (Plain, {}),
        (Plain, WINDOWS),
        (Shades, {**WINDOWS, "conv": "plain"}),
        (Shades, {**WINDOWS, "reduction": "argmax"}),
    ],
)
def test_labels_lie_where_the_structures_lie(network, settings):
    size = (34, 31, 44)
    for name, directions in DIRECTIONS.items():
        affine = affine_of(directions, size)
        # files hold float32
        write(f"{name}.nii.gz", nib.Nifti1Image(world_labels(size, affine).astype(np.float32) * 40 - 10, affine))
    predict(network(), **settings)
    for name in DIRECTIONS:
        image, prediction = nib.load(f"images/{name}.nii.gz"), nib.load(f"out/{name}_seg.nii.gz")
        labels = np.asarray(prediction.dataobj)
        assert prediction.shape == image.shape == size
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(prediction.affine, image.affine)
        assert nib.aff2axcodes(prediction.affine) == nib.aff2axcodes(image.affine)
        np.testing.assert_array_equal(labels, world_labels(size, image.affine))
        for label, (centre, _) in BALLS.items():
            place = nib.affines.apply_affine(prediction.affine, np.argwhere(labels == label).mean(0))
            np.testing.assert_allclose(place, centre, atol=0.6)


def test_both_affines_their_codes_the_units_and_all_axes_are_those_of_the_file():
    """Includes files with two different affines (readers use one) and with axes of one voxel."""
    size = (20, 16, 18)
    affine = affine_of(DIRECTIONS["oblique, permuted"], size)
    registered = affine.copy()
    registered[:3, :3] *= 1.1
    registered[0, 1] += 0.5
    array = np.random.default_rng(0).uniform(0, 9, size).astype(np.float32)
    headers = {
        "sform": (affine, 4, None, 0),
        "qform": (None, 0, affine, 1),
        "neither": (None, 0, None, 0),
        "both differ": (registered, 4, affine, 1),
    }
    for name, (sform, sform_code, qform, qform_code) in headers.items():
        image = nib.Nifti1Image(array, affine)
        image.set_sform(sform, sform_code)
        image.set_qform(qform, qform_code)
        image.header.set_xyzt_units("micron", "sec")
        write(f"{name}.nii", image)
    write("four axes.nii", nib.Nifti1Image(array[..., None], affine))
    write("one slice.nii.gz", nib.Nifti1Image(array[..., :1], affine))
    write("nifti 2.nii.gz", nib.Nifti2Image(array, affine))
    predict(Shades())
    for path in Path("images").iterdir():
        image, prediction = nib.load(path), nib.load(Path("out", f"{path.name.split('.')[0]}_seg.nii.gz"))
        assert prediction.shape == image.shape
        np.testing.assert_allclose(prediction.affine, image.affine, atol=1e-5)
        for name in ("get_sform", "get_qform"):
            found, expected = (getattr(each, name)(coded=True) for each in (prediction, image))
            assert found[1] == expected[1]
            if found[1]:
                np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
        assert prediction.header.get_xyzt_units() == image.header.get_xyzt_units()
        np.testing.assert_allclose(prediction.header.get_zooms(), image.header.get_zooms(), rtol=1e-6)


def test_a_flat_image_stays_flat():
    affine = affine_of(DIRECTIONS["oblique, left-handed"], (20, 28, 1))
    write("flat.nii", nib.Nifti1Image(np.random.default_rng(0).uniform(0, 9, (20, 28)).astype(np.float32), affine))
    predict(torch.nn.Conv2d(1, 4, 1), spatial_dims=2)
    image, prediction = nib.load("images/flat.nii"), nib.load("out/flat_seg.nii.gz")
    assert prediction.shape == image.shape
    np.testing.assert_array_equal(prediction.affine, image.affine)


def test_an_image_that_was_turned_on_the_way_is_written_as_it_then_lies():
    size = (20, 16, 18)
    affine = affine_of(DIRECTIONS["LPS"], size)
    write("a.nii", nib.Nifti1Image(world_labels(size, affine).astype(np.float32), affine))
    turned = {"_target_": "monai.transforms.Orientationd", "keys": "image", "axcodes": "RAS"}
    predict(Shades(), **{"preprocessing::transforms::1": turned})
    prediction = nib.load("out/a_seg.nii.gz")
    assert nib.aff2axcodes(prediction.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(np.asarray(prediction.dataobj), world_labels(size, prediction.affine))


def test_wrong_numbers_in_windows_are_refused_though_labels_hide_them():
    write("a.nii", nib.Nifti1Image(np.random.default_rng(0).uniform(0, 9, (20, 16, 18)).astype(np.float32), np.eye(4)))
    network = torch.nn.Conv3d(1, 4, 1)
    torch.nn.init.constant_(network.bias, torch.nan)
    with pytest.raises(ConfigurationError, match="the answer of the network holds NaN"):
        predict(network, roi_size=16, reduction="argmax")
