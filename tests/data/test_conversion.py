"""Tests of conversion: targets compared with morphology, disjoint splits, files that MONAI reads back unchanged, no partial output."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from monai.transforms import LoadImaged
from scipy import ndimage

from monai_gmr.bundle import check_decathlon
from monai_gmr.data import MedMNISTCacheDataset, conversion
from monai_gmr.data.conversion import (
    Case,
    as_test_section,
    boundary,
    cut_blocks,
    draw_sections,
    foreground,
    read_arrays,
    read_cases,
    read_volume,
    split_cases,
    write_decathlon,
    write_medmnist,
)
from monai_gmr.utils import ConfigurationError


def some_cases(number, shape=(6, 7), dtype=np.uint8):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (number, *shape)).astype(dtype)
    labels = rng.integers(0, 3, (number, *shape)).astype(np.uint8)
    return [Case(f"{i:03d}", *pair) for i, pair in enumerate(zip(images, labels))]


@pytest.mark.parametrize("shape", [(20, 31), (12, 9, 15), (1, 8)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_boundary_is_where_the_largest_and_smallest_neighbour_differ(shape, dtype):
    instances = ndimage.zoom(
        np.random.default_rng(0).integers(0, 5, [max(n // 3, 1) for n in shape]), 3, order=0
    ).astype(dtype)
    cross = ndimage.generate_binary_structure(instances.ndim, 1)
    largest, smallest = (f(instances, footprint=cross) for f in (ndimage.maximum_filter, ndimage.minimum_filter))
    np.testing.assert_array_equal(boundary(instances), largest != smallest)
    assert boundary(instances).dtype == foreground(instances).dtype == np.uint8
    np.testing.assert_array_equal(foreground(instances), np.where(instances, 1, 0))


@pytest.mark.parametrize(("shape", "blocks"), [((6, 8), 2), ((4, 6, 8), 2), ((6, 9, 3), 3)])
def test_blocks_put_together_are_the_volume(shape, blocks):
    volume = Case("volume", *np.random.default_rng(0).integers(0, 99, (2, *shape)))
    parts = cut_blocks(volume, blocks)
    size = tuple(side // blocks for side in shape)
    assert len({part.name for part in parts}) == len(parts) == blocks ** len(shape)
    for part, index in zip(parts, np.ndindex((blocks,) * len(shape))):
        window = tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, size))
        np.testing.assert_array_equal(part.image, volume.image[window])
        np.testing.assert_array_equal(part.label, volume.label[window])


@pytest.mark.parametrize(("number", "sizes"), [(3, (1, 1, 1)), (4, (2, 1, 1)), (10, (6, 2, 2)), (541, (324, 108, 109))])
@pytest.mark.parametrize("seed", [None, 0, 7])
def test_split_holds_every_case_once(number, sizes, seed):
    cases = [Case(str(i), np.zeros(1), np.zeros(1)) for i in range(number)]
    sections = split_cases(cases, seed)
    assert tuple(len(sections[section]) for section in ("training", "validation", "test")) == sizes
    names = [case.name for part in sections.values() for case in part]
    assert sorted(names, key=int) == [case.name for case in cases]


def test_split_follows_the_order_or_the_seed():
    cases = some_cases(30)
    names = {seed: [case.name for part in split_cases(cases, seed).values() for case in part] for seed in (None, 0, 1)}
    assert names[None] == [case.name for case in cases]
    assert len({tuple(order) for order in names.values()}) == 3
    assert names[0] == [case.name for part in split_cases(cases, 0).values() for case in part]


@pytest.mark.parametrize("ids", [["b", "a"], ["007", "x-1"]])
def test_cases_are_named_by_id_or_by_position(ids):
    images, labels = np.random.default_rng(0).integers(0, 99, (2, 2, 5, 6))
    for keys in (ids, ["000", "001"]):
        arrays = {"ids": np.array(ids)}
        arrays |= {f"img_{key}": image for key, image in zip(keys, images)}
        arrays |= {f"lab_{key}": label for key, label in zip(keys, labels)}
        cases = read_cases(arrays, "cells.npz")
        assert [case.name for case in cases] == ids
        np.testing.assert_array_equal([case.image for case in cases], images)
        np.testing.assert_array_equal([case.label for case in cases], labels)


PLANE = np.ones((4, 5), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": PLANE}, "no 'ids' among its keys x"),
        ({"ids": np.array(["a", "a"])}, "1 of 2 cases"),
        ({"ids": np.array(["a"]), "lab_a": PLANE}, "no 'img_000'"),
        ({"ids": np.array(["a"]), "img_a": PLANE}, "no 'lab_a'"),
        ({"ids": np.array(["../a"]), "img_000": PLANE, "lab_000": PLANE}, "cannot name a file"),
        ({"ids": np.array(["a"]), "img_a": PLANE, "lab_a": PLANE.T}, "of one shape"),
        ({"ids": np.array(["a"]), "img_a": PLANE[0], "lab_a": PLANE[0]}, "2D or 3D"),
        ({"ids": np.array(["a"]), "img_a": PLANE, "lab_a": PLANE / 2}, "not integers"),
        ({"ids": np.array(["a"]), "img_a": PLANE, "lab_a": -PLANE.astype(int)}, "integers from 0"),
        ({"ids": np.array(["a"]), "img_a": PLANE * np.nan, "lab_a": PLANE}, r"not all finite numbers \(a\)"),
        ({"ids": np.array(["a"]), "img_a": PLANE / np.float32(0), "lab_a": PLANE}, "not all finite numbers"),
        (
            {"ids": np.array(["a"]), "img_a": PLANE * 1j, "lab_a": PLANE},
            "complex128 whose values are not all finite numbers",
        ),
        ({"ids": np.array(["a"]), "img_a": PLANE.astype(str), "lab_a": PLANE}, "not all finite numbers"),
    ],
)
def test_unfit_cases_are_one_sentence(arrays, words):
    with pytest.raises(ConfigurationError, match=words) as error:
        read_cases(arrays, "cells.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: read_volume({"image": PLANE}, "v.npz"), "lacks 'image' or 'label'"),
        (lambda: cut_blocks(Case("v", PLANE, PLANE), 2), "cannot be cut"),
        (lambda: cut_blocks(Case("v", PLANE, PLANE), 1), "number from 2"),
        (lambda: split_cases(some_cases(2)), "at least 3"),
        (lambda: split_cases(some_cases(3), seed=-1), "seed=-1 is impossible: give a whole number from 0"),
        (lambda: as_test_section({"x": PLANE}, "x", "y", "t.npz"), "lacks 'x' or 'y'"),
        (lambda: as_test_section({"x": PLANE[None], "y": np.arange(2)}, "x", "y", "t.npz"), "one row of labels"),
    ],
)
def test_wrong_arguments_are_one_sentence(call, words):
    with pytest.raises(ConfigurationError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"text", b"PK\x03\x04 half a file", b""])
def test_unreadable_file_is_one_sentence(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_arrays(tmp_path / "a.npz")
    with pytest.raises(ConfigurationError, match="is not a file"):
        read_arrays(tmp_path / "b.npz")


@pytest.mark.parametrize("shape", [(6, 7), (1, 9), (5, 6, 7), (5, 6, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float16, np.float64, np.int64, bool])
def test_decathlon_layout_is_what_monai_reads(tmp_path, shape, dtype):
    sections = split_cases(some_cases(4, shape, dtype))
    folder = write_decathlon(tmp_path / "new" / "cells", sections, "abc", progress=False).parent
    check_decathlon(folder, tuple(sections))
    load = LoadImaged(["image", "label"], image_only=True, ensure_channel_first=True)
    for section, cases in sections.items():
        for item, case in zip(load_decathlon_datalist(folder / "dataset.json", data_list_key=section), cases):
            loaded = load(item)
            assert loaded["image"].shape == loaded["label"].shape == (1, *shape)
            np.testing.assert_array_equal(loaded["image"][0], case.image.astype(np.float32))
            np.testing.assert_array_equal(loaded["label"][0], case.label)


def test_names_types_and_notes_are_kept(tmp_path):
    listing = write_decathlon(tmp_path / "cells", {"test": some_cases(1)}, "abc", {"source": "x.npz"}, progress=False)
    content = json.loads(listing.read_text())
    assert content["labels"] == {"0": "a", "1": "b", "2": "c"}
    assert (content["name"], content["source"]) == ("cells", "x.npz")
    assert nib.load(listing.parent / content["test"][0]["image"]).get_data_dtype() == np.uint8


def test_label_without_name_or_beyond_8_bits_is_refused(tmp_path):
    cases = [Case("a", PLANE, np.full((4, 5), 2))]
    with pytest.raises(ConfigurationError, match="holds 2 and there are names for 0 to 1"):
        write_decathlon(tmp_path / "a", {"test": cases}, ["no", "yes"], progress=False)
    with pytest.raises(ConfigurationError, match="8 bits"):
        write_decathlon(tmp_path / "a", {"test": cases}, [str(i) for i in range(257)], progress=False)
    assert list(tmp_path.iterdir()) == []


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("error", "seen"), [(KeyboardInterrupt, KeyboardInterrupt), (OSError, ConfigurationError)])
def test_interrupted_writing_leaves_what_was_there(tmp_path, monkeypatch, overwrite, error, seen):
    if overwrite:
        write_decathlon(tmp_path / "cells", {"test": some_cases(2)}, "abc", progress=False)
    before, save = files(tmp_path), nib.save

    def interrupted(image, path):
        if "002" in path.name:
            raise error
        save(image, path)

    monkeypatch.setattr(conversion.nib, "save", interrupted)
    with pytest.raises(seen):
        write_decathlon(tmp_path / "cells", {"test": some_cases(4)}, "abc", overwrite=overwrite, progress=False)
    assert files(tmp_path) == before


def test_old_data_set_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    write_decathlon(tmp_path / "cells", {"test": some_cases(2)}, "abc", progress=False)
    before, replace = files(tmp_path), conversion.os.replace

    def failing(source, target):
        if source.name == "new":
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(conversion.os, "replace", failing)
    with pytest.raises(ConfigurationError, match=r"cells cannot be written .disk full.: give another folder"):
        write_decathlon(tmp_path / "cells", {"test": some_cases(4)}, "abc", overwrite=True, progress=False)
    assert files(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"cells cannot be written .a file stands in the place of a folder"):
        write_decathlon(tmp_path / "file" / "cells", {"test": some_cases(1)}, "abc", progress=False)


def test_only_a_data_set_is_overwritten(tmp_path):
    folder = tmp_path / "cells"
    write_decathlon(folder, {"test": some_cases(3)}, "abc", progress=False)
    with pytest.raises(ConfigurationError, match="cells exists"):
        write_decathlon(folder, {"test": some_cases(1)}, "abc", progress=False)
    write_decathlon(folder, {"test": some_cases(1)}, "abc", overwrite=True, progress=False)
    assert files(tmp_path) == [
        *("cells", "cells/dataset.json", "cells/imagesTr", "cells/imagesTr/cells_000.nii.gz"),
        *("cells/labelsTr", "cells/labelsTr/cells_000.nii.gz"),
    ]
    (folder / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for path in (folder, tmp_path / "file"):
        with pytest.raises(ConfigurationError, match="is not overwritten"):
            write_decathlon(path, {"test": some_cases(1)}, "abc", overwrite=True, progress=False)
    assert (folder / "thesis.tex").exists()


def digits(number=20):
    images = np.random.default_rng(0).integers(0, 256, (number, 8, 8)).astype(np.uint8)
    labels = np.arange(number)
    return {"train_images": images, "train_labels": labels, "test_images": images[:5] + 1, "test_labels": labels[:5]}


def test_sections_are_drawn_without_overlap_and_keep_image_and_label_together():
    source = digits()
    arrays = draw_sections(source, 12, 5, "digits.npz", seed=3)
    drawn = np.concatenate([arrays["train_labels"], arrays["val_labels"]]).ravel()
    assert len(np.unique(drawn)) == 17
    assert drawn.tolist() != sorted(drawn.tolist())
    for section in ("train", "val"):
        np.testing.assert_array_equal(
            arrays[f"{section}_images"], source["train_images"][arrays[f"{section}_labels"].ravel()]
        )
    np.testing.assert_array_equal(arrays["test_images"], source["test_images"])
    np.testing.assert_array_equal(arrays["test_labels"].ravel(), source["test_labels"])
    again, other = (draw_sections(source, 12, 5, "digits.npz", seed)["train_labels"] for seed in (3, 4))
    assert again.tolist() == arrays["train_labels"].tolist() != other.tolist()


@pytest.mark.parametrize(
    ("arrays", "numbers", "words"),
    [
        (digits(), (16, 5), "from the 20 of digits.npz"),
        (digits(), (16, 0), "numbers from 1"),
        (digits() | {"val_images": PLANE}, (4, 4), "has a validation section"),
        ({"x": PLANE}, (4, 4), "lacks 'train_images'"),
        (digits() | {"train_labels": np.arange(3)}, (4, 4), "one row of labels"),
    ],
)
def test_sections_that_cannot_be_drawn_are_one_sentence(arrays, numbers, words):
    with pytest.raises(ConfigurationError, match=words) as error:
        draw_sections(arrays, *numbers, "digits.npz")
    assert "\n" not in str(error.value)


def test_medmnist_file_is_what_our_dataset_reads(tmp_path):
    arrays = draw_sections(digits(), 12, 5, "digits.npz")
    file = write_medmnist(tmp_path / "new" / "digits.npz", arrays)
    for section, prefix in (("training", "train"), ("validation", "val"), ("test", "test")):
        data = MedMNISTCacheDataset(file.parent, file.name, section, progress=False)
        np.testing.assert_array_equal([item["image"][0].numpy() for item in data], arrays[f"{prefix}_images"])
        np.testing.assert_array_equal([item["label"] for item in data], arrays[f"{prefix}_labels"].ravel())


def test_medmnist_file_holds_the_arrays_alone_and_no_objects(tmp_path):
    with np.load(write_medmnist(tmp_path / "digits.npz", {"test_images": PLANE}), allow_pickle=False) as file:
        assert list(file) == ["test_images"]
    with pytest.raises(ConfigurationError, match="test_labels holds Python objects"):
        write_medmnist(tmp_path / "objects.npz", {"test_labels": np.array([None])})
    with pytest.raises(ConfigurationError, match="test_images holds values that are not finite"):
        write_medmnist(tmp_path / "objects.npz", {"test_images": PLANE * np.nan})
    assert not (tmp_path / "objects.npz").exists()


def test_medmnist_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = write_medmnist(tmp_path / "digits.npz", {"test_images": PLANE})
    before = file.read_bytes()
    with pytest.raises(ConfigurationError, match="exists"):
        write_medmnist(file, {"test_images": PLANE})
    for name in ("digits.txt", "folder.npz"):
        (tmp_path / "folder.npz").mkdir(exist_ok=True)
        with pytest.raises(ConfigurationError, match="give the name of an npz file"):
            write_medmnist(tmp_path / name, {"test_images": PLANE}, overwrite=True)

    def interrupted(path, **arrays):
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion.np, "savez_compressed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_medmnist(file, {"test_images": PLANE}, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.npz", "folder.npz"]
    assert file.read_bytes() == before
    write_medmnist(file, {"other": PLANE}, overwrite=True)
    assert list(read_arrays(file)) == ["other"]
