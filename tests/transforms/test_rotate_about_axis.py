"""Rotations by any angle: correct in millimetres and in world coordinates, invertible up to interpolation, the same lazy and eager."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, Flip, Invertd, Rotate, SaveImage
from scipy.spatial.transform import Rotation

from monai_gmr.symmetry import inscribed_ball, rotation_matrix, transform_image
from monai_gmr.transforms import GridSymmetryd, RotateAboutAxis, RotateAboutAxisD, RotateAboutAxisd, RotateAboutAxisDict
from monai_gmr.utils import ConfigurationError

SPACING = (1.0, 1.5, 2.0)
SHAPE = (41, 29, 23)


def blob(shape, spacing, centre, width=3.0):
    """A Gaussian at a position in millimetres from the centre of the grid."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    return torch.tensor(np.exp(-((grid - np.asarray(centre)) ** 2).sum(-1) / (2 * width**2)))[None].float()


def affine_of(spacing, oblique=True, handedness=1):
    affine = np.eye(4)
    rotate = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix() if oblique else np.eye(3)
    affine[:3, :3] = rotate * np.array([*spacing, 1.0][:3]) * (1, 1, handedness)
    affine[:3, 3] = (-31.0, 12.5, 7.25)
    return torch.tensor(affine)


def middle(image):
    """Centre of mass in voxels."""
    weight = np.asarray(image[0], float)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in weight.shape], indexing="ij"), -1)
    return (grid * weight[..., None]).reshape(-1, weight.ndim).sum(0) / weight.sum()


@pytest.mark.parametrize("axis", ["x", "y", "z", 1, (1, 2, -1)])
@pytest.mark.parametrize("angle", [25, -70, 180])
def test_a_blob_lands_where_the_rotation_says_in_millimetres(axis, angle):
    centre = np.array([4.0, 3.0, -5.0])
    image = MetaTensor(blob(SHAPE, SPACING, centre), affine=affine_of(SPACING))
    rotated = RotateAboutAxis(angle, axis)(image)
    expected = blob(SHAPE, SPACING, rotation_matrix(3, angle, axis) @ centre)
    assert (rotated - expected).abs().max() < 0.1  # linear interpolation: a sum of (step / width)^2 / 8
    plain = RotateAboutAxis(angle, axis, spacing=SPACING)(image.as_tensor())
    assert torch.allclose(plain.as_tensor(), rotated.as_tensor(), atol=1e-4)


@pytest.mark.parametrize("angle", [10, 30, 135])
def test_rotations_go_the_way_of_transform_image(angle, device):
    flat = torch.rand(1, 12, 15)
    ours = RotateAboutAxis(angle, spacing=(1, 2))(flat.to(device)).as_tensor().cpu()
    theirs = transform_image(flat, rotation_matrix(2, angle), order=1, spacing=(1, 2))
    assert torch.allclose(ours, theirs, atol=1e-4)
    solid = torch.rand(1, 8, 9, 10)
    theirs = transform_image(solid, rotation_matrix(3, angle, (1, 1, 0)), order=1)
    assert torch.allclose(RotateAboutAxis(angle, (1, 1, 0))(solid).as_tensor(), theirs, atol=1e-4)


def test_an_isotropic_rotation_is_monais():
    image = MetaTensor(torch.rand(1, 8, 9, 10), affine=affine_of((2, 2, 2)))
    for axis in range(3):
        angles = [0.0, 0.0, 0.0]
        angles[axis] = np.deg2rad(33)
        ours = RotateAboutAxis(33, axis)(image)
        both = [Rotate([sign * a for a in angles])(image) for sign in (1, -1)]
        near = min(both, key=lambda theirs: float((theirs - ours).abs().max()))
        assert torch.allclose(ours.as_tensor(), near.as_tensor(), atol=1e-5)
        assert torch.allclose(ours.affine, near.affine)


@pytest.mark.parametrize("handedness", [1, -1])
@pytest.mark.parametrize("axis", ["x", "z", (1, 2, 3)])
def test_a_marked_place_keeps_its_place_in_a_saved_nifti(tmp_path, axis, handedness):
    image = MetaTensor(blob(SHAPE, SPACING, (4.0, 3.0, -5.0), 2.5), affine=affine_of(SPACING, handedness=handedness))
    place = image.affine.numpy() @ [*middle(image), 1]
    rotated = RotateAboutAxis(40, axis, padding_mode="zeros")(image)
    rotated.meta["filename_or_obj"] = "rotated.nii.gz"
    SaveImage(tmp_path, "", separate_folder=False, resample=False, print_log=False)(rotated)
    loaded = nibabel.load(tmp_path / "rotated.nii.gz")
    marked = loaded.affine @ [*middle(loaded.get_fdata()[None]), 1]
    assert np.abs(marked - place).max() < 0.1
    assert np.allclose(loaded.header.get_zooms(), SPACING, atol=1e-5)
    # the rotation is rigid in the world: the columns stay at right angles
    cosines = loaded.affine[:3, :3] / np.array(SPACING)
    assert np.allclose(cosines.T @ cosines, np.eye(3), atol=1e-5)
    assert np.sign(np.linalg.det(loaded.affine)) == handedness


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(("dims", "axis"), [(2, "z"), (3, "y"), (3, (1, 1, 1))])
def test_inverted_to_interpolation_accuracy_inside_the_ball(dims, axis, lazy):
    shape, spacing = SHAPE[:dims], SPACING[:dims]
    image = MetaTensor(blob(shape, spacing, (2.0, 3.0, -2.0)[:dims], 5.0), affine=affine_of(spacing))
    chain = Compose([RotateAboutAxis(35, axis)], lazy=lazy)
    rotated = chain(image)
    back = chain.inverse(rotated)
    inside = torch.tensor(inscribed_ball(shape, spacing))
    assert (rotated - image)[0][inside].abs().max() > 0.2
    assert (back - image)[0][inside].abs().max() < 0.075
    assert torch.allclose(back.affine, image.affine)
    assert not back.applied_operations


@pytest.mark.parametrize("angle", [0, 90, 180, 270, -90, 360])
@pytest.mark.parametrize("lazy", [False, True])
def test_rotations_that_are_symmetries_of_the_grid_are_exact(angle, lazy):
    image = MetaTensor(torch.rand(1, 5, 6, 6), affine=affine_of((2.0, 0.7, 0.7)).float().double())
    chain = Compose([RotateAboutAxis(angle, "x")], lazy=lazy)
    rotated = chain(image)
    assert torch.equal(rotated.as_tensor(), torch.rot90(image.as_tensor(), angle // 90, (2, 3)))
    back = chain.inverse(rotated)
    assert torch.equal(back.as_tensor(), image.as_tensor())
    assert torch.allclose(back.affine, image.affine)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", ["border", "zeros", "reflection"])
def test_lazy_equals_eager_mode_and_padding_included(mode, padding_mode):
    image = MetaTensor(torch.rand(1, 12, 11, 10), affine=affine_of(SPACING))
    flat = MetaTensor(torch.rand(1, 13, 10), affine=affine_of((1, 2)))
    for one, axis in ((image, "y"), (image, (1, 0, 2)), (flat, "z")):
        rotate = RotateAboutAxis(33.7, axis, mode=mode, padding_mode=padding_mode, dtype=torch.float64)
        eager, lazily = rotate(one), Compose([rotate], lazy=True)(one)
        assert torch.allclose(eager.as_tensor(), lazily.as_tensor(), atol=1e-5)
        assert torch.allclose(eager.affine, lazily.affine)
        pending = rotate(one, lazy=True)
        assert torch.allclose(pending.peek_pending_affine(), eager.affine)


def test_lazy_rotations_use_the_spacing_after_pending_operations():
    image = MetaTensor(blob(SHAPE, SPACING, (4.0, 3.0, -5.0)), affine=affine_of(SPACING))
    chain = [GridSymmetryd("image", "4+ [001]"), RotateAboutAxisd("image", 40, "x"), GridSymmetryd("image", "m [100]")]
    eager = Compose(chain)({"image": image})["image"]
    lazily = Compose(chain, lazy=True)({"image": image})["image"]
    assert torch.allclose(eager.as_tensor(), lazily.as_tensor(), atol=1e-4)
    assert torch.allclose(eager.affine, lazily.affine)


@pytest.mark.parametrize("lazy", [False, True])
def test_labels_stay_labels_and_go_with_their_image(lazy):
    image = MetaTensor(blob((31, 31, 31), (1, 1, 1), (4.0, 3.0, -5.0), 5.0), affine=torch.eye(4))
    label = MetaTensor((image.as_tensor() > 0.5).float() * 7, affine=torch.eye(4))
    keys = ["image", "label"]
    # the symmetry after it passes on the mode
    chain = Compose(
        [RotateAboutAxisd(keys, 40, (1, 1, 0), mode=["bilinear", "nearest"]), GridSymmetryd(keys, "-1")], lazy=lazy
    )
    rotated = chain({"image": image, "label": label})
    assert set(rotated["label"].unique().tolist()) == {0.0, 7.0}
    assert ((rotated["image"] > 0.5) != (rotated["label"] > 0)).float().mean() < 0.01
    back = chain.inverse(rotated)
    assert (back["label"] != label).float().mean() < 0.01
    assert torch.allclose(back["label"].affine, label.affine)


def test_invertd_rotates_predictions_back_by_nearest_neighbour():
    image = MetaTensor(blob((31, 31), (1, 1), (4.0, 3.0), 5.0), affine=torch.eye(4))
    before = Compose([RotateAboutAxisd("image", 30)])
    batch = list_data_collate([before({"image": image}), before({"image": image})])
    batch["prediction"] = (batch["image"] > 0.5).float()
    after = Invertd("prediction", before, orig_keys="image", nearest_interp=True)
    for item in decollate_batch(batch):
        undone = after(item)["prediction"]
        assert set(undone.unique().tolist()) == {0.0, 1.0}
        assert ((image > 0.5) != (undone > 0.5)).float().mean() < 0.01


def test_a_flat_image_that_lies_obliquely_in_space_has_the_spacing_of_its_columns():
    image = MetaTensor(blob((31, 41), (2.0, 1.0), (6.0, 5.0), 4.0), affine=affine_of((2.0, 1.0)))
    rotated = RotateAboutAxis(50)(image)
    expected = blob((31, 41), (2.0, 1.0), rotation_matrix(2, 50) @ (6.0, 5.0), 4.0)
    assert (rotated - expected).abs().max() < 0.05
    assert torch.equal(RotateAboutAxis(-50, (0, 0, -1))(image).as_tensor(), rotated.as_tensor())


def test_settings_of_a_call_override_and_flips_may_follow():
    image = MetaTensor(torch.rand(1, 9, 9), affine=torch.eye(4))
    rotate = RotateAboutAxis(20)
    assert torch.equal(rotate(image, mode="nearest"), RotateAboutAxis(20, mode="nearest")(image))
    assert RotateAboutAxis(20, dtype=None)(image.to(torch.float64)).dtype == torch.float32
    chain = Compose([rotate, Flip(0)], lazy=True)
    assert torch.allclose(chain(image).as_tensor(), Flip(0)(rotate(image)).as_tensor(), atol=1e-5)
    transform = RotateAboutAxisd("image", 20)
    transform.lazy = True
    assert transform.transforms[0].lazy


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16, "float16"])
@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_half_precision_and_integers_are_interpolated_as_float32(given, dtype, lazy):
    image = MetaTensor((torch.rand(1, 9, 9) * 9).to(given), affine=torch.eye(4))
    chain = Compose([RotateAboutAxis(25, dtype=dtype)], lazy=lazy)
    rotated = chain(image)
    assert rotated.dtype == torch.float32
    assert torch.allclose(rotated.as_tensor(), RotateAboutAxis(25)(image.float()).as_tensor(), atol=1e-4)
    assert chain.inverse(rotated).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: RotateAboutAxis("ten"), "angle='ten' is impossible: give a number"),
        (lambda: RotateAboutAxis(float("inf")), "angle=inf is not an angle"),
        (lambda: RotateAboutAxis([1, 2]), "is impossible: give a number"),
        (lambda: RotateAboutAxis(10, "w"), "axis='w' is unknown"),
        (lambda: RotateAboutAxis(10, 3), "axis=3 is unknown"),
        (lambda: RotateAboutAxis(10, (0, 0, 0)), "is not a direction"),
        (lambda: RotateAboutAxis(10, spacing=(1, 0, 1)), "give 3 voxel sizes above 0 in millimetres"),
        (lambda: RotateAboutAxis(10, spacing=(1, 1))(torch.zeros(1, 3, 3, 3)), "has 2 entries, the image 3"),
        (lambda: RotateAboutAxis(10, mode="linear"), "mode='linear' is unknown: use one of 'bilinear', 'nearest'"),
        (lambda: RotateAboutAxis(10, padding_mode="wrap"), "padding_mode='wrap' is unknown"),
        (lambda: RotateAboutAxis(10, "x")(torch.zeros(1, 3, 3)), "not at right angles to a 2D image"),
        (lambda: RotateAboutAxis(10)(torch.zeros(1, 3)), "cannot be rotated"),
        (lambda: RotateAboutAxis(10)("a.nii"), "given as the path 'a.nii', which cannot be rotated: load it first"),
        (lambda: RotateAboutAxis(10)(None), "given as a NoneType"),
        (lambda: RotateAboutAxisd("image", 10)({"image": Path("a.nii")}), "the path 'a.nii', .*LoadImaged"),
        (lambda: RotateAboutAxisd(["a", "b"], 10, mode=["nearest"]), "mode has 1 entries for 2 keys"),
        (lambda: RotateAboutAxisd(["a", "b"], 10, mode=["nearest", "cubic"]), "mode='cubic' is unknown"),
    ],
)
def test_wrong_input_ends_in_a_sentence(call, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        call()


def test_aliases():
    assert RotateAboutAxisD is RotateAboutAxisDict is RotateAboutAxisd
