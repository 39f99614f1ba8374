"""The kernels of harmonic layers pass Triton's compiler, which refuses more than its interpreter does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import monai_gmr

pytest.importorskip("triton")


def test_the_kernels_compile_for_tensor_cores(tmp_path):
    script, folder = Path(__file__).with_name("compile_kernels.py"), Path(monai_gmr.__file__).parent
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, str(script), str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr
    kernels = ["harmonic_kernel", "harmonic_kernel", "input_gradient_kernel", "weight_gradient_kernel"]
    assert found.stdout.splitlines() == [f"{name} True" for name in kernels]
