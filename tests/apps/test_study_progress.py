"""Tests of a study's progress: widened learning rates, epochs and rates from other runs, and running a part of a study."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_gmr.apps.study_progress import beyond, read_rows

LONGER = {"augmentation": "rotation", "epochs": {"times": 3}}
SAME_SECONDS = {"augmentation": "rotation", "epochs": {"seconds_of": ["radial", "none"], "pace_of": ["plain", "none"]}}


@given(st.lists(st.floats(1e-6, 10), min_size=2, unique=True), st.booleans())
def test_the_next_rate_lies_beyond_the_edge_by_a_factor_of_at_most_ten_thirds(rates, upper):
    best = max(rates) if upper else min(rates)
    following = beyond(rates, best)
    assert 1 < (following / best if upper else best / following) < 3.4
    # one or three times a power of ten
    assert f"{following:e}".startswith(("1.000000e", "3.000000e"))


@given(st.lists(st.floats(1e-6, 10), min_size=3, unique=True))
def test_a_rate_between_others_needs_no_further_one(rates):
    assert beyond(rates, sorted(rates)[1]) is None


@pytest.mark.parametrize(
    ("given", "widenings", "tried", "at_edge"),
    [
        # the stub has its best score at 0.01
        ([0.001, 0.003, 0.03], 2, [], False),
        ([0.001, 0.003, 0.01], 2, [0.03], False),
        ([0.1, 1.0], 5, [0.03, 0.01, 0.003], False),
        ([0.1, 1.0], 2, [0.03, 0.01], True),
        ([0.1, 1.0], 0, [], True),
    ],
)
def test_rates_are_widened_while_the_best_is_at_an_edge(given, widenings, tried, at_edge, start, config, tmp_path):
    config |= {"tuning": {"learning_rates": given, "widenings": widenings}, "seeds": [3], "runs": [["plain", "none"]]}
    assert start() == 0
    rates = [row["learning_rate"] for row in read_rows(tmp_path / "out" / "tuning.csv")]
    assert rates == given + tried
    (row,) = read_rows(tmp_path / "out" / "runs.csv")
    assert row["learning_rate"] == min(rates, key=lambda rate: abs(rate - 0.01))
    (line,) = read_rows(tmp_path / "out" / "table.csv")
    assert line["learning_rate_at_edge"] == str(at_edge)
    assert (", at edge |" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")) == at_edge


def test_a_rate_whose_training_is_not_finite_is_the_worst(start, config, bundle, tmp_path):
    file = bundle / "configs" / "train.yaml"
    # an error with the words of a training that stops at a non-finite loss
    diverges = "- \"$int('give a smaller --learning_rate') if @learning_rate > 0.02 else None\""
    file.write_text(file.read_text().replace("- $1 / (@conv != 'broken')", diverges))
    config |= {"tuning": {"learning_rates": [0.001, 0.01, 0.1]}, "seeds": [3], "runs": [["plain", "none"]]}
    assert start() == 0
    scores = {row["learning_rate"]: row["validation"] for row in read_rows(tmp_path / "out" / "tuning.csv")}
    assert set(scores) == {0.001, 0.01, 0.1}
    assert scores[0.1] != scores[0.1]
    assert [row["learning_rate"] for row in read_rows(tmp_path / "out" / "runs.csv")] == [0.01]


def test_tuning_takes_half_of_the_epochs_of_each_row(start, config, tmp_path):
    config |= {"tuning": {"learning_rates": [0.001, 0.03]}, "augmentations": {"none": {}, "longer": LONGER}}
    config |= {"seeds": [3], "runs": [["plain", "none"], ["plain", "longer"]]}
    assert start() == 0
    rows = read_rows(tmp_path / "out" / "tuning.csv")
    # half of the stub's five epochs, and of three times five
    assert {(row["augmentation"], row["epochs"]) for row in rows} == {("none", 3), ("longer", 8)}
    rows = read_rows(tmp_path / "out" / "runs.csv")
    assert [(row["augmentation"], row["epochs"], row["train_seconds"]) for row in rows] == [
        ("none", 5, 50.0),
        ("longer", 15, 150.0),
    ]


def test_equal_seconds_are_those_of_the_first_seed_of_the_other_net(start, config, tmp_path, capsys):
    config["augmentations"] = {"none": {}, "longer": LONGER, "same seconds": SAME_SECONDS}
    config["runs"] = [["radial", "none"], ["plain", "none"], ["plain", "same seconds"]]
    assert start("--only", "plain, same seconds") == 1
    assert "it needs seed 3 of the runs that its epochs follow from first" in capsys.readouterr().err
    assert start() == 0
    rows = [row for row in read_rows(tmp_path / "out" / "runs.csv") if row["augmentation"] == "same seconds"]
    # five epochs of 24 seconds, at ten seconds per epoch
    assert [(row["seed"], row["epochs"], row["train_seconds"]) for row in rows] == [(3, 12, 120.0), (5, 12, 120.0)]
    assert start("--list") == 0
    assert "to do" not in capsys.readouterr().out


def test_equal_seconds_go_by_those_of_the_processor_where_there_are_any(start, config, bundle, tmp_path):
    file = bundle / "configs" / "train.yaml"
    # wall-clock seconds, changed by other work on the machine
    busy = "{'epoch': i + 1, 'processor_seconds': 24.0 if @conv == 'gmr' else 10.0, 'seconds': 7.0 if @conv == 'gmr' else 90.0,"
    file.write_text(file.read_text().replace("{'epoch': i + 1, 'seconds': 24.0 if @conv == 'gmr' else 10.0,", busy))
    config["augmentations"] = {"none": {}, "same seconds": SAME_SECONDS}
    config |= {"seeds": [3], "runs": [["radial", "none"], ["plain", "none"], ["plain", "same seconds"]]}
    assert start() == 0
    rows = read_rows(tmp_path / "out" / "runs.csv")
    assert [row["epochs"] for row in rows] == [5, 5, 12]
    assert [row["train_seconds"] for row in rows] == [35.0, 450.0, 1080.0]
    assert [row["train_seconds"] for row in read_rows(tmp_path / "out" / "table.csv")] == [120.0, 50.0, 120.0]


def test_a_rate_can_be_that_of_another_row(start, config, processes, tmp_path):
    config["augmentations"] = {"none": {}, "longer": LONGER | {"learning_rate": {"of": ["plain", "none"]}}}
    config |= {"tuning": {"learning_rates": [0.001, 0.003, 0.03]}, "seeds": [3]}
    config["runs"] = [["plain", "none"], ["plain", "longer"]]
    assert start() == 0
    assert {row["learning_rate"] for row in read_rows(tmp_path / "out" / "runs.csv")} == {0.003}
    assert {row["augmentation"] for row in read_rows(tmp_path / "out" / "tuning.csv")} == {"none"}


def test_a_part_of_a_study_runs_and_the_whole_resumes_it(start, config, processes, tmp_path, capsys):
    config["data"]["other cells"] = config["data"]["cells"]
    assert start("--only", "plain, none", "radial, none", "cells", "--seeds", "5") == 0
    rows = read_rows(tmp_path / "out" / "runs.csv")
    assert [(row["data"], row["net"], row["augmentation"], row["seed"]) for row in rows] == [
        ("cells", net, "none", 5) for net in ("plain", "radial")
    ]
    assert processes == ["train", "evaluate"] * 2
    assert start("--list", "--only", "cells", "--seeds", "5") == 0
    listed = capsys.readouterr().out
    assert (listed.count("done "), listed.count("to do ")) == (2, 2)
    # two trainings of five epochs, of ten and 24 seconds each, estimated from the same nets
    assert "2 trainings of 10 epochs remain: 3 min; " in listed
    assert start() == 0
    assert processes == ["train", "evaluate"] * 16


def test_a_data_set_has_more_seeds_than_the_others(start, config, tmp_path, capsys):
    config["data"]["few cells"] = config["data"]["cells"] | {"seeds": [5, 7, 9]}
    config |= {"runs": [["plain", "none"], ["radial", "none"]], "reference": ["radial", "none"]}
    assert start("--seeds", "9") == 0
    assert start() == 0
    rows = read_rows(tmp_path / "out" / "runs.csv")
    seeds = {name: sorted(row["seed"] for row in rows if row["data"] == name) for name in config["data"]}
    assert seeds == {"cells": [3, 3, 5, 5], "few cells": [5, 5, 7, 7, 9, 9]}
    differences = read_rows(tmp_path / "out" / "differences.csv")
    assert {(row["data"], row["seeds"]) for row in differences} == {("cells", 2), ("few cells", 3)}
    capsys.readouterr()
    assert start("--list") == 0
    assert "to do" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--only", "plian, none"), "unknown row or data set 'plian, none': use some of plain, none; "),
        (("--seeds", "4"), "--seeds 4 is not a seed of the study: use some of 3, 5."),
    ],
)
def test_a_part_that_is_none_is_one_sentence(options, sentence, start, capsys, processes):
    assert start(*options) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert processes == []
