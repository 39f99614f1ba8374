"""The command line: files that the bundles read, made whole, and one sentence for what cannot be made."""

from __future__ import annotations

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from monai_gmr.apps.prepare_data import main
from monai_gmr.bundle import check_decathlon
from monai_gmr.data import MedMNISTCacheDataset
from monai_gmr.data.conversion import boundary

SECTIONS = ("training", "validation", "test")


@pytest.fixture
def cells(tmp_path):
    """Instance maps of several sizes, the images being ten times their number."""
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
        (["instances", "missing.npz", "out"], "missing.npz is no file"),
        (["instances", "cells.npz", "there"], "there exists"),
        (["instances", "cells.npz", "there", "--overwrite"], "is not overwritten"),
        (["instances", "cells.npz", "out", "--blocks", "2"], "--blocks"),
        (["instances", "cells.npz", "out", "--seed", "-1"], "negative"),
        (["instances", "d.npz", "out"], "lacks 'image' or 'label'"),
        (["classes", "d.npz", "out"], "no 'ids'"),
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


def test_as_a_process(tmp_path):
    command = [sys.executable, "-m", "monai_gmr.apps.prepare_data", "classes", str(tmp_path / "no.npz"), "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "no.npz is no file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["instances", "a.npz"]])
def test_arguments_that_are_missing_end_with_status_2(arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
