"""The picture of the rotation table shows every view once, in its panel, and an invariant network as invariant."""

import itertools

import matplotlib
import numpy as np
import pytest

from monai_gmr.rotation_report.statistics import axis_and_angle
from monai_gmr.rotation_report.table_picture import (
    COLOURS,
    SMALLEST_RANGE,
    _circle,
    _figure,
    draw_rotation_table,
    find_limits,
)
from monai_gmr.symmetry import angle_views, group_views
from monai_gmr.symmetry.views import icosahedral_views, random_views, shift_views

GRID = "rotated and mirrored\non the grid"
COST = "quality and cost"
SHIFTS = "moved along the axes,\nnot rotated"


def make_rows(views, score, metric="dice"):
    rows = []
    for view in views:
        axis, angle = axis_and_angle(view)
        row = {"view": view.name, "family": view.family, "axis": axis, "angle": angle, metric: score(view)}
        rows.append(row | ({"shift": sum(view.shift)} if view.shift else {}))
    return rows


def invariant(value=0.9):
    return lambda view: value


def varying(view):
    dims = len(view.matrix)
    return 0.9 - 0.3 * (dims - np.trace(view.matrix)) / (2 * dims)


def titles(figure):
    return [panel.get_title() for panel in figure.axes]


def polar(figure):
    return [panel for panel in figure.axes if panel.name == "polar"]


VIEWS = {
    "upright": (group_views(2)[:1], [GRID]),
    "group 2D": (group_views(2), [GRID]),
    "group 3D": (group_views(3), [GRID]),
    "angles 2D": (angle_views(2, 45, grid=True), ["rotated by any angle"]),
    "angles 3D": (angle_views(3, 90, grid=True), [f"about axis {axis}" for axis in range(3)]),
    "both 2D": ([*group_views(2), *angle_views(2, 30)], [GRID, "rotated by any angle"]),
    "both 3D": ([*group_views(3), *angle_views(3, 45)], [GRID, *(f"about axis {axis}" for axis in range(3))]),
    "random 2D": (random_views(5, 2), ["random\nrotations"]),
    "icosahedral": (icosahedral_views(), ["icosahedral\nrotations"]),
    "shifts 2D": ([*group_views(2)[:1], *shift_views(2, [0.5])], [SHIFTS]),
    "all 3D": (
        [*group_views(3), *angle_views(3, 45), *random_views(2, 3), *shift_views(3, [0.5])],
        [GRID, *(f"about axis {axis}" for axis in range(3)), "random\nrotations", SHIFTS],
    ),
    "clouds": ([*icosahedral_views(), *random_views(9, 3)], ["icosahedral and random\nrotations"]),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_there_is_a_panel_for_each_kind_of_view(kind):
    views, expected = VIEWS[kind]
    assert titles(_figure({"net": make_rows(views, varying)}, "dice")) == expected


@pytest.mark.parametrize("count", [1, 2, 6])
def test_each_network_has_a_colour_and_its_spread_in_the_legend(count):
    rows = make_rows(group_views(2), varying)
    figure = _figure({f"net {i}": rows for i in range(count)}, "dice")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"net {i}, spread 0.300" for i in range(count)]
    assert len({line.get_color() for line in figure.axes[0].lines}) == count


@pytest.mark.parametrize("dims", [2, 3])
def test_circles_are_closed_and_hold_rotations_by_90_degrees(dims):
    views = [*group_views(dims), *angle_views(dims, 30)]
    rows = make_rows([*views, *random_views(5, dims)], varying)
    panels = polar(_figure({"net": rows}, "dice"))
    assert len(panels) == (1 if dims == 2 else 3)
    for axis, panel in enumerate(panels):
        (line,) = panel.lines
        places = line.get_markevery()
        angles, values = np.rad2deg(line.get_xdata())[places], line.get_ydata()[places]
        assert np.allclose(angles, np.arange(0, 361, 30))
        assert values[0] == values[-1] == 0.9
        assert np.allclose(values, _circle(rows, "dice", axis)[1])
        assert panel.get_theta_direction() == 1
        assert panel.get_theta_offset() == pytest.approx(np.pi / 2)


@pytest.mark.parametrize("step", [90, 45, 7])
def test_the_circle_of_an_invariant_network_is_round_and_no_label_touches_it(step):
    """However few angles there are; no chord comes nearer to the middle."""
    rows = make_rows([*group_views(3), *angle_views(3, step, grid=True)[1:]], invariant(0.83))
    figure = _figure({"net": rows, "nothing measured": []}, "dice")
    figure.draw_without_rendering()
    for axis, panel in enumerate(polar(figure)):
        (line,) = panel.lines
        middle = panel.transData.transform((0, panel.get_rorigin()))
        points = panel.transData.transform(np.stack([line.get_xdata(), line.get_ydata()], 1)) - middle
        chords = (points[1:] + points[:-1]) / 2
        assert np.linalg.norm(chords, axis=1).min() > 0.999 * np.linalg.norm(points[0])
        assert len(line.get_markevery()) == len(_circle(rows, "dice", axis)[0])
        edge = np.linalg.norm(panel.transData.transform((0, panel.get_ylim()[1])) - middle)
        for text in panel.texts:
            assert np.linalg.norm(text.get_window_extent().corners() - middle, axis=1).max() < edge
        for text in panel.get_xticklabels():
            box = text.get_window_extent()
            nearest = np.clip(middle, [box.x0, box.y0], [box.x1, box.y1])
            assert np.linalg.norm(nearest - middle) > edge + 3


def test_shifts_have_a_panel_of_their_own_and_no_part_in_the_spread():
    rows = make_rows([*group_views(2), *shift_views(2, [0.5, -0.25])], varying)
    for row, value in zip([row for row in rows if row["family"] == "shifts"], (0.5, 0.6, 0.7, 0.7)):
        row["dice"] = value
    figure = _figure(
        {"net": rows, "other": rows}, "dice", {"net": 1.0, "other": 2.0}, title="networks see whole images"
    )
    _, panel, costs = figure.axes
    line, points = panel.lines[:2]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([-0.25, 0, 0.5], pytest.approx([0.7, 0.9, 0.55]))
    assert sorted(zip(points.get_xdata(), points.get_ydata())) == [(-0.25, 0.7)] * 2 + [
        (0, 0.9),
        (0.5, 0.5),
        (0.5, 0.6),
    ]
    assert list(panel.get_xticks()) == [-0.25, 0, 0.5]
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "networks see whole images"
    assert [text.get_text() for text in legend.get_texts()] == ["net, spread 0.300", "other, spread 0.300"]
    assert costs.lines[0].get_ydata()[0] == pytest.approx(np.mean([row["dice"] for row in rows[:8]]))
    assert panel.get_ylim()[0] < 0.5


@pytest.mark.parametrize("names", [["invariant"], ["invariant", "varying"]])
def test_the_range_is_the_same_everywhere_and_never_narrow(names):
    views = [*group_views(3), *angle_views(3, 90, grid=True)[1:], *random_views(4, 3)]
    scores = {"invariant": lambda view: 0.8 + 1e-6 * len(view.name), "varying": varying}
    figure = _figure({name: make_rows(views, scores[name]) for name in names}, "dice", dict.fromkeys(names, 1.0))
    (limits,) = {panel.get_ylim() for panel in figure.axes}
    assert limits[1] - limits[0] >= SMALLEST_RANGE
    for panel in polar(figure):
        assert 2 <= len(panel.texts) <= 6
        assert all(limits[0] <= text.get_position()[1] <= limits[1] for text in panel.texts)


@pytest.mark.parametrize(
    "values", [[0.9], [0.0, 1.0], [0.0], [1.0, 0.99], [12.3, 12.4], [-3.0, 250.0], [0.02, 0.3], []]
)
def test_limits_hold_all_values_and_are_wide(values):
    low, high = find_limits(values)
    assert all(low <= value <= high for value in values)
    assert high - low >= SMALLEST_RANGE * max([1.0, *values]) - 1e-9
    if values and min(values) >= 0 and max(values) <= 1:
        assert low >= -0.03
        assert high <= 1.02 + 1e-9


@pytest.mark.parametrize("missing", [None, "", float("nan"), float("inf")])
def test_views_without_a_value_are_left_out(missing):
    rows = make_rows(group_views(2), invariant())
    rows[3]["dice"] = missing
    del rows[5]["dice"]
    # the other network has all views, so elements keep their places
    figure = _figure({"some": rows, "all": make_rows(group_views(2), invariant())}, "dice")
    some, all_views = figure.axes[0].lines
    assert list(some.get_xdata()) == [0, 1, 2, 4, 6, 7]
    assert list(all_views.get_xdata()) == list(range(8))


@pytest.mark.parametrize(
    ("costs", "drawn"),
    [
        (None, False),
        ({"a": 0.1}, False),
        ({"a": 0.1, "b": None}, False),
        ({"a": 0.1, "b": 0.0}, False),
        ({"a": 0.1, "unknown": 2.0}, False),
        ({"a": 0.1, "b": 20.0}, True),
    ],
)
def test_costs_are_compared_where_two_are_known(costs, drawn):
    rows = make_rows(group_views(2), varying)
    assert (COST in titles(_figure({"a": rows, "b": rows}, "dice", costs))) is drawn


@pytest.mark.parametrize("greater_is_better", [True, False])
def test_the_whisker_reaches_from_the_mean_to_the_worst_view(greater_is_better):
    rows = make_rows(group_views(2), varying)
    values = [row["dice"] for row in rows]
    panel = _figure({"a": rows, "b": rows}, "dice", {"a": 1.0, "b": 3.0}, greater_is_better).axes[-1]
    worst = min(values) if greater_is_better else max(values)
    whisker = panel.lines[0]
    assert whisker.get_ydata() == pytest.approx([np.mean(values), worst])
    assert list(whisker.get_xdata()) == [1.0, 1.0]
    assert panel.get_xscale() == "log"


@pytest.mark.parametrize("seconds", [(0.1, 0.1, 0.1, 0.1, 0.1, 0.1), (0.1, 0.11, 0.3, 0.5, 0.6, 3.0)])
def test_each_network_has_its_point_in_the_colour_and_marker_of_the_legend(seconds):
    names = ["harmonic", "radial", "plain", "plain augmented", "projected", "flat"]
    runs = {name: make_rows(group_views(2), invariant(0.5 + 0.07 * i)) for i, name in enumerate(names)}
    figure = _figure(runs, "dice", dict(zip(names, seconds)))
    figure.draw_without_rendering()
    legend = figure.legends[0]
    for i, entry in enumerate(legend.get_lines()):
        (point,) = [
            line
            for line in figure.axes[-1].lines
            if (line.get_color(), line.get_marker()) == (entry.get_color(), entry.get_marker())
        ]
        assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx((seconds[i], 0.5 + 0.07 * i))
    assert len({(line.get_color(), line.get_marker()) for line in legend.get_lines()}) == len(names)
    assert not any(panel.get_tightbbox().overlaps(legend.get_window_extent()) for panel in figure.axes)


@pytest.mark.parametrize("metric", ["dice", "hausdorff_distance"])
def test_the_file_appears_when_complete(metric, tmp_path):
    scale = 1 if metric == "dice" else 20
    views = [*group_views(2), *angle_views(2, 30), *random_views(3, 2)]
    rows = make_rows(views, lambda view: scale * varying(view), metric)
    file = tmp_path / "new" / "table.png"
    draw_rotation_table({"a": rows, "b": rows[:1]}, metric, file, {"a": 1.0, "b": 0.1}, greater_is_better=scale == 1)
    assert file.read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in file.parent.iterdir()] == ["table.png"]


def test_nothing_to_show_is_a_picture_too(tmp_path):
    draw_rotation_table({"net": []}, "dice", tmp_path / "table.png")
    assert (tmp_path / "table.png").exists()


# G. M. Machado et al., "A physiologically-based model for simulation of color vision deficiency", 2009, severity 1
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


@pytest.mark.parametrize("vision", VISION)
def test_colours_are_distinct_for_the_colour_blind(vision):
    colours = np.array([matplotlib.colors.to_rgb(colour) for colour in COLOURS])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    perceived = np.clip(linear @ np.transpose(VISION[vision]), 0, 1)
    xyz = perceived @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 0.0088)).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 12
