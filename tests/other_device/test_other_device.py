"""All properties that hold on every device hold on one that is not the CPU, and a mix of two devices fails there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from other_device import compiler

TESTS = Path(__file__).parents[1]


@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform != "linux" or compiler() is None, reason="the device of the tests is built with g++")
def test_all_holds_on_a_device_that_is_not_the_cpu(forked_python):
    """In a process of its own: the tests of fixture ``device``, with nets, inferers, metrics, transforms and a bundle."""
    folders = ("networks/nets/test_devices.py", "inferers", "metrics", "transforms", "networks/convert/test_convert.py")
    folders += ("networks/test_checkpoints.py", "bundles/test_volume_segmentation.py", "other_device")
    tests = [str(TESTS / name) for name in folders]
    options = [
        "-p",
        "no:warnings",
        "-p",
        "no:xdist",
        "-k",
        "(other- or other] or mixes) and not pixelshuffle",
        "-q",
        "-q",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TEST_DEVICE": "other"}
    command = [forked_python, "-m", "pytest", *options, *tests]
    done = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_what_mixes_two_devices_fails_on_the_other_one(other_device):
    x, layer = torch.arange(6.0, device="other").reshape(2, 3), torch.nn.Conv1d(2, 1, 1)
    assert (x[:, 1:] * 2).sum().item() == 24
    x[0] += 1
    assert x.T.cpu().tolist() == [[1, 3], [2, 4], [3, 5]]
    for wrong in (lambda: x + torch.ones(3), lambda: layer(x[None]), x.numpy, lambda: torch.cat([x, torch.ones(2, 3)])):
        with pytest.raises((RuntimeError, TypeError), match=r"device|type"):
            wrong()
    y = layer.to("other")(x[None])
    y.sum().backward()
    assert layer.weight.grad.cpu().flatten().tolist() == [6, 12]
    with torch.autocast("other", torch.bfloat16):
        assert layer(x[None]).dtype == torch.bfloat16
