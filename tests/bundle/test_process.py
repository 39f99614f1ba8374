"""Freed memory is kept if glibc supports it."""

import subprocess
import sys

import pytest

from monai_gmr.bundle import keep_freed_memory, process

FAULTS = """
import resource, runpy, sys, torch
# without the imports of its package, MONAI's among them
process = runpy.run_path(sys.argv[2])
if sys.argv[1] == "keep":
    process["keep_freed_memory"]()
torch.set_num_threads(1)
for _ in range(12):  # small objects can take the first bytes of some blocks, which are then too short
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how):
    command = [sys.executable, "-c", FAULTS, how, process.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="no glibc")
def test_a_tensor_gets_the_memory_of_the_last_one():
    assert page_faults("keep") < 0.2 * page_faults("leave")


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert not keep_freed_memory()
