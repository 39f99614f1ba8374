"""The rotation report: what the metrics of an evaluator do when its images are turned, of one network or of several."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import CommonKeys, optional_import

from monai_gmr.bundle.case_batches import CaseBatch, CaseBatches, anisotropic_spacing, refuse_failures, usable_image
from monai_gmr.bundle.settings import check_values
from monai_gmr.files import FolderLock, check_folder, write_json, write_rows, write_text
from monai_gmr.handlers.progress import SweepProgress
from monai_gmr.inferers import SymmetryInferer
from monai_gmr.rotation_report.probe import Seen, ViewProbe, keeps_cases, metric_handlers
from monai_gmr.rotation_report.records import ANSWER, TRUE_CLASS, ViewRecord, ViewRecords, read_compared, record_file
from monai_gmr.rotation_report.result import ERROR, SweepResult
from monai_gmr.rotation_report.statistics import (
    check_resamples,
    format_costs,
    format_differences,
    format_markdown,
    format_table,
)
from monai_gmr.rotation_report.table_picture import draw_rotation_table
from monai_gmr.rotation_report.worst_cases_picture import WorstCase, draw_worst_cases
from monai_gmr.symmetry import View, make_views
from monai_gmr.symmetry.views import ViewSpec
from monai_gmr.utils import ConfigurationError, WriteError, can_draw, check_choice, reason

Events, _ = optional_import("ignite.engine", name="Events")

FRAMES = ("turned", "upright")


@dataclass
class _Network:
    """A network of the report: its evaluator and cases, the views that its answers are averaged over, and what was measured."""

    evaluator: Any
    batches: CaseBatches
    average: list[View] = field(default_factory=list)
    records: ViewRecords = field(default_factory=lambda: ViewRecords(None, {}))
    failures: dict[str, str] = field(default_factory=dict)


class RotationReport:
    """Runs evaluators on turned images and tells how their metrics move.

    The evaluator is the bundle's own, of segmentation or classification. Each case is loaded once; image and label are turned
    by one view after the other before the network sees them, all else is as upright. For every view there are the evaluator's
    metrics, and the equivariance error ``||g^-1 f(g x) - f(x)|| / ||f(x)||`` of the raw answer. A case that does not load or
    fails is named and left out, the others are finished. What is measured is on disk at once: after a kill the same call goes on
    where it was.

    Files, in ``output_dir``: ``rotation_table.csv`` (a row for each network, metric and family of views), ``rotation_views.csv``
    (for each view), ``rotation_cases.csv`` (for each view of each case), ``rotation_report.json`` (families, costs, paired tests,
    failures, views), ``rotation_report.md`` (the first metric of all networks, for a README), ``rotation_table.png``,
    ``worst_cases.png``, and ``records``, from which a sweep is resumed.

    Families of views are those of :func:`~monai_gmr.rotation_report.statistics.view_families`. ``spread`` is the largest value
    of a family less its smallest. Intervals are bootstrapped over cases; two networks are compared by a paired permutation test
    over cases (metrics that are means over cases) or by the bootstrap of their difference (others, such as AUC).

    Args:
        evaluator: ``monai.engines.SupervisedEvaluator``, or several, name of the network to evaluator. Their loaders must give the same
            cases.
        output_dir: directory of the files, made if need be.
        views: a set of :func:`~monai_gmr.symmetry.make_views`. The upright image is always in it. Default: all symmetries of the
            grid, and angles every 10 degrees in 2D, every 30 about each axis in 3D.
        spacing: voxel size in millimetres: axes of unlike spacing are not exchanged, turns are round in millimetres. Default:
            turns of the voxel grid.
        average: views over which a network's answers are averaged (:class:`~monai_gmr.inferers.SymmetryInferer`): every network is
            reported with and without. Or a mapping, name of a network to its views.
        views_per_batch: views that are averaged in one pass.
        labels: how label images are turned by angles: "nearest", or "share" (the class with the largest share of a voxel).
        frame: "turned": the turned prediction is judged by the turned label. "upright": it is turned back and judged by the label
            as it is; for postprocessings that invert the preprocessing.
        in_ball: whether segmentations are judged inside the inscribed disc or ball only; what lies outside becomes background.
        order: order of the spline that turns images by angles, 0 to 5.
        prediction: which of several answers of a network is judged, index or key.
        metrics: names of the evaluator's metrics; default: all, the key metric first.
        greater_is_better: whether larger values of the metrics are better.
        name: name of a single evaluator's network.
        compare: other reports to show and test beside this one, name to ``output_dir`` or a file in it.
        cases: the first so many cases only.
        worst_cases: how many cases are drawn for each network, those that fared worst in any view.
        num_resamples: of the bootstrap and the permutation test; a tenth of it for metrics that are no means over cases. 0: none.
        seed: of random views, bootstrap and test.
        resume: whether to go on with what an earlier sweep of the same network and views left in ``output_dir``.

    Raises:
        ConfigurationError: when a setting is out of its range, a metric is not there or there is nothing to compare with.

    Example:
        >>> from monai.data import DataLoader, Dataset
        >>> from monai.engines import SupervisedEvaluator
        >>> from monai.handlers import MeanDice, from_engine
        >>> from monai.transforms import AsDiscreted
        >>> disc = torch.zeros(1, 8, 8); disc[:, 2:6, 2:6] = 1
        >>> evaluator = SupervisedEvaluator(torch.device("cpu"), DataLoader(Dataset([{"image": disc, "label": disc}])),
        ...     torch.nn.Identity(), postprocessing=AsDiscreted(keys="pred", threshold=0.5),
        ...     key_val_metric={"dice": MeanDice(output_transform=from_engine(["pred", "label"]))})
        >>> sweep = RotationReport(evaluator, getfixture("tmp_path"), views="all", worst_cases=0)
        >>> rows = sweep.run()  # doctest: +ELLIPSIS
        <BLANKLINE>
        network ...
        >>> [(row["family"], row["mean"]) for row in rows if row["metric"] == "dice"]
        [('upright', 1.0), ('flips', 1.0), ('group', 1.0), ('turns', 1.0)]
    """

    def __init__(
        self,
        evaluator: Any,
        output_dir: str | Path,
        views: ViewSpec | None = None,
        spacing: Sequence[float] | None = None,
        average: ViewSpec | None = None,
        views_per_batch: int = 1,
        labels: str = "nearest",
        frame: str = "turned",
        in_ball: bool = True,
        order: int = 3,
        prediction: int | str | None = None,
        metrics: Sequence[str] | None = None,
        greater_is_better: bool = True,
        name: str = "this run",
        compare: Mapping[str, str | Path] | None = None,
        cases: int | None = None,
        worst_cases: int = 3,
        num_resamples: int = 1000,
        seed: int = 0,
        resume: bool = True,
    ) -> None:
        check_choice("frame", frame, FRAMES)
        check_choice("labels", labels, ("nearest", "share"))
        check_resamples(num_resamples)
        check_values(views_per_batch=views_per_batch, worst_cases=worst_cases, seed=seed)
        self.output_dir = Path(output_dir)
        self.spacing, self.views_per_batch = spacing, views_per_batch
        self.labels, self.frame, self.in_ball, self.order = labels, frame, in_ball, order
        self.prediction, self.metrics, self.greater_is_better = prediction, metrics, greater_is_better
        self.worst_cases, self.num_resamples, self.seed, self.resume = worst_cases, num_resamples, seed, resume
        # a bundle names its network after its setting conv, which may be a list
        evaluators = dict(evaluator) if isinstance(evaluator, Mapping) else {str(name): evaluator}
        if not evaluators:
            raise ConfigurationError("there is no evaluator: give one, or a mapping of names to evaluators.")
        batches = {title: CaseBatches(one.data_loader, cases) for title, one in evaluators.items()}
        image = usable_image(*next(iter(batches.items())))
        self.spatial_dims = image.ndim - 1
        self.views = self._make_views(views)
        self.networks = self._make_networks(evaluators, batches, average)
        self.compared = read_compared(compare or {}, self.networks)
        found = anisotropic_spacing(image)
        if found and spacing is None:
            sizes = " x ".join(f"{size:g}" for size in found)
            print(
                f"voxels of the first image are {sizes} mm and are turned as if they were cubes: give spacing={found} to "
                "turn in millimetres."
            )

    def _make_views(self, spec: ViewSpec | None) -> list[View]:
        dims = self.spatial_dims
        if spec is None:
            spec = ["all", "angles"]
        views = make_views(spec, dims, self.spacing, self.seed)
        if views[0].family != "upright":
            views = [*make_views("upright", dims), *views]
        names = [view.name for view in views]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigurationError(f"two views are called {twice!r}: give each a name of its own.")
        if len(views) == 1:
            raise ConfigurationError(
                f"views={spec!r} holds the upright image alone: add a group such as 'all', or {{'angles': 30}}."
            )
        return views

    def _make_networks(
        self, evaluators: Mapping[str, Any], batches: Mapping[str, CaseBatches], average: Any
    ) -> dict[str, _Network]:
        averages = (
            average
            if isinstance(average, Mapping) and set(average) <= set(evaluators)
            else dict.fromkeys(evaluators, average)
        )
        networks = {}
        for title, evaluator in evaluators.items():
            networks[title] = _Network(evaluator, batches[title])
            if averages.get(title):
                views = make_views(averages[title], self.spatial_dims, self.spacing, self.seed)
                networks[f"{title}, {len(views)} views"] = _Network(evaluator, batches[title], views)
        files = [record_file("", title) for title in networks]
        twice = next((title for title, file in zip(networks, files) if files.count(file) > 1), None)
        if twice is not None:
            raise ConfigurationError(
                f"{twice!r} and another network have the same letters and digits: give another name."
            )
        return networks

    def run(self) -> list[dict[str, Any]]:
        """Evaluate all views of all cases, write the files and print the table.

        Returns:
            the rows of ``rotation_table.csv``: ``network``, ``metric``, ``family``, ``views``, ``cases``, ``mean``, ``interval_low``,
            ``interval_high``, ``worst``, ``worst_view``, ``spread``.

        Raises:
            ConfigurationError: when no case of any network could be evaluated, the folder is in use by another run, or it cannot be
                written.
        """
        check_folder(self.output_dir, "output_dir")
        with FolderLock(self.output_dir, "output_dir"):
            return self._run()

    def _run(self) -> list[dict[str, Any]]:
        metrics = [self._metric_names(network.evaluator) for network in self.networks.values()]
        if not any(metrics):
            print("the evaluator has no metric: the equivariance error is reported alone.")
        total = sum(len(network.batches.names) for network in self.networks.values()) * len(self.views)
        with SweepProgress(total) as progress:
            for title, network in self.networks.items():
                self._sweep(title, network, progress)
        done = {title: network for title, network in self.networks.items() if self._has_case(network)}
        if not done:
            title, network = next(iter(self.networks.items()))
            case, why = next(iter(network.failures.items()))
            raise ConfigurationError(f"no case could be evaluated; {title}, {case}: {why}")
        rows = self._finish(done)
        for name, why in self.failures.items():
            print(f"{name} is left out: {why}")
        return rows

    @property
    def failures(self) -> dict[str, str]:
        """The cases that were left out, as network and case, and why."""
        return {
            f"{title}: {case}": why
            for title, network in self.networks.items()
            for case, why in network.failures.items()
        }

    def check_failures(self) -> None:
        """After :meth:`run`: raise when a case was left out, so that the process ends with a status other than 0.

        Raises:
            ConfigurationError: one sentence with the number of cases, the first of them, and why.
        """
        total = sum(len(network.batches.names) for network in self.networks.values())
        refuse_failures(self.failures, total, "cases were left out")

    def _has_case(self, network: _Network) -> bool:
        """Whether all views of a case of this sweep were measured."""
        return any(not self._missing(network.records, [name]) for name in network.batches.names)

    def _probe(self, network: _Network) -> ViewProbe:
        inferer = None
        if network.average:
            inferer = SymmetryInferer(
                network.evaluator.inferer,
                views=network.average,
                views_per_batch=self.views_per_batch,
                spacing=self.spacing,
            )
        return ViewProbe(
            network.evaluator,
            inferer,
            self.spacing,
            self.order,
            self.labels,
            self.frame,
            self.in_ball,
            self.prediction,
            self._metric_names(network.evaluator),
        )

    def _header(self, network: _Network, metrics: Sequence[str]) -> dict[str, Any]:
        """What must be equal for records to be of the same thing."""
        digest = hashlib.sha256()
        module = getattr(network.evaluator, "network", None)
        if isinstance(module, torch.nn.Module):
            digest.update(repr(module).encode())
            for key, value in module.state_dict().items():
                digest.update(key.encode())
                if isinstance(value, torch.Tensor):
                    digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        return {
            "network": digest.hexdigest(),
            "average": [view.matrix.round(6).tolist() for view in network.average],
            "metrics": list(metrics),
            "settings": [
                self.spacing and list(self.spacing),
                self.labels,
                self.frame,
                self.in_ball,
                self.order,
                self.prediction,
            ],
        }

    def _metric_names(self, evaluator: Any) -> list[str]:
        there = metric_handlers(evaluator)
        for metric in self.metrics or ():
            if metric not in there:
                raise ConfigurationError(
                    f"the evaluator has no metric {metric!r}: it has {', '.join(there) or 'none'}."
                )
        return list(self.metrics or there)

    def _sweep(self, title: str, network: _Network, progress: SweepProgress) -> None:
        evaluator, batches = network.evaluator, network.batches
        metrics = self._metric_names(evaluator)
        progress.show(title)
        try:
            # handlers that load the checkpoint listen to this
            evaluator.fire_event(Events.STARTED)
        except Exception as error:
            network.failures["the network"] = reason(error)
            progress.step(len(batches.names) * len(self.views))
            return
        path, header = record_file(self.output_dir, title), self._header(network, metrics)
        with self._probe(network) as probe:
            network.records = records = ViewRecords(path, header, self.resume)
            if records.replaced or not self._is_true(records, probe, batches):
                progress.say(f"{title}: earlier records are of another network, data or settings and are replaced.")
                network.records = records = ViewRecords(path, header, resume=False)
            elif len(records):
                progress.say(f"{title}: {len(records)} views of cases are there already, from {path}.")
            names = [name for name in batches.names if self._missing(records, [name])]
            progress.step((len(batches.names) - len(names)) * len(self.views))
            for batch in batches.load(names):
                network.failures.update(batch.failures)
                progress.step(len(batch.failures) * len(self.views))
                failures = self._run_batch(records, probe, batch, metrics, progress) if batch.names else {}
                if len(failures) > 1:
                    # one of them may have failed, and the others with it
                    progress.step(-len(failures) * len(self.views))
                    failures = {}
                    for part in (part for name in batch.names for part in batches.load([name])):
                        failures |= self._run_batch(records, probe, part, metrics, progress)
                network.failures.update(failures)

    def _is_true(self, records: ViewRecords, probe: ViewProbe, batches: CaseBatches) -> bool:
        """Whether a case, measured once more, gives what the records hold of it: its file, the inferer, the postprocessing or the
        metrics may be others. Where no case can be measured nothing speaks against the records."""
        upright = self.views[0]
        for name in batches.names:
            if not records.has(name, upright.name):
                continue
            try:
                again = probe.measure(next(batches.load([name])).batch, upright)
            except Exception:
                continue
            new = [np.array(again.norms), np.array([again.passes])]
            old = [*records.values(ANSWER, upright.name, [name]), records.columns(upright.name, [name])[2]]
            for metric in probe.wanted:
                if keeps_cases(probe.metrics[metric]):
                    new += again.values[metric]
                    old += records.values(metric, upright.name, [name])
            return all(
                a.shape == b.shape and np.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in zip(new, old)
            )
        return True

    def _missing(self, records: ViewRecords, names: Sequence[str]) -> list[View]:
        return [view for view in self.views if not all(records.has(name, view.name) for name in names)]

    def _run_batch(
        self,
        records: ViewRecords,
        probe: ViewProbe,
        batch: CaseBatch,
        metrics: Sequence[str],
        progress: SweepProgress,
    ) -> dict[str, str]:
        """Record the views of a batch that are missing; name of a case to the reason where that cannot be done."""
        missing = self._missing(records, batch.names)
        # the errors of the others are measured from the upright one
        views = missing if missing[0].family == "upright" else [self.views[0], *missing]
        left = {view.name: len(batch.names) for view in missing}
        progress.step((len(self.views) - len(missing)) * len(batch.names))

        def keep(view: View, seen: Seen) -> None:
            values = {ANSWER: [np.array(seen.norms)], **{metric: seen.values[metric] for metric in metrics}}
            if seen.true_class is not None:
                values[TRUE_CLASS] = [np.array(seen.true_class)]
            seconds, passes = seen.seconds / len(batch.names), seen.passes / len(batch.names)
            records.add(ViewRecord(view.name, batch.names, np.array(seen.errors), seconds, passes, values))
            progress.step(left.pop(view.name, 0))

        try:
            probe.run(batch.batch, views, keep)
        except WriteError:
            raise
        except Exception as error:
            progress.step(sum(left.values()))
            labelled = isinstance(batch.batch, Mapping) and CommonKeys.LABEL in batch.batch
            why = reason(error) if labelled or not metrics else f"it has no label ({reason(error)})"
            return dict.fromkeys(batch.names, why)
        return {}

    def _finish(self, networks: dict[str, _Network]) -> list[dict[str, Any]]:
        handlers = {}
        for network in networks.values():
            handlers.update(metric_handlers(network.evaluator))
        runs = {**{title: network.records for title, network in networks.items()}, **self.compared}
        results = {
            title: SweepResult(
                title,
                records,
                self.views,
                handlers,
                self.spacing,
                self.greater_is_better,
                self.num_resamples,
                self.seed,
                # an earlier sweep may have measured more
                networks[title].batches.names if title in networks else None,
            )
            for title, records in runs.items()
        }
        results = {title: result for title, result in results.items() if result.cases}
        key = next((result.metrics[0] for result in results.values() if result.metrics), ERROR)
        paired = [row for first, second in combinations(results.values(), 2) for row in first.against(second)]
        summary = [row for result in results.values() for row in result.summary()]
        views = {title: result.view_rows() for title, result in results.items()}
        costs = {title: result.cost() for title, result in results.items()}
        write_rows([row for rows in views.values() for row in rows], self.output_dir / "rotation_views.csv")
        write_rows(
            [row for result in results.values() for row in result.case_rows()], self.output_dir / "rotation_cases.csv"
        )
        write_rows(summary, self.output_dir / "rotation_table.csv")
        write_json(
            {
                "views": [view._replace(matrix=view.matrix.tolist())._asdict() for view in self.views],
                "networks": {
                    title: {**costs.get(title, {}), "failures": self._failures(title)}
                    for title in {**self.networks, **costs}
                },
                "summary": summary,
                "paired": paired,
            },
            self.output_dir / "rotation_report.json",
        )
        write_text(f"{format_markdown(summary, costs, key, ERROR)}\n", self.output_dir / "rotation_report.md")
        seconds = {title: cost["seconds_per_case"] for title, cost in costs.items()}
        if can_draw():
            draw_rotation_table(
                views,
                key,
                self.output_dir / "rotation_table.png",
                seconds if len(seconds) > 1 else None,
                self.greater_is_better and key != ERROR,
            )
            self._draw_worst(networks, results, key)
        print(f"\n{format_table(summary)}\n\n{format_costs(costs)}")
        if paired:
            print(f"\n{format_differences([row for row in paired if row['metric'] == key])}")
        print(f"\nspread: largest less smallest; intervals of 95 % over cases. Pictures and tables: {self.output_dir}")
        return [row for row in summary if row["network"] in networks]

    def _failures(self, title: str) -> dict[str, str]:
        return self.networks[title].failures if title in self.networks else {}

    def _draw_worst(self, networks: Mapping[str, _Network], results: Mapping[str, SweepResult], key: str) -> None:
        """Run the worst views of the worst cases once more, to be seen."""
        drawn: list[WorstCase] = []
        for title, network in networks.items():
            with self._probe(network) as probe:
                for worst in results[title].worst(key, self.worst_cases):
                    try:
                        loaded = next(iter(network.batches.load([worst.case])))
                        shown = probe.show(loaded.batch, worst.view)
                    except Exception as error:
                        print(f"{title}: {worst.case} cannot be drawn: {reason(error)}")
                        continue
                    label = None if shown.label is None else shown.label[0]
                    drawn.append(
                        WorstCase(
                            title,
                            worst.case,
                            worst.view.name,
                            worst.metric,
                            worst.value,
                            worst.upright,
                            shown.image[0],
                            label,
                            shown.prediction[0],
                        )
                    )
        draw_worst_cases(drawn, self.output_dir / "worst_cases.png")
