"""What is made on first use is made once: threads that ask meanwhile wait, and a failure is not tried again."""

import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from monai_gmr.networks.layers import GMRConv2d
from monai_gmr.ops import Call, set_backend
from monai_gmr.ops import backend as backends
from monai_gmr.ops.cpu import library as kernels
from monai_gmr.ops.once import Once
from monai_gmr.ops.triton.backend import TritonBackend

THREADS = 4


def together(function, threads=THREADS):
    """What a function gives threads that call it at the same moment."""
    barrier = threading.Barrier(threads)

    def call():
        barrier.wait()
        return function()

    with ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(call) for _ in range(threads)]]


@pytest.fixture
def fresh(monkeypatch):
    """Kernels as in a process that has not asked for them yet."""
    monkeypatch.setattr(kernels, "load_kernels", Once(kernels.load_kernels.__wrapped__))


def test_threads_that_ask_at_once_load_the_kernels_once(monkeypatch, caplog, fresh):
    asked = []

    def fail(processor):
        asked.append(processor)
        time.sleep(0.1)
        raise OSError(f"no kernels\nfor {processor}")

    monkeypatch.setattr(kernels, "open_library", fail)
    monkeypatch.setattr(kernels, "PROCESSORS", {"DEFAULT": "generic"})
    layer, x = GMRConv2d(2, 3, 5), torch.rand(1, 2, 9, 9)
    set_backend("dense")
    expected = layer(x)
    set_backend("cpp")
    try:
        with caplog.at_level(logging.WARNING, "monai_gmr.ops.cpu.library"):
            answers = together(lambda: layer(x)) + together(lambda: layer(x))
    finally:
        set_backend("auto")
    assert asked == ["generic"]
    assert [record.message for record in caplog.records] == [
        "Backend 'cpp' has no kernels (no kernels for generic), and 'dense' runs in its place: "
        "reinstall monai_gmr where a C++ compiler is found."
    ]
    assert all(torch.equal(answer, expected) for answer in answers)


def test_other_backends_say_once_why_they_do_not_run(monkeypatch, caplog):
    monkeypatch.setattr(backends, "_logged", {})
    with caplog.at_level(logging.WARNING, "monai_gmr.ops.backend"):
        together(lambda: TritonBackend().supports(Call((1,), (1, 1), sizes=(1,), precision=torch.int32)))
    assert len(caplog.records) == 1


def test_an_error_is_not_kept_and_results_are_kept_by_arguments():
    calls = []

    @Once
    def made(number):
        calls.append(number)
        if len(calls) == 1:
            raise ValueError("first")
        return [number]

    with pytest.raises(ValueError, match="first"):
        made(1)
    assert not made.is_done()
    assert made(1) is made(1)
    assert made(2) == [2]
    assert calls == [1, 1, 2]
    made.forget()
    assert not made.is_done()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_process_forked_while_a_thread_makes_it_does_not_wait_for_ever():
    program = """
import os, threading, time
from monai_gmr.ops.once import Once
inside, calls = threading.Event(), []
@Once
def made():
    calls.append(1)
    inside.set()
    time.sleep(1 if len(calls) == 1 else 0)
    return len(calls)
threading.Thread(target=made).start()
inside.wait()
child = os.fork()
if child == 0:
    os._exit(7 if made() == 2 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), made())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["7", "1"], done.stderr
