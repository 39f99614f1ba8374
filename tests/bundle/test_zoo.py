"""A broken bundle fails the checks with one sentence, a complete one passes."""

import json
import shutil

import pytest
import torch

from monai_gmr.bundle import zoo
from monai_gmr.bundle.zoo import check_bundle
from monai_gmr.checksums import write_sums
from monai_gmr.utils import ConfigurationError


def test_a_whole_bundle_passes(whole_bundle):
    assert check_bundle(whole_bundle) == []


def edit(file, change):
    """Makes a change of a JSON file of a bundle."""

    def run(root):
        content = json.loads((root / file).read_text())
        change(content)
        (root / file).write_text(json.dumps(content))

    return run


def metadata(change):
    return edit("configs/metadata.json", change)


def layout(kind, name, **values):
    return metadata(lambda m: m["network_data_format"][kind][name].update(values))


def remove(*names):
    return lambda root: [(root / name).unlink() for name in names]


def write(name, content):
    def run(root):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(content if isinstance(content, str) else json.dumps(content))

    return run


def large_files(**entry):
    return write(
        "large_files.json", {"large_files": [{"path": "models/big.pt", "url": "https://a.org/big.pt", **entry}]}
    )


def change_weights(change):
    def run(root):
        state = torch.load(root / "models" / "model.pt", weights_only=True)
        change(state)
        torch.save(state, root / "models" / "model.pt")

    return run


def damage(root):
    write_sums(root / "models", ["model.pt"])
    change_weights(lambda state: next(iter(state.values())).add_(1))(root)


def drop(name, *keys):
    """Makes a change that removes an id from a config."""

    def change(config):
        for key in keys[:-1]:
            config = config[key]
        del config[keys[-1]]

    return edit(f"configs/{name}.json", change)


NOT_FINITE = float("nan")
BROKEN = {
    "no licence": (remove("LICENSE"), "LICENSE is missing: put the licence"),
    "an empty licence": (write("LICENSE", ""), "LICENSE is empty"),
    "no page": (remove("docs/README.md"), "docs/README.md is missing"),
    "no licence of the data": (remove("docs/data_license.txt"), "docs/data_license.txt is missing"),
    "no metadata": (remove("configs/metadata.json"), "configs/metadata.json is missing"),
    "no inference": (remove("configs/inference.json"), "configs/inference.yaml .* is missing"),
    "no weights": (remove("models/model.pt"), "models/model.pt is missing: train, or name"),
    "metadata that are not JSON": (write("configs/metadata.json", "{"), "not readable as JSON"),
    "metadata that are a list": (write("configs/metadata.json", []), "holds a list"),
    "no authors": (metadata(lambda m: m.pop("authors")), "'authors' is a required property"),
    "no schema": (metadata(lambda m: m.pop("schema")), "'schema' is a required property"),
    "another schema": (
        metadata(lambda m: m.update(schema="https://a.org/s.json")),
        "schema: 'https://a.org/s.json' does not",
    ),
    "an empty task": (metadata(lambda m: m.update(task="")), "metadata.json, task: "),
    "a version that is none": (
        metadata(lambda m: m.update(monai_version="new")),
        "monai_version: 'new' does not match",
    ),
    "a version not in the changelog": (metadata(lambda m: m.update(version="0.2.0")), "no entry for version 0.2.0"),
    "no outputs": (metadata(lambda m: m["network_data_format"].pop("outputs")), "'outputs' is a required property"),
    "a dtype that is none": (layout("inputs", "image", dtype="float"), "inputs::image::dtype: 'float' is not one of"),
    "a channel without a name": (layout("outputs", "pred", num_channels=4), "names the channels 0, 1, 2 of 4"),
    "a large file without an address": (large_files(url=""), "lacks a path in the bundle or the url"),
    "a large file elsewhere": (large_files(path="../big.pt"), "leads out of the bundle"),
    "an unknown hash": (large_files(hash_type="crc"), "hash_type crc of models/big.pt is unknown"),
    "a hash that is none": (
        large_files(hash_type="sha256", hash_val="12"),
        "hash_val of models/big.pt is not a sha256",
    ),
    "no list of large files": (write("large_files.json", {"files": []}), "has no list large_files"),
    "no device": (drop("inference", "device"), "configs/inference.json has no device"),
    "no inferer": (drop("inference", "inferer"), "has no inferer"),
    "files without a folder": (drop("inference", "output_dir"), "writes files and has no output_dir"),
    "no trainer": (drop("train", "train", "trainer", "max_epochs"), "has no train::trainer::max_epochs"),
    "no validation data": (drop("train", "validate", "dataset"), "has no validate::dataset,"),
    "no interval": (
        edit(
            "configs/train.json", lambda c: (c.pop("val_interval"), c["train"]["handlers"].append("ValidationHandler"))
        ),
        "no val_interval",
    ),
    "a path of one person": (
        edit("configs/train.json", lambda c: c.update(dataset_dir="/home/ann/data")),
        "names the path /home/ann of one person",
    ),
    "a config that is none": (write("configs/inference.json", "{"), "inference.json cannot be read as JSON or YAML"),
    "damaged weights": (damage, "model.pt is not the file that SHA256SUMS beside it names"),
    "a checksum of nothing": (
        write("models/SHA256SUMS", f"{'0' * 64}  other.pt\n"),
        "names other.pt, which is missing",
    ),
    "weights that are none": (write("models/model.pt", "weights"), "not written by torch.save"),
    "weights of another network": (change_weights(lambda s: s.popitem()), "is of another network"),
    "weights that are not finite": (change_weights(lambda s: next(iter(s.values())).fill_(NOT_FINITE)), "not finite"),
    "a network that cannot be made": (
        edit("configs/inference.json", lambda c: c["network_def"].update(rings="square")),
        "rings='square'",
    ),
    "another number of classes": (
        layout("outputs", "pred", num_channels=2, channel_def={"0": "a", "1": "b"}),
        r"with \[3, 9, 10\] and configs/metadata.json says \[2, 9, 10\]",
    ),
    "another size": (layout("outputs", "pred", spatial_shape=[8, 10]), r"says \[3, 8, 10\]"),
    "another dtype": (layout("outputs", "pred", dtype="float64"), "answers in torch.float32"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_bundle_fails_with_one_sentence(whole_bundle, tmp_path, name):
    spoil, sentence = BROKEN[name]
    root = shutil.copytree(whole_bundle, tmp_path / whole_bundle.name)
    spoil(root)
    problems = check_bundle(root)
    # a missing part lacks its own parts, too
    assert len(problems) == 1 + (name == "no validation data"), problems
    with pytest.raises(ConfigurationError, match=sentence):
        raise ConfigurationError(problems[0])
    assert "\n" not in problems[0]
    assert problems[0].endswith(".")


@pytest.mark.parametrize("name", ["segmentation", "nuclei segmentation", "nuclei-segmentation", "2d_nuclei"])
def test_a_name_without_data_and_task_is_refused(whole_bundle, tmp_path, name):
    (problem,) = check_bundle(shutil.copytree(whole_bundle, tmp_path / name))
    assert problem.startswith(f"the folder is called {name!r}: give it words")


def test_a_large_file_is_named_instead_of_shipped(whole_bundle, tmp_path, monkeypatch):
    root = shutil.copytree(whole_bundle, tmp_path / whole_bundle.name)
    (root / "models" / "big.pt").write_bytes(b"0" * 1_000_001)
    monkeypatch.setattr(zoo, "LARGEST_FILE", 1_000_000)
    (problem,) = check_bundle(root)
    assert problem.startswith("models/big.pt has 1 MB, above the zoo's")
    large_files(hash_type="md5", hash_val="0" * 32)(root)
    assert check_bundle(root) == []
    (root / "models" / "model.pt").unlink()
    large_files(path="./models/model.pt")(root)
    (root / "models" / "big.pt").unlink()
    assert check_bundle(root) == []


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="is not a folder: give that of a bundle"):
        check_bundle(tmp_path / "none")
