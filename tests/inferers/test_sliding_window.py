"""Sliding windows about the centre keep an equivariant network equivariant, and otherwise work like MONAI's."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import nn

from monai_gmr.inferers import GMRSlidingWindowInferer
from monai_gmr.metrics import equivariance_error
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.symmetry import point_group
from monai_gmr.utils import ConfigurationError

SWAP_AND_MIRROR_3D = [
    np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
    -np.eye(3, dtype=int),
]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def tiny_unet(dims: int, device: torch.device | str = "cpu") -> GMRUNet:
    torch.manual_seed(0)
    return GMRUNet(dims, 1, 2, features=(2, 3)).eval().to(device)


def error(inferer, net, x, group=None) -> float:
    return equivariance_error(lambda image: inferer(image, net), x, group).worst


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(33, 70), st.integers(33, 70)),
    roi=st.integers(16, 32),
    overlap=st.sampled_from([0, 0.1, 0.25, 0.5, 0.6, 0.75]),
    mode=st.sampled_from(["constant", "gaussian"]),
)
def test_unet_stays_exact_2d(size, roi, overlap, mode):
    inferer = GMRSlidingWindowInferer(roi, 16, overlap, mode)
    assert error(inferer, tiny_unet(2), noise(1, 1, *size)) < 1e-5


@pytest.mark.parametrize(
    ("size", "roi", "overlap", "mode"),
    [
        ((33, 40, 35), 16, 0.25, "gaussian"),
        ((34, 33, 33), 17, 0.5, "constant"),
        ((50, 50, 50), 32, 0.25, "gaussian"),
        ((61, 33, 29), 32, 0.0, "constant"),
    ],
)
def test_unet_stays_exact_3d(size, roi, overlap, mode, device):
    """The image and the sum over windows stay on the CPU, the windows go to the device."""
    inferer = GMRSlidingWindowInferer(roi, 4, overlap, mode, sw_device=device, device="cpu")
    net, seen = tiny_unet(3, device), set()
    net.register_forward_pre_hook(lambda module, inputs: seen.add(inputs[0].device.type))
    x = noise(1, 1, *size)
    assert error(inferer, net, x, SWAP_AND_MIRROR_3D) < 1e-5
    assert inferer(x, net).device.type == "cpu"
    assert seen == {device.type}
    whole = GMRSlidingWindowInferer(roi, 4, overlap, mode)(x.to(device), net)
    assert whole.device.type == device.type
    assert torch.allclose(whole.cpu(), inferer(x, net), atol=1e-5)


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_monai_breaks_it(mode):
    net, x = tiny_unet(2), noise(1, 1, 50, 47)
    assert error(SlidingWindowInferer(32, 4, 0.5, mode), net, x) > 0.05
    assert error(GMRSlidingWindowInferer(32, 4, 0.5, mode), net, x) < 1e-5


@pytest.mark.parametrize("size", [(20, 20), (19, 20), (31, 17), (13, 45)])
@pytest.mark.parametrize("padding", ["constant", "reflect", "replicate", "circular"])
def test_roi_larger_than_the_image(size, padding):
    sizes = []

    def net(x):
        sizes.append(tuple(x.shape[2:]))
        return unet(x)

    unet, x = tiny_unet(2), noise(1, 1, *size)
    inferer = GMRSlidingWindowInferer(32 if 13 not in size else 24, 4, padding_mode=padding, cval=0.3)
    assert inferer(x, net).shape == (1, 2, *size)
    assert error(inferer, net, x) < 1e-5
    assert set(sizes) == {(inferer.roi_size,) * 2}


def test_odd_rest_takes_two_windows():
    assert GMRSlidingWindowInferer(32).windows((31, 30, 64)) == ((32, 32, 32), [1, 1, 0], [[0, 1], [0], [0, 16, 32]])


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("roi", [16, 31, 32])
def test_a_roi_that_may_grow_takes_no_more_windows_than_monais(roi, overlap):
    """At every size: mirrored, covered, at least the overlap, and windows of the given length or one voxel more."""
    grown = GMRSlidingWindowInferer(roi, overlap=overlap, grow_roi=True)
    for size in range(1, 130):
        (window,), (padding,), (starts,) = grown.windows((size,))
        interval = int(window * (1 - overlap))
        room = size + 2 * padding - window
        assert window in (roi, roi + 1)
        assert starts == [room - start for start in reversed(starts)]
        assert all(b - a <= interval for a, b in itertools.pairwise(starts))
        assert len(starts) <= math.ceil(max(size - roi, 0) / int(roi * (1 - overlap))) + 1


@pytest.mark.parametrize("size", [(49, 50, 37), (31, 47, 64)])
def test_unet_stays_exact_in_windows_that_grow(size):
    inferer = GMRSlidingWindowInferer(32, 4, 0.5, "gaussian", grow_roi=True)
    assert 33 in inferer.windows(size)[0]
    assert error(inferer, tiny_unet(3), noise(1, 1, *size), SWAP_AND_MIRROR_3D) < 1e-5


def test_unlike_rois_keep_the_symmetries_that_keep_them():
    net, x = tiny_unet(2), noise(1, 1, 41, 43)
    inferer = GMRSlidingWindowInferer((16, 24), 8, 0.5)
    assert error(inferer, net, x, point_group(2, axis_labels=(0, 1))) < 1e-5
    assert GMRSlidingWindowInferer((-1, 24)).windows((50, 50))[2] == [[0], [0, 13, 26]]


def test_equals_monai_where_windows_are_the_same():
    net = nn.Conv2d(1, 2, 3, padding=1)
    x = noise(2, 1, 64, 48)
    for mode in ("constant", "gaussian"):
        for batch in (1, 5):
            options = {"roi_size": 32, "sw_batch_size": batch, "overlap": 0.5, "mode": mode}
            expected = SlidingWindowInferer(**options)(x, net)
            assert torch.allclose(GMRSlidingWindowInferer(**options)(x, net), expected, atol=1e-6)


def test_identity_and_one_over_the_padded_border():
    x = noise(2, 3, 29, 50)
    for mode in ("constant", "gaussian"):
        assert torch.allclose(GMRSlidingWindowInferer(32, 3, 0.6, mode)(x, lambda w: w), x, atol=1e-6)


def half_resolution(x: torch.Tensor) -> dict:
    pooled = nn.functional.avg_pool2d(x, 2)
    return {"fine": x, "coarse": [pooled, (nn.functional.avg_pool2d(pooled, 2), torch.stack([x, x], 1))]}


@pytest.mark.parametrize("size", [(33, 50), (48, 37), (20, 19)])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_nested_outputs_of_other_resolutions(size, mode):
    inferer, x = GMRSlidingWindowInferer(16, 4, 0.25, mode), noise(1, 1, *size)
    answer = inferer(x, half_resolution)
    assert list(answer) == ["fine", "coarse"]
    assert answer["coarse"][0].shape[2:] == tuple(n // 2 for n in size)
    assert answer["coarse"][1][0].shape[2:] == tuple(n // 4 for n in size)
    assert answer["coarse"][1][1].shape == (1, 2, 1, *size)
    assert error(inferer, half_resolution, x) < 1e-5
    expected = SlidingWindowInferer(16, 4, 0.25, mode)(x, lambda w: {"coarse": nn.functional.avg_pool2d(w, 2)})
    assert answer["coarse"][0].shape == expected["coarse"].shape


def test_tuple_like_monai():
    x = noise(1, 1, 40, 40)
    both = [inferer(16)(x, lambda w: (w, w + 1)) for inferer in (GMRSlidingWindowInferer, SlidingWindowInferer)]
    assert all(isinstance(answer, tuple) for answer in both)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*both))


def test_metadata_dtype_gradients_and_amp():
    x = MetaTensor(noise(1, 1, 33, 20), meta={"filename_or_obj": "a.nii"})
    x.affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    net = tiny_unet(2)
    inferer = GMRSlidingWindowInferer(16, 2, mode="gaussian")
    answer = inferer(x, net)
    assert isinstance(answer, MetaTensor)
    assert answer.meta["filename_or_obj"] == "a.nii"
    assert torch.equal(answer.affine, x.affine)
    assert inferer(noise(1, 1, 33, 20).double(), net.double()).dtype == torch.float64
    net.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = inferer(noise(1, 1, 33, 20), net)
    assert half.dtype == torch.float32
    assert torch.allclose(half, answer.as_tensor(), atol=0.1)
    leaf = noise(1, 1, 33, 20).requires_grad_()
    inferer(leaf, lambda w: w * w).sum().backward()
    assert torch.allclose(leaf.grad, 2 * leaf.detach(), atol=1e-5)


def test_further_arguments():
    x = noise(2, 1, 20, 33)
    inferer = GMRSlidingWindowInferer(16, 3, 0.25, with_coord=True, cache_roi_weight_map=True, mode="gaussian")

    def net(window, places, factor, condition):
        assert len(places) == len(window)
        assert torch.equal(condition, 2 * window)
        for part, place in zip(window, places):
            assert torch.equal(x[tuple(place)][0], part)
        return factor * window + condition

    for _ in range(2):
        assert torch.allclose(inferer(x, net, 3, condition=2 * x), 5 * x, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roi_size": "32"}, "roi_size='32' is impossible: give whole numbers"),
        ({"roi_size": (16, 16.5)}, r"roi_size\[1\]=16.5 is impossible: give whole numbers"),
        ({"roi_size": 16, "overlap": 1.0}, "overlap=1.0"),
        ({"roi_size": 16, "overlap": (0.5, -0.1)}, "0 or more and less than 1"),
        ({"roi_size": 16, "mode": "gausian"}, "'gausian' is unknown"),
        ({"roi_size": 16, "padding_mode": "mirror"}, "'mirror' is unknown"),
        ({"roi_size": 16, "sw_batch_size": 0}, "sw_batch_size=0 is impossible: give a whole number of at least 1"),
        ({"roi_size": 16, "sigma_scale": (0.1, 0)}, "sigma_scale=0.0 is impossible: give a number above 0"),
        (
            {"roi_size": 16, "sigma_scale": "wide"},
            "sigma_scale='wide' is impossible: give a number or a list of numbers",
        ),
        ({"roi_size": 16, "sw_device": "gpu"}, "sw_device='gpu' is impossible: give a device, such as"),
        ({"roi_size": 16, "buffer_steps": 2.5}, "buffer_steps=2.5 is impossible: give a whole number or None"),
        ({"roi_size": 16, "buffer_steps": "2"}, "buffer_steps='2' is impossible: give a whole number or None"),
        ({"roi_size": 16, "buffer_steps": 2, "buffer_dim": 4}, "buffer_dim=4 is not one of the 4 spatial axes"),
        ({"roi_size": 16, "buffer_dim": None}, "buffer_dim=None is impossible: give a whole number"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ConfigurationError, match=message):
        GMRSlidingWindowInferer(**options)


@pytest.mark.parametrize(
    ("options", "x", "net", "message"),
    [
        (
            {"roi_size": (16, 16, 16)},
            noise(1, 1, 20, 20),
            nn.Identity(),
            "roi_size=.* has 3 entries and the image 2 axes",
        ),
        ({"roi_size": 16, "overlap": (0.5,)}, noise(1, 1, 20, 20), nn.Identity(), "overlap=.* has 1 entries"),
        ({"roi_size": 16}, noise(20, 20), nn.Identity(), "give a tensor"),
        ({"roi_size": 16}, noise(0, 1, 20, 20), nn.Identity(), "is empty"),
        ({"roi_size": 16}, noise(1, 1, 20, 20), lambda x: None, "NoneType without tensors"),
        ({"roi_size": 16}, noise(1, 1, 20, 20), lambda x: x.mean((2, 3)), "sliding windows need"),
        ({"roi_size": 16, "padding_mode": "reflect"}, noise(1, 1, 4, 20), nn.Identity(), "'constant' or 'replicate'"),
        ({"roi_size": 4, "padding_mode": "replicate"}, noise(1, 1, 2, 2, 2, 2), nn.Identity(), "cannot pad 4 axes"),
        ({"roi_size": 4}, noise(1, 1, 2, 2, 2, 2, 2), nn.Identity(), "1 to 4 axes"),
        ({"roi_size": 16, "buffer_steps": 1, "buffer_dim": 2}, noise(1, 1, 20, 20), nn.Identity(), "from -2 to 1"),
        ({"roi_size": 16, "buffer_steps": 1, "buffer_dim": -3}, noise(1, 1, 20, 20), nn.Identity(), "from -2 to 1"),
    ],
)
def test_wrong_input(options, x, net, message):
    with pytest.raises(ConfigurationError, match=message):
        GMRSlidingWindowInferer(**options)(x, net)
