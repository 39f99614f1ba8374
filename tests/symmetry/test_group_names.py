"""Names of elements and of groups: generated, unique, parsed, and with their crystallographic meaning."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_gmr.symmetry import (
    axis_direction,
    element_name,
    element_triplet,
    generate_group,
    grid_element,
    group_names,
    named_group,
    point_group,
    rotation_matrix,
)
from monai_gmr.utils import ConfigurationError

ORDERS = {
    2: {"1": 1, "2": 2, "m": 2, "2mm": 4, "4": 4, "4mm": 8, "D4": 8, "p4m": 8, "p4": 4, "all": 8},
    3: {
        **{
            "1": 1,
            "-1": 2,
            "2": 2,
            "m": 2,
            "2/m": 4,
            "222": 4,
            "mm2": 4,
            "mmm": 8,
            "4": 4,
            "-4": 4,
            "4/m": 8,
            "422": 8,
        },
        **{
            "4mm": 8,
            "-42m": 8,
            "-4m2": 8,
            "4/mmm": 16,
            "3": 3,
            "-3": 6,
            "32": 6,
            "3m": 6,
            "-3m": 12,
            "23": 12,
            "m-3": 24,
        },
        **{"432": 24, "-43m": 24, "m-3m": 48, "Oh": 48, "O": 24, "Td": 24, "Th": 24, "T": 12, "D4h": 16, "D2h": 8},
    },
}


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_names_of_elements_are_unique_and_read_back(dims):
    group = point_group(dims)
    for index, element in enumerate(group):
        spellings = [element_name(element), element_name(element).replace(" ", ""), element_triplet(element)]
        for given_element in (*spellings, index, element, element.tolist(), element.astype(float)):
            assert np.array_equal(grid_element(given_element, dims), element)
    assert len({element_name(element) for element in group}) == len(group)


@pytest.mark.parametrize(
    ("order", "axis"), [(4, (0, 0, 1)), (4, (1, 0, 0)), (4, (0, 1, 0)), (3, (1, 1, 1)), (3, (1, -1, 1))]
)
@pytest.mark.parametrize("sign", ["+", "-"])
def test_the_sense_of_a_symbol_is_that_of_the_rotation(order, axis, sign):
    rotation = rotation_matrix(3, (360 if sign == "+" else -360) / order, axis)
    direction = "".join(str(i) for i in axis)
    assert element_name(rotation) == f"{order}{sign} [{direction}]"
    assert element_name(-rotation) == f"-{order}{sign} [{direction}]"


def test_a_mirror_image_is_named_after_the_direction_that_it_reverses():
    for name in (element_name(element) for element in point_group(3)):
        if name.startswith("m"):
            direction = np.array([int(i) for i in name[3:-1].replace("-1", "2")])
            direction = np.where(direction == 2, -1, direction)
            assert np.array_equal(grid_element(name, 3) @ direction, -direction)


@pytest.mark.parametrize(("dims", "name", "order"), [(d, *item) for d in ORDERS for item in ORDERS[d].items()])
def test_named_groups_have_their_order_and_are_closed(dims, name, order):
    group = named_group(name, dims)
    assert len(group) == order
    assert np.array_equal(group[0], np.eye(dims))
    held = {tuple(element.flatten()) for element in group}
    assert held == {tuple((a @ b).flatten()) for a in group for b in group}


@pytest.mark.parametrize("dims", [2, 3])
def test_every_name_of_the_list_is_read_and_every_subgroup_is_generated(dims):
    groups = [named_group(name, dims) for name in group_names(dims)]
    assert all(np.array_equal(generate_group(list(group))[0], np.eye(dims)) for group in groups)
    assert max(map(len, groups)) == len(point_group(dims))


def test_content_of_groups_by_their_properties():
    def determinants(name):
        return np.round(np.linalg.det(named_group(name, 3)))

    assert all((determinants(name) > 0).all() for name in ("222", "422", "32", "23", "432"))
    assert all((determinants(name) < 0).any() for name in ("m", "mmm", "4mm", "-43m", "m-3", "-1"))
    # those with the inversion
    inverted = {n for n in ORDERS[3] if any(np.array_equal(g, -np.eye(3)) for g in named_group(n, 3))}
    assert {"-1", "2/m", "mmm", "4/m", "4/mmm", "-3", "-3m", "m-3", "m-3m"} <= inverted
    assert not {"222", "-4", "-42m", "-43m", "432", "mm2"} & inverted
    assert np.array_equal(named_group("4/mmm", 3).sum(0), point_group(3, axis_labels=(1, 1, 2)).sum(0))


@pytest.mark.parametrize("name", ["2", "m", "4", "4/mmm", "mm2", "-42m"])
def test_the_main_direction_lies_along_the_axis(name):
    for index, letter in enumerate("xyz"):
        group = named_group(name, 3, axis=letter)
        assert np.array_equal(group, named_group(name, 3, axis=index))
        assert len(group) == len(named_group(name, 3))
        assert (np.abs(group[:, index, index]) == 1).all()
    assert element_name(named_group("m", 2, axis="y")[1]) == "m [01]"
    assert element_name(named_group("m", 2)[1]) == "m [10]"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 47), st.integers(0, 47))
def test_products_of_named_elements_have_names(i, j):
    group = point_group(3)
    product = group[i] @ group[j]
    assert np.array_equal(grid_element(element_name(product), 3), product)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: named_group("6/mmm", 3), "group='6/mmm' is unknown in 3D: use one of .*4/mmm"),
        (
            lambda: named_group(("4/mmm", "x"), 3),
            r"group=.*is not the name of a group: give one such as .m., and its direction as axis=",
        ),
        (lambda: named_group("oh", 2), "unknown in 2D: use one of .*'4mm'"),
        (lambda: named_group("m", 3, axis="w"), "axis='w' is unknown in 3D"),
        (lambda: named_group("m", 2, axis=2), "axis=2 is unknown in 2D"),
        (lambda: named_group("m", 4), "spatial_dims=4"),
        (lambda: grid_element(48, 3), "element=48 is out of range.*0 to 47"),
        (lambda: grid_element(-1, 2), "out of range.*0 to 7"),
        (lambda: grid_element("5+ [001]", 3), "unknown in 3D: use one of '1'"),
        (lambda: grid_element([[1, 0], [1, 0]], 2), "not a symmetry of the grid"),
        (lambda: grid_element([[0, 2], [1, 0]], 2), "not a symmetry of the grid"),
        (lambda: grid_element({"a": 1}, 2), "not a symmetry of the grid"),
        (lambda: grid_element([[0, 1], [1, 0]], 3), "transforms 2 axes, the image has 3"),
        (lambda: axis_direction((0, 0, 0)), "is not a direction"),
        (lambda: axis_direction((1, 0)), "is not a direction"),
        (lambda: axis_direction("up"), "axis='up' is unknown"),
        (lambda: axis_direction((0, 0, float("nan"))), "is not a direction"),
    ],
)
def test_wrong_names_end_in_a_sentence(call, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        call()
