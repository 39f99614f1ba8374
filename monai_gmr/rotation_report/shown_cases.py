"""The cases that a report shows, run again: pictures of the page and of the worst cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from monai.utils import optional_import

from monai_gmr.bundle.case_batches import CaseBatches
from monai_gmr.rotation_report.page import PageCase, choose_cases
from monai_gmr.rotation_report.page_pictures import CasePictures, choose_side
from monai_gmr.rotation_report.probe import Shown, ViewProbe
from monai_gmr.rotation_report.statistics import WorstCase
from monai_gmr.rotation_report.sweeps import Sweep, make_sweeps
from monai_gmr.symmetry import View
from monai_gmr.utils import reason

tqdm, _ = optional_import("tqdm", name="tqdm")


class ShownNetwork(NamedTuple):
    """A network that is run again: its ``probe`` and ``batches``, the cases that were ``measured``, and the ``worst`` of them, whose views
    are drawn unless the network ``rotates_answer``."""

    title: str
    probe: ViewProbe
    batches: CaseBatches
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
    """Runs the cases of the page, and the worst views, of all networks; ``views`` are the report's, with the upright one first.

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
    """Runs views of a case and adds them to its pictures, if the page shows it; returns its worst view with the image, if that is drawn."""
    drawn: WorstCase | None = None

    def show(shown: Shown) -> None:
        nonlocal drawn
        if pictures is not None:
            pictures.add(network.title, shown)
        if worst is not None and shown.view.name == worst.view:
            drawn = worst._replace(image=shown.image, label=shown.label, prediction=shown.prediction)

    try:
        network.probe.run(network.batches.one(case), list({view.name: view for view in views}.values()), show=show)
    except Exception as error:
        print(f"{network.title}: {case} cannot be drawn: {reason(error)}")
    return drawn
