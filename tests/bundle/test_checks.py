"""Wrong inputs to a bundle end in one sentence that says what to do; valid ones pass."""

import json
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Spacing
from PIL import Image

from monai_gmr import bundle
from monai_gmr.bundle.headers import check_header
from monai_gmr.data import PredictionLayout
from monai_gmr.transforms import LoadCased
from monai_gmr.utils import ConfigurationError


def write_volume(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


@pytest.fixture
def dataset(tmp_path):
    """Two labelled cases in the Decathlon layout, with dataset.json as a dictionary and a function that writes it."""
    cases = []
    for number in range(2):
        label = np.zeros((6, 6, 6), np.uint8)
        label[2:4] = 2
        write_volume(tmp_path / "imagesTr" / f"{number}.nii.gz", label.astype(np.float32))
        write_volume(tmp_path / "labelsTr" / f"{number}.nii.gz", label)
        cases.append({"image": f"./imagesTr/{number}.nii.gz", "label": f"./labelsTr/{number}.nii.gz"})
    lists = {"name": "small", "training": cases[:1], "validation": cases[1:], "test": [cases[0]["image"]]}
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    return tmp_path, lists


def refused(match):
    """Expects an error, which must be one line."""
    return pytest.raises(ConfigurationError, match=rf"(?s)\A(?!.*\n).*{match}")


def test_a_right_dataset_passes(dataset):
    root, _ = dataset
    bundle.check_decathlon(root)
    bundle.check_decathlon(root, ("test",), labelled=False)


@pytest.mark.parametrize("shape", [(6, 7, 8), (6, 7, 8, 2), (6, 7, 8, 1), (6, 7, 8, 2, 3), (6, 7), (6, 7, 1)])
@pytest.mark.parametrize(("spatial_dims", "in_channels"), [(3, 1), (3, 2), (2, 1)])
def test_headers_are_judged_as_what_is_read(tmp_path, shape, spatial_dims, in_channels):
    file = tmp_path / "image.nii.gz"
    write_volume(file, np.random.default_rng(0).random(shape, np.float32))
    messages = []
    for check in (
        lambda: LoadCased("image", spatial_dims, in_channels)({"image": file}),
        lambda: check_header(file, spatial_dims, in_channels),
    ):
        try:
            check()
            messages.append("")
        except ConfigurationError as error:
            messages.append(str(error))
    assert messages[0] == messages[1] or "cannot be read" in messages[0]


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA", "P"])
def test_headers_of_pictures_are_judged_as_what_is_read(tmp_path, mode):
    """Channels that depend on values, such as those of a palette, are only checked when the image is read."""
    file = tmp_path / "picture.png"
    Image.new("RGB", (5, 6), (1, 2, 3)).convert(mode).save(file)
    for in_channels in (1, 3):
        try:
            read = LoadCased("image", 2, in_channels)({"image": file})["image"].shape[0] == in_channels
        except ConfigurationError:
            read = False
        try:
            check_header(file, 2, in_channels)
            passes = True
        except ConfigurationError:
            passes = False
        assert passes == (read or mode in ("RGBA", "LA", "P"))


def test_images_too_small_once_resampled(tmp_path):
    """The expected size comes from MONAI's Spacing."""
    file = tmp_path / "image.nii"
    affine = np.diag([1.0, 1.0, 2.5, 1.0])
    nib.save(nib.Nifti1Image(np.ones((9, 9, 4), np.float32), affine), file)
    for voxel_size, levels in ((2.0, 3), (2.0, 4), (1.0, 4), (3.0, 3), (4.0, 3)):
        size = max(Spacing(voxel_size)(LoadCased("image", 3, 1)({"image": file})["image"]).shape[1:])
        with nullcontext() if size > 2 ** (levels - 1) else refused(f"at voxel_size={voxel_size:g}, and"):
            check_header(file, 3, 1, levels, voxel_size)


def test_folders_that_are_no_dataset(tmp_path):
    with refused("does not exist"):
        bundle.check_decathlon(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with refused("is empty"):
        bundle.check_decathlon(empty)
    (tmp_path / "file").write_text("")
    with refused("is a file"):
        bundle.check_decathlon(tmp_path / "file")
    with refused("no dataset.json"):
        bundle.check_decathlon(tmp_path)


def test_the_dataset_below_a_folder_is_named(tmp_path):
    (tmp_path / "Task04").mkdir()
    (tmp_path / "Task04" / "dataset.json").write_text("{}")
    with refused("did you mean .*Task04"):
        bundle.check_decathlon(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"validation": None}, "no list 'validation'.*'test', 'training'"),
        ({"validation": []}, "'validation' .* is empty"),
        ({"training": ["./imagesTr/0.nii.gz"]}, "has no 'label'"),
        ({"training": [{"image": "./imagesTr/0.nii.gz"}]}, "has no 'label'"),
        ({"training": [{"image": "a.nii", "label": "b.nii"}]}, "2 of the 2 files .* missing, the first is .*a.nii"),
    ],
)
def test_lists_that_are_no_use(dataset, change, match):
    root, lists = dataset
    (root / "dataset.json").write_text(json.dumps({**lists, **change}))
    with refused(match):
        bundle.check_decathlon(root)


def test_more_processes_than_cases(dataset):
    root, _ = dataset
    bundle.check_decathlon(root, num_processes=1)
    with refused("'training' .* has 1 for 2 processes: start at most 1"):
        bundle.check_decathlon(root, num_processes=2)


@pytest.mark.parametrize(("text", "match"), [("{", "not readable as JSON"), ("[]", "must be an object")])
def test_a_dataset_json_that_is_none(dataset, text, match):
    root, _ = dataset
    (root / "dataset.json").write_text(text)
    with refused(match):
        bundle.check_decathlon(root)


def test_images_to_predict(dataset):
    root, _ = dataset
    listed = bundle.list_images(None, root, "test")
    assert [case["image"] for case in listed] == [str(root / "./imagesTr/0.nii.gz")]
    (root / "imagesTr" / "._0.nii.gz").write_bytes(b"\x00\x05\x16\x07")
    (root / "imagesTr" / ".nii.gz").write_bytes(b"")
    found = bundle.list_images(root / "imagesTr", "not used")
    assert [case["image"][-8:] for case in found] == ["0.nii.gz", "1.nii.gz"]
    assert bundle.list_images(root / "imagesTr" / "1.nii.gz", "not used") == found[1:]
    with refused("no NIfTI file of its own: give --dataset_dir"):
        bundle.list_images(root, "not used")


def test_images_in_capitals_and_in_folders_below_are_found(tmp_path):
    names = ["A.NII", "b.Nii.Gz", "c.nii", "one/a.nii", "one/two/A.NII.GZ"]
    for name in [*names, "._c.nii", ".git/a.nii", "one/._a.nii", "notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.nii").mkdir()
    found = [Path(case["image"]).relative_to(tmp_path).as_posix() for case in bundle.list_images(tmp_path, "not used")]
    assert found == names


@pytest.mark.parametrize("below", ["", "prediction", "one"])
def test_predictions_of_earlier_runs_are_no_images(tmp_path, below):
    """Predictions are in the folder of the images or a subfolder."""
    images = tmp_path / "images"
    for name in ("a.nii", "one/a.nii", "one/b.nii.gz"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).touch()
    out = images / below
    first = bundle.list_images(images, "not used", output_dir=out)
    assert len(first) == 3
    for _ in range(2):
        layout = PredictionLayout([case["image"] for case in first], out)
        for case in first:
            layout.filename(case["image"]).touch()
        assert bundle.list_images(images, "not used", output_dir=out) == first
    if below:
        assert bundle.list_images(images, "not used", output_dir=tmp_path / "other") == first


def test_a_table_of_classes_names_no_predictions(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii").touch()
    (tmp_path / "scans" / "predictions.csv").write_text("image,class\na.nii,1\n")
    assert len(bundle.list_images(tmp_path, "not used")) == 1


def test_a_checkpoint_is_loaded_or_refused(tmp_path):
    trained, fresh, other = (torch.nn.Linear(2, n) for n in (3, 3, 4))
    path = tmp_path / "model.pt"
    torch.save({"model": trained.state_dict()}, path)
    bundle.load_network(fresh, path)
    assert torch.equal(fresh.weight, trained.weight)
    with refused("is of another network"):
        bundle.load_network(other, path)
    path.write_bytes(b"broken")
    with refused("cannot be read"):
        bundle.load_network(fresh, path)
    with refused("there is no checkpoint"):
        bundle.check_file(tmp_path / "none.pt", "checkpoint", "train first.")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: bundle.check_folder(3, "ckpt_dir"), "ckpt_dir=3 is impossible: give a path"),
        (lambda: bundle.FolderLock(3), "ckpt_dir=3 is impossible: give a path"),
        (
            lambda: bundle.check_file(3, "checkpoint", "train first."),
            "the path of the checkpoint=3 is impossible: give a",
        ),
        (lambda: bundle.check_decathlon(3), "dataset_dir=3 is impossible: give a path"),
    ],
)
def test_a_number_is_no_path(call, sentence):
    """A command line reads --ckpt_dir 3 as a number."""
    with pytest.raises(ConfigurationError, match=sentence):
        call()
