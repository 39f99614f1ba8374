"""The library of kernels is compiled once, says what it costs and why it is missing; sums over voxels are those of float64."""

import logging

import pytest
import torch

from monai_gmr.ops.cpu import library as kernels
from monai_gmr.ops.cpu.library import say_dense
from monai_gmr.ops.memory_format import make_channels_last
from monai_gmr.ops.once import Once

needs_compiler = pytest.mark.skipif(kernels.kernel_failure() is not None, reason="no C++ compiler")


def test_a_compiler_that_fails_is_said_why(monkeypatch, caplog):
    def fail():
        raise RuntimeError("no space\nleft on device")

    monkeypatch.setattr(kernels, "load_kernels", fail)
    monkeypatch.setattr(kernels, "kernel_failure", kernels.kernel_failure.__wrapped__)
    say_dense.forget()
    with caplog.at_level(logging.WARNING, "monai_gmr.ops.cpu.library"):
        assert not kernels.has_kernels()
        assert not kernels.has_kernels()
    assert [record.message for record in caplog.records] == [
        "backend 'cpp' is not used: its kernels cannot be compiled (no space left on device); 'dense' runs in its place."
    ]


@needs_compiler
def test_the_time_of_compiling_is_said_aloud(caplog):
    with caplog.at_level(logging.WARNING, "monai_gmr.ops.cpu.library"):
        kernels.load_kernels.__wrapped__()
    (record,) = caplog.records
    assert " s for its kernels, which torch.compile's cache keeps on disk." in record.message


@needs_compiler
@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (1, 17, 40, 30), (3, 2, 1, 7, 90), (2, 1, 4, 4)])
def test_sums_over_voxels_are_those_of_float64(compiled, shape):
    x = make_channels_last(torch.randn(shape) + 3)
    expected = x.double().sum((0, *range(2, x.dim())))
    assert kernels.runs_in_kernels(x)
    assert (kernels.sum_voxels(x) - expected).norm() <= 1e-6 * expected.norm()


@needs_compiler
def test_what_surrounds_convolutions_waits_for_them_on_auto(monkeypatch):
    x = make_channels_last(torch.zeros(1, 2, 3, 3))
    monkeypatch.setattr(kernels, "load_kernels", Once(kernels.load_kernels.__wrapped__))
    assert not kernels.runs_in_kernels(x)
    kernels.load_kernels()
    assert kernels.runs_in_kernels(x)
    assert not kernels.runs_in_kernels(x.contiguous())
    assert not kernels.runs_in_kernels(x.double())
