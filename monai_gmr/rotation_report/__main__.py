"""Report what turning its images does to the network of any MONAI bundle, and to several networks side by side.

``python -m monai_gmr.rotation_report BUNDLE --output_dir DIR`` runs the bundle's own evaluator on turned images, changes none of its
files, and leaves tables and pictures in DIR; it exits with 0, or with 2 and one sentence if it cannot be done.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from monai_gmr.bundle.command_line import TRACEBACK_VARIABLE
from monai_gmr.rotation_report import RotationReport
from monai_gmr.rotation_report.evaluator import BundleEvaluator, open_evaluator
from monai_gmr.rotation_report.prepare_batch import LABEL_SAMPLINGS
from monai_gmr.utils import ConfigurationError

EXAMPLE = """
example: a bundle's network, the same one averaged over the symmetries of the grid, and another training of it

  python -m monai_gmr.rotation_report upright=bundles/spleen turned=bundles/spleen --output_dir report \\
      --dataset_dir /data/spleen --angles 45 --cases 10 --set device=cpu --average upright:all \\
      --for turned ckpt_dir=runs/turned

BUNDLE is a folder of MONAI's bundle specification, such as one that `python -m monai.bundle download` fetched. Its config is
configs/evaluate (over configs/train where need be), else configs/inference. SaveImaged, StatsHandler and whatever else writes
files or logs is switched off. A report that was stopped goes on where it stood. MONAI_GMR_TRACEBACK=1 in the environment shows
where an error came from.
"""


def split_pair(text: str, what: str, example: str) -> tuple[str, str]:
    """Read ``KEY=VALUE`` from the command line.

    Raises:
        ConfigurationError: when there is no ``=``, or nothing on one of its sides.

    Example:
        >>> split_pair("network_def::act=$'RELU' if 1 == 1 else None", "--set", "device=cpu")
        ('network_def::act', "$'RELU' if 1 == 1 else None")
    """
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ConfigurationError(f"{what} {text} cannot be read: give it as in {what} {example}.")
    return key, value


def read_settings(pairs: Sequence[str], what: str = "--set") -> dict[str, Any]:
    """Read settings ``KEY=VALUE``, whose values are YAML.

    Raises:
        ConfigurationError: when one is not of that form.

    Example:
        >>> read_settings(["device=cpu", "roi_size=[64, 64, 32]", "dataset_dir=null", "network=$@network_def.to(@device)"])
        {'device': 'cpu', 'roi_size': [64, 64, 32], 'dataset_dir': None, 'network': '$@network_def.to(@device)'}
    """
    return {key: _read_value(value) for key, value in (split_pair(pair, what, "device=cpu") for pair in pairs)}


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


def read_networks(given: Sequence[str]) -> dict[str, str]:
    """Names of networks and folders of their bundles, from ``[NAME=]FOLDER``.

    Raises:
        ConfigurationError: when two have the same name.

    Example:
        >>> read_networks(["bundles/spleen", "plain=bundles/spleen"])
        {'spleen': 'bundles/spleen', 'plain': 'bundles/spleen'}
    """
    networks: dict[str, str] = {}
    for entry in given:
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
    """The set of views that the options ask for.

    Args:
        angles: degrees between rotations; 0: none; default: 10 in 2D, 30 in 3D.
        group: name of a group of the grid's symmetries, or YAML such as "{group: all, count: 12}"; "none": none; default: all.
        random: number of random rotations; default: none.
        seed: of the random rotations.

    Returns:
        entries for :func:`~monai_gmr.symmetry.make_views`; ``None``, the default of the report, when nothing is asked for.

    Raises:
        ConfigurationError: when nothing is left.

    Example:
        >>> choose_views(None, "432", 20, 0)
        [432, 'angles', {'random': 20, 'seed': 0}]
    """
    if angles is None and group is None and random is None:
        return None
    views: list[Any] = [] if group == "none" else [_read_value(group or "all")]
    if angles is None:
        views.append("angles")
    elif angles:
        views.append({"angles": angles})
    views += [{"random": random, "seed": seed}] if random else []
    if not views:
        raise ConfigurationError(
            "--angles 0, --group none and no --random leave a set of views of size zero: give at least one of them, such as --angles 30."
        )
    return views


def read_average(given: Sequence[str], names: Sequence[str]) -> Any:
    """Over which views answers are averaged: of all networks, or of those that are named.

    Raises:
        ConfigurationError: when both are given, or the same network twice.

    Example:
        >>> read_average(["all"], ["plain"]), read_average(["plain:432", "gmr:{angles: 90}"], ["plain", "gmr"])
        ('all', {'plain': 432, 'gmr': {'angles': 90}})
    """
    named: dict[str, Any] = {}
    for entry in given:
        name, colon, views = entry.partition(":")
        name = name if colon and name in names else ""
        if name in named:
            raise ConfigurationError(f"--average {entry} is the second one for the same network: give one.")
        named[name] = _read_value(views if name else entry)
    if "" in named and len(named) > 1:
        raise ConfigurationError("--average is given for all networks and for single ones: give one or the other.")
    return named.get("", named or None)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_gmr.rotation_report.__main__",
        description="Run the evaluator of a MONAI bundle on turned and mirrored images and report its metrics,\nfor one network or several "
        "on the same images. The bundle's files stay as they are.\nExit status: 0 done, 2 cannot be done.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "bundles",
        nargs="+",
        metavar="[NAME=]BUNDLE",
        help="bundle folder, one for each network; default name: the folder's",
    )
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="where the report goes")
    where = parser.add_argument_group("the bundles")
    where.add_argument("--dataset_dir", metavar="DIR", help="folder of the images: sets the bundle's id dataset_dir")
    where.add_argument(
        "--config_file",
        nargs="+",
        metavar="FILE",
        help="config files instead of configs/evaluate, the later ones over the first",
    )
    where.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="ids of every bundle's config, as in device=cpu",
    )
    where.add_argument(
        "--for",
        nargs="+",
        action="append",
        default=[],
        dest="single",
        metavar=("NAME", "KEY=VALUE"),
        help="ids of one network's config, as in --for plain checkpoint=runs/plain/model.pt",
    )
    where.add_argument("--cases", type=int, metavar="N", help="the first N cases only (default: all)")
    views = parser.add_argument_group("the views")
    views.add_argument(
        "--angles",
        type=float,
        metavar="STEP",
        help="rotations every STEP degrees (default: 10 in 2D, 30 in 3D; 0: none)",
    )
    views.add_argument(
        "--group",
        metavar="NAME",
        help="symmetries of the grid: all (default), none, a group such as 432 or mmm, or so many of one: {group: all, count: 12}",
    )
    views.add_argument("--random", type=int, metavar="N", help="N random rotations, too")
    views.add_argument(
        "--average",
        nargs="?",
        const="all",
        action="append",
        default=[],
        metavar="[NAME:]VIEWS",
        help="report networks once more with their answers averaged over views (default: all symmetries of the grid); may be given once "
        "for each network",
    )
    views.add_argument("--views_per_batch", type=int, default=1, metavar="N", help="views at once (default: 1)")
    views.add_argument(
        "--spacing", type=float, nargs="+", metavar="MM", help="voxel size, one an axis: unlike axes are not exchanged"
    )
    scores = parser.add_argument_group("the scores")
    scores.add_argument("--metrics", nargs="+", metavar="NAME", help="the evaluator's metrics to report (default: all)")
    scores.add_argument("--smaller_is_better", action="store_true", help="the metrics are errors or distances")
    scores.add_argument(
        "--labels",
        choices=LABEL_SAMPLINGS,
        default="nearest",
        help="how label images are turned by angles: nearest neighbour (default), or the class with the largest share",
    )
    scores.add_argument(
        "--whole_image",
        action="store_true",
        help="judge segmentations in the whole image instead of the inscribed disc or ball, which every turn keeps",
    )
    scores.add_argument(
        "--prediction", metavar="INDEX_OR_KEY", help="which of a network's answers to take, where it gives several"
    )
    scores.add_argument(
        "--compare",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=DIR",
        help="other reports to show beside this one",
    )
    scores.add_argument("--worst_cases", type=int, default=3, metavar="N", help="cases in the picture (default: 3)")
    scores.add_argument(
        "--num_resamples",
        type=int,
        default=1000,
        metavar="N",
        help="bootstrap samples behind the intervals (default: 1000)",
    )
    scores.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of random views and of the bootstrap (default: 0)"
    )
    scores.add_argument("--no_resume", action="store_true", help="begin anew instead of going on with a stopped report")
    return parser


def _open_all(networks: Mapping[str, str], arguments: argparse.Namespace) -> dict[str, BundleEvaluator]:
    own: dict[str, dict[str, Any]] = {name: read_settings(arguments.set) for name in networks}
    for name, *pairs in arguments.single:
        if name not in own:
            raise ConfigurationError(f"--for {name} is no network of this report: use one of {', '.join(networks)}.")
        if not pairs:
            raise ConfigurationError(f"--for {name} sets nothing: give ids, as in --for {name} device=cpu.")
        own[name].update(read_settings(pairs, f"--for {name}"))
    return {
        name: open_evaluator(folder, own[name], arguments.config_file, arguments.dataset_dir)
        for name, folder in networks.items()
    }


def make_report(arguments: argparse.Namespace) -> RotationReport:
    """Open the bundles and run the report.

    Args:
        arguments: as :func:`make_parser` reads them.

    Returns:
        the sweep that made it, which knows what was left out.

    Raises:
        ConfigurationError: when an option is wrong or a bundle cannot be run.
    """
    networks = read_networks(arguments.bundles)
    average = read_average(arguments.average, list(networks))
    compare = dict(split_pair(pair, "--compare", "other=reports/other") for pair in arguments.compare)
    opened = _open_all(networks, arguments)
    views = choose_views(arguments.angles, arguments.group, arguments.random, arguments.seed)
    sweep = RotationReport(
        {name: bundle.evaluator for name, bundle in opened.items()},
        arguments.output_dir,
        views=views,
        spacing=arguments.spacing,
        average=average,
        views_per_batch=arguments.views_per_batch,
        labels=arguments.labels,
        in_ball=not arguments.whole_image,
        frame="upright" if any(bundle.inverts for bundle in opened.values()) else "rotated",
        prediction=None if arguments.prediction is None else _read_value(arguments.prediction),
        metrics=arguments.metrics,
        greater_is_better=not arguments.smaller_is_better,
        compare=compare or None,
        cases=arguments.cases,
        worst_cases=arguments.worst_cases,
        num_resamples=arguments.num_resamples,
        seed=arguments.seed,
        resume=not arguments.no_resume,
    )
    sweep.run()
    return sweep


def main(argv: Sequence[str] | None = None) -> int:
    """Run the report.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        the exit status: 0 done, 1 done but for the cases that are named, 2 cannot be done.
    """
    arguments = make_parser().parse_args([_underscored(each) for each in (sys.argv[1:] if argv is None else argv)])
    status = 2
    try:
        sweep = make_report(arguments)
        status = 1
        sweep.check_failures()
    except ConfigurationError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        print(f"rotation_report: {error}", file=sys.stderr)
        return status
    return 0


def _underscored(argument: str) -> str:
    """The name of an option may be written with hyphens."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


if __name__ == "__main__":
    sys.exit(main())
