"""Counts of the page of times are right, and its command writes them beside the benchmark's own columns."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from benchmark_counts import count_cost, layer_operations, radial_parts
from benchmark_page import add_counts, main, roofline, with_peers
from benchmark_peers import installed_peers, make_peer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from monai_gmr.apps.benchmark_cases import FULL, Candidate, Case, RingConvolution, make_cases
from monai_gmr.networks.layers import GMRConv2d, GMRConv3d, GMRHarmonicConv2d, GMRHarmonicConv3d, SREConv2d

COUNTED = [
    (lambda: nn.Conv2d(3, 8, 5, padding=2), 2, 3),
    (lambda: nn.Conv3d(4, 6, 3, stride=2, groups=2), 3, 4),
    (lambda: GMRConv2d(3, 8, 5, padding=2), 2, 3),
    (lambda: GMRConv3d(4, 6, 3, groups=2), 3, 4),
    (lambda: SREConv2d(3, 8, 5), 2, 3),
    (lambda: GMRHarmonicConv2d(3, 8, 5, padding=2), 2, 3),
    (lambda: GMRHarmonicConv3d(4, 8, 3, groups=2), 3, 4),
    (lambda: RingConvolution(2, 3, 5), 2, 3),
    (lambda: RingConvolution(3, 4, 3, 2), 3, 4),
]


def convolution_operations(module, x):
    """Multiply-adds of the convolutions that torch itself counts."""
    with FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_flop_counts()["Global"][torch.ops.aten.convolution] // 2


@pytest.mark.parametrize(("make", "dims", "channels"), COUNTED)
def test_dense_counts_are_those_of_torch(make, dims, channels):
    layer, x = make(), torch.rand(2, channels, *(9, 8, 7)[:dims])
    assert count_cost(layer, lambda: layer(x), "dense")[0] == convolution_operations(layer, x)


@pytest.mark.skipif(importlib.util.find_spec("GMR_Conv") is None, reason="GMR-Conv is not installed")
@pytest.mark.parametrize("dims", [2, 3])
def test_count_of_gmr_conv_is_that_of_torch(dims):
    layer, x = make_peer("GMR-Conv", dims, 4, 5), torch.rand(2, 4, *(7,) * dims)
    assert count_cost(layer, lambda: layer(x), None)[0] == convolution_operations(layer, x)


@pytest.mark.parametrize(
    ("dims", "kernel_size", "shells", "taps", "additions"),
    # radii up to the corner; in 3D with 7 taps those of at least 4 voxels, 92 taps, are beyond the kernel's reach; there 45 lines of
    # 9 kinds are added first, then 53 taps
    [(2, 3, 3, 9, 9), (2, 5, 6, 25, 25), (3, 3, 4, 27, 27), (3, 7, 14, 251, 53 + round((45 + 2 * 9) * 70 / 64))],
)
def test_counts_of_kernels_are_sums_mixed_to_rings_and_their_products(dims, kernel_size, shells, taps, additions):
    layer = RingConvolution(dims, 4, kernel_size)
    (part,) = radial_parts(layer)
    assert (part.shells, part.nonzero_taps) == (shells, taps)
    rings = layer.weight.shape[2]
    for backend, added in (("cpp", additions), ("triton", taps)):
        assert layer_operations(layer, 100, backend) == 100 * 4 * (added + rings * shells + rings * 4)


def test_harmonic_shell_counts_have_sums_for_each_component():
    layer = GMRHarmonicConv3d(2, 8, 3)
    channels, components = (4, 2, 2), (1, 3, 5)
    expected = sum(c * 2 * (27 + 4 * n) for n, c in zip(channels[1:], components[1:]))
    # order 0 is radial, with two rings
    expected += 2 * (27 + 2 * 4 + 2 * 4)
    assert layer_operations(layer, 10, "triton") == 10 * expected


def test_count_of_a_net_is_the_sum_over_its_convolutions():
    net = nn.Sequential(GMRConv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    x = torch.rand(1, 1, 6, 6)
    operations, moved = count_cost(net, lambda: net(x), "dense")
    assert operations == 16 * (9 * 4 + 4 * 2)
    weights = sum(parameter.numel() for parameter in net.parameters())
    assert moved == 4 * (36 + 16 * 4 + 16 * 4 + 16 * 2 + weights)
    assert count_cost(net, lambda: net(x), "unheard of")[0] is None


@pytest.mark.parametrize(
    ("operations", "moved", "expected"),
    [(500, 10, (0.5, "arithmetic")), (50, 1000, (0.25, "memory"))],
)
def test_share_of_the_nearer_limit(operations, moved, expected):
    assert roofline(operations, moved, 4.0, bandwidth=1000.0, arithmetic=500.0) == expected


@pytest.mark.parametrize("peer", [name for name in installed_peers() if name in ("GMR-Conv", "SRE-Conv")])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_peer_keeps_the_size(peer, dims):
    x = torch.rand(1, 2, *(6,) * dims)
    assert make_peer(peer, dims, 2, 5)(x).shape == x.shape


def test_counts_of_a_case():
    plain = Candidate("plain", None, lambda: nn.Conv2d(2, 2, 5, padding=2, bias=False))
    case = Case("ring_conv", "case", "float32", (1, 2, 5, 5), (plain, plain, plain._replace(backend="auto")))
    rows = [{"forward": 2.0}, {"forward": None}, {"forward": 2.0}]
    add_counts(case, rows, torch.device("cpu"), {"bandwidth": 1e9, "float32": 1e9})
    first, absent, unknown = rows
    assert first["operations"] == 25 * 2 * 2 * 25
    assert first["flops_per_second"] == 2 * 2500 / 2.0
    assert first["moved"] == 4 * (50 + 50 + 2 * 2 * 25)
    assert (first["limit_share"], first["bound_by"]) == (pytest.approx(5000 / 1e9 / 2.0), "arithmetic")
    assert [absent[key] for key in ("operations", "moved", "limit_share")] == [None] * 3
    assert [unknown[key] for key in ("operations", "flops_per_second", "limit_share", "bound_by")] == [None] * 4


def test_other_packages_stand_where_they_can_run():
    cases = [with_peers(case, ["GMR-Conv", "e2cnn"]) for case in make_cases(["ring_conv"], [2, 3], ["dense", "triton"])]
    assert len(cases) == sum(len(each.windows) for each in FULL.operation + FULL.harmonic)
    labels = [candidate.label for candidate in cases[1].candidates]
    assert labels == ["dense", "triton", "plain", "plain k=3", "GMR-Conv", "e2cnn"]
    peers = {case.name: [each.method for each in case.candidates if "-Conv" in each.method] for case in cases}
    assert all(bool(found) is ("groups" not in name) for name, found in peers.items())
    assert not any(candidate.method == "e2cnn" for case in cases if case.dims == 3 for candidate in case.candidates)


def test_group_convolutions_stand_beside_those_of_the_same_group():
    cases = [
        with_peers(case, ["GMR-Conv", "e2cnn", "escnn"]) for case in make_cases(["point_groups"], [2, 3], ["dense"])
    ]
    beside = {case.name.split()[-1]: [each.method for each in case.candidates[-2:]] for case in cases}
    assert beside == {
        "4mm": ["e2cnn", "escnn"],
        "4": ["e2cnn", "escnn"],
        "m-3m": ["plain", "escnn"],
        "4/mmm": ["filter gc", "plain"],
    }


def test_quick_run_writes_the_columns_of_the_page(tmp_path):
    options = ["ring_conv", "--quick", "--repeats", "1", "--backends", "dense", "--output", str(tmp_path)]
    assert main(options) == 0
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert min(content["limits"].values()) > 0
    assert all(row["limit_share"] > 0 for row in content["rows"] if row["forward"] is not None)
    assert (tmp_path / "benchmark.md").read_text().splitlines()[0].endswith("| of plain | % of the limit |")
