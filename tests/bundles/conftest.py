"""Bundles run in a folder of the test: a workflow in Python has "." as its ``bundle_root``."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def forked_python(tmp_path_factory):
    """An executable for ``[forked_python, "-m", MODULE, ...]`` that saves the imports of torch and MONAI (forked_python.py): for tests of
    what a command says. Each command is also run once by ``sys.executable``."""
    if sys.platform != "linux":
        yield sys.executable
        return
    folder = tmp_path_factory.mktemp("forked")
    program, path, executable = Path(__file__).with_name("forked_python.py"), folder / "socket", folder / "python"
    words = shlex.join([sys.executable, "-IS", str(program), "call", str(path)])
    executable.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    executable.chmod(0o755)
    command = [sys.executable, str(program), "serve", str(path)]
    # one thread: a process that has started more cannot be forked safely
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "cwd": "/", "text": True}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options) as server:
        assert server.stdout.readline() == "ready\n"
        yield str(executable)
        server.stdin.close()
