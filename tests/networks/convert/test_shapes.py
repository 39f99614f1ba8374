"""Operations without values give the same sizes, strides and dtypes as with values, and change nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from monai_gmr import get_backend, set_backend
from monai_gmr.networks.convert.shapes import SizesBackend, output_without_values
from monai_gmr.networks.layers import GMRConv2d, GMRConvTranspose2d, GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.ops import DenseBackend

OPERATIONS = {
    "convolution": lambda x, w: F.conv2d(x, w, None, 2, 1),
    "convolution in place of a bias": lambda x, w: F.conv2d(x, w, w[:, 0, 0, 0], padding="same"),
    "whole numbers stay whole": lambda x, w: torch.arange(3) * 2,
    "a whole number times a fraction": lambda x, w: torch.arange(3) * 2.0,
    "true is not a number": lambda x, w: torch.arange(3) * True,
    "truth times true": lambda x, w: (torch.arange(3) > 1) * True,
    "truth times one": lambda x, w: (torch.arange(3) > 1) * 1,
    "batch norm": lambda x, w: F.batch_norm(x, torch.zeros(3), torch.ones(3)),
    "instance norm": lambda x, w: F.instance_norm(x),
    "group norm": lambda x, w: F.group_norm(x, 3),
    "largest": lambda x, w: x.max(1),
    "pool": lambda x, w: F.max_pool2d(x, 3, 2, 1, return_indices=True),
    "views": lambda x, w: x.transpose(1, 3)[..., 1:].flatten(2).unsqueeze(0),
    "parts": lambda x, w: x.split([1, 2], 1),
    "joined": lambda x, w: torch.cat([x, x.flip(2)], 2),
    "in place": lambda x, w: (x + 1).relu_().mul_(2),
    "in place, another shape": lambda x, w: (x + 1).squeeze_(0).t_() if x.dim() < 3 else (x + 1).transpose_(1, 2),
    "channels last": lambda x, w: x.contiguous(memory_format=torch.channels_last) * 2,
    "another type": lambda x, w: x.to(torch.float64) + w.sum(),
    "softmax": lambda x, w: x.flatten(2).softmax(1) @ x.flatten(2).transpose(1, 2),
    "linear": lambda x, w: F.linear(x, torch.ones(5, 8)),
    "drawn": lambda x, w: torch.randn_like(x) + torch.rand(8),
    "resized": lambda x, w: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
    "padded": lambda x, w: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    "a table": lambda x, w: x[:, :, torch.tensor([0, 2])],
}


class _WithoutValues(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return output_without_values(func, args, kwargs or {})


def described(answer):
    answer = answer if isinstance(answer, tuple | list) else [answer]
    return [(each.shape, each.stride(), each.dtype) for each in answer]


@pytest.mark.parametrize("name", OPERATIONS)
def test_sizes_strides_and_types_are_those_of_values(name):
    x, weight = torch.randn(2, 3, 9, 8), torch.randn(3, 3, 3, 3)
    expected = described(OPERATIONS[name](x, weight))
    for _ in range(2):  # the second time from the cache
        with _WithoutValues():
            answer = OPERATIONS[name](x, weight)
        assert described(answer) == expected
        assert all(each.is_meta for each in (answer if isinstance(answer, tuple | list) else [answer]))


def test_what_has_values_keeps_them():
    x, counter = torch.ones(3), torch.tensor(3)
    with _WithoutValues():
        assert (x.add_(1) + 1).is_meta
        counter.add_(1)
        assert float(torch.tensor(2.5)) == 2.5
    assert x.tolist() == [1, 1, 1]
    assert int(counter) == 3


@pytest.mark.parametrize("operation", [lambda x: x + torch.ones(4), lambda x: (x + 1).add_(torch.ones(4))])
def test_sizes_that_do_not_fit_are_refused(operation):
    for _ in range(2):
        with _WithoutValues(), pytest.raises(RuntimeError):
            operation(torch.ones(3))


def test_values_that_are_not_there_are_refused():
    with _WithoutValues(), pytest.raises(RuntimeError):
        bool(torch.ones(3).sum() > 2)


LAYERS = {
    "radial": lambda: GMRConv2d(3, 4, 5, padding=1),
    "strided, dilated, grouped": lambda: GMRConv2d(6, 4, (5, 3), stride=(2, 1), dilation=2, padding=4, groups=2),
    "transposed": lambda: GMRConvTranspose2d(3, 4, 3, stride=2, output_padding=1),
    "reflected": lambda: GMRConv2d(3, 4, 5, padding=2, padding_mode="reflect"),
    "harmonic": lambda: GMRHarmonicConv2d(3, 5, 5, padding="same"),
    "harmonic, grouped, of a subgroup": lambda: GMRHarmonicConv2d(6, 4, 5, stride=2, groups=2, keeps="4"),
    "harmonic, of volumes": lambda: GMRHarmonicConv3d(3, 5, 3, stride=(1, 2, 1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_a_backend_without_values_gives_the_sizes_of_one_with_values(name, dtype, monkeypatch):
    layer = LAYERS[name]().to(dtype)
    x = torch.randn(2, layer.in_channels, *(11, 10, 9)[: layer.spatial_dims], dtype=dtype)
    expected = described(layer(x)), described(layer(x[0]))
    layer.to("meta")
    for method in ("conv", "conv_transpose", "harmonic_conv"):
        monkeypatch.delattr(DenseBackend, method)
    with torch.no_grad(), set_backend(SizesBackend(lambda: True)):
        assert (described(layer(x.to("meta"))), described(layer(x[0].to("meta")))) == expected
    assert get_backend() == "auto"


def test_a_backend_without_values_leaves_to_others_what_has_values_gradients_or_no_result():
    layer, x = GMRConv2d(3, 4, 5), torch.randn(2, 3, 9, 8)
    with set_backend(SizesBackend(lambda: True)):
        assert get_backend() == "sizes"
        assert torch.equal(layer(x), layer(x))
        layer.to("meta")
        assert layer(x.to("meta")).requires_grad
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"), torch.no_grad():
            layer(torch.empty(2, 3, 4, 8, device="meta"))
        with pytest.raises(RuntimeError, match="type"), torch.no_grad():
            layer(torch.empty(2, 3, 9, 8, device="meta", dtype=torch.float64))
