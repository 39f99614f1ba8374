"""Bundles are found, listed and copied, and mistakes of newcomers end in one sentence."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import monai.bundle
import pytest

from monai_gmr.apps.bundles import main
from monai_gmr.bundle import shipped
from monai_gmr.bundle.shipped import copy_bundle, find_bundle, shipped_bundles, shipped_files
from monai_gmr.utils import ConfigurationError, find_configuration_error

NAME = "volume_segmentation_gmr_unet"


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A function that puts a bundle inside the package (installed) or next to it (checkout), and returns its folder."""

    def put(place):
        package = tmp_path / "site" / "monai_gmr"
        target = (package if place == "package" else package.parent) / "bundles" / NAME
        package.mkdir(parents=True, exist_ok=True)
        shutil.copytree(find_bundle(NAME) / "configs", target / "configs")
        monkeypatch.setattr(shipped.importlib.resources, "files", lambda name: package)
        return target

    return put


@pytest.mark.parametrize("place", ["package", "checkout"])
def test_bundles_are_found_in_the_package_and_beside_it(packaged, place):
    root = packaged(place)
    assert shipped_bundles() == {NAME: root}


def test_a_package_without_bundles_says_so(packaged):
    shutil.rmtree(packaged("package"))
    with pytest.raises(ConfigurationError, match="has no bundles: install monai-gmr again"):
        shipped_bundles()


def test_results_and_data_do_not_ship(packaged, tmp_path):
    root = packaged("checkout")
    for name in ("models/model.pt", "models/SHA256SUMS", "docs/study/table.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("ships")
    for name in (
        "models/latest.pt",
        "data/a.nii.gz",
        "eval/table.csv",
        "docs/study/runs/a.pt",
        "docs/rotation/a/b.png",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("stays")
    copy = copy_bundle(NAME, tmp_path / "new" / "folder")
    files = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert files == {*shipped_files(root), "configs/train.json"}
    assert {path.read_text() for path in copy.rglob("*") if path.parent.name != "configs" and path.is_file()} == {
        "ships"
    }


def test_a_copy_of_a_read_only_package_can_be_written(packaged, tmp_path):
    root = packaged("package")
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    copy = copy_bundle(NAME, tmp_path)
    assert all(path.stat().st_mode & 0o200 for path in [copy, *copy.rglob("*")])
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_copy_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fill(source, target):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("shutil.copyfile", fill)
    with pytest.raises(ConfigurationError, match=r"cannot be written \(No space left on device\): free some space"):
        copy_bundle(NAME, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["plain", "with space", "it's (1)"])
def test_the_printed_command_can_be_pasted_into_a_shell(folder, tmp_path, capsys):
    assert main(["copy", NAME, str(tmp_path / folder)]) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    config = tmp_path / folder / NAME / "configs" / "inference.yaml"
    assert shlex.split(command)[4:6] == ["--config_file", str(config)]
    assert (f"--config_file {config} --input" in command) is (folder == "plain")


@pytest.mark.parametrize(("given", "described"), [(None, "None"), (3, "3"), (["a"], r"\['a'\]")])
def test_what_is_neither_a_name_nor_a_folder_is_one_sentence(given, described):
    with pytest.raises(ConfigurationError, match=f"a bundle is a name or a folder, not {described}: give one of "):
        find_bundle(given)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("copy", "volume_segmentation", "here"), f"there is no bundle volume_segmentation: did you mean {NAME}?"),
        (("copy", f"bundles/{NAME}", "here"), f"there is no bundle bundles/{NAME}: did you mean {NAME}?"),
        (("copy", "spleen", "here"), "there is no bundle spleen: give one of "),
        (("copy", "", "here"), "there is no bundle : give one of "),
        (("copy", NAME, "taken"), f"taken/{NAME} is there already: give another folder, or move it away first."),
        (
            ("copy", NAME, "file"),
            f"file/{NAME} cannot be written (a file stands in the place of a folder): give another",
        ),
        (("copy", NAME, "/proc/none"), f"/proc/none/{NAME} cannot be written ("),
        (("check", "nowhere"), "there is no bundle nowhere: give one of "),
        (("checksum", "taken"), "there are no weights at "),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken" / NAME).mkdir(parents=True)
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bundles: {sentence}")
    assert sorted(tmp_path.rglob("*")) == before


def test_list_names_every_folder_of_bundles(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    root = Path(__file__).parents[2] / "bundles"
    assert [line.split()[0] for line in lines[1:]] == sorted(
        path.parents[1].name for path in root.glob("*/configs/metadata.json")
    )


@pytest.mark.parametrize("name", sorted(shipped_bundles()))
def test_links_on_the_page_of_a_copy_lead_to_files_of_the_copy(name, tmp_path):
    page = copy_bundle(name, tmp_path) / "docs" / "README.md"
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    assert links
    for link in links:
        path = (page.parent / link.partition("#")[0]).resolve()
        assert "://" in link or (path.exists() and path.is_relative_to(tmp_path / name)), link


def test_a_new_checksum_says_that_the_weights_are_others(tmp_path, capsys):
    root = copy_bundle(NAME, tmp_path)
    assert main(["checksum", str(root)]) == 0
    assert "It was" not in capsys.readouterr().out
    with (root / "models" / "model.pt").open("ab") as file:
        file.write(b"more")
    assert main(["checksum", str(root)]) == 0
    assert "the weights have changed since" in capsys.readouterr().out


def test_check_and_checksum(whole_bundle, tmp_path, capsys):
    root = shutil.copytree(whole_bundle, tmp_path / whole_bundle.name)
    assert main(["checksum", str(root)]) == 0
    assert main(["check", str(root)]) == 0
    assert f"{root.name} passes all checks." in capsys.readouterr().out
    (root / "LICENSE").unlink()
    assert main(["check", str(root)]) == 1
    assert capsys.readouterr().out.startswith(f"{root.name}: LICENSE is missing")


def test_help_names_the_bundles(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert NAME in capsys.readouterr().out


def test_the_network_of_a_copy_is_that_of_its_inference(tmp_path):
    copy = copy_bundle(NAME, tmp_path)
    config = json.loads((copy / "configs" / "train.json").read_text())
    assert config["network_def"]["_target_"] == "monai_gmr.networks.nets.GMRUNet"
    assert {value[1:] for value in config["network_def"].values() if value[:1] == "@"} <= set(config)
    assert "$import monai_gmr.bundle" in config["imports"]
    with pytest.raises(RuntimeError) as caught:
        monai.bundle.run(config_file=str(copy / "configs" / "train.json"), logging_file=False)
    assert "holds the network alone, for monai.bundle.load: run train.yaml." in str(
        find_configuration_error(caught.value)
    )
