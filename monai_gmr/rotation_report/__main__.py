"""Command line of the rotation report: the network of any MONAI bundle on rotated and mirrored images, or several side by side.

``python -m monai_gmr.rotation_report BUNDLE --output_dir DIR`` runs the bundle's own evaluator, changes none of its files, and leaves
tables and pictures in DIR. It exits with 0, with 1 and one sentence if cases were left out, or with 2 and one sentence if it failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from monai_gmr.command_line import command
from monai_gmr.rotation_report import RotationReport
from monai_gmr.rotation_report.evaluator import BundleEvaluator, open_evaluator
from monai_gmr.rotation_report.prepare_batch import LABEL_SAMPLINGS
from monai_gmr.utils import ConfigurationError

# what the report takes as it is given
OPTIONS: tuple[str, ...] = ("spacing", "views_per_batch", "labels", "in_ball", "metrics", "greater_is_better", "cases")
OPTIONS += ("worst_cases", "num_resamples", "seed", "resume")
DESCRIPTION = """Run the evaluator of a MONAI bundle on rotated and mirrored images and report its metrics,
for one network or several on the same images. The bundle's files stay as they are.
Exit status: 0 done, 1 cases were left out, 2 failed."""
EXAMPLE = """
example: a bundle's network, the same one averaged over the symmetries of the grid, and another training of it

  python -m monai_gmr.rotation_report upright=bundles/spleen rotated=bundles/spleen --output_dir report \\
      --dataset_dir /data/spleen --angles 45 --cases 10 --set device=cpu --average upright:all \\
      --for rotated ckpt_dir=runs/rotated

BUNDLE is a folder of MONAI's bundle specification, such as one that `python -m monai.bundle download` fetched. Its config is
configs/evaluate (over configs/train where need be), else configs/inference. SaveImaged, StatsHandler and whatever else writes
files or logs is switched off. An interrupted report is resumed. MONAI_GMR_TRACEBACK=1 in the environment shows where an error
came from.
"""


def split_pair(text: str, option: str, example: str) -> tuple[str, str]:
    """Read ``KEY=VALUE`` from the command line; raises ``ConfigurationError`` where a side of it is empty.

    Example:
        >>> split_pair("network_def::act=$'RELU' if 1 == 1 else None", "--set", "device=cpu")
        ('network_def::act', "$'RELU' if 1 == 1 else None")
    """
    key, _, value = text.partition("=")
    if not (key and value):
        raise ConfigurationError(f"{option} {text} cannot be read: give it as in {option} {example}.")
    return key, value


def read_settings(pairs: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """Read settings ``KEY=VALUE``, whose values are YAML; raises ``ConfigurationError`` where one is not of that form.

    Example:
        >>> read_settings(["device=cpu", "roi_size=[64, 64, 32]", "dataset_dir=null", "network=$@network_def.to(@device)"])
        {'device': 'cpu', 'roi_size': [64, 64, 32], 'dataset_dir': None, 'network': '$@network_def.to(@device)'}
    """
    return {key: _read_value(value) for key, value in (split_pair(pair, option, "device=cpu") for pair in pairs)}


def _read_value(text: str) -> Any:
    # references, expressions and macros of MONAI are no YAML
    if text[:1] in ("@", "$", "%"):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigurationError(
            f"{text} cannot be read as YAML: quote it, or give a value such as 3, cpu or [1, 2]."
        ) from None


def read_networks(entries: Sequence[str]) -> dict[str, str]:
    """Names of networks and folders of their bundles, from ``[NAME=]FOLDER``; raises ``ConfigurationError`` where two have one name.

    Example:
        >>> read_networks(["bundles/spleen", "plain=bundles/spleen"])
        {'spleen': 'bundles/spleen', 'plain': 'bundles/spleen'}
    """
    networks: dict[str, str] = {}
    for entry in entries:
        name, equals, folder = entry.partition("=")
        # a folder may have "=" in its name
        if not equals or Path(entry).is_dir():
            name, folder = Path(entry).resolve().name, entry
        if name in networks:
            raise ConfigurationError(
                f"two networks are named {name}: give names, as in first={folder} second={folder}."
            )
        networks[name] = folder
    return networks


def choose_views(angles: float | None, group: str | None, random: int | None, seed: int) -> list[Any] | None:
    """Entries for :func:`~monai_gmr.symmetry.make_views` from the options; ``None``, the default of the report, without any.

    Raises ``ConfigurationError`` when nothing is left.

    Example:
        >>> choose_views(None, "432", 20, 0)
        [432, 'angles', {'random': 20, 'seed': 0}]
    """
    if angles is None and group is None and random is None:
        return None
    views: list[Any] = [] if group == "none" else [_read_value(group or "all")]
    views += ["angles"] if angles is None else [{"angles": angles}] if angles else []
    views += [{"random": random, "seed": seed}] if random else []
    if not views:
        raise ConfigurationError(
            "--angles 0, --group none and no --random leave a set of views of size zero: give at least one of them, such as --angles 30."
        )
    return views


def read_average(entries: Sequence[str], names: Sequence[str]) -> Any:
    """The views over which answers are averaged, of all networks, or by name of a network.

    Raises ``ConfigurationError`` when both are given, or the same network twice.

    Example:
        >>> read_average(["all"], ["plain"]), read_average(["plain:432", "gmr:{angles: 90}"], ["plain", "gmr"])
        ('all', {'plain': 432, 'gmr': {'angles': 90}})
    """
    named: dict[str, Any] = {}
    for entry in entries:
        name, colon, views = entry.partition(":")
        name = name if colon and name in names else ""
        if name in named:
            raise ConfigurationError(f"--average {entry} is the second one for the same network: give one.")
        named[name] = _read_value(views if name else entry)
    if "" in named and len(named) > 1:
        raise ConfigurationError("--average is given for all networks and for single ones: give one or the other.")
    return named.get("", named or None)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_gmr.rotation_report",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}

    add = parser.add_argument
    bundles_help = "bundle folder, one for each network; default name: the folder's"
    add("bundles", nargs="+", metavar="[NAME=]BUNDLE", help=bundles_help)
    add("--output_dir", required=True, metavar="DIR", help="where the report goes")

    add = parser.add_argument_group("the bundles").add_argument
    add("--dataset_dir", metavar="DIR", help="folder of the images: sets the bundle's id dataset_dir")
    config_help = "config files instead of configs/evaluate, the later ones over the first"
    add("--config_file", nargs="+", metavar="FILE", help=config_help)
    add("--set", **several, metavar="KEY=VALUE", help="ids of every bundle's config, as in device=cpu")
    single: dict[str, Any] = {"nargs": "+", "action": "append", "default": [], "dest": "single"}
    single_help = "ids of one network's config, as in --for plain checkpoint=runs/plain/model.pt"
    add("--for", **single, metavar=("NAME", "KEY=VALUE"), help=single_help)
    add("--cases", type=int, metavar="N", help="the first N cases only (default: all)")

    add = parser.add_argument_group("the views").add_argument
    angles_help = "rotations every STEP degrees (default: 10 in 2D, 30 in 3D; 0: none)"
    add("--angles", type=float, metavar="STEP", help=angles_help)
    group_help = "symmetries of the grid: all (default), none, a group such as 432 or mmm, or so many of one: {group: all, count: 12}"
    add("--group", metavar="NAME", help=group_help)
    add("--random", type=int, metavar="N", help="N random rotations, too")
    average_help = """report networks once more with their answers averaged over views (default: all symmetries of the grid); may be
        given once for each network"""
    average: dict[str, Any] = {"nargs": "?", "const": "all", "action": "append", "default": []}
    add("--average", **average, metavar="[NAME:]VIEWS", help=average_help)
    add("--views_per_batch", type=int, default=1, metavar="N", help="views that are averaged at once (default: 1)")
    spacing_help = "voxel size, one an axis: unlike axes are not exchanged"
    add("--spacing", type=float, nargs="+", metavar="MM", help=spacing_help)

    add = parser.add_argument_group("the scores").add_argument
    add("--metrics", nargs="+", metavar="NAME", help="the evaluator's metrics to report (default: all)")
    smaller: dict[str, Any] = {"action": "store_false", "dest": "greater_is_better"}
    add("--smaller_is_better", **smaller, help="the metrics are errors or distances")
    labels_help = (
        "how label images are rotated by angles: nearest neighbour (default), or the class with the largest share"
    )
    add("--labels", choices=LABEL_SAMPLINGS, default="nearest", help=labels_help)
    whole_help = (
        "judge segmentations in the whole image instead of the inscribed disc or ball, which every rotation keeps"
    )
    add("--whole_image", action="store_false", dest="in_ball", help=whole_help)
    prediction_help = "which of a network's answers to take, where it gives several"
    add("--prediction", metavar="INDEX_OR_KEY", help=prediction_help)
    add("--compare", **several, metavar="NAME=DIR", help="other reports to show beside this one")
    add("--worst_cases", type=int, default=3, metavar="N", help="cases in the picture (default: 3)")
    resamples_help = "bootstrap samples behind the intervals (default: 1000)"
    add("--num_resamples", type=int, default=1000, metavar="N", help=resamples_help)
    add("--seed", type=int, default=0, metavar="N", help="of random views and of the bootstrap (default: 0)")
    resume_help = "begin anew instead of resuming an interrupted report"
    add("--no_resume", action="store_false", dest="resume", help=resume_help)
    return parser


def _open_evaluators(networks: Mapping[str, str], arguments: argparse.Namespace) -> dict[str, BundleEvaluator]:
    settings: dict[str, dict[str, Any]] = {name: read_settings(arguments.set) for name in networks}
    for name, *pairs in arguments.single:
        if name not in settings:
            raise ConfigurationError(f"--for {name} is no network of this report: use one of {', '.join(networks)}.")
        if not pairs:
            raise ConfigurationError(f"--for {name} sets nothing: give ids, as in --for {name} device=cpu.")
        settings[name].update(read_settings(pairs, f"--for {name}"))
    return {
        name: open_evaluator(folder, settings[name], arguments.config_file, arguments.dataset_dir)
        for name, folder in networks.items()
    }


def make_report(arguments: argparse.Namespace) -> RotationReport:
    """Open the bundles and run the report, which then has the cases that were left out."""
    networks = read_networks(arguments.bundles)
    average = read_average(arguments.average, list(networks))
    compare = dict(split_pair(pair, "--compare", "other=reports/other") for pair in arguments.compare)
    opened = _open_evaluators(networks, arguments)
    report = RotationReport(
        {name: bundle.evaluator for name, bundle in opened.items()},
        arguments.output_dir,
        views=choose_views(arguments.angles, arguments.group, arguments.random, arguments.seed),
        average=average,
        frame="upright" if any(bundle.inverts for bundle in opened.values()) else "rotated",
        prediction=None if arguments.prediction is None else _read_value(arguments.prediction),
        compare=compare or None,
        **{name: getattr(arguments, name) for name in OPTIONS},
    )
    report.run()
    return report


@command("rotation_report", interrupted="the same command resumes the report")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the report with these arguments, by default those of the process; returns the exit status."""
    arguments = make_parser().parse_args([_underscored(each) for each in (sys.argv[1:] if argv is None else argv)])
    report = make_report(arguments)
    try:
        report.check_failures()
    except ConfigurationError as error:
        print(f"rotation_report: {error}", file=sys.stderr)
        return 1
    return 0


def _underscored(argument: str) -> str:
    """An option, in whose name hyphens may stand for underscores."""
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if argument.startswith("--") else argument


if __name__ == "__main__":
    sys.exit(main())
