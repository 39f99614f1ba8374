"""Every test draws the same random numbers, whichever tests ran before it."""

import numpy as np
import torch


def pytest_runtest_setup(item):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (MONAI's transforms draw from it)
