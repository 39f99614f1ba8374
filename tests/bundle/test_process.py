"""Freed memory is kept where glibc can be asked to."""

import subprocess
import sys

import pytest

from monai_gmr.bundle import keep_freed_memory

FAULTS = """
import resource, sys, torch
from monai_gmr.bundle import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
torch.set_num_threads(1)
for _ in range(6):  # small objects may take the first bytes of some blocks, which are too short from then on
    torch.ones(2**25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how):
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="no glibc")
def test_a_tensor_gets_the_memory_of_the_last_one():
    assert page_faults("keep") < 0.2 * page_faults("leave")


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert not keep_freed_memory()
