"""Layers on fields commute with their group, for all names and representations of its elements."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from monai_gmr.networks.layers import (
    PointGroupConv2d,
    PointGroupDense,
    PointGroupDropout,
    PointGroupNorm,
    PointGroupPool,
    PointGroupRestrict,
)
from monai_gmr.symmetry import PointGroup, transform_fields, transform_grid
from monai_gmr.utils import ConfigurationError

PAIRS = [
    (1, "m", "1"),
    (2, "4mm", "4"),
    (2, "4mm", "2mm"),
    (2, "4mm", ("m", "y")),
    (2, "4mm", "2"),  # the last two have no complement
    (2, "4", "2"),
    (3, "m-3m", "432"),
    (3, "m-3m", "4/mmm"),
    (3, "m-3m", "3"),
    (3, "432", "222"),
    (3, "4/mmm", ("mm2", "x")),
]
SIZE = {1: (5,), 2: (4, 5), 3: (2, 3, 4)}


def fields(group, batch=2):
    return torch.randn(batch, 3 * group.order, *SIZE[group.spatial_dims], dtype=torch.float64)


def moved(x, element, group):
    return transform_grid(x, element) if group is None else transform_fields(x, element, group)


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize(("dims", "group", "subgroup"), PAIRS)
def test_pools_are_exact_for_every_element(dims, group, subgroup, reduce):
    group, subgroup = (PointGroup.from_name(each, dims) for each in (group, subgroup))
    x = fields(group)
    for onto in (None, subgroup, group):
        pool = PointGroupPool(dims, group, onto, reduce=reduce)
        y = pool(x)
        assert y.shape[1] == 3 * (1 if onto is None else onto.order)
        for element in (group if onto is None else onto).elements:
            assert torch.allclose(pool(transform_fields(x, element, group)), moved(y, element, onto), atol=1e-14)
    assert torch.equal(pool(x), x)  # onto the group itself
    scalars = PointGroupPool(dims, group, reduce=reduce)(x).unflatten(1, (3, 1))
    reduced = PointGroupPool(dims, group, subgroup, reduce=reduce)(x).unflatten(1, (3, -1))
    reduced = reduced.amax(2, keepdim=True) if reduce == "max" else reduced.mean(2, keepdim=True)
    assert torch.allclose(reduced, scalars, atol=1e-14)  # each element counts once


@pytest.mark.parametrize(("dims", "group", "subgroup"), PAIRS)
def test_pooling_does_not_depend_on_representatives(dims, group, subgroup):
    """Rows of the table are cosets of a complement of the subgroup, if there is one; any element of a row represents it."""
    group, subgroup = (PointGroup.from_name(each, dims) for each in (group, subgroup))
    complement = group.complement(subgroup)
    rows = {frozenset(row) for row in PointGroupPool(dims, group, subgroup).cosets.tolist()}
    if complement is None:
        assert (group.name[0], subgroup.name[0]) in [("4mm", "2"), ("4", "2")]
        return
    for row in rows:
        for representative in row:
            assert row == {int(group.products[representative, k]) for k in group.positions(complement)}


def test_a_maximum_of_negative_numbers_is_negative():
    assert float(PointGroupPool(2, "4mm")(-torch.ones(1, 8, 3, 3)).max()) == -1


@pytest.mark.parametrize(("dims", "group", "subgroup"), PAIRS)
def test_restricted_fields_are_fields_on_the_subgroup(dims, group, subgroup):
    group, subgroup = (PointGroup.from_name(each, dims) for each in (group, subgroup))
    restrict, x = PointGroupRestrict(dims, group, subgroup), fields(group)
    assert torch.equal(restrict(x).sort(1).values, x.sort(1).values)
    for element in subgroup.elements:
        assert torch.equal(
            restrict(transform_fields(x, element, group)), transform_fields(restrict(x), element, subgroup)
        )


@pytest.mark.parametrize("norm", ["batch", "instance", ("group", {"num_groups": 3}), ("instance", {"affine": True})])
@pytest.mark.parametrize(("dims", "group"), [(1, "m"), (2, "4mm"), (3, "432")])
@pytest.mark.parametrize("training", [True, False])
def test_norms_are_exact_and_share_their_statistics(norm, dims, group, training):
    group = PointGroup.from_name(group, dims)
    layer = PointGroupNorm(dims, 3 * group.order, group, norm).double().train(training)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = fields(group)
    y = layer(x)
    assert y.shape == x.shape
    for element in group.elements:
        assert torch.allclose(
            layer(transform_fields(x, element, group)), transform_fields(y, element, group), atol=1e-10
        )
    if norm == "batch" and training:
        means = layer.norm.running_mean
        assert means.shape == (3,)
        assert torch.isfinite(means).all()


def test_a_norm_is_torchs_over_the_elements_and_voxels_of_a_field():
    layer, x = PointGroupNorm(2, 16, "4mm", "instance").double(), fields(PointGroup.from_name("4mm", 2))[:, :16]
    pixels = x.reshape(2, 2, -1)
    expected = (pixels - pixels.mean(2, keepdim=True)) / (pixels.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
    assert torch.allclose(layer(x), expected.reshape(x.shape), atol=1e-12)


def test_dropout_drops_fields_and_keeps_the_mean():
    torch.manual_seed(0)
    layer, x = PointGroupDropout(2, 0.25, group="4mm"), torch.ones(400, 16, 2, 3)
    y = layer(x).unflatten(1, (2, 8)).flatten(2)
    assert ((y == y[:, :, :1]).all(2)).all()
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(y.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize(("dims", "group"), [(1, "m"), (2, "4mm"), (3, "432")])
def test_a_dense_layer_commutes_with_the_group(dims, group):
    group = PointGroup.from_name(group, dims)
    x = torch.randn(5, 2 * group.order, dtype=torch.float64)
    layer = PointGroupDense(2 * group.order, group.order, spatial_dims=dims, group=group).double()
    lift = PointGroupDense(3, group.order, spatial_dims=dims, group=group, in_group="1").double()

    def permuted(features, element):
        single = features[(...,) + (None,) * dims]
        return transform_fields(single, element, group).flatten(1)

    scalars = torch.randn(5, 3, dtype=torch.float64)
    for element in group.elements:
        assert torch.allclose(layer(permuted(x, element)), permuted(layer(x), element), atol=1e-12)
        assert torch.allclose(lift(scalars), permuted(lift(scalars), element), atol=1e-12)
    plain = PointGroupDense(6, 4, spatial_dims=dims, group="1")
    torch.manual_seed(1)
    plain.reset_parameters()
    torch.manual_seed(1)
    expected = nn.Linear(6, 4)
    values = torch.randn(2, 6)
    assert torch.equal(plain(values), expected(values))


@pytest.mark.parametrize(
    "layer",
    [
        PointGroupPool(2, "4mm"),
        PointGroupPool(2, "4mm", "4", reduce="mean"),
        PointGroupRestrict(2, "4mm", "2"),
        PointGroupNorm(2, 16, "4mm", "instance"),
        PointGroupDropout(2, group="4mm").eval(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_modules_like_any_other(layer):
    x = torch.randn(2, 16, 5, 6)
    expected = layer(x)
    assert not [name for name in layer.state_dict() if "cosets" in name or "channels" in name]
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(clone(x), expected)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(layer), buffer)
    buffer.seek(0)
    assert torch.equal(torch.jit.load(buffer)(x), expected)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({2: torch.export.Dim("h"), 3: torch.export.Dim("w")},))
    assert torch.allclose(exported.module()(x[..., :4]), layer(x[..., :4]))
    assert torch.equal(
        copy.deepcopy(layer).to("meta").to_empty(device="cpu")(x).isfinite(), torch.ones_like(expected).bool()
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PointGroupPool(2, "4", "m"), "is not a subgroup of"),
        (lambda: PointGroupPool(2, "4", reduce="sum"), "reduce='sum' is unknown: use one of 'max', 'mean'"),
        (lambda: PointGroupRestrict(3, "432", "mmm"), "is not a subgroup of"),
        (lambda: PointGroupNorm(2, 12, "4mm"), "num_features=12 is not a multiple of the 8 elements"),
        (lambda: PointGroupNorm(2, 16, "4mm", "localresponse"), "norm='localresponse' is unknown: use one of 'batch'"),
        (lambda: PointGroupNorm(2, 16.0, "4mm"), "num_features=16.0 is impossible: give a whole number"),
        (lambda: PointGroupNorm(2, 16, "4mm", None), "norm=None is impossible: give a name or a pair"),
        (lambda: PointGroupNorm(2, 16, "4mm", ("batch",)), "is impossible: give a name or a pair"),
        (lambda: PointGroupNorm(2, 16, "4mm", "group"), "norm='group' cannot be built for 2 fields .*num_groups"),
        (lambda: PointGroupNorm(2, 16, "4mm", ("group", {"num_groups": 4})), "cannot be built for 2 fields"),
        (lambda: PointGroupNorm(2, 16, "4mm", ("batch", {"mommentum": 1})), "cannot be built .*mommentum"),
        (lambda: PointGroupDropout(2, 1.5, group="4"), "p=1.5 is impossible: give a number from 0 to 1"),
        (lambda: PointGroupDropout(2, "much", group="4"), "p='much' is impossible: give a number"),
        (lambda: PointGroupDense(8.0, 8, spatial_dims=2, group="4mm"), "in_features=8.0 is impossible"),
        (lambda: PointGroupDense(8, 8, dtype=torch.int32, spatial_dims=2, group="4mm"), "dtype=torch.int32 is not"),
        (
            lambda: PointGroupDense(8, 9, spatial_dims=2, group="4mm"),
            "out_features=9 is not a multiple of the 8 elements",
        ),
        (lambda: PointGroupDense(4, 8, spatial_dims=2, group="4mm", in_group="4"), "does not contain out_group"),
    ],
)
def test_impossible_layers_are_refused_in_a_sentence(make, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        make()


def test_unbatched_fields_are_those_of_a_batch_and_others_are_refused():
    layers = (
        PointGroupPool(2, "4mm", "4"),
        PointGroupRestrict(2, "4mm", "2"),
        PointGroupNorm(2, 16, "4mm", "instance"),
    )
    for layer in (*layers, PointGroupDropout(2, group="4mm").eval()):
        x = torch.randn(1, 16, 8, 6)
        assert torch.allclose(layer(x[0]), layer(x)[0], atol=1e-6)
        for shape in ((1, 12, 8, 6), (1, 16, 8), (1, 1, 16, 8, 6)):
            with pytest.raises(ConfigurationError, match=r"give .*(a multiple of 8|16) channels, 2 spatial sizes"):
                layer(torch.randn(shape))


@pytest.mark.parametrize("norm", ["batch", "instance", ("instance", {"affine": True}), ("group", {"num_groups": 2})])
def test_a_norm_takes_its_own_number_of_channels(norm):
    with pytest.raises(ConfigurationError, match=r"shape \(1, 24, 5, 5\): give .* 16 channels"):
        PointGroupNorm(2, 16, "4mm", norm)(torch.rand(1, 24, 5, 5))


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.rand(3, 8), r"shape \(3, 8\): give \(\.\.\., 16\)"),
        (torch.rand(3, 16, 4, 4), r"give \(\.\.\., 16\)"),
        (torch.rand(3, 16, dtype=torch.float64), "weights of torch.float32 and was given an input of torch.float64"),
    ],
)
def test_a_dense_layer_refuses_other_inputs_in_a_sentence(x, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        PointGroupDense(16, 16, spatial_dims=2, group="4mm")(x)


@pytest.mark.parametrize(("dims", "group", "subgroup"), [(2, "4mm", "2"), (3, "432", "222")])
def test_channels_last_in_memory_stay_there(dims, group, subgroup):
    group = PointGroup.from_name(group, dims)
    channels_last = torch.channels_last if dims == 2 else torch.channels_last_3d
    layers = [
        PointGroupPool(dims, group),
        PointGroupPool(dims, group, subgroup, reduce="mean"),
        PointGroupRestrict(dims, group, subgroup),
        *(PointGroupNorm(dims, 3 * group.order, group, norm) for norm in ("batch", "instance")),
        PointGroupNorm(dims, 3 * group.order, group, ("group", {"num_groups": 3})),
        PointGroupDropout(dims, group=group),
    ]
    for layer in layers:
        x = fields(group).float()
        assert layer(x).is_contiguous()
        assert layer(x.to(memory_format=channels_last)).is_contiguous(memory_format=channels_last)


def test_a_net_made_on_the_meta_device_takes_a_state_dict_by_assignment():
    def make():
        return nn.Sequential(PointGroupConv2d(1, 8, 3, group="4mm", in_group="1"), PointGroupPool(2, "4mm"))

    with torch.device("meta"):
        net = make()
    filled, x = make(), torch.rand(1, 1, 9, 9)
    net.load_state_dict(filled.state_dict(), assign=True)
    assert torch.equal(net(x), filled(x))


def test_channels_of_a_field_are_one_for_each_element():
    group = PointGroup.from_name("4mm", 2)
    x = torch.arange(8.0).reshape(1, 8, 1, 1)
    for index, element in enumerate(group.elements):
        expected = [float(group.index(element.T @ each)) for each in group.elements]
        assert transform_fields(x, element, group).flatten().tolist() == expected
        assert np.array_equal(transform_fields(x.numpy(), element, group).ravel(), expected)
        assert group.index(group.elements[index]) == index
