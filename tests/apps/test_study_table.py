"""Intervals are Student's, the table says what a reader needs to judge a row, and the picture holds all."""

from __future__ import annotations

import math

import pytest

from monai_gmr.apps.study_table import SCORES, deciding_score, draw_study, format_tables, interval, summarize


def as_score_rows(scores, **names):
    row = {"data": "cells", "net": "plain", "augmentation": "none", "metric": "dice", "learning_rate": 0.1}
    row |= {"parameters": 1234, **dict.fromkeys(SCORES), **names}
    return [row | dict.fromkeys(scores, None) | {key: values[i] for key, values in scores.items()} for i in range(3)]


def test_interval_is_the_closed_form_of_three_values():
    # t of 0.975 with two degrees of freedom, in closed form: 0.95 * sqrt(2 / (1 - 0.95**2))
    quantile = 0.95 * math.sqrt(2 / (1 - 0.95**2))
    mean, half = interval([1.0, 2.0, 6.0])
    assert mean == pytest.approx(3)
    assert half == pytest.approx(quantile * math.sqrt(7) / math.sqrt(3), rel=1e-6)


def test_a_single_value_has_no_interval_and_equal_ones_one_of_width_zero():
    assert interval([0.5]) == (0.5, None)
    assert interval([0.5, 0.5]) == (0.5, 0.0)


def test_the_best_score_is_bold():
    scores = {"upright": (0.9, 0.9, 0.9), "angles_mean": (0.5, 0.5, 0.5)}
    rows = as_score_rows(scores) + as_score_rows({**scores, "angles_mean": (0.6, 0.6, 0.6)}, net="radial")
    summary = summarize(
        rows, [("cells", net, "none") for net in ("radial", "absent", "plain")], {("cells", "plain"): 12.34}
    )
    assert [line["net"] for line in summary] == ["radial", "plain"]
    assert deciding_score(summary) == "angles_mean"
    table = format_tables(summary)
    assert table.count("**") == 2
    assert "**0.600 ± 0.000**" in table
    assert "| 1,234 | 12.3 |" in table


@pytest.mark.parametrize("panels", [1, 4])
def test_picture_holds_every_data_set(panels, tmp_path):
    scores = {"upright": (0.9, 0.8, 0.9), "angles_mean": (0.5, 0.6, 0.5), "angles_worst": (0.4, 0.4, 0.4)}
    names = [f"data {i}" for i in range(panels)]
    rows = [row for name in names for row in as_score_rows(scores, data=name)]
    draw_study(summarize(rows, [(name, "plain", "none") for name in names], {}), tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000
