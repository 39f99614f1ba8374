"""Differences between one run of a study and each other run, on equal images and seeds, with intervals over both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_gmr.apps.study_plan import Job, Run
from monai_gmr.apps.study_progress import Progress, read_rows
from monai_gmr.apps.study_runs import evaluation_folder
from monai_gmr.apps.study_table import interval
from monai_gmr.rotation_report.statistics import percentile_interval
from monai_gmr.tables import format_markdown

# scores, and the families of views that they average
SCORES = {"upright": "upright", "group_mean": "group", "angles_mean": "angles"}
KEY = ("data", "net", "augmentation", "score")
NAN = float("nan")
Sample = tuple[list[str], np.ndarray]


def read_samples(folder: Path, metric: str, family: str) -> Sample | None:
    """Reads the cases of an evaluation and their bootstrap means from its ``rotation_samples.npz``; ``None`` if there are none."""
    file = folder / "rotation_samples.npz"
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        cases = next((key for key in arrays.files if key.endswith("/cases")), "")
        name = f"{cases.removesuffix('cases')}{metric}/{family}"
        return (arrays[cases].tolist(), arrays[name]) if name in arrays.files else None


def over_images(firsts: Sequence[Sample | None], seconds: Sequence[Sample | None]) -> tuple[float, float]:
    """Computes the 95 % interval over images of the difference of two runs, averaged over seeds, from the samples of each seed; NaN if
    samples are missing or the images differ.

    Example:
        >>> samples = np.linspace(0, 1, 1001)
        >>> low, high = over_images([(["a", "b"], samples + 1)], [(["a", "b"], samples)])
        >>> round(low, 6), round(high, 6)
        (1.0, 1.0)
    """
    known = [sample for sample in (*firsts, *seconds) if sample is not None]
    if len(known) < len(firsts) + len(seconds) or len({(tuple(cases), len(samples)) for cases, samples in known}) != 1:
        return NAN, NAN
    first, second = (
        np.mean([samples for _, samples in part], axis=0) for part in (known[: len(firsts)], known[len(firsts) :])
    )
    return percentile_interval(first - second)


def find_differences(progress: Progress, reference: Run) -> list[dict[str, Any]]:
    """Makes one row for each evaluation, other run and score of :data:`SCORES`: ``data``, ``net``, ``augmentation``, ``score``, number of
    common ``seeds``, ``difference`` (``reference`` minus this run), ``half_width`` of its 95 % interval over the seeds by Student's t, and
    ``images_low``, ``images_high`` over the images, taken from ``differences.csv`` if the folders of the runs are gone."""
    study = progress.study
    kept = {tuple(row[key] for key in KEY): row for row in read_rows(study.output_dir / "differences.csv")}
    rows = []
    for cell in [cell for cell in study.cells if cell.run != reference]:
        for name in study.evaluations(cell.data):
            both = []
            for seed in study.seeds_of(cell.data):
                pair = [Job(cell._replace(**reference._asdict()), seed), Job(cell, seed)]
                done = [progress.done(job)[name] for job in pair if name in progress.done(job)]
                if len(done) == 2:
                    both.append((done, [evaluation_folder(study, job, name) for job in pair]))
            for score, family in SCORES.items():
                pairs = [(first[score], second[score]) for (first, second), _ in both]
                if not pairs or None in sum(pairs, ()):
                    continue
                difference, half_width = interval([first - second for first, second in pairs])
                row: dict[str, Any] = {"data": name, "net": cell.net, "augmentation": cell.augmentation, "score": score}
                row |= {"seeds": len(pairs), "difference": difference, "half_width": half_width}
                metric, folders = study.evaluations(cell.data)[name].metric, zip(*(folders for _, folders in both))
                low, high = over_images(*([read_samples(one, metric, family) for one in part] for part in folders))
                old = kept.get(tuple(row[key] for key in KEY), {})
                if np.isnan(low) and old.get("difference") == difference:
                    low, high = old["images_low"], old["images_high"]
                rows.append(row | {"images_low": low, "images_high": high})
    return rows


def format_differences(rows: Sequence[Mapping[str, Any]], reference: Run) -> dict[str, str]:
    """Formats the result of :func:`find_differences` as Markdown, a table for each data set.

    Example:
        >>> row = {"data": "cells", "net": "plain", "augmentation": "none", "score": "upright", "seeds": 3, "difference": 0.1}
        >>> row |= {"half_width": 0.02, "images_low": 0.08, "images_high": 0.12}
        >>> print(format_differences([row], Run("harmonic", "none"))["cells"])
        | harmonic, none, less | seeds | upright |
        |---|---:|---:|
        | plain, none | 3 | +0.100 [+0.080, +0.120] ± 0.020 |
    """

    def cell(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return "-"
        low, high = (row[key] if isinstance(row[key], float) else NAN for key in ("images_low", "images_high"))
        images = "" if np.isnan(low) else f" [{low:+.3f}, {high:+.3f}]"
        seeds = "" if row["half_width"] is None else f" ± {row['half_width']:.3f}"
        return f"{row['difference']:+.3f}{images}{seeds}"

    tables = {}
    for data in dict.fromkeys(row["data"] for row in rows):
        own = {(row["net"], row["augmentation"], row["score"]): row for row in rows if row["data"] == data}
        scores = [score for score in SCORES if any(key[2] == score for key in own)]
        lines = [[f"{reference}, less", "seeds", *(score.replace("_", " ") for score in scores)]]
        for net, augmentation in dict.fromkeys(key[:2] for key in own):
            found = [own.get((net, augmentation, score)) for score in scores]
            seeds = max(row["seeds"] for row in found if row is not None)
            lines.append([f"{net}, {augmentation}", str(seeds), *map(cell, found)])
        tables[data] = format_markdown(lines, right=1)
    return tables
