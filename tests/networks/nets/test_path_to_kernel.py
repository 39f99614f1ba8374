"""The path from a ``network_def`` to the kernel passes through few files."""

import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

import monai_gmr
from monai_gmr.ops.cpu.library import load_kernels

needs_kernels = pytest.mark.skipif(load_kernels() is None, reason="no kernels were built")
PACKAGE = Path(monai_gmr.__file__).parent
NETWORK = {"_target_": "monai_gmr.networks.nets.GMRUNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2}


def files_of(frame):
    """Files of this package on the stack of a frame."""
    files = set()
    while frame is not None:
        if frame.f_code.co_filename.startswith(f"{PACKAGE}/"):
            files.add(Path(frame.f_code.co_filename).relative_to(PACKAGE).as_posix())
        frame = frame.f_back
    return files


@pytest.mark.parametrize("backend", ["dense", pytest.param("cpp", marks=needs_kernels)])
def test_at_most_twelve_files_lie_between_a_network_def_and_the_kernel(backend):
    """Files on the stack when a harmonic layer makes its parameters, and when torch's convolution or a kernel is called."""
    files = set()

    def profile(frame, event, called):
        reached = event == "call" and frame.f_code.co_name in ("reset_parameters", "call_kernel")
        if reached or (event == "c_call" and called.__name__ == "conv2d"):
            stack = files_of(frame)
            files.update(stack if "networks/layers/gmr_harmonic_conv.py" in stack else ())

    parser = ConfigParser({"network_def": NETWORK | {"features": [4, 8], "conv": "gmr_harmonic"}})
    monai_gmr.set_backend(backend)
    sys.setprofile(profile)
    try:
        parser.get_parsed_content("network_def")(torch.rand(1, 1, 16, 16))
    finally:
        sys.setprofile(None)
        monai_gmr.set_backend("auto")
    assert {"networks/nets/unet.py", "networks/layers/gmr_harmonic_conv.py", "ops/harmonic_conv.py"} <= files
    assert ("ops/cpu/library.py" in files) == (backend == "cpp")
    assert len(files) <= 12, "\n".join(sorted(files))
