"""A bundle in Python predicts like its config, also bundles of others, and refuses in one sentence what it cannot do."""

import re
import shutil
import warnings

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import verify_net_in_out

import monai_gmr
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.utils import ConfigurationError


@pytest.fixture
def scan(tmp_path):
    pixels = np.random.default_rng(0).random((11, 12), np.float32)
    nib.save(nib.Nifti1Image(pixels, np.diag([2.0, 1, 1, 1])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_a_foreign_bundle_with_our_network_by_name(whole_bundle, scan, tmp_path, monkeypatch):
    """A bundle made by MONAI's init_bundle: MONAI finds the network, and our prediction equals its parts applied in turn."""
    monkeypatch.chdir(tmp_path)
    arguments = {"meta_file": str(whole_bundle / "configs" / "metadata.json"), "device": "cpu"}
    verify_net_in_out("network_def", config_file=str(whole_bundle / "configs" / "inference.json"), **arguments)
    theirs = monai.bundle.load(
        whole_bundle.name, bundle_dir=whole_bundle.parent, workflow_type="inference", device="cpu"
    )
    assert isinstance(theirs, GMRUNet)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        bundle = monai_gmr.load_bundle(whole_bundle)
    assert not bundle.network.training
    image = torch.from_numpy(nib.load(scan).get_fdata(dtype=np.float32))[None]
    image = (image - image.min()) / (image.max() - image.min())
    with torch.no_grad():
        expected = theirs.eval()(image[None])[0].argmax(0, keepdim=True)
    found = bundle(scan)
    assert torch.equal(found.as_tensor(), expected.float())
    assert np.allclose(found.affine, np.diag([2.0, 1, 1, 1]))
    case = bundle.preprocessing({"image": str(scan)})
    case["pred"] = bundle.inferer(case["image"][None], bundle.network)[0].detach()
    assert torch.equal(bundle.postprocessing(case)["pred"], found)
    # nothing writes, not even the config's SaveImage
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_random_weights_are_said(whole_bundle, tmp_path):
    root = shutil.copytree(whole_bundle, tmp_path / whole_bundle.name)
    (root / "models" / "model.pt").unlink()
    with pytest.warns(UserWarning, match="there are no weights at .*: the network of nuclei_segmentation has random"):
        monai_gmr.load_bundle(root)


@pytest.mark.parametrize(
    ("bundle", "settings", "sentence"),
    [
        ("volume_segmentation", {}, "did you mean volume_segmentation_gmr_unet?"),
        (
            "volume_segmentation_gmr_unet",
            {"rio_size": 3},
            "rio_size is not a setting of this config: did you mean --roi_size?",
        ),
        ("volume_segmentation_gmr_unet", {"features": 3}, "features=3 cannot be used"),
        (
            "volume_segmentation_gmr_unet",
            {"reduction": "argmax"},
            "reduction='argmax' reduces windows and there are none",
        ),
        ("volume_segmentation_gmr_unet", {"rings": "square"}, "rings='square'"),
        ("volume_segmentation_gmr_unet", {"checkpoint": "none.pt"}, "none.pt does not exist"),
    ],
)
def test_mistakes_are_one_sentence(bundle, settings, sentence):
    with pytest.raises(ConfigurationError) as caught:
        monai_gmr.load_bundle(bundle, **settings)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"is not a bundle, it has no configs/metadata\.json"):
        monai_gmr.load_bundle(tmp_path)


def test_an_array_for_a_bundle_that_reads_files(whole_bundle):
    with pytest.raises(TypeError, match="the image is a ndarray and nuclei_segmentation reads files: give the path"):
        monai_gmr.load_bundle(whole_bundle)(np.zeros((1, 8, 8)))


@pytest.mark.parametrize("name", ["volume_segmentation_gmr_unet", "medmnist2d_classification_gmr_resnet", "foreign"])
def test_an_image_that_cannot_be_predicted_is_one_sentence(name, whole_bundle, tmp_path):
    bundle = monai_gmr.load_bundle(whole_bundle if name == "foreign" else name, device="cpu")
    (tmp_path / "empty.nii.gz").touch()
    for image in (tmp_path / "none.nii.gz", tmp_path / "empty.nii.gz"):
        with pytest.raises(ConfigurationError, match=image.name) as caught:
            bundle(image)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("millimetres", "sentence"),
    [
        (
            0.01,
            "hippocampus_segmentation_gmr_unet, its 20 x 24 x 22 voxels of 0.01 x 0.01 x 0.01 mm are resampled to 1 x 1 x 1: an",
        ),
        (
            30,
            "grows too much, its 20 x 24 x 22 voxels of 30 x 30 x 30 mm are resampled to 571 x 691 x 631: correct the",
        ),
        (1, ""),
    ],
)
def test_a_wrong_voxel_size_is_named_with_its_file(millimetres, sentence, tmp_path):
    pixels, file = np.random.default_rng(0).random((20, 24, 22), np.float32), tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(pixels, np.diag([millimetres] * 3 + [1])), file)
    bundle = monai_gmr.load_bundle("hippocampus_segmentation_gmr_unet", device="cpu")
    if not sentence:
        assert bundle(file).shape == (1, 20, 24, 22)
        return
    with pytest.raises(ConfigurationError, match=re.escape(sentence)) as caught:
        bundle(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("dims", "shape"),
    [(2, (28, 28)), (2, (28,)), (2, ()), (2, (1, 1, 28, 28)), (2, (3, 28, 28)), (2, (28, 28, 1)), (2, (1, 8, 8, 8))]
    + [(3, (9, 9, 9)), (3, (2, 9, 9, 9)), (3, (1, 9, 9))],
)
@pytest.mark.parametrize("kind", [np.float32, torch.Tensor, list])
def test_an_array_of_another_shape_is_one_sentence(classifiers, dims, shape, kind):
    array = np.zeros(shape, np.float32)
    image = torch.from_numpy(array) if kind is torch.Tensor else array.tolist() if kind is list else array
    with pytest.raises(ConfigurationError) as caught:
        classifiers[dims](image)
    start = f"an array of {shape} cannot be predicted by medmnist{dims}d_classification_gmr_resnet: give one image "
    assert str(caught.value).startswith(start)
    size = (32, 32) if dims == 2 else (28, 28, 28)
    assert str(caught.value).endswith(f"1 channel first and then {dims} spatial axes, such as {(1, *size)}.")


@pytest.fixture(scope="module")
def classifiers():
    return {dims: monai_gmr.load_bundle(f"medmnist{dims}d_classification_gmr_resnet", device="cpu") for dims in (2, 3)}
