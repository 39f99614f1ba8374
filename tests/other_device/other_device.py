"""Device "other", which tests run on as on a GPU: what is left on the CPU, or brought there unasked, ends in an error.

Its memory is that of the host, its operations those of the CPU (``other_device.cpp``, built before the first test that needs it).
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch
from torch.utils import cpp_extension

NAME = "other"
SOURCE = Path(__file__).with_suffix(".cpp")


def compiler():
    """The compiler of C++, ``None`` where there is none."""
    return shutil.which(os.environ.get("CXX", "c++"))


class _Module:
    """What torch asks of a device's own module."""

    device = contextlib.nullcontext

    @staticmethod
    def get_amp_supported_dtype():
        return [torch.float16, torch.bfloat16]

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def device_count():
        return 1

    @staticmethod
    def current_device():
        return 0

    @staticmethod
    def _is_in_bad_fork():
        return False

    # random numbers are those of the CPU

    @staticmethod
    def manual_seed_all(seed):
        pass

    @staticmethod
    def get_rng_state(device=None):
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state, device=None):
        pass


def load(folder):
    """Build the device in a folder, once for a version of torch, and make it known to torch."""
    made_of = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = Path(folder) / f"{made_of}.so"
    if not library.exists():
        includes = [f"-I{path}" for path in cpp_extension.include_paths()]
        libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
        # without optimisation, which takes longer than it saves
        options = ["-O0", "-shared", "-fPIC", "-std=c++20"]
        new = library.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler(), *options, *includes, SOURCE, "-o", new, *libraries], check=True)
        new.rename(library)
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _Module)
    torch.utils.generate_methods_for_privateuse1_backend()
