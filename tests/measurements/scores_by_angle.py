"""Scores by angle of a study's trained nets: ``python tests/measurements/scores_by_angle.py STUDY.yaml DATA [--step 15] [--cases 2000]``.

Not a test: it evaluates the nets of the first page's picture, of all seeds, on the full circle, in 3D about each axis, as the study's own
evaluations do, and writes their rows of ``bundles/scores_by_angle.csv``, which ``pages.py`` draws. The study has run before.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pages import ANGLE_SCORES, NETS
from tqdm import tqdm

from monai_gmr.apps.study_config import load_study
from monai_gmr.apps.study_plan import Cell, Job
from monai_gmr.apps.study_runs import evaluation_folder

COLUMNS = ("data", "net", "augmentation", "seed", "axis", "angle", "score")


def read_rows(file):
    """Rows of a CSV; none where there is no file."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def evaluate(config, settings):
    """Rows of ``rotation_views.csv`` of an evaluation in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "settings.json")
        file.write_text(json.dumps({**settings, "output_dir": folder}), encoding="utf-8")
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config), "--args_file", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
        return read_rows(Path(folder, "rotation_views.csv"))


def main():
    """Evaluate what is not in the table yet, and add it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("data")
    parser.add_argument("--step", type=float, default=15, help="degrees")
    parser.add_argument("--cases", type=int, help="the first so many of the test split, rather than those of the study")
    options = parser.parse_args()
    study = load_study(options.study)
    data = study.data[options.data]
    more = {"report::views": [{"angles": options.step}], "worst_cases": 0}
    more |= {} if options.cases is None else {"report::cases": options.cases}
    rows = read_rows(ANGLE_SCORES)
    done = {(row["data"], row["net"], row["augmentation"], row["seed"]) for row in rows}
    for net, seed in tqdm([(net, seed) for net in NETS for seed in study.seeds], unit="net"):
        key = (options.data, *net, str(seed))
        if key in done:
            continue
        trained = evaluation_folder(study, Job(Cell(options.data, *net), seed), options.data)
        settings = json.loads((trained / "settings.json").read_text(encoding="utf-8"))
        for view in evaluate(data.config_file("evaluate"), settings | more):
            # shifts have no angle
            if view["angle"]:
                rows.append(dict(zip(COLUMNS, (*key, view["axis"], view["angle"], view[data.metric]))))
        with ANGLE_SCORES.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda row: row["data"]))


if __name__ == "__main__":
    main()
