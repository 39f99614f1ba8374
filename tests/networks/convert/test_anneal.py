"""A network with annealed convolutions begins as the trained one and ends as an ordinary converted one."""

import copy
import io
import math
import pickle

import pytest
import torch
from conversion_table import CASES
from monai.networks import nets
from torch import nn

from monai_gmr.metrics import check_equivariance, equivariance_error
from monai_gmr.networks import convert_to_gmr, drop_rests
from monai_gmr.networks.annealing import RestPenalty, annealed_layers, rest_sizes
from monai_gmr.networks.layers import AnnealedConv, GMRConv2d
from monai_gmr.symmetry import point_group
from monai_gmr.utils import ConfigurationError

CONVS = {
    "gmr": {"conv": "gmr"},
    "gmr_harmonic": {"conv": "gmr_harmonic"},
    "group": {"conv": "group"},
    "group, one axis": {"conv": ("group", {"filter": "gc"})},
}


def make_net(dims, **kwargs):
    """Convolutions of every kind that keeps its size, without norms."""
    conv = getattr(nn, f"Conv{dims}d")
    return nn.Sequential(
        conv(1, 16, 3, padding=1, **kwargs),
        nn.ReLU(),
        conv(16, 16, 3, padding=2, dilation=2, padding_mode="circular"),
        nn.LeakyReLU(),
        conv(16, 32, 5, padding="same", bias=False),
        nn.ReLU(),
        conv(32, 32, 1, **kwargs),
        nn.ReLU(),
        conv(32, 16, 3, padding=1, groups=2),
        nn.ReLU(),
        conv(16, 2, 3, padding=1),
    )


def relative(one, other):
    return float((one - other).detach().norm() / other.detach().norm())


def rotated(x):
    return x.rot90(1, (2, 3))


def group_of(conv, dims):
    if not conv.startswith("group"):
        return {}
    return {"group": ("4mm" if dims == 2 else "mmm") if conv == "group" else ("4" if dims == 2 else "222")}


def finished(net, lr=1e-2, steps=3, by="layer"):
    """The network after a short training with the penalty."""
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    penalty = RestPenalty(net, optimizer, by=by)
    dims = len(next(iter(annealed_layers(net).values())).kernel_size)
    for step in range(steps):
        penalty.fraction = (step + 1) / steps
        optimizer.zero_grad()
        net(torch.randn(1, 1, *(32 if dims == 2 else 8,) * dims)).square().mean().backward()
        optimizer.step()
    penalty.remove()
    return net.eval()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("size", [(12, 12, 12), (13, 14, 11)])
def test_it_begins_as_the_trained_network(dims, conv, size):
    torch.manual_seed(0)
    net, x = make_net(dims).eval(), torch.randn(2, 1, *size[:dims])
    converted = convert_to_gmr(net, **CONVS[conv], **group_of(conv, dims), weights="anneal")
    assert relative(converted(x), net(x)) < 1e-5
    # projection by itself does not
    project = convert_to_gmr(net, **CONVS[conv], **group_of(conv, dims), weights="project")
    assert relative(project(x), net(x)) > 0.1


@pytest.mark.parametrize(
    ("name", "dims", "conv"),
    [
        ("UNet", 2, "gmr_harmonic"),
        ("DynUNet", 3, "gmr_harmonic"),
        ("BasicUNet", 2, "gmr"),
        ("SegResNet", 2, "gmr_harmonic"),
        ("EfficientNetBN, b0", 2, "gmr"),
        ("MedNeXt", 2, "gmr"),
    ],
)
def test_monais_nets_begin_as_trained_at_sizes_on_which_their_pools_are_exact(name, dims, conv):
    torch.manual_seed(0)
    net, x = CASES[name].make(dims).eval(), torch.randn(1, 1, *(32,) * dims)
    converted = convert_to_gmr(net, conv=conv, weights="anneal")
    expected = net(x)
    # its padding by a row is replaced
    exchanged = name == "MedNeXt"
    assert (relative(converted(x), expected) > 1e-3) is exchanged
    if not exchanged:
        assert relative(converted(x), expected) < 1e-5


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 4, 3, 2, 1),
        nn.Conv2d(1, 4, 2, 2),
        nn.Conv2d(1, 4, 3, 2, 2, dilation=2),
        nn.Conv2d(1, 4, 4, padding="same"),
        nn.Conv2d(1, 4, 1, 2),
        nn.ConvTranspose2d(1, 4, 3, 2, 1, 1),
        nn.ConvTranspose2d(1, 4, 2, 2),
        nn.ConvTranspose2d(1, 4, 3, 1, 1),
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(1, 4, 3, 2)),
    ],
)
@pytest.mark.parametrize("size", [(16, 16), (17, 18)])
def test_steps_upsampling_and_one_sided_padding_begin_as_trained(layer, size):
    net, x = nn.Sequential(copy.deepcopy(layer)), torch.randn(1, 1, *size)
    converted = convert_to_gmr(net, weights="anneal", in_channels=1, spatial_dims=2)
    assert relative(converted(x), net(x)) < 1e-5
    ended = drop_rests(finished(converted)).double()
    assert equivariance_error(ended, torch.randn(1, 1, *size, dtype=torch.float64), point_group(2)).worst < 1e-9


@pytest.mark.parametrize(
    ("name", "conv", "by"),
    [
        ("UNet", "gmr", "channel"),
        ("DynUNet", "gmr_harmonic", "layer"),
        ("DynUNet", "group", "channel"),
        ("BasicUNet", "gmr", "layer"),
        ("SegResNet", "gmr", "layer"),
    ],
)
def test_a_training_ends_in_an_ordinary_converted_network(name, conv, by):
    torch.manual_seed(0)
    original = CASES[name].make(2)
    net = convert_to_gmr(original, conv=conv, weights="anneal", **group_of(conv, 2))
    plain = convert_to_gmr(original, conv=conv, weights="project", **group_of(conv, 2))
    finished(net, by=by)
    assert set(rest_sizes(net).values()) == {0.0}
    assert not net.conversion_report.limits
    x = torch.randn(1, 1, 33, 38)
    expected = net(x)
    # before the rests are dropped it is saved as an ordinary network
    plain.load_state_dict(net.state_dict())
    assert torch.equal(plain.eval()(x), expected)
    drop_rests(net)
    assert not annealed_layers(net)
    assert torch.equal(net(x), expected)
    assert {key: each.shape for key, each in net.state_dict().items()} == {
        key: each.shape for key, each in plain.state_dict().items()
    }
    group = {} if conv == "group" else {"group": point_group(2)}
    assert check_equivariance(net, [(32, 32), (33, 38)], per_module=False, **group).worst < 1e-5


@pytest.mark.parametrize("by", ["layer", "channel"])
def test_the_layers_that_the_loss_needs_least_go_first(by):
    """The gradient of one layer keeps its rest; the other's output is not used."""
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.needed, self.idle = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)

        def forward(self, x):
            return self.needed(x) + 0 * self.idle(x)

    trained = Two()
    net = convert_to_gmr(trained, weights="anneal")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0)
    penalty = RestPenalty(net, optimizer, strength=0.3, power=0, by=by)
    x = torch.randn(2, 1, 16, 16)
    for _ in range(120):
        optimizer.zero_grad()
        (net(x) - trained(x)).square().mean().backward()
        optimizer.step()
    sizes = rest_sizes(net)
    assert sizes["idle"] == 0
    assert sizes["needed"] > 0.3
    penalty.finish()
    assert rest_sizes(net) == {"needed": 0.0, "idle": 0.0}


def test_the_rests_shrink_by_the_learning_rate_times_the_strength():
    net = convert_to_gmr(nn.Sequential(nn.Conv2d(1, 4, 3)), weights="anneal")
    weight = net[0].rest.weight
    before = weight.detach().clone()
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 0.02}, {"params": [net[0].equivariant.weight], "lr": 1.0}])
    RestPenalty(net, optimizer, strength=0.5, power=0)
    optimizer.step()
    expected = float(before.norm()) - 0.02 * 0.5 * math.sqrt(36)
    assert float(weight.detach().norm()) == pytest.approx(expected, rel=1e-5)


def test_no_rest_is_longer_than_the_schedule_leaves():
    net = convert_to_gmr(make_net(2), weights="anneal")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    penalty = RestPenalty(net, optimizer, strength=0)
    before = rest_sizes(net)
    for fraction in (0.0, 0.5, 0.9, 1.0):
        penalty.fraction = fraction
        optimizer.step()
        expected = {path: min(size, (1 - fraction) ** 3) for path, size in before.items()}
        assert rest_sizes(net) == pytest.approx(expected, abs=1e-6)


def test_a_rest_that_is_gone_stays_gone_and_is_not_computed():
    net = convert_to_gmr(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), weights="anneal")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    penalty = RestPenalty(net, optimizer)
    x = torch.randn(1, 1, 8, 8)
    for step in range(6):
        penalty.fraction = min(1.0, (step + 1) / 3)
        optimizer.zero_grad(set_to_none=False)
        net(x).sum().backward()
        optimizer.step()
    called = []
    net[0].rest.register_forward_hook(lambda *_: called.append(True))
    net(x)
    assert not called
    assert not net[0].rest.weight.any()
    assert "0.rest.weight" not in net.state_dict()


def test_frozen_layers_are_annealed_and_stay_frozen():
    original = make_net(2)
    original[2].weight.requires_grad_(False)
    net = convert_to_gmr(original, weights="anneal")
    assert not net[2].rest.weight.requires_grad
    finished(net)
    assert rest_sizes(net)["2"] == 0.0
    assert not drop_rests(net)[2].weight.requires_grad


@pytest.mark.parametrize("conv", ["gmr", "gmr_harmonic", "group"])
def test_annealed_networks_are_copied_saved_and_loaded(conv):
    torch.manual_seed(0)
    group = group_of(conv, 2)
    net = convert_to_gmr(CASES["DynUNet"].make(2), conv=conv, weights="anneal", **group).eval()
    # halfway: one rest is gone
    gone = next(iter(annealed_layers(net).values()))
    for each in gone.rest.parameters():
        nn.init.zeros_(each)
    gone.settle()
    x = torch.randn(1, 1, 32, 32)
    expected = net(x)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    another = convert_to_gmr(CASES["DynUNet"].make(2), conv=conv, weights="anneal", **group).eval()
    assert relative(another(x), expected) > 1e-2
    another.load_state_dict(torch.load(file, weights_only=True), strict=True)
    on_meta = convert_to_gmr(CASES["DynUNet"].make(2), conv=conv, weights="anneal", **group).eval().to("meta")
    on_meta.load_state_dict(net.state_dict(), assign=True)
    for each in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), another, on_meta):
        assert torch.allclose(each(x), expected, atol=1e-5)
        assert sum(layer.holds_rest for layer in annealed_layers(each).values()) == len(annealed_layers(net)) - 1
        assert list(each.state_dict()) == list(net.state_dict())
    copied = copy.deepcopy(net)
    finished(copied)
    assert relative(net(x), expected) == 0


def test_a_state_dict_of_another_layer_is_refused():
    net = convert_to_gmr(nn.Sequential(nn.Conv2d(1, 4, 3)), weights="anneal")
    with pytest.raises(RuntimeError, match="Unexpected key"):
        net.load_state_dict(net.state_dict() | {"0.rest.other": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict({key: each for key, each in net.state_dict().items() if key != "0.weight"})
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict({})


def make_small():
    """Steps, a skip connection and upsampling."""
    return nets.UNet(2, 1, 2, (4, 8), (2,), norm=None)


def test_annealed_networks_are_recorded_compiled_and_exported():
    torch.manual_seed(0)
    net = convert_to_gmr(make_small(), conv="gmr_harmonic", weights="anneal").eval()
    x, other = torch.randn(1, 1, 16, 16), torch.randn(1, 1, 17, 19)
    recorded = torch.jit.trace(net, x, check_trace=False)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = net(other)
        exported = torch.export.export(net, (other,)).module()
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        for each in (recorded, torch.jit.script(net), exported, compiled):
            assert torch.allclose(each(other), expected, rtol=1e-4, atol=1e-4)
        assert torch.allclose(recorded(x), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conv", ["gmr", "gmr_harmonic"])
def test_a_layer_is_scripted(conv):
    layer = convert_to_gmr(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()), conv=conv, weights="anneal")[0]
    x = torch.randn(1, 2, 9, 8)
    assert torch.allclose(torch.jit.script(layer)(x), layer(x), atol=1e-5)


def test_autocast_and_half_precision():
    net = convert_to_gmr(CASES["DynUNet"].make(2), conv="gmr_harmonic", weights="anneal").eval()
    x = torch.randn(1, 1, 32, 32)
    expected = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative(net(x).float(), expected) < 0.1
    assert relative(copy.deepcopy(net).bfloat16()(x.bfloat16()).float(), expected) < 0.1


def test_hooks_stand_on_what_takes_the_place_of_a_convolution():
    original, called = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), []
    original[0].register_forward_hook(lambda module, args, output: called.append(type(module)))
    net = convert_to_gmr(original, weights="anneal")
    x = torch.randn(1, 1, 8, 8)
    # the passes of the conversion also called it
    called.clear()
    net(x)
    assert called == [AnnealedConv]
    drop_rests(finished(net))(x)
    assert issubclass(called.pop(), GMRConv2d)


def test_the_report_says_what_is_left():
    torch.manual_seed(0)
    net = convert_to_gmr(CASES["DynUNet"].make(2), weights="anneal")
    report = net.conversion_report
    sizes = rest_sizes(net)
    assert {row.path: row.rest for row in report if row.rest is not None} == pytest.approx(sizes)
    # for a linear layer of the same geometry the part that the projection lacks, for others all
    assert all(
        row.rest == pytest.approx(row.change if "s2" not in row.before else 1, abs=1e-4) for row in report if row.rest
    )
    assert report.limits == ("not equivariant yet: 12 convolutions hold the rest of their trained kernels",)
    assert "rest of kernel" in str(report)
    assert report.limits[0] in str(report)
    check = check_equivariance(net, 32)
    assert not check.ok
    assert str(check).count("Not equivariant yet: 12 convolutions hold the rest of their trained kernels.") == 1
    drop_rests(finished(net))
    assert "not equivariant yet" not in str(net.conversion_report)
    assert "Not equivariant" not in str(check_equivariance(net, 32))


def test_excluded_convolutions_have_no_rest():
    net = convert_to_gmr(make_net(2), exclude="2", weights="anneal")
    assert sorted(annealed_layers(net)) == ["0", "10", "4", "8"]


def test_a_network_that_is_one_convolution():
    trained = nn.Conv2d(1, 4, 3, padding=1)
    net, x = convert_to_gmr(trained, weights="anneal"), torch.randn(1, 1, 8, 8)
    assert torch.allclose(net(x), trained(x), atol=1e-6)
    ended = drop_rests(finished(net))
    assert isinstance(ended, GMRConv2d)


def refusals():
    annealed = convert_to_gmr(make_net(2), weights="anneal")
    sgd = torch.optim.SGD(annealed.parameters())
    yield lambda: convert_to_gmr(make_net(2), weights="aneal"), "weights='aneal' is unknown: use one of .*'anneal'"
    yield lambda: convert_to_gmr(annealed), "holds rests of an earlier conversion: drop them first"
    yield lambda: convert_to_gmr(make_net(2).to("meta"), weights="anneal"), "the meta device have no values"
    yield lambda: drop_rests(annealed), "5 of 5 rests are not zero, the largest that of .* train on"
    yield lambda: RestPenalty(make_net(2), sgd), "has no rests of trained kernels: convert it by"
    yield (
        lambda: RestPenalty(annealed, torch.optim.SGD(make_net(2).parameters())),
        "does not hold the rests of Sequential",
    )
    yield lambda: RestPenalty(annealed, sgd, by="ring"), "by='ring' is unknown: use one of 'layer', 'channel'"


@pytest.mark.parametrize("case", range(7))
def test_refusals_are_one_sentence(case):
    call, message = list(refusals())[case]
    with pytest.raises(ConfigurationError, match=message) as caught:
        call()
    assert str(caught.value).count(". ") == 0


def test_basic_unet_differs_on_odd_sizes_alone():
    """If exact pools replace its pools."""
    torch.manual_seed(0)
    net = nets.BasicUNet(2, 1, 2, (8, 8, 16, 16, 32, 8)).eval()
    converted = convert_to_gmr(net, weights="anneal")
    even, odd = torch.randn(1, 1, 32, 32), torch.randn(1, 1, 33, 33)
    assert relative(converted(even), net(even)) < 1e-5
    assert relative(converted(odd), net(odd)) > 1e-3
