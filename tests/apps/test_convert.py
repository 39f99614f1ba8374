"""The command line prints the report and the errors before and after, and refuses in a sentence."""

import pytest
import torch
import yaml
from monai.networks.nets import UNet

from monai_gmr.apps.convert import main

UNET = {
    "_target_": "monai.networks.nets.UNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8, 16],
    "strides": [2, 2],
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({"network_def": UNET, "other": UNET | {"_target_": "monai.networks.nets.UNETR"}}))
    return str(path)


def test_report_and_errors(config, capsys):
    assert main([config, "--check", "16", "--check", "17", "--conv", "gmr_harmonic"]) == 0
    printed = capsys.readouterr().out
    assert "UNet: 5 modules converted, 0 kept" in printed
    lines = [line.split() for line in printed.splitlines() if line.startswith(("16x16", "17x17"))]
    assert float(lines[0][1]) > 0.1
    assert float(lines[0][2]) < 1e-5
    assert float(lines[1][-1]) < 1e-5
    assert "cannot take it" in printed


def test_group_convolutions_are_measured_under_their_group(config, capsys):
    arguments = ["--check", "16", "--conv", "group", "--group", "4", "--filter", "gc"]
    assert main([config, *arguments]) == 0
    printed = capsys.readouterr().out
    assert "lifts scalars to fields" in printed
    (line,) = (line.split() for line in printed.splitlines() if line.startswith("16x16"))
    assert float(line[1]) > 1e-3
    assert float(line[2]) < 1e-5


def test_rests_of_trained_kernels_are_listed_and_said_to_break_it(config, capsys):
    assert main([config, "--check", "16", "--anneal"]) == 1
    printed = capsys.readouterr().out
    assert "rest of kernel" in printed
    assert printed.count("not equivariant yet: 5 convolutions hold the rest of their trained kernels") == 1
    assert printed.count("Not equivariant yet: 5 convolutions hold the rest of their trained kernels.") == 1


def test_what_is_excluded_breaks_it_and_is_named(config, capsys):
    assert main([config, "--check", "16", "--exclude", "model.0.conv"]) == 1
    assert "model.0.conv" in capsys.readouterr().out.partition("what still breaks it")[2]


def test_without_sizes_nothing_is_measured(config, capsys):
    assert main([config]) == 0
    assert "before" not in capsys.readouterr().out


def test_settings_of_the_config_are_changed(config, capsys):
    """One level more is two convolutions more, in the names of MONAI's net too."""
    assert main([config, "--set", "network_def::channels=[4, 8, 8, 16]", "network_def::strides=[2, 2, 2]"]) == 0
    assert "UNet: 7 modules converted" in capsys.readouterr().out
    assert main([config, "--set", "network_def::out_channels=3", "--set", "network_def::spatial_dims=$1 + 2"]) == 0
    assert "3d" in capsys.readouterr().out.lower()


def test_weights_are_loaded_before(config, tmp_path, capsys):
    torch.save({"model": UNet(2, 1, 2, (4, 8, 16), (2, 2)).state_dict()}, tmp_path / "model.pt")
    assert main([config, "--weights", str(tmp_path / "model.pt"), "--kernel-size", "5"]) == 0
    assert "k5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network-id", "missing"], "hold no 'missing'"),
        (["--set", "conv=plain"], "--set conv is not a setting of this config"),
        (["--set", "network_def::chanels=[4, 8]"], "did you mean --set network_def::channels?"),
        (
            ["--set", "channels=3"],
            "--set channels is not a setting of this config: did you mean --set network_def::channels?",
        ),
        (["--set", "network_def"], "--set network_def cannot be read: give it as in --set device=cpu"),
        (["--group", "4"], "are for --conv group"),
        (["--conv", "group", "--group", "5"], "5"),
        (["--weights", "nowhere.pt"], "does not exist"),
        (["--network-id", "other"], "cannot be built"),
    ],
)
def test_refusals(config, arguments, message, capsys):
    assert main([config, *arguments]) == 2
    assert message in capsys.readouterr().err
