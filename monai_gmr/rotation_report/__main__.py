"""Command line of the rotation report: the network of any MONAI bundle on rotated and mirrored images, or several side by side.

``python -m monai_gmr.rotation_report BUNDLE --output_dir DIR`` runs the bundle's own evaluator, changes none of its files, and writes
tables, pictures and a page to DIR. ``--input scan.nii.gz`` needs no label. Exit status: 0; 1 if cases were left out; 2 if the report
failed, both with one sentence.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_gmr.bundle.overrides import read_settings, read_value, split_pair
from monai_gmr.command_line import command
from monai_gmr.files import check_folder
from monai_gmr.rotation_report import RotationReport
from monai_gmr.rotation_report.evaluator import SCAN_SUFFIXES, open_evaluator
from monai_gmr.rotation_report.own_answer import open_own_answers, say_agreement
from monai_gmr.rotation_report.prepare_batch import LABEL_SAMPLINGS
from monai_gmr.utils import ConfigurationError

# options that are passed on unchanged
OPTIONS = (
    "spacing",
    "views_per_batch",
    "rotated_answers",
    "labels",
    "in_ball",
    "images_in_ball",
    "mirrored_labels",
    "metrics",
    "greater_is_better",
    "cases",
    "worst_cases",
    "num_resamples",
    "seed",
    "resume",
)
ENDING = f"({'|'.join(map(re.escape, SCAN_SUFFIXES))})$"
DESCRIPTION = """Run the evaluator of a MONAI bundle on rotated and mirrored images and report its metrics,
for one network or several on the same images. The bundle's files are not changed.
Exit status: 0 done, 1 cases were left out, 2 failed."""
EXAMPLE = """
example: a bundle's network, the same one averaged over the symmetries of the grid, and another training of it

  python -m monai_gmr.rotation_report upright=bundles/spleen rotated=bundles/spleen --output_dir report \\
      --dataset_dir /data/spleen --angles 45 --cases 10 --set device=cpu --average upright:all \\
      --for rotated ckpt_dir=runs/rotated

agreement of a segmentation with itself when your own scan is rotated, without a label

  python -m monai_gmr.rotation_report hippocampus_segmentation_gmr_unet --input scan.nii.gz

BUNDLE is the name of a bundle that ships with monai_gmr, or a folder of MONAI's bundle specification, such as one that
`python -m monai.bundle download` fetched. Its config is configs/evaluate (over configs/train where need be), else
configs/inference. SaveImaged, StatsHandler and other parts that write files or logs are switched off. An interrupted report is
resumed. MONAI_GMR_TRACEBACK=1 in the environment shows where an error came from.
"""


def read_pair(text: str) -> tuple[int, int]:
    """Reads a pair of classes, ``A:B``, from the command line.

    Example:
        >>> read_pair("1:2")
        (1, 2)
    """
    first, _, second = text.partition(":")
    if not (first.isdigit() and second.isdigit()):
        raise argparse.ArgumentTypeError(f"{text} is not a pair of classes: give it as in 1:2.")
    return int(first), int(second)


def read_networks(entries: Sequence[str]) -> dict[str, str]:
    """Reads names of networks and folders of their bundles from ``[NAME=]FOLDER``; raises ``ConfigurationError`` if two have the same
    name."""
    networks: dict[str, str] = {}
    for entry in entries:
        name, equals, folder = entry.partition("=")
        # a folder may have "=" in its name
        if not equals or Path(entry).is_dir():
            name, folder = Path(entry).resolve().name, entry
        if name in networks:
            raise ConfigurationError(f"two networks are named {name}: give names, as in one={folder} other={folder}.")
        networks[name] = folder
    return networks


def choose_views(angles: float | None, group: str | None, random: int | None, seed: int) -> list[Any] | None:
    """Converts the options to entries for :func:`~monai_gmr.symmetry.make_views`; ``None``, the report's default, if no option is given.
    Raises ``ConfigurationError`` if no view is left."""
    if angles is None and group is None and random is None:
        return None
    views: list[Any] = [] if group == "none" else [read_value(group or "all")]
    views += ["angles"] if angles is None else [{"angles": angles}] if angles else []
    views += [{"random": random, "seed": seed}] if random else []
    if not views:
        raise ConfigurationError(
            "--angles 0, --group none and no --random leave a set of views of size zero: give at least one of them, such as --angles 30."
        )
    return views


def read_average(entries: Sequence[str], names: Sequence[str]) -> Any:
    """Reads the views over which answers are averaged, for all networks or by name of a network. Raises ``ConfigurationError`` if both are
    given, or a network is given twice."""
    named: dict[str, Any] = {}
    for entry in entries:
        name, colon, views = entry.partition(":")
        name = name if colon and name in names else ""
        if name in named:
            raise ConfigurationError(f"--average {entry} is the second one for the same network: give one.")
        named[name] = read_value(views if name else entry)
    if "" in named and len(named) > 1:
        raise ConfigurationError("--average is given for all networks and for single ones: give one or the other.")
    return named.get("", named or None)


def default_folder(scan: str | None) -> str:
    """Default folder of a report; each scan has its own.

    Example:
        >>> default_folder(None), default_folder("/data/Smith.2.nii.gz")
        ('rotation_report', 'rotation_report_Smith.2')
    """
    if scan is None:
        return "rotation_report"
    name = Path(scan).resolve().name
    return f"rotation_report_{re.sub(ENDING, '', name, flags=re.IGNORECASE)}"


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_gmr.rotation_report",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    keys: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    keys_of_one: dict[str, Any] = {"nargs": "+", "action": "append", "default": [], "dest": "single"}
    maybe_views: dict[str, Any] = {"nargs": "?", "const": "all", "action": "append", "default": []}

    add = parser.add_argument
    text = "bundle folder, one per network; default name: the folder's"
    add("bundles", nargs="+", metavar="[NAME=]BUNDLE", help=text)
    text = "folder of the report (default: rotation_report in the working directory, rotation_report_SCAN with --input)"
    add("--output_dir", metavar="DIR", help=text)

    add = parser.add_argument_group("the bundles").add_argument
    add("--dataset_dir", metavar="DIR", help="folder of the images: sets the bundle's id dataset_dir")
    text = """a scan, or a folder of them, without labels: each network is compared with its own answer to the upright image, on the
        bundle's inference config"""
    add("--input", metavar="SCAN", help=text)
    text = "config files instead of configs/evaluate; later ones override earlier ones"
    add("--config_file", nargs="+", metavar="FILE", help=text)
    add("--set", **keys, metavar="KEY=VALUE", help="ids of every bundle's config, as in device=cpu")
    text = "ids of one network's config, as in --for plain checkpoint=runs/plain/model.pt"
    add("--for", **keys_of_one, metavar=("NAME", "KEY=VALUE"), help=text)
    add("--cases", type=int, metavar="N", help="the first N cases only (default: all)")

    add = parser.add_argument_group("the views").add_argument
    text = "rotations every STEP degrees (default: 10 in 2D, 30 in 3D; 0: none)"
    add("--angles", type=float, metavar="STEP", help=text)
    text = "symmetries of the grid: all (default), none, a group such as 432 or mmm, or some elements of one: {group: all, count: 12}"
    add("--group", metavar="NAME", help=text)
    add("--random", type=int, metavar="N", help="also N random rotations")
    text = "also shift upright images by these distances along each axis (default: 0.5; 0: no shifts)"
    add("--shifts", type=float, nargs="+", default=[0.5], metavar="VOXELS", help=text)
    text = "mask all images, also upright ones, outside the inscribed disc or ball, so that rotations lose no corners"
    add("--images_in_ball", action="store_true", help=text)
    text = """report networks again with their answers averaged over views (default: all symmetries of the grid); can be given
        once per network"""
    add("--average", **maybe_views, metavar="[NAME:]VIEWS", help=text)
    add("--views_per_batch", type=int, default=1, metavar="N", help="views per batch of an average (default: 1)")
    text = "report networks again with their upright answers, rotated: the scores of an exactly equivariant network"
    add("--rotated_answers", action="store_true", help=text)
    text = "voxel size, one per axis; axes of different size are not exchanged"
    add("--spacing", type=float, nargs="+", metavar="MM", help=text)

    add = parser.add_argument_group("the scores").add_argument
    add("--metrics", nargs="+", metavar="NAME", help="the evaluator's metrics to report (default: all)")
    text = "all metrics are errors or distances (default: those that are by their class, such as Hausdorff distances)"
    add("--smaller_is_better", action="store_false", dest="greater_is_better", default=None, help=text)
    text = "these metrics are errors or distances, whatever their class"
    add("--smaller_is_better_for", nargs="+", metavar="NAME", help=text)
    text = "these metrics are scores, whatever their class"
    add("--greater_is_better_for", nargs="+", metavar="NAME", help=text)
    text = """how label images are rotated by angles: nearest neighbour (default), or the class with the largest share (default with
        --input)"""
    add("--labels", choices=LABEL_SAMPLINGS, help=text)
    text = "classes that a mirror image exchanges, such as left and right, as in 1:2 3:4"
    add("--mirrored_labels", nargs="+", type=read_pair, default=[], metavar="A:B", help=text)
    text = "score answers in the whole image instead of the inscribed disc or ball, which every rotation keeps"
    add("--whole_image", action="store_false", dest="in_ball", help=text)
    text = "index or key of the answer to score, if a network returns several"
    add("--prediction", metavar="INDEX_OR_KEY", help=text)
    add("--compare", **keys, metavar="NAME=DIR", help="other reports to show next to this one")
    add("--worst_cases", type=int, default=3, metavar="N", help="cases in the picture (default: 3)")
    text = "bootstrap samples behind the intervals (default: 1000)"
    add("--num_resamples", type=int, default=1000, metavar="N", help=text)
    add("--seed", type=int, default=0, metavar="N", help="seed of random views and of the bootstrap (default: 0)")
    text = "start again instead of resuming an interrupted report"
    add("--no_resume", action="store_false", dest="resume", help=text)
    return parser


def read_direction(arguments: argparse.Namespace) -> bool | dict[str, bool] | None:
    """Whether larger values are better: for all metrics, by name of a metric, or ``None`` to decide by the metrics' classes.

    Example:
        >>> command = ["bundle", "--smaller_is_better_for", "volume_error", "--greater_is_better_for", "likelihood"]
        >>> read_direction(make_parser().parse_args(command))
        {'volume_error': False, 'likelihood': True}
    """
    smaller, greater = arguments.smaller_is_better_for or (), arguments.greater_is_better_for or ()
    twice = set(smaller) & set(greater)
    if twice:
        raise ConfigurationError(
            f"--smaller_is_better_for and --greater_is_better_for both name {min(twice)!r}: use one."
        )
    named = dict.fromkeys(smaller, False) | dict.fromkeys(greater, True)
    if named and arguments.greater_is_better is not None:
        raise ConfigurationError("--smaller_is_better is for all metrics: leave it out where others are named.")
    return named or arguments.greater_is_better


def make_report(arguments: argparse.Namespace) -> RotationReport:
    """Opens the bundles and runs the report; the result holds the cases that were left out."""
    networks = read_networks(arguments.bundles)
    average = read_average(arguments.average, list(networks))
    compare = dict(split_pair(pair, "--compare", "other=reports/other") for pair in arguments.compare)
    settings: dict[str, dict[str, Any]] = {name: read_settings(arguments.set) for name in networks}
    for name, *pairs in arguments.single:
        if name not in settings:
            raise ConfigurationError(f"--for {name} is not a network of this report: use one of {', '.join(networks)}.")
        if not pairs:
            raise ConfigurationError(f"--for {name} sets nothing: give ids, as in --for {name} device=cpu.")
        settings[name].update(read_settings(pairs, f"--for {name}"))
    arguments.greater_is_better = read_direction(arguments)
    prediction = None if arguments.prediction is None else read_value(arguments.prediction)
    arguments.labels = arguments.labels or ("nearest" if arguments.input is None else "share")
    arguments.output_dir = arguments.output_dir or default_folder(arguments.input)
    class_names: dict[int, str] = {}
    if arguments.input is None:
        opened = {
            name: open_evaluator(folder, settings[name], arguments.config_file, arguments.dataset_dir)
            for name, folder in networks.items()
        }
        evaluators = {name: bundle.evaluator for name, bundle in opened.items()}
        inverts = any(bundle.inverts for bundle in opened.values())
    else:
        if arguments.dataset_dir is not None:
            raise ConfigurationError("--input and --dataset_dir both give the images: leave one of them out.")
        check_folder(arguments.output_dir, "output_dir")
        own = {
            name: open_own_answers(
                folder, arguments.input, arguments.output_dir, settings[name], arguments.config_file, prediction
            )
            for name, folder in networks.items()
        }
        evaluators, inverts = {name: each.evaluator for name, each in own.items()}, False
        class_names = next(iter(own.values())).class_names
    report = RotationReport(
        evaluators,
        arguments.output_dir,
        views=choose_views(arguments.angles, arguments.group, arguments.random, arguments.seed),
        shifts=[distance for distance in arguments.shifts if distance],
        average=average,
        frame="upright" if inverts else "rotated",
        prediction=prediction,
        compare=compare or None,
        class_names=class_names or None,
        **{name: getattr(arguments, name) for name in OPTIONS},
    )
    rows = report.run()
    if arguments.input is not None:
        print(say_agreement(rows))
    return report


@command("rotation_report", interrupted="the same command resumes the report")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the report with these arguments, by default those of the process; returns the exit status."""
    arguments = make_parser().parse_args([_underscored(each) for each in (sys.argv[1:] if argv is None else argv)])
    report = make_report(arguments)
    try:
        report.check_failures()
    except ConfigurationError as error:
        print(f"rotation_report: {error}", file=sys.stderr)
        return 1
    return 0


def _underscored(argument: str) -> str:
    """Replaces hyphens in the name of an option by underscores."""
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if argument.startswith("--") else argument


if __name__ == "__main__":
    sys.exit(main())
