"""From a ``network_def`` to the kernel a reader passes few files."""

import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser

import monai_gmr
from monai_gmr.networks.layers import gmr_harmonic_conv

PACKAGE = Path(monai_gmr.__file__).parent
NETWORK = {"_target_": "monai_gmr.networks.nets.GMRUNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2}


def test_at_most_twelve_files_lie_between_a_network_def_and_the_kernel():
    """Files with a function that calls a harmonic layer, or that the layer calls: when the net is built, and when it runs."""
    files = set()

    def trace(frame, event, arg):
        stack, each = [], frame
        while each is not None:
            stack.append(each.f_code.co_filename)
            each = each.f_back
        if gmr_harmonic_conv.__file__ in stack:
            files.update(Path(name).relative_to(PACKAGE).as_posix() for name in stack if name.startswith(f"{PACKAGE}/"))

    parser = ConfigParser({"network_def": NETWORK | {"features": [4, 8], "conv": "gmr_harmonic"}})
    monai_gmr.set_backend("dense")
    sys.settrace(trace)
    try:
        net = parser.get_parsed_content("network_def")
        net(torch.rand(1, 1, 16, 16))
    finally:
        sys.settrace(None)
        monai_gmr.set_backend("auto")
    assert {"networks/nets/unet.py", "networks/layers/gmr_harmonic_conv.py"} <= files
    assert len(files) <= 12, sorted(files)
