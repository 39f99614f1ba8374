"""Intervals, tests and worst cases of a report, compared with theory and scipy."""

import numpy as np
import pytest
import torch
from monai.handlers import IgniteMetricHandler, MeanDice
from scipy import stats

from monai_gmr.metrics import MacroAUCMetric
from monai_gmr.rotation_report.probe import score
from monai_gmr.rotation_report.records import TRUE_CLASS, ViewRecord, ViewRecords
from monai_gmr.rotation_report.statistics import (
    PROBED_CASES,
    NetworkScores,
    family_scores,
    paired_test,
    percentile_interval,
)
from monai_gmr.symmetry import group_views

VIEWS = group_views(2, group="4")


def make_result(table, title="net", metric="dice", **settings):
    """Makes the scores of a network with given Dice for each case in each view."""
    records = ViewRecords(None, {})
    for case, row in enumerate(table):
        for view, value in zip(VIEWS, row):
            records.add(
                ViewRecord(view.name, [f"case {case}"], np.array([0.1]), 1.0, 1.0, {metric: [np.array([[value]])]})
            )
    return NetworkScores(title, records, records.cases, VIEWS, {metric: MeanDice()}, **settings)


def test_scores_are_means_over_cases_and_the_worst_view_is_named():
    table = np.random.default_rng(0).uniform(size=(7, 4))
    result = make_result(table)
    assert result.scores("dice") == pytest.approx(table.mean(0).tolist())
    group = next(row for row in result.summary() if row["family"] == "group" and row["metric"] == "dice")
    assert group["mean"] == pytest.approx(table.mean())
    assert group["worst"] == pytest.approx(table.mean(0).min())
    assert group["worst_view"] == VIEWS[table.mean(0).argmin()].name
    assert group["spread"] == pytest.approx(np.ptp(table.mean(0)))


def test_a_case_without_a_score_does_not_count():
    table = np.array([[0.5, 0.5, 0.5, 0.5], [np.nan] * 4, [1.0, 1.0, 1.0, 1.0]])
    assert make_result(table).scores("dice") == pytest.approx([0.75] * 4)


def test_cases_without_a_score_have_none_together():
    """Where MONAI's mean over all of them is 0; however many come before those that have one."""
    empty = make_result(np.full((3, 4), np.nan))
    assert np.isnan(empty.scores("dice")).all()
    assert all(np.isnan(row["mean"]) and not row["worst_view"] for row in empty.summary() if row["metric"] == "dice")
    late = make_result(np.concatenate([np.full((PROBED_CASES, 4), np.nan), np.full((2, 4), 0.5)]))
    assert late.scores("dice") == pytest.approx([0.5] * 4)
    assert late.table("dice") is not None


def test_intervals_are_those_of_theory():
    """The bootstrapped interval of a mean is close to mean -+ 1.96 standard errors."""
    values = np.random.default_rng(0).normal(0.7, 0.1, 200)
    result = make_result(np.repeat(values[:, None], 4, 1), num_resamples=4000)
    row = result.summary()[0]
    error = values.std() / 200**0.5
    assert row["interval_low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert row["interval_high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


@pytest.mark.parametrize("cases", [1, 6, 40])
def test_two_networks_are_compared_case_by_case(cases):
    generator = np.random.default_rng(cases)
    first = generator.uniform(size=(cases, 4))
    second = first - 0.02 + generator.normal(0, 0.01, size=(cases, 4))
    rows = make_result(first).differences(make_result(second, "other"))
    row = next(row for row in rows if row["family"] == "group")
    assert row["difference"] == pytest.approx((first - second).mean())
    if cases == 1:
        assert np.isnan(row["p"])
        assert np.isnan(row["interval_low"])
        return
    assert row["interval_low"] <= row["difference"] <= row["interval_high"]
    # all differences have one sign: the smallest possible p-value for this number of cases
    assert row["p"] == pytest.approx(2 / 2**cases if cases < 10 else 2 / 1001)


def test_samples_of_two_networks_are_of_the_same_cases():
    """The difference of the samples has the interval of the paired comparison."""
    generator = np.random.default_rng(1)
    first = generator.uniform(size=(30, 4))
    second = first - 0.02 + generator.normal(0, 0.01, size=(30, 4))
    one, other = make_result(first), make_result(second, "other")
    for row in one.differences(other):
        key = f"{row['metric']}/{row['family']}"
        interval = percentile_interval(one.samples()[key] - other.samples()[key])
        assert interval == pytest.approx((row["interval_low"], row["interval_high"]), abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_the_paired_test_agrees_with_student(shift):
    differences = np.random.default_rng(3).normal(shift, 1, 60)
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert paired_test(differences, np.zeros(60), 20000, 0) == pytest.approx(expected, abs=0.02)


def test_of_few_cases_all_exchanges_of_signs_count():
    assert paired_test(np.arange(5.0), np.arange(5.0) - 1, 1000, seed=0) == 2 / 2**5


def test_equal_networks_do_not_differ():
    assert paired_test(np.arange(5.0), np.arange(5.0), 1000, 0) == 1


def test_only_common_cases_and_views_are_compared():
    table = np.random.default_rng(0).uniform(size=(5, 4))
    first, second = make_result(table), make_result(table[:3] - 0.1)
    assert {row["cases"] for row in first.differences(second)} == {3}
    assert all(row["difference"] == pytest.approx(0.1) for row in first.differences(second))


def test_worst_cases_come_in_order_each_in_its_worst_view():
    table = np.full((5, 4), 0.9)
    table[3, 2], table[1, 1], table[1, 3] = 0.2, 0.4, 0.5
    worst = make_result(table).worst("dice", 2)
    assert [(w.case, w.view) for w in worst] == [("case 3", VIEWS[2].name), ("case 1", VIEWS[1].name)]
    assert [w.value for w in worst] == pytest.approx([0.2, 0.4])
    assert [w.upright for w in worst] == pytest.approx([0.9, 0.9])
    distances = make_result(table, greater_is_better=False).worst("dice", 1)
    assert distances[0].value == pytest.approx(0.9)


def make_classifier(cases=30, seed=0):
    generator = np.random.default_rng(seed)
    records = ViewRecords(None, {})
    labels = generator.integers(2, size=cases)
    for case, label in enumerate(labels):
        for view in VIEWS:
            chance = float(np.clip(0.5 + 0.2 * (label - 0.5) + generator.normal(0, 0.2), 0.01, 0.99))
            truth = np.array([chance if label else 1 - chance])
            values = {"auc": [np.array([[1 - chance, chance]]), np.eye(2)[[label]]], TRUE_CLASS: [truth]}
            records.add(ViewRecord(view.name, [f"case {case}"], np.zeros(1), 1.0, 1.0, values))
    return (
        NetworkScores(
            "net",
            records,
            records.cases,
            VIEWS,
            {"auc": IgniteMetricHandler(metric_fn=MacroAUCMetric(), save_details=False)},
            num_resamples=400,
        ),
        records,
        labels,
    )


def test_auc_is_that_of_all_cases_and_its_interval_is_bootstrapped():
    result, records, labels = make_classifier()
    assert result.table("auc") is None
    chances = records.values("auc", "upright", [f"case {case}" for case in range(30)])[0][:, 1]
    ones, zeros = (chances[labels == k] for k in (1, 0))
    expected = stats.mannwhitneyu(ones, zeros).statistic / len(ones) / len(zeros)
    row = result.summary()[0]
    assert row["mean"] == pytest.approx(expected)
    # Hanley and McNeil's standard error
    q1, q2 = expected / (2 - expected), 2 * expected**2 / (1 + expected)
    spread = expected * (1 - expected) + (len(ones) - 1) * (q1 - expected**2) + (len(zeros) - 1) * (q2 - expected**2)
    error = (spread / len(ones) / len(zeros)) ** 0.5
    assert row["interval_high"] - row["interval_low"] == pytest.approx(2 * 1.96 * error, rel=0.4)
    assert result.worst("auc", 1)[0].metric == TRUE_CLASS


def test_two_classifiers_are_compared_by_the_bootstrap_of_their_difference():
    first, second = make_classifier(seed=0)[0], make_classifier(seed=0)[0]
    rows = first.differences(second)
    assert all(row["difference"] == 0 and row["p"] == 1 for row in rows)
    # other cases under the same names have other labels; the difference has the sign of the scores
    other = make_classifier(seed=5)[0]
    row = next(row for row in first.differences(other) if row["family"] == "upright")
    assert row["difference"] == pytest.approx(first.scores("auc")[0] - other.scores("auc")[0])


def test_scores_of_several_classes_are_monais():
    values = torch.rand(6, 3)
    handler = MeanDice()
    assert score(handler, [values.numpy()]) == pytest.approx(values.mean().item())


def test_small_helpers():
    assert percentile_interval(np.arange(1001.0)) == pytest.approx((25, 975))
    assert np.isnan(percentile_interval(np.array([1.0]))).all()
    assert family_scores(np.array([[1.0, 3.0, np.nan]]), [0, 1, 2]) == 2
    assert np.isnan(family_scores(np.array([[np.nan, np.nan]]), [0, 1])).all()


def test_records_survive_a_line_cut_short(tmp_path):
    path = tmp_path / "net.jsonl"
    records = ViewRecords(path, {"network": "a"})
    nothing = {"dice": [np.array([[np.nan], [1.0]], np.float32)], "auc": [np.eye(2) > 0, np.eye(2)]}
    for view in VIEWS:
        records.add(ViewRecord(view.name, ["case 0", "case 1"], np.array([0.5, np.inf]), 1.0, 48.0, nothing))
    path.write_text(path.read_text()[:-50])
    again = ViewRecords(path, {"network": "a"})
    assert len(again) == 6
    assert not again.has("case 0", VIEWS[3].name)
    again.add(ViewRecord(VIEWS[3].name, ["case 0"], np.array([0.25]), 1.0, 1.0, nothing))
    whole = ViewRecords(path, {"network": "a"})
    assert len(whole) == 7
    assert whole.cases == ["case 0", "case 1"]
    assert whole.views == [view.name for view in VIEWS]
    for name, parts in nothing.items():
        for part, stored in zip(parts, whole.values(name, "upright", ["case 1", "case 0"])):
            assert stored.dtype == part.dtype
            assert np.array_equal(stored, part[::-1], equal_nan=part.dtype.kind == "f")
    errors, seconds, passes = whole.columns("upright", ["case 0", "case 1"])
    assert (errors.tolist(), seconds.tolist(), passes.tolist()) == ([0.5, np.inf], [1.0, 1.0], [48.0, 48.0])
    assert ViewRecords(path, {"network": "b"}).replaced
