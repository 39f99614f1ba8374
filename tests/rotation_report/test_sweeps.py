"""A slider steps over all angles of an axis in order, and over mirror images and the worst views about no axis."""

import pytest

from monai_gmr.rotation_report.sweeps import MOST_STEPS, OTHER_VIEWS, make_sweeps, say_view
from monai_gmr.symmetry import group_views, make_views
from monai_gmr.symmetry.views import shift_views


@pytest.mark.parametrize(("dims", "step", "axes"), [(2, 30, 1), (3, 45, 3)])
def test_each_axis_has_its_angles_once_and_in_order(dims, step, axes):
    sweeps = make_sweeps([*make_views(["all", {"angles": step}], dims), *shift_views(dims, [0.5])])
    circles = [sweep for sweep in sweeps if sweep.is_circle]
    assert len(circles) == axes
    for axis, sweep in enumerate(circles):
        assert [step_.x for step_ in sweep.steps] == list(range(0, 360, step))
        assert sweep.axis == (axis if dims == 3 else None)
    (other,) = [sweep for sweep in sweeps if not sweep.is_circle]
    assert other.title == OTHER_VIEWS
    # mirror images along axes without the rotations by 180 degrees, and the upright image
    assert len(other.steps) == 1 + (2 if dims == 2 else 4)


def test_worst_views_are_there_whatever_they_are():
    views = [*make_views(["all", {"random": 2}], 3), *shift_views(3, [0.5])]
    worst = {"3+ [111]", "random 1 of seed 0", "0.5 voxels along axis 2"}
    shown = {step.view.name for sweep in make_sweeps(views, worst) for step in sweep.steps}
    assert worst <= shown
    assert "random 0 of seed 0" not in shown


def test_very_many_angles_are_thinned_out_but_keep_the_worst():
    views = make_views({"angles": 1}, 2)
    (sweep,) = make_sweeps(views, ["77 degrees"])
    assert len(sweep.steps) <= MOST_STEPS + 2
    assert "77°" in [step.label for step in sweep.steps]


def test_views_about_no_axis_alone_are_all_shown():
    (sweep,) = make_sweeps(make_views(["upright", {"random": 3}], 3))
    assert len(sweep.steps) == 4


def test_every_element_of_the_grid_has_words_of_its_own():
    for dims in (2, 3):
        words = [say_view(view) for view in group_views(dims)]
        assert len(set(words)) == len(words)
