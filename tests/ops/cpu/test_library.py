"""The library of kernels is the best one that the processor supports, and its declarations match the header."""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from monai_gmr import set_backend
from monai_gmr.ops.cpu import library as kernels
from monai_gmr.ops.memory_format import make_channels_last

CSRC = Path(kernels.__file__).parent / "csrc"
needs_kernels = pytest.mark.skipif(kernels.load_kernels() is None, reason="no kernels were built")


def test_the_header_declares_what_python_calls():
    header = re.sub(r"//.*", "", (CSRC / "kernels.h").read_text())
    structures = {name: getattr(kernels, name) for name in re.findall(r"struct (\w+) \{", header)}
    assert len(structures) == 6
    for name, structure in structures.items():
        (body,) = re.findall(rf"struct {name} \{{(.*?)\}};", header, re.DOTALL)
        assert set(re.findall(r"[\w:]+ (?=\w+[\[,;])", body)) == {"std::int64_t "}
        fields = re.findall(r"(\w+)(\[3\])?[,;]", body)
        assert [(each, ctypes.c_int64 * 3 if three else ctypes.c_int64) for each, three in fields] == list(
            structure._fields_
        )
    types = {"const std::int64_t*": torch.int64, "const float*": torch.float32, "float*": torch.float32}
    types |= {"double*": torch.float64, "float": ctypes.c_float}
    types |= {f"const {name}*": ctypes.POINTER(structure) for name, structure in structures.items()}
    declared = {
        name: [types[argument.rsplit(" ", 1)[0].strip()] for argument in arguments.split(",")]
        for name, arguments in re.findall(r"KERNEL (\w+)\(([^)]*)\)", header.split("#define", 1)[1])
    }
    called = {
        name: [getattr(each, "dtype", each) for each in arguments] for name, arguments in kernels.ARGUMENTS.items()
    }
    assert called == declared
    assert sorted(re.findall(r"CHECKED_KERNEL (\w+)\(", header)) == sorted(kernels.CHECKED)


OUT_OF_MEMORY = """
import resource, torch
from pathlib import Path
from monai_gmr import set_backend
from monai_gmr.ops import ring_conv
set_backend("cpp")
torch.set_num_threads(16)
x, weight, shells = torch.ones(1, 1024, 6, 6), torch.ones(1024, 1024, 4), torch.tensor([[2, 1, 2], [1, 0, 1], [2, 1, 2]])
y = ring_conv(x.requires_grad_(), weight.requires_grad_(), torch.ones(4, 3), shells, padding=1)
# 16 times the weights are 268 MB
most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 200 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    y.sum().backward()
except MemoryError as error:
    print(error)
"""


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_a_kernel_that_finds_no_memory_is_an_error_and_not_the_end_of_the_process(forked_python):
    done = subprocess.run([forked_python, "-c", OUT_OF_MEMORY], capture_output=True, text=True)
    sentence = "kernel 'ring_conv_backward' cannot allocate memory for its copies of the weights, up to one for each of 16 threads"
    assert done.stdout.startswith(sentence), done.stdout + done.stderr


def test_each_library_is_built_of_all_sources_and_differs_in_its_vectors():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    settings = Path(__file__).parents[3] / "pyproject.toml"
    modules = tomllib.loads(settings.read_text())["tool"]["setuptools"]["ext-modules"]
    names = [f"monai_gmr.ops.cpu._kernels_{processor}" for processor in kernels.PROCESSORS.values()]
    assert sorted(module["name"] for module in modules) == sorted(names)
    for module in modules:
        for key, ending in (("sources", "cpp"), ("depends", "h")):
            assert module[key] == [f"monai_gmr/ops/cpu/csrc/{path.name}" for path in sorted(CSRC.glob(f"*.{ending}"))]
        assert [flag for flag in module["extra-compile-args"] if not flag.startswith("-m")] == modules[0][
            "extra-compile-args"
        ]
        assert module["optional"]


@pytest.mark.parametrize(
    ("capability", "built", "chosen"),
    [
        ("AVX512", ("generic", "avx2", "avx512"), "avx512"),
        ("AVX512", ("generic", "avx2"), "avx2"),
        ("AVX2", ("generic", "avx2", "avx512"), "avx2"),
        ("DEFAULT", ("generic", "avx2", "avx512"), "generic"),
        ("SVE256", ("generic",), "generic"),
        ("SVE256", (), None),
    ],
)
def test_the_best_library_that_the_processor_runs_is_taken(monkeypatch, capability, built, chosen):
    def open_library(processor):
        if processor not in built:
            raise OSError("not built")
        return processor

    monkeypatch.setattr(kernels, "open_library", open_library)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert kernels.load_kernels.__wrapped__() == chosen


@needs_kernels
def test_an_array_of_another_type_is_refused():
    sums = torch.zeros(1, 3, dtype=torch.float64)
    with pytest.raises(
        ctypes.ArgumentError, match=r"a tensor of torch\.int64 on cpu is not one of torch\.float32 on a CPU"
    ):
        kernels.call_kernel("sum_voxels", kernels.VoxelGeometry(1, 2, 3, 1), torch.zeros(2, 3, dtype=torch.int64), sums)


@needs_kernels
@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (1, 17, 40, 30), (3, 2, 1, 7, 90), (2, 1, 4, 4)])
def test_sums_over_voxels_are_those_of_float64(cpp, shape):
    x = make_channels_last(torch.randn(shape) + 3)
    expected = x.double().sum((0, *range(2, x.dim())))
    assert kernels.supports(x)
    assert (kernels.sum_voxels(x) - expected).norm() <= 1e-6 * expected.norm()


@needs_kernels
def test_the_kernels_compute_in_float32_and_on_images_with_channels_last():
    x = make_channels_last(torch.zeros(1, 2, 3, 3))
    assert kernels.supports(x)
    assert not kernels.supports(x.contiguous())
    assert not kernels.supports(x.double())
    with torch.autocast("cpu"):
        assert not kernels.supports(x)
    set_backend("dense")
    assert not kernels.supports(x)
    set_backend("auto")
