"""The rotation report of evaluators: measures all views of all cases, and writes the tables and pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import CommonKeys, optional_import

from monai_gmr.annotations import Seed, checked_arguments
from monai_gmr.arguments import check_choice
from monai_gmr.bundle.case_batches import CaseBatch, CaseBatches, anisotropic_spacing, refuse_failures, usable_image
from monai_gmr.bundle.settings import check_values
from monai_gmr.files import FolderLock, check_folder, replacing, write_json, write_rows, write_text
from monai_gmr.inferers import SymmetryInferer
from monai_gmr.rotation_report.directions import Direction, check_direction
from monai_gmr.rotation_report.inputs import image_marks, named_evaluators, other_images, same_cases, why_another_image
from monai_gmr.rotation_report.page import write_page
from monai_gmr.rotation_report.prepare_batch import LABEL_SAMPLINGS
from monai_gmr.rotation_report.probe import ViewProbe, keeps_cases, metric_handlers
from monai_gmr.rotation_report.records import ANSWER, IMAGE, ViewRecord, ViewRecords, read_compared, record_file
from monai_gmr.rotation_report.shown_cases import KeptViews, ShownNetwork, run_shown_cases
from monai_gmr.rotation_report.statistics import ERROR, NetworkScores, format_columns, say_images, short_table
from monai_gmr.rotation_report.table_picture import draw_rotation_table
from monai_gmr.rotation_report.worst_cases_picture import draw_worst_cases
from monai_gmr.symmetry import View, make_views
from monai_gmr.symmetry.mirrored_labels import LabelPairs, check_label_pairs
from monai_gmr.symmetry.views import ViewSpec, shift_views
from monai_gmr.utils import ConfigurationError, WriteError, can_draw, can_import, reason

Events, _ = optional_import("ignite.engine", name="Events")
tqdm, _ = optional_import("tqdm", name="tqdm")

FRAMES = ("rotated", "upright")
INTERVAL = ("interval_low", "interval_high")
TABLE = ("network", "metric", "family", "views", "mean", *INTERVAL, "worst", "spread", "worst_view")
COSTS = ("network", "passes_per_case", "seconds_per_case")
DIFFERENCES = ("difference", "metric", "family", "cases", "mean", *INTERVAL, "p")


@dataclass
class _Network:
    """A network of the report: its evaluator and cases, the views over which its answers are averaged, whether its upright answer is
    rotated, and its measurements."""

    evaluator: Any
    batches: CaseBatches
    average: list[View] = field(default_factory=list)
    rotates_answer: bool = False
    metrics: list[str] = field(default_factory=list)
    records: ViewRecords = field(default_factory=lambda: ViewRecords(None, {}))
    kept: KeptViews = field(default_factory=KeptViews)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def usable(self) -> list[str]:
        """The cases that did not fail."""
        return [name for name in self.batches.names if name not in self.failures]


class RotationReport:
    """Runs evaluators on rotated and mirrored images and reports how their metrics change.

    The evaluator is the bundle's own, for segmentation or classification. Each case is loaded once; image and label are rotated or mirrored
    by each view in turn before the network gets them. For every view the report has the evaluator's metrics, and the equivariance error
    ``||g^-1 f(g x) - f(x)|| / ||f(x)||`` of the raw answer; for a shift ``||f(g x) - g f(x)|| / ||f(x)||``, which is 0 for a convolution,
    and metrics of the answer shifted back. A case that does not load or fails is named and left out; the others are finished. Measurements
    are saved at once: the same call resumes an interrupted report. The folder's README.md lists the files in ``output_dir`` and describes
    intervals and tests; :func:`~monai_gmr.rotation_report.statistics.view_families` lists the families of views.

    Args:
        evaluator: ``monai.engines.SupervisedEvaluator``, or a mapping of names of networks to evaluators. Their loaders must give the same
            cases: a case with only a number is left out if its image differs from the image of the networks before.
        output_dir: directory of the files, created if missing.
        views: a set of :func:`~monai_gmr.symmetry.make_views`; the upright image is always included. Default: all symmetries of the grid,
            and angles every 10 degrees in 2D, every 30 degrees about each axis in 3D.
        shifts: distances in voxels by which images are shifted along each axis, not rotated. A network whose answer changes under a shift
            of half a voxel also changes at angles, even if it is exactly equivariant on the grid.
        spacing: voxel size in millimetres: axes of different spacing are not exchanged, rotations are in millimetres. Default: rotations of
            the voxel grid.
        average: views over which a network's answers are averaged (:class:`~monai_gmr.inferers.SymmetryInferer`): every network is reported
            with and without averaging. Or a mapping of names of networks to views.
        views_per_batch: views that are averaged in one pass.
        rotated_answers: report every network a second time, with its answer to the upright image rotated like the image: the scores of an
            exactly equivariant network, lower than the upright score by the cost of resampled labels and of the frame.
        labels: how label images are rotated by angles: "nearest", or "share" (the class with the largest share of a voxel).
        frame: "rotated": the prediction is compared with the rotated label. "upright": it is rotated back (linearly) and compared with the
            original label; for postprocessings that invert the preprocessing.
        in_ball: whether answers are scored only inside the inscribed disc or ball; voxels outside become background, those of a
            regression 0 in answer and label.
        images_in_ball: whether networks see only the inscribed disc or ball of all images, including upright ones. Images that fill the
            frame lose their corners when rotated: this separates effects of the network from effects of the frame. The background is the
            smallest value inside, per case and channel.
        mirrored_labels: pairs of classes that mirroring exchanges, such as left and right kidney, ``[(1, 2)]``: in labels, in answers that
            are compared with upright ones, and in averages.
        order: order of the spline that rotates images by angles and shifts them, 0 to 5.
        prediction: index or key of the answer that is scored, if a network returns several.
        metrics: names of the evaluator's metrics; default: all, the key metric first.
        greater_is_better: whether larger values are better: for all metrics, or a mapping by name of a metric. Default: False for
            distances, errors and losses among MONAI's and ignite's classes, else True.
        name: name of a single evaluator's network.
        compare: other reports to show and test next to this one, a mapping of names to ``output_dir`` or a file in it.
        cases: number of cases to use, the first ones; default: all.
        worst_cases: number of cases drawn for each network, the ones with the worst score in any view.
        num_resamples: resamples of bootstrap and permutation test; a tenth for metrics that are not means over cases; 0: none.
        seed: seed of random views, bootstrap and test.
        resume: whether to use the measurements of an interrupted report of the same network and views in ``output_dir``.
        class_names: words for the numbers of classes, for the page.

    Raises:
        ConfigurationError: if a setting is out of range, or a metric or a report to compare with does not exist.

    Example:
        >>> from monai.data import DataLoader, Dataset
        >>> from monai.engines import SupervisedEvaluator
        >>> from monai.handlers import MeanDice, from_engine
        >>> from monai.transforms import AsDiscreted
        >>> disc = torch.zeros(1, 8, 8); disc[:, 2:6, 2:6] = 1
        >>> evaluator = SupervisedEvaluator(torch.device("cpu"), DataLoader(Dataset([{"image": disc, "label": disc}])),
        ...     torch.nn.Identity(), postprocessing=AsDiscreted(keys="pred", threshold=0.5),
        ...     key_val_metric={"dice": MeanDice(output_transform=from_engine(["pred", "label"]))})
        >>> report = RotationReport(evaluator, getfixture("tmp_path"), views="all", worst_cases=0)
        >>> rows = report.run()  # doctest: +ELLIPSIS
        <BLANKLINE>
        network ...
        >>> [(row["family"], row["mean"]) for row in rows if row["metric"] == "dice"]
        [('upright', 1.0), ('flips', 1.0), ('group', 1.0), ('turns', 1.0), ('shifts', 1.0)]
    """

    @checked_arguments
    def __init__(
        self,
        evaluator: Any,
        output_dir: str | Path,
        *,
        views: ViewSpec | None = None,
        shifts: Sequence[float] | None = (0.5,),
        spacing: Sequence[float] | None = None,
        average: ViewSpec | None = None,
        views_per_batch: int = 1,
        rotated_answers: bool = False,
        labels: str = "nearest",
        frame: str = "rotated",
        in_ball: bool = True,
        images_in_ball: bool = False,
        mirrored_labels: LabelPairs = (),
        order: int = 3,
        prediction: int | str | None = None,
        metrics: Sequence[str] | None = None,
        greater_is_better: Direction = None,
        name: str = "this run",
        compare: Mapping[str, str | Path] | None = None,
        cases: int | None = None,
        worst_cases: int = 3,
        num_resamples: int = 1000,
        seed: Seed = 0,
        resume: bool = True,
        class_names: Mapping[int, str] | None = None,
    ) -> None:
        check_choice("frame", frame, FRAMES)
        check_choice("labels", labels, LABEL_SAMPLINGS)
        if isinstance(num_resamples, bool) or not isinstance(num_resamples, int) or num_resamples < 0:
            raise ConfigurationError(f"num_resamples={num_resamples!r} is out of range: give 0 (no intervals) or more.")
        check_values(views_per_batch=views_per_batch, worst_cases=worst_cases, seed=seed)
        self.output_dir, self.metrics, self.worst_cases, self.resume = Path(output_dir), metrics, worst_cases, resume
        self.spacing, self.seed, self.views_per_batch = spacing, seed, views_per_batch
        self.class_names = dict(class_names or {})
        self._judging: dict[str, Any] = {"labels": labels, "frame": frame, "in_ball": in_ball, "order": order}
        self._judging |= {"prediction": prediction, "images_in_ball": images_in_ball}
        self._judging |= {"mirrored_labels": check_label_pairs(mirrored_labels)}
        self._scoring: dict[str, Any] = {"greater_is_better": greater_is_better, "num_resamples": num_resamples}
        self._scoring |= {"seed": seed, "spacing": spacing}
        evaluators = named_evaluators(evaluator, name)
        networks = {title: _Network(one, CaseBatches(one.data_loader, cases)) for title, one in evaluators.items()}
        first, network = next(iter(networks.items()))
        image = usable_image(first, network.batches)
        self.spatial_dims = image.ndim - 1
        self.views = self._make_views(["all", "angles"] if views is None else views, shifts or ())
        self.networks = self._with_variants(networks, average, rotated_answers)
        self.compared = read_compared(compare or {}, self.networks)
        voxel = anisotropic_spacing(image)
        if voxel and spacing is None:
            sizes = " x ".join(f"{size:g}" for size in voxel)
            print(
                f"voxels of the first image are {sizes} mm and are rotated as if they were cubes: give spacing={voxel} to "
                "rotate in millimetres."
            )

    def _make_views(self, spec: ViewSpec, shifts: Sequence[float]) -> list[View]:
        views = make_views(spec, self.spatial_dims, self.spacing, self.seed)
        if views[0].family != "upright":
            views = [*make_views("upright", self.spatial_dims), *views]
        names = [view.name for view in views]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigurationError(f"two views are called {twice!r}: give each a name of its own.")
        if len(views) == 1:
            raise ConfigurationError(f"views={spec!r} holds the upright image alone: add one, such as 'all'.")
        return [*views, *shift_views(self.spatial_dims, shifts)]

    def _with_variants(
        self, single: Mapping[str, _Network], average: Any, rotated_answers: bool
    ) -> dict[str, _Network]:
        by_name = isinstance(average, Mapping) and set(average) <= set(single)
        networks = {}
        for title, network in single.items():
            networks[title] = network
            chosen = average.get(title) if by_name else average
            if chosen:
                views = make_views(chosen, self.spatial_dims, self.spacing, self.seed)
                networks[f"{title}, {len(views)} views"] = _Network(network.evaluator, network.batches, views)
            if rotated_answers:
                networks[f"{title}, answer rotated"] = _Network(network.evaluator, network.batches, rotates_answer=True)
        files = [record_file("", title) for title in networks]
        twice = next((title for title, file in zip(networks, files) if files.count(file) > 1), None)
        if twice is not None:
            raise ConfigurationError(f"{twice!r} and another network have the same letters and digits: rename one.")
        return networks

    def run(self) -> list[dict[str, Any]]:
        """Evaluates all views of all cases, writes the files and prints the table; returns the rows of ``rotation_table.csv``.

        Raises:
            ConfigurationError: if no case of any network could be evaluated, or the folder is in use by another run or not writable.
        """
        check_folder(self.output_dir, "output_dir")
        with FolderLock(self.output_dir, "output_dir"):
            for network in self.networks.values():
                network.metrics = self._metric_names(network.evaluator)
            names = [name for each in self.networks.values() for name in metric_handlers(each.evaluator)]
            check_direction(self._scoring["greater_is_better"], names)
            if not any(network.metrics for network in self.networks.values()):
                print("the evaluator has no metric: the equivariance error is reported alone.")
            for title, network in self.networks.items():
                self._measure(title, network)
            done = {title: network for title, network in self.networks.items() if self._has_whole_case(network)}
            if not done:
                title, network = next(iter(self.networks.items()))
                case, why = next(iter(network.failures.items()))
                raise ConfigurationError(f"no case could be evaluated; {title}, {case}: {why}")
            rows = self._write(done)
            for name, why in self.failures.items():
                print(f"{name} is left out: {why}")
            return rows

    @property
    def failures(self) -> dict[str, str]:
        """Cases that were left out: network and case to the reason."""
        networks = self.networks.items()
        return {f"{title}: {case}": why for title, network in networks for case, why in network.failures.items()}

    def check_failures(self) -> None:
        """Raises ``ConfigurationError`` after :meth:`run` if a case was left out, so that the process ends with a status other than 0. The
        sentence has the number of cases, and the first one with its reason."""
        total = sum(len(network.batches.names) for network in self.networks.values())
        refuse_failures(self.failures, total, "cases were left out")

    def _probe(self, network: _Network) -> ViewProbe:
        inferer, spacing = network.evaluator.inferer, self.spacing
        if network.average:
            options: dict[str, Any] = {"views_per_batch": self.views_per_batch, "spacing": spacing}
            options |= {"mirrored_labels": self._judging["mirrored_labels"]}
            inferer = SymmetryInferer(inferer, network.average, **options)
        judging = {**self._judging, "rotates_answer": network.rotates_answer}
        return ViewProbe(network.evaluator, inferer, network.metrics, spacing=spacing, **judging)

    def _header(self, network: _Network) -> dict[str, Any]:
        """Makes the header, which is equal for records of the same answers."""
        digest = hashlib.sha256()
        module = getattr(network.evaluator, "network", None)
        if isinstance(module, torch.nn.Module):
            digest.update(repr(module).encode())
            for key, value in module.state_dict().items():
                digest.update(key.encode())
                if isinstance(value, torch.Tensor):
                    digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        # the records' file format has another word for the first frame
        judging = {**self._judging, "frame": self._judging["frame"].replace("rotated", "turned")}
        # only if not the default, as older records do not have these keys
        images: dict[str, Any] = {"images": "ball"} if judging.pop("images_in_ball") else {}
        images |= {"answers": "rotated"} if network.rotates_answer else {}
        images |= {"labels": "own answers"} if hasattr(network.evaluator, "label_of") else {}
        pairs = judging.pop("mirrored_labels")
        images |= {"mirrored_labels": [list(pair) for pair in pairs]} if pairs else {}
        return {
            "network": digest.hexdigest(),
            "average": [view.matrix.round(6).tolist() for view in network.average],
            "metrics": network.metrics,
            "settings": [self.spacing and list(self.spacing), *judging.values()],
            **images,
        }

    def _metric_names(self, evaluator: Any) -> list[str]:
        names = list(metric_handlers(evaluator))
        for metric in self.metrics or ():
            if metric not in names:
                raise ConfigurationError(
                    f"the evaluator has no metric {metric!r}: it has {', '.join(names) or 'none'}."
                )
        return list(self.metrics or names)

    def _measure(self, title: str, network: _Network) -> None:
        """Records all views of all cases of a network that are not recorded yet."""
        network.failures = {}
        network.kept = KeptViews(network.batches.names if self.worst_cases else ())
        try:
            # handlers that load the checkpoint react to this event
            network.evaluator.fire_event(Events.STARTED)
        except Exception as error:
            network.failures["the network"] = reason(error)
            return
        path, header = record_file(self.output_dir, title), self._header(network)
        with self._probe(network) as probe:
            network.records = ViewRecords(path, header, self.resume)
            if network.records.replaced or not self._agree(network, probe):
                print(f"{title}: earlier records are of another network, data or settings and are replaced.")
                network.records = ViewRecords(path, header, resume=False)
            elif len(network.records):
                print(f"{title}: {len(network.records)} views of cases are there already, from {path}.")
            titles = list(self.networks)
            others = {each: self.networks[each].records for each in titles[: titles.index(title)]}
            network.failures |= other_images(network.records, network.batches.names, others, self.views[0].name)
            missing = {name: len(self._missing(network, [name])) for name in network.usable}
            names = [name for name, count in missing.items() if count]
            views = len(names) * len(self.views)
            present = views - sum(missing.values())
            with tqdm(total=views, initial=present, desc=f"Rotating, {title}", unit="view", mininterval=0.5) as bar:
                measure = partial(self._measure_batch, network, others, probe, bar)
                for items in network.batches.load(names):
                    network.failures |= network.batches.process(items, measure)

    def _measure_batch(
        self, network: _Network, others: Mapping[str, ViewRecords], probe: ViewProbe, bar: Any, batch: CaseBatch
    ) -> None:
        """Records the missing views of a batch."""
        marks, upright = image_marks(batch), self.views[0].name
        for name, mark in zip(batch.names, () if marks is None else marks):
            why = why_another_image(name, mark, others, upright)
            if why:
                raise ConfigurationError(why)

        def keep(record: ViewRecord) -> None:
            bar.update(sum(not network.records.has(case, record.view) for case in record.cases))
            if marks is not None and record.view == upright:
                record.values[IMAGE] = [marks]
            network.records.add(record)

        missing = self._missing(network, batch.names)
        # errors are relative to the upright view
        views = missing if missing[0].family == "upright" else [self.views[0], *missing]
        show = partial(network.kept.add, batch.names[0]) if len(batch.names) == 1 else None
        try:
            probe.run(batch, views, keep, show)
        except Exception as error:
            labelled = isinstance(batch.batch, Mapping) and CommonKeys.LABEL in batch.batch
            if labelled or not probe.recorded or isinstance(error, WriteError):
                raise
            raise ConfigurationError(f"it has no label ({reason(error)})") from error

    def _agree(self, network: _Network, probe: ViewProbe) -> bool:
        """Whether a case that is measured again equals its records: its file, the inferer, the postprocessing or the metrics can have
        changed. True if no case can be measured."""
        upright, records = self.views[0], network.records
        for name in network.batches.names:
            if not records.has(name, upright.name):
                continue
            try:
                again = probe.measure(network.batches.one(name), upright)
            except Exception:
                continue
            kept = [ANSWER, *(metric for metric in probe.recorded if keeps_cases(probe.metrics[metric]))]
            new = [np.array([again.passes]), *(part for key in kept for part in again.values[key])]
            old = [records.columns(upright.name, [name])[2]]
            old += [part for key in kept for part in records.values(key, upright.name, [name])]
            return all(
                a.shape == b.shape and np.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in zip(new, old)
            )
        return True

    def _missing(self, network: _Network, names: Sequence[str]) -> list[View]:
        """Returns the views that are missing for any of these cases."""
        return [view for view in self.views if not all(network.records.has(name, view.name) for name in names)]

    def _has_whole_case(self, network: _Network) -> bool:
        return any(not self._missing(network, [name]) for name in network.usable)

    def _write(self, networks: dict[str, _Network]) -> list[dict[str, Any]]:
        """Writes all files from the records, and prints the tables."""
        handlers = {k: v for network in networks.values() for k, v in metric_handlers(network.evaluator).items()}
        # an earlier report can have more cases
        known = {title: network.records for title, network in networks.items()}
        given = [(title, network.records, network.usable) for title, network in networks.items()]
        given += same_cases(self.compared, known, self.views[0].name)
        scores = [NetworkScores(*each, self.views, handlers, **self._scoring) for each in given]
        results = [result for result in scores if result.cases]
        key = next((result.metrics[0] for result in results if result.metrics), ERROR)
        paired = [row for first, second in combinations(results, 2) for row in first.differences(second)]
        summary = [row for result in results for row in result.summary()]
        views = {result.title: result.view_rows() for result in results}
        costs = {result.title: result.cost() for result in results}
        seen = say_images({result.title: result.images for result in results})
        failures = {title: network.failures for title, network in self.networks.items()}
        folder = self.output_dir
        write_rows([row for rows in views.values() for row in rows], folder / "rotation_views.csv")
        write_rows([row for result in results for row in result.case_rows()], folder / "rotation_cases.csv")
        write_rows(summary, folder / "rotation_table.csv")
        self._write_samples([result for result in results if result.title in networks])
        titles = {**failures, **costs}
        content = {
            "images": seen,
            "views": [{**view._asdict(), "matrix": view.matrix.tolist()} for view in self.views],
            "networks": {k: {**costs.get(k, {}), "failures": failures.get(k, {})} for k in titles},
            "summary": summary,
            "paired": paired,
        }
        write_json(content, folder / "rotation_report.json")
        own = any(hasattr(network.evaluator, "label_of") for network in networks.values())
        judged = (
            "Without labels: each answer is compared with the network's own upright answer, rotated.\n\n" if own else ""
        )
        write_text(f"{short_table(summary, costs, key)}\n\n{judged}Here {seen}.\n", folder / "rotation_report.md")
        overview = None
        if can_draw():
            # a rotated answer takes one pass for any number of views
            rotated = {title for title, network in networks.items() if network.rotates_answer}
            seconds = {title: cost["seconds_per_case"] for title, cost in costs.items() if title not in rotated}
            greater_is_better = results[0].is_greater_better(key)
            overview = folder / "rotation_table.png"
            draw_rotation_table(views, key, overview, seconds, greater_is_better, seen)
        if overview is not None:
            pictures = self._draw_worst(networks, results, key, own)
            in_ball = self._judging["in_ball"]
            if can_import("jinja2", "no page is written"):
                write_page(
                    folder / "report.html",
                    results,
                    key,
                    **pictures,
                    summary=summary,
                    paired=paired,
                    costs=costs,
                    seen=seen + ("; answers are compared inside the inscribed disc or ball" if in_ball else ""),
                    failures=self.failures,
                    overview=overview,
                    class_names=self.class_names,
                )
        tables = [format_columns(summary, TABLE)]
        tables += [format_columns([{"network": k, **v} for k, v in costs.items()], COSTS)]
        shown = [row for row in paired if row["metric"] == key]
        names = [f"{row['first']} less {row['second']}" for row in shown]
        differences = [{**row, "difference": name, "mean": row["difference"]} for name, row in zip(names, shown)]
        tables += [format_columns(differences, DIFFERENCES)] if differences else []
        print("\n" + "\n\n".join(tables))
        intervals = "intervals of 95 % over cases; " if self._scoring["num_resamples"] else ""
        print(f"\nspread: largest less smallest; {intervals}{seen}. Pictures and tables: {folder}")
        return [row for row in summary if row["network"] in networks]

    def _write_samples(self, results: Sequence[NetworkScores]) -> None:
        """Writes the bootstrapped means, and the cases that they were drawn from, under the names of the networks' record files."""
        arrays: dict[str, Any] = {}
        for result in results:
            name = record_file("", result.title).stem
            arrays |= {f"{name}/cases": result.cases}
            arrays |= {f"{name}/{key}": samples for key, samples in result.samples().items()}
        with replacing(self.output_dir / "rotation_samples.npz") as temporary:
            np.savez_compressed(temporary, **arrays)

    def _draw_worst(
        self, networks: Mapping[str, _Network], results: Sequence[NetworkScores], key: str, own: bool
    ) -> dict[str, Any]:
        """Draws the shown cases and the worst views of the worst cases, and returns the arguments for the page."""
        scores = {result.title: result for result in results if result.title in networks}
        worst = {title: result.worst(key, self.worst_cases) for title, result in scores.items()}
        shown = [
            ShownNetwork(
                title,
                self._probe(one),
                one.batches,
                one.kept,
                measured=scores[title].cases,
                worst=worst[title],
                rotates_answer=one.rotates_answer,
            )
            for title, one in networks.items()
            if title in scores
        ]
        drawn = run_shown_cases(shown, self.views, self.spacing, own)
        draw_worst_cases(drawn.worst, self.output_dir / "worst_cases.png")
        return {"sweeps": drawn.sweeps, "cases": drawn.cases, "worst": worst, "own_labels": own}
