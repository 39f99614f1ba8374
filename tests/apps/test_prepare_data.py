"""Tests of the command line: complete files that the bundles read, and one sentence if they cannot be made."""

from __future__ import annotations

import json
import subprocess

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_gmr.apps.prepare_data import main
from monai_gmr.bundle import check_decathlon
from monai_gmr.data import MedMNISTCacheDataset
from monai_gmr.data.conversion import boundary
from monai_gmr.transforms import LoadCased

SECTIONS = ("training", "validation", "test")


@pytest.fixture
def cells(tmp_path):
    """Instance maps of several sizes; images are ten times the instance number."""
    rng = np.random.default_rng(0)
    arrays = {"ids": np.array([f"cell-{i}" for i in range(10)])}
    for i in range(10):
        instances = rng.integers(0, 20, (6 + i, 8)).astype(np.uint16)
        arrays |= {f"img_{i:03d}": (10 * instances).astype(np.uint8), f"lab_{i:03d}": instances}
    np.savez(tmp_path / "cells.npz", **arrays)
    return tmp_path / "cells.npz"


def cases(folder):
    check_decathlon(folder, SECTIONS)
    lists = json.loads((folder / "dataset.json").read_text())
    return {
        section: [
            {key: np.asarray(nib.load(folder / entry[key]).dataobj) for key in ("image", "label")}
            for entry in lists[section]
        ]
        for section in SECTIONS
    }


@pytest.mark.parametrize("target", ["foreground", "boundary"])
def test_instances_become_targets_of_their_own_image(cells, tmp_path, capsys, target):
    assert main(["instances", str(cells), str(tmp_path / "out"), "--target", target, "--seed", "2"]) == 0
    assert "6 training, 2 validation and 2 test cases" in capsys.readouterr().out
    read = cases(tmp_path / "out")
    assert [len(read[section]) for section in SECTIONS] == [6, 2, 2]
    assert len({case["image"].shape for part in read.values() for case in part}) == 10
    for case in (case for part in read.values() for case in part):
        instances = case["image"] // 10
        np.testing.assert_array_equal(case["label"], instances > 0 if target == "foreground" else boundary(instances))
    listing = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert listing["labels"] == {"0": "background", "1": target}
    assert (listing["source"], listing["target"], listing["seed"]) == ("cells.npz", target, 2)


@pytest.fixture
def volumes(tmp_path):
    """Four small volumes whose voxel values encode volume and position."""
    arrays = {"ids": np.array(list("abcd"))}
    for number, name in enumerate("abcd"):
        image = (60 * number + np.arange(24)).reshape(2, 3, 4).astype(np.uint8)
        arrays |= {f"img_{name}": image, f"lab_{name}": image % 3}
    np.savez(tmp_path / "volumes.npz", **arrays)
    split = {"training": ["d", "a"], "validation": ["b"], "test": ["c"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    return tmp_path


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_a_volume_are_in_one_section_of_the_given_split(axis, volumes):
    command = ["classes", str(volumes / "volumes.npz"), str(volumes / "out"), "--split", str(volumes / "split.json")]
    assert main([*command, "--slices", str(axis)]) == 0
    read = cases(volumes / "out")
    shape = (2, 3, 4)
    assert [len(read[section]) for section in SECTIONS] == [2 * shape[axis], shape[axis], shape[axis]]
    for section, names in {"training": "da", "validation": "b", "test": "c"}.items():
        expected = np.stack([60 * "abcd".index(name) + np.arange(24).reshape(shape) for name in names])
        found = np.stack([case["image"] for case in read[section]]).reshape(
            len(names), shape[axis], *read[section][0]["image"].shape
        )
        np.testing.assert_array_equal(found, np.moveaxis(expected, axis + 1, 1))
        assert all((case["label"] == case["image"] % 3).all() for case in read[section])


def test_a_case_that_the_split_does_not_name_is_left_out(volumes):
    (volumes / "split.json").write_text(json.dumps({"training": ["a"], "validation": ["b"], "test": ["d"]}))
    command = ["classes", str(volumes / "volumes.npz"), str(volumes / "out"), "--split", str(volumes / "split.json")]
    assert main(command) == 0
    read = cases(volumes / "out")
    assert [part[0]["image"].min() for part in read.values()] == [0, 60, 180]


def test_png_in_png_out(tmp_path):
    """A folder of pictures becomes a data set of pictures, which the bundles load like any other."""
    generator = np.random.default_rng(0)
    pictures = {name: (generator.integers(256, size=(6, 9)), generator.integers(300, size=(6, 9))) for name in "abc"}
    for part in ("images", "labels"):
        (tmp_path / "cells" / part).mkdir(parents=True)
    for name, (image, instances) in pictures.items():
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "cells" / "images" / f"{name}.png")
        Image.fromarray(instances.astype(np.uint16)).save(tmp_path / "cells" / "labels" / f"{name}.png")
    split = {"training": ["b"], "validation": ["a"], "test": ["c"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    command = ["instances", str(tmp_path / "cells"), str(tmp_path / "out"), "--split", str(tmp_path / "split.json")]
    assert main([*command, "--target", "boundary", "--png"]) == 0
    check_decathlon(tmp_path / "out", SECTIONS)
    lists = json.loads((tmp_path / "out" / "dataset.json").read_text())
    load = LoadCased(["image", "label"], spatial_dims=2, in_channels=1, out_channels=2)
    for section, (name,) in split.items():
        (entry,) = lists[section]
        assert entry["image"].endswith(f"_{name}.png")
        written = np.asarray(Image.open(tmp_path / "out" / entry["image"]))
        np.testing.assert_array_equal(written, pictures[name][0])
        # picture readers return columns first
        case = load({key: tmp_path / "out" / entry[key] for key in ("image", "label")})
        np.testing.assert_array_equal(case["image"][0].T, pictures[name][0])
        np.testing.assert_array_equal(case["label"][0].T, boundary(pictures[name][1]))


def test_seed_decides_the_split(cells, tmp_path):
    lists = []
    for seed in (0, 0, 1):
        assert main(["instances", str(cells), str(tmp_path / "out"), "--overwrite", "--seed", str(seed)]) == 0
        lists.append(json.loads((tmp_path / "out" / "dataset.json").read_text())["test"])
    assert lists[0] == lists[1] != lists[2]


@pytest.mark.parametrize(("arguments", "blocks"), [([], 2), (["--blocks", "3"], 3)])
def test_volume_is_cut_after_its_boundaries_are_found(tmp_path, arguments, blocks):
    label = np.arange(blocks**3, dtype=np.uint16).reshape([blocks] * 3).repeat(12 // blocks, 0)
    label = label.repeat(6 // blocks, 1).repeat(6 // blocks, 2)
    np.savez(tmp_path / "v.npz", image=label.astype(np.uint8), label=label)
    out = tmp_path / "out"
    assert main(["instances", str(tmp_path / "v.npz"), str(out), "--target", "boundary", *arguments]) == 0
    read = cases(out)
    assert [len(read[section]) for section in SECTIONS] == [blocks**3 - 2, 1, 1]
    size = [n // blocks for n in label.shape]
    last = tuple(slice(-n, None) for n in size)
    np.testing.assert_array_equal(read["test"][0]["image"], label[last])
    np.testing.assert_array_equal(read["test"][0]["label"], boundary(label)[last])
    # Each block is one instance, so that only its neighbours make a boundary.
    assert read["test"][0]["label"].any()


def test_classes_are_split_in_their_order(tmp_path):
    arrays = {"ids": np.array(["a", "c", "b", "e", "d"])}
    for value, name in enumerate(arrays["ids"]):
        arrays |= {f"img_{name}": np.full((4, 5, 6), value, np.float32), f"lab_{name}": np.full((4, 5, 6), value % 3)}
    np.savez(tmp_path / "v.npz", **arrays)
    assert main(["classes", str(tmp_path / "v.npz"), str(tmp_path / "out")]) == 0
    read = cases(tmp_path / "out")
    values = [[case["image"].max() for case in read[section]] for section in SECTIONS]
    assert values == [[0, 1, 2], [3], [4]]
    assert [case["label"].max() for case in read["training"]] == [0, 1, 2]
    listing = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert listing["labels"] == {"0": "background", "1": "class 1", "2": "class 2"}
    assert listing["test"][0]["image"] == "./imagesTr/out_d.nii.gz"


@pytest.fixture
def digits(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8)).astype(np.uint8)
    labels = np.arange(30) % 10
    np.savez(
        tmp_path / "d.npz", train_images=images, train_labels=labels, test_images=images[:9], test_labels=labels[:9]
    )
    np.savez(tmp_path / "t.npz", x=images[:9].transpose(0, 2, 1), y=labels[:9])
    return tmp_path


def test_upright_and_turned_digits_are_what_our_dataset_reads(digits, capsys):
    arguments = ["--training", "20", "--validation", "10", "--turned", str(digits / "t.npz")]
    assert main(["medmnist", str(digits / "d.npz"), str(digits / "new" / "digits.npz"), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "20 training, 10 validation and 9 test images" in printed
    assert "digits_turned.npz: 9 test images" in printed
    upright = [MedMNISTCacheDataset(digits / "new", "digits.npz", section, progress=False) for section in SECTIONS]
    assert [len(data) for data in upright] == [20, 10, 9]
    turned = MedMNISTCacheDataset(digits / "new", "digits_turned.npz", "test", progress=False)
    assert upright[2].labels.tolist() == turned.labels.tolist()
    for one, other in zip(upright[2], turned):
        np.testing.assert_array_equal(one["image"].mT, other["image"])
    assert sorted(path.name for path in (digits / "new").iterdir()) == ["digits.npz", "digits_turned.npz"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["instances", "missing.npz", "out"], "missing.npz is not a file"),
        (["instances", "cells.npz", "there"], "there exists"),
        (["instances", "cells.npz", "there", "--overwrite"], "is not overwritten"),
        (["instances", "cells.npz", "out", "--blocks", "2"], "--blocks"),
        (["instances", "cells.npz", "out", "--seed", "-1"], "seed=-1 is impossible: give a whole number from 0"),
        (["instances", "d.npz", "out"], "lacks 'image' or 'label'"),
        (["classes", "d.npz", "out"], "no 'ids'"),
        (["classes", "there", "out"], "no PNG files in them"),
        (["classes", "deep.npz", "out", "--png"], "is not a picture"),
        (["classes", "cells.npz", "out", "--slices", "0"], "cannot be cut across axis 0"),
        (["classes", "cells.npz", "out", "--split", "none.json"], "none.json is not readable as JSON"),
        (["classes", "cells.npz", "out", "--split", "short.json"], "does not give all of training, validation, test"),
        (["classes", "cells.npz", "out", "--split", "twice.json"], "names 'cell-1' twice"),
        (["classes", "cells.npz", "out", "--split", "other.json"], "has no case 'x'"),
        (["classes", "cells.npz", "cells.npz/out"], "cells.npz"),
        (["medmnist", "cells.npz", "out.npz"], "lacks 'train_images'"),
        (["medmnist", "d.npz", "out.npz"], "10000 training and 2000 validation"),
        (["medmnist", "d.npz", "out"], "does not end in .npz"),
        (["medmnist", "d.npz", "d.npz"], "d.npz exists"),
        (["medmnist", "d.npz", "d.npz", "--overwrite"], "read and written"),
        (["medmnist", "d.npz", "out.npz", "--training", "5", "--validation", "5", "--turned", "d.npz"], "lacks 'x'"),
    ],
)
def test_mistakes_are_one_sentence_and_code_2_and_write_nothing(
    cells, digits, monkeypatch, tmp_path, capsys, arguments, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.tex").touch()
    deep = {f"{part}_{name}": np.zeros((2, 2, 2), np.uint8) for part in ("img", "lab") for name in "abc"}
    np.savez(tmp_path / "deep.npz", ids=np.array(list("abc")), **deep)
    (tmp_path / "short.json").write_text('{"training": ["cell-1"]}')
    (tmp_path / "twice.json").write_text('{"training": ["cell-1"], "validation": ["cell-1"], "test": ["cell-2"]}')
    (tmp_path / "other.json").write_text('{"training": ["x"], "validation": ["cell-1"], "test": ["cell-2"]}')
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("kind", ["instances", "classes", "medmnist"])
def test_help_of_every_kind(kind, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([kind, "--help"])
    assert exit_.value.code == 0
    assert "--overwrite" in capsys.readouterr().out


def test_as_a_process(tmp_path, forked_python):
    command = [forked_python, "-m", "monai_gmr.apps.prepare_data", "classes", str(tmp_path / "no.npz"), "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "no.npz is not a file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["instances", "a.npz"]])
def test_arguments_that_are_missing_end_with_status_2(arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
