"""The kernels run in the OpenMP runtime of torch: its operations stay as fast, and threads and forked workers may call the kernels."""

import subprocess
import sys

import pytest

from monai_gmr.ops.cpu import library as kernels

pytestmark = pytest.mark.skipif(kernels.load_kernels() is None, reason="no kernels were built")

START = """
import sys, time, torch
from monai_gmr.networks.layers import GMRConv3d, GMRHarmonicConv3d
from monai_gmr.ops import set_backend
torch.set_num_threads(2)
layer, x = GMRHarmonicConv3d(4, 6, 3, padding=1), torch.rand(2, 4, 9, 8, 7)
set_backend("dense")
dense = layer(x).detach()
def runtimes():
    names = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
    return {name for name in names if any(each in name for each in ("libgomp", "libiomp", "libomp"))}
def best():
    times = []
    for _ in range(40):
        start = time.perf_counter()
        torch.sin(a)
        times.append(time.perf_counter() - start)
    return sorted(times)[5]
a = torch.rand(2**21)
if sys.platform == "linux":
    runtimes_before = runtimes()
before = min(best() for _ in range(3))
set_backend("cpp")
expected = layer(x).detach()
assert torch.allclose(expected, dense, atol=1e-5)
"""


def run(program):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", START + program], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the libraries of a process are not listed here")
def test_no_other_runtime_is_loaded():
    assert run("print(len(runtimes() - runtimes_before), len(runtimes_before) > 0)") == ["0", "True"]


def test_operations_of_torch_are_as_fast_after_a_kernel_ran():
    # threads of a second runtime would spin on the cores that those of torch need: then this takes several times as long
    (ratio,) = run("print(min((layer(x), best())[1] for _ in range(3)) / before)")
    assert float(ratio) <= 2


def test_threads_that_call_a_layer_at_once_get_what_one_gets():
    program = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(2) as pool:
    results = list(pool.map(lambda _: torch.equal(layer(x).detach(), expected), range(200)))
print(sum(results), len(results))
"""
    assert run(program) == ["200", "200"]


def test_a_data_loader_forks_after_kernels_ran():
    program = """
from torch.utils.data import DataLoader, Dataset
class Images(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return layer(x).detach()
if __name__ == "__main__":
    for result in DataLoader(Images(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60):
        print(all(torch.allclose(each, expected, atol=1e-5) for each in result))
    print(torch.equal(layer(x).detach(), expected))
"""
    assert run(program) == ["True"] * 3
