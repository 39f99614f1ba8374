"""Every test draws the same random numbers, whichever tests ran before it."""

import os

# Triton reads it when it is first imported; its kernels then run on the CPU, in numpy
if not os.path.exists("/dev/nvidia0"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import torch


def pytest_runtest_setup(item):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (MONAI's transforms draw from it)
