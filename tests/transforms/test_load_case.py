"""A case is loaded like by MONAI, or raises a one-sentence error with the file and the cause."""

import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImaged
from PIL import Image
from scipy.spatial.transform import Rotation

from monai_gmr.transforms import LoadCased
from monai_gmr.transforms.case_checks import describe_offset
from monai_gmr.utils import ConfigurationError

SHAPE = (8, 9, 10)


def label():
    array = np.zeros(SHAPE, np.uint8)
    array[2:5, 3:6, 1:4], array[5:, 7:, 8:] = 1, 2
    return array


def affine(linear=None, shift=(0, 0, 0)):
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3) if linear is None else linear
    matrix[:3, 3] = shift
    return matrix


def write(path, array, matrix=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if matrix is None else matrix), path)
    return str(path)


@pytest.fixture
def case(tmp_path):
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return {"image": write(tmp_path / "image.nii.gz", image), "label": write(tmp_path / "label.nii.gz", label())}


def load(case, **options):
    options = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, **options}
    return LoadCased(list(case), **options)(case)


def refused(match):
    """The error that is expected, which must be one line."""
    return pytest.raises(ConfigurationError, match=rf"(?s)\A(?!.*\n).*{match}")


def test_a_right_case_is_what_monai_loads(case):
    found = load(case)
    expected = LoadImaged(list(case), image_only=True, ensure_channel_first=True)(case)
    for key in case:
        assert torch.equal(found[key], expected[key])
        assert torch.equal(found[key].affine, expected[key].affine)


@pytest.mark.parametrize("value", [0, 3.5])
def test_an_image_of_one_value_is_loaded_with_a_warning(tmp_path, case, value):
    case["image"] = write(tmp_path / "blank.nii.gz", np.full(SHAPE, value, np.float32))
    with pytest.warns(UserWarning, match=rf"blank.nii.gz has one value everywhere, {value}"):
        found = load(case)
    assert (found["image"] == value).all()


def test_an_image_of_several_values_is_loaded_without_one(case):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load(case)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-300])


def with_value(value):
    array = np.zeros(SHAPE, np.float32)
    array[3, 4, 5] = value
    return array


def coloured():
    return np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (truncate, "cannot be read as an image"),
        (lambda path: path.unlink(), "it is not there"),
        (lambda path: path.write_text("<!DOCTYPE html>"), "it is a web page"),
        (lambda path: path.write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X"), "macOS"),
        (lambda path: path.write_text("no image"), "not a gzip file"),
        (lambda path: write(path, coloured()), "RGB colours"),
        (lambda path: write(path, np.full(SHAPE, 1 + 1j, np.complex64)), "holds complex numbers"),
        (lambda path: write(path, np.full(SHAPE, 1j, np.complex128)), "holds complex numbers"),
        (lambda path: write(path, np.ones(SHAPE, np.complex64)), "holds complex numbers"),
        (lambda path: write(path, with_value(np.nan)), "1 value of 720 that is NaN or infinite"),
        (lambda path: write(path, with_value(np.inf)), "1 value of 720 that is NaN or infinite"),
        (lambda path: write(path, np.full(SHAPE, 1e300)), "720 values of 720 that are NaN or infinite"),
        (lambda path: write(path, np.zeros((*SHAPE, 2), np.float32)), "2 channels and the network reads 1"),
        (lambda path: write(path, np.zeros((*SHAPE, 1, 3), np.float32)), "4 spatial axes"),
        (lambda path: write(path, np.zeros(SHAPE[:2], np.float32)), "2 spatial axes"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused(case, tmp_path, spoil, cause):
    spoil(tmp_path / "image.nii.gz")
    with refused(f"image.nii.gz.*{cause}"):
        load(case)
    with refused(f"image.nii.gz.*{cause}"):
        LoadCased("image", spatial_dims=3, in_channels=1)({"image": case["image"]})


def test_an_array_file_of_complex_numbers_is_refused(tmp_path):
    np.save(tmp_path / "image.npy", np.full(SHAPE, 1j))
    with refused("image.npy holds complex numbers"):
        LoadCased("image", spatial_dims=3, in_channels=1)({"image": str(tmp_path / "image.npy")})


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_an_image_of_other_channels_names_no_setting_that_a_trained_network_cannot_have(tmp_path, channels):
    write(tmp_path / "image.nii.gz", np.zeros((*SHAPE, channels), np.float32))
    with refused(f"{channels} channels .* 1: give images of 1 channel, or train with --in_channels {channels} on"):
        LoadCased("image", spatial_dims=3, in_channels=1)({"image": tmp_path / "image.nii.gz"})


def test_other_values_of_labels_become_classes_by_their_place(case, tmp_path):
    """As if the label had been stored as class indices, also with a stored scale that rounds."""
    expected = load(case)["label"]
    values = np.array([7, -1, 255])
    write(tmp_path / "label.nii.gz", values[label()].astype(np.int16))
    found = load(case, label_values=values.tolist())["label"]
    assert torch.equal(found, expected)
    assert torch.equal(found.affine, expected.affine)
    with refused(
        r"label.nii.gz holds 7, which label_values=\[0, -1, 255\] lacks: give all values of the labels as --label_values"
    ):
        load(case, label_values=[0, -1, 255])
    for wrong in ([7, -1], [7, -1, 7]):
        with refused("as many values as classes"):
            load(case, label_values=wrong)


def scaled(path, slope):
    image = nib.Nifti1Image(label().astype(np.int16), np.eye(4))
    image.header.set_slope_inter(slope, 0)
    nib.save(image, path)


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda path: write(path, label()[:, :, :-2]), r"shape \(8, 9, 8\) and the image .*image.nii.gz \(8, 9, 10\)"),
        (lambda path: write(path, label()[..., 0]), r"shape \(8, 9\)"),
        (lambda path: write(path, label() * np.float32(0.5)), "0.5 and other values that are not whole"),
        (lambda path: write(path, label() * np.float32(0.99998)), "0.99998 and other values that are not whole"),
        (lambda path: scaled(path, 0.99998), "0.99998 and other values that are not whole"),
        (lambda path: write(path, label().astype(np.int16) - 1), "from -1 to 1"),
        (
            lambda path: write(path, label() * 2),
            r"holds 0, 2 and 4 and the network has 3 classes: give --out_channels 5 or, if no label has 1 and 3, "
            r"--label_values \[0,2,4\] with --out_channels 3\.$",
        ),
        (
            lambda path: write(path, label() * np.int16(2000) + 5),
            "2005 and 4005 and the network has 3 classes: give --out_channels 4006 or, if no label has 0 to 4, 6 to 2004 and 2006 to 4004",
        ),
        (lambda path: write(path, with_value(np.nan)), "NaN or infinite"),
        (lambda path: write(path, np.stack([label()] * 2, -1)), "2 channels"),
        (truncate, "cannot be read"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: write(path, coloured()), "RGB colours"),
    ],
)
def test_a_label_that_cannot_be_used_is_refused(case, tmp_path, spoil, cause):
    # noise does not compress, so enough of it remains in a truncated file
    write(tmp_path / "label.nii.gz", np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8))
    spoil(tmp_path / "label.nii.gz")
    with refused(f"label.nii.gz.*{cause}"):
        load(case)


@pytest.mark.parametrize(
    ("matrix", "difference"),
    [
        (affine(np.diag([-1, 1, 1]), (7, 0, 0)), "mirrored along axis 0"),
        (affine(np.diag([1, -1, -1]), (0, 8, 9)), "mirrored along axes 1 and 2"),
        (affine(shift=(40, 0, 0)), "shifted by 40 mm"),
        (affine(shift=(0, 0.2, 0)), "shifted by 0.2 mm"),
        (affine(np.diag([3, 3, 3])), "of voxels of 3 x 3 x 3 mm, where the image has 1 x 1 x 1 mm"),
        (affine(np.diag([1, 1, 1.05])), "of voxels of 1 x 1 x 1.05 mm, where the image has 1 x 1 x 1 mm"),
        (affine(np.eye(3)[[1, 0, 2]]), "of its axes in another order"),
        (affine(Rotation.from_euler("z", 10, degrees=True).as_matrix()), "rotated by 10 degrees"),
    ],
)
def test_a_label_that_lies_elsewhere_is_refused_or_brought_to_the_image(case, matrix, difference):
    write(case["label"], label(), matrix)
    with refused(f"label.nii.gz does not lie where .*image.nii.gz does, it is {difference}: "):
        load(case)
    assert torch.equal(load(case, label_affine="ignore")["label"][0].as_tensor(), torch.tensor(label()).float())
    found = load(case, label_affine="resample")
    assert found["label"].shape == found["image"].shape
    # the voxel with the nearest centre, by a loop over all
    expected = np.zeros(SHAPE)
    for index in np.ndindex(SHAPE):
        there = np.rint((np.linalg.inv(matrix) @ [*index, 1])[:3].round(4)).astype(int)
        if all(0 <= n < size for n, size in zip(there, SHAPE)):
            expected[index] = label()[tuple(there)]
    assert np.array_equal(found["label"][0].numpy(), expected)


def test_a_label_of_another_shape_is_brought_to_the_image(case):
    write(case["label"], label()[2:, :, 1:], affine(shift=(2, 0, 1)))
    expected = label().copy()
    expected[:2], expected[:, :, :1] = 0, 0
    assert np.array_equal(load(case, label_affine="resample")["label"][0].numpy(), expected)


@pytest.mark.parametrize("shift", [0.05, -0.09])
@pytest.mark.parametrize("spacing", [1.0, 0.5, 3.0])
def test_a_tenth_of_a_voxel_is_the_same_place(shift, spacing):
    reference, moved = np.diag([spacing, spacing, spacing, 1]), np.diag([spacing, spacing, spacing, 1])
    moved[1, 3] = shift * spacing
    assert describe_offset(moved, reference, SHAPE) == ""
    moved[1, 3] = 3 * shift * spacing
    assert describe_offset(moved, reference, SHAPE) == f"shifted by {abs(3 * shift * spacing):.3g} mm"


@pytest.mark.parametrize("broken", [np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_an_affine_that_is_none_is_refused(broken):
    with refused("not finite or has no inverse"):
        describe_offset(np.eye(4), broken, SHAPE)


def picture(mode, alpha=255):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (7, 5, 4)).astype(np.uint8), "RGBA")
    image.putalpha(alpha)
    return image.convert(mode)


@pytest.mark.parametrize(
    ("image", "channels"),
    [
        (picture("L"), 1),
        (picture("1"), 1),
        (picture("RGB"), 3),
        (picture("RGBA"), 3),
        (picture("LA"), 1),
        (picture("L").convert("P"), 1),
        (picture("RGB").quantize(8), 3),
    ],
)
def test_pictures_are_their_colours(tmp_path, image, channels):
    image.save(tmp_path / "picture.png")
    found = LoadCased("image", 2, (1, 3))({"image": tmp_path / "picture.png"})["image"]
    expected = np.asarray(image.convert("L" if channels == 1 else "RGB"), np.float32).reshape(7, 5, channels)
    assert np.array_equal(found.numpy(), expected.transpose(2, 1, 0))
    with refused(f"picture.png has {channels} channels? and the network reads 2"):
        LoadCased("image", 2, 2)({"image": tmp_path / "picture.png"})


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 4), ("LA", 2)])
def test_a_picture_that_hides_parts_is_refused(tmp_path, mode, channels):
    picture(mode, alpha=100).save(tmp_path / "picture.png")
    with refused(f"picture.png has {channels} channels and the network reads 1 or 3"):
        LoadCased("image", 2, (1, 3))({"image": tmp_path / "picture.png"})


def test_wrong_settings_are_refused():
    with refused("label_affine='match' is unknown"):
        LoadCased("image", 3, 1, label_affine="match")
    with refused("cannot be loaded"):
        LoadCased(["image", "label"], 3, 1)


def test_a_label_that_a_stored_scale_has_rounded_is_whole(tmp_path):
    """255 * 0.00392157 is 1.0000003: no later cast may drop a class."""
    values = (np.arange(512).reshape(8, 8, 8) % 2).astype(np.int16) * 255
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image(values / 255 * (1 - 3e-7), np.eye(4)), tmp_path / "label.nii.gz")
    load = LoadCased(["image", "label"], spatial_dims=3, in_channels=1, out_channels=2)
    case = load({"image": tmp_path / "image.nii.gz", "label": tmp_path / "label.nii.gz"})
    assert np.array_equal(np.asarray(case["label"][0]).astype(int), values // 255)


@pytest.mark.parametrize("size", [8e-6, 1e3])
def test_affines_are_compared_in_voxels_of_any_size(size):
    same, shifted = np.diag([size, size, size, 1]), np.diag([size, size, size, 1])
    shifted[0, 3] = size
    assert describe_offset(same, same, (8, 8, 8)) == ""
    assert describe_offset(shifted, same, (8, 8, 8)).startswith("shifted by")


def test_small_differences_that_add_up_are_measured_at_a_corner():
    affine = np.diag([1.003, 1.003, 1.003, 1])
    affine[:3, 3] = 0.06
    assert describe_offset(affine, np.eye(4), (32, 32, 32)).startswith(("off by", "shifted by"))
