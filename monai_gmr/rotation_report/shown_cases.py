"""The cases that a report shows, kept or run again: pictures of the page and of the worst cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from monai.utils import optional_import

from monai_gmr.bundle.case_batches import CaseBatches
from monai_gmr.rotation_report.page import MOST_CASES, PageCase, choose_cases
from monai_gmr.rotation_report.page_pictures import CasePictures, choose_side
from monai_gmr.rotation_report.probe import Shown, ViewProbe
from monai_gmr.rotation_report.statistics import WorstCase
from monai_gmr.rotation_report.sweeps import Sweep, make_sweeps
from monai_gmr.symmetry import View
from monai_gmr.utils import reason

tqdm, _ = optional_import("tqdm", name="tqdm")

# of all kept views of a network, in bytes
LARGEST_KEPT = 2**28


class KeptViews:
    """The views of a network's cases from their measurement, so that a report of few and small cases does not run them again.

    Nothing is kept if the report has more ``cases`` than its page shows, or if their views take more than ``LARGEST_KEPT`` bytes.

    Example:
        >>> upright = View("upright", "upright", None, np.eye(2))
        >>> kept = KeptViews(["a"])
        >>> kept.add("a", lambda: Shown(upright, np.zeros((1, 4, 4)), None, 1, None))
        >>> len(kept.find("a", [upright])), kept.find("b", [upright])
        (1, None)
    """

    def __init__(self, cases: Sequence[str] = ()) -> None:
        self._views: dict[str, dict[str, Shown]] = {case: {} for case in cases if len(cases) <= MOST_CASES}
        self._bytes = 0

    def add(self, case: str, make: Callable[[], Shown]) -> None:
        """Keeps a view of a case, which ``make`` makes; leaves out a case that cannot be shown."""
        if case not in self._views:
            return
        try:
            shown = make()
        except Exception:
            del self._views[case]
            return
        self._bytes += sum(np.asarray(each).nbytes for each in shown[1:] if each is not None)
        if self._bytes > LARGEST_KEPT:
            self._views = {}
        else:
            # a copy: the network may work in place
            self._views[case][shown.view.name] = shown._replace(image=shown.image.copy())

    def find(self, case: str, views: Sequence[View]) -> list[Shown] | None:
        """Returns these views of a case; ``None`` if one is missing."""
        kept = self._views.get(case, {})
        return [kept[view.name] for view in views] if all(view.name in kept for view in views) else None


class ShownNetwork(NamedTuple):
    """A network whose cases are shown: its ``probe`` and ``batches``, which run the views that are not ``kept``, the cases that were
    ``measured``, and the ``worst`` of them, whose views are drawn unless the network ``rotates_answer``."""

    title: str
    probe: ViewProbe
    batches: CaseBatches
    kept: KeptViews
    measured: Sequence[str]
    worst: Sequence[WorstCase]
    rotates_answer: bool


class ShownCases(NamedTuple):
    """The drawn cases: ``sweeps`` and ``cases`` of the page, and the ``worst`` cases with their images, network by network in the order of
    their ranks."""

    sweeps: list[Sweep]
    cases: list[PageCase]
    worst: list[WorstCase]


def run_shown_cases(
    networks: Sequence[ShownNetwork], views: Sequence[View], spacing: Sequence[float] | None, own_labels: bool
) -> ShownCases:
    """Draws the cases of the page, and the worst views, of all networks; ``views`` are the report's, with the upright one first.

    A case that fails is printed and left out.
    """
    names = list(dict.fromkeys(case for network in networks for case in network.measured))
    on_page = choose_cases(names, {network.title: network.worst for network in networks})
    far = {each.view for network in networks for each in network.worst if each.case in on_page}
    sweeps = make_sweeps(views, far, spacing)
    on_sweeps = list({step.view.name: step.view for sweep in sweeps for step in sweep.steps}.values())
    side = choose_side(len(on_page) * sum(len(sweep.steps) for sweep in sweeps))
    pictures = {case: CasePictures(sweeps, side, spacing, own_labels) for case in on_page}
    worst: list[WorstCase] = []
    count = sum(len(set(on_page) & set(network.measured)) for network in networks)
    with tqdm(total=count, desc="Drawing", unit="case", mininterval=0.5, disable=not count) as bar:
        for network in networks:
            ranked = {} if network.rotates_answer else {each.case: each for each in network.worst}
            drawn: dict[str, WorstCase | None] = {}
            with network.probe:
                for case in [name for name in dict.fromkeys([*on_page, *ranked]) if name in network.measured]:
                    needed = [views[0], *(on_sweeps if case in pictures else [])]
                    needed += [view for view in views if case in ranked and view.name == ranked[case].view]
                    drawn[case] = _run_case(network, case, needed, pictures.get(case), ranked.get(case))
                    bar.update(case in on_page)
            # in the order of the ranks: the cases of the page can have another one
            worst += [each for case in ranked if (each := drawn.get(case)) is not None]
    return ShownCases(sweeps, [PageCase(case, each) for case, each in pictures.items() if each.is_drawn], worst)


def _run_case(
    network: ShownNetwork,
    case: str,
    views: Sequence[View],
    pictures: CasePictures | None,
    worst: WorstCase | None,
) -> WorstCase | None:
    """Adds views of a case, kept or run again, to its pictures, if the page shows it; returns its worst view with the image, if that is
    drawn."""
    drawn: WorstCase | None = None

    def show(shown: Shown) -> None:
        nonlocal drawn
        if pictures is not None:
            pictures.add(network.title, shown)
        if worst is not None and shown.view.name == worst.view:
            drawn = worst._replace(image=shown.image, label=shown.label, prediction=shown.prediction)

    views = list({view.name: view for view in views}.values())
    try:
        kept = network.kept.find(case, views)
        for each in kept or ():
            show(each)
        if kept is None:
            network.probe.run(network.batches.one(case), views, show=lambda make: show(make()))
    except Exception as error:
        print(f"{network.title}: {case} cannot be drawn: {reason(error)}")
    return drawn
