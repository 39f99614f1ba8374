"""Cases with pictures are not run a second time if their measured views are few and small; the page is the same if they are."""

import re

import pytest
from monai.data import Dataset
from small_reports import UpperHalf, half, make_evaluator, make_report

from monai_gmr.rotation_report import shown_cases
from monai_gmr.rotation_report.page import MOST_CASES


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Function that makes a report with a page; returns the passes of the network beyond one for each view of a case, and the page."""
    # which take most of a small report's time
    handler = "monai_gmr.rotation_report.handler"
    monkeypatch.setattr(f"{handler}.draw_rotation_table", lambda runs, metric, path, *_: path.write_bytes(b"picture"))
    monkeypatch.setattr(f"{handler}.draw_worst_cases", lambda *_: None)

    def report(name, count=1, network=None, batch_size=1, **settings):
        network, passes = network or UpperHalf(), []
        network.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
        cases = [{"image": half() + 0.1 * number, "label": half()} for number in range(count)]
        evaluator = make_evaluator(network, dataset=Dataset(cases), batch_size=batch_size)
        made = make_report(evaluator, tmp_path / name, worst_cases=1, **settings)
        made.run()
        page = (tmp_path / name / "report.html").read_text(encoding="utf-8")
        return sum(passes) - count * len(made.views), page

    return report


@pytest.mark.parametrize(("count", "kept"), [(MOST_CASES, True), (MOST_CASES + 1, False)])
def test_cases_of_a_small_report_are_run_once(run, count, kept):
    again, _ = run("small", count)
    assert (again == 0) is kept


def test_a_page_of_kept_views_is_that_of_views_that_are_run_again(run, monkeypatch):
    again, page = run("kept")
    assert again == 0
    monkeypatch.setattr(shown_cases, "LARGEST_KEPT", 10_000)
    again, other = run("again")
    assert again > 0
    pictures, others = (re.findall(r"data:image/[^\"')]+", text) for text in (page, other))
    assert len(pictures) > 10
    assert pictures == others


def test_cases_of_a_batch_are_run_again(run):
    again, _ = run("batch", 2, batch_size=2)
    assert again > 0


def test_a_network_that_works_in_place_is_drawn_on_its_images(run):
    class InPlace(UpperHalf):
        def forward(self, x):
            output = super().forward(x)
            x.zero_()
            return output

    again, page = run("kept", network=InPlace())
    assert again == 0
    assert page.count("data:image/webp") > 2


def test_a_case_that_cannot_be_shown_is_measured(run, monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise RuntimeError("no picture")

    monkeypatch.setattr("monai_gmr.rotation_report.probe.ViewProbe._shown", fail)
    run("failing")
    assert "case 0 cannot be drawn: RuntimeError: no picture" in capsys.readouterr().out
    assert (tmp_path / "failing" / "rotation_table.csv").is_file()


def test_a_resumed_report_runs_the_cases_that_it_shows(run):
    run("twice")
    again, page = run("twice")
    # no view is measured: the upright one is checked, and those of the page are run
    assert again < 1
    assert page.count("data:image/webp") > 10
