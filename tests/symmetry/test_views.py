"""Sets of views: their number and distribution, the same for the same seed, and never empty."""

import numpy as np
import pytest
import torch

from monai_gmr.symmetry import (
    PointGroup,
    angle_views,
    element_name,
    group_views,
    icosahedral_views,
    make_views,
    named_group,
    random_views,
    transform_image,
)
from monai_gmr.symmetry.views import shift_views
from monai_gmr.utils import ConfigurationError


@pytest.mark.parametrize(
    ("spec", "dims", "count"),
    [
        ("oh", 3, 48),
        ("all", 2, 8),
        ("d4", 2, 8),
        ("d4", 3, 8),
        ("4/mmm", 3, 16),
        (222, 3, 4),
        ("upright", 3, 1),
        ("icosahedral", 3, 60),
        ({"angles": 10}, 2, 36),
        ({"angles": "30"}, 3, 34),
        ({"angles": 50}, 2, 8),
        ({"random": 20, "seed": 1}, 3, 20),
        ({"group": "m", "axis": "x"}, 3, 2),
        (("4/mmm", "x"), 3, 16),
        ([("mm2", "x"), ["m", "x"]], 3, 5),
        (PointGroup.from_name("23", 3), 3, 12),
        ([PointGroup.from_name("4", 2), "upright"], 2, 4),
        (["432", "icosahedral"], 3, 72),
        (["oh", "432", {"angles": 90}], 3, 48),
        ([{"random": 3}, "upright"], 2, 4),
        (group_views(3)[5], 3, 1),
        ([group_views(2)[5], "upright"], 2, 2),
    ],
    ids=str,
)
def test_a_specification_gives_as_many_different_views_as_it_says(spec, dims, count):
    views = make_views(spec, dims)
    assert len(views) == count
    assert len({view.name for view in views}) == count
    for view in views:
        assert view.matrix.shape == (dims, dims)
        assert np.allclose(view.matrix @ view.matrix.T, np.eye(dims))
        assert (view.family == "upright") == np.allclose(view.matrix, np.eye(dims))
    assert all(view.family != "upright" for view in views[1:])


def test_views_of_named_groups_are_the_group_and_keep_the_spacing():
    views = group_views(3, group="4/mmm", axis="x")
    assert np.array_equal([view.matrix for view in views], named_group("4/mmm", 3, "x"))
    assert [view.name for view in views[1:]] == [element_name(view.matrix) for view in views[1:]]
    assert len(group_views(3, (1, 1, 3), "4/mmm", axis="x")) == 8
    assert len(make_views("oh", 3, (1, 2, 3))) == 8


def test_shifts_are_no_set_of_views():
    shifted = shift_views(2, [0.5, -0.25])
    assert [view.shift for view in shifted] == [(0.5, 0), (0, 0.5), (-0.25, 0), (0, -0.25)]
    with pytest.raises(ConfigurationError, match=r"'0.5 voxels along axis 0' is moved: .* give dist"):
        make_views(shifted, 2)
    for nothing in (0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="moves nothing: give distances"):
            shift_views(2, [nothing])


def test_rotations_by_90_degrees_are_among_the_angles_of_a_set():
    assert [view.angle for view in make_views({"angles": 10}, 2)] == list(range(0, 360, 10))
    assert {view.angle for view in angle_views(2, 10)} | {0, 90, 180, 270} == set(range(0, 360, 10))
    assert [view.name for view in angle_views(3, 90, grid=True)][:2] == ["upright", "90 degrees about axis 0"]


def test_icosahedral_views_are_a_group_of_rotations():
    matrices = np.stack([view.matrix for view in icosahedral_views()])
    assert np.allclose(np.linalg.det(matrices), 1)
    products = np.einsum("aij,bjk->abik", matrices, matrices).reshape(-1, 9)
    nearest = np.abs(products[:, None] - matrices.reshape(1, 60, 9)).max(-1).min(1)
    assert nearest.max() < 1e-9
    angles, counts = np.unique(np.round([view.angle for view in icosahedral_views()]), return_counts=True)
    assert dict(zip(angles.tolist(), counts.tolist())) == {0: 1, 72: 12, 120: 20, 144: 12, 180: 15}


@pytest.mark.parametrize("dims", [2, 3])
def test_random_views_repeat_with_their_seed_and_are_spread_evenly(dims):
    one, two = random_views(2000, dims, seed=4), random_views(2000, dims, seed=4)
    assert all(np.array_equal(a.matrix, b.matrix) for a, b in zip(one, two))
    assert np.allclose(random_views(5, dims, seed=4)[2].matrix, one[2].matrix)
    assert not np.allclose(random_views(1, dims, seed=5)[0].matrix, one[0].matrix)
    matrices = np.stack([view.matrix for view in one])
    assert np.allclose(np.linalg.det(matrices), 1)
    # uniform: matrix entries have mean 0 and variance 1/d
    assert np.abs(matrices.mean(0)).max() < 0.08
    assert np.abs((matrices**2).mean(0) - 1 / dims).max() < 0.05
    assert np.array_equal(make_views({"random": 2}, dims, seed=9)[1].matrix, random_views(2, dims, 9)[1].matrix)


def test_the_numbers_of_a_seed_stay_what_they_are():
    assert np.allclose(random_views(1, 2, seed=1)[0].angle, 184.25578489)
    assert np.allclose(random_views(1, 3, seed=1)[0].angle, 72.21944817)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_group_of_the_grid_has_two_names(dims):
    for more in ([], [{"angles": 45}]):
        one, other = (make_views([name, *more], dims) for name in ("group", "all"))
        assert len(one) == len(other)
        assert all(any(np.array_equal(a.matrix, b.matrix) for b in other) for a in one)


def test_views_rotate_images():
    image = torch.rand(1, 5, 5, 5)
    for view in make_views(["upright", {"random": 1}, {"group": "m"}], 3):
        assert transform_image(image, view.matrix, order=1).shape == image.shape


@pytest.mark.parametrize(
    ("spec", "dims", "sentence"),
    [
        ([], 3, "set of size zero"),
        ({"random": 0}, 3, "random=0 is impossible: give a whole number of at least 1"),
        ({"random": -3}, 2, "random=-3 is impossible"),
        ({"random": "many"}, 2, "random='many' is impossible: give a whole number"),
        ({"angles": 0}, 2, "angles=0 is impossible: give a number above 0"),
        ({"angles": -10}, 3, "above 0"),
        ({"angles": "few"}, 3, "angles='few' is impossible: give a number above 0"),
        ({"angles": float("nan")}, 3, "above 0"),
        ("icosahedral", 2, "'icosahedral' is unknown in 2D"),
        ("oh", 2, "'oh' is unknown in 2D"),
        ("octahedral", 3, "unknown in 3D.*or 'upright', 'angles' or 'icosahedral'"),
        ({"turns": 3}, 3, "views={'turns': 3} is unknown"),
        ({"angles": 3, "axis": 1}, 3, "is unknown: give"),
        (None, 3, "views=None is unknown"),
        (("4/mm", "z"), 3, "views='4/mm' is unknown in 3D"),
        (("m", "z"), 2, "axis='z' is unknown in 2D"),
        (("m", 2), 2, "axis=2 is unknown in 2D"),
        (("mm2", -1), 3, "axis=-1 is unknown in 3D"),
        (PointGroup.from_name("4", 2), 3, "transforms 2 axes"),
        ([None], 3, "views=None is unknown"),
        (group_views(2)[1], 3, "matrix of shape"),
        ("all", 4, "spatial_dims=4"),
    ],
    ids=str,
)
def test_wrong_specifications_end_in_a_sentence(spec, dims, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        make_views(spec, dims)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, 1, -2)])
def test_a_spacing_that_does_not_fit_is_refused(spacing):
    with pytest.raises(ConfigurationError, match=r"spacing=.* does not fit"):
        make_views("all", 3, spacing)


@pytest.mark.parametrize(
    ("spec", "axis"), [((4, 1), 1), (["4", 0], 0), (("2", 1), 1), ([422, 0], 0), (("4", "y"), 1), (["4", 222], None)]
)
def test_a_name_before_a_number_below_3_is_read_with_its_axis_as_by_layers(spec, axis):
    found = {view.name for view in make_views(spec, 3)}
    if axis is None:
        expected = {view.name for name in spec for view in make_views(name, 3)}
    else:
        expected = {view.name for view in make_views({"group": str(spec[0]), "axis": axis}, 3)}
    assert found == expected
