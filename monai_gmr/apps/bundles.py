"""List and copy the bundles that ship with the library, and check any bundle by the rules of MONAI's model zoo.

python -m monai_gmr.apps.bundles list
python -m monai_gmr.apps.bundles copy NAME DIR     # to DIR/NAME; `python -m monai.bundle run` runs its configs from anywhere
python -m monai_gmr.apps.bundles check BUNDLE      # name of a bundle that ships, or any bundle's folder; runs code of the bundle
python -m monai_gmr.apps.bundles checksum BUNDLE   # writes models/SHA256SUMS of models/model.pt
python -m monai_gmr.apps.bundles describe BUNDLE   # writes the network of configs/inference into models/model.pt
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from monai_gmr.bundle.loaded import load_bundle
from monai_gmr.bundle.shipped import WEIGHTS, copy_bundle, find_bundle, find_config, read_metadata, shipped_bundles
from monai_gmr.bundle.zoo import check_bundle
from monai_gmr.checksums import read_sums, write_sums
from monai_gmr.command_line import command, command_parser
from monai_gmr.handlers.best_checkpoint import write_checkpoint
from monai_gmr.networks.description import write_description
from monai_gmr.networks.weights import read_checkpoint, state_of
from monai_gmr.tables import format_aligned
from monai_gmr.utils import ConfigurationError


def list_bundles(options: argparse.Namespace) -> int:
    """Prints name, version, weights and task of each bundle that ships."""
    rows = [["bundle", "version", "weights", "task"]]
    for name, root in shipped_bundles().items():
        metadata, weights = read_metadata(root), root / WEIGHTS
        size = f"{weights.stat().st_size / 1000:.0f} kB" if weights.is_file() else "none"
        rows.append([name, str(metadata.get("version", "")), size, str(metadata.get("task", ""))])
    print(format_aligned(rows, left=4))
    return 0


def copy(options: argparse.Namespace) -> int:
    """Copies a bundle and prints how to run it."""
    target = copy_bundle(options.name, options.folder)
    config = shlex.quote(str(find_config(target, "inference")))
    print(f"{target}\npython -m monai.bundle run --config_file {config} --input IMAGES --output_dir OUT")
    return 0


def check(options: argparse.Namespace) -> int:
    """Prints what is wrong with a bundle; returns 1 if anything is."""
    root = find_bundle(options.bundle)
    problems = check_bundle(root)
    for problem in problems:
        print(f"{root.name}: {problem}")
    if not problems:
        print(f"{root.name} passes all checks.")
    return int(bool(problems))


def checksum(options: argparse.Namespace) -> int:
    """Writes the checksum of a bundle's weights."""
    weights = find_bundle(options.bundle) / WEIGHTS
    if not weights.is_file():
        raise ConfigurationError(f"there are no weights at {weights}: train first.")
    before = read_sums(weights.parent).get(weights.name)
    path = write_sums(weights.parent, [weights.name])
    after = read_sums(weights.parent)[weights.name]
    print(f"{path}: {after}  {weights.name}")
    if before not in (None, after):
        print(f"It was {before}: the weights have changed since.")
    return 0


def describe(options: argparse.Namespace) -> int:
    """Writes a description of the bundle's inference network, with its default settings, into its weights, and renews their checksum if
    there is one."""
    root = find_bundle(options.bundle)
    weights = root / WEIGHTS
    if not weights.is_file():
        raise ConfigurationError(f"there are no weights at {weights}: train first.")
    has_sum = weights.name in read_sums(weights.parent)
    # refuses weights whose names, shapes or description belong to another network
    network = load_bundle(root).network
    content = read_checkpoint(weights)
    state = state_of(content, weights)
    if set(content) != set(state):
        raise ConfigurationError(f"{weights} holds more than a state dict: save network.state_dict() alone.")
    write_checkpoint(write_description(state, network), weights)
    print(f"{weights} is of a {type(network).__name__} of {len(state)} tensors.")
    return checksum(options) if has_sum else 0


@command("bundles")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, 1 if a bundle fails a check, 2 if the command cannot be run."""
    parser = command_parser("bundles", __doc__)
    parser.epilog = f"bundles: {', '.join(shipped_bundles())}"
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(action: Callable[[argparse.Namespace], int], name: str, text: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        subparser.set_defaults(action=action)
        return subparser

    add(list_bundles, "list", "list the shipped bundles")
    copying = add(copy, "copy", "copy a shipped bundle")
    copying.add_argument("name", metavar="NAME", help="name of the bundle")
    copying.add_argument("folder", metavar="DIR", type=Path, help="the copy is DIR/NAME")
    for action, name, text in (
        (check, "check", "check a bundle by the rules of MONAI's model zoo"),
        (checksum, "checksum", "write models/SHA256SUMS, so that changed weights are refused"),
        (
            describe,
            "describe",
            "write into the weights that they belong to the network of configs/inference with its defaults",
        ),
    ):
        add(action, name, text).add_argument("bundle", metavar="BUNDLE", help="name of a shipped bundle, or a folder")
    options = parser.parse_args(arguments)
    return options.action(options)


if __name__ == "__main__":
    sys.exit(main())
