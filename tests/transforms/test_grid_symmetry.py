"""One symmetry of the grid: exact, a group action, invertible, lazy, and every voxel keeps its world position."""

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, set_track_meta
from monai.transforms import Compose, Flip, Flipd, Invertd, Rotate90, SaveImage, SpatialResample
from scipy.spatial.transform import Rotation

import monai_gmr.transforms
from monai_gmr.symmetry import PointGroup, element_name, element_triplet, point_group, transform_grid
from monai_gmr.transforms import GridSymmetry, GridSymmetryD, GridSymmetryd, GridSymmetryDict, RandGridSymmetry
from monai_gmr.utils import ConfigurationError

OPPOSITE = dict(zip("LRAPSI", "RLPAIS"))
SHAPES = {2: (4, 5), 3: (3, 4, 5)}


def oblique(dims=3, handedness=1):
    """Affine with anisotropic spacing, rotated by an angle that is not a multiple of 90 degrees, right- or left-handed."""
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix()
    affine[:3, :3] = rotation * (0.7, 1.3, handedness * 2.5)
    affine[:3, 3] = (-31.0, 12.5, 7.25)
    return torch.tensor(affine)


def picture(dims, affine=None):
    shape = SHAPES[dims]
    data = torch.arange(float(2 * np.prod(shape))).reshape(2, *shape)
    return MetaTensor(data, affine=oblique() if affine is None else affine)


def world(image, voxel):
    affine = image.affine.numpy()
    point = np.zeros(len(affine) - 1)
    point[: len(voxel)] = voxel
    return affine[:-1, :-1] @ point + affine[:-1, -1]


def assert_same(one, two):
    assert torch.equal(one.as_tensor(), two.as_tensor())
    assert torch.allclose(one.affine, two.affine)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["numpy", "tensor", "MetaTensor"])
def test_every_element_is_applied_and_inverted_exactly_and_keeps_the_dtype(dims, kind, device):
    original = picture(dims).to(device)
    given_image = {"numpy": original.cpu().numpy(), "tensor": original.as_tensor(), "MetaTensor": original}[kind]
    for element in point_group(dims):
        for dtype in (torch.float32, torch.int16, torch.bool):
            image = given_image.astype(str(dtype)[6:]) if kind == "numpy" else given_image.to(dtype)
            transform = GridSymmetry(element)
            rotated = transform(image)
            assert rotated.dtype == dtype
            plain = torch.as_tensor(image) if kind == "numpy" else torch.Tensor(image.cpu()).to(dtype)
            assert rotated.device.type == ("cpu" if kind == "numpy" else device.type)
            assert torch.equal(rotated.as_tensor().cpu(), transform_grid(plain, element))
            back = transform.inverse(rotated)
            assert torch.equal(back.as_tensor().cpu(), plain)
            assert not back.applied_operations
            if kind == "MetaTensor":
                assert torch.allclose(back.affine, original.affine)


@pytest.mark.parametrize("dims", [2, 3])
def test_index_names_and_matrix_mean_the_same_element(dims):
    image = picture(dims)
    for index, element in enumerate(point_group(dims)):
        expected = GridSymmetry(element)(image)
        for other in (index, element_name(element), element_triplet(element), element.tolist()):
            assert_same(GridSymmetry(other)(image), expected)


def test_composing_two_elements_equals_their_product_in_2d():
    image = picture(2)
    for g in point_group(2):
        for h in point_group(2):
            assert_same(GridSymmetry(g)(GridSymmetry(h)(image)), GridSymmetry(g @ h)(image))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 47), st.integers(0, 47), st.tuples(*[st.integers(1, 4)] * 3))
def test_composing_two_elements_equals_their_product_in_3d(i, j, shape):
    image = MetaTensor(torch.rand(1, *shape), affine=oblique())
    g, h = point_group(3)[[i, j]]
    assert_same(GridSymmetry(g)(GridSymmetry(h)(image)), GridSymmetry(g @ h)(image))


def test_reflections_and_quarter_turns_are_those_of_monai():
    image = picture(3)
    for axis, name in enumerate(("m [100]", "m [010]", "m [001]")):
        assert_same(GridSymmetry(name)(image), Flip(axis)(image))
    for plane in ((0, 1), (0, 2), (1, 2)):
        theirs = Rotate90(1, plane)(image)
        ours = [rotated for g in range(48) if (rotated := GridSymmetry(g)(image)).shape == theirs.shape]
        ours = [rotated for rotated in ours if torch.equal(rotated.as_tensor(), theirs.as_tensor())]
        assert len(ours) == 1
        assert torch.allclose(ours[0].affine, theirs.affine, atol=1e-6)


@pytest.mark.parametrize("handedness", [1, -1])
def test_a_marked_point_keeps_its_place_in_a_saved_nifti(tmp_path, handedness):
    affine = oblique(handedness=handedness)
    assert np.sign(np.linalg.det(affine.numpy())) == handedness
    voxel = (0, 3, 1)
    image = MetaTensor(torch.zeros(1, *SHAPES[3]), affine=affine)
    image[(0, *voxel)] = 1.0
    place = world(image, voxel)
    save = SaveImage(tmp_path, "", separate_folder=False, resample=False, print_log=False)
    for index, element in enumerate(point_group(3)):
        rotated = GridSymmetry(element)(image)
        rotated.meta["filename_or_obj"] = f"element{index}.nii.gz"
        save(rotated)
        loaded = nibabel.load(tmp_path / f"element{index}.nii.gz")
        voxels = np.argwhere(loaded.get_fdata() == 1)
        assert len(voxels) == 1
        assert np.allclose(loaded.affine[:3, :3] @ voxels[0] + loaded.affine[:3, 3], place, atol=1e-4)
        assert loaded.shape == tuple(np.abs(element) @ SHAPES[3])
        assert np.allclose(loaded.header.get_zooms(), np.abs(element) @ (0.7, 1.3, 2.5), atol=1e-5)
        # the handedness of the stored axes changes with reflections, the world does not
        assert np.sign(np.linalg.det(loaded.affine[:3, :3])) == handedness * round(np.linalg.det(element))
        # the letters of the axes follow the axes, opposite if the axis is reversed
        letters = nibabel.aff2axcodes(affine.numpy())
        for axis, code in enumerate(nibabel.aff2axcodes(loaded.affine)):
            source = int(np.flatnonzero(element[axis])[0])
            assert code == (letters[source] if element[axis, source] > 0 else OPPOSITE[letters[source]])


@pytest.mark.parametrize("dims", [2, 3])
def test_resampled_to_the_original_affine_the_image_is_what_it_was(dims):
    image = picture(dims)
    for element in point_group(dims)[:: 1 if dims == 2 else 7]:
        rotated = GridSymmetry(element)(image)
        back = SpatialResample(mode="nearest")(rotated, dst_affine=image.affine, spatial_size=SHAPES[dims])
        assert torch.equal(back.as_tensor(), image.as_tensor())


@pytest.mark.parametrize("size", [3, 4])
def test_2d_images_keep_2d_and_3d_affines(size):
    affine = torch.eye(size, dtype=torch.float64)
    affine[0, 0], affine[1, 1], affine[0, -1] = 2.0, 3.0, 5.0
    image = picture(2, affine)
    for element in point_group(2):
        # when lazy, MONAI only keeps affines of shape (3, 3)
        for lazy in (False, True)[: 5 - size]:
            rotated = Compose([GridSymmetry(element)], lazy=lazy)(image)
            assert rotated.affine.shape == affine.shape
            voxels = np.argwhere(rotated[0].numpy() == 7)[0]
            assert np.allclose(world(rotated, voxels), world(image, (1, 2)))


@pytest.mark.parametrize("dims", [2, 3])
def test_lazy_equals_eager_alone_and_in_a_chain(dims):
    image = picture(dims, oblique() if dims == 3 else torch.diag(torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64)))
    for i, element in enumerate(point_group(dims)):
        other = point_group(dims)[-i - 1]
        pending = GridSymmetry(element, lazy=True)(image)
        assert len(pending.pending_operations) == 1
        assert pending.shape == image.shape
        assert pending.peek_pending_shape() == tuple(np.abs(element) @ SHAPES[dims])
        for chain in ([GridSymmetry(element)], [GridSymmetry(element), Flip(0), GridSymmetry(other)]):
            eager, lazily = Compose(chain)(image), Compose(chain, lazy=True)(image)
            assert_same(lazily, eager)
            assert len(lazily.applied_operations) == len(chain)
    chain = Compose([GridSymmetry(element), GridSymmetry(other)], lazy=True)
    assert_same(chain.inverse(chain(image)), image)


def test_lazy_flags_are_handed_on_and_overridden():
    image = picture(3)
    assert not GridSymmetry(3, lazy=True)(image, lazy=False).pending_operations
    transform = GridSymmetryd("image", 3)
    transform.lazy = True
    assert transform.transforms[0].lazy
    assert transform({"image": image})["image"].pending_operations
    assert not transform({"image": image}, lazy=False)["image"].pending_operations


def test_keys_of_unlike_spacing_and_type_are_transformed_alike_and_inverted():
    image, label = picture(3), MetaTensor((torch.rand(1, *SHAPES[3]) > 0.5).to(torch.uint8), affine=torch.eye(4))
    transform = GridSymmetryd(["image", "label", "absent"], "4+ [100]", allow_missing_keys=True)
    rotated = transform({"image": image, "label": label, "name": "case"})
    assert rotated["image"].shape[1:] == rotated["label"].shape[1:] == (3, 5, 4)
    assert rotated["label"].dtype == torch.uint8
    assert rotated["name"] == "case"
    # the spacing follows its axis: a voxel 1.3 mm wide stays so
    assert np.allclose(rotated["image"].pixdim, (0.7, 2.5, 1.3))
    back = transform.inverse(rotated)
    assert_same(back["image"], image)
    assert_same(back["label"], label)


def test_invertd_transforms_predictions_of_a_batch_back():
    data = [{"image": picture(3)}, {"image": picture(3) + 1}]
    before = Compose([GridSymmetryd("image", "-3+ [111]"), Flipd("image", 1)])
    after = Invertd("prediction", before, orig_keys="image", nearest_interp=False)
    for batch in DataLoader(Dataset(data, before), batch_size=2):
        batch["prediction"] = batch["image"] * 2
        for item, original in zip(decollate_batch(batch), data):
            assert_same(after(item)["prediction"], original["image"] * 2)


def test_without_tracked_metadata_the_voxels_are_transformed_all_the_same():
    image = picture(2).as_tensor()
    set_track_meta(False)
    try:
        for lazy in (False, True):
            rotated = GridSymmetry("4+", lazy=lazy)(image)
            assert not isinstance(rotated, MetaTensor)
            assert torch.equal(rotated, transform_grid(image, np.array([[0, -1], [1, 0]])))
    finally:
        set_track_meta(True)


def test_changing_the_result_in_place_leaves_the_image_as_it_was():
    for element in point_group(3)[1:]:
        image = picture(3)
        GridSymmetry(element)(image).add_(1)
        assert torch.equal(image.as_tensor(), picture(3).as_tensor())


def test_a_mirror_image_keeps_the_spacing_and_changes_the_handedness_of_the_stored_axes():
    rotated = GridSymmetry("m [010]")(picture(3))
    assert np.allclose(rotated.pixdim, (0.7, 1.3, 2.5))
    assert torch.linalg.det(rotated.affine) * torch.linalg.det(oblique()) < 0


@pytest.mark.parametrize("group", [("2/m", "x"), ["2/m", "x"], ["2/m", 0], PointGroup.from_name(("2/m", "x"), 3)])
def test_a_group_is_given_as_to_layers(group):
    """A name with its axis, and a group; draws equal those with separate arguments."""
    image = picture(3)
    found, wanted = (
        RandGridSymmetry(prob=1.0, **each).set_random_state(0)
        for each in ({"group": group}, {"group": "2/m", "axis": "x"})
    )
    for _ in range(5):
        assert torch.equal(found(image), wanted(image))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: RandGridSymmetry(group=("4/mm", "z")), "group='4/mm' is unknown in 3D"),
        (lambda: RandGridSymmetry(group=("4/mmm", "w")), "axis='w' is unknown in 3D"),
        (lambda: RandGridSymmetry(group=("4/mmm", 3)), "axis=3 is unknown in 3D"),
        (lambda: RandGridSymmetry(group=("4/mmm", "z"), axis=1), "is impossible: give a name"),
        (lambda: RandGridSymmetry(group=True), "group=True is impossible: give a name"),
        (lambda: RandGridSymmetry(group=None), "group=None is impossible: give a name"),
        (lambda: GridSymmetry(48), "element=48 is out of range"),
        (lambda: GridSymmetry("m [12]"), "unknown in 3D: use one of"),
        (lambda: GridSymmetry(np.eye(4)), "not a symmetry of the grid"),
        (lambda: GridSymmetry(8)(picture(2)), "elements 0 to 7"),
        (lambda: GridSymmetry("4+")(picture(3)), "'4\\+' is unknown in 3D"),
        (lambda: GridSymmetry(np.eye(2))(picture(3)), "transforms 2 axes, the image has 3"),
        (lambda: GridSymmetry(1)(torch.zeros(1, 5)), "shape \\(1, 5\\) cannot be rotated"),
        (lambda: GridSymmetry(1)(torch.zeros(1, 2, 2, 2, 2)), "cannot be rotated"),
        (lambda: GridSymmetry(1)("a.nii"), "given as the path 'a.nii', which cannot be rotated: load it first"),
        (lambda: GridSymmetry(1)(["a.nii"]), "given as a list"),
        (lambda: GridSymmetryd("image", 1)({"image": "a.nii"}), "the path 'a.nii'"),
    ],
)
def test_wrong_input_ends_in_a_sentence(call, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        call()


def test_aliases_and_names_of_monai():
    import monai.transforms

    assert GridSymmetryD is GridSymmetryDict is GridSymmetryd
    assert not set(monai_gmr.transforms.__all__) & set(dir(monai.transforms))
