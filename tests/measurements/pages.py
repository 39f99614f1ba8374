"""Tables and pictures of ``README.md`` and ``bundles/README.md`` from those in ``bundles/*/docs``; nothing is measured again.

``python tests/measurements/pages.py`` draws the pictures and writes the tables between their marks.
"""

import csv
import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
BUNDLES = ROOT / "bundles"
PICTURE = BUNDLES / "scores_of_rotated_images.png"
EXCERPT = BUNDLES / "rotation_report_excerpt.png"
ANGLE_SCORES = BUNDLES / "scores_by_angle.csv"
REPORT = BUNDLES / "volume_segmentation_gmr_unet" / "docs" / "rotation" / "hippocampus" / "rotation_table.png"
# data set of the study: its name on the page, and what its score is called there
DATA = {
    "hippocampus": ("hippocampus, MRI, 3D", "Dice"),
    "membranes": ("cell membranes, FIB-SEM, 3D", "Dice"),
    "adrenal glands": ("adrenal glands, 3D", "AUC"),
    "nuclei": ("nuclei, fluorescence, 2D", "Dice"),
    "red blood cells": ("red blood cells, 2D", "balanced accuracy"),
    "digits": ("digits, 2D", "balanced accuracy"),
}
# net and augmentation of the study: name, colour and marker in the picture
NETS = {
    ("plain", "none"): ("plain", "#0b4f8a", "o"),
    ("plain", "rotation"): ("plain, trained with rotations", "#cc79a7", "s"),
    ("harmonic", "none"): ("GMR (harmonic), trained without", "#009e73", "^"),
}
MARKED = r"(<!-- {0} -->\n).*?(<!-- end of {0} -->)"


def read_study() -> dict[tuple[str, str, str], dict[str, str]]:
    """Rows of all studies, by data set, net and augmentation."""
    rows = {}
    for file in sorted(BUNDLES.glob("*/docs/study/table.csv")):
        with file.open(newline="", encoding="utf-8") as lines:
            rows.update({(row["data"], row["net"], row["augmentation"]): row for row in csv.DictReader(lines)})
    return rows


def _pair(row: dict[str, str]) -> str:
    return f"{float(row['upright']):.3f} / {float(row['angles_mean']):.3f}"


def first_table() -> str:
    """The table of the first page, as Markdown: a row a data set."""
    rows = read_study()
    lines = [
        "| data | score | plain | plain, trained with rotations | GMR (harmonic) | parameters | ms a step |",
        "|---|---|---|---|---|---|---|",
    ]
    for data, (name, score) in DATA.items():
        plain, augmented, harmonic = (rows[(data, *net)] for net in NETS)
        cost = " → ".join(f"{int(row['parameters']):,}" for row in (plain, harmonic))
        time = " → ".join(f"{float(row['step_milliseconds']):.0f}" for row in (plain, harmonic))
        lines.append(
            f"| {name} | {score} | {_pair(plain)} | {_pair(augmented)} | {_pair(harmonic)} | {cost} | {time} |"
        )
    return "\n".join(lines)


def _tables_of(file: Path) -> str:
    """Headings and tables of a study, one level down, without what stands below them."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line or line.startswith(("#", "|"))]
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in lines).strip()


def tables() -> dict[str, dict[str, str]]:
    """Tables by page and mark."""
    studies = sorted(BUNDLES.glob("*/docs/study/table.md"))
    reports = sorted(BUNDLES.glob("*/docs/rotation/*/rotation_report.md"))
    return {
        "README.md": {"first page": first_table()},
        "bundles/README.md": {
            "study": "\n\n".join(map(_tables_of, studies)),
            **{f"report on {file.parent.name}": file.read_text(encoding="utf-8").strip() for file in reports},
        },
    }


def scores_by_angle() -> dict[tuple[str, str, str], dict[int, list[float]]]:
    """Scores of all seeds and axes, by data set, net and augmentation, then by angle in degrees; 360 degrees are 0."""
    scores: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    with ANGLE_SCORES.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            angles = scores.setdefault((row["data"], row["net"], row["augmentation"]), {})
            angles.setdefault(round(float(row["angle"])), []).append(float(row["score"]))
    for angles in scores.values():
        angles[360] = angles[0]
    return scores


def draw_scores(path: Path) -> None:
    """Draw the mean score against the angle, shaded from the lowest to the highest of all seeds and axes, a panel a data set."""
    from matplotlib.figure import Figure

    scores = scores_by_angle()
    drawn = [data for data in DATA if (data, "harmonic", "none") in scores]
    figure = Figure(figsize=(max(7, 4 * len(drawn)), 3.4), layout="constrained")
    for panel, data in zip(np.atleast_1d(figure.subplots(1, len(drawn), sharey=True)), drawn):
        for net, (name, colour, marker) in NETS.items():
            angles = sorted(scores[(data, *net)])
            values = [scores[(data, *net)][angle] for angle in angles]
            panel.fill_between(angles, [*map(min, values)], [*map(max, values)], color=colour, alpha=0.15, lw=0)
            panel.plot(angles, [*map(np.mean, values)], color=colour, marker=marker, ms=4, lw=2, label=name)
        name, score = DATA[data]
        panel.set_title(f"{name}: {score}", fontsize=10)
        panel.set_xticks(range(0, 361, 90), [f"{angle}°" for angle in range(0, 361, 90)])
        panel.set(xlim=(0, 360), ylim=(0, 1.02))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    handles, names = panel.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def draw_excerpt(path: Path) -> None:
    """Cut the three circles of angles and the legend out of a picture of the rotation report."""
    from PIL import Image

    # where they lie in that picture of 2141 x 500 pixels
    report = Image.open(REPORT).convert("RGB")
    circles, legend = report.crop((345, 0, 1400, 362)), report.crop((430, 408, 1712, 500))
    excerpt = Image.fromarray(np.full((362 + 92, 1282, 3), 255, np.uint8))
    excerpt.paste(circles, ((1282 - circles.width) // 2, 0))
    excerpt.paste(legend, (0, 362))
    excerpt.quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    for page, marked in tables().items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for mark, table in marked.items():
            text = re.sub(
                MARKED.format(mark), lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text, flags=re.S
            )
        (ROOT / page).write_text(text, encoding="utf-8")
    draw_scores(PICTURE)
    draw_excerpt(EXCERPT)
