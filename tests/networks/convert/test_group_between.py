"""Operations on fields between convolutions: those that treat channels alike are exact, others are named."""

import pytest
import torch
from conversion_table import group_error
from monai.networks.nets import AttentionUnet, PatchDiscriminator, resnet18, seresnet50
from torch import nn
from torch.nn import functional

from monai_gmr.metrics import equivariance_error
from monai_gmr.networks import convert_to_gmr


class Between(nn.Module):
    """Convolutions, and a function between them."""

    def __init__(self, function, channels=8, after=8):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(channels))
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.last = nn.Sequential(nn.Conv2d(after, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, x):
        return self.last(self.function(torch.relu(self.first(x)), self.weight))


def attend(x, g):
    heads = x.reshape(len(x), 2, 4, -1)
    return (
        (torch.softmax(heads.transpose(2, 3) @ heads / 9, -1) @ heads.transpose(2, 3)).transpose(2, 3).reshape(x.shape)
    )


UNLIKE = {
    "a weight through a view": lambda x, g: x * g.view(1, -1, 1, 1),
    "a weight through indexing": lambda x, g: x * g[:, None, None],
    "constants": lambda x, g: x * torch.arange(8.0, dtype=x.dtype, device=x.device).view(1, 8, 1, 1),
    "addcmul": lambda x, g: torch.addcmul(x, x, g[:, None, None]),
    "pow": lambda x, g: (x + 1) ** g[:, None, None],
    "prelu": lambda x, g: functional.prelu(x - 1, g),
    "batch norm": lambda x, g: functional.batch_norm(x, None, None, g, g, True),
    "conv2d": lambda x, g: functional.conv2d(x, g.outer(g)[:, :, None, None]),
    "einsum": lambda x, g: torch.einsum("bchw,cd->bdhw", x, g.outer(g)),
    "linear": lambda x, g: functional.linear(x.movedim(1, -1), g.outer(g)).movedim(-1, 1),
    "group norm": lambda x, g: functional.group_norm(x, 4),
    "one channel": lambda x, g: x * x[:, 0].unsqueeze(1),
    "a permutation": lambda x, g: x[:, [1, 0, 2, 3, 4, 6, 5, 7]],
    "flip": lambda x, g: x + 2 * x.flip(1),
    "roll": lambda x, g: x + 2 * x.roll(1, 1),
    "cumsum": lambda x, g: x.cumsum(1),
    "sort": lambda x, g: x.sort(1)[0],
    "shuffle": lambda x, g: x.view(len(x), 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    "attention": attend,
    "the place of the largest": lambda x, g: x * x.argmax(1, keepdim=True),
    "the place beside the largest": lambda x, g: x * x.max(1, keepdim=True)[1],
}


UNLIKE_16 = {
    "a slice across fields": lambda x, g: x[:, 4:12],
    "every other channel": lambda x, g: x[:, ::2],
    "regrouped": lambda x, g: x.unflatten(1, (8, 2)).amax(2),
}


AFTERWARDS = {
    "padded channels": (lambda x, g: functional.pad(x, (0, 0, 0, 0, 4, 4)), 16),
    "glu": (lambda x, g: functional.glu(x, 1), 4),
}


ALIKE = {
    "pointwise": lambda x, g: functional.gelu(x).clamp(0, 1) * 2 + x.exp().rsqrt(),
    "a weight for all": lambda x, g: x * g[0],
    "softmax": lambda x, g: x.softmax(1),
    "a gate of one channel": lambda x, g: x * x.mean(1, keepdim=True).sigmoid(),
    "a gate of each channel": lambda x, g: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "channels last and back": lambda x, g: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "voxels on one axis and back": lambda x, g: x.flatten(2).transpose(1, 2).tanh().transpose(1, 2).reshape(x.shape),
    "normalised": lambda x, g: functional.normalize(x, dim=1),
    "whole fields": lambda x, g: torch.cat([x, x], 1)[:, 8:],
    "stacked": lambda x, g: torch.stack([x, x * 2]).mean(0),
    "the largest": lambda x, g: x * x.max(1, keepdim=True)[0],
}


@pytest.mark.parametrize("name", [*UNLIKE, *UNLIKE_16, *AFTERWARDS])
def test_functions_that_treat_channels_unlike_are_named(name):
    torch.manual_seed(0)
    if name in AFTERWARDS:
        net = Between(AFTERWARDS[name][0], after=AFTERWARDS[name][1])
    else:
        net = Between(UNLIKE[name]) if name in UNLIKE else Between(UNLIKE_16[name], channels=16)
    converted = convert_to_gmr(net, conv="group", group="4mm")
    assert converted.conversion_report.limits
    assert group_error(converted.eval(), [(12, 12)]) > 1e-6


@pytest.mark.parametrize("name", list(ALIKE))
def test_functions_that_treat_channels_alike_are_not(name):
    net = convert_to_gmr(Between(ALIKE[name]), conv="group", group="4mm")
    assert net.conversion_report.limits == ()
    assert group_error(net.eval(), [(12, 12), (12, 15)]) < 1e-9


def test_a_network_that_returns_every_layer_keeps_fields_and_says_so():
    net = convert_to_gmr(PatchDiscriminator(2, 16, 1, num_layers_d=2), conv="group", group="4mm")
    assert any("its outputs are fields" in limit for limit in net.conversion_report.limits)
    assert any("PointGroupConv2d" in str(row.after) for row in net.conversion_report)


def test_features_of_a_network_are_scalars():
    net = convert_to_gmr(
        resnet18(spatial_dims=2, n_input_channels=1, feed_forward=False, widen_factor=0.25), conv="group", group="4mm"
    )
    assert net.conversion_report.limits == ()
    assert group_error(net.eval(), [(33, 40)]) < 1e-9


def test_squeeze_and_excitation_is_named():
    net = seresnet50(spatial_dims=2, in_channels=1, num_classes=2)
    limits = convert_to_gmr(net, conv="group", group="4").conversion_report.limits
    assert any("joins scalars with fields" in limit for limit in limits)


def test_attention_by_one_channel_is_exact():
    net = convert_to_gmr(AttentionUnet(2, 1, 2, channels=(16, 32, 48), strides=(2, 2)), conv="group", group="4mm")
    assert net.conversion_report.limits == ()
    assert group_error(net.eval(), [(32, 32), (33, 40)]) < 1e-10


class WithLoss(nn.Module):
    """Returns a loss of its fields next to its output, like MONAI's VQVAE."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = torch.relu(self.first(x))
        loss = 0.25 * functional.mse_loss(x, 2 * x.detach()) + functional.l1_loss(x, x**2)
        return self.last(x), loss


def test_a_loss_of_fields_is_a_number():
    net = convert_to_gmr(WithLoss(), conv="group", group="4mm")
    assert net.conversion_report.limits == ()
    assert group_error(net.eval(), [(12, 12), (12, 15)]) < 1e-9


class AddsItsRepeatedInput(nn.Module):
    """Like the first block of MONAI's VNet: the image, repeated to the convolution's number of channels, is added to its output."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x) + x.repeat(1, 16 // x.shape[1], 1, 1)))


@pytest.mark.parametrize("channels", [1, 2])
def test_one_repeated_channel_may_be_added_to_fields_and_several_may_not(channels):
    net = convert_to_gmr(AddsItsRepeatedInput(channels), conv="group", group="4mm", in_channels=channels).double()
    x = torch.randn(1, channels, 9, 12, dtype=torch.float64)
    if channels == 2:
        assert any("joins scalars with fields" in limit for limit in net.conversion_report.limits)
    else:
        assert net.conversion_report.limits == ()
    exact = equivariance_error(net.eval(), x).worst < 1e-10
    assert exact == (channels == 1)
