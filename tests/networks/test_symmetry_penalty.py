"""The threshold on terms that break the symmetry: exact zeros if the data do not need them, non-zero terms if they do."""

import math

import pytest
import torch
from torch import nn

from monai_gmr.metrics import broken_symmetry, equivariance_error
from monai_gmr.networks.layers import GMRConv2d, GMRHarmonicConv2d, GMRHarmonicConv3d
from monai_gmr.networks.nets import GMRUNet
from monai_gmr.networks.shrinkage import shrink_groups
from monai_gmr.networks.symmetry_penalty import (
    SymmetryThreshold,
    asymmetric_terms,
    symmetry_parameters,
    symmetry_penalty,
)
from monai_gmr.networks.utils import parameter_groups
from monai_gmr.utils import ConfigurationError


def train(layer, target, strength, steps=300, lr=0.01):
    """Fits ``target``, a function of images, by AdamW; returns the last loss."""
    optimizer = torch.optim.AdamW(parameter_groups(layer, weight_decay=0.01), lr=lr)
    threshold = SymmetryThreshold(layer, optimizer, strength)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.randn(4, 1, 8, 8, generator=generator)
        loss = nn.functional.mse_loss(layer(x), target(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    threshold.settle()
    threshold.remove()
    return loss.item()


def test_shrinking_is_the_proximal_step_of_the_norm():
    """Compares with the minimum of |v - e|^2 / 2 + tau |v|, found by search along e, the direction in which it must lie."""
    rows = torch.randn(6, 4, dtype=torch.float64)
    rows[2] *= 0.1
    shrunk = rows.clone()
    shrink_groups(shrunk, 1.3, [1])
    factors = torch.linspace(0, 1, 20001, dtype=torch.float64)
    for row, found in zip(rows, shrunk):
        candidates = factors[:, None] * row
        values = (candidates - row).square().sum(1) / 2 + 1.3 * candidates.norm(dim=1)
        assert torch.allclose(candidates[values.argmin()], found, atol=1e-3)
    assert (shrunk[2] == 0).all()


@pytest.mark.parametrize("keeps", ["1", "m", "rotations"])
@pytest.mark.parametrize("relax", ["vector", "matrix"])
def test_the_penalty_is_the_sum_of_lengths(relax, keeps):
    layer = GMRHarmonicConv3d(2, 16, 3, keeps=keeps, relax=relax, groups=2)
    expected = 0.0
    for parameter in symmetry_parameters(layer):
        nn.init.normal_(parameter)
    if layer.relax_weight is not None:
        matrix = layer.linear_matrix()
        ranks = {"1": {1: 3, 2: 5}, "m": {1: 2, 2: 3}}[keeps]
        if relax == "matrix":
            size = sum(ranks[order] * n for order, n in zip(layer.orders, layer.channels) if order)
            expected += math.sqrt(size) * float(matrix.norm(dim=-1).sum())
        else:
            order_of_row = [order for order, n in zip(layer.orders, layer.channels) for _ in range(n)]
            expected += sum(
                math.sqrt(ranks[order]) * float(matrix[g, row].norm())
                for row, order in enumerate(order_of_row)
                if order
                for g in range(2)
            )
    if layer.chiral_weight is not None:
        expected += float(layer.chiral_weight.abs().sum())
    assert symmetry_penalty(layer).item() == pytest.approx(expected, rel=1e-5)
    assert sum(terms.numel() for _, _, terms in asymmetric_terms(layer)) == sum(
        p.numel() for p in symmetry_parameters(layer)
    )


@pytest.mark.parametrize("relax", ["vector", "matrix"])
def test_terms_stay_exactly_zero_where_the_target_is_symmetric(relax):
    torch.manual_seed(0)
    target, layer = GMRConv2d(1, 8, 3, padding=1), GMRHarmonicConv2d(1, 8, 3, padding=1, keeps="1", relax=relax)
    train(layer, target, strength=0.4)
    assert all((p == 0).all() for p in symmetry_parameters(layer))
    assert (
        equivariance_error(layer, torch.randn(1, 1, 9, 12), group=[torch.tensor([[0, -1], [1, 0]]).numpy()]).worst
        < 1e-5
    )


def test_terms_are_learned_where_the_target_needs_them():
    """A horizontal edge filter is unchanged by mirroring left to right, and so is the layer that keeps only this mirror image."""
    torch.manual_seed(0)
    edge = torch.tensor([[1.0, 1, 1], [0, 0, 0], [-1, -1, -1]]).reshape(1, 1, 3, 3).repeat(4, 1, 1, 1)
    target = lambda x: nn.functional.conv2d(x, edge, padding=1)  # noqa: E731
    losses = {}
    for keeps in ("all", ("m", "y"), ("m", "x"), "1"):
        layer = GMRHarmonicConv2d(1, 4, 3, padding=1, keeps=keeps)
        if keeps == "all":
            with pytest.raises(ConfigurationError, match="no layer that keeps a subgroup"):
                train(layer, target, 0.4)
            continue
        losses[keeps] = train(layer, target, strength=0.2, lr=0.03)
    variance = 6.0
    assert losses["m", "y"] < 0.2 * variance
    assert losses["1"] < 0.2 * variance
    assert losses["m", "x"] > 0.75 * variance


def test_weight_decay_leaves_the_terms_to_the_threshold():
    net = GMRUNet(2, 1, 2, features=(8, 8), conv=("gmr_harmonic", {"keeps": "1"}))
    decayed, others = parameter_groups(net, weight_decay=0.1)
    own = {id(p) for p in symmetry_parameters(net)}
    assert own <= {id(p) for p in others["params"]}
    assert not own & {id(p) for p in decayed["params"]}
    assert len(decayed["params"]) + len(others["params"]) == len(list(net.parameters()))


def test_the_rate_is_that_of_the_group_and_of_the_schedule():
    layer = GMRHarmonicConv2d(1, 8, 3, keeps="1")
    nn.init.constant_(layer.relax_weight, 1.0)
    nn.init.constant_(layer.chiral_weight, 1.0)
    groups = [{"params": [layer.relax_weight], "lr": 0.1}, {"params": [layer.chiral_weight], "lr": 0.01}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    SymmetryThreshold(layer, optimizer, 0.5)
    layer.relax_weight.grad = torch.zeros_like(layer.relax_weight)
    layer.chiral_weight.grad = torch.zeros_like(layer.chiral_weight)
    optimizer.step()
    # a row of 8 ones has the length sqrt(8), and the threshold is 0.5 * 0.1 * sqrt(8)
    assert torch.allclose(layer.relax_weight, torch.tensor(0.95))
    assert torch.allclose(layer.chiral_weight, torch.tensor(0.995))


def test_the_optimiser_must_hold_the_terms():
    layer = GMRHarmonicConv2d(1, 8, 3, keeps="1")
    with pytest.raises(ConfigurationError, match="does not hold the terms"):
        SymmetryThreshold(layer, torch.optim.SGD([layer.weight], lr=1.0), 0.5)
    with pytest.raises(ConfigurationError, match="strength=-1"):
        SymmetryThreshold(layer, torch.optim.SGD(layer.parameters(), lr=1.0), -1)


def test_the_table_names_the_layer_and_the_elements(tmp_path):
    net = GMRUNet(3, 1, 2, features=(8, 8), conv=("gmr_harmonic", {"keeps": "mm2"}))
    nn.init.ones_(net.get_submodule("encoders.0.1.0.conv").relax_weight)
    table = broken_symmetry(net, seed=1)
    row = table.layers.index("encoders.0.1.0.conv")
    assert table.sizes[row] == 1
    assert sum(table.sizes) == 1
    assert len(table.elements) == 47
    kept = [name for name, error in zip(table.elements, table.errors[row]) if error < 1e-5]
    assert sorted(kept) == ["2 [001]", "m [010]", "m [100]"]
    assert (table.errors[[i for i in range(len(table.layers)) if i != row]] < 1e-5).all()
    table.save(tmp_path)
    assert (tmp_path / "broken_symmetry.csv").read_text().startswith("layer,outputs,")
    assert (tmp_path / "broken_symmetry.png").stat().st_size > 5000
    with pytest.raises(ConfigurationError, match="no layer that keeps a subgroup"):
        broken_symmetry(GMRUNet(2, 1, 2, features=(8, 8)))
