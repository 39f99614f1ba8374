"""Invalid checkpoints are rejected with one sentence, wherever they are read, and never executed."""

import os
import pickle

import pytest
import torch
from torch import nn

from monai_gmr.apps.check_equivariance import load_weights
from monai_gmr.bundle import load_network
from monai_gmr.networks import load_gmr_conv_checkpoint
from monai_gmr.networks.weights import first_not_finite, read_checkpoint, state_of
from monai_gmr.utils import ConfigurationError


class Hostile:
    """A pickle that would run a program."""

    def __init__(self, program):
        self.program = program

    def __reduce__(self):
        return os.system, (self.program,)


def _write_bad(kind, path):
    """Writes an invalid checkpoint, and returns the reason that the error gives."""
    state = nn.Conv2d(1, 1, 3).state_dict()
    program = f"touch {path.with_suffix('.ran')}"
    torch.save({"model": state, "more": torch.ones(5000)}, path)
    whole = path.read_bytes()
    if kind == "missing":
        path.unlink()
        return "does not exist"
    if kind == "folder":
        path.unlink()
        path.mkdir()
        return "is a folder"
    contents = {
        "empty": (b"", "it is empty"),
        "truncated": (whole[: len(whole) // 2], "its end is missing"),
        "one byte short": (whole[:-30], "its end is missing"),
        "text": (b"no weights", "not written by torch.save"),
        "hostile pickle": (pickle.dumps(Hostile(program)), "could run any program"),
    }
    if kind in contents:
        path.write_bytes(contents[kind][0])
        return contents[kind][1]
    objects = {
        "hostile": ({"model": Hostile(program)}, "could run any program"),
        "module": (nn.Conv2d(1, 1, 3), "could run any program"),
        "list": ([1, torch.ones(2)], "holds a list"),
        "tensor": (torch.ones(2), "holds a Tensor"),
        "number": (3, "holds a int"),
        "other keys": ({"epoch": 3, "optimizer": {"step": 1}}, "holds the keys 'epoch', 'optimizer'"),
        "nothing": ({}, "holds nothing"),
    }
    torch.save(objects[kind][0], path)
    return objects[kind][1]


BAD = [
    "missing",
    "folder",
    "empty",
    "truncated",
    "one byte short",
    "text",
    "hostile pickle",
    "hostile",
    "module",
    "list",
    "tensor",
]
BAD += ["number", "other keys", "nothing"]
READERS = {
    "bundle": lambda path: load_network(nn.Conv2d(1, 1, 3), path),
    "app": lambda path: load_weights(nn.Conv2d(1, 1, 3), path),
    "function": lambda path: state_of(read_checkpoint(path), path),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_checkpoint_is_one_sentence(kind, reader, tmp_path):
    path = tmp_path / "model.pt"
    why = _write_bad(kind, path)
    with pytest.raises(ConfigurationError) as caught:
        READERS[reader](path)
    sentence = str(caught.value)
    assert why in sentence
    assert str(path) in sentence
    assert "\n" not in sentence
    assert not path.with_suffix(".ran").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", BAD)
def test_the_import_of_peers_refuses_them_alike(kind, tmp_path):
    _write_bad(kind, tmp_path / "model.pt")
    with pytest.raises(ConfigurationError, match=r"model.pt"):
        load_gmr_conv_checkpoint(tmp_path / "model.pt")
    assert not (tmp_path / "model.ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("reader", ["bundle", "app"])
def test_weights_that_are_not_finite_are_not_used(reader, name, value, tmp_path):
    state = nn.Conv2d(1, 1, 3).state_dict()
    state[name].view(-1)[0] = value
    torch.save({"model": state}, tmp_path / "model.pt")
    with pytest.raises(
        ConfigurationError, match=rf"model.pt holds weights that are not finite \(the first in {name}\)"
    ):
        READERS[reader](tmp_path / "model.pt")


def test_running_statistics_must_be_numbers_and_masks_may_be_infinite():
    norm = nn.BatchNorm1d(2)
    learned = [name for name, _ in norm.named_parameters()]
    assert first_not_finite(norm.state_dict(), learned) is None
    norm.running_var[1] = float("nan")
    assert first_not_finite(norm.state_dict(), learned) == "running_var"
    assert first_not_finite({"mask": torch.full((2, 2), -float("inf")), "count": torch.tensor(1)}) is None


@pytest.mark.parametrize("key", [None, "model", "network", "net", "state_dict"])
def test_the_state_of_a_network_is_found_under_the_usual_names(key, tmp_path):
    first, second = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)
    torch.save(first.state_dict() if key is None else {key: first.state_dict(), "epoch": 3}, tmp_path / "model.pt")
    load_network(second, tmp_path / "model.pt")
    assert torch.equal(first.weight, second.weight)
