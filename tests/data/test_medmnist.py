"""Tests of data sets in the MedMNIST layout: items, rows of sections, and a sentence for each mistake."""

from __future__ import annotations

import hashlib
import subprocess

import numpy as np
import pytest
import torch
from monai.apps.utils import get_logger
from monai.data import DataLoader, MetaTensor, decollate_batch
from monai.transforms import Compose, RandFlipd, SaveImage, ScaleIntensityd

from monai_gmr.data import MedMNISTCacheDataset, medmnist, medmnist_info
from monai_gmr.utils import ConfigurationError

COUNTS = {"train": 7, "val": 4, "test": 5}
SECTIONS = {"training": "train", "validation": "val", "test": "test"}


def write_file(path, shape=(8, 9), labels=lambda n: np.arange(n).reshape(-1, 1) % 3, **extra):
    rng = np.random.default_rng(0)
    arrays = {f"{s}_images": rng.integers(0, 256, (n, *shape)).astype(np.uint8) for s, n in COUNTS.items()}
    arrays |= {f"{s}_labels": labels(n).astype(np.uint8) for s, n in COUNTS.items()}
    np.savez_compressed(path, **(arrays | extra))
    return arrays


def dataset(folder, flag="cells.npz", section="test", **kwargs):
    return MedMNISTCacheDataset(folder, flag, section, progress=False, **kwargs)


@pytest.mark.parametrize(
    ("shape", "spatial_dims", "channels"),
    [((8, 9), 2, 1), ((8, 9, 3), 2, 3), ((8, 9, 1), 2, 1), ((6, 7, 8), 3, 1), ((6, 7, 8, 3), 3, 3)],
)
@pytest.mark.parametrize("section", SECTIONS)
def test_items_are_the_rows_of_the_section_channel_first(tmp_path, shape, spatial_dims, channels, section):
    key = SECTIONS[section]
    arrays = write_file(tmp_path / "cells.npz", shape)
    data = dataset(tmp_path, section=section)
    assert len(data) == COUNTS[key]
    assert (data.spatial_dims, data.num_channels, data.num_classes) == (spatial_dims, channels, 3)
    assert data.spatial_shape == shape[:spatial_dims]
    for row, item in enumerate(data):
        expected = arrays[f"{key}_images"][row].reshape(*shape[:spatial_dims], channels)
        for channel in range(channels):
            np.testing.assert_array_equal(item["image"].numpy()[channel], expected[..., channel])
        assert item["image"].dtype is torch.uint8
        assert item["label"] == arrays[f"{key}_labels"][row, 0]
        assert isinstance(item["label"], int)
        assert item["image"].meta["filename_or_obj"] == f"cells_{key}_{row:05d}"
    np.testing.assert_array_equal(data.class_counts, np.bincount(arrays[f"{key}_labels"][:, 0], minlength=3))


def test_class_count_is_that_of_the_file_not_of_the_section(tmp_path):
    write_file(tmp_path / "cells.npz", test_labels=np.zeros((5, 1), np.uint8))
    assert dataset(tmp_path, section="test").num_classes == 3


def test_labels_without_a_second_axis_are_integers_too(tmp_path):
    write_file(tmp_path / "cells.npz", labels=lambda n: np.arange(n) % 2)
    assert [item["label"] for item in dataset(tmp_path)] == [0, 1, 0, 1, 0]


def test_several_labels_an_image_come_as_a_vector(tmp_path):
    arrays = write_file(tmp_path / "cells.npz", labels=lambda n: np.arange(n * 4).reshape(n, 4) % 3 == 0)
    data = dataset(tmp_path)
    assert data.num_classes == 4
    np.testing.assert_array_equal([item["label"] for item in data], arrays["test_labels"])
    np.testing.assert_array_equal(data.class_counts, arrays["test_labels"].sum(0))
    assert next(iter(DataLoader(data, batch_size=5)))["label"].shape == (5, 4)


@pytest.mark.parametrize("classes", [(0, 2), (2, 0), (1,)])
def test_kept_classes_are_renumbered_and_keep_the_row_in_the_name(tmp_path, classes):
    arrays = write_file(tmp_path / "cells.npz")
    data = dataset(tmp_path, classes=classes)
    old = arrays["test_labels"][:, 0]
    rows = [row for row in range(5) if old[row] in classes]
    assert data.num_classes == len(classes)
    assert [item["label"] for item in data] == [classes.index(old[row]) for row in rows]
    assert [int(item["image"].meta["filename_or_obj"][-5:]) for item in data] == rows
    assert data.class_names == tuple(map(str, classes))


@pytest.mark.parametrize("wrap", [Compose, list, tuple])
def test_transforms_before_the_first_random_one_are_cached(tmp_path, wrap):
    write_file(tmp_path / "cells.npz")
    transform = wrap([ScaleIntensityd("image"), RandFlipd("image", prob=1.0, spatial_axis=0)])
    before = len(transform.transforms) if isinstance(transform, Compose) else len(transform)
    data = dataset(tmp_path, transform=transform)
    cached, item = data._cache[0]["image"], data[0]["image"]
    assert cached.max() == 1
    torch.testing.assert_close(item.as_tensor(), cached.as_tensor().flip(1))
    after = len(transform.transforms) if isinstance(transform, Compose) else len(transform)
    assert before == after


@pytest.mark.parametrize(
    "options", [{"cache_rate": 0.0}, {"cache_num": 2}, {"runtime_cache": True}, {"num_workers": 2}]
)
def test_caching_does_not_change_the_items(tmp_path, options):
    write_file(tmp_path / "cells.npz")
    for cached, other in zip(dataset(tmp_path), dataset(tmp_path, **options), strict=True):
        torch.testing.assert_close(cached["image"], other["image"])
        assert cached["label"] == other["label"]


def test_savers_name_the_file_after_the_row(tmp_path):
    write_file(tmp_path / "cells.npz", (6, 7, 8))
    batch = next(iter(DataLoader(dataset(tmp_path), batch_size=2)))
    assert isinstance(batch["image"], MetaTensor)
    save = SaveImage(tmp_path / "out", output_postfix="seg", separate_folder=False, print_log=False)
    for item in decollate_batch(batch):
        save(item["image"])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"cells_test_0000{i}_seg.nii.gz" for i in (0, 1)}


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A stub of medmnist with one data set, described like in the installed package."""
    write_file(tmp_path / "cells.npz")
    write_file(tmp_path / "cells_64.npz", (10, 10))
    info = {
        suffix: hashlib.md5((tmp_path / f"cells{name}.npz").read_bytes()).hexdigest()
        for suffix, name in (("MD5", ""), ("MD5_64", "_64"))
    }
    info |= {"url": "https://x/cells.npz", "label": {"0": "round", "1": "long"}, "python_class": "Cells"}
    monkeypatch.setattr(medmnist, "medmnist_info", lambda flag: info if flag == "cells" else None)
    return tmp_path


@pytest.mark.parametrize(("flag", "size"), [("cells", 28), ("cells", 64), ("cells_64.npz", 28), ("cells.npz", 28)])
def test_published_md5_is_accepted_and_any_other_refused(published, flag, size):
    data = dataset(published, flag, size=size)
    assert data.class_names == ("round", "long", "2")
    write_file(data.path, data.spatial_shape, note=np.zeros(1))
    with pytest.raises(ConfigurationError, match=r"MD5 of .*cells.*check_md5=False"):
        dataset(published, flag, size=size)
    assert len(dataset(published, flag, size=size, check_md5=False)) == 5


def test_unknown_name_skips_the_md5_with_one_line(tmp_path, caplog, monkeypatch):
    # MONAI's loggers do not propagate, so caplog sees only loggers that an earlier test has made
    logger = get_logger("monai_gmr.data.medmnist")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    write_file(tmp_path / "other.npz")
    dataset(tmp_path, "other.npz")
    assert sum("MD5 of other.npz not checked" in message for message in caplog.messages) == 1


def sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"section": "train"}, "'training', 'validation', 'test'"),
        ({"size": 32}, "28, 64, 128, 224"),
        ({"flag": "cell"}, "cell.npz does not exist and .* holds cells.npz"),
        ({"flag": "cells", "size": 64}, "cells_64.npz does not exist"),
        ({"classes": (0, 5)}, r"unknown label values \[5\].*\[0, 1, 2\]"),
        ({"classes": (1, 1)}, "twice"),
        ({"classes": ()}, "empty"),
        ({"flag": "nothing", "download": True}, "medmnist"),
    ],
)
def test_wrong_arguments_are_one_sentence(tmp_path, arguments, words):
    write_file(tmp_path / "cells.npz")
    with pytest.raises(ConfigurationError, match=words) as error:
        dataset(tmp_path, **arguments)
    sentence(error)


@pytest.mark.parametrize("folder", ["missing", "empty", "afile"])
def test_wrong_folder_is_one_sentence(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "afile").touch()
    with pytest.raises(ConfigurationError, match=r"does not exist|holds no npz file") as error:
        dataset(tmp_path / folder)
    sentence(error)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"image": np.zeros(3), "label": np.zeros(3)},
            "lacks test_images and test_labels among its keys image, label",
        ),
        ({"test_images": np.zeros((3, 4, 4))}, "lacks test_labels"),
        (
            {"test_images": np.zeros((3, 4, 4)), "test_labels": np.zeros((2, 1), int)},
            "one row of labels an image",
        ),
        ({"test_images": np.zeros((3, 4)), "test_labels": np.zeros((3, 1), int)}, "2D or 3D"),
        (
            {"test_images": np.zeros((0, 4, 4)), "test_labels": np.zeros((0, 1), int)},
            "one row of labels an image",
        ),
        ({"test_images": np.zeros((3, 4, 4)), "test_labels": np.full((3, 1), 0.5)}, "not integers"),
        ({"test_images": np.array([None] * 3), "test_labels": np.zeros((3, 1), int)}, "cannot be read"),
    ],
)
def test_wrong_layout_is_one_sentence(tmp_path, arrays, words):
    np.savez(tmp_path / "cells.npz", **arrays)
    with pytest.raises(ConfigurationError, match=words) as error:
        dataset(tmp_path)
    sentence(error)


@pytest.mark.parametrize("content", [b"", b"not a zip file", None, "npy"])
def test_damaged_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "cells.npz"
    write_file(path)
    if content == "npy":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(ConfigurationError, match=r"cannot be read as an npz file") as error:
        dataset(tmp_path)
    sentence(error)


def test_download_lands_under_its_name_or_not_at_all(published, monkeypatch):
    import types

    def fetch(split, root, size, download):
        if broken:
            (root_path := root + "/cells.npz") and open(root_path, "wb").close()
            raise RuntimeError("Automatic download\nfailed")
        write_file(root + "/cells.npz")

    monkeypatch.setattr(medmnist.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(medmnist.importlib, "import_module", lambda name: types.SimpleNamespace(Cells=fetch))
    target = published / "new"
    broken = True
    with pytest.raises(ConfigurationError, match=r"could not be downloaded from https://x/cells\.npz") as error:
        dataset(target, "cells", download=True)
    sentence(error)
    assert list(target.iterdir()) == []
    broken = False
    assert len(dataset(target, "cells", download=True, check_md5=False)) == 5
    assert [p.name for p in target.iterdir()] == ["cells.npz"]
    broken = True
    assert len(dataset(target, "cells", download=True, check_md5=False)) == 5


def test_reading_does_not_import_medmnist(tmp_path, forked_python):
    write_file(tmp_path / "breastmnist.npz")
    code = (
        "import sys; from monai_gmr.data import MedMNISTCacheDataset as D; "
        f"D({str(tmp_path)!r}, 'breastmnist', 'test', check_md5=False, progress=False); "
        "sys.exit('medmnist' in sys.modules)"
    )
    assert subprocess.run([forked_python, "-c", code], check=False).returncode == 0


def test_table_of_the_installed_medmnist_is_read():
    pytest.importorskip("medmnist")
    info = medmnist_info("breastmnist")
    assert info["MD5"] == "750601b1f35ba3300ea97c75c52ff8f6"
    assert info["label"]["0"] == "malignant"


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (8, 9, 3), (6, 7, 8), (6, 7, 8, 3)])
@pytest.mark.parametrize("labels", [lambda n: np.arange(n) % 3, lambda n: np.ones((n, 3), int)])
def test_writing_to_an_uncached_item_leaves_the_data_set_as_it_was(tmp_path, shape, labels):
    write_file(tmp_path / "cells.npz", shape, labels)
    for options in ({"cache_rate": 0.0}, {"cache_num": 0}, {"cache_rate": 0.0, "transform": RandFlipd("image", 0.0)}):
        data = dataset(tmp_path, **options)
        before = [(item["image"].numpy().copy(), np.array(item["label"])) for item in data]
        for item in data:
            item["image"].zero_()
            item["image"].affine.zero_()
            if isinstance(item["label"], np.ndarray):
                item["label"][:] = 2
        for item, (image, label) in zip(data, before, strict=True):
            np.testing.assert_array_equal(item["image"].numpy(), image)
            np.testing.assert_array_equal(item["label"], label)
            assert not torch.equal(item["image"].affine, torch.zeros(4, 4))
