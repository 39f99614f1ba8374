"""Arguments of a conversion that do not fit raise a one-sentence error; omitted ones are derived from the network."""

import pytest
import torch
import torch.nn.functional as F
from monai.networks import nets
from torch import nn
from torch.nn.utils import prune

from monai_gmr.metrics import equivariance_error
from monai_gmr.networks import convert_to_gmr
from monai_gmr.networks.convert.arguments import EXCHANGING
from monai_gmr.utils import ConfigurationError


def error(net, size):
    x = torch.randn(2, 1, *size, dtype=torch.float64)
    with torch.no_grad():
        return equivariance_error(net.double().eval(), x).worst


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conv": "radial"}, "conv='radial' is unknown"),
        ({"conv": "sre"}, "conv='sre' is unknown"),
        ({"weights": "zero"}, "weights='zero' is unknown"),
        ({"rings": "round"}, "rings='round' is unknown"),
        ({"kernel_sizes": 0}, "kernel_sizes=0 is impossible"),
        ({"kernel_sizes": "5"}, "kernel_sizes='5' is impossible"),
        ({"conv": ("gmr_harmonic", {"orders": (0, 0)})}, "give each order once"),
    ],
)
def test_wrong_arguments_end_in_a_sentence(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        convert_to_gmr(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), **arguments)


def test_wrong_networks_end_in_a_sentence():
    with pytest.raises(ConfigurationError, match=r"module='DynUNet' is impossible: give a torch\.nn\.Module"):
        convert_to_gmr("DynUNet")
    with pytest.raises(ConfigurationError, match="no convolution"):
        convert_to_gmr(nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="convert first"):
        convert_to_gmr(torch.compile(nn.Conv2d(1, 2, 3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 3}, "in_channels=3 does not fit UNet, which takes no such image .* or leave it out"),
        ({"spatial_dims": 3}, "spatial_dims=3 does not fit UNet, whose convolutions have 2 spatial axes: leave it out"),
        ({"spatial_size": (8, 8, 8)}, r"spatial_size=\(8, 8, 8\) has 3 sizes, UNet works on 2 axes: give one for each"),
        ({"example_inputs": (torch.rand(1, 3, 8, 8),)}, "example_inputs cannot be sent through UNet .*: give what its"),
        (
            {"example_inputs": torch.rand(1, 1, 8, 8)},
            "example_inputs=Tensor is impossible: give what forward takes as a list",
        ),
    ],
)
def test_channels_and_axes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        convert_to_gmr(nets.UNet(2, 1, 2, (4, 8), (2,)), **arguments)


def test_the_image_has_the_axes_of_a_convolution_that_it_passes():
    """A convolution with other axes, registered first, does not decide: here one that weights channels, as in ECA-Net."""

    class Weighed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weigh, self.conv = nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)

        def forward(self, x):
            y = self.conv(x)
            return y * self.weigh(y.mean((2, 3))[:, None])[:, 0, :, None, None].sigmoid()

    converted = convert_to_gmr(Weighed().double(), exclude="weigh")
    assert error(converted, (9, 12)) < 1e-9
    assert not converted.conversion_report.limits


def test_lazily_built_norms_ask_for_a_pass_or_inplace():
    net = nn.Sequential(nn.LazyConv2d(4, 3, padding=1), nn.LazyBatchNorm2d())
    with pytest.raises(
        ConfigurationError, match=r"lazily built norms, which torch cannot copy: call it once .* inplace=True"
    ):
        convert_to_gmr(net, in_channels=1, spatial_dims=2)
    converted = convert_to_gmr(net, in_channels=1, spatial_dims=2, inplace=True)
    assert error(converted, (9, 12)) < 1e-9


def computed(function, *arguments):
    """A network with a weight that a function of ``torch.nn.utils`` computes from others."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1))
    function(net[0], *arguments)
    return net


class ForProcesses(nn.Module):
    """A wrapper with the name of torch's, which needs processes to be made."""

    def __init__(self):
        super().__init__()
        self.module = nn.Conv2d(1, 4, 3)


PLAIN = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1))
REFUSED = {
    "scripted": (lambda: torch.jit.script(PLAIN), "scripted or traced already: convert first"),
    "traced": (lambda: torch.jit.trace(PLAIN, torch.ones(1, 1, 9, 9)), "scripted or traced already: convert first"),
    "compiled": (lambda: torch.compile(PLAIN), "compiled already: convert first"),
    "weight norm": (lambda: computed(nn.utils.weight_norm), "remove this first, as by remove_weight_norm"),
    "pruned": (lambda: computed(prune.l1_unstructured, "weight", 0.3), r"remove this first, .* or prune\.remove"),
    "of processes": (
        lambda: type("DistributedDataParallel", (ForProcesses,), {})(),
        "is already wrapped for distributed training: convert first",
    ),
    "with a part of processes": (
        lambda: nn.Sequential(type("FullyShardedDataParallel", (ForProcesses,), {})()),
        "is already wrapped for distributed training: convert first",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_cannot_be_converted_any_more_is_one_sentence(name):
    make, sentence = REFUSED[name]
    with pytest.raises(ConfigurationError, match=sentence):
        convert_to_gmr(make(), in_channels=1, spatial_dims=2)


def test_torch_calls_its_wrappers_for_processes_as_they_are_known_here():
    assert nn.parallel.DistributedDataParallel.__name__ in EXCHANGING
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    assert fsdp.FullyShardedDataParallel.__name__ in EXCHANGING


class UsesWeight(nn.Module):
    """Convolutions, one of whose weights a function uses."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x):
        return self.b(self.a(x) + self.function(x, self.a.weight))


@pytest.mark.parametrize(
    "function",
    [lambda x, weight: F.conv2d(x, weight, padding=1), lambda x, weight: x * weight.square().mean()],
    ids=["as a kernel", "as numbers"],
)
def test_a_convolution_whose_weight_a_function_takes_stays(function):
    net, x = UsesWeight(function), torch.rand(1, 1, 9, 9)
    converted = convert_to_gmr(net)
    assert "a: its parameters are also used outside of it" in converted.conversion_report.limits[0]
    assert type(converted.a) is nn.Conv2d
    assert type(converted.b) is not nn.Conv2d
    assert converted(x).shape == net(x).shape


def test_convolutions_that_share_a_weight_are_converted():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    net[2].weight = net[1].weight
    converted = convert_to_gmr(net)
    assert converted.conversion_report.limits == ()
    assert converted[2].weight is converted[1].weight


def test_a_scripted_part_takes_no_hooks_and_stays():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), torch.jit.script(nn.SiLU()), nn.Conv2d(4, 1, 3, padding=1))
    converted = convert_to_gmr(net)
    assert converted.conversion_report.limits == ()
    assert error(converted, (9, 12)) < 1e-5
