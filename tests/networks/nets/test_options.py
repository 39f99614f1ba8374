"""Options for foreign checkpoints are as exact as the defaults, and do not change the defaults."""

import io

import numpy as np
import pytest
import torch

from monai_gmr.metrics import check_equivariance
from monai_gmr.networks.blocks import GMRResNetBlock
from monai_gmr.networks.layers import GMRConv1d, GMRConv2d, GMRConv3d, GMRTrim, GMRUpsample
from monai_gmr.networks.nets import GMRResNet, GMRUNet
from monai_gmr.utils import ConfigurationError, SymmetryWarning

RESNET = {"layers": (1, 1), "kernel_sizes": 5, "width": 4, "zero_init_residual": False}
NETS = {
    "resnet inside": lambda: GMRResNet(2, 1, 3, block="bottleneck", downsample_inside=True, **RESNET),
    "resnet stem pool": lambda: GMRResNet(2, 1, 3, stem_downsample=("max", {"kernel_size": 3, "padding": 1}), **RESNET),
    "resnet square": lambda: GMRResNet(2, 1, 3, rings="indexed_square", **RESNET),
    "unet corners": lambda: GMRUNet(2, 1, 3, (4, 6, 8), upsample="linear_corners"),
    "unet square": lambda: GMRUNet(2, 1, 3, (4, 6, 8), rings="hard_square"),
    "unet features": lambda: GMRUNet(2, 1, 3, (4, 6, 8), decoder_features=(3, 5), upsample_features=(2, 7)),
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NETS)
def test_options_are_exact_at_every_size(name, training):
    torch.manual_seed(0)
    net = NETS[name]().double().train(training)
    report = check_equivariance(net, [(17, 17), (24, 31), (22, 19)], tolerance=1e-10, per_module=False)
    assert report.ok, report.to_text()


@pytest.mark.parametrize("name", NETS)
def test_options_can_be_scripted(name):
    net, buffer, x = NETS[name]().eval(), io.BytesIO(), torch.rand(1, 1, 21, 30)
    torch.jit.save(torch.jit.script(net), buffer)
    buffer.seek(0)
    assert torch.allclose(torch.jit.load(buffer)(x), net(x), atol=1e-6)


def test_a_bottleneck_pools_after_its_first_convolution():
    """Pooling after and before the convolution differ only by the nonlinearity, so a linear block shows that only the position changes."""
    torch.manual_seed(0)
    options = {"stride": 2, "bottleneck": True, "downsample": "avg", "act": ("leakyrelu", {"negative_slope": 1.0})}
    before = GMRResNetBlock(2, 4, 2, 5, **options).double().eval()
    inside = GMRResNetBlock(2, 4, 2, 5, downsample_inside=True, **options).double().eval()
    inside.load_state_dict(before.state_dict())
    seen = []
    inside.convs.conv1.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[2:])))
    x = torch.rand(1, 4, 8, 11, dtype=torch.float64)
    assert torch.allclose(inside(x), before(x))
    assert seen == [(8, 11)]


@pytest.mark.parametrize(("layer", "kernel_size"), [(GMRConv2d, 9), (GMRConv2d, 3), (GMRConv3d, 5), (GMRConv1d, 5)])
@pytest.mark.parametrize("rings", ["indexed_square", "hard_square"])
def test_square_rings_reach_every_tap_and_no_tap_twice(layer, kernel_size, rings):
    """By brute force: rings of equal width out to the corners, which form their own ring."""
    conv = layer(1, 1, kernel_size, padding=kernel_size // 2, rings=rings).double()
    half = kernel_size // 2
    grid = np.stack(np.meshgrid(*[np.arange(kernel_size) - half] * conv.spatial_dims), -1)
    squared, corner = (grid**2).sum(-1), conv.spatial_dims * half**2
    ring = np.where(squared == corner, half + 1, np.floor(np.sqrt(squared / corner) * (half + 1) + 1e-9)).astype(int)
    assert conv.num_rings == half + 2
    assert np.array_equal(conv.masks.int().argmax(0)[conv.shells].numpy(), ring)
    assert (conv.masks.sum(0) == 1).all()
    if rings == "hard_square":
        assert torch.equal(conv.dense_kernel()[0, 0], conv.weight[0, 0][torch.as_tensor(ring)])
    x = torch.rand(2, 1, *(11,) * conv.spatial_dims, dtype=torch.float64)
    assert torch.allclose(conv(x), conv.to_conv()(x))


def test_a_transposed_convolution_warns_and_keeps_every_size():
    with pytest.warns(SymmetryWarning, match="use upsample='linear'"):
        net = GMRUNet(2, 1, 3, (4, 6, 8), upsample="deconv").eval()
    assert net(torch.rand(1, 1, 18, 23)).shape == (1, 3, 18, 23)
    assert torch.allclose(torch.jit.script(net)(torch.ones(1, 1, 18, 23)), net(torch.ones(1, 1, 18, 23)), atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (7, 7)])
def test_upsampling_rotates_with_the_image(size):
    x = torch.rand(1, 2, 4, 4, dtype=torch.float64)
    up, trim = GMRUpsample(2, align_corners=True), GMRTrim()
    big = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for f, image in ((up, x), (trim, big)):
        assert torch.allclose(f(image.flip(2), list(size)), f(image, list(size)).flip(2))
        assert torch.allclose(f(image.transpose(2, 3), list(size[::-1])), f(image, list(size)).transpose(2, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"upsample": "pixelshuffle"}, "upsample='pixelshuffle' is unknown: use one of 'linear'"),
        (
            {"decoder_features": (4,)},
            r"decoder_features=\(4,\) has 1 entries and features has 3: give one for each but",
        ),
        ({"upsample_features": (4, 5, 6)}, "upsample_features=.* has 3 entries"),
        ({"rings": "square"}, "rings='square' is unknown"),
    ],
)
def test_wrong_options_end_in_one_sentence(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        GMRUNet(2, 1, 3, (4, 6, 8), **arguments)


def test_square_rings_are_at_least_two():
    with pytest.raises(ConfigurationError, match="num_rings=1 is impossible"):
        GMRConv2d(1, 1, 3, rings="hard_square", num_rings=1)
