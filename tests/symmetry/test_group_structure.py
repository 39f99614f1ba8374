"""A group as a value: the axioms, its subgroups and cosets, and its action on the taps of a window, for every named group."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_gmr.symmetry import PointGroup, generate_group, group_names, named_group, point_group, transform_grid
from monai_gmr.symmetry.group_structure import group_elements
from monai_gmr.utils import ConfigurationError

# every group with a name and an axis, once, and its name
NAMED = {
    PointGroup.from_name((name, axis), dims): (dims, name, axis)
    for dims in (1, 2, 3)
    for axis in range(dims)
    for name in group_names(dims)
}
GROUPS = [pytest.param(group, id="-".join(map(str, label))) for group, label in NAMED.items()]
# International Tables for Crystallography A: numbers of subgroups of the crystallographic point groups
NUMBERS_OF_SUBGROUPS = {
    "1": 1,
    "m": 2,
    "mmm": 16,
    "4": 3,
    "422": 10,
    "4/mmm": 35,
    "32": 6,
    "23": 10,
    "432": 30,
    "m-3m": 98,
}


def test_every_name_makes_a_group():
    assert {len(group.matrices) for group in NAMED} == {1, 2, 3, 4, 6, 8, 12, 16, 24, 48}
    assert len({group for group in NAMED if group.spatial_dims == 2}) == 7  # six names, one with either mirror axis
    for group, (dims, name, axis) in NAMED.items():
        assert np.array_equal(group.elements, named_group(name, dims, axis))


@pytest.mark.parametrize("group", GROUPS)
def test_axioms(group):
    order, products = group.order, group.products
    everything = np.arange(order)
    assert np.array_equal(group.elements[0], np.eye(group.spatial_dims))
    assert np.array_equal(products[0], everything)
    assert np.array_equal(products[:, 0], everything)
    # each row and column holds every element once: closed, and the equation a x = b has one solution
    assert (np.sort(products, 0) == everything[:, None]).all()
    assert (np.sort(products, 1) == everything).all()
    assert np.array_equal(products[products], products[everything[:, None, None], products[None]])
    assert (products[everything, group.inverses] == 0).all()
    assert (products[group.inverses, everything] == 0).all()
    for a, b in np.random.default_rng(0).integers(0, order, (10, 2)):
        assert np.array_equal(group.elements[products[a, b]], group.elements[a] @ group.elements[b])


@pytest.mark.parametrize("group", GROUPS)
def test_few_generators_make_the_whole_group(group):
    chosen = group.generators()
    assert len(chosen) <= 4
    assert PointGroup.from_elements(generate_group(chosen) if len(chosen) else [np.eye(group.spatial_dims)]) == group


@pytest.mark.parametrize("group", GROUPS)
def test_subgroups_divide_the_order_and_their_cosets_divide_the_group(group):
    subgroups = group.subgroups()
    assert subgroups[0].order == 1
    assert subgroups[-1] == group
    assert len(set(subgroups)) == len(subgroups)
    for subgroup in subgroups[:: max(1, len(subgroups) // 12)]:
        inside = group.positions(subgroup)
        assert np.array_equal(group.elements[inside], subgroup.elements)
        left, right = group.left_cosets(subgroup), group.right_cosets(subgroup)
        for cosets in (left, right):
            assert cosets.shape == (group.order // subgroup.order, subgroup.order)
            assert sorted(cosets.ravel().tolist()) == list(range(group.order))
        for coset in left:
            assert {int(group.products[coset[0], h]) for h in inside} == set(coset.tolist())
        for coset in right:
            assert [int(group.products[h, coset[0]]) for h in inside] == coset.tolist()
        complement = group.complement(subgroup)
        if complement is not None:
            products = subgroup.elements[:, None] @ complement.elements[None]
            assert PointGroup.from_elements(products.reshape(-1, *products.shape[2:])) == group


@pytest.mark.parametrize(("name", "number"), NUMBERS_OF_SUBGROUPS.items())
def test_number_of_subgroups(name, number):
    assert len(PointGroup.from_name(name, 3).subgroups()) == number


@pytest.mark.parametrize("group", GROUPS)
def test_values_compare_by_their_elements(group):
    shuffled = np.random.default_rng(0).permutation(group.elements)
    assert PointGroup.from_elements(shuffled) == group == pickle.loads(pickle.dumps(group))
    assert hash(PointGroup.from_elements(shuffled)) == hash(group)
    symbol, axis = group.name
    assert PointGroup.from_name((symbol, axis), group.spatial_dims) == group


@given(st.sampled_from(list(NAMED)), st.lists(st.integers(1, 5), min_size=3, max_size=3), st.integers(0, 2**31))
@settings(deadline=None, max_examples=100)
def test_taps_are_transformed_as_images_are(group, lengths, seed):
    window = tuple(lengths[: group.spatial_dims])
    kept = group.keeping(window)
    assert kept.keeping(window) == kept
    assert group.contains(kept)
    kernel = np.random.default_rng(seed).normal(size=window)
    for element, permutation in zip(kept.elements, kept.tap_permutations(window)):
        assert np.array_equal(kernel.ravel()[permutation].reshape(window), transform_grid(kernel, element))
    if kept != group:
        with pytest.raises(ConfigurationError, match="use equal numbers on the axes that it exchanges"):
            group.tap_permutations(window)


def test_the_largest_subgroup_keeps_spacing_and_window():
    whole = PointGroup.from_name("all", 3)
    assert whole.keeping((1.0, 1.0, 3.0)) == PointGroup.from_elements(point_group(3, axis_labels=(1.0, 1.0, 3.0)))
    assert whole.keeping((1.0, 1.0, 3.0), (5, 3, 3)) == PointGroup.from_name("mmm", 3)
    assert PointGroup.from_name("432", 3).keeping((2, 1, 1)) == PointGroup.from_name(("422", "x"), 3)


def test_arrays_that_all_groups_of_a_name_share_are_read_only():
    group = PointGroup.from_name("4mm", 2)
    for array in (group.elements, group.products, group.inverses):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_axes_that_an_element_reverses():
    axes = {("m", 0): [True, False], ("m", 1): [False, True], ("4", None): [True, True], ("1", None): [False, False]}
    for (name, axis), mirrored in axes.items():
        assert PointGroup.from_name((name, axis), 2).mirrored_axes() == mirrored


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PointGroup.from_name("5", 2), "group='5' is unknown in 2D: use one of '1'"),
        (lambda: PointGroup.from_name("4", 4), "spatial_dims=4 has no named symmetries: give 1, 2 or 3"),
        (lambda: PointGroup.from_name(PointGroup.from_name("4", 2), 3), "transforms 2 axes: give a group of 3 axes"),
        (lambda: PointGroup.from_elements([[[1, 1], [0, 1]]]), "are not symmetries of the grid"),
        (lambda: PointGroup.from_elements([]), "are not symmetries of the grid"),
        (lambda: PointGroup.from_elements([2 * np.eye(2)]), "are not symmetries of the grid"),
        (lambda: PointGroup.from_elements(point_group(2)[:3]), "3 elements are not a group, they generate one of 8"),
        (
            lambda: PointGroup.from_name("4", 2).positions(PointGroup.from_name("m", 2)),
            r"PointGroup\('m'\) is not a subgroup of PointGroup\('4'\): use one of PointGroup\('1'\), PointGroup\('2'\), PointGroup\('4'\)",
        ),
        (lambda: PointGroup.from_name("4", 2).keeping((1, 2, 3)), "needs one entry for each of 2 axes"),
    ],
)
def test_impossible_groups_are_refused_in_a_sentence(make, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("group", "dims", "order"),
    [
        ("all", 1, 2),
        (["m"], 1, 1),
        (["1", "m"], 1, 2),
        (("m", "y"), 2, 2),
        (["m", 1], 2, 2),
        (("2", 1), 2, 2),  # elements: a rotation by 180 degrees, and the second of the grid's
        (["2", "4+"], 2, 2),
        ((0, 1), 3, 2),
        (["4/mmm", 0], 3, 16),
        (222, 3, 4),
        ([np.eye(3)], 3, 1),
        ([], 3, 0),
        (point_group(3), 3, 48),
    ],
)
def test_a_group_or_a_list_of_its_elements(group, dims, order):
    """A name before a number is parsed with an axis unless it also names an element."""
    assert group_elements(group, dims).shape == (order, dims, dims)
