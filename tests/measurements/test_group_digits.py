"""The measurement of group convolutions on digits: what it trains, counts and writes."""

import csv

import group_digits
import numpy as np
import pytest
import torch
from group_nets import UPRIGHT

from monai_gmr.metrics import equivariance_error
from monai_gmr.symmetry import PointGroup


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Files of 80 digits, and a measurement of two nets with as many."""
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (80, 28, 28), np.uint8), np.arange(80, dtype=np.uint8) % 10
    np.savez(tmp_path / "mnist.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    np.savez(tmp_path / "mnist_rr_test_rednn.npz", x=images, y=labels)
    nets = {task: {name: nets[name] for name in list(nets)[:1]} for task, nets in group_digits.NETS.items()}
    for name, value in {
        "TRAINING": 80,
        "HELD_OUT": 16,
        "BATCH": 16,
        "EPOCHS": 1,
        "TUNING_EPOCHS": 1,
        "NETS": nets,
    }.items():
        monkeypatch.setattr(group_digits, name, value)
    return tmp_path


def test_rows_are_added_once(data, capsys):
    path = data / "out.csv"
    assert group_digits.main([str(data), str(path)]) == 0
    rows = list(csv.DictReader(path.open()))
    assert [(row["task"], row["net"], row["seed"]) for row in rows] == [
        (task, name, str(seed)) for task, name in (("rotated", "Z2CNN"), ("upright", "plain")) for seed in range(3)
    ]
    before = path.read_text()
    assert group_digits.main([str(data), str(path)]) == 0
    assert path.read_text() == before
    capsys.readouterr()
    assert group_digits.main([str(data), str(path), "--table"]) == 0
    printed = capsys.readouterr().out
    assert "| Z2CNN | 25,210 | 2.98M |" in printed
    assert "±" in printed


@pytest.mark.parametrize(("name", "group"), [("plain", "1"), ("p4m", "4mm"), ("p4m, then 2mm, then m", "m")])
def test_upright_nets_have_as_many_parameters_and_their_symmetry(name, group):
    net = UPRIGHT[name]().eval()
    count = sum(parameter.numel() for parameter in net.parameters())
    assert count == pytest.approx(97_000, rel=0.04)
    group = PointGroup.from_name(group, 2)
    assert equivariance_error(net, torch.randn(2, 1, 28, 28), group.elements).worst < 1e-5
    assert (
        group.order == 8
        or equivariance_error(net, torch.randn(2, 1, 28, 28), PointGroup.from_name("4mm", 2).elements).worst > 1e-4
    )


def test_multiplications_of_a_convolution():
    assert group_digits.multiplications(torch.nn.Conv2d(1, 2, 3)) == 26 * 26 * 9 * 2
