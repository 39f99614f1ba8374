"""Nets of a size that a user would take, trained on real volumes: a study of monai_gmr.apps.study whose epochs fit into a time.

``python -m gpu_training --data FOLDER --output OUT --seconds S`` converts hippocampus3d_msd04.npz and fibsem3d_medulla.npz of FOLDER and
trains a plain net, one with rotations, a harmonic and a group net on each, in this order: 300 epochs, or as many as a share of the time
allows, at most five minutes, at the pace of a training of a few epochs. A net that gets less than a minute is left out. OUT/DATA has the
study of a data set, with its study.yaml.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import monai.bundle
import numpy as np
import yaml
from monai.utils import set_determinism

from monai_gmr.apps.prepare_data import main as prepare_data
from monai_gmr.apps.study import run_study, write_outcome
from monai_gmr.apps.study_config import check_bundles, load_study
from monai_gmr.apps.study_plan import Job, slug
from monai_gmr.apps.study_progress import Progress
from monai_gmr.apps.study_runs import Launch, launch, train
from monai_gmr.files import write_text

BUNDLE = Path(__file__).parents[2] / "bundles" / "volume_segmentation_gmr_unet"
SOURCES = {
    "hippocampus": ("hippocampus3d_msd04.npz", ("classes",)),
    "membranes": ("fibsem3d_medulla.npz", ("instances", "--target", "boundary", "--blocks", "2")),
}
NETS: dict[str, dict[str, Any]] = {
    "plain": {"conv": "plain"},
    "harmonic": {"conv": "gmr_harmonic"},
    "plain, rotations": {"conv": "plain", "augmentation": "rotation"},
    "group": {"conv": ["group", {"group": "m-3m", "filter": "gc"}]},
}
# the widths of a group net are multiples of the 48 symmetries: as many numbers in memory as three times the other nets' have
GROUP_FEATURES = [96, 192, 384]
# every setting that differs from the bundle's own once
DRY_PLACES = [("hippocampus", "plain, rotations"), ("membranes", "group")]
COMMON = {"tensorboard": False, "cache_rate": 1.0, "features": [32, 64, 128], "learning_rate": 0.003}
DATA = {
    "hippocampus": {"out_channels": 3, "batch_size": 4, "samples_per_case": 1},
    "membranes": {"out_channels": 2, "batch_size": 1, "samples_per_case": 4, "patch_size": [64, 64, 64]},
}
EVALUATE: dict[str, Any] = {"angle_step": 120, "num_group_elements": 4, "cases": 26}


class Times(NamedTuple):
    """Epochs at most, seconds of a training at most, epochs of the training that tells the pace, and seconds below which none begins."""

    epochs: int = 300
    seconds: float = 300.0
    pace_epochs: int = 3
    least: float = 60.0


def run_here(config_file: Path, settings_file: Path, log: Path) -> int:
    """Run a bundle in this process, as :func:`~monai_gmr.apps.study_runs.launch` does in one of its own."""
    monai.bundle.run(config_file=str(config_file), args_file=str(settings_file), logging_file=False)
    set_determinism(None)
    return 0


def write_small_sources(folder: Path) -> None:
    """Files like the real ones, of a few voxels."""
    folder.mkdir(parents=True, exist_ok=True)
    random, shape = np.random.default_rng(0), (10, 11, 12)
    cases: dict[str, Any] = {"ids": np.array([f"{n:03d}" for n in range(5)])}
    for name in cases["ids"]:
        label = np.zeros(shape, np.uint8)
        label[2:5, 2:8, 3:9], label[5:8, 2:8, 3:9] = 1, 2
        cases |= {f"lab_{name}": label, f"img_{name}": (label + random.normal(0, 0.2, shape)).astype(np.float32)}
    np.savez(folder / SOURCES["hippocampus"][0], **cases)
    cells = np.arange(20) // 5
    label = (1 + cells[:, None, None] * 16 + cells[:, None] * 4 + cells).astype(np.uint32)
    image = random.integers(0, 255, label.shape, np.uint8)
    np.savez(folder / SOURCES["membranes"][0], image=image, label=label)


def write_config(folder: Path, name: str, dataset_dir: Path, epochs: dict[str, int], dry: bool) -> Path:
    """Write ``study.yaml``, the study of a data set with the nets whose epochs are known, and return its path."""
    small = {"features": [2, 3], "patch_size": [8, 8, 8]} if dry else {"amp": True}
    group = {"features": [48, 48] if dry else GROUP_FEATURES}
    nets = {name: settings | (group if name == "group" else {}) for name, settings in NETS.items()}
    evaluate = EVALUATE | ({"num_group_elements": 2, "cases": 1, "num_resamples": 10, "worst_cases": 0} if dry else {})
    nets = {net: nets[net] | {"epochs": n, "val_interval": min(n, 10)} for net, n in epochs.items()}
    settings = DATA[name] | small | {"dataset_dir": str(dataset_dir)}
    data = {"bundle": str(BUNDLE), "metric": "mean_dice_in_ball", "settings": settings, "evaluate": evaluate}
    content = {"output_dir": str(folder), "seeds": [0], "settings": COMMON, "data": {name: data}, "nets": nets}
    write_text(yaml.safe_dump(content, sort_keys=False), folder / "study.yaml")
    return folder / "study.yaml"


def pace_of(config_file: Path, run: Launch) -> float:
    """Seconds of an epoch of a short training, which is not evaluated."""
    study = load_study(config_file)
    (cell,) = study.cells
    epochs = study.epochs(cell)
    assert epochs is not None
    return train(Progress(study), Job(cell, 0), run)["seconds"] / epochs


def fit_epochs(seconds: float, pace: float, times: Times) -> int:
    """Epochs of a training that has ``seconds``.

    Example:
        >>> [fit_epochs(seconds, 2.0, Times()) for seconds in (100.0, 1000.0, 1.0)]
        [50, 150, 1]
    """
    return max(1, min(times.epochs, int(min(seconds, times.seconds) / pace)))


def run_all(data: Path, output: Path, seconds: float, dry: bool) -> list[str]:
    """Convert, train and evaluate; the tables are written after each net. Returns a sentence for each net that failed."""
    end = time.monotonic() + seconds
    times, run = (Times(1, 1.0, 1, 0.0), run_here) if dry else (Times(), launch)
    if dry:
        data = output / "data" / "sources"
        write_small_sources(data)
    places = DRY_PLACES if dry else [(name, net) for name in SOURCES for net in NETS]
    failures: list[str] = []
    epochs: dict[str, dict[str, int]] = {name: {} for name in SOURCES}
    for index, (name, net) in enumerate(places):
        left = end - time.monotonic()
        own = max(left / (len(places) - index), times.least)
        if own > left:
            print(f"left out: {name}, {net}, for {left:.0f} seconds are too few", flush=True)
            continue
        try:
            source, arguments = SOURCES[name]
            folder = output / "data" / name
            if not folder.exists() and prepare_data([arguments[0], str(data / source), str(folder), *arguments[1:]]):
                raise RuntimeError(f"{source} was not converted")
            begun = time.monotonic()
            trial = output / "pace" / slug(f"{name} {net}")
            pace = pace_of(write_config(trial, name, folder, {net: times.pace_epochs}, dry), run)
            # as much time as the short training took beside its epochs, for the start of this one and for its evaluation
            around = max(0.0, time.monotonic() - begun - pace * times.pace_epochs)
            epochs[name][net] = fit_epochs(own - (time.monotonic() - begun) - 2 * around, pace, times)
            study = load_study(write_config(output / name, name, folder, epochs[name], dry))
            check_bundles(study)
            failures += run_study(study, launch=run)
            write_outcome(study)
        except Exception as error:
            failures.append(f"{name}, {net}: {error}")
            epochs[name].pop(net, None)
    return failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 1 when a net failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the npz files")
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    parser.add_argument("--seconds", type=float, required=True, help="of all trainings and evaluations")
    parser.add_argument("--dry-run", action="store_true", help="tiny volumes, nets and trainings, in one process")
    options = parser.parse_args(arguments)
    failures = run_all(options.data, options.output, options.seconds, options.dry_run)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
