"""Scores by angle of a study's trained nets: ``python tests/measurements/scores_by_angle.py STUDY.yaml DATA [--step 15] [--cases 2000]``.

Not a test: it evaluates the nets of the first page's picture, of all seeds, on the full circle, in 3D about each axis, as the study's own
evaluations do, and writes their rows of ``bundles/scores_by_angle.csv``, which ``pages.py`` draws. The study has run before.
"""

import argparse
import json
import tempfile
from pathlib import Path

from pages import ANGLE_SCORES, NETS
from tqdm import tqdm

from monai_gmr.apps.study_config import load_study
from monai_gmr.apps.study_plan import Cell, Job
from monai_gmr.apps.study_progress import read_rows
from monai_gmr.apps.study_runs import evaluation_folder, last_line, launch
from monai_gmr.files import write_rows

COLUMNS = ("data", "net", "augmentation", "seed", "axis", "angle", "score")


def evaluate(config, settings):
    """Rows of ``rotation_views.csv`` of an evaluation in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder, "settings.json"), Path(folder, "evaluate.log")
        file.write_text(json.dumps({**settings, "output_dir": folder}), encoding="utf-8")
        if launch(config, file, log):
            raise SystemExit(last_line(log))
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
        key = (options.data, *net, seed)
        if key in done:
            continue
        trained = evaluation_folder(study, Job(Cell(options.data, *net), seed), options.data)
        settings = json.loads((trained / "settings.json").read_text(encoding="utf-8"))
        for view in evaluate(data.config_file("evaluate"), settings | more):
            # shifts have no angle
            if view["angle"] is not None:
                rows.append(dict(zip(COLUMNS, (*key, view["axis"], view["angle"], view[data.metric[0]]))))
        write_rows(sorted(rows, key=lambda row: row["data"]), ANGLE_SCORES)


if __name__ == "__main__":
    main()
