"""A view rotates a batch and its labels, and changes nothing else."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate

from monai_gmr.rotation_report import PrepareBatchView
from monai_gmr.symmetry import angle_views, group_views, inscribed_ball, transform_image
from monai_gmr.symmetry.views import shift_views
from monai_gmr.utils import ConfigurationError


def make_batch(shape, metadata=True):
    """Makes two cases like a MONAI loader."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for number in range(2):
        image = torch.rand(1, *shape, generator=generator)
        label = torch.randint(0, 3, (1, *shape), generator=generator).float()
        if metadata:
            image = MetaTensor(image, meta={"filename_or_obj": f"case_{number}.nii.gz"})
            label = MetaTensor(label, meta={"filename_or_obj": f"label_{number}.nii.gz"})
        cases.append({"image": image, "label": label})
    return list_data_collate(cases)


@pytest.mark.parametrize("labels", ["nearest", "share"])
def test_targets_of_a_regression_are_rotated_like_images(labels):
    prepare_batch, batch = PrepareBatchView(labels=labels), make_batch((9, 12))
    batch["label"] = batch["image"] - 0.5
    for prepare_batch.view in angle_views(2, 40):
        image, label = prepare_batch(batch)
        inside = torch.as_tensor(inscribed_ball((9, 12)))
        assert torch.allclose(label[..., inside], image[..., inside] - 0.5, atol=1e-5)


@pytest.mark.parametrize("view", [None, *group_views(3)[::7], *angle_views(3, 40)[::5]], ids=lambda v: v and v.name)
@pytest.mark.parametrize("shape", [(6, 6, 6), (5, 6, 7)])
def test_every_case_is_rotated_like_a_single_image(view, shape):
    prepare_batch, batch = PrepareBatchView(), make_batch(shape)
    prepare_batch.view = view
    image, label = prepare_batch(batch)
    for case in range(2):
        for rotated, key in ((image, "image"), (label, "label")):
            upright = batch[key][case].as_tensor()
            expected = upright if view is None else transform_image(upright, view.matrix, order=3)
            if key == "image" or view is None or view.family == "group":
                torch.testing.assert_close(rotated[case].as_tensor(), expected)
            else:
                assert rotated[case].shape == expected.shape


@pytest.mark.parametrize(("labels", "margin"), [("share", 0.5), ("nearest", 0.5**0.5)])
@pytest.mark.parametrize("view", angle_views(2, 25), ids=lambda v: v.name)
def test_a_rotated_label_has_straight_borders(view, labels, margin):
    n = 65
    offset = np.stack(np.meshgrid(*[np.arange(n) - n // 2] * 2, indexing="ij")).astype(float)
    wedge = (offset[0] > 3) + 2 * (offset[0] < -6)
    prepare_batch = PrepareBatchView(labels=labels)
    prepare_batch.view = view
    label = torch.as_tensor(wedge)[None, None].float()
    rotated = prepare_batch({"image": torch.zeros_like(label), "label": label})[1][0, 0].numpy()
    across = (np.einsum("ij,jhw->ihw", view.matrix.T, offset))[0]
    expected = (across > 3.5) + 2 * (across < -6.5)
    ball = inscribed_ball((n, n))
    undecided = np.minimum(abs(across - 3.5), abs(across + 6.5)) < margin
    assert np.array_equal(rotated[ball & ~undecided], expected[ball & ~undecided])


@pytest.mark.parametrize("view", [group_views(2)[3], angle_views(2, 25)[2]], ids=lambda v: v.name)
def test_metadata_survives_decollation(view):
    prepare_batch = PrepareBatchView()
    prepare_batch.view = view
    image, _ = prepare_batch(make_batch((8, 6)))
    assert isinstance(image, MetaTensor)
    names = [item.meta["filename_or_obj"] for item in decollate_batch(image)]
    assert names == ["case_0.nii.gz", "case_1.nii.gz"]


@pytest.mark.parametrize("labels", ["share", "nearest"])
def test_labels_keep_their_values_and_the_batch_its_own_tensors(labels):
    prepare_batch, batch = PrepareBatchView(labels=labels), make_batch((9, 9), metadata=False)
    before = {key: value.clone() for key, value in batch.items()}
    prepare_batch.view = angle_views(2, 35)[1]
    _, label = prepare_batch(batch)
    assert set(np.unique(label)) <= {0.0, 1.0, 2.0}
    assert all(torch.equal(batch[key], before[key]) for key in before)


def test_class_labels_are_left_alone():
    prepare_batch = PrepareBatchView()
    prepare_batch.view = group_views(2)[5]
    classes = torch.tensor([[1], [0], [1]])
    image, label = prepare_batch({"image": torch.rand(3, 1, 8, 8), "label": classes})
    assert torch.equal(label, classes)
    assert image.shape == (3, 1, 8, 8)


def test_images_without_labels_are_rotated_too():
    prepare_batch, image = PrepareBatchView(), torch.rand(1, 1, 4, 6)
    prepare_batch.view = next(view for view in group_views(2) if view.matrix[0, 0] == 0)
    rotated, label = prepare_batch({"image": image})
    assert label is None
    assert rotated.shape == (1, 1, 6, 4)


def test_what_a_bundle_prepares_is_what_is_rotated():
    """The bundle's own prepare_batch is called first; its further items stay unchanged."""

    def prepare(batchdata, device, non_blocking, **kwargs):
        return batchdata["scan"] + 1, batchdata["mask"], ("prompt",), {"scale": 2}

    prepare_batch = PrepareBatchView(prepare_batch=prepare)
    prepare_batch.view = group_views(2)[3]
    scan, mask = torch.rand(1, 1, 5, 5), torch.ones(1, 1, 5, 5)
    image, label, args, kwargs = prepare_batch({"scan": scan, "mask": mask})
    torch.testing.assert_close(image, transform_image(scan + 1, prepare_batch.view.matrix))
    assert torch.equal(label, mask)
    assert (args, kwargs) == (("prompt",), {"scale": 2})


def test_labels_can_stay_upright():
    prepare_batch, batch = PrepareBatchView(labels=None), make_batch((9, 9), metadata=False)
    prepare_batch.view = group_views(2)[5]
    assert torch.equal(prepare_batch(batch)[1], batch["label"])


@pytest.mark.parametrize("view", [None, *group_views(2)[:3], *angle_views(2, 35)[:2], *shift_views(2, [0.5])])
@pytest.mark.parametrize("metadata", [True, False])
def test_images_in_the_ball_have_their_background_outside(view, metadata):
    """The background is the smallest value of each case and channel inside the upright image, whatever the corners hold."""
    batch = make_batch((9, 12), metadata)
    ball = torch.as_tensor(inscribed_ball((9, 12)))
    plain, masked = PrepareBatchView(), PrepareBatchView(in_ball=True)
    plain.view = masked.view = view
    least = batch["image"].as_subclass(torch.Tensor)[..., ball].amin(-1)
    batch["image"][:, :, 0, 0] = -100
    image, label = masked(batch)
    unmasked, unmasked_label = plain(batch)
    assert type(image) is type(unmasked)
    assert torch.equal(label, unmasked_label)
    moved = torch.as_tensor(inscribed_ball(image.shape[2:], None, view and view.shift))
    image, unmasked = (x.as_subclass(torch.Tensor) for x in (image, unmasked))
    assert torch.equal(image[..., moved], unmasked[..., moved])
    assert torch.equal(image[..., ~moved], least[..., None].expand_as(image[..., ~moved]))


def test_labels_of_shifted_images_stay():
    prepare_batch, batch = PrepareBatchView(), make_batch((9, 9), metadata=False)
    prepare_batch.view = shift_views(2, [0.5])[1]
    image, label = prepare_batch(batch)
    assert torch.equal(label, batch["label"])
    torch.testing.assert_close(image, transform_image(batch["image"], np.eye(2), shift=(0, 0.5)))


def test_an_unknown_sampling_of_labels_is_refused():
    with pytest.raises(ConfigurationError, match="labels='linear' is unknown: use one of 'nearest', 'share'"):
        PrepareBatchView(labels="linear")
