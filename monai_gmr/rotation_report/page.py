"""The report's page: one HTML file with its pictures, style and script, which loads nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monai_gmr.files import write_text
from monai_gmr.rotation_report.page_curve import PAGE_COLOURS, draw_curve, sign_of
from monai_gmr.rotation_report.page_pictures import CasePictures
from monai_gmr.rotation_report.statistics import (
    CHANGED_VOXELS,
    ERROR,
    FAMILY_WORDS,
    NetworkScores,
    WorstCase,
    format_cell,
)
from monai_gmr.rotation_report.sweeps import Sweep, say_view
from monai_gmr.rotation_report.table_picture import find_limits
from monai_gmr.rotation_report.worst_cases_picture import CLASS_COLOURS, ERROR_COLOURS, ERRORS

TEMPLATES = Path(__file__).with_name("templates")
# cases with pictures in the page: the first case, and the worst ones of every network
MOST_CASES = 4


class PageCase(NamedTuple):
    """A case whose pictures are in the page."""

    name: str
    pictures: CasePictures


def choose_cases(names: Sequence[str], worst: Mapping[str, Sequence[WorstCase]]) -> list[str]:
    """Chooses the cases with pictures in the page: the first case and the worst ones of every network, in turn, ``MOST_CASES`` at most;
    none if no worst cases are requested.

    Example:
        >>> bad = WorstCase("net", "b", "90 degrees", "dice", 0.5, 0.9)
        >>> choose_cases(["a", "b", "c"], {"net": [bad, bad._replace(case="a")]})
        ['a', 'b']
    """
    ranked = [each.case for rank in range(max(map(len, worst.values()), default=0)) for each in _nth(worst, rank)]
    return list(dict.fromkeys([*names[:1], *ranked]))[:MOST_CASES] if ranked else []


def _nth(worst: Mapping[str, Sequence[WorstCase]], rank: int) -> list[WorstCase]:
    return [cases[rank] for cases in worst.values() if len(cases) > rank]


def _texts(values: Sequence[float]) -> list[str]:
    return [format_cell(float(value)) for value in values]


class _Scores:
    """Scores of the networks at the steps of the sweeps."""

    def __init__(self, results: Sequence[NetworkScores], key: str, sweeps: Sequence[Sweep]) -> None:
        self.results, self.key, self.sweeps = results, key, sweeps
        self.mean = {result.title: result.scores(key) for result in results}
        self.single = {result.title: result.case_scores(key) for result in results}
        self.places = {result.title: {view.name: i for i, view in enumerate(result.views)} for result in results}

    def means(self, result: NetworkScores, sweep: Sweep) -> list[float]:
        """Returns the metric over all cases at each step; NaN for steps that were not measured."""
        places = [self.places[result.title].get(step.view.name) for step in sweep.steps]
        # the error of the upright view is 0 by definition
        return [math.nan if place is None else float(self.mean[result.title][place]) for place in places]

    def of_case(self, result: NetworkScores, case: str, sweep: Sweep) -> list[float]:
        """Returns the case's own score at each step."""
        _, table = self.single[result.title]
        if case not in result.cases or not self.single[result.title][0]:
            return [math.nan] * len(sweep.steps)
        row = table[result.cases.index(case)]
        places = [self.places[result.title].get(step.view.name) for step in sweep.steps]
        return [math.nan if place is None else float(row[place]) for place in places]

    def case_metric(self) -> str:
        """Returns the name of the score of single cases, in words."""
        names = [name for name, _ in self.single.values() if name]
        return (names[0] if names else self.key).replace("_", " ")


def _say_score(metric: str) -> str:
    return metric.replace("_", " ")


def _case_content(case: PageCase, results: Sequence[NetworkScores], scores: _Scores) -> dict[str, Any]:
    """Collects what the script shows of a case: pictures and scores of each sweep and step."""
    content = []
    for number, sweep in enumerate(scores.sweeps):
        steps = case.pictures.steps[number]
        values = [_texts(scores.of_case(result, case.name, sweep)) for result in results]
        content.append(
            [
                {
                    **{name: step[name] for name in ("image", "label") if name in step},
                    "networks": [
                        {**step["networks"].get(result.title, {}), "score": values[place][index]}
                        for place, result in enumerate(results)
                    ],
                }
                for index, step in enumerate(steps)
            ]
        )
    return {"name": case.name, "sweeps": content}


def _curves(cases: Sequence[PageCase], results: Sequence[NetworkScores], scores: _Scores) -> list[list[dict[str, Any]]]:
    """Draws the curve of every sweep with the points of every case, ``[sweep][case]``."""
    same = scores.case_metric() == _say_score(scores.key)
    shown = same and any(len(result.cases) > 1 for result in results)
    lines = [{result.title: scores.means(result, sweep) for result in results} for sweep in scores.sweeps]
    points = [
        [
            {result.title: scores.of_case(result, case.name, sweep) for result in results} if shown else {}
            for case in cases
        ]
        for sweep in scores.sweeps
    ]
    everything = [value for each in lines for line in each.values() for value in line]
    everything += [value for each in points for case in each for line in case.values() for value in line]
    limits = find_limits([value for value in everything if math.isfinite(value)])
    curves = []
    for sweep, means, of_cases in zip(scores.sweeps, lines, points):
        drawn: list[dict[str, Any]] = []
        for single in of_cases:
            if drawn and not shown:
                drawn.append(drawn[0])
                continue
            curve = draw_curve(sweep, scores.key, means, single, limits)
            drawn.append({"address": curve.address, "x": curve.x, "y": [curve.y[result.title] for result in results]})
        curves.append(drawn)
    return curves


def _worst_content(
    worst: Mapping[str, Sequence[WorstCase]],
    cases: Sequence[PageCase],
    sweeps: Sequence[Sweep],
    results: Sequence[NetworkScores],
) -> list[dict[str, Any]]:
    """Lists the worst cases, which a click shows: names, scores, and indices of case, sweep and step."""
    order = {case.name: place for place, case in enumerate(cases)}
    places = {step.view.name: (s, k) for s, sweep in enumerate(sweeps) for k, step in enumerate(sweep.steps) if k}
    titles = [result.title for result in results]
    content = []
    for title, ranked in worst.items():
        for each in ranked:
            if each.case not in order:
                continue
            sweep, step = places.get(each.view, (0, 0))
            content.append(
                {
                    "network": title,
                    "place": titles.index(title),
                    "case": each.case,
                    "view": sweeps[sweep].steps[step].text,
                    "metric": _say_score(each.metric),
                    "value": format_cell(float(each.value)),
                    "upright": "" if each.upright is None else format_cell(float(each.upright)),
                    "go": f"{order[each.case]},{sweep},{step}",
                }
            )
    return content


def _cell(value: Any, text: str | None = None) -> dict[str, Any]:
    """Makes a cell of a table: its text, and the number by which it is sorted, if it has one."""
    number = isinstance(value, (int, float, np.number)) and math.isfinite(value)
    shown = format_cell(float(value) if isinstance(value, np.floating) else value) if text is None else text
    return {"text": shown, "number": float(value) if number else None}


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row["interval_low"], row["interval_high"]
    return f"{format_cell(float(low))} to {format_cell(float(high))}" if math.isfinite(low) else ""


def _score_table(summary: Sequence[Mapping[str, Any]], views: Mapping[str, str]) -> dict[str, Any]:
    columns = ["network", "metric", "views", "number", "mean", "95 % interval", "worst", "worst view", "spread"]
    rows = [
        [
            _cell(row["network"]),
            _cell(_say_score(row["metric"])),
            _cell(row["family"]),
            _cell(row["views"]),
            _cell(row["mean"]),
            _cell(row["interval_low"], _interval(row)),
            _cell(row["worst"]),
            _cell(views.get(row["worst_view"], row["worst_view"])),
            _cell(row["spread"]),
        ]
        for row in summary
    ]
    return {"columns": columns, "rows": rows}


def _difference_table(paired: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = ["difference", "metric", "views", "cases", "mean", "95 % interval", "p"]
    rows = [
        [
            _cell(f"{row['first']} less {row['second']}"),
            _cell(_say_score(row["metric"])),
            _cell(row["family"]),
            _cell(row["cases"]),
            _cell(row["difference"]),
            _cell(row["interval_low"], _interval(row)),
            _cell(row["p"]),
        ]
        for row in paired
    ]
    return {"columns": columns, "rows": rows}


def _network_content(
    results: Sequence[NetworkScores],
    key: str,
    summary: Sequence[Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Collects the summary of each network at the top of the page: name, sign, colour and key numbers."""
    rows = {(row["network"], row["metric"], row["family"]): row for row in summary}
    content = []
    for place, result in enumerate(results):
        scores = np.array(result.scores(key), float)
        rotated = [i for i, view in enumerate(result.views) if view.shift is None and i > 0]
        facts = []
        if rotated and np.isfinite(scores[rotated]).any():
            find = np.nanargmin if result.is_greater_better(key) else np.nanargmax
            worst = rotated[int(find(scores[rotated]))]
            facts += [("upright", format_cell(float(scores[0])))] if key != ERROR else []
            facts.append(
                (f"mean of {len(rotated)} rotated or mirrored views", format_cell(float(np.nanmean(scores[rotated]))))
            )
            facts.append((f"worst, {say_view(result.views[worst])}", format_cell(float(scores[worst]))))
        error = next(
            (rows[result.title, ERROR, each] for each in ("group", "turns") if (result.title, ERROR, each) in rows),
            None,
        )
        if error is not None and key != ERROR:
            facts.append((f"equivariance error, worst of {error['family']}", format_cell(float(error["worst"]))))
        if CHANGED_VOXELS in result.metrics and rotated:
            changed = np.array(result.scores(CHANGED_VOXELS), float)[rotated]
            facts.append(("share of voxels that change class, most", format_cell(float(np.nanmax(changed)))))
        seconds = costs.get(result.title, {}).get("seconds_per_case", math.nan)
        facts.append(("seconds a view", f"{seconds:.2g}" if math.isfinite(seconds) else ""))
        content.append({"name": result.title, "sign": sign_of(place), "facts": [fact for fact in facts if fact[1]]})
    return content


def _hash(text: str) -> str:
    """Computes the hash by which a page's policy allows one script or style and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def write_page(
    path: Path,
    results: Sequence[NetworkScores],
    key: str,
    *,
    sweeps: Sequence[Sweep],
    cases: Sequence[PageCase],
    worst: Mapping[str, Sequence[WorstCase]],
    summary: Sequence[Mapping[str, Any]],
    paired: Sequence[Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, float]],
    seen: str,
    failures: Mapping[str, str],
    overview: Path | None,
    own_labels: bool = False,
    class_names: Mapping[int, str] | None = None,
) -> None:
    """Writes the page: scores of each network, pictures of ``cases`` with a slider over each of the ``sweeps``, the worst cases, and
    sortable tables.

    ``results`` has the measurements, ``key`` is the metric of the curves; ``summary``, ``paired``, ``costs`` and ``seen`` are the contents
    of the report's other files; ``overview`` is the picture of the table. ``own_labels``: whether networks were compared with their own
    upright answers. ``class_names`` has names for the numbers of classes. All names are escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = ((TEMPLATES / f"report.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    style += "".join(f".sign{i}, .point{i} {{ color: {colour}; }}\n" for i, colour in enumerate(PAGE_COLOURS))
    scores = _Scores(results, key, sweeps)
    names = class_names or {}
    numbers = sorted({number for case in cases for number in case.pictures.classes})
    data = {
        "networks": [result.title for result in results],
        "metric": scores.case_metric(),
        "sweeps": [
            {
                "title": sweep.title,
                "circle": sweep.is_circle,
                "steps": [{"label": step.label, "text": step.text} for step in sweep.steps],
                "means": [_texts(scores.means(result, sweep)) for result in results],
            }
            for sweep in sweeps
        ],
        "cases": [_case_content(case, results, scores) for case in cases],
        "curves": _curves(cases, results, scores) if cases else [],
        "classes": {str(number): name for number, name in names.items()},
        "ownLabels": own_labels,
    }
    shown = [step for case in cases for steps in case.pictures.steps for step in steps]
    words = {view.name: say_view(view) for result in results for view in result.views}
    measured = list(dict.fromkeys(row["family"] for row in summary))
    total = len(dict.fromkeys(case for result in results for case in result.cases))
    text = environment.get_template("report.html.jinja").render(
        data=data,
        script=Markup(script),
        style=Markup(style),
        script_hash=_hash(script),
        style_hash=_hash(style),
        networks=_network_content(results, key, summary, costs),
        metric=_say_score(key),
        total_cases=total,
        total_views=max((len(result.views) for result in results), default=0),
        seen=seen,
        own_labels=own_labels,
        greater_is_better=all(result.is_greater_better(key) for result in results),
        worst=_worst_content(worst, cases, sweeps, results),
        has_maps=any("difference" in each for step in shown for each in step["networks"].values()),
        has_label_maps=any(isinstance(step.get("label"), str) for step in shown),
        is_volume=any(sweep.axis is not None for sweep in sweeps),
        legend=[
            {
                "colour": CLASS_COLOURS[(number - 1) % len(CLASS_COLOURS)],
                "name": f"{number} {names.get(number, '')}".strip(),
            }
            for number in numbers
        ],
        error_legend=[{"colour": colour, "name": name} for name, colour in zip(ERRORS, ERROR_COLOURS)],
        scores=_score_table(summary, words),
        differences=_difference_table(paired),
        families=[(family, FAMILY_WORDS[family]) for family in measured if family in FAMILY_WORDS],
        failures=failures,
        overview=None if overview is None else _png(overview),
    )
    write_text(text, path)


def _png(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
