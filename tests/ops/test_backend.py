"""A backend that cannot run is logged once for all threads, and "dense" runs instead."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

from monai_gmr.networks.layers import GMRConv2d
from monai_gmr.ops import Call, set_backend
from monai_gmr.ops import backend as backends
from monai_gmr.ops.cpu import library as kernels
from monai_gmr.ops.triton.backend import TritonBackend

THREADS = 4


def together(function, threads=THREADS):
    """Results of a function in threads that call it at the same moment."""
    barrier = threading.Barrier(threads)

    def call():
        barrier.wait()
        return function()

    with ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(call) for _ in range(threads)]]


def test_threads_that_ask_at_once_log_once_why_dense_runs(monkeypatch, caplog):
    def fail(processor):
        time.sleep(0.1)
        raise OSError(f"no kernels\nfor {processor}")

    monkeypatch.setattr(backends, "_logged", {})
    monkeypatch.setattr(kernels, "load_kernels", cache(kernels.load_kernels.__wrapped__))
    monkeypatch.setattr(kernels, "open_library", fail)
    monkeypatch.setattr(kernels, "PROCESSORS", {"DEFAULT": "generic"})
    layer, x = GMRConv2d(2, 3, 5), torch.rand(1, 2, 9, 9)
    with set_backend("dense"):
        expected = layer(x)
    with set_backend("cpp"), caplog.at_level(logging.WARNING, "monai_gmr.ops.backend"):
        answers = together(lambda: layer(x)) + together(lambda: layer(x))
    assert [record.message for record in caplog.records] == [
        "backend 'cpp' is not used: no kernels for generic (install monai_gmr where there is a C++ compiler); "
        "'dense' runs in its place."
    ]
    assert all(torch.equal(answer, expected) for answer in answers)


def test_other_backends_say_once_why_they_do_not_run(monkeypatch, caplog):
    monkeypatch.setattr(backends, "_logged", {})
    with caplog.at_level(logging.WARNING, "monai_gmr.ops.backend"):
        together(lambda: TritonBackend().supports(Call((1,), (1, 1), sizes=(1,), precision=torch.int32)))
    assert len(caplog.records) == 1
