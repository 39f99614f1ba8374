"""Tests of a study's table and picture: Student's intervals, the columns needed to judge a row, and a complete picture."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from monai_gmr.apps.study_differences import find_differences, format_differences, over_images
from monai_gmr.apps.study_plan import Run
from monai_gmr.apps.study_progress import Progress, read_rows
from monai_gmr.apps.study_runs import still_improving
from monai_gmr.apps.study_table import SCORES, deciding_score, draw_study, format_tables, interval, summarize


def as_score_rows(scores, **names):
    row = {"data": "cells", "net": "plain", "augmentation": "none", "metric": "dice", "learning_rate": 0.1}
    row |= {"parameters": 1234, **dict.fromkeys(SCORES), **names}
    return [row | dict.fromkeys(scores, None) | {key: values[i] for key, values in scores.items()} for i in range(3)]


def test_interval_is_the_closed_form_of_three_values():
    # Student's t at 0.975 with two degrees of freedom, in closed form: 0.95 * sqrt(2 / (1 - 0.95**2))
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
        rows,
        [("cells", net, "none") for net in ("radial", "absent", "plain")],
        {("cells", "plain"): {"milliseconds": 12.34, "megabytes": 5.62}},
    )
    assert [line["net"] for line in summary] == ["radial", "plain"]
    assert deciding_score(summary) == "angles_mean"
    table = format_tables(summary)
    assert table.count("**") == 2
    assert "**0.600 ± 0.000**" in table
    assert "| 1,234 | 12.3 | 5.6 |" in table


@pytest.mark.parametrize("panels", [1, 4])
def test_picture_holds_every_data_set(panels, tmp_path):
    scores = {"upright": (0.9, 0.8, 0.9), "angles_mean": (0.5, 0.6, 0.5), "angles_worst": (0.4, 0.4, 0.4)}
    names = [f"data {i}" for i in range(panels)]
    rows = [row for name in names for row in as_score_rows(scores, data=name)]
    draw_study(summarize(rows, [(name, "plain", "none") for name in names], {}), tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000


def test_a_row_says_how_it_was_trained():
    scores = {
        "validation": (0.8, 0.8, 0.8),
        "still_improving": (0.01, 0.03, None),
        "train_seconds": (1200.0, 1300.0, 1400.0),
    }
    rows = as_score_rows({**scores, "upright": (0.9, 0.9, 0.9)}, epochs=1500)
    cell = ("cells", "plain", "none")
    table = format_tables(summarize(rows, [cell], {}, {cell})).splitlines()
    found = dict(zip(table[2].split(" | "), table[4].split(" | ")))
    assert found["learning rate"] == "0.1, at edge"
    assert (found["epochs"], found["train, s"], found["still improving"]) == ("1,500", "1,300", "+0.020")


def test_still_improving_compares_the_last_tenth_of_the_validations_with_the_tenth_before():
    scores = [0.1] * 16 + [0.5, 0.6, 0.7, 0.8]
    history = [row for score in scores for row in ({"score": None}, {"score": score})]
    assert still_improving(history) == pytest.approx((0.7 + 0.8) / 2 - (0.5 + 0.6) / 2)
    assert still_improving([{"score": 0.5}]) is None
    assert still_improving([]) is None


def draw_alike(values, seed=0, resamples=4000):
    """Draws means of resampled cases, equal for all reports with as many cases."""
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return [str(i) for i in range(len(values))], values[draws].mean(1)


def test_the_interval_over_images_is_the_paired_bootstrap_of_scipy():
    generator = np.random.default_rng(0)
    difficulty = generator.normal(0, 0.2, 80)
    first, second = (generator.normal(0.8 - 0.1 * k, 0.05, (3, 80)) + difficulty for k in range(2))
    low, high = over_images([draw_alike(seed) for seed in first], [draw_alike(seed) for seed in second])
    difference = (first - second).mean(0)
    options = {"n_resamples": 4000, "method": "percentile", "rng": np.random.default_rng(1)}
    expected = stats.bootstrap((difference,), np.mean, **options).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.05 * (expected.high - expected.low))


def test_runs_on_other_images_have_no_interval_over_them():
    cases, samples = draw_alike(np.arange(9.0))
    others = [*cases[:-1], "another"]
    assert all(math.isnan(bound) for bound in over_images([(cases, samples)], [(others, samples)]))
    assert all(math.isnan(bound) for bound in over_images([(cases, samples)], [None]))


def test_a_reference_is_compared_with_all_other_rows(start, load, config, tmp_path):
    config |= {"reference": ["radial", "none"], "seeds": [3, 5, 9], "runs": [["radial", "none"], ["plain", "none"]]}
    assert start("--seeds", "3", "5") == 0
    folders = {
        net: sorted((tmp_path / "out" / "runs" / "cells" / f"{net}-none").glob("seed*")) for net in ("radial", "plain")
    }
    for net, better in (("radial", 0.1), ("plain", 0.0)):
        for folder in folders[net]:
            cases, samples = draw_alike(np.linspace(0, 1, 9))
            arrays = {"net/cases": cases, "net/dice/upright": samples + better, "net/dice/angles": samples + 2 * better}
            np.savez(folder / "evaluate" / "rotation_samples.npz", **arrays)
    # the stub's scores depend only on the seed
    rows = find_differences(Progress(load()), Run("radial", "none"))
    assert [(row["net"], row["score"], row["seeds"]) for row in rows] == [
        ("plain", "upright", 2),
        ("plain", "angles_mean", 2),
    ]
    assert [row["difference"] for row in rows] == [0, 0]
    assert [row["half_width"] for row in rows] == [0, 0]
    bounds = [row[key] for row in rows for key in ("images_low", "images_high")]
    assert bounds == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert start("--table") == 0
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "| radial, none, less | seeds | upright | angles mean |" in table
    line = "| plain, none | 2 | +0.000 [+0.100, +0.100] ± 0.000 | +0.000 [+0.200, +0.200] ± 0.000 |"
    assert line in table
    # without the folders of the runs, the file provides the intervals
    for folder in (*folders["radial"], *folders["plain"]):
        (folder / "evaluate" / "rotation_samples.npz").unlink()
    assert start("--table") == 0
    assert line in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert len(read_rows(tmp_path / "out" / "differences.csv")) == 2
    assert format_differences([], Run("radial", "none")) == {}
