"""What is made on first use is made once: threads and processes that come meanwhile wait, and a failure is not tried again."""

import logging
import os
import shutil
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
    for name in ("load_kernels", "kernel_failure", "say_dense"):
        monkeypatch.setattr(kernels, name, Once(getattr(kernels, name).__wrapped__))


@pytest.mark.parametrize("asked", ["load_kernels", "kernel_failure", "has_kernels"])
def test_threads_that_ask_at_once_compile_once(monkeypatch, caplog, fresh, asked):
    compiled = []

    def compile_slowly():
        compiled.append(threading.get_ident())
        time.sleep(0.3)
        return object()

    monkeypatch.setattr(kernels, "compile_kernels", compile_slowly)
    with caplog.at_level(logging.WARNING, "monai_gmr.ops.cpu.library"):
        answers = together(getattr(kernels, asked))
    assert len(compiled) == 1
    assert len(set(map(id, answers))) == 1
    assert len(caplog.records) == 1


def test_a_compiler_that_fails_is_asked_once_and_said_once(monkeypatch, caplog, fresh):
    asked = []

    def fail():
        asked.append(threading.get_ident())
        time.sleep(0.3)
        raise RuntimeError("no space left on device")

    monkeypatch.setattr(kernels, "compile_kernels", fail)
    layer, x = GMRConv2d(2, 3, 5), torch.rand(1, 2, 9, 9)
    expected = layer(x)
    set_backend("cpp")
    try:
        with caplog.at_level(logging.WARNING, "monai_gmr.ops.cpu.library"):
            answers = together(lambda: layer(x)) + together(lambda: layer(x))
    finally:
        set_backend("auto")
    assert len(asked) == 1
    assert [record.message for record in caplog.records] == [
        "backend 'cpp' is not used: its kernels cannot be compiled (no space left on device); 'dense' runs in its place."
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


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_processes_that_ask_at_once_share_what_one_compiles(tmp_path):
    log, source, compiler = tmp_path / "log", tmp_path / "kernel.cpp", tmp_path / "compiler"
    source.write_text('extern "C" int seven() { return 7; }\n')
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {shutil.which("g++")} "$@"\n')
    compiler.chmod(0o755)
    program = f"""
from pathlib import Path
from monai_gmr.ops.cpu import library as kernels
kernels.SOURCES = [Path({str(source)!r})]
print(kernels.load_kernels().seven())
"""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "CXX": str(compiler)}
    command = [sys.executable, "-W", "ignore", "-c", program]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=500)[0].split() for process in running] == [["7"]] * 3
    compiled = [line for line in log.read_text().splitlines() if "main.cpp" in line and " -o " in f" {line} "]
    assert len(compiled) == 1
    assert len(list((tmp_path / "cache").rglob("*main.so"))) == 1
