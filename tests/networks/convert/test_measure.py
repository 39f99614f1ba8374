"""Networks with operations without a rule are measured: a conversion's limits are empty if the output rotates."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_gmr.metrics import equivariance_error
from monai_gmr.networks import convert_to_gmr
from monai_gmr.networks.convert import audit, measure
from monai_gmr.networks.convert.measure import inexact_sentence
from monai_gmr.networks.convert.trace import trace_sizes
from monai_gmr.symmetry import PointGroup


class Between(nn.Module):
    """Two convolutions with a function of the module and an image between them."""

    def __init__(self, function, *parts):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
        self.function, self.parts = function, nn.ModuleList(parts)
        self.own = nn.Parameter(torch.randn(32, 32))

    def forward(self, x):
        return self.last(F.relu(self.function(self, F.relu(self.first(x)))))


def tokens(function):
    """A function of all voxels as a sequence."""

    def between(net, y):
        return function(net, y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(y.shape)

    return between


INEXACT = {
    "recurrent": (tokens(lambda net, t: net.parts[0](t)[0]), lambda: nn.LSTM(4, 4, batch_first=True)),
    "along the voxels": (
        tokens(lambda net, t: net.parts[0](t.mT).mT),
        lambda: nn.Conv1d(4, 4, 3, padding=1),
    ),
    "linear along an axis": (lambda net, y: net.parts[0](y), lambda: nn.Linear(32, 32)),
    "matrix along an axis": (lambda net, y: y @ net.own, None),
    "sum of products": (lambda net, y: torch.einsum("bchw,wv->bchv", y, net.own), None),
    "norm along an axis": (lambda net, y: F.layer_norm(y, y.shape[-1:]), None),
    "Fourier": (lambda net, y: torch.fft.fft2(y).real, None),
    "largest up to here": (lambda net, y: y.cummax(-1)[0], None),
    "rotated": (lambda net, y: y.rot90(1, (2, 3)), None),
    "triangle": (lambda net, y: y.tril(), None),
    "gathered": (lambda net, y: y.gather(3, torch.zeros_like(y, dtype=torch.long)), None),
    "halves exchanged": (lambda net, y: torch.cat(y.chunk(2, 3)[::-1], 3), None),
    "stacked the other way": (lambda net, y: torch.stack(y.unbind(3)[::-1], 3), None),
    "drawn": (lambda net, y: y + torch.randn(y.shape[-2:]), None),
}
EXACT = {
    "attention": (
        tokens(lambda net, t: net.parts[0](t, t, t)[0]),
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
    ),
    "norm of channels": (lambda net, y: F.layer_norm(y.movedim(1, 3), (4,)).movedim(3, 1), None),
    "Gram matrix": (lambda net, y: y * (y.flatten(2) @ y.flatten(2).mT).mean((1, 2))[:, None, None, None], None),
    "both halves": (lambda net, y: torch.stack([y, -y]).amax(0), None),
}


def converted(name_of_case):
    function, make = (INEXACT | EXACT)[name_of_case]
    torch.manual_seed(0)
    return convert_to_gmr(Between(function, *([make()] if make else [])), conv="gmr", spatial_size=(32, 32))


@pytest.mark.parametrize("name", INEXACT)
@pytest.mark.filterwarnings("ignore::monai_gmr.utils.SymmetryWarning")
def test_what_no_rule_knows_is_named_where_it_is_not_exact(name):
    net = converted(name)
    (limit,) = net.conversion_report.limits
    assert limit.startswith("its answer does not rotate with an image of ")
    assert "possible causes: " in limit
    assert equivariance_error(net, torch.rand(1, 1, 32, 32)).worst > 1e-3


@pytest.mark.parametrize("name", EXACT)
def test_what_no_rule_knows_is_no_limit_where_it_is_exact(name):
    net = converted(name)
    assert net.conversion_report.limits == ()
    assert equivariance_error(net, torch.rand(1, 1, 12, 9)).worst < 1e-5


@pytest.mark.filterwarnings("ignore::monai_gmr.utils.SymmetryWarning")
def test_hooks_and_own_forwards_are_looked_at():
    net = Between(lambda net, y: y)
    net.last.register_forward_hook(lambda module, inputs, output: output.cumsum(-1))
    (limit,) = convert_to_gmr(net).conversion_report.limits
    assert limit.endswith("possible causes: last: a hook")

    net = Between(lambda net, y: y)
    net.last.forward = lambda y: y[:, :2].cumsum(-1)
    assert convert_to_gmr(net).conversion_report.limits == (
        "last: Conv2d has a forward of its own, which may do more than convolve",
    )


def test_the_elements_of_the_group_alone_are_asked():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.LayerNorm(16, elementwise_affine=False))
    trace = trace_sizes(net, 2, 1)
    sentences = [
        inexact_sentence(net, trace, PointGroup.from_name(name, 2), 1, None, [("1", "native_layer_norm")])
        for name in ("2mm", "4mm", "1")
    ]
    assert [sentence is None for sentence in sentences] == [True, False, True]


def test_other_images_rotate_with_the_first():
    class TwoImages(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)

        def forward(self, x, *, other):
            together = torch.stack([self.first(x), self.second(other)])
            return together.amax(0)

    given = {"x": torch.zeros(1, 1, 16, 16), "other": torch.rand(1, 1, 16, 16)}
    assert convert_to_gmr(TwoImages(), example_inputs=given).conversion_report.limits == ()


def test_a_network_that_computes_in_its_own_precision_alone_is_measured_in_it():
    net = Between(lambda net, y: F.layer_norm(y.movedim(1, 3).float(), (4,)).movedim(3, 1))
    assert convert_to_gmr(net).conversion_report.limits == ()


@pytest.mark.filterwarnings("ignore::monai_gmr.utils.SymmetryWarning")
def test_what_cannot_be_measured_is_said_to_be_unknown(monkeypatch):
    unknown = "its exactness is unknown, because it calls operations without a rule (Between: tril), and "

    def fails_with_values(net, y):
        if not y.is_meta:
            raise ValueError("no values")
        return y.tril()

    (limit,) = convert_to_gmr(Between(fails_with_values)).conversion_report.limits
    assert limit == f"{unknown}its error could not be measured (no values)"
    monkeypatch.setattr(measure, "MOST_VOXELS", 1)
    monkeypatch.setattr(measure, "SIZES", ())
    (limit,) = convert_to_gmr(Between(lambda net, y: y.tril())).conversion_report.limits
    assert limit.startswith(f"{unknown}no small image could be sent through it")


@pytest.mark.parametrize("errors", [[float("nan"), 0.0], [0.0, float("nan")]])
def test_an_error_that_is_no_number_is_the_worst(errors, monkeypatch):
    found = iter(errors)
    monkeypatch.setattr(measure, "_error", lambda *_: next(found))
    net, group = nn.Sequential(nn.Conv2d(1, 1, 1)), PointGroup.from_name("all", 2)
    sentence = inexact_sentence(net, trace_sizes(net, 2, 1), group, 1, None, [("0", "tril")])
    assert sentence.endswith(f"of {['16x16', '17x17'][errors[0] == 0]}: the error is nan; possible causes: 0: tril")


@pytest.mark.filterwarnings("ignore::monai_gmr.utils.SymmetryWarning")
def test_nothing_is_measured_where_a_limit_is_known(monkeypatch):
    monkeypatch.setattr(audit, "inexact_sentence", None)
    net = Between(lambda net, y: F.layer_norm(y.movedim(1, 3), (4,)).movedim(3, 1))
    net.pos_embed = nn.Parameter(torch.zeros(1))
    (limit,) = convert_to_gmr(net).conversion_report.limits
    assert limit.startswith("pos_embed stays")


def test_a_measurement_changes_nothing():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.LayerNorm(14))
    state, random = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    group = PointGroup.from_name("all", 2)
    assert inexact_sentence(net, trace_sizes(net, 2, 1), group, 1, None, [("3", "native_layer_norm")])
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), random)
