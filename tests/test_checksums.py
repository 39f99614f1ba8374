"""A file of weights with a checksum is only read unchanged; training that replaces it removes the checksum."""

import shutil
import subprocess

import pytest
import torch

from monai_gmr.checksums import SUMS_NAME, check_sum, forget_sum, read_sums, write_sums
from monai_gmr.handlers.best_checkpoint import write_checkpoint
from monai_gmr.networks.weights import read_checkpoint
from monai_gmr.utils import ConfigurationError


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.ones(3)}, path)
    write_sums(tmp_path, ["model.pt"])
    return path


def test_changed_weights_are_refused_before_they_are_read(weights):
    assert read_checkpoint(weights)["weight"].tolist() == [1, 1, 1]
    torch.save({"weight": torch.zeros(3)}, weights)
    with pytest.raises(ConfigurationError, match=r"model\.pt is not the file that SHA256SUMS beside it names"):
        read_checkpoint(weights)
    (weights.parent / SUMS_NAME).unlink()
    assert read_checkpoint(weights)["weight"].tolist() == [0, 0, 0]


def test_training_replaces_weights_that_shipped(weights):
    write_checkpoint({"weight": torch.zeros(3)}, weights)
    assert read_checkpoint(weights)["weight"].tolist() == [0, 0, 0]
    assert not (weights.parent / SUMS_NAME).exists()


def test_other_files_keep_their_checksums(weights):
    (weights.parent / "other.pt").write_bytes(b"1")
    write_sums(weights.parent, ["model.pt", "other.pt"])
    forget_sum(weights.parent / "latest.pt")
    forget_sum(weights)
    assert set(read_sums(weights.parent)) == {"other.pt"}
    check_sum(weights.parent / "other.pt")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="GNU's sha256sum is not installed")
def test_the_file_is_that_of_sha256sum(weights):
    command = ["sha256sum", "--check", "--strict", SUMS_NAME]
    assert subprocess.run(command, cwd=weights.parent, check=False, capture_output=True).returncode == 0
    for options in ((), ("--binary",)):
        text = subprocess.check_output(["sha256sum", *options, "model.pt"], cwd=weights.parent, text=True)
        (weights.parent / SUMS_NAME).write_text(text)
        check_sum(weights)
        assert set(read_sums(weights.parent)) == {"model.pt"}
