"""Tests of phantoms: labels match the image, shapes have the right direction, and writing can be interrupted."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from monai.transforms import LoadImaged
from scipy import ndimage

from monai_gmr.apps import make_phantoms
from monai_gmr.data import PHANTOM_LABELS, make_phantom, phantoms, write_phantoms
from monai_gmr.utils import ConfigurationError

SMALL = {
    "num_training": 2,
    "num_validation": 1,
    "num_test": 1,
    "spatial_shape": (16, 18, 20),
    "progress": False,
}


def main_axis(mask, spacing, smallest=False):
    """Computes the direction in which a mask is longest or thinnest: an eigenvector of its second moments, in millimetres."""
    points = np.argwhere(mask) * np.asarray(spacing)
    _, vectors = np.linalg.eigh(np.cov((points - points.mean(0)).T))
    return vectors[:, 0 if smallest else -1]


def axes_of(label, kind, spacing):
    parts, number = ndimage.label(label == PHANTOM_LABELS[kind], structure=np.ones((3,) * label.ndim))
    masks = [parts == i for i in range(1, number + 1)]
    return np.array([main_axis(m, spacing, kind == "plate") for m in masks if m.sum() > 60])


@pytest.mark.parametrize("shape", [(40, 40, 40), (33, 48, 40), (64, 64), (50, 65)])
@pytest.mark.parametrize("noise", ["rician", "gaussian"])
def test_image_and_label_have_one_shape_and_the_same_seed_gives_the_same(shape, noise):
    image, label = make_phantom(shape, noise=noise, noise_level=0.3, seed=3)
    again, _ = make_phantom(shape, noise=noise, noise_level=0.3, seed=3)
    other, _ = make_phantom(shape, noise=noise, noise_level=0.3, seed=4)
    assert image.shape == label.shape == shape
    assert (image.dtype, label.dtype) == (np.float32, np.uint8)
    assert set(np.unique(label)) == set(range(4 if len(shape) == 3 else 3))
    np.testing.assert_array_equal(image, again)
    assert np.abs(image - other).max() > 0.1
    assert (image.min() >= 0) == (noise == "rician")


def test_structures_stand_out_and_are_alike_in_brightness():
    means = []
    for seed in range(12):
        image, label = make_phantom((48, 48, 48), bias_field=0, noise_level=0.02, blur=0, seed=seed)
        means.append([image[label == value].mean() for value in range(4)])
    means = np.mean(means, axis=0)
    np.testing.assert_allclose(means, [0.3, 1, 1, 1], atol=0.04)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 1, 2.5)])
@pytest.mark.parametrize("kind", ["tube", "plate"])
def test_upright_structures_share_a_direction_and_random_ones_do_not(kind, spacing):
    shape = tuple(int(48 / s) for s in spacing)
    mean = {}
    for pose in ("upright", "random"):
        labels = [make_phantom(shape, pose=pose, spacing=spacing, seed=seed)[1] for seed in range(5)]
        axes = np.concatenate([axes_of(label, kind, spacing) for label in labels])
        assert len(axes) > 10
        mean[pose] = (axes[:, 0] ** 2).mean()
    assert mean["upright"] > 0.9
    # The mean square of a component of a uniformly random direction is 1/3.
    assert abs(mean["random"] - 1 / 3) < 0.2


def test_noise_is_of_the_level_asked_for():
    clean, _ = make_phantom((48, 48, 48), noise="gaussian", noise_level=0, seed=1)
    noisy, _ = make_phantom((48, 48, 48), noise="gaussian", noise_level=0.1, seed=1)
    assert np.std(noisy - clean) == pytest.approx(0.1, rel=0.02)
    rician, _ = make_phantom((48, 48, 48), noise="rician", noise_level=0.1, seed=1)
    # E[M^2] = A^2 + 2 sigma^2 for Rician magnitudes M of amplitude A.
    assert np.mean(rician**2 - clean**2) == pytest.approx(2 * 0.1**2, rel=0.1)


def test_bias_field_multiplies_within_its_range():
    flat, _ = make_phantom((32, 32, 32), noise_level=0, bias_field=0, seed=1)
    biased, _ = make_phantom((32, 32, 32), noise_level=0, bias_field=0.4, seed=1)
    field = np.log(biased / flat)
    assert np.abs(field).max() == pytest.approx(0.4, rel=1e-4)
    assert np.abs(np.diff(field, axis=0)).max() < 0.2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"spatial_shape": (48,)}, "2 or 3 sizes"),
        ({"spatial_shape": (48, 8, 48)}, "at least 16"),
        ({"spatial_shape": (48, 48, 48), "spacing": (1, 1)}, "give 3 voxel sizes above 0 in millimetres"),
        ({"spatial_shape": (48, 48), "spacing": (1, 0)}, "give 2 voxel sizes above 0 in millimetres"),
        ({"spatial_shape": (48, 48), "pose": "flat"}, "'upright', 'random'"),
        ({"spatial_shape": (48, 48), "noise": "salt"}, "'rician', 'gaussian'"),
        ({"spatial_shape": (48, 48), "noise_level": -1}, "noise_level=-1 is impossible: give a number of at least 0"),
        ({"spatial_shape": (48, 48), "num_objects": 0}, "at least 1"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, words):
    with pytest.raises(ConfigurationError, match=words) as error:
        make_phantom(**arguments)
    assert "\n" not in str(error.value)


def test_decathlon_layout_is_what_monai_reads(tmp_path):
    listing = write_phantoms(tmp_path / "data", spacing=(1, 1, 2), **SMALL)
    load = LoadImaged(["image", "label"], ensure_channel_first=True)
    names = []
    for section, number in (("training", 2), ("validation", 1), ("test", 1)):
        items = load_decathlon_datalist(listing, data_list_key=section)
        assert len(items) == number
        for item in items:
            names.append(item["image"])
            volumes = load(item)
            assert volumes["image"].shape == volumes["label"].shape == (1, *SMALL["spatial_shape"])
            assert volumes["image"].pixdim.tolist() == [1, 1, 2]
            assert volumes["label"].max() <= 3
    assert len(set(names)) == 4
    assert json.loads(listing.read_text())["labels"]["3"] == "plate"


def test_files_hold_what_make_phantom_makes(tmp_path):
    write_phantoms(tmp_path, seed=5, **SMALL)
    image, label = make_phantom(SMALL["spatial_shape"], seed=(5, 2))
    np.testing.assert_array_equal(nib.load(tmp_path / "imagesTr" / "phantom_002.nii.gz").get_fdata(), image)
    np.testing.assert_array_equal(nib.load(tmp_path / "labelsTr" / "phantom_002.nii.gz").get_fdata(), label)


def test_flat_phantoms_can_be_written_too(tmp_path):
    listing = write_phantoms(tmp_path, 1, 1, 1, (32, 32), progress=False)
    item = load_decathlon_datalist(listing)[0]
    assert LoadImaged("image")(item)["image"].shape == (32, 32)


def times(folder):
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob("*.*") if p.is_file()}


def test_complete_data_set_is_kept(tmp_path):
    write_phantoms(tmp_path, **SMALL)
    before = times(tmp_path)
    write_phantoms(tmp_path, **SMALL)
    assert times(tmp_path) == before
    assert len(before) == 9


@pytest.mark.parametrize("calls", [1, 4, 7])
def test_interrupted_writing_leaves_no_listing_and_is_completed(tmp_path, monkeypatch, calls):
    save, done = nib.save, []

    def interrupted(image, path):
        done.append(path)
        if len(done) == calls:
            path.write_bytes(b"half a file")
            raise KeyboardInterrupt
        save(image, path)

    with monkeypatch.context() as patch:
        patch.setattr(phantoms.nib, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_phantoms(tmp_path / "a", **SMALL)
    partial = times(tmp_path / "a")
    assert len(partial) == calls - 1
    write_phantoms(tmp_path / "a", **SMALL)
    write_phantoms(tmp_path / "b", **SMALL)
    complete = times(tmp_path / "a")
    assert {path: complete[path] for path in partial} == partial
    assert set(complete) == set(times(tmp_path / "b"))
    for path in complete:
        if path.suffix == ".gz":
            both = [nib.load(tmp_path / folder / path).get_fdata() for folder in "ab"]
            np.testing.assert_array_equal(*both)


def test_leftovers_of_other_arguments_are_not_taken_for_ours(tmp_path):
    write_phantoms(tmp_path, seed=1, **SMALL)
    (tmp_path / "dataset.json").unlink()
    write_phantoms(tmp_path, seed=2, **SMALL)
    image, _ = make_phantom(SMALL["spatial_shape"], seed=(2, 0))
    np.testing.assert_array_equal(nib.load(tmp_path / "imagesTr" / "phantom_000.nii.gz").get_fdata(), image)


@pytest.mark.parametrize("content", ["{}", "not json", '{"name": "hippocampus", "training": []}'])
def test_another_data_set_is_not_written_over(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ConfigurationError, match="give another output_dir"):
        write_phantoms(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["dataset.json"]
    assert (tmp_path / "dataset.json").read_text() == content


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_test": -1}, "numbers from 0"),
        ({"seed": -1}, "seed=-1 is impossible: give a whole number from 0"),
        ({"pose": "x"}, "'upright', 'random'"),
    ],
)
def test_wrong_arguments_write_nothing(tmp_path, changes, words):
    with pytest.raises(ConfigurationError, match=words):
        write_phantoms(tmp_path / "new", **(SMALL | changes))
    assert not (tmp_path / "new").exists()


def test_command_line_makes_a_data_set_with_a_picture(tmp_path, capsys):
    folder = tmp_path / "out"
    assert (
        make_phantoms.main([str(folder), "--number", "4", "--size", "16", "18", "20", "--spacing", "1", "1", "2"]) == 0
    )
    assert "2 training, 1 validation and 1 test volumes" in capsys.readouterr().out
    assert nib.load(folder / "imagesTr" / "phantom_003.nii.gz").shape == (16, 18, 20)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--number", "2"], "at least 3"),
        (["--size", "4"], "at least 16"),
        (["--spacing", "1", "2"], "give 3 voxel sizes above 0 in millimetres"),
    ],
)
def test_command_line_mistakes_are_one_sentence_and_code_2(tmp_path, capsys, arguments, words):
    assert make_phantoms.main([str(tmp_path / "out"), *arguments]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert words in text


def test_command_line_into_a_file_is_one_sentence(tmp_path, capsys):
    (tmp_path / "out").touch()
    assert make_phantoms.main([str(tmp_path / "out")]) == 2
    assert "is a file" in capsys.readouterr().err
