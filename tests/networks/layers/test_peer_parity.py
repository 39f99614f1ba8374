"""``rings="indexed"`` is GMR-Conv 1.0.3 and ``rings="hard"`` SRE-Conv 1.0.2: outputs and gradients of the installed layers.

The arrays are made by ``tests/reference/make_reference_arrays.py``; the tests run without the peers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from monai_gmr.networks.layers import GMRConv2d, GMRConv3d, SREConv2d, SREConv3d

REFERENCE = Path(__file__).parents[2] / "reference"
PEERS = {
    "gmr_conv": {2: GMRConv2d, 3: GMRConv3d},
    "sre_conv": {2: SREConv2d, 3: SREConv3d},
}
CASES = [f"2d_k{k}" for k in (3, 5, 7, 9, 11)] + [f"3d_k{k}" for k in (3, 5, 7, 9)]
CASES += [f"{d}d_k5_{option}" for d in (2, 3) for option in ("stride2", "dilation2")]


@pytest.fixture(scope="module")
def reference():
    arrays = {}
    for peer in PEERS:
        with np.load(REFERENCE / f"{peer}.npz", allow_pickle=False) as file:
            arrays[peer] = {key: torch.from_numpy(file[key]) for key in file.files}
    return arrays


def layer_and_case(reference, peer, case, dtype):
    """The layer of this library with the parameters of a case, and the arrays of the case."""
    arrays = {key.split("/")[1]: v.to(dtype) for key, v in reference[peer].items() if key.startswith(case + "/")}
    spatial_dims, kernel_size = int(case[0]), int(case.split("_")[1][1:])
    stride, dilation = 1 + case.endswith("stride2"), 1 + case.endswith("dilation2")
    options = {"rings": "indexed"} if peer == "gmr_conv" else {}
    layer = PEERS[peer][spatial_dims](
        2, 1, kernel_size, stride, dilation * (kernel_size // 2), dilation, dtype=dtype, **options
    )
    with torch.no_grad():
        layer.weight.copy_(arrays["weight"])
        layer.bias.copy_(arrays["bias"])
        if "sigma" in arrays:
            floor = layer.sigma() - layer.log_sigma.exp()
            layer.log_sigma.copy_((arrays["sigma"] - floor).log())
    return layer, arrays


def relative_error(actual, expected):
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("peer", PEERS)
def test_outputs_and_gradients_equal_the_peer(reference, peer, case, dtype):
    layer, arrays = layer_and_case(reference, peer, case, dtype)
    x = arrays["x"].clone().requires_grad_()
    y = layer(x)
    (y * arrays["cotangent"]).sum().backward()
    actual = {
        "y": y.detach(),
        "grad_x": x.grad,
        "grad_weight": layer.weight.grad,
        "grad_bias": layer.bias.grad,
    }
    if peer == "gmr_conv":
        actual["grad_sigma"] = layer.log_sigma.grad / layer.log_sigma.detach().exp()
    assert set(arrays) - {"x", "weight", "bias", "sigma", "cotangent"} == set(actual)
    for name, value in actual.items():
        assert value.shape == arrays[name].shape
        assert relative_error(value, arrays[name]) <= 1e-5, name


@pytest.mark.parametrize("peer", PEERS)
def test_all_cases_of_the_reference_are_compared(reference, peer):
    assert {key.split("/")[0] for key in reference[peer]} == set(CASES)


@pytest.mark.parametrize(("spatial_dims", "kernel_size"), [(2, 3), (2, 9), (3, 5)])
def test_fresh_sigma_is_the_peers(spatial_dims, kernel_size):
    layer = PEERS["gmr_conv"][spatial_dims](1, 1, kernel_size, rings="indexed")
    expected = kernel_size / (2 * (kernel_size // 2)) / 2.355
    assert torch.allclose(layer.sigma(), torch.full((kernel_size // 2 + 1,), expected))
