"""Tests of prediction files: each is unique below output_dir, and none replaces another image's."""

import pytest

from monai_gmr.data import PredictionLayout
from monai_gmr.utils import ConfigurationError


@pytest.mark.parametrize(
    ("images", "files"),
    [
        (["in/x.nii.gz", "in/y.nii"], ["x_seg.nii.gz", "y_seg.nii.gz"]),
        (["in/a/t1.nii.gz", "in/b/t1.nii.gz"], ["a/t1_seg.nii.gz", "b/t1_seg.nii.gz"]),
        (["in/t1.nii.gz", "in/b/t1.nii.gz"], ["t1_seg.nii.gz", "b/t1_seg.nii.gz"]),
        (["in/a/../b/t1.nii.gz", "other/t1.nii.gz"], ["in/b/t1_seg.nii.gz", "other/t1_seg.nii.gz"]),
        (["in/scan.1.nii.gz", "in/scan.2.nii.gz"], ["scan.1_seg.nii.gz", "scan.2_seg.nii.gz"]),
        (["in/x.mha", "in/y.npy"], ["x_seg.nii.gz", "y_seg.nii.gz"]),
        (["in/x.png", "in/y.JPG"], ["x_seg.png", "y_seg.png"]),
        (["in/x.png", "in/y.nii"], ["x_seg.nii.gz", "y_seg.nii.gz"]),
    ],
)
def test_folders_are_kept(tmp_path, images, files):
    layout = PredictionLayout([tmp_path / image for image in images], tmp_path / "out")
    assert [str(layout.filename(str(tmp_path / image))) for image in images] == [
        str(tmp_path / "out" / f) for f in files
    ]
    assert all((tmp_path / "out" / file).parent.is_dir() for file in files)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (["c.nii", "c.nii.gz"], "c.nii and .*c.nii.gz would both be predicted as .*c_seg.nii.gz: rename one"),
        (["c.mha", "c.nii.gz"], "would both be predicted"),
        (["C.nii.gz", "c.nii.gz"], "would both be predicted"),
        (["c.nii.gz", "./c.nii.gz"], "is listed twice"),
    ],
)
def test_two_images_for_one_file_are_refused(tmp_path, images, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        PredictionLayout([str(tmp_path / image) for image in images], tmp_path / "out")


def test_only_the_same_image_replaces_a_prediction(tmp_path):
    first, second, out = tmp_path / "a" / "t1.nii.gz", tmp_path / "b" / "t1.nii.gz", tmp_path / "out"
    PredictionLayout([first], out).filename(first).write_text("prediction")
    PredictionLayout([first], out)
    with pytest.raises(ConfigurationError, match=r"is the prediction of .*a/t1.nii.gz, and would be replaced"):
        PredictionLayout([second], out)
    # both in one run get other files
    PredictionLayout([first, second], out).filename(second).write_text("prediction")
    PredictionLayout([first, second], out)


def test_a_file_of_unknown_origin_and_an_image_are_not_replaced(tmp_path):
    (tmp_path / "t1_seg.nii.gz").write_text("drawn by hand")
    with pytest.raises(ConfigurationError, match="is no known prediction"):
        PredictionLayout([tmp_path / "t1.nii.gz"], tmp_path)
    with pytest.raises(ConfigurationError, match="would replace the image"):
        PredictionLayout([tmp_path / "t1.nii.gz", tmp_path / "t1_seg.nii.gz"], tmp_path)
